//! Target `pack_cache`: bytes of a file of packed weights, read by an engine that packs what it
//! does not find there. The file lies in memory (`/dev/shm`).

use crate::{Random, json, plan};
use cqc_proto::cq;
use cqc_runtime::engine::{PackCache, Weights};
use serde_json::Value;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

/// What every input is the cache of, and where it is read from.
struct Setting {
    artifact: cq::Artifact,
    cache: PackCache,
    file: PathBuf,
    /// What the engine itself writes.
    written: Vec<u8>,
}

fn settings() -> &'static [Setting] {
    static SETTINGS: OnceLock<Vec<Setting>> = OnceLock::new();
    SETTINGS.get_or_init(|| {
        let folder = PathBuf::from(format!("/dev/shm/cqc-fuzz-{}", std::process::id()));
        // a float loop with convolutions, one of 8 bits and one of bf16
        [10, 12, 16].into_iter().filter_map(|i| setting(&folder, i)).collect()
    })
}

fn setting(folder: &std::path::Path, seed: usize) -> Option<Setting> {
    let bytes = crate::cq::seeds().into_iter().nth(seed)?;
    let artifact = cq::Artifact::read(bytes.into()).expect("seeds are artifacts");
    let cache = PackCache {
        folder: folder.join(seed.to_string()),
        identity: artifact.identity,
        map: false,
    };
    let weights = open(&artifact, &cache)?;
    weights.keep_packed().ok()?;
    let file = std::fs::read_dir(&cache.folder).ok()?.next()?.ok()?.path();
    let written = std::fs::read(&file).ok()?;
    Some(Setting { artifact, cache, file, written })
}

fn open(artifact: &cq::Artifact, cache: &PackCache) -> Option<Arc<Weights>> {
    let plan = artifact.manifest.plan.clone();
    let weights = Weights::with_cache(plan, artifact.weights.clone(), cache).ok()?;
    plan::evaluate(&weights, 1, 0)?;
    Some(weights)
}

/// Reads the file as the cache of one of three artifacts, by its last byte, and evaluates.
pub fn run(data: &[u8]) -> bool {
    let settings = settings();
    let setting = &settings[usize::from(data.last().copied().unwrap_or(0)) % settings.len()];
    std::fs::write(&setting.file, data).expect("there is memory for files");
    open(&setting.artifact, &setting.cache).expect("a cache that cannot be used is passed over");
    true
}

/// What the engines write.
pub fn seeds() -> Vec<Vec<u8>> {
    let seeds = settings().iter().enumerate().map(|(i, s)| {
        let mut bytes = s.written.clone();
        let place = (3 - bytes.last().map_or(0, |&b| usize::from(b) % 3) + i) % 3;
        bytes.extend(vec![place as u8; usize::from(place > 0)]);
        bytes
    });
    let seeds = seeds.collect();
    let _ = std::fs::remove_dir_all(settings()[0].cache.folder.parent().expect("it has one"));
    seeds
}

/// Changes the table or the data; the hash of the table and mostly those of the parts fit.
pub fn mutate(data: &[u8], random: &mut Random) -> Option<Vec<u8>> {
    let len = u64::from_le_bytes(data.get(8..16)?.try_into().ok()?);
    let end = 48usize.checked_add(usize::try_from(len).ok()?)?;
    let mut table: Value = serde_json::from_slice(data.get(48..end)?).ok()?;
    let mut parts = data.get(end.next_multiple_of(64)..).unwrap_or_default().to_vec();
    if random.one_in(3) {
        let at = random.below(parts.len());
        *parts.get_mut(at)? = random.below(256) as u8;
    } else {
        (0..=random.below(2)).for_each(|_| json::mutate(&mut table, WORDS, random));
    }
    if !random.one_in(4) {
        rehash(&mut table, &parts);
    }
    if random.one_in(3) {
        parts.push(random.below(3) as u8);
    }
    let table = serde_json::to_vec(&table).ok()?;
    let mut out = data[..8].to_vec();
    out.extend((table.len() as u64).to_le_bytes());
    out.extend(blake3::hash(&table).as_bytes());
    out.extend(&table);
    out.resize(out.len().next_multiple_of(64), 0);
    out.extend(&parts);
    Some(out)
}

const WORDS: &[&str] = &["w", "k", "w/dequantized", "k/dequantized"];

/// Hashes of the parts that lie in the file.
fn rehash(table: &mut Value, data: &[u8]) {
    let lists = table.as_object_mut().into_iter().flat_map(|table| table.values_mut());
    for part in lists.filter_map(Value::as_array_mut).flatten() {
        let place = |i: usize| Some(usize::try_from(part.get(i)?.as_u64()?).ok());
        let (Some(Some(begin)), Some(Some(len))) = (place(0), place(1)) else { continue };
        let Some(bytes) = begin.checked_add(len).and_then(|end| data.get(begin..end)) else {
            continue;
        };
        if let Some(hash) = part.get_mut(2) {
            *hash = Value::from(blake3::hash(bytes).to_hex().to_string());
        }
    }
}
