//! Scans the wire format before it is decoded, to find the number of messages and the memory that
//! they will take.
//!
//! Two bytes of a file can ask for a message of hundreds of bytes, so a hostile file of moderate
//! size could fill the memory. Only headers are read here, no weights.

use super::error::ImportError;
use cqc_kernels::memory;
use cqc_proto::onnx::*;
use std::mem::size_of;

/// Largest number of nodes, attributes, tensors, names and other messages in one file.
const MAX_MESSAGES: usize = 1 << 22;

/// Deepest nesting, which is the limit of `prost`.
const MAX_NESTING: usize = 100;

/// Bytes of memory that the structure of any model may take, without weights.
const FREE_MEMORY: usize = 64 << 20;

/// Bytes of memory per byte of structure, above [`FREE_MEMORY`]. An attribute of 12 bytes takes
/// some hundreds, and a name takes its length.
const MEMORY_PER_BYTE: usize = 128;

/// Memory that a list of elements takes while it grows, as a multiple of its final size.
const GROWTH: usize = 2;

/// Bytes that an element of a list of names or byte strings takes besides its text.
const TEXT: usize = 32;

/// The content of a field of variable length.
#[derive(Clone, Copy)]
enum Kind {
    Model,
    OperatorSet,
    Graph,
    Node,
    Attribute,
    Tensor,
    SparseTensor,
    Entry,
    ValueInfo,
    Type,
    TensorType,
    Shape,
    Dimension,
    Function,
    /// A string, which is copied.
    Text,
    /// Bytes that are not copied.
    Borrowed,
    /// Whole numbers of one byte or more each.
    Numbers,
}

impl Kind {
    fn child(self, field: u64) -> Kind {
        match (self, field) {
            (Kind::Model, 7) | (Kind::Attribute, 6 | 11) => Kind::Graph,
            (Kind::Model, 25) => Kind::Function,
            (Kind::Model, 8) | (Kind::Function, 9) => Kind::OperatorSet,
            (Kind::Graph, 1) | (Kind::Function, 7) => Kind::Node,
            (Kind::Graph, 5) | (Kind::Attribute, 5) | (Kind::SparseTensor, 1) => Kind::Tensor,
            (Kind::Graph, 15) | (Kind::Attribute, 22) => Kind::SparseTensor,
            (Kind::Graph, 11 | 12) => Kind::ValueInfo,
            (Kind::Node, 5) | (Kind::Function, 11) => Kind::Attribute,
            (Kind::Tensor, 13) => Kind::Entry,
            (Kind::ValueInfo, 2) => Kind::Type,
            (Kind::Type, 1) => Kind::TensorType,
            (Kind::TensorType, 2) => Kind::Shape,
            (Kind::Shape, 1) => Kind::Dimension,
            (Kind::Tensor, 1 | 5 | 7 | 11) | (Kind::Attribute, 8) => Kind::Numbers,
            (Kind::Tensor, 8) | (Kind::Attribute, 1 | 21) => Kind::Text,
            // the other fields are floats, which take their size in the file, or bytes
            (Kind::Tensor | Kind::Attribute, _) => Kind::Borrowed,
            _ => Kind::Text,
        }
    }

    /// Bytes of memory that `len` bytes of the file become, without those of messages in them.
    fn memory(self, len: usize) -> usize {
        match self {
            Kind::Model => size_of::<ModelProto>(),
            Kind::OperatorSet => size_of::<OperatorSetIdProto>(),
            Kind::Graph => size_of::<GraphProto>(),
            Kind::Node => size_of::<NodeProto>(),
            Kind::Attribute => size_of::<AttributeProto>(),
            Kind::Tensor => size_of::<TensorProto>(),
            Kind::SparseTensor => size_of::<SparseTensorProto>(),
            Kind::Entry => size_of::<StringStringEntryProto>(),
            Kind::ValueInfo => size_of::<ValueInfoProto>(),
            Kind::Type => size_of::<TypeProto>(),
            Kind::TensorType => size_of::<TensorTypeProto>(),
            Kind::Shape => size_of::<TensorShapeProto>(),
            Kind::Dimension => size_of::<DimensionProto>(),
            Kind::Function => size_of::<FunctionProto>(),
            Kind::Text => len.saturating_add(TEXT),
            Kind::Borrowed => TEXT,
            Kind::Numbers => len.saturating_mul(size_of::<i64>()),
        }
    }

    fn is_message(self) -> bool {
        !matches!(self, Kind::Text | Kind::Borrowed | Kind::Numbers)
    }
}

/// The content of a file.
#[derive(Default)]
struct Count {
    messages: usize,
    /// Bytes of memory after decoding.
    memory: usize,
    /// Bytes of the file that decoding does not copy.
    borrowed: usize,
}

