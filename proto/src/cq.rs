//! The `.cq` container: a compiled loop and its constants in one file that can be mapped.
//!
//! | bytes | what |
//! |---|---|
//! | 0..8 | [`MAGIC`] |
//! | 8..12 | format version, [`VERSION`] |
//! | 12..16 | number of sections |
//! | 16..24 | length of the file |
//! | 24..56 | blake3 of bytes 0..24 and of the section table |
//! | 56..64 | zero |
//! | 64.. | section table, 64 bytes each: name (8, ASCII, padded with zeros), offset (8), length (8), blake3 (32), zero (8) |
//! | then | the sections, ascending, zeros between them |
//!
//! Integers are little endian. The section `manifest` is the JSON of a [`Manifest`], compressed in
//! zlib's format since version 4. The section `weights` holds the constants of its plan. The
//! optional section `cuda` holds kernels compiled for GPUs. An artifact of a whole pipeline has the
//! section `pipeline`, the JSON of a [`Pipeline`], and its attachments in the sections `part.00`,
//! `part.01` and so on. Readers skip sections that they do not know. [`write()`] makes a file, and
//! [`Artifact::read`] checks all of one.

mod guidance;
mod pipeline;
mod read;
mod unpack;
mod write;

pub use guidance::{Fill, GuidanceInterval};
pub use pipeline::{Autoencoder, Condition, MAX_ATTACHMENTS, MAX_PIPELINE, Pipeline, TextEncoder};
pub use read::{Artifact, CqError};
pub use write::{Attached, WriteError, encode, encode_with, lay_out, write};

use crate::plan::{Plan, PlanInput};
use crate::sampler::{MAX_STEPS, SamplerConfig};
use crate::types::element_count;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};

/// The first bytes of every artifact. As in PNG, they reveal whether the file was transferred in a
/// text mode.
pub const MAGIC: [u8; 8] = *b"\x89CQC\r\n\x1a\n";

/// The format version that is written, and the newest one that is read.
///
/// Version 2 added caching. Version 3 added quantization. Version 4 compresses the manifest and may
/// hold the nodes that compute time tables ([`Plan::times`]). Version 5 may round products to bf16.
/// Version 6 added samplers. Version 7 added the rescaling and the interval of guidance, inputs
/// that the loop fills, and conditions with a value per step.
pub const VERSION: u32 = 7;

/// The size of the longest manifest that is read, in bytes, uncompressed.
pub const MAX_MANIFEST: u64 = 64 << 20;

/// The maximum number of sections in a file.
pub const MAX_SECTIONS: u32 = 64;

const HEADER: usize = 64;
const ENTRY: usize = 64;
/// The alignment of sections.
const SECTION_ALIGN: u64 = 64;
/// The alignment of the weights, which is the size of a page.
const WEIGHTS_ALIGN: u64 = 4096;

/// The description of a compiled loop: everything except the bytes of its constants.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// The [`VERSION`] of the writer.
    pub format_version: u32,
    /// The model from which the loop was compiled.
    pub source: SourceModel,
    /// The plan of the compiled loop, without the bytes of its constants.
    pub plan: Plan,
    /// The configuration of the sampler.
    pub sampler: SamplerConfig,
    /// The number of sampler steps.
    pub steps: usize,
    /// The guidance scale for which the artifact was made. A scale of 1 means no guidance, unless
    /// [`Manifest::fills`] makes the scale an input.
    pub guidance: f32,
    /// The degree to which the guided prediction gets the standard deviation of the conditional
    /// one, from 0 to 1 (φ of arXiv:2305.08891, section 3.4).
    #[serde(default, skip_serializing_if = "is_zero")]
    pub guidance_rescale: f32,
    /// The steps in which guidance applies. `None` stands for all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guidance_interval: Option<GuidanceInterval>,
    /// The conditions that the loop fills by itself, by input name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub fills: BTreeMap<String, Fill>,
    /// The null conditions by input name. Conditions may be missing.
    #[serde(default)]
    pub null: BTreeMap<String, NullCondition>,
    /// The schedule of full evaluations, and how it was found.
    pub schedule: Schedule,
    /// The kind of quantization and the quantized layers.
    pub quant: Quant,
    /// The calibration set, if anything was fitted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub calibration: Option<Calibration>,
}

/// The origin of an artifact.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SourceModel {
    /// BLAKE3 hash of the model file, in hexadecimal.
    pub blake3: String,
    /// Version of ONNX's default operator set.
    pub opset: i64,
    /// Name and version of the exporter.
    pub producer: String,
    /// The number of trained parameters.
    pub parameters: u64,
}

/// The value of a condition in the unconditional half of guidance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NullCondition {
    /// A class label, which fills every element of the input.
    Label(i64),
    /// One row of the input (batch 1), which is `Plan::constants[i]`.
    Constant(usize),
}

