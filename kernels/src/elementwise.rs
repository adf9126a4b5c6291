//! One number at a time: unary and binary operations, GEGLU, the affine map per channel.

use crate::epilogue::{Act, PerImage, check_matrix};
use crate::gemm::{load_some, store_some};
use crate::math::{activate, erf, exp};
use crate::shared::{SharedMut, cut};
use crate::simd::wide::{CHAINS, Wide, load_many, store_many};
use crate::simd::{Arithmetic, Simd, SimdKernel};
use crate::{Isa, Pool};
use std::ops::Range;

/// An operation on one number; [`reference`](crate::reference) has the definition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Unary {
    /// An activation.
    Act(Act),
    /// e^x
    Exp,
    /// ln x
    Log,
    /// −x
    Neg,
    /// |x|
    Abs,
    /// √x
    Sqrt,
    /// 1/x
    Reciprocal,
    /// erf x
    Erf,
    /// sin x
    Sin,
    /// cos x
    Cos,
    /// The next whole number below.
    Floor,
    /// The next whole number above.
    Ceil,
    /// The nearest whole number, halves to even.
    Round,
}

/// An operation on two numbers; [`reference`](crate::reference) has the definition, but for a NaN
/// as an operand of `Max` or `Min`, which the definition keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Binary {
    /// a + b
    Add,
    /// a − b
    Sub,
    /// a · b
    Mul,
    /// a / b
    Div,
    /// The larger; `b` where either is NaN.
    Max,
    /// The smaller; `b` where either is NaN.
    Min,
    /// a^b
    Pow,
}

/// An operand of [`binary`], as seen from a result of `[rows, c]`.
#[derive(Clone, Copy, Debug)]
pub enum BroadcastOperand<'a> {
    /// `[rows, c]`: values, and the distance between rows.
    Full(&'a [f32], usize),
    /// One number.
    Scalar(f32),
    /// `[c]`, the same for all rows.
    Row(&'a [f32]),
    /// `[rows]`, the same for all columns.
    Column(&'a [f32]),
    /// `[images, c]`.
    Image(PerImage<'a>),
}

/// Values of a task at least.
const TASK_VALUES: usize = 8192;

/// Into how many tasks to cut `values` values.
fn tasks_for(pool: &Pool, values: usize) -> usize {
    values.div_ceil(TASK_VALUES).clamp(1, 8 * pool.threads())
}

/// y = op(x), elementwise over equal lengths.
///
/// # Panics
/// When the lengths differ.
pub fn unary(isa: Isa, pool: &Pool, op: Unary, x: &[f32], y: &mut [f32]) {
    assert_eq!(x.len(), y.len(), "unary: lengths differ");
    let tasks = tasks_for(pool, x.len());
    let (len, y) = (x.len(), SharedMut::new(y));
    pool.run(tasks, &|task, _| {
        let range = cut(len, tasks, 64, task);
        // SAFETY: tasks have disjoint ranges.
        let y = unsafe { y.part(range.start, range.len()) };
        isa.run(UnaryTask { op, x: &x[range], y });
    });
}

struct UnaryTask<'a> {
    op: Unary,
    x: &'a [f32],
    y: &'a mut [f32],
}

impl SimdKernel for UnaryTask<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        if matches!(
            self.op,
            Unary::Log | Unary::Sin | Unary::Cos | Unary::Floor | Unary::Ceil | Unary::Round
        ) {
            return self.y.iter_mut().zip(self.x).for_each(|(y, &x)| *y = unary_number(self.op, x));
        }
        let len = self.x.len().min(self.y.len());
        let mut at = 0;
        while at < len {
            // SAFETY: `at + n`, or `at + CHAINS · LANES`, does not exceed the common length.
            unsafe {
                if len - at >= CHAINS * S::LANES {
                    self.vectors::<S, CHAINS>(s, at, S::LANES);
                    at += CHAINS * S::LANES;
                } else {
                    let n = (len - at).min(S::LANES);
                    self.vectors::<S, 1>(s, at, n);
                    at += n;
                }
            }
        }
    }
}

impl UnaryTask<'_> {
    /// `M` vectors from `at` on, the last of `n`.
    ///
    /// # Safety
    /// Both slices must have them.
    #[inline(always)]
    unsafe fn vectors<S: Simd, const M: usize>(&mut self, s: S, at: usize, n: usize) {
        // SAFETY: the caller's promise.
        unsafe {
            let v =
                unary_vector(Wide::<S, M>(s), self.op, load_many(s, self.x.as_ptr().add(at), n));
            store_many(s, self.y.as_mut_ptr().add(at), v, n);
        }
    }
}

