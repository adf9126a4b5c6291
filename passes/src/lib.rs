//! The compiler of cqc as passes over a graph: it imports an ONNX denoiser, rewrites it, cuts the
//! denoising loop apart, quantizes it, and lowers it to a [`Plan`](cqc_proto::plan::Plan).
//!
//! | module | what it does |
//! |---|---|
//! | [`onnx`] | imports ONNX models, and exports plans as ONNX |
//! | [`ir`] | the graph, its text form and its verifier |
//! | [`rewrite`] | the list of rewrites, and what runs them |
//! | [`bind`](mod@bind) | moves what depends on the time step or on the conditioning alone out of the loop |
//! | [`cache`] | cuts a step, chooses which evaluations are full, corrects what the others reuse |
//! | [`calib`], [`quant`] | ranges, rounding and corrections of layers; the graph that carries them |
//! | [`recognize`] | names files that are something else than a model |
//! | [`lower`](mod@lower) | a plan, and where in it the nodes and tables of the graph are |
//!
//! It executes nothing but constants: what has to be observed on a running loop is handed in.
//! Whoever wants to compile a model uses the crate `cachequant`, which runs the loop; this crate is
//! for those who write passes or look at what they do.
//!
//! ```
//! use cqc_passes::{bind, ir, lower::lower, rewrite};
//! use cqc_proto::plan::{InputRole, PlanInput, PlanOutput};
//!
//! let text = "graph(%x: f32[N,8]) {
//!   %gate = sigmoid(%x)
//!   %y = mul(%x, %gate)
//!   return %y
//! }";
//! let mut graph = ir::parse(text)?;
//! let report = rewrite::run(&mut graph, rewrite::PIPELINE, |_, _| {})?;
//! assert!(report.replaced.contains(&("fuse-silu", 1)));
//!
//! let (ty, value) = (graph.ty(graph.inputs[0]).clone(), 0);
//! let input = PlanInput { name: "x".into(), ty: ty.clone(), role: InputRole::Sample };
//! let output = PlanOutput { name: "y".into(), ty, value };
//! let lowered = lower(&bind::unbound(&graph), vec![input], vec![output], Some("N"), None, 0, false)?;
//! assert!(lowered.plan.to_string().contains("%y: f32[N,8] = silu(%x)"));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

pub mod bind;
pub mod cache;
pub mod calib;
pub mod interpret;
pub mod ir;
pub mod lower;
pub mod onnx;
pub mod quant;
pub mod recognize;
pub mod rewrite;