/// The evaluations that run the full step.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Schedule {
    /// The loop does not cache: every evaluation computes everything.
    #[default]
    None,
    /// The loop caches, with the full evaluations of `Plan::cache`.
    Cached(CachedSchedule),
}

/// The way in which the plan's full evaluations were found. It is information for people; the
/// schedule that is executed is in the plan.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CachedSchedule {
    /// The method that found the schedule: `uniform`, `quadratic`, `dps`, `dps-output` or `file`.
    pub method: String,
    /// The cache interval N: about one evaluation of N is full.
    pub interval: usize,
    /// The cost that the method minimises, for this schedule. `None` if it minimises nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cost: Option<f64>,
    /// The same cost for the uniform schedule.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uniform_cost: Option<f64>,
    /// The corrections of the cache: one per slot, or none at all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub corrections: Vec<CacheCorrection>,
    /// The method by which the corrections were fitted, such as `teacher-forced` or `sequential`.
    /// `None` without corrections.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub correction_method: Option<String>,
}

/// The affine correction of one cache slot, `x · scale[e] + shift[e]` at evaluation `e`. It is the
/// cache part of CacheQuant's decoupled error correction (arXiv:2503.01323).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CacheCorrection {
    /// The factors, `Plan::constants[scale]`, `[evaluations, channels]`.
    pub scale: usize,
    /// The summands, `Plan::constants[shift]`, `[evaluations, channels]`.
    pub shift: usize,
    /// The factors of the previously stored value, in the same form. Only a forecast has them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous_scale: Option<usize>,
}

/// The calibration set on which tables were fitted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Calibration {
    /// The number of trajectories.
    pub samples: usize,
    /// The seed of their noise, or `None` if the noise was given.
    pub seed: Option<u64>,
    /// The way in which the samples were selected.
    pub select: String,
    /// The build that computed the fitted numbers, or `None` if it did not record itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub made_by: Option<Computed>,
}

/// A build of cqc and its instruction set. Floating-point results depend on these in addition to
/// their inputs, so another build may differ in the last digits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Computed {
    /// The version of cqc, and a hash of the sources of its kernels.
    pub build: String,
    /// The instruction set, as `CQC_ISA` names it.
    pub isa: String,
}

impl std::fmt::Display for Computed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "cqc {} on {}", self.build, self.isa)
    }
}

/// The kind of quantization.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Quant {
    /// Weights and activations stay float.
    #[default]
    None,
    /// Weights and activations of 8 bits.
    W8a8(QuantizedLoop),
    /// Weights of 4 bits, activations of 8 bits.
    W4a8(QuantizedLoop),
    /// Operands of products in bf16, sums in f32. Layers have neither tables nor corrections.
    Bf16(QuantizedLoop),
}

impl Quant {
    /// The quantized layers, unless the kind is `None`.
    pub fn quantized(&self) -> Option<&QuantizedLoop> {
        match self {
            Quant::None => None,
            Quant::W8a8(of) | Quant::W4a8(of) | Quant::Bf16(of) => Some(of),
        }
    }

    /// The name of the kind in the options of the command line.
    pub fn name(&self) -> &'static str {
        match self {
            Quant::None => "none",
            Quant::W8a8(_) => "w8a8",
            Quant::W4a8(_) => "w4a8",
            Quant::Bf16(_) => "bf16",
        }
    }

    /// Whether operands are rounded to integers.
    pub fn has_integers(&self) -> bool {
        matches!(self, Quant::W8a8(_) | Quant::W4a8(_))
    }
}

/// The layers of a quantized loop. It is information for people; the operators that are executed
/// are in the plan. Indices refer to `Plan::constants`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct QuantizedLoop {
    /// The quantized layers in the order of execution.
    pub layers: Vec<QuantizedLayer>,
    /// The layers that stay float.
    pub float_layers: Vec<FloatLayer>,
    /// The rounding of the weights: `nearest` or `second-order`.
    pub rounding: String,
    /// The sample compensation after every evaluation (the variance compensation of Q&C).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compensation: Option<SampleCompensation>,
}

/// A layer whose operands are rounded.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct QuantizedLayer {
    /// Name of its node in the source model.
    pub name: String,
    /// Name of the layer's operator.
    pub op: String,
    /// Bits of its weights, 16 for bf16. `None` if it has no weights.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight_bits: Option<u8>,
    /// Index of the constant with its weights.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight: Option<usize>,
    /// The tables of its inputs: one entry, or three for q, k and v. The list is empty if the
    /// inputs are rounded to bf16, and in older artifacts if they are not rounded.
    pub inputs: Vec<ActivationTable>,
    /// The tables of the correction of its sums.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub correction: Option<SumCorrection>,
}

