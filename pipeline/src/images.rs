//! The autoencoder: samples of the loop to pixels, and back.

use crate::PipelineError;
use crate::network::Network;
use bytes::Bytes;
use cqc_proto::Tensor;
use cqc_proto::cq;
use std::collections::BTreeMap;

/// The autoencoder of a pipeline.
#[derive(Debug)]
pub struct Images {
    about: cq::Autoencoder,
    decoder: Network,
    encoder: Option<Network>,
}

impl Images {
    /// Opens the autoencoder that `about` names among the attachments; `None` if there is none.
    ///
    /// # Errors
    /// [`PipelineError`] if a network is damaged.
    pub fn open(
        about: &cq::Pipeline,
        attachments: &[Bytes],
    ) -> Result<Option<Images>, PipelineError> {
        let Some(about) = about.autoencoder.clone() else { return Ok(None) };
        let decoder = Network::open("decoder", &attachments[about.decoder])?;
        let encoder =
            about.encoder.map(|i| Network::open("encoder", &attachments[i])).transpose()?;
        Ok(Some(Images { about, decoder, encoder }))
    }

    /// Whether pixels can be encoded.
    pub fn encodes(&self) -> bool {
        self.encoder.is_some()
    }

    /// The sizes of one decoded picture, `[3, H, W]`.
    ///
    /// # Errors
    /// [`PipelineError::Mismatch`] if the decoder leaves them open.
    pub fn picture_shape(&self) -> Result<Vec<usize>, PipelineError> {
        let plan = self.decoder.plan();
        let one = plan.batch_symbol.iter().map(|s| (s.as_str().into(), 1)).collect();
        let shape = plan.outputs.first().and_then(|output| output.ty.resolve(&one));
        let shape = shape.filter(|shape| shape.len() == 4).map(|shape| shape[1..].to_vec());
        shape.ok_or_else(|| PipelineError::Mismatch("the decoder does not give pictures".into()))
    }

    /// The pixels `[N, 3, H, W]`, about -1 to 1, of samples of the loop `[N, C, h, w]`.
    ///
    /// # Errors
    /// [`PipelineError`].
    pub fn decode(&self, samples: &Tensor, threads: usize) -> Result<Tensor, PipelineError> {
        let cq::Autoencoder { scale, shift, .. } = self.about;
        let latents: Vec<f32> = samples.to_f32_vec().iter().map(|x| x / scale + shift).collect();
        run(&self.decoder, Tensor::from_f32(samples.shape(), &latents), threads)
    }

    /// The samples of the loop `[N, C, h, w]` that stand for pixels `[N, 3, H, W]` in -1 to 1: the
    /// mean of the latents.
    ///
    /// # Errors
    /// [`PipelineError::Mismatch`] without an encoder.
    pub fn encode(&self, pixels: &Tensor, threads: usize) -> Result<Tensor, PipelineError> {
        let Some(encoder) = &self.encoder else {
            let what = "the pipeline has no encoder for pixels";
            return Err(PipelineError::Mismatch(what.into()));
        };
        let moments = run(encoder, pixels.clone(), threads)?;
        let cq::Autoencoder { scale, shift, .. } = self.about;
        let [n, c, ref size @ ..] = *moments.shape() else {
            return Err(PipelineError::Mismatch("the encoder gives no images".into()));
        };
        let area: usize = size.iter().product();
        let values = moments.to_f32_vec();
        let means = values.chunks((c * area).max(1)).flat_map(|image| &image[..c / 2 * area]);
        let samples: Vec<f32> = means.map(|x| (x - shift) * scale).collect();
        let shape: Vec<usize> = [n, c / 2].iter().chain(size).copied().collect();
        Ok(Tensor::from_f32(&shape, &samples))
    }
}

/// The first output of a network of one input.
fn run(network: &Network, input: Tensor, threads: usize) -> Result<Tensor, PipelineError> {
    let plan = network.plan();
    let (Some(name), Some(output)) = (plan.inputs.first(), plan.outputs.first()) else {
        return Err(PipelineError::Mismatch("a network without input or output".into()));
    };
    let mut outputs = network.run(&BTreeMap::from([(name.name.clone(), input)]), threads)?;
    outputs.remove(&output.name).ok_or_else(|| {
        PipelineError::Mismatch(format!("the network does not give `{}`", output.name))
    })
}
