//! Assigns the bytes of the arena to buffers.
//!
//! Buffers that are never alive in the same step share bytes. The largest are placed first, each
//! into the smallest gap that is large enough between the buffers that are alive at the same time
//! ("greedy by size", as in arXiv:2001.03288).

use cqc_kernels::arena::ALIGN;

/// A block of memory that is needed from step `first` to step `last`, both included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Buffer {
    pub bytes: usize,
    pub first: usize,
    pub last: usize,
}

impl Buffer {
    fn meets(&self, other: &Buffer) -> bool {
        self.first <= other.last && other.first <= self.last
    }
}

/// The limit on comparisons of buffers in the search for gaps. Buffers that are placed after it get
/// bytes of their own, so that the time does not grow with the square of a program's length. A
/// program of 8000 buffers that are all alive at once stays below the limit.
const COMPARISONS: usize = 1 << 25;

/// The offset of each buffer, a multiple of [`ALIGN`], and the total number of bytes. `None` if
/// that overflows.
pub(crate) fn place(buffers: &[Buffer]) -> Option<(Vec<usize>, usize)> {
    let mut order: Vec<usize> = (0..buffers.len()).collect();
    order.sort_by_key(|&i| (std::cmp::Reverse(buffers[i].bytes), i));
    let mut offsets = vec![0; buffers.len()];
    // (begin, end, buffer), in ascending order of begin
    let mut placed: Vec<(usize, usize, Buffer)> = Vec::with_capacity(buffers.len());
    let (mut total, mut comparisons) = (0usize, 0);
    // empty buffers come last and may have any offset
    for i in order.into_iter().take_while(|&i| buffers[i].bytes > 0) {
        let bytes = buffers[i].bytes.checked_next_multiple_of(ALIGN)?;
        if comparisons >= COMPARISONS {
            offsets[i] = total;
            total = total.checked_add(bytes)?;
            continue;
        }
        comparisons += placed.len();
        let begin = best_gap(&placed, &buffers[i], bytes);
        let end = begin.checked_add(bytes)?;
        offsets[i] = begin;
        total = total.max(end);
        let at = placed.partition_point(|(b, _, _)| *b <= begin);
        placed.insert(at, (begin, end, buffers[i]));
    }
    Some((offsets, total))
}

/// The beginning of the smallest gap of at least `bytes` between the buffers that are alive
/// together with `buffer`, or else the end of the last of them.
fn best_gap(placed: &[(usize, usize, Buffer)], buffer: &Buffer, bytes: usize) -> usize {
    let mut best: Option<(usize, usize)> = None; // (size, begin)
    let mut free_from = 0;
    for (begin, end, _) in placed.iter().filter(|(_, _, other)| other.meets(buffer)) {
        let gap = begin.saturating_sub(free_from);
        if gap >= bytes && best.is_none_or(|(size, _)| gap < size) {
            best = Some((gap, free_from));
        }
        free_from = free_from.max(*end);
    }
    best.map_or(free_from, |(_, begin)| begin)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn buffer(bytes: usize, first: usize, last: usize) -> Buffer {
        Buffer { bytes, first, last }
    }

    #[test]
    fn buffers_that_meet_in_time_do_not_meet_in_space() {
        let buffers: Vec<Buffer> =
            (0..200).map(|i| buffer(i * 37 % 501 + 1, i, i + i * 7 % 13)).collect();
        let (offsets, total) = place(&buffers).unwrap();
        for (i, a) in buffers.iter().enumerate() {
            assert!(offsets[i].is_multiple_of(ALIGN) && offsets[i] + a.bytes <= total);
            for (j, b) in buffers.iter().enumerate().skip(i + 1) {
                let apart =
                    offsets[i] + a.bytes <= offsets[j] || offsets[j] + b.bytes <= offsets[i];
                assert!(apart || !a.meets(b), "{i} and {j}");
            }
        }
    }

    #[test]
    fn a_chain_needs_two_buffers_and_overflow_is_refused() {
        let chain: Vec<Buffer> = (0..10).map(|i| buffer(64, i, i + 1)).collect();
        assert_eq!(place(&chain).unwrap().1, 128);
        assert_eq!(place(&[buffer(usize::MAX - 100, 0, 0), buffer(usize::MAX - 100, 0, 0)]), None);
    }
}