/// The tables by which an input is rounded, `[evaluations, segments]` each. An entry is 0 at
/// evaluations that do not read the input.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ActivationTable {
    /// Index of the table of scales.
    pub scale: usize,
    /// Index of the table of zero points.
    pub zero_point: usize,
}

/// The correction of a layer's sums, `a · sum + bias`, with tables `[evaluations, channels]`. It is
/// the quantization part of CacheQuant's decoupled error correction (arXiv:2503.01323).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SumCorrection {
    /// Index of the table of factors.
    pub a: usize,
    /// Index of the table of summands, which include the layer's own bias.
    pub bias: usize,
}

/// A layer that stays float.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FloatLayer {
    /// Name of its node in the source model.
    pub name: String,
    /// The reason why the layer is not quantized.
    pub why: String,
}

/// The sample compensation: `x · scale + shift` per channel of the sample, with f32 tables
/// `[evaluations, channels]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SampleCompensation {
    /// Index of the table of factors.
    pub scale: usize,
    /// Index of the table of summands.
    pub shift: usize,
    /// The method by which they were fitted.
    pub mode: String,
}

fn is_zero(value: &f32) -> bool {
    *value == 0.0
}

impl Manifest {
    /// A manifest without guidance, null conditions, schedule and quantization.
    pub fn new(source: SourceModel, plan: Plan, sampler: SamplerConfig, steps: usize) -> Manifest {
        Manifest {
            format_version: VERSION,
            source,
            plan,
            sampler,
            steps,
            guidance: 1.0,
            guidance_rescale: 0.0,
            guidance_interval: None,
            fills: BTreeMap::new(),
            null: BTreeMap::new(),
            schedule: Schedule::None,
            quant: Quant::None,
            calibration: None,
        }
    }

    /// Checks everything that is not part of the plan.
    fn check(&self) -> Result<(), String> {
        self.sampler.validate().map_err(|e| e.to_string())?;
        if !(1..=MAX_STEPS).contains(&self.steps) {
            return Err(format!("{} sampling steps, expected 1 to {MAX_STEPS}", self.steps));
        }
        self.check_guidance()?;
        self.check_schedule()?;
        self.check_quant()?;
        let inputs: HashMap<&str, &PlanInput> =
            self.plan.inputs.iter().map(|input| (&input.name[..], input)).collect();
        self.null.iter().try_for_each(|(name, null)| {
            let input = inputs.get(&name[..]).ok_or_else(|| "the model has no such input".into());
            input
                .and_then(|input| self.check_null(input, null))
                .map_err(|reason| format!("null conditioning of `{name}`: {reason}"))
        })
    }

    fn check_schedule(&self) -> Result<(), String> {
        match (&self.schedule, &self.plan.cache) {
            (Schedule::None, None) => Ok(()),
            (Schedule::None, Some(_)) => {
                Err("the plan has a cache, the manifest no schedule".into())
            }
            (Schedule::Cached(_), None) => {
                Err("the manifest has a schedule, the plan no cache".into())
            }
            (Schedule::Cached(schedule), Some(cache)) => {
                let slots = cache.slots.iter().filter(|slot| slot.previous_of.is_none()).count();
                let tables = &schedule.corrections;
                if !tables.is_empty() && tables.len() != slots {
                    return Err(format!("{} corrections for {slots} cache slots", tables.len()));
                }
                let read =
                    tables.iter().flat_map(|t| [Some(t.scale), Some(t.shift), t.previous_scale]);
                read.flatten().try_for_each(|i| {
                    self.check_table(i).map_err(|reason| format!("a correction: {reason}"))
                })
            }
        }
    }

    /// Checks that constant `i` is a table with a row of floats for every evaluation.
    fn check_table(&self, i: usize) -> Result<(), String> {
        let constant =
            self.plan.constants.get(i).ok_or_else(|| format!("there is no constant {i}"))?;
        let rows = constant.ty.shape.first();
        let is_table = constant.codes.is_none()
            && constant.ty.dtype.is_float()
            && rows.is_some_and(|rows| rows.is(self.plan.evaluations as i64));
        if is_table {
            return Ok(());
        }
        let evaluations = self.plan.evaluations;
        Err(format!("constant {i}, {}, is no table of {evaluations} evaluations", constant.ty))
    }

