//! Constants: the data file that all models share, and the initializers of one model.

use super::proto::number;
use bytes::Bytes;
use cqc_kernels::reference;
use cqc_proto::onnx::{StringStringEntryProto, TensorProto};
use cqc_proto::{DType, Op, Tensor};
use std::collections::{HashMap, HashSet};

/// Larger constants begin on a page, so that a runtime can map them; smaller ones on a cache line.
const PAGE: u64 = 4096;
const LINE: u64 = 64;

/// A tensor's place in memory, which tells large constants apart without comparing them.
type Place = (usize, usize);

/// A constant, its shape, and the permutation.
type Transposition = (Place, Vec<usize>, Vec<usize>);

fn place(t: &Tensor) -> Place {
    (t.bytes().as_ptr() as usize, t.bytes().len())
}

/// What goes into the data file. Holds every tensor it has seen, so that their places stay theirs.
#[derive(Debug, Default)]
pub(super) struct Store {
    /// File name that the models refer to.
    pub file: String,
    /// Constants below this many bytes stand in the models.
    pub inline_below: usize,
    /// First byte and data, ascending.
    pub parts: Vec<(u64, Tensor)>,
    len: u64,
    offsets: HashMap<Place, u64>,
    transposed: HashMap<Transposition, (Tensor, Tensor)>,
    converted: HashMap<(usize, DType), Tensor>,
}

impl Store {
    pub fn new(file: &str, inline_below: usize) -> Store {
        Store { file: file.into(), inline_below, ..Store::default() }
    }

    fn offset(&mut self, t: &Tensor) -> u64 {
        if let Some(&offset) = self.offsets.get(&place(t)) {
            return offset;
        }
        let size = t.bytes().len() as u64;
        let offset = self.len.next_multiple_of(if size >= PAGE { PAGE } else { LINE });
        self.parts.push((offset, t.clone()));
        self.len = offset + size;
        self.offsets.insert(place(t), offset);
        offset
    }

    /// A constant of the plan in the float type that a program reads it in.
    pub fn converted(&mut self, index: usize, t: &Tensor, dtype: DType) -> Tensor {
        if t.dtype() == dtype || !t.dtype().is_float() {
            return t.clone();
        }
        self.converted.entry((index, dtype)).or_insert_with(|| t.to_float(dtype)).clone()
    }

    /// A transposed constant, the same one for all models.
    pub fn transposed(&mut self, t: &Tensor, perm: &[usize]) -> Tensor {
        let compute = || {
            let y = reference::eval(&Op::Transpose { perm: perm.to_vec() }, &[Some(t)]);
            (t.clone(), y.expect("a constant has known sizes, and the permutation has been checked").remove(0))
        };
        let key = (place(t), t.shape().to_vec(), perm.to_vec());
        self.transposed.entry(key).or_insert_with(compute).1.clone()
    }
}

/// Names and initializers of one model.
#[derive(Debug, Default)]
pub(super) struct Scope {
    taken: HashSet<String>,
    pub initializers: Vec<TensorProto>,
    known: HashMap<(DType, Vec<usize>, Key), String>,
}

/// What makes two constants the same.
#[derive(Debug, PartialEq, Eq, Hash)]
enum Key {
    Small(Bytes),
    Large(Place),
}

impl Scope {
    /// The name, or the name with a number behind it if it is taken.
    pub fn unique(&mut self, name: &str) -> String {
        let name = if name.is_empty() { "value" } else { name };
        let numbered = (1..).map(|i| format!("{name}_{i}"));
        let free = std::iter::once(name.to_string()).chain(numbered).find(|n| !self.taken.contains(n));
        let free = free.expect("there are more numbers than names");
        self.taken.insert(free.clone());
        free
    }

    /// The initializer that holds `t`; equal small ones and one large one under several shapes are stored once.
    pub fn initializer(&mut self, store: &mut Store, label: &str, t: &Tensor) -> String {
        let inline = t.bytes().len() < store.inline_below;
        let key = if inline { Key::Small(t.bytes().clone()) } else { Key::Large(place(t)) };
        let key = (t.dtype(), t.shape().to_vec(), key);
        if let Some(name) = self.known.get(&key) {
            return name.clone();
        }
        let name = self.unique(label);
        let mut proto = TensorProto {
            name: Some(name.clone()),
            dims: t.shape().iter().map(|&d| d as i64).collect(),
            data_type: Some(number(t.dtype())),
            ..Default::default()
        };
        if inline {
            proto.raw_data = Some(t.bytes().clone());
        } else {
            let entry = |key: &str, value: String| StringStringEntryProto { key: Some(key.into()), value: Some(value) };
            proto.data_location = Some(1);
            proto.external_data = vec![
                entry("location", store.file.clone()),
                entry("offset", store.offset(t).to_string()),
                entry("length", t.bytes().len().to_string()),
            ];
        }
        self.initializers.push(proto);
        self.known.insert(key, name.clone());
        name
    }
}
