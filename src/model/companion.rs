//! Companions: models such as ControlNets and adapters that run beside the denoiser at every
//! evaluation.
//!
//! Outputs of a companion feed inputs of the denoiser, and an input that both have is one input of
//! the loop. The graphs are joined directly after the import, so that all later stages of the
//! compiler see one network.

use super::hash::model_hash;
use super::roles::{self, Named, RoleOptions};
use super::{ModelError, ModelOptions, release_constants};
use cqc_passes::ir::{Graph, ValueId};
use cqc_passes::onnx::{self, ImportOptions, Imported};
use cqc_proto::op::{BinaryKind, OpError};
use cqc_proto::{Dim, Op, ValueType};
use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};

/// A model that feeds inputs of the denoiser.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Companion {
    /// Path of its file.
    pub path: PathBuf,
    /// A label with which the names of its nodes begin in the joined graph.
    pub label: String,
    /// The outputs of the companion and the inputs of the denoiser that they feed.
    pub wires: Vec<Wire>,
    /// Pairs of an input of the companion and the input of the denoiser whose value it gets.
    pub shared: Vec<(String, String)>,
    /// Pairs of another input of the companion and its name as a condition of the loop. The two
    /// names differ where another input has the name already.
    pub conditions: Vec<(String, String)>,
}

/// A connection from an output of a companion to an input of the denoiser.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wire {
    /// Name of the output of the companion.
    pub output: String,
    /// Name of the input of the denoiser.
    pub input: String,
}

/// Joins companions to one denoiser.
pub(super) struct Joiner<'a> {
    /// The denoiser with the companions that have been joined.
    pub graph: Graph,
    options: &'a ModelOptions,
    /// Inputs of the denoiser with their types, as they were before anything was joined.
    inputs: Vec<(String, ValueType)>,
    sample: Option<String>,
    time: Option<String>,
    /// The value that feeds each input of the denoiser so far.
    fed: HashMap<ValueId, ValueId>,
    /// Indices in `options.wires` of the wires that name an output of a companion.
    used: BTreeSet<usize>,
    companions: Vec<Companion>,
    /// Options of the importer that none of the models has used yet.
    skipped: BTreeSet<String>,
    /// Hashes of the denoiser and the companions.
    hashes: Vec<String>,
}

