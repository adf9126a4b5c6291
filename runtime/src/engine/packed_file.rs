//! A file with packed weights, which the next process maps instead of packing the weights again.
//!
//! ```text
//! 0..8      b"cqcpack2"
//! 8..16     length of the table
//! 16..48    blake3 of the table
//! 48..      table, JSON: per packed constant the begin, the length and the blake3 of its parts, counted from the data's begin
//! ..        data, from the next multiple of 64 on; every part begins at such a multiple
//! ```
//!
//! The file is disposable. If it is missing, belongs to other weights or is not valid, the weights
//! are packed anew, and so is every part whose bytes differ from those that were written. A part is
//! hashed when it is first used. Whoever can write into the folder can also write matching hashes,
//! so the folder must be as trusted as the program. Invalid content never causes a read past the
//! end of the file, because lengths come from the plan.

use bytes::Bytes;
use cqc_kernels::arena::ALIGN;
use cqc_kernels::mapped::read_file;
use cqc_kernels::{Isa, map_file, packing};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

const MAGIC: [u8; 8] = *b"cqcpack2";
const HEADER: usize = 48;

/// The place where packed weights are kept between processes.
#[derive(Clone, Debug)]
pub struct PackCache {
    /// The folder, which is created when it is first written to.
    pub folder: PathBuf,
    /// An identifier of the weights, such as `cqc_proto::cq::Artifact::identity`.
    pub identity: [u8; 32],
    /// Maps the file. Otherwise it is read into memory, so that nobody can shorten it while it is
    /// in use.
    pub map: bool,
}

/// The largest table that is read, in bytes.
const MAX_TABLE: usize = 64 << 20;

/// The offset of a part in the data, its length, and the hash of its bytes in hexadecimal.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Part(u64, u64, String);

/// The parts of every packed constant, by name.
type Table = BTreeMap<String, Vec<Part>>;

/// The file for one artifact, one instruction set and one version of the packing, and its content.
#[derive(Debug)]
pub(super) struct PackedFile {
    path: PathBuf,
    table: Table,
    data: Bytes,
    /// Whether a part was damaged or had the wrong length, so that the file has to be written anew.
    damaged: AtomicBool,
}

impl PackedFile {
    /// Reads the file if it exists.
    pub fn open(cache: &PackCache, isa: Isa) -> PackedFile {
        let mut of = blake3::Hasher::new();
        of.update(&cache.identity).update(packing(isa).as_bytes());
        let path = cache.folder.join(format!("{}.packed", &of.finalize().to_hex()[..32]));
        let (table, data) = read(&path, cache.map).unwrap_or_default();
        PackedFile { path, table, data, damaged: AtomicBool::new(false) }
    }

    /// The parts of a packed constant, if their hashes match.
    pub fn find<const N: usize>(&self, name: &str) -> Option<[Bytes; N]> {
        let parts = self.table.get(name)?;
        let found: Option<Vec<Bytes>> = parts.iter().map(|part| self.whole(part)).collect();
        let found = found.and_then(|parts| <[Bytes; N]>::try_from(parts).ok());
        if found.is_none() {
            self.reject();
        }
        found
    }

    /// Reports that a part does not fit. Its constant is packed again, and the file is written
    /// anew.
    pub fn reject(&self) {
        self.damaged.store(true, Ordering::Relaxed);
    }

    /// The bytes of a part, if their hash matches.
    fn whole(&self, Part(begin, len, hash): &Part) -> Option<Bytes> {
        let end = begin.checked_add(*len).filter(|&end| end <= self.data.len() as u64)?;
        let bytes = self.data.slice(*begin as usize..end as usize);
        (blake3::hash(&bytes).to_hex().as_str() == hash).then_some(bytes)
    }

    /// Whether the file contains all of these names, and no part of it is damaged.
    pub fn has<'a>(&self, mut names: impl Iterator<Item = &'a String>) -> bool {
        !self.damaged.load(Ordering::Relaxed) && names.all(|name| self.table.contains_key(name))
    }

    /// Writes the file anew with these parts and the other intact parts that it already has.
    pub fn write(&self, packed: &BTreeMap<String, Vec<&[u8]>>) -> io::Result<()> {
        let others = self.table.iter().filter(|(name, _)| !packed.contains_key(*name));
        let others = others.filter_map(|(name, parts)| {
            Some((name, parts.iter().map(|part| self.whole(part)).collect::<Option<Vec<_>>>()?))
        });
        let others: Vec<(&String, Vec<Bytes>)> = others.collect();
        let others =
            others.iter().map(|(name, parts)| (*name, parts.iter().map(|p| &p[..]).collect()));
        let all: Vec<(&String, Vec<&[u8]>)> =
            packed.iter().map(|(name, parts)| (name, parts.clone())).chain(others).collect();
        let mut end = 0;
        let mut place = |part: &&[u8]| {
            let begin = end;
            end = (begin + part.len()).next_multiple_of(ALIGN);
            Part(begin as u64, part.len() as u64, blake3::hash(part).to_hex().to_string())
        };
        let table: Table = all
            .iter()
            .map(|(name, parts)| ((*name).clone(), parts.iter().map(&mut place).collect()))
            .collect();
        let table = serde_json::to_vec(&table)?;
        if let Some(folder) = self.path.parent() {
            std::fs::create_dir_all(folder)?;
        }
        // every writer needs a file name of its own
        static WRITERS: AtomicUsize = AtomicUsize::new(0);
        let writer = (std::process::id(), WRITERS.fetch_add(1, Ordering::Relaxed));
        let beside = self.path.with_extension(format!("{}-{}.part", writer.0, writer.1));
        let written =
            write(&beside, &table, all.iter().flat_map(|(_, parts)| parts.iter().copied()));
        let renamed = written.and_then(|()| std::fs::rename(&beside, &self.path));
        renamed.inspect_err(|_| drop(std::fs::remove_file(&beside)))
    }
}

fn write<'a>(path: &Path, table: &[u8], parts: impl Iterator<Item = &'a [u8]>) -> io::Result<()> {
    let padding = |len: usize| &[0; ALIGN][..len.next_multiple_of(ALIGN) - len];
    let mut out = BufWriter::new(File::create(path)?);
    out.write_all(&MAGIC)?;
    out.write_all(&(table.len() as u64).to_le_bytes())?;
    out.write_all(blake3::hash(table).as_bytes())?;
    out.write_all(table)?;
    out.write_all(padding(HEADER + table.len()))?;
    for part in parts {
        out.write_all(part)?;
        out.write_all(padding(part.len()))?;
    }
    // if the file were renamed before its data are on the disk, a crash could leave zeros in it
    out.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()
}

/// The table and the data, or `None` if the file is not valid.
fn read(path: &Path, map: bool) -> Option<(Table, Bytes)> {
    let bytes = match map {
        true => Bytes::from_owner(map_file(path).ok()?),
        false => Bytes::from_owner(read_file(path).ok()?),
    };
    let header = bytes.get(..HEADER).filter(|header| header[..8] == MAGIC)?;
    let len = usize::try_from(u64::from_le_bytes(header[8..16].try_into().ok()?)).ok()?;
    let table = bytes.get(HEADER..HEADER.checked_add(len)?).filter(|_| len <= MAX_TABLE)?;
    if blake3::hash(table).as_bytes() != &header[16..] {
        return None;
    }
    let data = (HEADER + len).next_multiple_of(ALIGN);
    let table = serde_json::from_slice(table).ok()?;
    Some((table, bytes.slice(data.min(bytes.len())..)))
}