/// Counts messages and their memory. A broken wire format passes, because decoding describes it
/// better.
///
/// # Errors
/// [`ImportError::NotOnnx`] if there are too many messages, if they take too much memory for the
/// size of the file, or if they are nested too deeply; [`ImportError::Memory`] if there is not
/// enough memory for them.
pub(super) fn check(bytes: &[u8]) -> Result<(), ImportError> {
    let mut count = Count::default();
    let bad = |reason: String| Err(ImportError::NotOnnx { reason });
    match walk(bytes, Kind::Model, 0, &mut count) {
        Err(Excess::Messages) => {
            return bad(format!("it holds more than {MAX_MESSAGES} nodes, attributes and names"));
        }
        Err(Excess::Nesting) => {
            return bad(format!("its graphs are nested more than {MAX_NESTING} deep"));
        }
        Ok(_) => {}
    }
    let needed = count.memory.saturating_mul(GROWTH);
    let structure = bytes.len().saturating_sub(count.borrowed);
    let most = structure.saturating_mul(MEMORY_PER_BYTE).saturating_add(FREE_MEMORY);
    if needed > most {
        return bad(format!(
            "its nodes, attributes and names would take {needed} bytes of memory, at most {most} \
             for {structure} bytes of them"
        ));
    }
    Ok(memory::check("reading the structure of the model", needed)?)
}

enum Excess {
    Messages,
    Nesting,
}

/// `Ok(None)` if the wire format is broken.
fn walk(
    mut bytes: &[u8],
    kind: Kind,
    depth: usize,
    count: &mut Count,
) -> Result<Option<()>, Excess> {
    if depth > MAX_NESTING {
        return Err(Excess::Nesting);
    }
    while !bytes.is_empty() {
        let Some(key) = varint(&mut bytes) else { return Ok(None) };
        let child = kind.child(key >> 3);
        let skip = match key & 7 {
            0 => {
                let Some(_) = varint(&mut bytes) else { return Ok(None) };
                // one number of a list that is not packed
                if matches!(child, Kind::Numbers) {
                    count.memory = count.memory.saturating_add(child.memory(1));
                }
                0
            }
            1 => 8,
            5 => 4,
            2 => {
                let Some(n) = varint(&mut bytes) else { return Ok(None) };
                count.messages += 1;
                if count.messages > MAX_MESSAGES {
                    return Err(Excess::Messages);
                }
                n
            }
            _ => return Ok(None),
        };
        let Some((inner, rest)) =
            usize::try_from(skip).ok().and_then(|n| bytes.split_at_checked(n))
        else {
            return Ok(None);
        };
        if key & 7 == 2 {
            count.memory = count.memory.saturating_add(child.memory(inner.len()));
            if matches!(child, Kind::Borrowed) {
                count.borrowed += inner.len();
            }
            if child.is_message() {
                walk(inner, child, depth + 1, count)?;
            }
        }
        bytes = rest;
    }
    Ok(Some(()))
}

/// Takes a number off the front; `None` if there is none.
pub(crate) fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for i in 0..10 {
        let (&b, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= ((b & 0x7f) as u64).checked_shl(7 * i)?;
        if b < 0x80 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use prost::Message;

    /// A model of one graph that has the field, which is empty, `n` times.
    fn repeated(field: u8, n: usize) -> Vec<u8> {
        let graph = [field << 3 | 2, 0].repeat(n);
        let mut bytes = vec![0x3a];
        prost::encode_length_delimiter(graph.len(), &mut bytes).unwrap();
        bytes.extend(graph);
        bytes
    }

    #[test]
    fn empty_messages_take_no_more_memory_than_their_file_can_justify() {
        // nodes, tensors, sparse tensors, inputs
        for field in [1, 5, 15, 11] {
            check(&repeated(field, 10_000)).unwrap();
        }
        for field in [1, 5, 15] {
            let Err(ImportError::NotOnnx { reason }) = check(&repeated(field, 1 << 20)) else {
                panic!("2^20 empty messages {field} are decoded")
            };
            assert!(reason.contains("bytes of memory"), "{reason}");
        }
    }

    #[test]
    fn weights_are_no_structure_and_a_plain_model_of_many_nodes_is_read() {
        let node = NodeProto {
            input: vec!["1".into()],
            output: vec!["2".into()],
            op_type: Some("Softmax".into()),
            attribute: vec![AttributeProto {
                name: Some("axis".into()),
                r#type: Some(attribute_type::INT),
                i: Some(1),
                ..Default::default()
            }],
            ..Default::default()
        };
        let weights = TensorProto { raw_data: Some(vec![0; 1 << 20].into()), ..Default::default() };
        let graph = GraphProto {
            node: vec![node; 1 << 17],
            initializer: vec![weights],
            ..Default::default()
        };
        let bytes = ModelProto { graph: Some(graph), ..Default::default() }.encode_to_vec();
        check(&bytes).unwrap();
        let mut count = Count::default();
        walk(&bytes, Kind::Model, 0, &mut count).ok().unwrap();
        assert_eq!(count.borrowed, 1 << 20);
    }
}
