//! Element by element, and maps of rows.

use super::args::{
    AffineArgs, ElementwiseArgs, EmbeddingArgs, GatherArgs, MAX_RANK, RawOperand, RowsArgs,
};
use super::conv::act;
use super::launch::{Operands, blocks, int};
use super::{ElementType, Launch, Operand, Output, State, list};
use crate::Act;

/// A function of up to three operands. Results are computed in f32, those of integers in 64 bits
/// that wrap around; truth values are 0 and 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // the names say it
pub enum ElementOp {
    Add,
    Sub,
    Mul,
    Div,
    Pow,
    Min,
    Max,
    Equal,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
    And,
    Or,
    Xor,
    /// a ? b : c
    Where,
    /// a, bit for bit between equal types; floats become integers by truncation, whatever is not 0
    /// is true.
    Copy,
    Neg,
    Abs,
    Exp,
    Log,
    Sqrt,
    Reciprocal,
    Floor,
    Ceil,
    Round,
    Sin,
    Cos,
    Erf,
    Not,
    /// To the nearest bf16, ties to even.
    RoundBf16,
    Act(Act),
}

impl ElementOp {
    /// Operands it reads.
    pub fn operands(self) -> usize {
        match self {
            ElementOp::Where => 3,
            _ if self.code() < ElementOp::Where.code() => 2,
            _ => 1,
        }
    }

    /// Whether there is such a function of integers.
    pub fn takes_integers(self) -> bool {
        use ElementOp as E;
        self.code() <= E::Copy.code() && self != E::Pow
            || matches!(self, E::Neg | E::Abs | E::Not | E::Floor | E::Ceil | E::Round)
    }

    /// Its number in the source.
    fn code(self) -> i32 {
        use ElementOp as E;
        const ORDER: [ElementOp; 31] = [
            E::Add,
            E::Sub,
            E::Mul,
            E::Div,
            E::Pow,
            E::Min,
            E::Max,
            E::Equal,
            E::Less,
            E::LessOrEqual,
            E::Greater,
            E::GreaterOrEqual,
            E::And,
            E::Or,
            E::Xor,
            E::Where,
            E::Copy,
            E::Neg,
            E::Abs,
            E::Exp,
            E::Log,
            E::Sqrt,
            E::Reciprocal,
            E::Floor,
            E::Ceil,
            E::Round,
            E::Sin,
            E::Cos,
            E::Erf,
            E::Not,
            E::RoundBf16,
        ];
        match self {
            E::Act(function) => ORDER.len() as i32 + act(function),
            op => ORDER.iter().position(|o| *o == op).expect("it is listed") as i32,
        }
    }
}

/// y\[i\] = op(a\[i\], …) over `shape`, each operand with its distances between neighbours along
/// the axes, in elements; the last strides are those of y.
///
/// # Panics
/// When an operand is too short, there are more than 6 axes, another number of operands than `op`
/// takes, or integers where it has no function of them, or of them and floats together.
pub fn elementwise(
    state: &State,
    op: ElementOp,
    shape: &[usize],
    reads: &[(&Operand, &[usize])],
    y: (&Operand, &[usize]),
) -> Launch {
    assert!(shape.len() <= MAX_RANK, "{} axes, the kernel knows {MAX_RANK}", shape.len());
    assert_eq!(reads.len(), op.operands(), "operands of {op:?}");
    let of_integers = of_integers(op, reads, y.0);
    assert!(!of_integers || op.takes_integers(), "{op:?} of integers");
    let wide = if of_integers { 0 } else { wide(op, shape, reads, y) };
    // eight neighbours count as one
    let eight = if wide == 0 { 1 } else { 8 };
    let count: usize = shape.iter().product::<usize>() / eight;
    let mut operands = Operands::new(state);
    let mut strides = [[0; MAX_RANK]; 4];
    let mut see = |at: usize, what: &str, operand: &Operand, distances: &[usize]| {
        assert_eq!(distances.len(), shape.len(), "strides of {what}");
        let last: usize = shape.iter().zip(distances).map(|(n, s)| (n - 1) * s).sum();
        strides[at].iter_mut().zip(distances).for_each(|(to, &from)| *to = from as i64);
        operands.rows(what, &Operand { ld: last + 1, ..operand.clone() }, 1, last + 1)
    };
    let mut raw = [RawOperand::default(); 4];
    for (i, (operand, distances)) in reads.iter().enumerate() {
        raw[i] = see(i, "an operand", operand, distances);
    }
    raw[3] = see(3, "y", y.0, y.1);
    let mut sizes = [1; MAX_RANK];
    sizes.iter_mut().zip(shape).for_each(|(to, &from)| *to = int(from) as u32);
    if let (8, Some(last)) = (eight, shape.len().checked_sub(1)) {
        sizes[last] /= 8;
        strides.iter_mut().for_each(|strides| strides[last] *= 8);
    }
    let (state, rank) = (operands.state_address(), int(shape.len()));
    let args = ElementwiseArgs {
        state,
        operands: raw,
        count: int(count) as u32,
        op: op.code(),
        rank,
        wide,
        strides,
        shape: sizes,
    };
    let kernel = if of_integers { &list::integers } else { &list::elementwise };
    operands.launch(kernel, [blocks(count), 1], 0, args)
}

