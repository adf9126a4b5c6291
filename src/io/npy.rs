//! The format `.npy`, which holds one array.
//! <https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html>

use super::{FileError, Overwrite, open_regular, or_what, write_atomic};
use bytes::Bytes;
use cqc_proto::types::element_count;
use cqc_proto::{DType, Tensor};
use std::io::{Read, Write};
use std::path::Path;

const MAGIC: &[u8] = b"\x93NUMPY";

/// Longest header that is read, which is numpy's own limit for untrusted files.
const MAX_HEADER: usize = 10_000;

/// Number of bytes that are read before it is known that the file is an array. It is more than any
/// header has.
const FIRST: u64 = 1 << 14;

/// The data begins at a multiple of this number of bytes.
const ALIGNMENT: usize = 64;

/// Element types and their codes without the byte order.
const CODES: [(DType, &str); 12] = [
    (DType::F16, "f2"),
    (DType::F32, "f4"),
    (DType::F64, "f8"),
    (DType::I8, "i1"),
    (DType::I16, "i2"),
    (DType::I32, "i4"),
    (DType::I64, "i8"),
    (DType::U8, "u1"),
    (DType::U16, "u2"),
    (DType::U32, "u4"),
    (DType::U64, "u8"),
    (DType::Bool, "b1"),
];

/// Reads an array. Fortran order and big endian are converted. The memory is bounded by the size of
/// the file.
///
/// # Errors
/// [`FileError::Io`] or [`FileError::Format`].
pub fn read_npy(path: &Path) -> Result<Tensor, FileError> {
    let io = |e| FileError::reading(path)(e);
    let format = |reason| FileError::Format { path: path.to_path_buf(), format: ".npy", reason };
    let mut file = open_regular(path)?;
    let size = file.metadata().map_err(io)?.len();
    // a file that is not an array is not read any further
    let mut bytes = Vec::new();
    (&file).take(FIRST).read_to_end(&mut bytes).map_err(io)?;
    let header = parse_header(&bytes).map_err(|reason| format(or_what(reason, &bytes)))?;
    check_size(&header, size).map_err(format)?;
    bytes.try_reserve_exact(size as usize).map_err(|e| format(e.to_string()))?;
    file.read_to_end(&mut bytes).map_err(io)?;
    decode_npy(bytes.into()).map_err(format)
}

/// Writes an array in C order. bfloat16, which numpy lacks, is written as f32.
///
/// # Errors
/// [`FileError::Exists`] or [`FileError::Io`].
pub fn write_npy(path: &Path, tensor: &Tensor, overwrite: Overwrite) -> Result<(), FileError> {
    let tensor = storable(tensor);
    write_atomic(path, overwrite, |out| {
        out.write_all(&header(&tensor))?;
        out.write_all(tensor.bytes())
    })
}

/// The tensor in a type that numpy has.
pub(super) fn storable(tensor: &Tensor) -> Tensor {
    if tensor.dtype() == DType::BF16 { tensor.to_float(DType::F32) } else { tensor.clone() }
}

/// The bytes before the data of a tensor that is [`storable`].
pub(super) fn header(tensor: &Tensor) -> Vec<u8> {
    header_of(tensor.dtype(), tensor.shape())
}

/// The bytes before the data of an array.
pub(super) fn header_of(dtype: DType, shape: &[usize]) -> Vec<u8> {
    let (dtype, code) =
        CODES.iter().find(|(d, _)| *d == dtype).expect("`storable` leaves types of the list");
    let order = if dtype.size() == 1 { '|' } else { '<' };
    let sizes: String = shape.iter().map(|d| format!("{d}, ")).collect();
    // the form of numpy: (), (3,), (3, 4)
    let sizes = if shape.len() == 1 { sizes.trim_end() } else { sizes.trim_end_matches(", ") };
    let text =
        format!("{{'descr': '{order}{code}', 'fortran_order': False, 'shape': ({sizes}), }}");
    let length = (MAGIC.len() + 4 + text.len() + 1).next_multiple_of(ALIGNMENT);
    let mut out =
        [MAGIC, &[1, 0], &((length - MAGIC.len() - 4) as u16).to_le_bytes(), text.as_bytes()]
            .concat();
    out.resize(length - 1, b' ');
    out.push(b'\n');
    out
}

/// The content of a header.
struct Header {
    dtype: DType,
    big_endian: bool,
    fortran: bool,
    shape: Vec<usize>,
    /// Position at which the data begins.
    start: usize,
}

