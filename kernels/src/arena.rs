//! One aligned block of memory for all activations, and checked typed views into it.

use bytes::Bytes;
use memmap2::MmapMut;
use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::fmt;
use std::ptr::NonNull;

/// Every arena and every packed weight begins at a multiple of this, in bytes: a cache line, an
/// AVX-512 vector.
pub const ALIGN: usize = 64;

/// Plain numbers: any bytes are a value, and there is no padding.
pub trait Pod: sealed::Sealed + Copy + Send + Sync + Default + 'static {}

mod sealed {
    pub trait Sealed {}
}

macro_rules! pod {
    ($($t:ty)*) => {$( impl sealed::Sealed for $t {} impl Pod for $t {} )*};
}
pod!(f32 f64 i8 i16 i32 i64 u8 u16 u32 u64);

/// A range of bytes in an arena.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Span {
    /// Offset of the first byte from the start of the arena.
    pub offset: usize,
    /// Length in bytes.
    pub bytes: usize,
}

impl Span {
    /// Bytes `offset .. offset + bytes`.
    pub const fn new(offset: usize, bytes: usize) -> Span {
        Span { offset, bytes }
    }

    fn end(self) -> Option<usize> {
        self.offset.checked_add(self.bytes)
    }

    /// Whether the two share a byte; spans whose end overflows count as sharing.
    fn meets(self, other: Span) -> bool {
        if self.bytes == 0 || other.bytes == 0 {
            return false;
        }
        match (self.end(), other.end()) {
            (Some(a), Some(b)) => self.offset < b && other.offset < a,
            _ => true,
        }
    }
}

/// Why a view into an arena was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ArenaError {
    /// The span does not lie in the arena.
    #[error("arena span {span:?} does not lie in an arena of {len} bytes")]
    OutOfBounds {
        /// What was asked for.
        span: Span,
        /// Bytes in the arena.
        len: usize,
    },
    /// A span to be written shares bytes with another span of the same step.
    #[error("arena span {written:?} is written while {other:?} is in use")]
    Overlap {
        /// The span to be written.
        written: Span,
        /// The other span.
        other: Span,
    },
    /// The span's begin or length does not fit the element type.
    #[error("arena span {span:?} is no sequence of {size}-byte values")]
    Misaligned {
        /// What was asked for.
        span: Span,
        /// Bytes of one value.
        size: usize,
    },
}

/// The system has no such block of memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("there is no block of {bytes} bytes of memory")]
pub struct NoArena {
    /// Bytes asked for.
    pub bytes: usize,
}

/// Aligned memory, allocated once, zero at first. Offsets and lengths are in bytes.
pub struct Arena {
    memory: NonNull<u8>,
    len: usize,
    /// Whose memory it is; `None`: the allocator's.
    map: Option<MmapMut>,
}

/// From here on arenas are pages of their own: zero without being written, and huge where the
/// system has such.
const MAPPED: usize = 1 << 22;

// SAFETY: the memory is owned and only reached through `&self` (reads) and `&mut self` (writes).
unsafe impl Send for Arena {}
// SAFETY: as above.
unsafe impl Sync for Arena {}

impl Arena {
    /// `bytes` zero bytes, aligned to [`ALIGN`].
    ///
    /// For what is as large as something that is in memory already; what a file or a caller says
    /// the size of is made by [`Arena::try_new`].
    pub fn new(bytes: usize) -> Arena {
        Arena::try_new(bytes).unwrap_or_else(|NoArena { .. }| {
            let layout = Layout::from_size_align(bytes.max(ALIGN), ALIGN);
            handle_alloc_error(layout.expect("an arena is smaller than half the address space"))
        })
    }

