//! Convolutions, linear layers, products of matrices.

use super::args::{ConvArgs, MAX_SEGMENTS, MatmulArgs, RawEpilogue, RawPerImage, RawTarget};
use super::launch::{Operands, blocks, int};
use super::{ElementType, EntryPoint, Filter, FilterKind, Launch, Operand, State, list};
use crate::{Act, ConvShape, MatmulShape};

/// One row per image, `stride` elements apart (0 = the same for all), for `rows` rows of the
/// result.
#[derive(Clone, Copy, Debug)]
pub struct PerImage<'a> {
    /// One row of values per image.
    pub values: &'a Operand,
    /// Elements from the row of one image to the next.
    pub stride: usize,
    /// Result rows that belong to one image.
    pub rows: usize,
}

/// y = residual + gate · act(scale · sum + bias + row), each part optional.
#[derive(Clone, Copy, Debug, Default)]
pub struct Epilogue<'a> {
    /// A factor per column.
    pub scale: Option<&'a Operand>,
    /// A summand per column.
    pub bias: Option<&'a Operand>,
    /// Added per image.
    pub row: Option<PerImage<'a>>,
    /// Applied after the additions.
    pub act: Act,
    /// Multiplied per image.
    pub gate: Option<PerImage<'a>>,
    /// Added last, of the size of the result.
    pub residual: Option<&'a Operand>,
}

/// How values are rounded: per segment of the columns a scale and a zero point, as
/// [`FakeQuant`](crate::FakeQuant).
#[derive(Clone, Copy, Debug)]
pub struct Rounding<'a> {
    /// Bits of a code, 1 to 8.
    pub bits: u8,
    /// Sizes, which add up to the columns.
    pub segments: &'a [usize],
    /// One per segment.
    pub scale: &'a Operand,
    /// One per segment.
    pub zero_point: &'a Operand,
}

/// Where results go: as floats, as floats that were rounded, or, where `y` has bytes, as codes.
#[derive(Clone, Copy, Debug)]
pub struct Output<'a> {
    /// Floats, or codes.
    pub y: &'a Operand,
    /// How they are rounded.
    pub rounding: Option<Rounding<'a>>,
}

impl<'a> Output<'a> {
    /// Results as they are.
    pub fn plain(y: &'a Operand) -> Output<'a> {
        Output { y, rounding: None }
    }

    /// Whether kernels may store eight of `cols` columns at once.
    pub(super) fn takes_eight(&self, cols: usize) -> bool {
        let segments = self.rounding.iter().flat_map(|how| how.segments);
        self.y.stores_eight() && segments.chain([&cols]).all(|n| n.is_multiple_of(8))
    }

    pub(super) fn raw(&self, operands: &mut Operands, rows: usize, cols: usize) -> RawTarget {
        let y = operands.rows("y", self.y, rows, cols);
        let codes = self.y.element == ElementType::U8;
        let Some(how) = &self.rounding else {
            assert!(self.y.element.is_float(), "y: {:?} without rounding", self.y.element);
            return RawTarget { y, segments: 1, ..RawTarget::default() };
        };
        assert!(codes || self.y.element.is_float(), "y: rounded to {:?}", self.y.element);
        assert!((1..=8).contains(&how.bits), "{} bits", how.bits);
        RawTarget {
            y,
            scale: operands.rows("scale", how.scale, 1, how.segments.len()),
            zero_point: operands.rows("zero point", how.zero_point, 1, how.segments.len()),
            mode: if codes { 1 } else { 2 },
            bits: i32::from(how.bits),
            segments: int(how.segments.len()),
            unused: 0,
            ends: ends(how.segments, cols),
        }
    }
}

/// Where segments end.
fn ends(segments: &[usize], cols: usize) -> [i32; MAX_SEGMENTS] {
    assert!(
        segments.len() <= MAX_SEGMENTS,
        "{} segments, kernels know {MAX_SEGMENTS}",
        segments.len()
    );
    assert_eq!(segments.iter().sum::<usize>(), cols, "segments of {cols} columns");
    let (mut ends, mut end) = ([0; MAX_SEGMENTS], 0);
    for (at, &size) in ends.iter_mut().zip(segments) {
        end += size;
        *at = int(end);
    }
    ends
}

impl PerImage<'_> {
    pub(super) fn raw(
        &self,
        what: &str,
        operands: &mut Operands,
        rows: usize,
        cols: usize,
    ) -> RawPerImage {
        assert!(self.rows > 0, "{what}: no rows per image");
        let images = if self.stride == 0 { 1 } else { rows.div_ceil(self.rows) };
        let seen = Operand { ld: self.stride.max(cols), ..self.values.clone() };
        assert!(
            self.stride == 0 || self.stride >= cols,
            "{what}: rows of {cols} elements, {} apart",
            self.stride
        );
        RawPerImage {
            values: operands.rows(what, &seen, images, cols),
            stride: int(self.stride),
            rows: int(self.rows),
        }
    }
}

