//! Reads artifacts, which may come from untrusted sources.

use super::unpack::{budget, check, unpack};
use super::*;
use crate::plan::{PlanError, validate};
use bytes::Bytes;
use std::borrow::Cow;

/// The content of an artifact that passed all checks.
#[derive(Clone, Debug)]
pub struct Artifact {
    /// The manifest, which describes everything except the bytes of the constants.
    pub manifest: Manifest,
    /// The constants. They are a part of the bytes that were read, and so of the mapped file.
    pub weights: Bytes,
    /// Compiled CUDA kernels, if the artifact has some.
    pub kernels: Option<Bytes>,
    /// The parts of a pipeline around the loop, if the artifact holds a whole pipeline.
    pub pipeline: Option<Pipeline>,
    /// The attachments that the pipeline names by index.
    pub attachments: Vec<Bytes>,
    /// The hash of the header and the section table. As the table holds the hashes of all sections,
    /// no other artifact has the same hash.
    pub identity: [u8; 32],
}

/// The reason why bytes are not a valid artifact.
#[derive(Debug, thiserror::Error)]
pub enum CqError {
    /// The file does not begin with [`MAGIC`].
    #[error("not a .cq file")]
    NotCq,
    /// The file was written by a newer version of cqc.
    #[error("format version {found} is newer than {VERSION}, the newest this cqc reads")]
    Newer {
        /// The version in the file's header.
        found: u32,
    },
    /// The version does not exist.
    #[error("there is no format version {found}")]
    Version {
        /// The version in the file's header.
        found: u32,
    },
    /// The length of the file differs from that in its header.
    #[error("the file has {found} bytes, its header says {expected}")]
    Length {
        /// The length in the header in bytes, or 64 if the file is shorter than a header.
        expected: u64,
        /// The actual length of the file in bytes.
        found: u64,
    },
    /// The header or the section table is not valid.
    #[error("header: {reason}")]
    Header {
        /// The expected and the actual content.
        reason: String,
    },
    /// A section is missing or has an invalid position.
    #[error("section `{section}`: {reason}")]
    Section {
        /// Name of the section.
        section: String,
        /// The expected and the actual content.
        reason: String,
    },
    /// The bytes of a section have changed since they were written.
    #[error("section `{section}` is damaged: its blake3 hash is another")]
    Damaged {
        /// Name of the section; `header` for the header and the section table.
        section: String,
    },
    /// The manifest is not the JSON of a manifest.
    #[error("manifest: {0}")]
    Json(#[from] serde_json::Error),
    /// The manifest contains an invalid value.
    #[error("manifest: {reason}")]
    Manifest {
        /// The expected and the actual content.
        reason: String,
    },
    /// The plan cannot be executed.
    #[error("plan: {0}")]
    Plan(#[from] PlanError),
}

impl Artifact {
    /// Reads and checks an artifact: the header, the section table, the hashes, the manifest and
    /// the plan. `bytes` should be a mapped file (`cqc_kernels::map_file`), because the weights are
    /// not copied.
    ///
    /// Only the manifest needs memory: at most 32 MiB, or 32 bytes per byte of the file if that is
    /// more. Most of the time is spent on hashing.
    ///
    /// # Errors
    /// A [`CqError`] that names the place of the error. No input makes this function panic.
    pub fn read(bytes: Bytes) -> Result<Artifact, CqError> {
        let sections = sections(&bytes)?;
        let manifest = required(&sections, MANIFEST)?;
        if manifest.len > MAX_MANIFEST {
            let reason = format!("{} bytes, at most {MAX_MANIFEST} are read", manifest.len);
            return Err(CqError::Section { section: "manifest".into(), reason });
        }
        let weights = required(&sections, WEIGHTS)?;
        if !weights.offset.is_multiple_of(WEIGHTS_ALIGN) {
            let reason = format!("its offset {} is no multiple of {WEIGHTS_ALIGN}", weights.offset);
            return Err(CqError::Section { section: "weights".into(), reason });
        }
        let budget = budget(bytes.len() as u64);
        let manifest = parse(&slice(&bytes, manifest), read_u32(&bytes, 8), budget)?;
        validate(&manifest.plan, weights.len)?;
        for section in &sections {
            check_hash(&bytes, section)?;
        }
        let kernels = sections.iter().find(|s| s.name == KERNELS).map(|s| slice(&bytes, s));
        let found = |name| sections.iter().find(|s| s.name == name).map(|s| slice(&bytes, s));
        let attachments: Vec<Bytes> =
            (0..MAX_ATTACHMENTS).map_while(|i| found(attachment(i))).collect();
        let pipeline = found(PIPELINE).map(|json| parse_pipeline(&json, attachments.len()));
        let pipeline = pipeline.transpose()?;
        let identity = bytes[24..56].try_into().expect("32 bytes");
        let weights = slice(&bytes, weights);
        Ok(Artifact { manifest, weights, kernels, pipeline, attachments, identity })
    }
}

/// The manifest, which may take `budget` bytes of memory.
fn parse(stored: &[u8], version: u32, budget: u64) -> Result<Manifest, CqError> {
    let section = |reason| CqError::Section { section: "manifest".into(), reason };
    let json = match version {
        // manifests were not compressed before version 4
        ..4 => {
            check(stored, budget).map_err(section)?;
            Cow::Borrowed(stored)
        }
        _ => Cow::Owned(unpack(stored, budget).map_err(section)?),
    };
    let manifest: Manifest = serde_json::from_slice(&json)?;
    drop(json);
    if manifest.format_version != version {
        let reason =
            format!("format version {}, the header says {version}", manifest.format_version);
        return Err(CqError::Manifest { reason });
    }
    manifest.check().map_err(|reason| CqError::Manifest { reason })?;
    Ok(manifest)
}

fn parse_pipeline(json: &[u8], attachments: usize) -> Result<Pipeline, CqError> {
    let section = |reason| CqError::Section { section: "pipeline".into(), reason };
    if json.len() as u64 > MAX_PIPELINE {
        return Err(section(format!("{} bytes, at most {MAX_PIPELINE} are read", json.len())));
    }
    let pipeline: Pipeline = serde_json::from_slice(json).map_err(|e| section(e.to_string()))?;
    pipeline.check(attachments).map_err(section)?;
    Ok(pipeline)
}

/// The section table. The positions of the sections are checked, but not their hashes.
fn sections(bytes: &[u8]) -> Result<Vec<Section>, CqError> {
    let found = bytes.len() as u64;
    if bytes.len() < MAGIC.len() || bytes[..MAGIC.len()] != MAGIC {
        return Err(CqError::NotCq);
    }
    if bytes.len() < HEADER {
        return Err(CqError::Length { expected: HEADER as u64, found });
    }
    match read_u32(bytes, 8) {
        0 => return Err(CqError::Version { found: 0 }),
        newer if newer > VERSION => return Err(CqError::Newer { found: newer }),
        _ => {}
    }
    let expected = read_u64(bytes, 16);
    if expected != found {
        return Err(CqError::Length { expected, found });
    }
    let count = read_u32(bytes, 12);
    let header = |reason| CqError::Header { reason };
    if count > MAX_SECTIONS {
        return Err(header(format!("{count} sections, at most {MAX_SECTIONS} are allowed")));
    }
    let end = HEADER + count as usize * ENTRY;
    let table = bytes
        .get(HEADER..end)
        .ok_or_else(|| header(format!("the table of {count} sections does not fit")))?;
    if header_hash(bytes, table) != bytes[24..56] {
        return Err(CqError::Damaged { section: "header".into() });
    }
    let padded = bytes[56..HEADER].iter().all(|b| *b == 0)
        && table.chunks(ENTRY).all(|e| e[56..].iter().all(|b| *b == 0));
    if !padded {
        return Err(header("reserved bytes are not zero".into()));
    }
    let sections: Vec<Section> = table.chunks_exact(ENTRY).map(Section::from_bytes).collect();
    check_places(bytes, &sections, end as u64)?;
    Ok(sections)
}

/// Checks that sections ascend, lie in the file, are aligned, have different names, and have zeros
/// between them.
fn check_places(bytes: &[u8], sections: &[Section], mut free: u64) -> Result<(), CqError> {
    for (i, section) in sections.iter().enumerate() {
        let error = |reason| CqError::Section { section: name(section), reason };
        if sections[..i].iter().any(|s| s.name == section.name) {
            return Err(error("there are two of that name".into()));
        }
        let end = section.offset.checked_add(section.len).filter(|&end| end <= bytes.len() as u64);
        let Some(end) = end else {
            return Err(error(format!(
                "{} bytes at {} do not lie in the file",
                section.len, section.offset
            )));
        };
        if section.offset < free || !section.offset.is_multiple_of(SECTION_ALIGN) {
            return Err(error(format!("its offset {} is taken or not aligned", section.offset)));
        }
        check_zeros(bytes, free, section.offset).map_err(error)?;
        free = end;
    }
    let trailing = |reason| CqError::Header { reason };
    check_zeros(bytes, free, bytes.len() as u64).map_err(trailing)
}

fn check_zeros(bytes: &[u8], from: u64, to: u64) -> Result<(), String> {
    let zero =
        to - from < WEIGHTS_ALIGN && bytes[from as usize..to as usize].iter().all(|b| *b == 0);
    if zero {
        Ok(())
    } else {
        Err(format!("bytes {from}..{to} belong to nothing and are no padding"))
    }
}

fn required(sections: &[Section], wanted: [u8; 8]) -> Result<&Section, CqError> {
    sections.iter().find(|s| s.name == wanted).ok_or_else(|| {
        let section = String::from_utf8_lossy(&wanted).trim_end_matches('\0').to_string();
        CqError::Section { section, reason: "it is missing".into() }
    })
}

fn name(section: &Section) -> String {
    String::from_utf8_lossy(&section.name).trim_end_matches('\0').to_string()
}

/// The bytes of a section whose position has been checked.
fn slice(bytes: &Bytes, section: &Section) -> Bytes {
    bytes.slice(section.offset as usize..(section.offset + section.len) as usize)
}

fn check_hash(bytes: &Bytes, section: &Section) -> Result<(), CqError> {
    let hash: [u8; 32] = blake3::hash(&slice(bytes, section)).into();
    if hash == section.hash { Ok(()) } else { Err(CqError::Damaged { section: name(section) }) }
}
