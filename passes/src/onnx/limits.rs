//! Limits of what a model may ask for, so that a hostile file costs neither memory nor time.

/// Oldest and newest supported version of the standard operator set.
pub const OPSETS: std::ops::RangeInclusive<i64> = 7..=28;

/// Largest number of nodes, including those of inlined functions and branches.
pub const MAX_NODES: usize = 1 << 17;

/// Default for the largest number of nodes of an unrolled loop: those of its body, once per
/// repetition.
pub const MAX_UNROLLED: usize = 1 << 15;

/// Largest number of nodes of the graph that the import builds.
pub const MAX_EMITTED: usize = 4 * MAX_NODES;

/// Deepest nesting of function calls and branches.
pub const MAX_DEPTH: usize = 32;

/// Longest name, in bytes.
pub const MAX_NAME: usize = 4096;

/// Largest tensor that folding constants may compute, in bytes.
pub const MAX_FOLD_BYTES: i64 = 256 << 20;

/// A constant that only repeats a smaller one is not expanded beyond this number of bytes.
pub const MAX_REPEAT_BYTES: i64 = 1 << 20;

/// Default for the number of bytes that folding may read and write in one import, beyond
/// [`FOLD_SHARE`].
pub const FOLD_BUDGET: i64 = 1 << 30;

/// Bytes that folding may read and write per byte of initializers, because each may be converted
/// and transposed. Elements of less than four bytes count as floats.
pub const FOLD_SHARE: i64 = 4;

/// Default for the multiply-accumulates that folding may do in one import.
pub const MACS_BUDGET: i64 = 1 << 29;

/// The budget of one import, and of the tables of one time step, beyond the size of the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    /// Bytes that folding constants may read and write, beyond [`FOLD_SHARE`] of the initializers.
    pub fold_bytes: i64,
    /// Multiply-accumulates that folding constants may do.
    pub fold_macs: i64,
    /// Nodes and constants that one loop may become when it is unrolled.
    pub unrolled: usize,
}

impl Default for Budget {
    /// [`FOLD_BUDGET`], [`MACS_BUDGET`] and [`MAX_UNROLLED`].
    fn default() -> Budget {
        Budget { fold_bytes: FOLD_BUDGET, fold_macs: MACS_BUDGET, unrolled: MAX_UNROLLED }
    }
}

/// Largest number of elements of a value made of symbolic sizes.
pub const MAX_SIZES: usize = 4096;
