//! Normalisations, attention, maps of rows, and operators that only move elements.

use super::{Outcome, StepLowering, missing};
use crate::engine::kernel::{Fill, Kernel, Move};
use cqc_kernels::cuda::{self, ElementOp, ElementType, Operand, PerImage};
use cqc_kernels::{Act, AttentionShape};
use cqc_proto::op::operand::{
    AFFINE_MAP, AFFINE_PREVIOUS, AFFINE_RESIDUAL, BETA, GAMMA, MASK, MODULATE, QKV,
};

impl StepLowering<'_, '_, '_, '_> {
    /// Launches the device's counterpart of a CPU kernel.
    pub(super) fn kernel(&mut self, kernel: &Kernel) -> Outcome {
        match kernel {
            Kernel::Nothing => Ok(()),
            Kernel::GroupNorm { n, hw, c, groups, eps, act, .. } => {
                self.group_norm([*n, *hw, *c, *groups], *eps, *act)
            }
            Kernel::LayerNorm { rows, c, eps, modulate, .. } => {
                self.layer_norm([*rows, *c], *eps, true, modulate.is_some())
            }
            Kernel::RmsNorm { rows, c, eps, .. } => {
                self.layer_norm([*rows, *c], *eps, false, false)
            }
            Kernel::Softmax { rows, cols } => {
                let x = self.need(0)?;
                let (x, y) = (self.operand(x)?, self.operand(self.output)?);
                let launch = cuda::softmax(self.lowered.state, [*rows, *cols], &x, &y);
                self.launch(launch);
                Ok(())
            }
            Kernel::Attention { shape, .. } => self.attention(shape),
            Kernel::Affine { rows, c, .. } => self.affine([*rows, *c]),
            Kernel::Copy { fill, moves, .. } => self.moves(*fill, moves),
            Kernel::Gather { outer, size, inner_bytes, .. } => {
                self.gather([*outer, *size, *inner_bytes])
            }
            _ => Err(missing("neither has the CPU a kernel for it but its definition")),
        }
    }

    fn group_norm(&mut self, sizes: [usize; 4], eps: f32, act: Act) -> Outcome {
        let x = self.need(0)?;
        let (x, gamma, beta) = (self.operand(x)?, self.dense(GAMMA)?, self.dense(BETA)?);
        if sizes[3] > 4096 {
            return Err(missing(format!("{} groups", sizes[3])));
        }
        let bytes = cuda::group_norm_scratch(sizes[0], sizes[1], sizes[3]);
        let scratch = self.scratch(bytes, ElementType::F32, bytes / size_of::<f32>());
        let target = self.target()?;
        let output = target.output()?;
        let state = self.lowered.state;
        let launches = cuda::group_norm(
            state,
            sizes,
            eps,
            act,
            &x,
            gamma.as_ref(),
            beta.as_ref(),
            &output,
            &scratch,
        );
        launches.into_iter().for_each(|launch| self.launch(launch));
        Ok(())
    }

    fn layer_norm(
        &mut self,
        sizes: [usize; 2],
        eps: f32,
        centred: bool,
        modulated: bool,
    ) -> Outcome {
        let x = self.need(0)?;
        let (x, gamma, beta) = (self.operand(x)?, self.dense(GAMMA)?, self.dense(BETA)?);
        let parts = if modulated {
            self.per_image(MODULATE[0])?.zip(self.per_image(MODULATE[1])?)
        } else {
            None
        };
        let target = self.target()?;
        let modulate = parts.as_ref().map(|(scale, shift)| {
            [scale, shift].map(|(values, stride, rows)| PerImage {
                values,
                stride: *stride,
                rows: *rows,
            })
        });
        let output = target.output()?;
        let state = self.lowered.state;
        let launch = cuda::layer_norm(
            state,
            sizes,
            eps,
            centred,
            &x,
            gamma.as_ref(),
            beta.as_ref(),
            modulate,
            &output,
        );
        self.launch(launch);
        Ok(())
    }

    fn attention(&mut self, shape: &AttentionShape) -> Outcome {
        let mask = self.maybe(MASK)?;
        let fits = shape.d.is_multiple_of(8) && shape.dv.is_multiple_of(8);
        let mut operands = Vec::new();
        for i in QKV {
            let v = self.need(i)?;
            operands.push(if fits { self.wide(i)? } else { self.operand(v)? });
        }
        let y = self.operand(self.output)?;
        let [q, k, v] = [&operands[0], &operands[1], &operands[2]];
        let launch = cuda::attention(self.lowered.state, shape, [q, k, v], mask.as_ref(), &y);
        self.launch(launch);
        Ok(())
    }

