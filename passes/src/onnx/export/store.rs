//! Constants: the data file that all models share, and the initializers of one model.

use super::proto::number;
use bytes::Bytes;
use cqc_kernels::reference;
use cqc_proto::onnx::{StringStringEntryProto, TensorProto, data_type};
use cqc_proto::plan::WeightCodes;
use cqc_proto::{DType, Dim, Op, Tensor};
use std::collections::{HashMap, HashSet};

/// Larger constants begin on a page, so that a runtime can map them. Smaller ones begin on a cache
/// line.
const PAGE: u64 = 4096;
const LINE: u64 = 64;

/// Address and size of a tensor, which tell large constants apart without comparing them.
type BufferKey = (usize, usize);

/// A constant, its shape, and the permutation.
type Transposition = (BufferKey, Vec<usize>, Vec<usize>);

fn place(t: &Tensor) -> BufferKey {
    (t.bytes().as_ptr() as usize, t.bytes().len())
}

/// The content of the data file. It holds every tensor that it has seen, so that their addresses
/// stay taken.
#[derive(Debug, Default)]
pub(super) struct Store {
    /// Name of the file, as the models refer to it.
    pub file: String,
    /// Constants with fewer bytes than this are stored in the models.
    pub inline_below: usize,
    /// Offset and data, in ascending order.
    pub parts: Vec<(u64, Tensor)>,
    len: u64,
    offsets: HashMap<BufferKey, u64>,
    transposed: HashMap<Transposition, (Tensor, Tensor)>,
    converted: HashMap<(usize, DType), Tensor>,
    cut: HashMap<(BufferKey, [usize; 3]), (Tensor, Tensor)>,
    packed: HashMap<BufferKey, (Tensor, Tensor)>,
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

    /// A constant of the plan in the float type in which a program reads it.
    pub fn converted(&mut self, index: usize, t: &Tensor, dtype: DType) -> Tensor {
        if t.dtype() == dtype || !t.dtype().is_float() {
            return t.clone();
        }
        self.converted.entry((index, dtype)).or_insert_with(|| t.to_float(dtype)).clone()
    }

    /// The float values of quantized weights, which are constant `index` of the plan.
    pub fn dequantized(&mut self, index: usize, op: &Op, codes: &Tensor, scale: &Tensor) -> Tensor {
        let compute = || {
            let y = reference::eval(op, &[Some(codes), Some(scale)]);
            y.expect("a valid plan's weights have their scales").remove(0)
        };
        self.converted.entry((index, DType::F32)).or_insert_with(compute).clone()
    }

    /// `size` elements along an axis of a constant, from `start` on. The result is the same tensor
    /// for all models.
    pub fn cut(&mut self, t: &Tensor, axis: usize, start: usize, size: usize) -> Tensor {
        let compute = || {
            let [starts, ends] = [start, start + size].map(|n| vec![Dim::constant(n as i64)]);
            let y = reference::eval(
                &Op::Slice { axes: vec![axis], starts, ends, steps: vec![1] },
                &[Some(t)],
            );
            (t.clone(), y.expect("segments lie within the weights").remove(0))
        };
        self.cut.entry((place(t), [axis, start, size])).or_insert_with(compute).1.clone()
    }

    /// Packs codes of 4 bits into bytes, the first code in the low half as in the standard.
    fn packed(&mut self, codes: &Tensor) -> Tensor {
        let compute = || {
            let list: Vec<i8> = codes.bytes().iter().map(|&c| c as i8).collect();
            let bytes = WeightCodes::pack(4, &list);
            (codes.clone(), Tensor::new(DType::U8, vec![bytes.len()], bytes).expect("a byte each"))
        };
        self.packed.entry(place(codes)).or_insert_with(compute).1.clone()
    }

    /// A transposed constant. The result is the same tensor for all models.
    pub fn transposed(&mut self, t: &Tensor, perm: &[usize]) -> Tensor {
        let compute = || {
            let y = reference::eval(&Op::Transpose { perm: perm.to_vec() }, &[Some(t)]);
            (
                t.clone(),
                y.expect("a constant has known sizes, and the permutation has been checked")
                    .remove(0),
            )
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
    known: HashMap<(i32, Vec<usize>, Key), String>,
}

/// Two constants with the same key are the same.
#[derive(Debug, PartialEq, Eq, Hash)]
enum Key {
    Small(Bytes),
    Large(BufferKey),
}

impl Scope {
    /// The name, with a number appended if it is taken.
    pub fn unique(&mut self, name: &str) -> String {
        let name = if name.is_empty() { "value" } else { name };
        let numbered = (1..).map(|i| format!("{name}_{i}"));
        let free =
            std::iter::once(name.to_string()).chain(numbered).find(|n| !self.taken.contains(n));
        let free = free.expect("there are more numbers than names");
        self.taken.insert(free.clone());
        free
    }

    /// The name of the initializer that holds `t`. Equal small constants, and a large one under
    /// several shapes, are stored once.
    pub fn initializer(&mut self, store: &mut Store, label: &str, t: &Tensor) -> String {
        self.stored(store, label, number(t.dtype()), t.shape(), t)
    }

    /// The name of the initializer that holds numbers of 4 bits, given as i8.
    pub fn nibbles(&mut self, store: &mut Store, label: &str, codes: &Tensor) -> String {
        let packed = store.packed(codes);
        self.stored(store, label, data_type::INT4, codes.shape(), &packed)
    }

    /// The name of an initializer of zeros, in i8 or 4 bits, that is not shared.
    pub fn zeros(&mut self, label: &str, size: usize, is_packed: bool) -> String {
        let (data_type, bytes) =
            if is_packed { (data_type::INT4, size.div_ceil(2)) } else { (data_type::INT8, size) };
        let name = self.unique(label);
        self.initializers.push(TensorProto {
            name: Some(name.clone()),
            dims: vec![size as i64],
            data_type: Some(data_type),
            raw_data: Some(vec![0; bytes].into()),
            ..Default::default()
        });
        name
    }

    fn stored(
        &mut self,
        store: &mut Store,
        label: &str,
        data_type: i32,
        shape: &[usize],
        t: &Tensor,
    ) -> String {
        let inline = t.bytes().len() < store.inline_below;
        let key = if inline { Key::Small(t.bytes().clone()) } else { Key::Large(place(t)) };
        let key = (data_type, shape.to_vec(), key);
        if let Some(name) = self.known.get(&key) {
            return name.clone();
        }
        let name = self.unique(label);
        let mut proto = TensorProto {
            name: Some(name.clone()),
            dims: shape.iter().map(|&d| d as i64).collect(),
            data_type: Some(data_type),
            ..Default::default()
        };
        if inline {
            proto.raw_data = Some(t.bytes().clone());
        } else {
            let entry = |key: &str, value: String| StringStringEntryProto {
                key: Some(key.into()),
                value: Some(value),
            };
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
