//! Weights of convolutions and linear layers on a device, in the order in which kernels read them.

use super::args::MAX_SEGMENTS;
use super::{CudaError, Device, Memory};
use half::f16;
use std::sync::Arc;

/// Which kernel a [`Filter`] is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FilterKind {
    /// Signed codes, for activations that are codes.
    Codes,
    /// fp16, for tensor cores.
    Halves,
    /// f32, for everything else.
    Direct,
}

/// Weights `[cout, taps, channels]`; codes `[cout, segments: taps, channels of the segment]`, with
/// their scales and sums after.
#[derive(Debug)]
pub struct Filter {
    pub(super) kind: FilterKind,
    pub(super) memory: Arc<Memory>,
    pub(super) taps: usize,
    /// Channels that an output reads, by segment.
    pub(super) segments: Vec<usize>,
    pub(super) cout: usize,
    /// Where scales and sums begin.
    pub(super) scales_at: usize,
    pub(super) sums_at: usize,
}

impl Filter {
    /// Codes of weights, `at(tap, channel, output)`; `scale` is `[cout, segments]`.
    ///
    /// # Errors
    /// Those of the device.
    ///
    /// # Panics
    /// Unless [`Filter::takes_codes`], or when `scale` has another length.
    pub fn codes(
        device: &dyn Device,
        taps: usize,
        segments: &[usize],
        cout: usize,
        scale: &[f32],
        at: impl Fn(usize, usize, usize) -> i8,
    ) -> Result<Filter, CudaError> {
        assert!(
            Filter::takes_codes(taps, segments),
            "no kernel for segments {segments:?} at {taps} taps"
        );
        assert_eq!(
            scale.len(),
            cout * segments.len(),
            "scales of {cout} outputs and {} segments",
            segments.len()
        );
        let mut bytes = Vec::new();
        let mut sums = vec![0i32; segments.len() * cout];
        for col in 0..cout {
            let mut begin = 0;
            for (segment, &channels) in segments.iter().enumerate() {
                for (tap, channel) in
                    (0..taps).flat_map(|tap| (begin..begin + channels).map(move |c| (tap, c)))
                {
                    let code = at(tap, channel, col);
                    bytes.push(code as u8);
                    sums[segment * cout + col] += i32::from(code);
                }
                begin += channels;
            }
        }
        let scales_at = bytes.len();
        for segment in 0..segments.len() {
            bytes.extend(
                (0..cout).flat_map(|col| scale[col * segments.len() + segment].to_le_bytes()),
            );
        }
        let sums_at = bytes.len();
        bytes.extend(sums.iter().flat_map(|s| s.to_le_bytes()));
        Filter::upload(
            device,
            FilterKind::Codes,
            taps,
            segments,
            cout,
            &bytes,
            [scales_at, sums_at],
        )
    }

    /// Weights in fp16, `at(tap, channel, output)`.
    ///
    /// # Errors
    /// Those of the device.
    ///
    /// # Panics
    /// Unless [`Filter::takes_halves`].
    pub fn halves(
        device: &dyn Device,
        taps: usize,
        channels: usize,
        cout: usize,
        at: impl Fn(usize, usize, usize) -> f32,
    ) -> Result<Filter, CudaError> {
        assert!(Filter::takes_halves(channels), "no kernel for {channels} channels");
        let bytes: Vec<u8> = in_order(taps, channels, cout)
            .flat_map(|(t, c, o)| f16::from_f32(at(t, c, o)).to_le_bytes())
            .collect();
        Filter::upload(device, FilterKind::Halves, taps, &[channels], cout, &bytes, [0, 0])
    }

    /// Weights in f32, `at(tap, channel of the group, output)`.
    ///
    /// # Errors
    /// Those of the device.
    pub fn direct(
        device: &dyn Device,
        taps: usize,
        channels: usize,
        cout: usize,
        at: impl Fn(usize, usize, usize) -> f32,
    ) -> Result<Filter, CudaError> {
        let bytes: Vec<u8> = in_order(taps, channels, cout)
            .flat_map(|(t, c, o)| at(t, c, o).to_le_bytes())
            .collect();
        Filter::upload(device, FilterKind::Direct, taps, &[channels], cout, &bytes, [0, 0])
    }

    fn upload(
        device: &dyn Device,
        kind: FilterKind,
        taps: usize,
        segments: &[usize],
        cout: usize,
        bytes: &[u8],
        [scales_at, sums_at]: [usize; 2],
    ) -> Result<Filter, CudaError> {
        let memory = device.allocate(bytes.len())?;
        device.write(&memory, 0, bytes)?;
        Ok(Filter { kind, memory, taps, segments: segments.to_vec(), cout, scales_at, sums_at })
    }

    /// Whether products of codes over segments of these sizes have a kernel: whole groups of 16
    /// bytes, sums that fit 32 bits.
    pub fn takes_codes(taps: usize, segments: &[usize]) -> bool {
        let fits = |&n: &usize| n > 0 && n.is_multiple_of(16) && n.saturating_mul(taps) <= 65536;
        (1..=MAX_SEGMENTS).contains(&segments.len()) && segments.iter().all(fits)
    }

    /// Whether tensor cores take so many channels in fp16: whole groups of 16 bytes.
    pub fn takes_halves(channels: usize) -> bool {
        channels > 0 && channels.is_multiple_of(8)
    }

    /// Bytes on the device.
    pub fn bytes(&self) -> usize {
        self.memory.len()
    }
}

/// Taps, channels and outputs, the first two running faster.
fn in_order(
    taps: usize,
    channels: usize,
    cout: usize,
) -> impl Iterator<Item = (usize, usize, usize)> {
    (0..cout).flat_map(move |o| (0..taps).flat_map(move |t| (0..channels).map(move |c| (t, c, o))))
}
