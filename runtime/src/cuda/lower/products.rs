//! Convolutions, linear layers and products of matrices.

use super::super::fuse::rounding;
use super::{Outcome, Refusal, StepLowering, missing};
use crate::engine::prepare::products::{conv_shape, matmul_shape};
use cqc_kernels::cuda::{self, ElementType, Epilogue, Filter, FilterKind, Operand, PerImage, Tile};
use cqc_kernels::{Act, ConvShape, MatmulShape};
use cqc_proto::Op;
use cqc_proto::op::operand::{BIAS, GATE, RESIDUAL, ROW, SCALE, WEIGHTS, X};
use cqc_proto::plan::Source;

/// The operands of an epilogue.
struct EpilogueOperands {
    scale: Option<Operand>,
    bias: Option<Operand>,
    row: Option<(Operand, usize, usize)>,
    gate: Option<(Operand, usize, usize)>,
    residual: Option<Operand>,
}

fn per_image(part: &Option<(Operand, usize, usize)>) -> Option<PerImage<'_>> {
    let (values, stride, rows) = part.as_ref()?;
    Some(PerImage { values, stride: *stride, rows: *rows })
}

impl EpilogueOperands {
    fn tail(&self, act: Act) -> Epilogue<'_> {
        let (row, gate) = (per_image(&self.row), per_image(&self.gate));
        Epilogue {
            scale: self.scale.as_ref(),
            bias: self.bias.as_ref(),
            row,
            act,
            gate,
            residual: self.residual.as_ref(),
        }
    }
}

impl StepLowering<'_, '_, '_, '_> {
    pub(super) fn conv(&mut self, op: &Op) -> Outcome {
        let Op::Conv { act, .. } = op else { return Err(missing("not a convolution")) };
        let [x, w, y] =
            [self.need(X)?, self.need(WEIGHTS)?, self.step.outputs[0]].map(|v| self.value(v));
        let shape = conv_shape(op, x, w, y)
            .ok_or_else(|| missing("a convolution that is not over channels-last images"))?;
        shape.check().map_err(|e| missing(e.to_string()))?;
        self.product(&shape, false, *act)
    }

    pub(super) fn linear(&mut self, act: Act) -> Outcome {
        let [x, w, y] = [self.need(0)?, self.need(1)?, self.step.outputs[0]].map(|v| self.value(v));
        let (k, n) = (w.shape[0], w.shape[1]);
        if self.constant(WEIGHTS).is_some() {
            let shape = ConvShape { pads: [0; 4], ..ConvShape::same(1, 1, y.rows, k, n, 1) };
            return self.product(&shape, true, act);
        }
        if act != Act::None || (BIAS..=SCALE).any(|i| self.input(i).is_some()) {
            return Err(missing("a computed matrix with an epilogue"));
        }
        let (m, lda, ldb, ldy) = (y.rows, x.ld, w.ld, y.ld);
        self.plain_product(MatmulShape {
            batch: 1,
            m,
            k,
            n,
            lda,
            ldb,
            ldy,
            stride_a: 0,
            stride_b: 0,
            stride_y: m * ldy,
            transpose_b: false,
        })
    }

    /// The constant that input `i` is, as a whole.
    fn constant(&self, i: usize) -> Option<usize> {
        let value = self.value(self.input(i)?);
        match self.value(value.home).source {
            Source::Constant(c) if value.column == 0 => Some(c),
            _ => None,
        }
    }

