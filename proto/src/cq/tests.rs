//! Round trips, refused files, and thousands of damaged files.

use super::*;
use crate::plan::*;
use crate::{DType, Dim, Op, Tensor, ValueType};
use bytes::Bytes;
use std::io::Cursor;

fn ty(dtype: DType, shape: &[&str]) -> ValueType {
    ValueType::new(dtype, shape.iter().map(|d| Dim::parse(d).unwrap()).collect::<Vec<_>>())
}

fn value(name: &str, ty: ValueType, source: Source) -> PlanValue {
    PlanValue { name: name.into(), ty, source, alias: None }
}

/// `out = reshape(sample · w) + label row`: a small plan with every kind of source.
fn plan() -> (Plan, Vec<Bytes>) {
    let tensors = [
        Tensor::from_f32(&[4, 4], &[0.5; 16]),
        Tensor::from_f32(&[5, 4], &[0.25; 20]),
        Tensor::from_f32(&[3, 1, 4], &[1.0; 12]),
    ];
    let constant = |(i, t): (usize, &Tensor)| Constant {
        name: format!("w{i}"),
        ty: t.value_type(),
        offset: 0,
        codes: None,
    };
    let mut constants: Vec<Constant> = tensors.iter().enumerate().map(constant).collect();
    lay_out(&mut constants);
    let input = |name: &str, ty: ValueType, role| PlanInput { name: name.into(), ty, role };
    let (f, rows) = (|s: &[&str]| ty(DType::F32, s), &["N", "4"][..]);
    let step = |op: Op, inputs: &[usize], output: usize| Step {
        name: op.name(),
        op,
        inputs: inputs.iter().map(|&v| Some(v)).collect(),
        outputs: vec![output],
    };
    let gather = Program {
        values: vec![
            value("table", f(&["5", "4"]), Source::Constant(1)),
            value("labels", ty(DType::I64, &["N"]), Source::Input(1)),
            value("row", f(rows), Source::Step),
        ],
        steps: vec![step(Op::Gather { axis: 0 }, &[0, 1], 2)],
        results: vec![2],
    };
    let add = || Op::binary(crate::op::BinaryKind::Add);
    let stacked = Program {
        values: vec![
            value("row", f(rows), Source::Prelude(0)),
            value("time", f(rows), Source::Table(2)),
            value("both", f(rows), Source::Step),
        ],
        steps: vec![step(add(), &[0, 1], 2)],
        results: vec![2],
    };
    let mut full = Program {
        values: vec![
            value("sample", f(rows), Source::Input(0)),
            value("w", f(&["4", "4"]), Source::Constant(0)),
            value("h", f(rows), Source::Step),
            value("h2", f(&["N", "2", "2"]), Source::Step),
            value("h3", f(rows), Source::Step),
            value("both", f(rows), Source::PreludeSteps(0)),
            value("time", f(&["1", "4"]), Source::Table(2)),
            value("s", f(rows), Source::Step),
            value("out", f(rows), Source::Step),
        ],
        steps: vec![
            step(Op::Linear { act: crate::op::Act::Silu }, &[0, 1], 2),
            step(Op::Reshape { shape: f(&["N", "2", "2"]).shape }, &[2], 3),
            step(Op::Reshape { shape: f(rows).shape }, &[3], 4),
            step(add(), &[4, 5], 7),
            step(add(), &[7, 6], 8),
        ],
        results: vec![],
    };
    full.values[3].alias = Some(Alias::Same { of: 2 });
    let plan = Plan {
        batch_symbol: Some("N".into()),
        fixed_batch: None,
        inputs: vec![
            input("sample", f(rows), InputRole::Sample),
            input("labels", ty(DType::I64, &["N"]), InputRole::Condition),
        ],
        outputs: vec![PlanOutput { name: "out".into(), ty: f(rows), value: 8 }],
        evaluations: 3,
        constants,
        prelude: gather,
        prelude_steps: stacked,
        full,
        cache: None,
        times: None,
    };
    (plan, tensors.iter().map(|t| t.bytes().clone()).collect())
}

fn manifest() -> (Manifest, Vec<Bytes>) {
    let (plan, constants) = plan();
    let mut manifest = Manifest::new(SourceModel::default(), plan, SamplerConfig::default(), 3);
    manifest.null.insert("labels".into(), NullCondition::Label(4));
    (manifest, constants)
}