    /// `bytes` zero bytes, aligned to [`ALIGN`].
    ///
    /// # Errors
    /// [`NoArena`] where the system refuses so many. One that promises more than it has does not
    /// refuse: [`memory`](crate::memory) tells what there is.
    pub fn try_new(bytes: usize) -> Result<Arena, NoArena> {
        let none = NoArena { bytes };
        let layout = Layout::from_size_align(bytes.max(ALIGN), ALIGN).map_err(|_| none)?;
        if let Some(mut map) = (bytes >= MAPPED).then(|| MmapMut::map_anon(bytes).ok()).flatten() {
            // a hint
            #[cfg(target_os = "linux")]
            let _ = map.advise(memmap2::Advice::HugePage);
            let memory = NonNull::new(map.as_mut_ptr()).expect("a map has an address");
            return Ok(Arena { memory, len: bytes, map: Some(map) });
        }
        // SAFETY: the layout's size is at least `ALIGN`, so not zero.
        let memory = unsafe { alloc_zeroed(layout) };
        Ok(Arena { memory: NonNull::new(memory).ok_or(none)?, len: bytes, map: None })
    }

    /// A copy of `bytes`, so aligned.
    ///
    /// # Errors
    /// As [`Arena::try_new`].
    pub fn copy_of(bytes: &[u8]) -> Result<Arena, NoArena> {
        let mut copy = Arena::try_new(bytes.len())?;
        let all = Span::new(0, bytes.len());
        copy.get_mut(all).expect("an arena holds itself").copy_from_slice(bytes);
        Ok(copy)
    }

    /// Length in bytes, as it was given to [`Arena::new`].
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// A shared view.
    ///
    /// # Errors
    /// [`ArenaError::OutOfBounds`], [`ArenaError::Misaligned`].
    pub fn get<T: Pod>(&self, span: Span) -> Result<&[T], ArenaError> {
        let len = self.check::<T>(span)?;
        // SAFETY: checked: in bounds, aligned, any bytes are a `T`; `&self` keeps writers away.
        Ok(unsafe { std::slice::from_raw_parts(self.at(span), len) })
    }

    /// A mutable view.
    ///
    /// # Errors
    /// [`ArenaError::OutOfBounds`], [`ArenaError::Misaligned`].
    pub fn get_mut<T: Pod>(&mut self, span: Span) -> Result<&mut [T], ArenaError> {
        let len = self.check::<T>(span)?;
        // SAFETY: checked: in bounds, aligned, any bytes are a `T`; `&mut self` keeps everybody
        // else away.
        Ok(unsafe { std::slice::from_raw_parts_mut(self.at(span), len) })
    }

    /// Mutable views of `written` (bytes; see [`cast_mut`]), and a reader for everything outside
    /// them.
    ///
    /// ```
    /// # use cqc_kernels::arena::*;
    /// let mut arena = Arena::new(256);
    /// let (reads, [y]) = arena.split([Span::new(128, 64)])?;
    /// let x: &[f32] = reads.get(Span::new(0, 64))?;
    /// cast_mut::<f32>(y).copy_from_slice(x);
    /// # Ok::<(), ArenaError>(())
    /// ```
    ///
    /// # Errors
    /// [`ArenaError::OutOfBounds`]; [`ArenaError::Overlap`] when two of `written` share a byte.
    pub fn split<const W: usize>(
        &mut self,
        written: [Span; W],
    ) -> Result<(Reader<'_, W>, [&mut [u8]; W]), ArenaError> {
        for (i, &span) in written.iter().enumerate() {
            self.check::<u8>(span)?;
            if let Some(&other) = written[..i].iter().find(|other| span.meets(**other)) {
                return Err(ArenaError::Overlap { written: span, other });
            }
        }
        // SAFETY: in bounds and pairwise disjoint (checked above); the reader refuses spans that
        // meet them, and `&mut self` is borrowed for as long as any of the views lives.
        let views = written
            .map(|span| unsafe { std::slice::from_raw_parts_mut(self.at::<u8>(span), span.bytes) });
        Ok((Reader { arena: self, written }, views))
    }

    fn at<T>(&self, span: Span) -> *mut T {
        // SAFETY: only called with spans that passed `check`.
        unsafe { self.memory.as_ptr().add(span.offset).cast() }
    }

