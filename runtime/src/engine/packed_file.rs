//! Packed weights in a file beside the artifact's own, so that the next process maps them instead
//! of packing again.
//!
//! ```text
//! 0..8      b"cqcpack1"
//! 8..16     length of the table
//! 16..48    blake3 of the table
//! 48..      table, JSON: per packed constant the begin and the length of its parts, counted from the data's begin
//! ..        data, from the next multiple of 64 on; every part begins at such a multiple
//! ```
//!
//! The file is disposable: one that is missing, of other weights, or not what was expected is
//! packed anew. Its data are not hashed: they are read as they are used, and any bytes are numbers.

use bytes::Bytes;
use cqc_kernels::arena::ALIGN;
use cqc_kernels::{Isa, map_file, packing};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

const MAGIC: [u8; 8] = *b"cqcpack1";
const HEADER: usize = 48;

/// Where packed weights are kept between processes.
#[derive(Clone, Debug)]
pub struct PackCache {
    /// The folder, made when it is first written to.
    pub folder: PathBuf,
    /// What tells these weights from all others, such as `cqc_proto::cq::Artifact::identity`.
    pub identity: [u8; 32],
}

/// Begin and length of the parts of every packed constant.
type Table = BTreeMap<String, Vec<[u64; 2]>>;

/// The file for one artifact, one instruction set and one way of packing, and what is in it.
#[derive(Debug)]
pub(super) struct PackedFile {
    path: PathBuf,
    table: Table,
    data: Bytes,
}

impl PackedFile {
    /// Maps the file if it is there.
    pub fn open(cache: &PackCache, isa: Isa) -> PackedFile {
        let mut of = blake3::Hasher::new();
        of.update(&cache.identity).update(packing(isa).as_bytes());
        let path = cache.folder.join(format!("{}.packed", &of.finalize().to_hex()[..32]));
        let (table, data) = read(&path).unwrap_or_default();
        PackedFile { path, table, data }
    }

    /// The parts of a packed constant.
    pub fn find<const N: usize>(&self, name: &str) -> Option<[Bytes; N]> {
        let spans = <[[u64; 2]; N]>::try_from(&self.table.get(name)?[..]).ok()?;
        let inside = |[begin, len]: [u64; 2]| begin.checked_add(len).is_some_and(|end| end <= self.data.len() as u64);
        let part = |[begin, len]: [u64; 2]| self.data.slice(begin as usize..(begin + len) as usize);
        spans.into_iter().all(inside).then(|| spans.map(part))
    }

    /// Whether all of these are in the file.
    pub fn has<'a>(&self, mut names: impl Iterator<Item = &'a String>) -> bool {
        names.all(|name| self.table.contains_key(name))
    }

    /// Writes the file anew: these, and what it has beside them.
    pub fn write(&self, packed: &BTreeMap<String, Vec<&[u8]>>) -> io::Result<()> {
        let others = self.table.keys().filter(|name| !packed.contains_key(*name));
        let others = others.filter_map(|name| {
            let part = |&[begin, len]: &[u64; 2]| self.data.get(begin as usize..)?.get(..len as usize);
            Some((name, self.table[name].iter().map(part).collect::<Option<Vec<_>>>()?))
        });
        let others: Vec<_> = others.collect();
        let all = || packed.iter().chain(others.iter().map(|(name, parts)| (*name, parts)));
        let mut end = 0;
        let mut place = |part: &&[u8]| {
            let begin = end;
            end = (begin + part.len()).next_multiple_of(ALIGN);
            [begin as u64, part.len() as u64]
        };
        let table: Table = all().map(|(name, parts)| (name.clone(), parts.iter().map(&mut place).collect())).collect();
        let table = serde_json::to_vec(&table)?;
        if let Some(folder) = self.path.parent() {
            std::fs::create_dir_all(folder)?;
        }
        // a name of its own for every writer
        static WRITERS: AtomicUsize = AtomicUsize::new(0);
        let writer = (std::process::id(), WRITERS.fetch_add(1, Ordering::Relaxed));
        let beside = self.path.with_extension(format!("{}-{}.part", writer.0, writer.1));
        let written = write(&beside, &table, all().flat_map(|(_, parts)| parts.iter().copied()));
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
    // renamed before it is on the disk, a crash could leave zeros under its name
    out.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()
}

/// Table and data; `None` unless it is such a file and whole.
fn read(path: &Path) -> Option<(Table, Bytes)> {
    let bytes = Bytes::from_owner(map_file(path).ok()?);
    let header = bytes.get(..HEADER).filter(|header| header[..8] == MAGIC)?;
    let len = usize::try_from(u64::from_le_bytes(header[8..16].try_into().ok()?)).ok()?;
    let table = bytes.get(HEADER..HEADER.checked_add(len)?)?;
    if blake3::hash(table).as_bytes() != &header[16..] {
        return None;
    }
    let data = (HEADER + len).next_multiple_of(ALIGN);
    let table = serde_json::from_slice(table).ok()?;
    Some((table, bytes.slice(data.min(bytes.len())..)))
}