    fn affine(&mut self, sizes: [usize; 2]) -> Outcome {
        let x = self.need(0)?;
        let x = self.operand(x)?;
        let absent = || missing("an input is absent");
        let (scale, shift) = (
            self.dense(AFFINE_MAP[0])?.ok_or_else(absent)?,
            self.dense(AFFINE_MAP[1])?.ok_or_else(absent)?,
        );
        let (residual, previous, factor) = (
            self.maybe(AFFINE_RESIDUAL)?,
            self.maybe(AFFINE_PREVIOUS[0])?,
            self.dense(AFFINE_PREVIOUS[1])?,
        );
        let y = self.operand(self.output)?;
        let previous =
            previous.as_ref().zip(factor.as_ref()).map(|(values, factor)| [values, factor]);
        let state = self.lowered.state;
        let launch =
            cuda::affine(state, sizes, &x, [&scale, &shift], previous, residual.as_ref(), &y);
        self.launch(launch);
        Ok(())
    }

    /// Gathers elements. `inner_bytes` is in the CPU's element type.
    fn gather(&mut self, [outer, size, inner_bytes]: [usize; 3]) -> Outcome {
        let (data, indices) = (self.need(0)?, self.need(1)?);
        let sizes =
            [outer, size, inner_bytes / self.value(data).dtype.size(), self.value(indices).len()];
        let (data, indices, y) =
            (self.operand(data)?, self.operand(indices)?, self.operand(self.output)?);
        let launch = cuda::gather(self.lowered.state, sizes, &data, &indices, &y);
        self.launch(launch);
        Ok(())
    }

    pub(super) fn fake_quant(&mut self) -> Outcome {
        let x = self.need(0)?;
        let value = self.value(x);
        let (x, target) = (self.operand(x)?, self.target()?);
        let launch =
            cuda::quantize(self.lowered.state, [value.rows, value.cols], &x, &target.output()?);
        self.launch(launch);
        Ok(())
    }

    pub(super) fn geglu(&mut self, act: Act) -> Outcome {
        let x = self.need(0)?;
        let y = self.value(self.output);
        let (x, target) = (self.operand(x)?, self.target()?);
        let launch = cuda::gated(self.lowered.state, [y.rows, y.cols], act, &x, &target.output()?);
        self.launch(launch);
        Ok(())
    }

    pub(super) fn timestep_embedding(&mut self, cos_first: bool) -> Outcome {
        let y = self.value(self.output);
        let (t, f) = (self.need(0)?, self.need(1)?);
        let (t, frequencies, target) =
            (self.operand(t)?, self.operand(f)?, self.operand(self.output)?);
        let launch = cuda::timestep_embedding(
            self.lowered.state,
            [y.rows, y.cols / 2],
            cos_first,
            &t,
            &frequencies,
            &target,
        );
        self.launch(launch);
        Ok(())
    }

    fn moves(&mut self, fill: Option<Fill>, moves: &[Move]) -> Outcome {
        let y = self.value(self.output);
        let target = self.operand(self.output)?;
        if let Some(fill) = fill {
            let value = match fill {
                Fill::Input(i) => self.need(i).and_then(|v| self.operand(v))?,
                Fill::Zero => Operand::new(&self.constants.zero()?, 0, target.element, 1),
            };
            let (shape, reads) = ([y.rows, y.cols], [(&value, &[0, 0][..])]);
            let launch = cuda::elementwise(
                self.lowered.state,
                ElementOp::Copy,
                &shape,
                &reads,
                (&target, &[y.ld, 1]),
            );
            self.launch(launch);
        }
        for part in moves {
            let from = self.need(part.input)?;
            let from = self.operand(from)?;
            let strides: Option<Vec<usize>> =
                part.x_strides.iter().map(|&s| usize::try_from(s).ok()).collect();
            let strides = strides.ok_or_else(|| missing("elements in reverse order"))?;
            if part.shape.len() > 6 {
                return Err(missing(format!("{} axes", part.shape.len())));
            }
            let from = moved(from, part.x_offset);
            let to = moved(target.clone(), part.y_offset);
            let reads = [(&from, &strides[..])];
            let launch = cuda::elementwise(
                self.lowered.state,
                ElementOp::Copy,
                &part.shape,
                &reads,
                (&to, &part.y_strides),
            );
            self.launch(launch);
        }
        Ok(())
    }
}

/// The operand, beginning `elements` elements later.
fn moved(operand: Operand, elements: usize) -> Operand {
    Operand { offset: operand.offset + elements * operand.element.size(), ..operand }
}