impl<'a> Joiner<'a> {
    pub(super) fn new(
        graph: Graph,
        blake3: String,
        skipped: BTreeSet<String>,
        options: &'a ModelOptions,
    ) -> Joiner<'a> {
        let named = |&v: &ValueId| (graph.value(v).name.clone(), graph.ty(v).clone());
        let inputs: Vec<(String, ValueType)> = graph.inputs.iter().map(named).collect();
        let outputs: Vec<(String, ValueType)> =
            graph.outputs.iter().map(|(name, v)| (name.clone(), graph.ty(*v).clone())).collect();
        let found = roles::find(&refs(&inputs), &refs(&outputs), &options.roles);
        let name = |i: Result<usize, String>| i.ok().map(|i| inputs[i].0.clone());
        let (sample, time) = (name(found.sample), name(found.time));
        Joiner {
            graph,
            options,
            inputs,
            sample,
            time,
            fed: HashMap::new(),
            used: BTreeSet::new(),
            companions: Vec::new(),
            skipped,
            hashes: vec![blake3],
        }
    }

    /// Imports the companion at `path` and wires it.
    pub(super) fn join(&mut self, path: &Path) -> Result<Imported, ModelError> {
        let fail = |source| ModelError::Import { path: path.to_path_buf(), source };
        let mut loaded = onnx::load(path, &self.import_options()).map_err(fail)?;
        release_constants(&loaded.graph);
        loaded.graph.compact().expect("an imported graph has no cycle");
        self.hashes.push(model_hash(path, &loaded.external)?);
        self.skipped = self.skipped.intersection(&loaded.skipped).cloned().collect();
        let wrong = |reason| ModelError::Companion { path: path.to_path_buf(), reason };
        let wires = self.wires(&loaded).map_err(wrong)?;
        let label = self.label(path);
        let mut companion = Companion {
            path: path.to_path_buf(),
            label,
            wires: Vec::new(),
            shared: Vec::new(),
            conditions: Vec::new(),
        };
        let inputs = self.operands(&loaded.graph, &mut companion).map_err(wrong)?;
        let prefix = format!("{}/", companion.label);
        let results = self.graph.graft(&loaded.graph, &prefix, &inputs)?;
        for (output, input) in wires {
            self.feed(results[output], input)?;
            let (output, input) = (
                loaded.graph.outputs[output].0.clone(),
                self.graph.value(self.graph.inputs[input]).name.clone(),
            );
            companion.wires.push(Wire { output, input });
        }
        self.companions.push(companion);
        Ok(loaded)
    }

    /// The joined graph, the companions, and the hash of all models.
    pub(super) fn finish(mut self) -> Result<(Graph, Vec<Companion>, String), ModelError> {
        let stray = (0..self.options.wires.len()).find(|i| !self.used.contains(i));
        if let Some(Wire { output, .. }) = stray.map(|i| &self.options.wires[i]) {
            let reason =
                format!("--wire {output}=…: no model of --with has an output of that name");
            return Err(self.of_options(reason));
        }
        if !self.skipped.is_empty() {
            let skipped: Vec<String> = self.skipped.iter().cloned().collect();
            let reason = format!("{}: none of the models has it", skipped.join(", "));
            return Err(self.of_options(reason));
        }
        self.graph.substitute(&self.fed);
        let fed = &self.fed;
        self.graph.inputs.retain(|v| !fed.contains_key(v));
        // a companion that reads a value that another one feeds would close a cycle
        let cycle = |node| format!("`{node}` reads what it feeds");
        self.graph.compact().map_err(|node| self.of_options(cycle(node)))?;
        let mut hasher = blake3::Hasher::new();
        self.hashes.iter().for_each(|hash| {
            hasher.update(hash.as_bytes());
        });
        Ok((self.graph, self.companions, hasher.finalize().to_hex().to_string()))
    }

    fn of_options(&self, reason: String) -> ModelError {
        let path = self.companions.last().map(|c| c.path.clone()).unwrap_or_default();
        ModelError::Companion { path, reason }
    }

    /// Options of the importer for a companion. Sizes that both models have are those of the
    /// denoiser.
    fn import_options(&self) -> ImportOptions {
        let mut options = ImportOptions { for_several: true, ..self.options.import.clone() };
        for (name, ty) in self.inputs.iter().filter(|(_, ty)| ty.rank() >= 2) {
            options.shapes.entry(name.clone()).or_insert_with(|| ty.shape.to_vec());
        }
        options
    }

    /// A label for a companion: the name of the file, or of its directory if the file is called
    /// `model`. A number is added if another companion has the label.
    fn label(&self, path: &Path) -> String {
        let text = |s: Option<&std::ffi::OsStr>| s.map(|s| s.to_string_lossy().into_owned());
        let stem = text(path.file_stem()).unwrap_or_default();
        let folder = text(path.parent().and_then(Path::file_name)).filter(|f| !f.is_empty());
        let label = if stem == "model" { folder.unwrap_or(stem) } else { stem };
        let taken = self.companions.iter().filter(|c| c.label == label).count();
        if taken == 0 { label } else { format!("{label}.{}", self.companions.len() + 1) }
    }

    /// The value of the joined graph that each input of the companion reads.
    fn operands(
        &mut self,
        other: &Graph,
        companion: &mut Companion,
    ) -> Result<HashMap<ValueId, ValueId>, String> {
        let named = |&v: &ValueId| (other.value(v).name.clone(), other.ty(v).clone());
        let inputs: Vec<(String, ValueType)> = other.inputs.iter().map(named).collect();
        // `roles::find` needs an output like the sample, although only the inputs are of interest
        let sample = self.sample.as_ref().and_then(|name| self.input(name));
        let like: Vec<(String, ValueType)> =
            sample.iter().map(|&v| ("out".into(), self.graph.ty(v).clone())).collect();
        let found = roles::find(&refs(&inputs), &refs(&like), &RoleOptions::default());
        let mut operands = HashMap::new();
        for (i, (&v, (name, ty))) in other.inputs.iter().zip(&inputs).enumerate() {
            let by_role = || match i {
                i if found.sample.as_ref() == Ok(&i) => self.sample.clone(),
                i if found.time.as_ref() == Ok(&i) => self.time.clone(),
                _ => None,
            };
            let same = self.inputs.iter().any(|(n, _)| n == name).then(|| name.clone());
            let operand = match same.or_else(by_role) {
                Some(of) => {
                    companion.shared.push((name.clone(), of.clone()));
                    let value = self.input(&of).expect("inputs stay until all is joined");
                    self.adapted(value, ty).map_err(|found| {
                        format!("input `{name}` is {ty}, that of the denoiser, `{of}`, is {found}")
                    })?
                }
                None => {
                    let called = self.own_name(name);
                    companion.conditions.push((name.clone(), called.clone()));
                    self.graph.input(&called, ty.clone())
                }
            };
            operands.insert(v, operand);
        }
        Ok(operands)
    }

    /// A free name for a companion's own input. A number is added if another input has the name.
    fn own_name(&self, name: &str) -> String {
        let taken = |name: &str| self.input(name).is_some();
        let numbered = (2..).map(|k| format!("{name}.{k}"));
        std::iter::once(name.to_string()).chain(numbered).find(|n| !taken(n)).expect("endless")
    }

    fn input(&self, name: &str) -> Option<ValueId> {
        self.graph.inputs.iter().copied().find(|&v| self.graph.value(v).name == name)
    }

    /// An input of the denoiser, converted to the type of the companion's input; the input's own
    /// type as an error if it cannot be converted.
    fn adapted(&mut self, value: ValueId, ty: &ValueType) -> Result<ValueId, ValueType> {
        let own = self.graph.ty(value).clone();
        let name = format!("{} for {}", self.graph.value(value).name, ty);
        let refuse = |_: OpError| own.clone();
        let mut v = value;
        if own.shape != ty.shape {
            if !is_number(&own) || !is_number(ty) {
                return Err(own.clone());
            }
            // one number for all samples: they are equal, so the first one will do
            if own.rank() > 0 {
                let axes: Vec<usize> = (0..own.rank()).collect();
                let (starts, ends) = (vec![0.into(); own.rank()], vec![1.into(); own.rank()]);
                let steps = vec![1; own.rank()];
                let slice = Op::Slice { axes, starts, ends, steps };
                v = self.graph.op(&name, slice, &[v]).map_err(refuse)?;
            }
            let ones = Op::Reshape { shape: vec![Dim::constant(1); ty.rank()] };
            v = self.graph.op(&name, ones, &[v]).map_err(refuse)?;
            let expand = Op::Expand { shape: ty.shape.to_vec() };
            v = self.graph.op(&name, expand, &[v]).map_err(refuse)?;
        }
        if own.dtype != ty.dtype {
            v = self.graph.op(&name, Op::Cast { to: ty.dtype }, &[v]).map_err(refuse)?;
        }
        Ok(v)
    }

    /// Lets `result` feed input number `input`. The results of several companions are added.
    fn feed(&mut self, result: ValueId, input: usize) -> Result<(), OpError> {
        let v = self.graph.inputs[input];
        let (name, to) = (self.graph.value(v).name.clone(), self.graph.ty(v).dtype);
        let mut result = result;
        if self.graph.ty(result).dtype != to {
            result = self.graph.op(&name, Op::Cast { to }, &[result])?;
        }
        if let Some(&other) = self.fed.get(&v) {
            result =
                self.graph.op(&name, Op::Binary { kind: BinaryKind::Add }, &[other, result])?;
        }
        self.fed.insert(v, result);
        Ok(())
    }

    /// Pairs of an output of the companion and an input of the denoiser: first as the options say,
    /// then by equal names, then among those of equal shape by the beginnings and ends of their
    /// names, and then in order where there are as many of both.
    fn wires(&mut self, loaded: &Imported) -> Result<Vec<(usize, usize)>, String> {
        let other = &loaded.graph;
        let outputs: Vec<(String, ValueType)> =
            other.outputs.iter().map(|(name, v)| (name.clone(), other.ty(*v).clone())).collect();
        let is_free =
            |name: &str| Some(name) != self.sample.as_deref() && Some(name) != self.time.as_deref();
        let mut inputs: Vec<usize> =
            (0..self.inputs.len()).filter(|&i| is_free(&self.inputs[i].0)).collect();
        let mut wires = Vec::new();
        for (i, Wire { output, input }) in self.options.wires.iter().enumerate() {
            let Some(o) = outputs.iter().position(|(name, _)| name == output) else { continue };
            let to = inputs.iter().copied().find(|&i| self.inputs[i].0 == *input);
            let to = to.ok_or_else(|| {
                let list = self.listed(&inputs);
                format!("--wire {output}={input}: the denoiser has no such input; it has {list}")
            })?;
            let (from, into) = (&outputs[o].1, &self.inputs[to].1);
            if from.shape != into.shape || !from.dtype.is_float() || !into.dtype.is_float() {
                return Err(format!(
                    "--wire {output}={input}: the output is {from}, the input {into}"
                ));
            }
            self.used.insert(i);
            wires.push((o, to));
        }
        let mut left: Vec<usize> = (0..outputs.len()).collect();
        let settle = |wires: &[(usize, usize)], left: &mut Vec<usize>, inputs: &mut Vec<usize>| {
            left.retain(|o| wires.iter().all(|w| w.0 != *o));
            inputs.retain(|i| wires.iter().all(|w| w.1 != *i));
        };
        settle(&wires, &mut left, &mut inputs);
        let fits = |o: usize, i: usize| {
            let (from, into) = (&outputs[o].1, &self.inputs[i].1);
            from.shape == into.shape && from.dtype.is_float() && into.dtype.is_float()
        };
        let keys: [fn(&str) -> String; 2] = [str::to_string, ends];
        for key in keys {
            let outputs_of = |k: &str| left.iter().filter(|&&o| key(&outputs[o].0) == k).count();
            let pair = |&o: &usize| {
                let k = key(&outputs[o].0);
                let mut to = inputs.iter().filter(|&&i| fits(o, i) && key(&self.inputs[i].0) == k);
                let only = (to.next().copied(), to.next(), outputs_of(&k));
                if let (Some(i), None, 1) = only { Some((o, i)) } else { None }
            };
            let found: Vec<(usize, usize)> = left.iter().filter_map(pair).collect();
            wires.extend(found);
            settle(&wires, &mut left, &mut inputs);
        }
        let mut unclear = Vec::new();
        while let Some(&o) = left.first() {
            let from: Vec<usize> = left
                .iter()
                .copied()
                .filter(|&p| outputs[p].1.shape == outputs[o].1.shape)
                .collect();
            let into: Vec<usize> = inputs.iter().copied().filter(|&i| fits(o, i)).collect();
            if from.len() == into.len() {
                wires.extend(from.iter().copied().zip(into));
            } else if !into.is_empty() {
                let names: Vec<String> =
                    from.iter().map(|&o| format!("`{}`", outputs[o].0)).collect();
                unclear.push(format!(
                    "{} outputs {} {} may feed {} inputs: {}",
                    from.len(),
                    outputs[o].1,
                    names.join(", "),
                    into.len(),
                    self.listed(&into)
                ));
            }
            left.retain(|o| !from.contains(o));
            settle(&wires, &mut left, &mut inputs);
        }
        if !unclear.is_empty() {
            return Err(format!(
                "{}; --wire OUTPUT=INPUT says which, once each",
                unclear.join("; ")
            ));
        }
        if wires.is_empty() {
            let all: Vec<String> =
                outputs.iter().map(|(name, ty)| format!("`{name}` {ty}")).collect();
            let list = self.listed(&inputs);
            return Err(format!(
                "none of its outputs has the shape of an input of the denoiser: {}; inputs: {list}",
                all.join(", ")
            ));
        }
        wires.sort_unstable();
        Ok(wires)
    }

    fn listed(&self, inputs: &[usize]) -> String {
        let one = |&i: &usize| format!("`{}` {}", self.inputs[i].0, self.inputs[i].1);
        inputs.iter().map(one).collect::<Vec<_>>().join(", ")
    }
}

fn refs(list: &[(String, ValueType)]) -> Vec<Named<'_>> {
    list.iter().map(|(name, ty)| (name.as_str(), ty)).collect()
}

/// Whether a type holds one number, or one per sample.
fn is_number(ty: &ValueType) -> bool {
    ty.shape.iter().skip(1).all(|d| d.is(1))
}

/// The word at the beginning of a name and the number at its end. They are the same for
/// `down_block_res_sample_3` and `down_block_additional_residual_3`.
fn ends(name: &str) -> String {
    let name = name.rsplit(['/', ':']).next().unwrap_or_default().to_lowercase();
    let first: String = name.chars().take_while(|c| c.is_alphabetic()).collect();
    let digits = name.chars().rev().take_while(char::is_ascii_digit).count();
    format!("{first} {}", &name[name.len() - digits..])
}