impl Epilogue<'_> {
    fn raw(&self, operands: &mut Operands, rows: usize, cols: usize) -> RawEpilogue {
        RawEpilogue {
            scale: operands.maybe("scale", self.scale, 1, cols),
            bias: operands.maybe("bias", self.bias, 1, cols),
            residual: operands.maybe("residual", self.residual, rows, cols),
            row: self.row.map_or_else(Default::default, |r| r.raw("row", operands, rows, cols)),
            gate: self.gate.map_or_else(Default::default, |r| r.raw("gate", operands, rows, cols)),
            act: act(self.act),
            unused: 0,
        }
    }
}

/// Number of an activation in the sources.
pub(super) fn act(act: Act) -> i32 {
    match act {
        Act::None => 0,
        Act::Silu => 1,
        Act::GeluErf => 2,
        Act::GeluTanh => 3,
        Act::QuickGelu => 4,
        Act::Relu => 5,
        Act::Sigmoid => 6,
        Act::Tanh => 7,
    }
}

/// Rows and columns of a block's tile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tile {
    /// 64 by 64.
    Small,
    /// 128 by 128.
    Large,
}

impl Tile {
    /// The large one where its blocks keep all multiprocessors busy.
    pub fn choose(rows: usize, cols: usize, multiprocessors: usize) -> Tile {
        let large = rows.div_ceil(128) * cols.div_ceil(128);
        if cols > 64 && large >= multiprocessors { Tile::Large } else { Tile::Small }
    }

    fn size(self) -> usize {
        match self {
            Tile::Small => 64,
            Tile::Large => 128,
        }
    }

    /// Shared memory of a block: four stages of tiles of 64-byte rows, or sums in f32.
    fn shared_bytes(self) -> usize {
        let size = self.size();
        (4 * 2 * size * 64).max(size * (size + 4) * 4)
    }
}

/// How many blocks share the depth of a tile: several where tiles are too few to keep all
/// multiprocessors busy and each block still has 8 steps of it. `depth` is taps · channels of one
/// segment; the sums are then kept in scratch ([`split_bytes`]).
pub fn splits(
    rows: usize,
    cols: usize,
    depth: usize,
    kind: FilterKind,
    multiprocessors: usize,
) -> usize {
    let per_step = if kind == FilterKind::Codes { 64 } else { 32 };
    let tiles = rows.div_ceil(64) * cols.div_ceil(64);
    if kind == FilterKind::Direct || !cols.is_multiple_of(8) || 2 * tiles > multiprocessors {
        return 1;
    }
    (multiprocessors / tiles).min(depth.div_ceil(per_step) / 8).clamp(1, 16)
}

/// Bytes of scratch for the sums of so many parts of the depth.
pub fn split_bytes(rows: usize, cols: usize, splits: usize) -> usize {
    if splits > 1 { splits * rows * cols * size_of::<f32>() } else { 0 }
}