    /// The number of `T` in `span`.
    fn check<T: Pod>(&self, span: Span) -> Result<usize, ArenaError> {
        if span.end().is_none_or(|end| end > self.len) {
            return Err(ArenaError::OutOfBounds { span, len: self.len });
        }
        let size = size_of::<T>();
        if !span.offset.is_multiple_of(align_of::<T>()) || !span.bytes.is_multiple_of(size) {
            return Err(ArenaError::Misaligned { span, size });
        }
        Ok(span.bytes / size)
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        if self.map.is_none() {
            let layout = Layout::from_size_align(self.len.max(ALIGN), ALIGN)
                .expect("it has been allocated with it");
            // SAFETY: allocated in `try_new` with this very layout.
            unsafe { dealloc(self.memory.as_ptr(), layout) }
        }
    }
}

impl AsRef<[u8]> for Arena {
    fn as_ref(&self) -> &[u8] {
        self.get(Span::new(0, self.len)).expect("an arena holds itself")
    }
}

impl Clone for Arena {
    fn clone(&self) -> Arena {
        let mut copy = Arena::new(self.len);
        let bytes: &mut [u8] = copy.get_mut(Span::new(0, self.len)).expect("an arena holds itself");
        bytes.copy_from_slice(self.as_ref());
        copy
    }
}

impl fmt::Debug for Arena {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Arena").field("len", &self.len).finish()
    }
}

/// Shared views of an arena, except of the spans that are being written.
#[derive(Clone, Copy, Debug)]
pub struct Reader<'a, const W: usize> {
    arena: &'a Arena,
    written: [Span; W],
}

impl<'a, const W: usize> Reader<'a, W> {
    /// A shared view; it may share bytes with other shared views.
    ///
    /// # Errors
    /// [`ArenaError::Overlap`] when it shares a byte with a written span; else as [`Arena::get`].
    pub fn get<T: Pod>(&self, span: Span) -> Result<&'a [T], ArenaError> {
        let len = self.arena.check::<T>(span)?;
        if let Some(&written) = self.written.iter().find(|written| written.meets(span)) {
            return Err(ArenaError::Overlap { written, other: span });
        }
        // SAFETY: checked: in bounds, aligned, disjoint from all that is written; any bytes are a
        // `T`.
        Ok(unsafe { std::slice::from_raw_parts(self.arena.at(span), len) })
    }
}

/// `bytes` as values of type `T`.
///
/// # Panics
/// When the begin or the length does not fit `T`.
pub fn cast<T: Pod>(bytes: &[u8]) -> &[T] {
    check_cast::<T>(bytes);
    // SAFETY: checked: aligned, whole values; any bytes are a `T`.
    unsafe { std::slice::from_raw_parts(bytes.as_ptr().cast(), bytes.len() / size_of::<T>()) }
}

/// `bytes` as mutable values of type `T`.
///
/// # Panics
/// When the begin or the length does not fit `T`.
pub fn cast_mut<T: Pod>(bytes: &mut [u8]) -> &mut [T] {
    check_cast::<T>(bytes);
    // SAFETY: checked: aligned, whole values; any bytes are a `T`, and a `T` is any bytes.
    unsafe {
        std::slice::from_raw_parts_mut(bytes.as_mut_ptr().cast(), bytes.len() / size_of::<T>())
    }
}

/// Those of `parts` that are as long as told, in bytes, and lie where packed weights may lie;
/// `None` if one is not.
pub(crate) fn fit<const N: usize>(parts: [Bytes; N], lens: [usize; N]) -> Option<[Bytes; N]> {
    let fits = |(part, len): (&Bytes, usize)| {
        part.len() == len && (len == 0 || part.as_ptr().addr().is_multiple_of(ALIGN))
    };
    parts.iter().zip(lens).all(fits).then_some(parts)
}

/// The bytes of a slice of values, as they lie in memory.
pub fn bytes_of<T: Pod>(values: &[T]) -> &[u8] {
    // SAFETY: a `Pod` has no padding, so all bytes are initialised.
    unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), size_of_val(values)) }
}

fn check_cast<T>(bytes: &[u8]) {
    let (size, align) = (size_of::<T>(), align_of::<T>());
    assert!(
        bytes.len().is_multiple_of(size),
        "{} bytes are no whole number of {size}-byte values",
        bytes.len()
    );
    assert!(bytes.as_ptr().addr().is_multiple_of(align), "bytes are not aligned to {align}");
}