    fn product(&mut self, shape: &ConvShape, linear: bool, act: Act) -> Outcome {
        let x = self.need(0)?;
        let constant = self.constant(WEIGHTS).ok_or_else(|| missing("computed weights"))?;
        let rounding = self.rounding_of_codes(x)?;
        let (taps, channels) = (shape.kh * shape.kw, shape.cin / shape.groups);
        let kind = match &rounding {
            Some(_) => FilterKind::Codes,
            None if shape.groups == 1 && Filter::takes_halves(shape.cin) => FilterKind::Halves,
            None => FilterKind::Direct,
        };
        let filter = self.constants.filter(constant, kind, linear, taps, channels, shape.cout)?;
        let x = if kind == FilterKind::Halves { self.wide(0)? } else { self.operand(x)? };
        let parts = self.parts()?;
        let target = self.target()?;
        let tile = Tile::choose(shape.out_rows(), shape.cout, self.multiprocessors);
        let rounding = rounding.as_ref().map(|parts| parts.each_ref());
        let tail = parts.tail(act);
        let splits =
            if tile == Tile::Small { self.lowered.placed.splits(self.step, kind) } else { 1 };
        let bytes = cuda::split_bytes(shape.out_rows(), shape.cout, splits);
        let sums =
            (splits > 1).then(|| self.scratch(bytes, ElementType::F32, bytes / size_of::<f32>()));
        let shared = sums.as_ref().map(|sums| (sums, splits));
        let state = self.lowered.state;
        let launches =
            cuda::conv(state, shape, &filter, &x, rounding, &tail, &target.output()?, tile, shared);
        launches.into_iter().for_each(|launch| self.launch(launch));
        Ok(())
    }

    /// The scale and the zero point of a value that is stored as codes.
    fn rounding_of_codes(&mut self, v: usize) -> Result<Option<[Operand; 2]>, Refusal> {
        if self.lowered.placed.types[v] != ElementType::U8 || self.value(v).stored_as.is_none() {
            return Ok(None);
        }
        let mut makers = self.lowered.placed.wirings.iter().filter(|w| w.outputs == [v]);
        let how = makers.find_map(rounding).ok_or_else(|| missing("codes without a scale"))?;
        Ok(Some([self.operand(how.scale)?, self.operand(how.zero_point)?]))
    }

    /// The epilogue of a product.
    fn parts(&mut self) -> Result<EpilogueOperands, Refusal> {
        Ok(EpilogueOperands {
            bias: self.dense(BIAS)?,
            row: self.per_image(ROW)?,
            gate: self.per_image(GATE)?,
            residual: self.maybe(RESIDUAL)?,
            scale: self.dense(SCALE)?,
        })
    }

    /// Input `i` as one row per image of the result: the rows, the distance between them, and the
    /// number of result rows per image.
    pub(super) fn per_image(
        &mut self,
        i: usize,
    ) -> Result<Option<(Operand, usize, usize)>, Refusal> {
        let Some(v) = self.input(i) else { return Ok(None) };
        let (row, y) = (self.value(v), self.value(self.step.outputs[0]));
        let operand = self.operand(v)?;
        if y.shape.len() < 2 {
            return Ok(Some((operand, 0, y.rows)));
        }
        let stride = if row.shape[0] == 1 { 0 } else { row.ld };
        Ok(Some((operand, stride, y.rows / y.shape[0])))
    }

    pub(super) fn matmul(&mut self) -> Outcome {
        let [a, b, y] = [self.need(0)?, self.need(1)?, self.step.outputs[0]].map(|v| self.value(v));
        let (ra, rb) = (a.shape.len(), b.shape.len());
        if ra < 2 || rb < 2 {
            return Err(missing("a product of vectors"));
        }
        let (k, n) = (a.cols, b.cols);
        if self.constant(WEIGHTS).is_some() && rb == 2 && a.rows == y.rows {
            let shape = ConvShape { pads: [0; 4], ..ConvShape::same(1, 1, y.rows, k, n, 1) };
            return self.product(&shape, true, Act::None);
        }
        self.plain_product(
            matmul_shape(a, b, y).ok_or_else(|| missing("batches that are repeated in part"))?,
        )
    }

    fn plain_product(&mut self, shape: MatmulShape) -> Outcome {
        let (a, b) = (self.need(0)?, self.need(1)?);
        let (a, b, y) = (self.operand(a)?, self.operand(b)?, self.operand(self.output)?);
        let launch = cuda::matmul(self.lowered.state, &shape, &a, &b, &y);
        self.launch(launch);
        Ok(())
    }
}