/// Whether eight neighbours along the last axis are computed at once, and which operands repeat one
/// number along it: 0, or 1 and a bit per operand.
fn wide(
    op: ElementOp,
    shape: &[usize],
    reads: &[(&Operand, &[usize])],
    y: (&Operand, &[usize]),
) -> i32 {
    use ElementOp as E;
    let frequent = matches!(op, E::Copy | E::Add | E::Sub | E::Mul);
    let Some(last) =
        shape.len().checked_sub(1).filter(|&last| frequent && shape[last].is_multiple_of(8))
    else {
        return 0;
    };
    // rows that begin at multiples of 16 bytes
    let aligned = |operand: &Operand, strides: &[usize]| {
        let eights = strides[..last].iter().all(|s| s.is_multiple_of(8));
        strides[last] == 1 && eights && Operand { ld: 8, ..operand.clone() }.is_wide()
    };
    if y.0.element != ElementType::F16 || !aligned(y.0, y.1) {
        return 0;
    }
    let mut wide = 1;
    for (i, (operand, strides)) in reads.iter().enumerate() {
        let copies = op == E::Copy;
        match strides[last] {
            0 if !copies => wide |= 2 << i,
            _ if operand.element.is_float() && aligned(operand, strides) => {}
            _ => return 0,
        }
    }
    wide
}

/// Whether the integers' kernel is meant: some operand is one, and none a float but for conversions
/// and choices, which the other kernel does.
fn of_integers(op: ElementOp, reads: &[(&Operand, &[usize])], y: &Operand) -> bool {
    let is_integer = |element: ElementType| matches!(element, ElementType::I32 | ElementType::I64);
    let floats = reads.iter().any(|(o, _)| o.element.is_float());
    if !reads.iter().any(|(o, _)| is_integer(o.element)) {
        return false;
    }
    assert!(!floats, "{op:?} of integers and floats");
    if op == ElementOp::Copy && y.element.is_float() {
        return false;
    }
    assert!(!y.element.is_float(), "{op:?} of integers gives no floats");
    true
}

/// y\[o, i\] = data\[o, indices\[i\]\], rows of `inner` elements without gaps: data `[outer, size,
/// inner]`, y `[outer, count, inner]`. Negative indices count from the end; one outside takes the
/// nearest row and leaves [`Fault::IndexOutside`](super::Fault).
///
/// # Panics
/// When an operand is too short, the indices are no integers, or the types of data and y are
/// neither the same nor floats.
pub fn gather(
    state: &State,
    [outer, size, inner, count]: [usize; 4],
    data: &Operand,
    indices: &Operand,
    y: &Operand,
) -> Launch {
    assert!(
        matches!(indices.element, ElementType::I32 | ElementType::I64),
        "indices: {:?}",
        indices.element
    );
    let floats = data.element.is_float() && y.element.is_float();
    assert!(floats || data.element == y.element, "{:?} from {:?}", y.element, data.element);
    let mut operands = Operands::new(state);
    let mut flat = |what: &str, operand: &Operand, elements: usize| {
        operands.rows(what, &Operand { ld: elements, ..operand.clone() }, 1, elements)
    };
    let data = flat("data", data, outer * size * inner);
    let indices = flat("indices", indices, count);
    let y = flat("y", y, outer * count * inner);
    let sizes = [outer, size, inner, count].map(int);
    let args = GatherArgs { state: operands.state_address(), data, indices, y, sizes };
    operands.launch(&list::gather, [blocks(outer * count * inner), 1], 0, args)
}

