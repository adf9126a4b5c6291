//! Target `npy`: arrays in `.npy` and `.npz` files.

use crate::Random;
use bytes::Bytes;
use cachequant::io::{decode_npy, decode_npz};

/// Reads an array and an archive.
pub fn run(data: &[u8]) -> bool {
    let array = decode_npy(Bytes::copy_from_slice(data)).ok();
    let archive = decode_npz(data).ok();
    let is_read = array.is_some() || archive.is_some();
    if is_read {
        crate::depth::read();
    }
    let arrays = archive.into_iter().flatten().map(|(_, tensor)| tensor);
    array.into_iter().chain(arrays).for_each(|tensor| drop(tensor.to_f64_vec()));
    is_read
}

const HEADERS: &[&str] = &[
    "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }",
    "{'descr': '>i2', 'fortran_order': True, 'shape': (2, 3), }",
    "{'descr': '|b1', 'fortran_order': False, 'shape': (3,), }",
    "{'descr': '<f8', 'fortran_order': False, 'shape': (), }",
    "{'descr': '<u8', 'fortran_order': False, 'shape': (0, 4L), }",
];

fn npy(header: &str, data: &[u8], version: u8) -> Vec<u8> {
    let mut out = b"\x93NUMPY".to_vec();
    out.extend([version, 0]);
    match version {
        1 => out.extend((header.len() as u16).to_le_bytes()),
        _ => out.extend((header.len() as u32).to_le_bytes()),
    }
    out.extend(header.as_bytes());
    out.extend(data);
    out
}

/// An archive of stored entries, written by hand; sums of entries are right.
fn zip(entries: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let (mut out, mut directory) = (Vec::new(), Vec::new());
    for (name, data) in entries {
        let offset = out.len() as u32;
        let mut common = vec![20, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        common.extend(crc32(data).to_le_bytes());
        common.extend((data.len() as u32).to_le_bytes());
        common.extend((data.len() as u32).to_le_bytes());
        common.extend((name.len() as u16).to_le_bytes());
        common.extend([0, 0]);
        out.extend(b"PK\x03\x04");
        out.extend(&common);
        out.extend(name.as_bytes());
        out.extend(data);
        directory.extend(b"PK\x01\x02\x14\x00");
        directory.extend(&common);
        directory.extend([0; 10]);
        directory.extend(offset.to_le_bytes());
        directory.extend(name.as_bytes());
    }
    let start = out.len() as u32;
    out.extend(&directory);
    out.extend(b"PK\x05\x06\0\0\0\0");
    out.extend(
        [(entries.len() as u16).to_le_bytes(), (entries.len() as u16).to_le_bytes()].concat(),
    );
    out.extend((directory.len() as u32).to_le_bytes());
    out.extend(start.to_le_bytes());
    out.extend([0, 0]);
    out
}

fn crc32(data: &[u8]) -> u32 {
    let step = |crc: u32, _| if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 };
    !data.iter().fold(!0, |crc, &b| (0..8).fold(crc ^ u32::from(b), step))
}

/// Arrays of several types, and archives of them.
pub fn seeds() -> Vec<Vec<u8>> {
    let arrays: Vec<Vec<u8>> = HEADERS
        .iter()
        .zip([24, 12, 3, 8, 0])
        .enumerate()
        .map(|(i, (header, len))| npy(header, &vec![1; len], 1 + (i % 3) as u8))
        .collect();
    let two = zip(&[("a.npy", arrays[0].clone()), ("b.npy", arrays[2].clone())]);
    arrays.into_iter().chain([two, zip(&[])]).collect()
}

/// Texts of headers.
const WORDS: &[&str] = &[
    "descr",
    "fortran_order",
    "shape",
    "True",
    "False",
    "<f4",
    ">f8",
    "|b1",
    "<i8",
    "<f2",
    "|u1",
    "(2, 3)",
    "(3,)",
    "()",
    "(0,)",
    "(18446744073709551615,)",
    "(4294967296, 4294967296)",
    "L",
    "'",
    "{",
    "}",
    "<c8",
    "é",
];

/// Puts a word somewhere into the header of an array, or makes an archive of one.
pub fn mutate(data: &[u8], random: &mut Random) -> Option<Vec<u8>> {
    if !data.starts_with(b"\x93NUMPY") {
        return None;
    }
    if random.one_in(8) {
        return Some(zip(
            &[("a.npy", data.to_vec()), ("a.npy", data.to_vec())][..1 + random.below(2)]
        ));
    }
    let (start, wide) = if data.get(6)? == &1 { (10, false) } else { (12, true) };
    let header = data.get(start..)?;
    let end = header.iter().position(|&b| b == b'}')? + 1;
    let mut text = header[..end].to_vec();
    let at = random.below(text.len());
    let word = random.pick(WORDS).as_bytes();
    let over = if random.one_in(3) { 0 } else { word.len().min(text.len() - at) };
    text.splice(at..at + over, word.iter().copied());
    let mut out = data[..8].to_vec();
    match wide {
        false => out.extend((text.len() as u16).to_le_bytes()),
        true => out.extend((text.len() as u32).to_le_bytes()),
    }
    out.extend(&text);
    let mut rest = header[end..].to_vec();
    rest.resize((rest.len() + random.below(3)).saturating_sub(random.below(3)), 0);
    out.extend(rest);
    Some(out)
}
