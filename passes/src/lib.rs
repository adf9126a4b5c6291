//! The compiler of cqc as passes over a graph: it imports an ONNX denoiser, rewrites it, cuts the
//! denoising loop apart, quantizes it, and lowers it to a [`Plan`](cqc_proto::plan::Plan).
//!
//! | module | purpose |
//! |---|---|
//! | [`onnx`] | imports ONNX models, and exports plans as ONNX |
//! | [`ir`] | the graph, its text form and its verifier |
//! | [`rewrite`] | the list of rewriting passes, and the driver that runs them |
//! | [`bind`](mod@bind) | moves computation that depends on the time step or the conditions alone out of the loop |
//! | [`cache`] | cuts a step, chooses the full evaluations, and corrects the tensors that the others reuse |
//! | [`calib`], [`quant`] | ranges, rounding and corrections of layers, and the rewritten graph |
//! | [`recognize`] | names the format of files that are not ONNX models |
//! | [`lower`](mod@lower) | turns graphs into a plan, and records the places of their nodes and tables in it |
//!
//! This crate runs nothing but constants. Observations of a running loop are passed in by the crate
//! `cachequant`, which is the one to use for compiling a model. This crate is for code that adds
//! passes or looks at their results.
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
