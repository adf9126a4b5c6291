//! The sampler: moves samples by what the network has answered, and counts evaluations.

use super::args::{CountArgs, SamplerArgs};
use super::launch::{Operands, blocks, int};
use super::{ElementType, Launch, Operand, State, list};

/// Most terms of an operation, and most arrays that live for one evaluation.
pub const SAMPLER_TERMS: usize = 8;
/// Most temporary registers.
pub const SAMPLER_TEMPS: usize = 12;

/// Numbers that begin a row of the table: what the network sees of the next sample, and padding.
pub const SAMPLER_HEAD: usize = 8;
/// Numbers of an operation: what it is, where it goes (kind and number), how many terms, factor and
/// divisor of the sum, two numbers more; then per term kind and number of the register, factor and
/// divisor.
pub const SAMPLER_OP: usize = 8 + 4 * SAMPLER_TERMS;

/// Something as long as the samples that an operation reads or writes: the kind of a register as
/// `sampler.cu` counts them, in the order sample, output, noise, temporary, kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // the order says it
pub enum SamplerRegister {
    X,
    Out,
    Noise,
    Temp,
    Kept,
}

/// What an operation is: a combination, the same clipped to ± its last number, or noise times the
/// root of the network's second half, or times what that chooses between its last two numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // the order says it
pub enum SamplerOp {
    Combine,
    Clip,
    Variance,
    Range,
}

/// What [`sampler_step`] works with.
#[derive(Clone, Copy, Debug)]
pub struct SamplerStep<'a> {
    /// Operations of a row.
    pub ops: usize,
    /// How many arrays as long as the samples are kept from one evaluation to the next.
    pub keeps: usize,
    /// Whether some operation reads the output's second half.
    pub learned: bool,
    /// Samples, their elements and channels.
    pub sizes: [usize; 3],
    /// Elements of a sample's output: as many, or twice as many.
    pub width: usize,
    /// The samples in f32, without gaps.
    pub x: &'a Operand,
    /// The network's answers, and how many of them make a row; with `guidance` those of the
    /// unconditional half, then the others.
    pub output: (&'a Operand, usize),
    /// [`SAMPLER_HEAD`] numbers and `ops` times [`SAMPLER_OP`] per evaluation.
    pub constants: &'a Operand,
    /// Noise that was drawn for this evaluation.
    pub noise: Option<&'a Operand>,
    /// The scale of guidance.
    pub guidance: Option<&'a Operand>,
    /// What is kept, `keeps` times as long as the samples.
    pub kept: Option<&'a Operand>,
    /// Where the network sees the samples in f32, twice with guidance.
    pub input: &'a Operand,
    /// A factor and a summand per channel of the moved samples.
    pub correction: Option<[&'a Operand; 2]>,
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
    assert!(s.kept.is_some() || s.keeps == 0, "{} arrays are kept", s.keeps);
    assert!(!s.learned || s.width == 2 * length, "a variance is read");
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
        constants: flat("constants", Some(s.constants), SAMPLER_HEAD + s.ops * SAMPLER_OP),
        noise: flat("noise", s.noise, count),
        guidance: flat("guidance", s.guidance, 1),
        kept: flat("kept", s.kept, s.keeps * count),
        input: flat("input", Some(s.input), copies * count),
        scale: flat("scale", scale, channels),
        shift: flat("shift", shift, channels),
        sizes: [samples, length, s.width, columns].map(int),
        ops: int(s.ops),
        learned: s.learned.into(),
        channels: int(channels),
        copies: int(copies),
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