    fn check_quant(&self) -> Result<(), String> {
        let Some(quant) = self.quant.quantized() else { return Ok(()) };
        let constants = &self.plan.constants;
        for layer in &quant.layers {
            let inputs = layer.inputs.iter().flat_map(|i| [i.scale, i.zero_point]);
            let correction = layer.correction.iter().flat_map(|c| [c.a, c.bias]);
            let error = |reason| format!("layer `{}`: {reason}", layer.name);
            inputs.chain(correction).try_for_each(|i| self.check_table(i)).map_err(error)?;
            if let Some(i) = layer.weight.filter(|&i| i >= constants.len()) {
                return Err(error(format!("there is no constant {i}")));
            }
        }
        let Some(tables) = &quant.compensation else { return Ok(()) };
        let shapes = [tables.scale, tables.shift].map(|i| {
            let constant =
                constants.get(i).filter(|c| c.ty.dtype == crate::DType::F32 && c.codes.is_none());
            constant.and_then(|c| c.ty.fixed_shape())
        });
        match shapes {
            [Some(scale), Some(shift)]
                if scale == shift && scale.len() == 2 && scale[0] == self.plan.evaluations =>
            {
                Ok(())
            }
            _ => Err(format!("the compensation reads constants of shapes {shapes:?}")),
        }
    }

    fn check_null(&self, input: &PlanInput, null: &NullCondition) -> Result<(), String> {
        if !input.role.is_condition() {
            return Err(format!("it is the {:?}", input.role));
        }
        let NullCondition::Constant(i) = *null else {
            let takes = input.ty.dtype.is_integer();
            return if takes {
                Ok(())
            } else {
                Err(format!("a label for an input of type {}", input.ty))
            };
        };
        let constant =
            self.plan.constants.get(i).ok_or_else(|| format!("there is no constant {i}"))?;
        let row = |shape: &[crate::Dim]| shape.get(1..).unwrap_or_default().to_vec();
        let one = constant
            .ty
            .fixed_shape()
            .is_some_and(|s| s.first() == Some(&1) && element_count(&s).is_some());
        let dtype_fits = constant.ty.dtype == input.ty.dtype
            || (constant.ty.dtype.is_float() && input.ty.dtype.is_float());
        if one && dtype_fits && row(&constant.ty.shape) == row(&input.ty.shape) {
            return Ok(());
        }
        Err(format!("constant {} is no row of {}", constant.ty, input.ty))
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Section {
    name: [u8; 8],
    offset: u64,
    len: u64,
    hash: [u8; 32],
}

const MANIFEST: [u8; 8] = *b"manifest";
const KERNELS: [u8; 8] = *b"cuda\0\0\0\0";
const WEIGHTS: [u8; 8] = *b"weights\0";
const PIPELINE: [u8; 8] = *b"pipeline";

/// The name of the section of attachment `i`, below [`MAX_ATTACHMENTS`].
fn attachment(i: usize) -> [u8; 8] {
    let mut name = *b"part.00\0";
    name[5] += (i / 10) as u8;
    name[6] += (i % 10) as u8;
    name
}

impl Section {
    fn to_bytes(&self) -> [u8; ENTRY] {
        let mut bytes = [0; ENTRY];
        bytes[..8].copy_from_slice(&self.name);
        bytes[8..16].copy_from_slice(&self.offset.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.len.to_le_bytes());
        bytes[24..56].copy_from_slice(&self.hash);
        bytes
    }

    /// Reads an entry from the first [`ENTRY`] bytes of `bytes`.
    fn from_bytes(bytes: &[u8]) -> Section {
        let mut hash = [0; 32];
        hash.copy_from_slice(&bytes[24..56]);
        let mut name = [0; 8];
        name.copy_from_slice(&bytes[..8]);
        Section { name, offset: read_u64(bytes, 8), len: read_u64(bytes, 16), hash }
    }
}

fn read_u64(bytes: &[u8], at: usize) -> u64 {
    bytes[at..at + 8].iter().rev().fold(0, |n, &b| n << 8 | u64::from(b))
}

fn read_u32(bytes: &[u8], at: usize) -> u32 {
    bytes[at..at + 4].iter().rev().fold(0, |n, &b| n << 8 | u32::from(b))
}

/// The header of a file of `len` bytes with these sections, followed by the section table.
fn header(sections: &[Section], len: u64) -> Vec<u8> {
    let table: Vec<u8> = sections.iter().flat_map(Section::to_bytes).collect();
    let mut bytes = vec![0; HEADER];
    bytes[..8].copy_from_slice(&MAGIC);
    bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
    bytes[12..16].copy_from_slice(&(sections.len() as u32).to_le_bytes());
    bytes[16..24].copy_from_slice(&len.to_le_bytes());
    let hash = header_hash(&bytes, &table);
    bytes[24..56].copy_from_slice(&hash);
    bytes.extend(table);
    bytes
}

fn header_hash(header: &[u8], table: &[u8]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&header[..24]).update(table);
    hasher.finalize().into()
}

#[cfg(test)]
mod tests;
