//! The structs that kernels take, as `cuda/operands.cuh` and the sources declare them.

use bytemuck::{Pod, Zeroable};

/// Most segments that a result or an input may have.
pub const MAX_SEGMENTS: usize = 8;
/// Most axes of an elementwise operation.
pub(super) const MAX_RANK: usize = 6;

#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
#[repr(C)]
pub(super) struct RawOperand {
    pub data: u64,
    pub per_step: i64,
    pub per_slot: i64,
    pub element: i32,
    pub ld: i32,
}

#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
#[repr(C)]
pub(super) struct RawPerImage {
    pub values: RawOperand,
    pub stride: i32,
    pub rows: i32,
}

#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
#[repr(C)]
pub(super) struct RawEpilogue {
    pub scale: RawOperand,
    pub bias: RawOperand,
    pub residual: RawOperand,
    pub row: RawPerImage,
    pub gate: RawPerImage,
    pub act: i32,
    pub unused: i32,
}

#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
#[repr(C)]
pub(super) struct RawTarget {
    pub y: RawOperand,
    pub scale: RawOperand,
    pub zero_point: RawOperand,
    pub mode: i32,
    pub bits: i32,
    pub segments: i32,
    pub unused: i32,
    pub ends: [i32; MAX_SEGMENTS],
}

#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
#[repr(C)]
pub(super) struct ConvArgs {
    pub state: u64,
    pub x: RawOperand,
    pub w: u64,
    pub x_scale: RawOperand,
    pub x_zero_point: RawOperand,
    pub w_scale: u64,
    pub w_sums: u64,
    pub epilogue: RawEpilogue,
    pub y: RawTarget,
    /// height, width, cin, cout
    pub sizes: [i32; 4],
    /// kernel, stride, padding in front, dilation; height first
    pub window: [i32; 8],
    pub upsample: i32,
    pub out_h: i32,
    pub out_w: i32,
    pub rows: i32,
    pub groups: i32,
    pub segments: i32,
    pub ends: [i32; MAX_SEGMENTS],
    pub partial: u64,
    pub splits: i32,
    pub wide: i32,
}

#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub(super) struct MatmulArgs {
    pub state: u64,
    pub a: RawOperand,
    pub b: RawOperand,
    pub y: RawOperand,
    pub strides: [i64; 3],
    /// batch, m, k, n
    pub sizes: [i32; 4],
}

#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub(super) struct GroupNormArgs {
    pub state: u64,
    pub x: RawOperand,
    pub gamma: RawOperand,
    pub beta: RawOperand,
    pub y: RawTarget,
    pub partial: u64,
    /// images, pixels, channels, groups
    pub sizes: [i32; 4],
    pub chunk: i32,
    pub chunks: i32,
    pub act: i32,
    pub eps: f32,
    pub wide: i32,
    pub unused: i32,
}

#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub(super) struct LayerNormArgs {
    pub state: u64,
    pub x: RawOperand,
    pub gamma: RawOperand,
    pub beta: RawOperand,
    pub scale: RawPerImage,
    pub shift: RawPerImage,
    pub y: RawTarget,
    pub rows: i32,
    pub channels: i32,
    pub centred: i32,
    pub eps: f32,
    pub wide: i32,
    pub unused: i32,
}

#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub(super) struct SoftmaxArgs {
    pub state: u64,
    pub x: RawOperand,
    pub y: RawOperand,
    pub rows: i32,
    pub columns: i32,
}

#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub(super) struct AttentionArgs {
    pub state: u64,
    pub q: RawOperand,
    pub k: RawOperand,
    pub v: RawOperand,
    pub mask: RawOperand,
    pub y: RawOperand,
    pub mask_strides: [i64; 4],
    /// images, heads, kv_heads, queries, keys, depth, value_depth
    pub sizes: [i32; 7],
    pub causal: i32,
    pub bits: i32,
    pub scale: f32,
}

#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub(super) struct ElementwiseArgs {
    pub state: u64,
    pub operands: [RawOperand; 4],
    pub count: u32,
    pub op: i32,
    pub rank: i32,
    pub wide: i32,
    pub strides: [[i64; MAX_RANK]; 4],
    pub shape: [u32; MAX_RANK],
}

#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub(super) struct GatherArgs {
    pub state: u64,
    pub data: RawOperand,
    pub indices: RawOperand,
    pub y: RawOperand,
    /// outer, size, inner, count
    pub sizes: [i32; 4],
}

#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub(super) struct AffineArgs {
    pub state: u64,
    /// x, scale, shift, residual, previous, previous_scale, y
    pub operands: [RawOperand; 7],
    pub rows: i32,
    pub columns: i32,
    pub wide: i32,
    pub unused: i32,
}

#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub(super) struct RowsArgs {
    pub state: u64,
    pub x: RawOperand,
    pub y: RawTarget,
    pub rows: i32,
    pub columns: i32,
    pub act: i32,
    pub wide: i32,
}

#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub(super) struct EmbeddingArgs {
    pub state: u64,
    pub t: RawOperand,
    pub frequencies: RawOperand,
    pub y: RawOperand,
    pub rows: i32,
    pub half: i32,
    pub cos_first: i32,
    pub unused: i32,
}

#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub(super) struct SamplerArgs {
    pub state: u64,
    pub x: RawOperand,
    pub output: RawOperand,
    pub constants: RawOperand,
    pub noise: RawOperand,
    pub guidance: RawOperand,
    pub kept: RawOperand,
    pub input: RawOperand,
    pub scale: RawOperand,
    pub shift: RawOperand,
    /// samples, length, width, columns
    pub sizes: [i32; 4],
    /// Operations of a row.
    pub ops: i32,
    /// Whether the output has a second half that some operation reads.
    pub learned: i32,
    pub channels: i32,
    pub copies: i32,
}

#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub(super) struct CountArgs {
    pub state: u64,
}

#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub(super) struct SelftestArgs {
    pub state: u64,
    pub input: RawOperand,
    pub output: RawOperand,
}

#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub(super) struct PeakArgs {
    pub state: u64,
    pub input: RawOperand,
    pub output: RawOperand,
    pub rounds: i32,
    pub unused: i32,
}

// The sources assert the same sizes.
const _: () = {
    assert!(size_of::<ConvArgs>() == 576 && size_of::<MatmulArgs>() == 144);
    assert!(
        size_of::<GroupNormArgs>() == 296
            && size_of::<LayerNormArgs>() == 352
            && size_of::<SoftmaxArgs>() == 80
    );
    assert!(
        size_of::<AttentionArgs>() == 240
            && size_of::<ElementwiseArgs>() == 368
            && size_of::<AffineArgs>() == 248
    );
    assert!(
        size_of::<GatherArgs>() == 120
            && size_of::<RowsArgs>() == 200
            && size_of::<EmbeddingArgs>() == 120
    );
    assert!(
        size_of::<SelftestArgs>() == 72
            && size_of::<SamplerArgs>() == 328
            && size_of::<CountArgs>() == 8
    );
    assert!(size_of::<PeakArgs>() == 80);
};