#[inline(always)]
fn unary_vector<S: Arithmetic>(s: S, op: Unary, x: S::V) -> S::V {
    match op {
        Unary::Act(act) => activate(s, act, x),
        Unary::Exp => exp(s, x),
        Unary::Neg => s.mul(x, s.splat(-1.0)),
        Unary::Abs => s.abs(x),
        Unary::Sqrt => s.sqrt(x),
        Unary::Reciprocal => s.div(s.splat(1.0), x),
        Unary::Erf => erf(s, x),
        Unary::Log | Unary::Sin | Unary::Cos | Unary::Floor | Unary::Ceil | Unary::Round => {
            unreachable!("{op:?} has no vector form")
        }
    }
}

/// An operation that has no vector form, on one number: logarithm, sine and cosine in f64.
fn unary_number(op: Unary, x: f32) -> f32 {
    match op {
        Unary::Log => f64::from(x).ln() as f32,
        Unary::Sin => f64::from(x).sin() as f32,
        Unary::Cos => f64::from(x).cos() as f32,
        Unary::Floor => x.floor(),
        Unary::Ceil => x.ceil(),
        Unary::Round => x.round_ties_even(),
        Unary::Act(_)
        | Unary::Exp
        | Unary::Neg
        | Unary::Abs
        | Unary::Sqrt
        | Unary::Reciprocal
        | Unary::Erf => {
            unreachable!("{op:?} has a vector form")
        }
    }
}

impl<'a> BroadcastOperand<'a> {
    fn check(&self, what: &str, rows: usize, c: usize) {
        match self {
            BroadcastOperand::Full(data, ld) => check_matrix(what, data.len(), rows, c, *ld),
            BroadcastOperand::Scalar(_) => {}
            BroadcastOperand::Row(data) => {
                assert!(data.len() >= c, "{what}: {} values, needs {c}", data.len())
            }
            BroadcastOperand::Column(data) => {
                assert!(data.len() >= rows, "{what}: {} values, needs {rows}", data.len())
            }
            BroadcastOperand::Image(image) => image.check(what, rows, c),
        }
    }

    /// Whether the values are those of `[1, rows · c]` as well.
    fn is_flat(&self, c: usize) -> bool {
        match self {
            BroadcastOperand::Full(_, ld) => *ld == c,
            BroadcastOperand::Scalar(_) => true,
            _ => false,
        }
    }

    fn flattened(self, len: usize) -> BroadcastOperand<'a> {
        match self {
            BroadcastOperand::Full(data, _) => BroadcastOperand::Full(data, len),
            other => other,
        }
    }

    /// The values for `row` from column `col` on; one value means all columns.
    #[inline(always)]
    fn at(&self, row: usize, col: usize) -> Source {
        match self {
            BroadcastOperand::Full(data, ld) => {
                Source::Values(data.as_ptr().wrapping_add(row * ld + col))
            }
            BroadcastOperand::Scalar(x) => Source::One(*x),
            BroadcastOperand::Row(data) => Source::Values(data.as_ptr().wrapping_add(col)),
            BroadcastOperand::Column(data) => Source::One(data[row]),
            BroadcastOperand::Image(image) => {
                Source::Values(image.data.as_ptr().wrapping_add(image.start(row) + col))
            }
        }
    }
}

#[derive(Clone, Copy)]
enum Source {
    Values(*const f32),
    One(f32),
}

impl Source {
    /// `n ≤ LANES` values, `at` columns on.
    ///
    /// # Safety
    /// They must be readable.
    #[inline(always)]
    unsafe fn load<S: Simd>(self, s: S, at: usize, n: usize) -> S::V {
        match self {
            // SAFETY: the caller's promise.
            Source::Values(p) => unsafe { load_some(s, p.add(at), n) },
            Source::One(x) => s.splat(x),
        }
    }
}

