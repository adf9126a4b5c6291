//! A mutable slice that several tasks write, each its own part.

use std::marker::PhantomData;

/// The begin of a mutable slice, shared between tasks. Each task writes places no other task
/// touches.
pub(crate) struct SharedMut<'a, T> {
    start: *mut T,
    len: usize,
    slice: PhantomData<&'a mut [T]>,
}

impl<T> Clone for SharedMut<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<T> Copy for SharedMut<'_, T> {}

// SAFETY: it stands for a `&mut [T]` of which each thread touches its own part; see `at` and
// `part`.
unsafe impl<T: Send> Send for SharedMut<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for SharedMut<'_, T> {}

impl<'a, T> SharedMut<'a, T> {
    pub(crate) fn new(slice: &'a mut [T]) -> Self {
        SharedMut { start: slice.as_mut_ptr(), len: slice.len(), slice: PhantomData }
    }

    /// The place of value `index`, which may lie one past the end.
    #[inline(always)]
    pub(crate) fn at(&self, index: usize) -> *mut T {
        debug_assert!(index <= self.len);
        self.start.wrapping_add(index)
    }

    /// Values `start .. start + len`.
    ///
    /// # Safety
    /// No other task may touch them while the result lives.
    ///
    /// # Panics
    /// When they do not lie in the slice.
    #[inline(always)]
    pub(crate) unsafe fn part(&self, start: usize, len: usize) -> &'a mut [T] {
        assert!(
            start <= self.len && len <= self.len - start,
            "part {start}+{len} of a slice of {}",
            self.len
        );
        // SAFETY: in bounds; exclusive by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(start), len) }
    }
}

/// Cuts `len` into `parts` nearly equal ranges, each but the last a multiple of `unit`: the range
/// of part `index`.
pub(crate) fn cut(len: usize, parts: usize, unit: usize, index: usize) -> std::ops::Range<usize> {
    let units = len.div_ceil(unit);
    let at = |i: usize| (units * i / parts * unit).min(len);
    at(index)..at(index + 1)
}
