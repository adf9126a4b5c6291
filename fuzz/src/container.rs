//! Target `container`: the sections of a `.cq` file, their hashes and the manifest, without running
//! anything; and what mutations of artifacts need to make a file whole again.

use crate::Random;
use bytes::Bytes;
use cqc_proto::cq;

const HEADER: usize = 64;
const ENTRY: usize = 64;

/// Reads an artifact and writes its plan as text.
pub fn run(data: &[u8]) -> bool {
    let Ok(artifact) = cq::Artifact::read(Bytes::copy_from_slice(data)) else { return false };
    crate::depth::read();
    let _ = artifact.manifest.plan.to_string();
    true
}

/// Artifacts of small graphs.
pub fn seeds() -> Vec<Vec<u8>> {
    crate::cq::seeds()
}

/// Changes sections, table or header; hashes mostly fit again.
pub fn mutate(data: &[u8], random: &mut Random) -> Option<Vec<u8>> {
    if random.one_in(3) {
        return crate::cq::mutate(data, random);
    }
    let mut container = Container::read(data)?;
    (0..=random.below(3)).for_each(|_| container.mutate(random));
    let mut out = container.write();
    if random.one_in(2) {
        // what the table says, with a hash that fits
        let at = random.below(HEADER + container.sections.len() * ENTRY);
        let number = random.number(i64::from(*out.get(at)?)) as u64;
        match at < 24 || at >= HEADER {
            true => {
                let end = out.len().min(at.next_multiple_of(8) + 8);
                let place = out.get_mut(at.next_multiple_of(8)..end)?;
                place.copy_from_slice(&number.to_le_bytes()[..place.len()]);
            }
            false => *out.get_mut(at)? = number as u8,
        }
        rehash(&mut out);
    }
    Some(out)
}

/// A file as its sections.
pub struct Container {
    version: u32,
    sections: Vec<([u8; 8], Vec<u8>)>,
}

impl Container {
    /// Takes a file apart; `None` if it is none, or too damaged.
    pub fn read(data: &[u8]) -> Option<Container> {
        let version = u32::from_le_bytes(data.get(8..12)?.try_into().ok()?);
        let count = u32::from_le_bytes(data.get(12..16)?.try_into().ok()?).min(8);
        let table = data.get(HEADER..HEADER + count as usize * ENTRY)?;
        let section = |entry: &[u8]| {
            let number = |at: usize| {
                usize::try_from(u64::from_le_bytes(entry[at..at + 8].try_into().ok()?)).ok()
            };
            let (offset, len) = (number(8)?, number(16)?);
            let bytes = data.get(offset..offset.checked_add(len)?)?.to_vec();
            Some((entry[..8].try_into().ok()?, bytes))
        };
        let sections = table.chunks_exact(ENTRY).map(section).collect::<Option<_>>()?;
        Some(Container { version, sections })
    }

    /// The bytes of a section.
    pub fn section_mut(&mut self, name: &str) -> Option<&mut Vec<u8>> {
        let found = self.sections.iter_mut().find(|(n, _)| n.starts_with(name.as_bytes()));
        found.map(|(_, bytes)| bytes)
    }

    /// Changes the list of sections, a name, the version, or bytes of a section.
    pub fn mutate(&mut self, random: &mut Random) {
        let count = self.sections.len();
        let at = random.below(count);
        match random.below(8) {
            0 => self.version = random.below(8) as u32,
            1 if count > 0 => drop(self.sections.remove(at)),
            2 if count > 0 => self.sections.push(self.sections[at].clone()),
            3 if count > 1 => self.sections.swap(0, at),
            4 => self.sections.push((*b"cuda\0\0\0\0", vec![0; random.below(80)])),
            5 if count > 0 => {
                let letter = random.below(8);
                self.sections[at].0[letter] = random.below(128) as u8;
            }
            _ if count > 0 => {
                let bytes = &mut self.sections[at].1;
                let place = random.below(bytes.len());
                match random.below(3) {
                    0 => bytes.truncate(place),
                    1 => bytes.push(0),
                    _ => {
                        if let Some(byte) = bytes.get_mut(place) {
                            *byte ^= 1 << random.below(8);
                        }
                    }
                }
            }
            _ => self.sections.push((*b"manifest", vec![])),
        }
    }

    /// A file with these sections, its hashes right.
    pub fn write(&self) -> Vec<u8> {
        let mut out = vec![0; HEADER + self.sections.len() * ENTRY];
        out[..8].copy_from_slice(&cq::MAGIC);
        out[8..12].copy_from_slice(&self.version.to_le_bytes());
        out[12..16].copy_from_slice(&(self.sections.len() as u32).to_le_bytes());
        for (i, (name, bytes)) in self.sections.iter().enumerate() {
            let align = if name.starts_with(b"weights") { 4096 } else { 64 };
            out.resize(out.len().next_multiple_of(align), 0);
            let offset = out.len() as u64;
            out.extend_from_slice(bytes);
            let entry = &mut out[HEADER + i * ENTRY..][..ENTRY];
            entry[..8].copy_from_slice(name);
            entry[8..16].copy_from_slice(&offset.to_le_bytes());
            entry[16..24].copy_from_slice(&(bytes.len() as u64).to_le_bytes());
            entry[24..56].copy_from_slice(blake3::hash(bytes).as_bytes());
        }
        let len = out.len() as u64;
        out[16..24].copy_from_slice(&len.to_le_bytes());
        rehash(&mut out);
        out
    }
}

/// Makes the hash of header and table fit.
fn rehash(file: &mut [u8]) {
    let Some(count) = file.get(12..16).map(|c| u32::from_le_bytes([c[0], c[1], c[2], c[3]])) else {
        return;
    };
    let end = (count as usize).saturating_mul(ENTRY).saturating_add(HEADER);
    let Some(table) = file.get(HEADER..end) else { return };
    let mut hasher = blake3::Hasher::new();
    hasher.update(&file[..24]).update(table);
    let hash = hasher.finalize();
    file[24..56].copy_from_slice(hash.as_bytes());
}

/// Unpacks a manifest; `None` if it is damaged or long.
pub fn unpack(manifest: &[u8]) -> Option<Vec<u8>> {
    if manifest.first() == Some(&b'{') {
        return Some(manifest.to_vec()); // before version 4 as it is
    }
    miniz_oxide::inflate::decompress_to_vec_zlib_with_limit(manifest, 1 << 18).ok()
}

/// Packs one, fast.
pub fn pack(json: &[u8]) -> Vec<u8> {
    miniz_oxide::deflate::compress_to_vec_zlib(json, 1)
}