/// y = op(a, b) over `[rows, c]`, rows of `y` `ldy` apart.
///
/// # Panics
/// When a slice is too short.
pub fn binary(
    isa: Isa,
    pool: &Pool,
    op: Binary,
    rows: usize,
    c: usize,
    a: BroadcastOperand,
    b: BroadcastOperand,
    y: &mut [f32],
    ldy: usize,
) {
    a.check("a", rows, c);
    b.check("b", rows, c);
    check_matrix("y", y.len(), rows, c, ldy);
    let len = rows * c;
    let y = SharedMut::new(y);
    if ldy == c && a.is_flat(c) && b.is_flat(c) {
        let flat = BinaryTask {
            op,
            rows: 0..1,
            cols: 0..len,
            a: a.flattened(len),
            b: b.flattened(len),
            y,
            ldy: len,
        };
        let tasks = tasks_for(pool, len);
        return pool.run(tasks, &|task, _| {
            isa.run(BinaryTask { cols: cut(len, tasks, 64, task), ..flat.clone() })
        });
    }
    let whole = BinaryTask { op, rows: 0..rows, cols: 0..c, a, b, y, ldy };
    let tasks = tasks_for(pool, len).min(rows.max(1));
    pool.run(tasks, &|task, _| {
        isa.run(BinaryTask { rows: cut(rows, tasks, 1, task), ..whole.clone() })
    });
}

#[derive(Clone)]
struct BinaryTask<'a> {
    op: Binary,
    rows: Range<usize>,
    cols: Range<usize>,
    a: BroadcastOperand<'a>,
    b: BroadcastOperand<'a>,
    y: SharedMut<'a, f32>,
    ldy: usize,
}

impl SimdKernel for BinaryTask<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for row in self.rows.clone() {
            let (a, b) = (self.a.at(row, self.cols.start), self.b.at(row, self.cols.start));
            // SAFETY: `binary` has checked all operands; tasks have disjoint rows or columns.
            let y = unsafe { self.y.part(row * self.ldy + self.cols.start, self.cols.len()) };
            let mut at = 0;
            while at < y.len() {
                let n = (y.len() - at).min(S::LANES);
                // SAFETY: as above, and `at + n ≤ y.len()`.
                unsafe {
                    let v = binary_vector(s, self.op, a.load(s, at, n), b.load(s, at, n));
                    store_some(s, y.as_mut_ptr().add(at), v, n);
                }
                at += n;
            }
        }
    }
}

#[inline(always)]
fn binary_vector<S: Simd>(s: S, op: Binary, a: S::V, b: S::V) -> S::V {
    match op {
        Binary::Add => s.add(a, b),
        Binary::Sub => s.sub(a, b),
        Binary::Mul => s.mul(a, b),
        Binary::Div => s.div(a, b),
        Binary::Max => s.max(a, b),
        Binary::Min => s.min(a, b),
        Binary::Pow => pow(s, a, b),
    }
}

/// a^b, lane by lane.
#[inline(always)]
fn pow<S: Simd>(s: S, a: S::V, b: S::V) -> S::V {
    let (mut bases, mut exponents) = ([0.0f32; 16], [0.0f32; 16]);
    // SAFETY: no vector has more than 16 lanes.
    unsafe {
        s.store(bases.as_mut_ptr(), a);
        s.store(exponents.as_mut_ptr(), b);
        for (base, exponent) in bases.iter_mut().zip(exponents) {
            *base = base.powf(exponent);
        }
        s.load(bases.as_ptr())
    }
}

/// y = a · gelu_erf(b) where a row of `x` is `[a, b]`, `c` values each.
///
/// # Panics
/// When a slice is too short.
pub fn geglu(
    isa: Isa,
    pool: &Pool,
    rows: usize,
    c: usize,
    x: &[f32],
    ldx: usize,
    y: &mut [f32],
    ldy: usize,
) {
    check_matrix("x", x.len(), rows, 2 * c, ldx);
    check_matrix("y", y.len(), rows, c, ldy);
    let tasks = tasks_for(pool, rows * c).min(rows.max(1));
    let y = SharedMut::new(y);
    pool.run(tasks, &|task, _| {
        for row in cut(rows, tasks, 1, task) {
            let (a, b) = x[row * ldx..][..2 * c].split_at(c);
            // SAFETY: tasks have disjoint rows.
            let y = unsafe { y.part(row * ldy, c) };
            isa.run(GegluRow { a, b, y });
        }
    });
}

struct GegluRow<'a> {
    a: &'a [f32],
    b: &'a [f32],
    y: &'a mut [f32],
}