/// y = x · scale + shift (+ previous · factor) (+ residual), scale, shift and factor per column.
///
/// # Panics
/// When an operand is too short.
pub fn affine(
    state: &State,
    [rows, columns]: [usize; 2],
    x: &Operand,
    [scale, shift]: [&Operand; 2],
    previous: Option<[&Operand; 2]>,
    residual: Option<&Operand>,
    y: &Operand,
) -> Launch {
    let mut operands = Operands::new(state);
    assert!(y.element.is_float(), "y: {:?}", y.element);
    let [earlier, factor] = previous.map_or([None; 2], |parts| parts.map(Some));
    let raw = [
        operands.rows("x", x, rows, columns),
        operands.rows("scale", scale, 1, columns),
        operands.rows("shift", shift, 1, columns),
        operands.maybe("residual", residual, rows, columns),
        operands.maybe("previous", earlier, rows, columns),
        operands.maybe("factor of previous", factor, 1, columns),
        operands.rows("y", y, rows, columns),
    ];
    let all = [Some(x), residual, earlier].into_iter().flatten();
    let wide = all.fold(Output::plain(y).takes_eight(columns), |wide, o| wide && o.reads_eight());
    let state = operands.state_address();
    let args = AffineArgs {
        state,
        operands: raw,
        rows: int(rows),
        columns: int(columns),
        wide: i32::from(wide),
        unused: 0,
    };
    operands.launch(&list::affine, [blocks(rows * columns / if wide { 8 } else { 1 }), 1], 0, args)
}

/// y = x, rounded or as codes.
///
/// # Panics
/// When an operand is too short.
pub fn quantize(
    state: &State,
    [rows, columns]: [usize; 2],
    x: &Operand,
    output: &Output,
) -> Launch {
    let mut operands = Operands::new(state);
    let wide = x.reads_eight();
    let x = operands.rows("x", x, rows, columns);
    rows_launch(operands, &list::quantize, [rows, columns], x, wide, Act::None, output)
}

/// y = a · act(b) with rows `[a, b]` of x, `columns` each.
///
/// # Panics
/// When an operand is too short.
pub fn gated(
    state: &State,
    [rows, columns]: [usize; 2],
    function: Act,
    x: &Operand,
    output: &Output,
) -> Launch {
    let mut operands = Operands::new(state);
    let wide = x.reads_eight();
    let x = operands.rows("x", x, rows, 2 * columns);
    rows_launch(operands, &list::gated, [rows, columns], x, wide, function, output)
}

fn rows_launch(
    mut operands: Operands,
    kernel: &'static super::EntryPoint,
    [rows, columns]: [usize; 2],
    x: RawOperand,
    reads_eight: bool,
    function: Act,
    output: &Output,
) -> Launch {
    let wide = reads_eight && output.takes_eight(columns);
    let y = output.raw(&mut operands, rows, columns);
    let state = operands.state_address();
    let args = RowsArgs {
        state,
        x,
        y,
        rows: int(rows),
        columns: int(columns),
        act: act(function),
        wide: i32::from(wide),
    };
    operands.launch(kernel, [blocks(rows * columns / if wide { 8 } else { 1 }), 1], 0, args)
}

/// y = [sin(t · f), cos(t · f)] per row, cosines first when `cos_first`.
///
/// # Panics
/// When an operand is too short.
pub fn timestep_embedding(
    state: &State,
    [rows, half]: [usize; 2],
    cos_first: bool,
    t: &Operand,
    frequencies: &Operand,
    y: &Operand,
) -> Launch {
    let mut operands = Operands::new(state);
    assert!(y.element.is_float(), "y: {:?}", y.element);
    let args = EmbeddingArgs {
        state: operands.state_address(),
        t: operands.rows("t", t, 1, rows),
        frequencies: operands.rows("frequencies", frequencies, 1, half),
        y: operands.rows("y", y, rows, 2 * half),
        rows: int(rows),
        half: int(half),
        cos_first: i32::from(cos_first),
        unused: 0,
    };
    operands.launch(&list::timestep_embedding, [blocks(rows * 2 * half), 1], 0, args)
}