/// Reads the bytes of a whole `.npy` file.
///
/// # Errors
/// A sentence about the difference from the format.
pub fn decode_npy(bytes: Bytes) -> Result<Tensor, String> {
    let header = parse_header(&bytes)?;
    check_size(&header, bytes.len() as u64)?;
    let mut data = bytes.slice(header.start..);
    if header.big_endian {
        data = swapped(&data, header.dtype.size());
    }
    if header.fortran {
        data = c_order(&data, &header.shape, header.dtype.size());
    }
    if header.dtype == DType::Bool && data.iter().any(|&b| b > 1) {
        return Err("a bool is neither 0 nor 1".into());
    }
    Ok(Tensor::new(header.dtype, header.shape, data).expect("the size was checked above"))
}

/// Checks that a file of `size` bytes holds the array of its header.
fn check_size(header: &Header, size: u64) -> Result<(), String> {
    let count = element_count(&header.shape)
        .ok_or_else(|| format!("shape {:?} is too large", header.shape))?;
    let expected = (count * header.dtype.size()) as u64;
    let found = size.saturating_sub(header.start as u64);
    if expected != found {
        return Err(format!(
            "{} {:?} needs {expected} bytes of data, there are {found}",
            header.dtype, header.shape
        ));
    }
    Ok(())
}

fn parse_header(bytes: &[u8]) -> Result<Header, String> {
    let rest = bytes.strip_prefix(MAGIC).ok_or("it does not begin as one")?;
    let (length, text_start) = match rest {
        [1, _, a, b, ..] => (u16::from_le_bytes([*a, *b]) as usize, MAGIC.len() + 4),
        [2 | 3, _, a, b, c, d, ..] => {
            (u32::from_le_bytes([*a, *b, *c, *d]) as usize, MAGIC.len() + 6)
        }
        [version, _, _, ..] => return Err(format!("its version is {version}, known are 1 to 3")),
        _ => return Err("it is cut off".into()),
    };
    if length > MAX_HEADER {
        return Err(format!("its header has {length} bytes, at most {MAX_HEADER} are read"));
    }
    let start = text_start + length;
    let text = bytes.get(text_start..start).ok_or("it is cut off in the header")?;
    let text = std::str::from_utf8(text).map_err(|_| "its header is not text")?;
    let (dtype, big_endian) = parse_descr(value_of(text, "descr")?)?;
    let fortran = match value_of(text, "fortran_order")? {
        v if v.starts_with("True") => true,
        v if v.starts_with("False") => false,
        _ => return Err("`fortran_order` in its header is neither True nor False".into()),
    };
    let shape = parse_shape(value_of(text, "shape")?)?;
    Ok(Header { dtype, big_endian, fortran, shape, start })
}

/// The text after `'key':` in a Python dictionary.
fn value_of<'a>(text: &'a str, key: &str) -> Result<&'a str, String> {
    let quoted = [format!("'{key}'"), format!("\"{key}\"")];
    let found = quoted.iter().find_map(|q| text.split_once(q.as_str()));
    let value = found.and_then(|(_, rest)| rest.trim_start().strip_prefix(':'));
    value.map(str::trim_start).ok_or_else(|| format!("its header has no `{key}`"))
}

fn parse_descr(value: &str) -> Result<(DType, bool), String> {
    let quote = value.chars().next().filter(|c| matches!(c, '\'' | '"'));
    let code = quote.and_then(|q| value[1..].split(q).next());
    let code = code.ok_or("its elements are records, expected numbers")?;
    let (order, kind) = match code.chars().next() {
        Some(c @ ('<' | '>' | '|' | '=')) => (c, &code[1..]),
        _ => ('=', code),
    };
    let known = CODES.iter().find(|(_, c)| *c == kind || (kind == "?" && *c == "b1"));
    let (dtype, _) = known.ok_or_else(|| {
        format!(
            "its elements are `{}`, expected f2 f4 f8 i1..i8 u1..u8 or b1",
            code.escape_default()
        )
    })?;
    Ok((*dtype, order == '>'))
}

fn parse_shape(value: &str) -> Result<Vec<usize>, String> {
    let inner = value.strip_prefix('(').and_then(|v| v.split_once(')')).map(|(inner, _)| inner);
    let inner = inner.ok_or("`shape` in its header is no tuple")?;
    let sizes = inner.split(',').map(str::trim).filter(|s| !s.is_empty());
    // Python 2 wrote long integers with an L.
    let size = |s: &str| {
        s.trim_end_matches('L').parse().map_err(|_| format!("`{}` is no size", s.escape_default()))
    };
    sizes.map(size).collect()
}