fn encoded(manifest: &Manifest, constants: &[Bytes]) -> Vec<u8> {
    let mut out = Cursor::new(Vec::new());
    encode(&mut out, manifest, |i| Ok(constants[i].clone())).unwrap();
    out.into_inner()
}

fn artifact() -> Vec<u8> {
    let (manifest, constants) = manifest();
    encoded(&manifest, &constants)
}

fn read(bytes: &[u8]) -> Result<Artifact, CqError> {
    Artifact::read(Bytes::copy_from_slice(bytes))
}

#[test]
fn what_was_written_is_read_and_the_bytes_are_the_same_each_time() {
    let (manifest, constants) = manifest();
    let bytes = encoded(&manifest, &constants);
    let artifact = read(&bytes).unwrap();
    assert_eq!(artifact.manifest, manifest);
    for (constant, expected) in manifest.plan.constants.iter().zip(&constants) {
        assert_eq!(artifact.weights[constant.offset as usize..][..expected.len()], expected[..]);
    }
    assert_eq!(encoded(&artifact.manifest, &constants), bytes);
}

#[test]
fn every_flipped_bit_and_every_truncation_is_an_error() {
    let good = artifact();
    for at in 0..good.len() {
        let mut bytes = good.clone();
        bytes[at] ^= 1 << (at % 8);
        assert!(read(&bytes).is_err(), "byte {at}");
        assert!(read(&good[..at]).is_err(), "{at} bytes");
    }
    let longer = [&good[..], &[0]].concat();
    assert!(matches!(read(&longer), Err(CqError::Length { .. })));
}

/// The file with another manifest and matching hashes.
fn with_manifest(good: &[u8], json: &[u8]) -> Vec<u8> {
    with_packed(good, &miniz_oxide::deflate::compress_to_vec_zlib(json, 1))
}

fn with_packed(good: &[u8], json: &[u8]) -> Vec<u8> {
    let sections: Vec<Section> =
        good[HEADER..HEADER + 2 * ENTRY].chunks(ENTRY).map(Section::from_bytes).collect();
    let weights = &good[sections[1].offset as usize..][..sections[1].len as usize];
    let offset = (192 + json.len() as u64).next_multiple_of(WEIGHTS_ALIGN);
    let manifest = Section {
        name: MANIFEST,
        offset: 192,
        len: json.len() as u64,
        hash: blake3::hash(json).into(),
    };
    let mut bytes = header(
        &[manifest, Section { offset, ..sections[1].clone() }],
        offset + weights.len() as u64,
    );
    bytes.extend_from_slice(json);
    bytes.resize(offset as usize, 0);
    bytes.extend_from_slice(weights);
    bytes
}

struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % n
    }
}

/// Changes one number, string, list or key of a JSON tree.
fn mutate(json: &mut serde_json::Value, random: &mut Random) {
    use serde_json::Value;
    match json {
        Value::Object(o) if !o.is_empty() && random.below(12) > 0 => {
            let at = random.below(o.len());
            mutate(o.values_mut().nth(at).unwrap(), random);
        }
        Value::Array(a) if !a.is_empty() && random.below(8) > 0 => {
            let at = random.below(a.len());
            match random.below(12) {
                0 => drop(a.remove(at)),
                1 => a.insert(at, a[at].clone()),
                2 => {
                    let other = random.below(a.len());
                    a.swap(at, other);
                }
                _ => mutate(&mut a[at], random),
            }
        }
        leaf => {
            let numbers = [
                0,
                1,
                2,
                3,
                4,
                5,
                7,
                8,
                -1,
                64,
                100,
                4096,
                1 << 20,
                1 << 32,
                1 << 40,
                1 << 41,
                i64::MAX,
                i64::MIN,
            ];
            *leaf = match random.below(6) {
                0 => Value::Null,
                1 => {
                    Value::from(["N", "2*N", "N-1", "M", "step", "f16", "i64", ""][random.below(8)])
                }
                2 => Value::Array(vec![]),
                _ => Value::from(numbers[random.below(numbers.len())]),
            };
        }
    }
}

