//! The graph of the compiler: a typed dataflow graph whose nodes are [`cqc_proto::Op`].

mod graft;
mod graph;
mod text;
mod verify;

pub use graph::{Def, Graph, LayerId, Node, NodeId, NodeOrigin, SiteId, Value, ValueId};
pub use text::{ParseError, parse};
pub use verify::{VerifyError, verify};