/// y = tail(x ∗ filter) over NHWC, pixels of x `x.ld` elements apart. A linear layer is the 1×1
/// convolution of an image of one row.
///
/// `rounding` is how codes of x were made: a scale and a zero point per segment of the filter.
/// Padding reads zero.
///
/// With `shared`, f32 without gaps, so many blocks share the depth of each small tile ([`splits`]),
/// their sums are kept there, and a second launch adds them: in fixed order, so that results are
/// the same every time. It is taken where the result can be stored eight columns at once, the
/// filter has one segment and `tile` is small.
///
/// # Panics
/// When an operand is too short, x is not of the type that the filter is for, or (but for
/// [`FilterKind::Direct`]) not [wide](Operand::is_wide).
pub fn conv(
    state: &State,
    shape: &ConvShape,
    filter: &Filter,
    x: &Operand,
    rounding: Option<[&Operand; 2]>,
    tail: &Epilogue,
    output: &Output,
    tile: Tile,
    shared: Option<(&Operand, usize)>,
) -> Vec<Launch> {
    shape.check().expect("the shape is that of a convolution");
    let (rows, segments) = (shape.out_rows(), &filter.segments);
    let have = (filter.taps, segments.iter().sum::<usize>(), filter.cout);
    assert_eq!(
        have,
        (shape.kh * shape.kw, shape.cin / shape.groups, shape.cout),
        "a filter for {shape:?}"
    );
    let mut operands = Operands::new(state);
    operands.keep(&filter.memory);
    let count = segments.len();
    let codes = filter.kind == FilterKind::Codes;
    assert_eq!(codes, rounding.is_some(), "codes, and only they, have a scale");
    match filter.kind {
        FilterKind::Codes => {
            assert!(x.element == ElementType::U8 && shape.groups == 1, "codes of one group")
        }
        FilterKind::Halves => {
            assert!(x.element == ElementType::F16 && shape.groups == 1, "fp16 of one group")
        }
        FilterKind::Direct => assert!(x.element.is_float(), "x: {:?}", x.element),
    }
    assert!(
        filter.kind == FilterKind::Direct || x.is_wide(),
        "rows of x are not aligned to 16 bytes"
    );
    let [x_scale, x_zero_point] = rounding.map_or_else(Default::default, |parts| {
        parts.map(|part| operands.rows("scale and zero point of x", part, 1, count))
    });
    let window =
        [[shape.kh, shape.kw], shape.stride, [shape.pads[0], shape.pads[1]], shape.dilation];
    let mut args = ConvArgs {
        state: operands.state_address(),
        x: operands.rows("x", x, shape.n * shape.h * shape.w, shape.cin),
        w: filter.memory.address,
        x_scale,
        x_zero_point,
        w_scale: filter.memory.address + filter.scales_at as u64,
        w_sums: filter.memory.address + filter.sums_at as u64,
        epilogue: tail.raw(&mut operands, rows, shape.cout),
        y: output.raw(&mut operands, rows, shape.cout),
        sizes: [shape.h, shape.w, shape.cin, shape.cout].map(int),
        upsample: int(shape.upsample),
        out_h: int(shape.out_h()),
        out_w: int(shape.out_w()),
        rows: int(rows),
        groups: int(shape.groups),
        segments: int(count),
        ends: ends(segments, shape.cin / shape.groups),
        ..ConvArgs::default()
    };
    let reads_eight = tail.residual.is_none_or(|r| r.reads_eight());
    args.wide = i32::from(reads_eight && output.takes_eight(shape.cout));
    let shared = shared.filter(|(_, splits)| {
        *splits > 1
            && args.wide == 1
            && count == 1
            && tile == Tile::Small
            && filter.kind != FilterKind::Direct
    });
    args.splits = shared.map_or(1, |(_, splits)| int(splits));
    if let Some((scratch, splits)) = shared {
        let elements = splits * rows * shape.cout;
        assert!(scratch.element == ElementType::F32 && scratch.is_wide(), "sums are aligned f32");
        assert!(scratch.per_step == 0 && scratch.per_slot == 0, "scratch stays where it is");
        args.partial =
            operands.rows("sums", &Operand { ld: elements, ..scratch.clone() }, 1, elements).data;
    }
    args.window.iter_mut().zip(window.iter().flatten()).for_each(|(to, &from)| *to = int(from));
    if filter.kind == FilterKind::Direct {
        return vec![operands.launch(&list::conv_direct, [blocks(rows * shape.cout), 1], 0, args)];
    }
    let splits = args.splits as usize;
    let grid = [rows.div_ceil(tile.size()), shape.cout.div_ceil(tile.size()) * splits];
    let sum = (splits > 1).then(|| {
        let groups = blocks(rows * shape.cout / 8);
        operands.clone().launch(&list::conv_sum, [groups, 1], 0, args)
    });
    let product = operands.launch(kernel(codes, count, tile), grid, tile.shared_bytes(), args);
    [product].into_iter().chain(sum).collect()
}

fn kernel(codes: bool, segments: usize, tile: Tile) -> &'static EntryPoint {
    match (codes, segments, tile) {
        (false, _, Tile::Small) => &list::conv_f16_64,
        (false, _, Tile::Large) => &list::conv_f16_128,
        (true, 1, Tile::Small) => &list::conv_codes_64,
        (true, 1, Tile::Large) => &list::conv_codes_128,
        (true, _, Tile::Small) => &list::conv_segments_64,
        (true, _, Tile::Large) => &list::conv_segments_128,
    }
}

/// y = a · b for a batch of computed matrices of floats, rows as far apart as `shape` says.
///
/// # Panics
/// When an operand is too short, or `shape` transposes b.
pub fn matmul(state: &State, shape: &MatmulShape, a: &Operand, b: &Operand, y: &Operand) -> Launch {
    assert!(!shape.transpose_b, "b as it is");
    let mut operands = Operands::new(state);
    let last = |stride: usize| (shape.batch - 1) * stride;
    // all matrices of a batch are checked as if they were one block of rows
    let mut block =
        |what: &str, operand: &Operand, stride: usize, rows: usize, cols: usize, ld: usize| {
            let elements = last(stride) + (rows - 1) * ld + cols;
            let raw =
                operands.rows(what, &Operand { ld: elements, ..operand.clone() }, 1, elements);
            super::args::RawOperand { ld: int(ld), ..raw }
        };
    let (m, k, n) = (shape.m, shape.k, shape.n);
    let a = block("a", a, shape.stride_a, m, k, shape.lda);
    let b = block("b", b, shape.stride_b, k, n, shape.ldb);
    assert!(y.element.is_float(), "y: {:?}", y.element);
    let y = block("y", y, shape.stride_y, m, n, shape.ldy);
    let strides = [shape.stride_a, shape.stride_b, shape.stride_y].map(|s| s as i64);
    let args = MatmulArgs {
        state: operands.state_address(),
        a,
        b,
        y,
        strides,
        sizes: [shape.batch, m, k, n].map(int),
    };
    operands.launch(&list::matmul, [blocks(shape.batch * m * n), 1], 0, args)
}