#[test]
fn mutated_manifests_with_valid_hashes_never_panic() {
    let good = artifact();
    let json = serde_json::to_value(&manifest().0).unwrap();
    let (mut random, mut accepted) = (Random(0x9e37_79b9_7f4a_7c15), 0);
    for _ in 0..6000 {
        let mut json = json.clone();
        (0..=random.below(3)).for_each(|_| mutate(&mut json, &mut random));
        let bytes = with_manifest(&good, &serde_json::to_vec(&json).unwrap());
        accepted += usize::from(read(&bytes).is_ok());
    }
    // names, for example, may be anything
    assert!((50..3000).contains(&accepted), "{accepted} of 6000 mutations are harmless");
}

#[test]
fn random_bytes_inside_the_manifest_never_panic() {
    let good = artifact();
    let json = serde_json::to_vec(&manifest().0).unwrap();
    let mut random = Random(42);
    for _ in 0..2000 {
        let mut json = json.clone();
        for _ in 0..=random.below(4) {
            let at = random.below(json.len());
            json[at] = random.below(256) as u8;
        }
        let _ = read(&with_manifest(&good, &json));
    }
    let deep = "[".repeat(1 << 16);
    assert!(matches!(read(&with_manifest(&good, deep.as_bytes())), Err(CqError::Json(_))));
    for (packed, says) in
        [(vec![b' '; 20 << 20], "more than 33554432 bytes of memory"), (vec![], "unpacked")]
    {
        let packed = if packed.is_empty() {
            json.clone()
        } else {
            miniz_oxide::deflate::compress_to_vec_zlib(&packed, 1)
        };
        let said = read(&with_packed(&good, &packed)).unwrap_err().to_string();
        assert!(said.contains(says), "{said}");
    }
}

#[test]
fn a_short_file_cannot_hold_a_long_shape() {
    let good = artifact();
    let json = serde_json::to_string(&manifest().0).unwrap();
    let shape = |axes: usize| json.replacen("[\"N\",4]", &format!("[{}4]", "0,".repeat(axes)), 1);
    let refused =
        |axes| read(&with_manifest(&good, shape(axes).as_bytes())).unwrap_err().to_string();
    let said = refused(8);
    assert!(said.contains("invalid length 9, expected a shape of at most 8 axes"), "{said}");
    let said = refused(1 << 20);
    assert!(said.contains("bytes of memory"), "{said}");
}

#[test]
fn constants_do_not_share_the_weights_a_thousand_times() {
    let (mut manifest, constants) = manifest();
    let many = std::iter::repeat_n(manifest.plan.constants[0].clone(), 20_000);
    manifest.plan.constants.extend(many);
    let json = serde_json::to_vec(&manifest).unwrap();
    let refused = read(&with_manifest(&encoded(&self::manifest().0, &constants), &json));
    let refused = refused.unwrap_err().to_string();
    assert!(refused.contains("too many share theirs"), "{refused}");
}

#[test]
fn a_plan_has_at_most_so_many_inputs() {
    let mut manifest = manifest().0;
    let input = manifest.plan.inputs[1].clone();
    let named = |i| PlanInput { name: format!("c{i}"), ..input.clone() };
    manifest.plan.inputs.extend((0..MAX_INPUTS).map(named));
    let json = serde_json::to_vec(&manifest).unwrap();
    let refused = read(&with_manifest(&artifact(), &json)).unwrap_err().to_string();
    assert!(refused.contains("4098 inputs, at most 4096"), "{refused}");
}

#[test]
fn files_that_are_something_else_say_so() {
    assert!(matches!(
        read(b"hello, this is a text file, longer than a header would be, I suppose"),
        Err(CqError::NotCq)
    ));
    assert!(matches!(read(b""), Err(CqError::NotCq)));
    let mut newer = artifact();
    newer[8] = VERSION as u8 + 1;
    assert_eq!(
        read(&newer).unwrap_err().to_string(),
        format!(
            "format version {} is newer than {VERSION}, the newest this cqc reads",
            VERSION + 1
        )
    );
    let mut damaged = artifact();
    *damaged.last_mut().unwrap() ^= 1;
    assert_eq!(
        read(&damaged).unwrap_err().to_string(),
        "section `weights` is damaged: its blake3 hash is another"
    );
}

