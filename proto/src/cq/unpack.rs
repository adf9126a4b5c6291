//! Decompresses manifests, with a limit on memory that depends on the length of the file.
//!
//! A few bytes of zlib can stand for a thousand times as many bytes of JSON, and two bytes of JSON
//! for a value of 32 bytes. So the memory that the text will need is estimated during
//! decompression, before any of it is parsed, and must be within the limit.

use super::MAX_MANIFEST;
use miniz_oxide::inflate::stream::{InflateState, inflate};
use miniz_oxide::{DataFormat, MZError, MZFlush, MZStatus};

/// The memory in bytes that the manifest of any file may take. [`budget`] computes the limit for
/// larger files.
const LEAST_BUDGET: u64 = 32 << 20;

/// The bytes of memory per byte of the file, if that is more than [`LEAST_BUDGET`].
const BUDGET_PER_BYTE: u64 = 32;

/// The average number of bytes that a parsed value or key takes, as an upper bound. A value of a
/// program consists of 12 of these items, a step of at least 9, a size of a shape of one.
const PER_ITEM: u64 = 48;

/// The number of bytes that are decompressed at once.
const CHUNK: usize = 1 << 15;

/// The bytes of memory that the manifest of a file of `file_len` bytes may take, text included.
pub(super) fn budget(file_len: u64) -> u64 {
    LEAST_BUDGET.max(file_len.saturating_mul(BUDGET_PER_BYTE))
}

/// Estimates the memory that a JSON text needs.
#[derive(Default)]
struct Cost {
    bytes: u64,
    items: u64,
    in_string: bool,
    escaped: bool,
}

impl Cost {
    fn add(&mut self, text: &[u8]) {
        self.bytes += text.len() as u64;
        for &byte in text {
            if !self.in_string {
                // every value and every key but the first follows one of these
                self.items += u64::from(matches!(byte, b',' | b':' | b'[' | b'{'));
                self.in_string = byte == b'"';
            } else if self.escaped {
                self.escaped = false;
            } else {
                // a size may be a sum, whose terms are stored one by one
                self.items += u64::from(matches!(byte, b'+' | b'-'));
                self.escaped = byte == b'\\';
                self.in_string = byte != b'"';
            }
        }
    }

    /// The memory of the text, of the strings in it, and of its parsed items.
    fn memory(&self) -> u64 {
        2 * self.bytes + PER_ITEM * self.items
    }

    fn check(&self, budget: u64) -> Result<(), String> {
        if self.bytes > MAX_MANIFEST {
            return Err(format!("more than {MAX_MANIFEST} bytes when unpacked"));
        }
        if self.memory() > budget {
            return Err(format!(
                "unpacked it would take more than {budget} bytes of memory, the most for a file of \
                 this length"
            ));
        }
        Ok(())
    }
}

/// Refuses an uncompressed text that needs more than `budget` bytes of memory.
pub(super) fn check(text: &[u8], budget: u64) -> Result<(), String> {
    let mut cost = Cost::default();
    text.chunks(CHUNK).try_for_each(|chunk| {
        cost.add(chunk);
        cost.check(budget)
    })
}

/// Decompresses a text that needs at most `budget` bytes of memory.
///
/// # Errors
/// A message that names the exceeded limit, or that the data are not valid zlib.
pub(super) fn unpack(packed: &[u8], budget: u64) -> Result<Vec<u8>, String> {
    let damaged = || "it cannot be unpacked".to_string();
    let mut state = InflateState::new_boxed(DataFormat::Zlib);
    let mut chunk = vec![0; CHUNK];
    let (mut rest, mut text, mut cost) = (packed, Vec::new(), Cost::default());
    loop {
        let step = inflate(&mut state, rest, &mut chunk, MZFlush::None);
        let (read, written) = (step.bytes_consumed, &chunk[..step.bytes_written]);
        rest = &rest[read..];
        cost.add(written);
        cost.check(budget)?;
        let full = || "there is no memory for it".to_string();
        text.try_reserve(written.len()).map_err(|_| full())?;
        text.extend_from_slice(written);
        match step.status {
            Ok(MZStatus::StreamEnd) => return Ok(text),
            // the decompressor asks for more input than there is
            Ok(_) if read == 0 && written.is_empty() => return Err(damaged()),
            Err(MZError::Buf) if read > 0 || !written.is_empty() => {}
            Ok(_) => {}
            Err(_) => return Err(damaged()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use miniz_oxide::deflate::compress_to_vec_zlib;

    #[test]
    fn what_was_packed_comes_back_and_what_is_cut_does_not() {
        let text: Vec<u8> = (0..200_000u32).flat_map(|i| i.to_string().into_bytes()).collect();
        let packed = compress_to_vec_zlib(&text, 6);
        assert_eq!(unpack(&packed, u64::MAX).unwrap(), text);
        assert_eq!(unpack(&compress_to_vec_zlib(b"", 6), 0).unwrap(), b"");
        for end in (0..packed.len()).step_by(997) {
            assert!(unpack(&packed[..end], u64::MAX).is_err(), "{end} bytes");
        }
        assert!(unpack(b"{}", u64::MAX).is_err());
    }

    #[test]
    fn a_text_is_unpacked_only_as_far_as_its_budget() {
        let zeros = format!("[{}0]", "0,".repeat(1 << 20));
        let packed = compress_to_vec_zlib(zeros.as_bytes(), 6);
        assert!(packed.len() < 5000, "{} bytes", packed.len());
        let error = unpack(&packed, budget(packed.len() as u64)).unwrap_err();
        assert!(error.contains("33554432 bytes of memory"), "{error}");
        assert!(check(zeros.as_bytes(), budget(0)).is_err());
        let size = |text: &str| {
            let mut cost = Cost::default();
            cost.add(text.as_bytes());
            cost.items
        };
        assert_eq!(size(r#"{"a":[1,2],"b\",[":{"c":"x,y"}}"#), 8);
        assert_eq!(size(r#""N+M-1""#), 2);
    }

    #[test]
    fn the_longest_text_is_refused_for_any_budget() {
        let packed = compress_to_vec_zlib(&vec![b' '; MAX_MANIFEST as usize + 1], 1);
        assert!(unpack(&packed, u64::MAX).unwrap_err().contains("when unpacked"));
    }
}