fn swapped(data: &[u8], size: usize) -> Bytes {
    let mut out = data.to_vec();
    out.chunks_exact_mut(size).for_each(<[u8]>::reverse);
    out.into()
}

/// Row-major bytes from column-major ones.
fn c_order(data: &[u8], shape: &[usize], size: usize) -> Bytes {
    let mut out = Vec::with_capacity(data.len());
    let mut index = vec![0usize; shape.len()];
    for _ in 0..data.len() / size {
        let from = index.iter().zip(shape).rev().fold(0, |at, (&i, &d)| at * d + i) * size;
        out.extend_from_slice(&data[from..from + size]);
        for (i, &d) in index.iter_mut().zip(shape).rev() {
            *i += 1;
            if *i < d {
                break;
            }
            *i = 0;
        }
    }
    out.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encoded(t: &Tensor) -> Bytes {
        [&header(t)[..], t.bytes()].concat().into()
    }

    /// A file as numpy writes it, with a given header.
    fn file(text: &str, data: &[u8]) -> Bytes {
        [MAGIC, &[1, 0], &(text.len() as u16).to_le_bytes(), text.as_bytes(), data].concat().into()
    }

    #[test]
    fn every_type_and_rank_reads_back() {
        for (dtype, _) in CODES {
            for shape in [&[][..], &[0], &[3], &[2, 3], &[1, 2, 3, 4]] {
                let count = element_count(shape).unwrap() * dtype.size();
                let tensor = Tensor::new(
                    dtype,
                    shape.to_vec(),
                    (0..count).map(|i| (i % 2) as u8).collect::<Vec<_>>(),
                );
                let tensor = tensor.unwrap();
                let bytes = encoded(&tensor);
                assert_eq!((bytes.len() - count) % ALIGNMENT, 0);
                assert_eq!(decode_npy(bytes).unwrap(), tensor, "{dtype} {shape:?}");
            }
        }
    }

    #[test]
    fn the_header_is_numpys_own() {
        let text = |t: &Tensor| String::from_utf8_lossy(&header(t)[10..]).trim_end().to_string();
        let shape = |s: &[usize]| text(&Tensor::zeros(DType::F32, s).unwrap());
        assert_eq!(shape(&[]), "{'descr': '<f4', 'fortran_order': False, 'shape': (), }");
        assert_eq!(shape(&[3]), "{'descr': '<f4', 'fortran_order': False, 'shape': (3,), }");
        assert_eq!(shape(&[3, 4]), "{'descr': '<f4', 'fortran_order': False, 'shape': (3, 4), }");
    }

    #[test]
    fn fortran_order_and_big_endian_are_converted() {
        let column_major: Vec<u8> =
            [0i16, 3, 1, 4, 2, 5].into_iter().flat_map(i16::to_be_bytes).collect();
        let read = decode_npy(file(
            "{'descr': '>i2', 'fortran_order': True, 'shape': (2, 3), }\n",
            &column_major,
        ))
        .unwrap();
        assert_eq!((read.shape(), read.to_i64_vec()), (&[2, 3][..], vec![0, 1, 2, 3, 4, 5]));
    }

    #[test]
    fn lies_are_errors_and_cost_no_memory() {
        let f4 = |shape: &str| {
            file(
                &format!("{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}"),
                &[0; 8],
            )
        };
        for (bytes, said) in [
            (f4("(3,)"), "needs 12 bytes of data, there are 8"),
            (f4("(1099511627776, 4)"), "too large"),
            (f4("(18446744073709551616,)"), "no size"),
            (f4("(-1,)"), "no size"),
            (f4("2"), "no tuple"),
            (
                file("{'descr': '<c8', 'fortran_order': False, 'shape': (1,), }", &[0; 8]),
                "elements are `<c8`",
            ),
            (
                file("{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (1,), }", &[]),
                "records",
            ),
            (file("{'descr': '<f4', 'shape': (1,), }", &[]), "no `fortran_order`"),
            (
                file("{'descr': '|b1', 'fortran_order': False, 'shape': (1,), }", &[2]),
                "neither 0 nor 1",
            ),
            (Bytes::from_static(b"\x93NUMPY\x02\x00\xff\xff\xff\xff"), "at most 10000"),
            (Bytes::from_static(b"\x93NUMPY\x01\x00\x10\x00{"), "cut off"),
            (Bytes::from_static(b"\x93NUMPY"), "cut off"),
            (Bytes::from_static(b"GIF89a"), "does not begin"),
        ] {
            let error = decode_npy(bytes).unwrap_err();
            assert!(error.contains(said), "{error}");
        }
    }
}
