//! The sampler: moves samples by what the network has answered, and counts evaluations.

use super::args::{CountArgs, SamplerArgs};
use super::launch::{Operands, blocks, int};
use super::{ElementType, Launch, Operand, State, list};

/// How samples move.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // named as the samplers are
pub enum SamplerRule {
    Ddim,
    Ddpm,
    Plms,
    Euler,
    DpmPp,
}

impl SamplerRule {
    /// How many arrays as long as the samples it keeps from one evaluation to the next.
    pub fn kept(self) -> usize {
        match self {
            SamplerRule::Plms => 5,
            SamplerRule::DpmPp => 2,
            _ => 0,
        }
    }
}

/// What the network predicts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // the names say it
pub enum Predicted {
    Noise,
    Velocity,
    Image,
}

/// Numbers of an evaluation in the table of constants.
pub const SAMPLER_CONSTANTS: usize = 8;

/// What [`sampler_step`] works with.
#[derive(Clone, Copy, Debug)]
pub struct SamplerStep<'a> {
    /// The rule.
    pub rule: SamplerRule,
    /// What the network predicts.
    pub predicted: Predicted,
    /// Samples, their elements and channels.
    pub sizes: [usize; 3],
    /// Elements of a sample's output: as many, or twice as many.
    pub width: usize,
    /// The samples in f32, without gaps.
    pub x: &'a Operand,
    /// The network's answers, and how many of them make a row; with `guidance` those of the
    /// unconditional half, then the others.
    pub output: (&'a Operand, usize),
    /// [`SAMPLER_CONSTANTS`] numbers per evaluation, in the order of `sampler.cu`.
    pub constants: &'a Operand,
    /// Noise that was drawn for this evaluation.
    pub noise: Option<&'a Operand>,
    /// The scale of guidance.
    pub guidance: Option<&'a Operand>,
    /// What is kept, [`SamplerRule::kept`] times as long as the samples.
    pub kept: Option<&'a Operand>,
    /// Where the network sees the samples in f32, twice with guidance.
    pub input: &'a Operand,
    /// A factor and a summand per channel of the moved samples.
    pub correction: Option<[&'a Operand; 2]>,
    /// The largest magnitude of a predicted image.
    pub clip: f32,
}

/// Moves the samples by the network's answer to this evaluation and writes what the network sees at
/// the next.
///
/// # Panics
/// When an operand is missing, too short or of another type than f32 (but for the output), or
/// channels do not divide a sample.
pub fn sampler_step(state: &State, s: &SamplerStep) -> Launch {
    let [samples, length, channels] = s.sizes;
    assert!(channels > 0 && length.is_multiple_of(channels), "{channels} channels of {length}");
    assert!(
        s.width == length || s.width == 2 * length,
        "an output of {} for a sample of {length}",
        s.width
    );
    let f32s = [Some(s.x), Some(s.constants), s.noise, s.guidance, s.kept, Some(s.input)];
    let corrections = s.correction.into_iter().flatten().map(Some);
    let is_f32 = |o: Option<&Operand>| o.is_none_or(|o| o.element == ElementType::F32);
    assert!(f32s.into_iter().chain(corrections).all(is_f32), "the sampler computes in f32");
    assert!(s.kept.is_some() || s.rule.kept() == 0, "{:?} keeps something", s.rule);
    let count = samples * length;
    let copies = if s.guidance.is_some() { 2 } else { 1 };
    let (output, columns) = s.output;
    let answers = copies * samples * s.width;
    assert!(
        output.element.is_float() && answers.is_multiple_of(columns),
        "{answers} answers in rows of {columns}"
    );
    let mut operands = Operands::new(state);
    let mut flat = |what: &str, operand: Option<&Operand>, elements: usize| {
        operand.map_or_else(Default::default, |o| {
            operands.rows(what, &Operand { ld: elements, ..o.clone() }, 1, elements)
        })
    };
    let [scale, shift] = s.correction.map_or([None; 2], |parts| parts.map(Some));
    let mut args = SamplerArgs {
        state: 0,
        x: flat("x", Some(s.x), count),
        output: Default::default(),
        constants: flat("constants", Some(s.constants), SAMPLER_CONSTANTS),
        noise: flat("noise", s.noise, count),
        guidance: flat("guidance", s.guidance, 1),
        kept: flat("kept", s.kept, s.rule.kept() * count),
        input: flat("input", Some(s.input), copies * count),
        scale: flat("scale", scale, channels),
        shift: flat("shift", shift, channels),
        sizes: [samples, length, s.width, columns].map(int),
        rule: s.rule as i32,
        predicted: s.predicted as i32,
        channels: int(channels),
        copies: int(copies),
        clip: s.clip,
        unused: 0,
    };
    args.output = operands.rows("output", output, answers / columns, columns);
    args.state = operands.state_address();
    operands.launch(&list::sampler_step, [blocks(count), 1], 0, args)
}

/// Goes on to the next evaluation. Behind the last one, [`State::set`] must be called before
/// anything else runs.
pub fn count_step(state: &State) -> Launch {
    let operands = Operands::new(state);
    let args = CountArgs { state: operands.state_address() };
    operands.launch(&list::count_step, [1, 1], 0, args)
}