#[test]
fn broken_plans_name_the_place() {
    let said = |change: &dyn Fn(&mut Plan)| {
        let (mut manifest, _) = manifest();
        change(&mut manifest.plan);
        validate(&manifest.plan, 400).unwrap_err().to_string()
    };
    type Change<'a> = &'a dyn Fn(&mut Plan);
    let cases: [(Change, &str); 12] = [
        (
            &|p| p.full.steps[0].inputs[0] = Some(99),
            "step 0 `linear` of program full: input 0 is value 99, which is missing",
        ),
        (
            &|p| p.full.steps.swap(0, 1),
            "step 0 `reshape` of program full: it reads `h` before it is written",
        ),
        (&|p| drop(p.full.steps.remove(4)), "value 8 `out` of program full: no step writes it"),
        (
            &|p| p.full.steps[4].outputs = vec![7],
            "step 4 `add` of program full: it writes `s`, which is written already",
        ),
        (
            &|p| p.full.values[2].ty = ty(DType::F32, &["N", "5"]),
            "value 3 `h2` of program full: f32[N,2,2] does not lie in `h` of type f32[N,5] as Same { of: 2 }",
        ),
        (
            &|p| p.full.values[4].alias = Some(Alias::Same { of: 3 }),
            "value 4 `h3` of program full: it is an alias of the alias `h2`",
        ),
        (
            &|p| p.full.values[1].source = Source::Constant(3),
            "value 1 `w` of program full: there is no constant 3",
        ),
        (
            &|p| p.constants[1].offset = 1 << 40,
            "constant `w1`: 80 bytes at 1099511627776 do not lie in 400 bytes of weights",
        ),
        (&|p| p.constants[1].offset = 65, "constant `w1`: its offset 65 is no multiple of 64"),
        (
            &|p| p.evaluations = 4,
            "value 1 `time` of program prelude_steps: the table has 3 rows for 4 evaluations",
        ),
        (&|p| p.outputs[0].value = 9, "output `out`: there is no value 9"),
        (&|p| p.inputs[1].role = InputRole::Sample, "input `labels`: the sample is i64[N]"),
    ];
    for (change, expected) in cases {
        assert_eq!(said(change), expected);
    }
}

#[test]
fn null_conditioning_has_to_fit() {
    let (good, constants) = manifest();
    let refused = |name: &str, null| {
        let mut manifest = good.clone();
        manifest.null.insert(name.into(), null);
        let mut out = Cursor::new(Vec::new());
        encode(&mut out, &manifest, |i| Ok(constants[i].clone())).unwrap_err().to_string()
    };
    assert_eq!(
        refused("text", NullCondition::Label(0)),
        "manifest: null conditioning of `text`: the model has no such input"
    );
    assert_eq!(
        refused("sample", NullCondition::Label(0)),
        "manifest: null conditioning of `sample`: it is the Sample"
    );
    let row = refused("labels", NullCondition::Constant(0));
    assert_eq!(
        row,
        "manifest: null conditioning of `labels`: constant f32[4,4] is no row of i64[N]"
    );
}

#[test]
fn files_appear_whole_or_not_at_all() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a.cq");
    let (manifest, constants) = manifest();
    let files = || std::fs::read_dir(directory.path()).unwrap().count();
    let broken = write(&path, false, &manifest, |i| {
        if i == 2 { Err(std::io::ErrorKind::StorageFull.into()) } else { Ok(constants[i].clone()) }
    });
    assert!(matches!(broken, Err(WriteError::Io { .. })) && files() == 0);
    write(&path, false, &manifest, |i| Ok(constants[i].clone())).unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), artifact());
    let again = write(&path, false, &manifest, |i| Ok(constants[i].clone()));
    assert!(matches!(again, Err(WriteError::Exists { .. })));
    let short = write(&path, true, &manifest, |_| Ok(Bytes::new()));
    assert!(matches!(short, Err(WriteError::Constant { .. })));
    assert_eq!(std::fs::read(&path).unwrap(), artifact(), "the old file stays");
    write(&path, true, &manifest, |i| Ok(constants[i].clone())).unwrap();
    assert_eq!(files(), 1);
    let nowhere = directory.path().join("missing").join("a.cq");
    assert!(matches!(
        write(&nowhere, false, &manifest, |i| Ok(constants[i].clone())),
        Err(WriteError::Io { .. })
    ));
}
