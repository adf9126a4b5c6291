//! Packed weights that one process writes and the next one maps.

use bytes::Bytes;
use cqc_proto::Tensor;
use cqc_proto::cq::Artifact;
use cqc_proto::plan::InputRole;
use cqc_runtime::engine::{Engine, EngineOptions, PackCache, Weights};
use cqc_runtime::noise::Noise;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// An artifact, a folder for its packed weights, which is empty at first, and the file that will be
/// in the folder.
struct Kept {
    artifact: Artifact,
    cache: PackCache,
}

impl Kept {
    fn new(name: &str) -> Option<Kept> {
        let path =
            Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../tests/artifacts/{name}.cq"));
        let bytes =
            std::fs::read(&path).map_err(|e| println!("skipped: {}: {e}", path.display())).ok()?;
        let artifact = Artifact::read(Bytes::from(bytes)).unwrap();
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("packed-{name}"));
        let _ = std::fs::remove_dir_all(&folder);
        let cache = PackCache { folder, identity: artifact.identity, map: true };
        Some(Kept { artifact, cache })
    }

    fn weights(&self) -> Arc<Weights> {
        let Artifact { manifest, weights, .. } = &self.artifact;
        Weights::with_cache(manifest.plan.clone(), weights.clone(), &self.cache).unwrap()
    }

    /// The only file in the folder.
    fn file(&self) -> PathBuf {
        let files: Vec<_> =
            self.cache.folder.read_dir().unwrap().map(|f| f.unwrap().path()).collect();
        assert_eq!(files.len(), 1, "{files:?}");
        files[0].clone()
    }
}

/// The first evaluation of a sample of noise. bf16 is multiplied as such on any CPU.
fn evaluate(weights: &Arc<Weights>) -> Vec<f32> {
    let plan = weights.plan();
    let batch = plan.fixed_batch.unwrap_or(1);
    let options = EngineOptions { batch, threads: 1, emulate_bf16: true, ..Default::default() };
    let mut engine = Engine::open(weights, &options).unwrap();
    let timesteps: Vec<f64> = (0..plan.evaluations).map(|e| 900.0 - 10.0 * e as f64).collect();
    let labels = plan.inputs.iter().filter(|i| i.role == InputRole::Condition);
    let labels =
        labels.map(|i| (i.name.clone(), Tensor::from_i64(&[batch], &vec![1; batch]))).collect();
    let sample = plan.inputs.iter().position(|i| i.role == InputRole::Sample).unwrap();
    let mut x = vec![0.0; engine.input_shape(sample).iter().product()];
    Noise::new(3, 0, batch).fill(&mut x);
    let mut out = vec![0.0; engine.output_shape(0).iter().product()];
    let mut request = engine.begin(&labels, &timesteps).unwrap();
    engine.evaluate(&mut request, 0, &x, &mut out).unwrap();
    out
}

/// Weights of f32, of codes and of bf16.
#[test]
fn kept_weights_are_used_and_give_the_same_results() {
    for kept in ["v1", "v4", "v5"].into_iter().filter_map(Kept::new) {
        let first = kept.weights();
        let expected = evaluate(&first);
        assert!(first.keep_packed().unwrap(), "nothing was there");
        let file = kept.file();
        let second = kept.weights();
        assert_eq!(evaluate(&second), expected);
        assert!(!second.keep_packed().unwrap(), "all is there");
        assert_eq!(second.packed_bytes(), first.packed_bytes());

        let whole = std::fs::read(&file).unwrap();
        let table = u64::from_le_bytes(whole[8..16].try_into().unwrap()) as usize;
        let data = (48 + table).next_multiple_of(64);
        // the file is read instead of mapped
        let Kept { artifact: Artifact { manifest, weights, .. }, cache } = &kept;
        let cache = PackCache { map: false, ..cache.clone() };
        let third = Weights::with_cache(manifest.plan.clone(), weights.clone(), &cache).unwrap();
        assert_eq!(evaluate(&third), expected);
        assert!(!third.keep_packed().unwrap(), "all is there");
        // other numbers with matching hashes show that the weights of the file are used
        let mut other = whole.clone();
        other[data..].iter_mut().for_each(|byte| *byte ^= 1);
        let mut table = table_of(&whole);
        for [begin, len, hash] in table.values_mut().flatten() {
            let part = data + begin.as_u64().unwrap() as usize;
            let part = &other[part..part + len.as_u64().unwrap() as usize];
            *hash = blake3::hash(part).to_hex().as_str().into();
        }
        std::fs::write(&file, with_table(&other, &serde_json::to_string(&table).unwrap())).unwrap();
        assert_ne!(evaluate(&kept.weights()), expected, "the file is what was multiplied with");
    }
}

/// The parts of each packed constant: offset, length, hash.
type Table = std::collections::BTreeMap<String, Vec<[serde_json::Value; 3]>>;