impl SimdKernel for GegluRow<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        let mut at = 0;
        while at < self.y.len() {
            // SAFETY: all three have the length of `y`, and `at + n`, or `at + CHAINS · LANES`,
            // does not exceed it.
            unsafe {
                if self.y.len() - at >= CHAINS * S::LANES {
                    self.vectors::<S, CHAINS>(s, at, S::LANES);
                    at += CHAINS * S::LANES;
                } else {
                    let n = (self.y.len() - at).min(S::LANES);
                    self.vectors::<S, 1>(s, at, n);
                    at += n;
                }
            }
        }
    }
}

impl GegluRow<'_> {
    /// `M` vectors from `at` on, the last of `n`.
    ///
    /// # Safety
    /// All three slices must have them.
    #[inline(always)]
    unsafe fn vectors<S: Simd, const M: usize>(&mut self, s: S, at: usize, n: usize) {
        let w = Wide::<S, M>(s);
        // SAFETY: the caller's promise.
        unsafe {
            let gate = activate(w, Act::GeluErf, load_many(s, self.b.as_ptr().add(at), n));
            let v = w.mul(load_many(s, self.a.as_ptr().add(at), n), gate);
            store_many(s, self.y.as_mut_ptr().add(at), v, n);
        }
    }
}

/// The operands of [`affine`] besides `x`.
#[derive(Clone, Copy, Debug)]
pub struct Affine<'a> {
    /// One factor per column.
    pub scale: &'a [f32],
    /// One summand per column.
    pub shift: &'a [f32],
    /// A summand, and the distance between its rows.
    pub residual: Option<(&'a [f32], usize)>,
    /// A summand, the distance between its rows, and its factor per column.
    pub previous: Option<(&'a [f32], usize, &'a [f32])>,
}

/// y = x · scale + shift (+ previous · its scale) (+ residual) over `[rows, c]`.
///
/// # Panics
/// When a slice is too short.
pub fn affine(
    isa: Isa,
    pool: &Pool,
    rows: usize,
    c: usize,
    x: &[f32],
    ldx: usize,
    map: &Affine,
    y: &mut [f32],
    ldy: usize,
) {
    check_matrix("x", x.len(), rows, c, ldx);
    check_matrix("y", y.len(), rows, c, ldy);
    if let Some((residual, ld)) = map.residual {
        check_matrix("residual", residual.len(), rows, c, ld);
    }
    if let Some((previous, ld, _)) = map.previous {
        check_matrix("previous", previous.len(), rows, c, ld);
    }
    assert!(
        map.scale.len() >= c && map.shift.len() >= c,
        "a factor and a summand for each of {c} columns"
    );
    assert!(
        map.previous.is_none_or(|(_, _, scale)| scale.len() >= c),
        "a factor for each of {c} columns"
    );
    let tasks = tasks_for(pool, rows * c).min(rows.max(1));
    let y = SharedMut::new(y);
    pool.run(tasks, &|task, _| {
        isa.run(AffineTask { rows: cut(rows, tasks, 1, task), c, x, ldx, map, y, ldy })
    });
}

struct AffineTask<'a> {
    rows: Range<usize>,
    c: usize,
    x: &'a [f32],
    ldx: usize,
    map: &'a Affine<'a>,
    y: SharedMut<'a, f32>,
    ldy: usize,
}

impl SimdKernel for AffineTask<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Affine { scale, shift, residual, previous } = *self.map;
        for row in self.rows.clone() {
            let x = self.x[row * self.ldx..].as_ptr();
            let residual = residual.map(|(r, ld)| r[row * ld..].as_ptr());
            let previous = previous.map(|(p, ld, scale)| (p[row * ld..].as_ptr(), scale.as_ptr()));
            // SAFETY: `affine` has checked all operands; tasks have disjoint rows.
            let y = unsafe { self.y.part(row * self.ldy, self.c) };
            let mut at = 0;
            while at < y.len() {
                let n = (y.len() - at).min(S::LANES);
                // SAFETY: as above, and `at + n` is at most the number of columns.
                unsafe {
                    let load = |p: *const f32| load_some(s, p.add(at), n);
                    let mut v = s.fma(load(x), load(scale.as_ptr()), load(shift.as_ptr()));
                    if let Some((previous, scale)) = previous {
                        v = s.fma(load(previous), load(scale), v);
                    }
                    if let Some(residual) = residual {
                        v = s.add(v, load(residual));
                    }
                    store_some(s, y.as_mut_ptr().add(at), v, n);
                }
                at += n;
            }
        }
    }
}
