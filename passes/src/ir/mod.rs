//! The graph IR: a typed dataflow graph of [`cqc_proto::Op`] nodes.

mod graft;
mod graph;
mod text;
mod verify;

pub use graph::{Def, Graph, LayerId, Node, NodeId, NodeOrigin, SiteId, Value, ValueId};
pub use text::{ParseError, parse};
pub use verify::{VerifyError, verify};
