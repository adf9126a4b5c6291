//! A look over the wire format before decoding: how many messages will there be?
//!
//! Two bytes of a file can ask for a message of hundreds, so a hostile file of moderate size could
//! fill the memory. Only headers are read here, no weights.

use super::error::ImportError;

/// Most nodes, attributes, tensors, names … of one file.
const MAX_MESSAGES: usize = 1 << 22;

/// Deepest nesting that `prost` decodes is 100; this is its match.
const MAX_NESTING: usize = 100;

#[derive(Clone, Copy)]
enum Kind {
    Model,
    Graph,
    Node,
    Attribute,
    Tensor,
    ValueInfo,
    Function,
    Leaf,
}

impl Kind {
    fn child(self, field: u64) -> Kind {
        match (self, field) {
            (Kind::Model, 7) | (Kind::Attribute, 6 | 11) => Kind::Graph,
            (Kind::Model, 25) => Kind::Function,
            (Kind::Graph, 1) | (Kind::Function, 7) => Kind::Node,
            (Kind::Graph, 5) | (Kind::Attribute, 5) => Kind::Tensor,
            (Kind::Graph, 11 | 12) => Kind::ValueInfo,
            (Kind::Node, 5) | (Kind::Function, 11) => Kind::Attribute,
            _ => Kind::Leaf,
        }
    }
}

/// Counts messages; a wire format that is broken passes, since decoding describes it better.
///
/// # Errors
/// [`ImportError::NotOnnx`] when there are too many, or they are nested too deeply.
pub(super) fn check(bytes: &[u8]) -> Result<(), ImportError> {
    let mut count = 0;
    let bad = |reason: String| Err(ImportError::NotOnnx { reason });
    match walk(bytes, Kind::Model, 0, &mut count) {
        Err(Excess::Messages) => {
            bad(format!("it holds more than {MAX_MESSAGES} nodes, attributes and names"))
        }
        Err(Excess::Nesting) => bad(format!("its graphs are nested more than {MAX_NESTING} deep")),
        Ok(_) => Ok(()),
    }
}

enum Excess {
    Messages,
    Nesting,
}

/// `Ok(None)` where the wire format is broken.
fn walk(
    mut bytes: &[u8],
    kind: Kind,
    depth: usize,
    count: &mut usize,
) -> Result<Option<()>, Excess> {
    if depth > MAX_NESTING {
        return Err(Excess::Nesting);
    }
    while !bytes.is_empty() {
        let Some(key) = varint(&mut bytes) else { return Ok(None) };
        let skip = match key & 7 {
            0 => {
                let Some(_) = varint(&mut bytes) else { return Ok(None) };
                0
            }
            1 => 8,
            5 => 4,
            2 => {
                let Some(n) = varint(&mut bytes) else { return Ok(None) };
                *count += 1;
                if *count > MAX_MESSAGES {
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
        if key & 7 == 2 && !matches!(kind.child(key >> 3), Kind::Leaf) {
            walk(inner, kind.child(key >> 3), depth + 1, count)?;
        }
        bytes = rest;
    }
    Ok(Some(()))
}

/// Takes a number off the front; `None` where there is none.
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