fn table_of(file: &[u8]) -> Table {
    let len = u64::from_le_bytes(file[8..16].try_into().unwrap()) as usize;
    serde_json::from_slice(&file[48..48 + len]).unwrap()
}

/// The file with another table and the hash of that table.
fn with_table(file: &[u8], table: &str) -> Vec<u8> {
    let len = u64::from_le_bytes(file[8..16].try_into().unwrap()) as usize;
    let mut forged = file[..8].to_vec();
    forged.extend((table.len() as u64).to_le_bytes());
    forged.extend(blake3::hash(table.as_bytes()).as_bytes());
    forged.extend(table.as_bytes());
    forged.resize(forged.len().next_multiple_of(64), 0);
    forged.extend(&file[(48 + len).next_multiple_of(64)..]);
    forged
}

#[test]
fn a_damaged_part_is_packed_anew_and_written_anew() {
    for kept in ["v1", "v4", "v5"].into_iter().filter_map(Kept::new) {
        let first = kept.weights();
        let expected = evaluate(&first);
        assert!(first.keep_packed().unwrap());
        let file = kept.file();
        let whole = std::fs::read(&file).unwrap();
        let len = u64::from_le_bytes(whole[8..16].try_into().unwrap()) as usize;
        let data = (48 + len).next_multiple_of(64);
        for at in (data..whole.len()).step_by((whole.len() - data) / 9) {
            let mut damaged = whole.clone();
            damaged[at..(at + 64).min(whole.len())].iter_mut().for_each(|byte| *byte ^= 1);
            std::fs::write(&file, damaged).unwrap();
            let weights = kept.weights();
            assert_eq!(evaluate(&weights), expected, "damaged at {at}");
            assert!(weights.keep_packed().unwrap(), "damaged at {at}");
            assert_eq!(std::fs::read(&file).unwrap(), whole, "the same bytes again");
        }
        // parts that match their hashes, but have other lengths, or are too few
        let table = table_of(&whole);
        let empty: serde_json::Value = blake3::hash(b"").to_hex().as_str().into();
        for name in table.keys() {
            let (mut short, mut few) = (table.clone(), table.clone());
            let [_, len, hash] = &mut short.get_mut(name).unwrap()[0];
            (*len, *hash) = (0.into(), empty.clone());
            few.get_mut(name).unwrap().pop();
            for forged in [short, few] {
                let forged = with_table(&whole, &serde_json::to_string(&forged).unwrap());
                std::fs::write(&file, forged).unwrap();
                let weights = kept.weights();
                assert_eq!(evaluate(&weights), expected, "{name}");
                assert!(weights.keep_packed().unwrap(), "{name}");
                assert_eq!(std::fs::read(&file).unwrap(), whole, "the same bytes again");
            }
        }
    }
}

#[test]
fn a_file_that_is_not_what_was_expected_is_passed_over() {
    let Some(kept) = Kept::new("v3") else { return };
    let first = kept.weights();
    let expected = evaluate(&first);
    assert!(first.keep_packed().unwrap());
    let file = kept.file();
    let whole = std::fs::read(&file).unwrap();
    let table = u64::from_le_bytes(whole[8..16].try_into().unwrap()) as usize;
    let mut damages: Vec<Vec<u8>> =
        (0..whole.len()).step_by(whole.len() / 23).map(|len| whole[..len].to_vec()).collect();
    for at in (0..48 + table).step_by(7) {
        let mut damaged = whole.clone();
        damaged[at] ^= 0x10;
        damages.push(damaged);
    }
    for damaged in damages {
        std::fs::write(&file, &damaged).unwrap();
        let weights = kept.weights();
        assert_eq!(evaluate(&weights), expected, "{} bytes", damaged.len());
    }
    // lengths that a table with a matching hash may contain
    let text = String::from_utf8(whole[48..48 + table].to_vec()).unwrap();
    for (from, to) in [
        ("[0,", "[18446744073709551615,"),
        ("[0,", "[1,"),
        (",\"", "0000000000000,\""),
        ("[[", "[[0,0,\"\"],["),
        ("\"]", "0\"]"),
    ] {
        assert!(text.contains(from));
        std::fs::write(&file, with_table(&whole, &text.replace(from, to))).unwrap();
        assert_eq!(evaluate(&kept.weights()), expected, "{from} -> {to}");
    }
    std::fs::write(&file, &whole[..20]).unwrap();
    let again = kept.weights();
    evaluate(&again);
    assert!(again.keep_packed().unwrap(), "written anew");
    assert_eq!(std::fs::read(&file).unwrap(), whole, "the same weights, the same bytes");
}

#[test]
fn a_folder_that_cannot_be_written_is_an_error_that_loses_nothing() {
    let Some(mut kept) = Kept::new("v2") else { return };
    kept.cache.folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml/packed");
    let weights = kept.weights();
    let expected = evaluate(&weights);
    weights.keep_packed().unwrap_err();
    assert_eq!(evaluate(&weights), expected);
}
