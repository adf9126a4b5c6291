//! Bounds on what a model may ask for, so that a hostile file costs neither memory nor time.

/// Oldest and newest supported version of the standard operator set.
pub const OPSETS: std::ops::RangeInclusive<i64> = 7..=28;

/// Most nodes, those of inlined functions and branches included.
pub const MAX_NODES: usize = 1 << 17;

/// Most nodes of one loop when it is unrolled: those of its body, once per repetition, by
/// default.
pub const MAX_UNROLLED: usize = 1 << 15;

/// Most nodes of the graph that import builds.
pub const MAX_EMITTED: usize = 4 * MAX_NODES;

/// Deepest nesting of function calls and branches.
pub const MAX_DEPTH: usize = 32;

/// Longest name in bytes.
pub const MAX_NAME: usize = 4096;

/// Largest tensor that folding constants may make, in bytes.
pub const MAX_FOLD_BYTES: i64 = 256 << 20;

/// A constant that only repeats a smaller one is not expanded beyond this many bytes.
pub const MAX_REPEAT_BYTES: i64 = 1 << 20;

/// Bytes that folding may read and make in one import, beyond [`FOLD_SHARE`], by default.
pub const FOLD_BUDGET: i64 = 1 << 30;

/// Bytes that folding may read and make per byte of initializers, elements of less than four bytes
/// counted as floats: each may be converted and transposed.
pub const FOLD_SHARE: i64 = 4;

/// Multiply-accumulates that folding may do in one import, by default.
pub const MACS_BUDGET: i64 = 1 << 29;

/// What one import, and the tables of one time step, may take beyond what stands in the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    /// Bytes that folding constants may read and make, beyond [`FOLD_SHARE`] of the initializers.
    pub fold_bytes: i64,
    /// Multiply-accumulates of folding constants.
    pub fold_macs: i64,
    /// Nodes and constants that one loop may become when it is unrolled.
    pub unrolled: usize,
}

impl Default for Budget {
    /// [`FOLD_BUDGET`], [`MACS_BUDGET`], [`MAX_UNROLLED`].
    fn default() -> Budget {
        Budget { fold_bytes: FOLD_BUDGET, fold_macs: MACS_BUDGET, unrolled: MAX_UNROLLED }
    }
}

/// Most elements of a value made of symbolic sizes.
pub const MAX_SIZES: usize = 4096;
