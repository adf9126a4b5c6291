//! Runs single steps of a program.

use super::kernel::{AttentionInputs, Fill, Kernel, Move, PerImage, ProductWeights, Side, Tail};
use super::movement::{cast_elements, gather, select};
use super::program::{Location, PreparedProgram, PreparedStep};
use super::values::Value;
use super::wiring::ResultRounding;
use bytes::Bytes;
use cqc_kernels::arena::{Arena, Pod, Reader, cast_mut};
use cqc_kernels::{
    Activations, AttentionShape, BroadcastOperand, Conv, Epilogue, FakeQuant, GroupNorm, Isa,
    LayerNorm, Output, Pool,
};
use cqc_proto::op::operand::{
    AFFINE_MAP, AFFINE_PREVIOUS, AFFINE_RESIDUAL, BETA, BIAS, CODES, GAMMA, GATE, MASK, MODULATE,
    QKV, RESIDUAL, RESULT_CODES, ROUNDING, ROW, SCALE, X,
};
use cqc_proto::{Op, Tensor};

/// The arguments that all steps of a run share.
#[derive(Clone, Copy)]
pub(super) struct Run<'a> {
    pub isa: Isa,
    pub pool: &'a Pool,
    /// The memory of the request.
    pub request: &'a Arena,
    pub evaluation: usize,
}

/// The operands of a step by position.
struct Operands<'a> {
    step: &'a PreparedStep,
    locations: &'a [Location],
    reads: Reader<'a, 2>,
    request: &'a Arena,
    evaluation: usize,
}

impl<'a> Operands<'a> {
    fn get<T: Pod>(&self, i: usize) -> Option<&'a [T]> {
        let value = self.step.inputs.get(i).copied().flatten()?;
        Some(self.locations[value].read(self.reads, self.request, self.evaluation))
    }

    /// Input `i` of an operator that always has it.
    fn of<T: Pod>(&self, i: usize) -> &'a [T] {
        self.get(i).expect("the operator's rule demands this input")
    }

    fn f32(&self, i: usize) -> &'a [f32] {
        self.of(i)
    }

    fn rows(&self, i: usize, spec: PerImage) -> cqc_kernels::PerImage<'a> {
        cqc_kernels::PerImage { data: self.f32(i), stride: spec.stride, rows_per_image: spec.rows }
    }

    /// The rounding with the scale and zero point at the inputs `at`.
    fn rounding(&self, bits: u8, segments: &'a [usize], at: [usize; 2]) -> FakeQuant<'a> {
        let [scale, zero_point] = at.map(|i| self.f32(i));
        FakeQuant { bits, segments, scale, zero_point }
    }

    /// Operand `i` as codes.
    fn codes(&self, i: usize, ld: usize) -> Activations<'a> {
        let [scale, zero_point] = CODES[i].map(|at| self.f32(at));
        Activations { codes: self.of(i), ld, scale, zero_point }
    }

    /// The output in the format in which the result is stored.
    fn target<'y>(&self, y: &'y mut [u8]) -> Output<'y>
    where
        'a: 'y,
    {
        match &self.step.rounding {
            Some(ResultRounding::Codes { bits, sizes, stored }) => {
                match (self.rounding(*bits, sizes, RESULT_CODES), stored) {
                    (how, true) => Output::Codes(y, how),
                    (how, false) => Output::Rounded(cast_mut(y), how),
                }
            }
            Some(ResultRounding::Bf16 { stored }) => bf16_target(y, *stored),
            None => Output::Values(cast_mut(y)),
        }
    }

    fn epilogue(&self, tail: &Tail) -> Epilogue<'a> {
        Epilogue {
            scale: self.get(SCALE),
            bias: self.get(BIAS),
            row: tail.row.map(|spec| self.rows(ROW, spec)),
            act: tail.act,
            gate: tail.gate.map(|spec| self.rows(GATE, spec)),
            residual: tail.residual.map(|ld| (self.f32(RESIDUAL), ld)),
        }
    }
}

fn bf16_target(y: &mut [u8], stored: bool) -> Output<'_> {
    if stored { Output::Bf16(cast_mut(y)) } else { Output::RoundedBf16(cast_mut(y)) }
}

/// Runs step `index`. It allocates memory only if the step runs through the definition.
///
/// # Errors
/// A description of the data error: an index outside of an axis, or an error of the definition.
pub(super) fn run_step(
    program: &PreparedProgram,
    index: usize,
    arena: &mut Arena,
    run: Run,
) -> Result<(), String> {
    let step = &program.steps[index];
    match &step.kernel {
        Kernel::Nothing => return Ok(()),
        Kernel::Reference(op) => return run_reference(program, step, op, arena, run),
        _ => {}
    }
    let y = program.locations[step.outputs[0]].written().expect("results lie in the arena");
    let (reads, [y, scratch]) =
        arena.split([y, step.scratch]).expect("the layout keeps result and scratch apart");
    let locations = &program.locations;
    let operands =
        Operands { step, locations, reads, request: run.request, evaluation: run.evaluation };
    match &step.kernel {
        Kernel::Copy { size, fill, moves } => copy(*size, *fill, moves, &operands, y, run.pool),
        Kernel::Gather { outer, size, inner_bytes, indices } => {
            let (data, places) = (operands.of(0), operands.of(1));
            return gather([*outer, *size, *inner_bytes], data, places, *indices, y);
        }
        Kernel::Cast { from, to } => cast_elements(*from, *to, operands.of(0), y),
        Kernel::Where { size, shape, strides } => {
            select(*size, shape, strides, operands.of(0), operands.of(1), operands.of(2), y);
        }
        Kernel::FakeQuant { rows, bits, segments, stored, ldx, ldy } => {
            let (how, x) = (operands.rounding(*bits, segments, ROUNDING), operands.f32(X));
            match stored {
                true => cqc_kernels::quantize(run.isa, run.pool, *rows, x, *ldx, &how, y, *ldy),
                false => cqc_kernels::fake_quant(
                    run.isa,
                    run.pool,
                    *rows,
                    x,
                    *ldx,
                    &how,
                    cast_mut(y),
                    *ldy,
                ),
            }
        }
        Kernel::Attention { shape, inputs } => {
            attend(shape, inputs, &operands, y, cast_mut(scratch), run)
        }
        Kernel::RoundBf16 { rows, c, stored, ldx, ldy } => {
            let y = bf16_target(y, *stored);
            cqc_kernels::round_bf16(run.isa, run.pool, *rows, *c, operands.f32(0), *ldx, y, *ldy);
        }
        Kernel::Conv { conv, weights, tail, ldx, ldy } => {
            convolve(conv, weights, tail, [*ldx, *ldy], &operands, operands.target(y), run.pool);
        }
        Kernel::Linear { .. } => multiply(&step.kernel, &operands, operands.target(y), run),
        Kernel::GroupNorm { .. } | Kernel::LayerNorm { .. } | Kernel::RmsNorm { .. } => {
            normalise(&step.kernel, &operands, operands.target(y), run);
        }
        kernel => run_f32(kernel, &operands, cast_mut(y), cast_mut(scratch), run),
    }
    Ok(())
}

fn convolve(
    conv: &Conv,
    weights: &ProductWeights,
    tail: &Tail,
    [ldx, ldy]: [usize; 2],
    operands: &Operands,
    y: Output,
    pool: &Pool,
) {
    let epilogue = operands.epilogue(tail);
    match weights {
        ProductWeights::F32(packed) => {
            conv.run(pool, operands.f32(X), ldx, packed, &epilogue, y, ldy)
        }
        ProductWeights::Codes { packed, .. } => {
            conv.run_codes(pool, &operands.codes(X, ldx), packed, &epilogue, y, ldy);
        }
        ProductWeights::Bf16(packed) => {
            conv.run_bf16(pool, operands.of(X), ldx, packed, &epilogue, y, ldy)
        }
    }
}

/// Runs a linear layer.
fn multiply(kernel: &Kernel, operands: &Operands, y: Output, run: Run) {
    let Kernel::Linear { m, k, n, weights, tail, ldx, ldy } = kernel else {
        unreachable!("run_step runs the others")
    };
    let (isa, pool, epilogue) = (run.isa, run.pool, operands.epilogue(tail));
    let (m, k, n, ldx, ldy) = (*m, *k, *n, *ldx, *ldy);
    match weights {
        ProductWeights::F32(packed) => {
            cqc_kernels::linear(
                isa,
                pool,
                m,
                k,
                n,
                operands.f32(X),
                ldx,
                packed,
                &epilogue,
                y,
                ldy,
            );
        }
        ProductWeights::Codes { packed, .. } => {
            let x = operands.codes(X, ldx);
            cqc_kernels::linear_codes(isa, pool, m, k, n, &x, packed, &epilogue, y, ldy);
        }
        ProductWeights::Bf16(packed) => {
            cqc_kernels::linear_bf16(
                isa,
                pool,
                m,
                k,
                n,
                operands.of(X),
                ldx,
                packed,
                &epilogue,
                y,
                ldy,
            );
        }
    }
}

fn attend(
    shape: &AttentionShape,
    inputs: &AttentionInputs,
    operands: &Operands,
    y: &mut [u8],
    scratch: &mut [f32],
    run: Run,
) {
    let (isa, pool, mask) = (run.isa, run.pool, operands.get(MASK));
    match inputs {
        AttentionInputs::F32 => {
            let [q, k, v] = QKV.map(|i| operands.f32(i));
            cqc_kernels::attention(isa, pool, shape, q, k, v, mask, cast_mut(y), scratch);
        }
        AttentionInputs::Codes(_) => {
            let distances = [shape.ldq, shape.ldk, shape.ldv];
            let [q, k, v] = QKV.map(|i| operands.codes(i, distances[i]));
            cqc_kernels::attention_codes(
                isa,
                pool,
                shape,
                [&q, &k, &v],
                mask,
                operands.target(y),
                scratch,
            );
        }
        AttentionInputs::Bf16 => {
            let qkv = QKV.map(|i| operands.of(i));
            cqc_kernels::attention_bf16(isa, pool, shape, qkv, mask, operands.target(y), scratch);
        }
    }
}

/// Runs the remaining kernels, whose operands are all f32.
fn run_f32(kernel: &Kernel, operands: &Operands, y: &mut [f32], scratch: &mut [f32], run: Run) {
    let (isa, pool) = (run.isa, run.pool);
    let x = operands.f32(X);
    match kernel {
        Kernel::MatMul(shape) => {
            cqc_kernels::matmul_batched(isa, pool, shape, x, operands.f32(1), y, scratch)
        }
        Kernel::Softmax { rows, cols } => cqc_kernels::softmax(isa, pool, *rows, *cols, x, y),
        Kernel::Unary(op) => cqc_kernels::unary(isa, pool, *op, x, y),
        Kernel::Binary { op, rows, c, sides, ldy } => {
            let (first, second) = scratch.split_at_mut(if matches!(sides[0], Side::Expanded(_)) {
                (rows * c).next_multiple_of(16)
            } else {
                0
            });
            let a = side(&sides[0], operands, 0, *c, first, pool);
            let b = side(&sides[1], operands, 1, *c, second, pool);
            cqc_kernels::binary(isa, pool, *op, *rows, *c, a, b, y, *ldy);
        }
        Kernel::Geglu { rows, c, ldx, ldy } => {
            cqc_kernels::geglu(isa, pool, *rows, *c, x, *ldx, y, *ldy)
        }
        Kernel::Affine { rows, c, ldx, residual, previous, ldy } => {
            let [scale, shift] = AFFINE_MAP.map(|i| operands.f32(i));
            let residual = residual.map(|ld| (operands.f32(AFFINE_RESIDUAL), ld));
            let [before, factor] = AFFINE_PREVIOUS;
            let previous = previous.map(|ld| (operands.f32(before), ld, operands.f32(factor)));
            let map = cqc_kernels::Affine { scale, shift, residual, previous };
            cqc_kernels::affine(isa, pool, *rows, *c, x, *ldx, &map, y, *ldy);
        }
        other => unreachable!("run_step runs {other:?}"),
    }
}

fn normalise(kernel: &Kernel, operands: &Operands, y: Output, run: Run) {
    let (x, gamma, beta) = (operands.f32(X), operands.get(GAMMA), operands.get(BETA));
    match *kernel {
        Kernel::GroupNorm { n, hw, c, groups, eps, act, ldx, ldy } => {
            let shape = GroupNorm { n, hw, c, groups, eps, gamma, beta, act };
            cqc_kernels::group_norm(run.isa, run.pool, &shape, x, ldx, y, ldy);
        }
        Kernel::LayerNorm { rows, c, eps, modulate, ldx, ldy } => {
            let [at_scale, at_shift] = MODULATE;
            let modulate = modulate.map(|[scale, shift]| {
                (operands.rows(at_scale, scale), operands.rows(at_shift, shift))
            });
            let shape = LayerNorm { rows, c, eps, gamma, beta, modulate };
            cqc_kernels::layer_norm(run.isa, run.pool, &shape, x, ldx, y, ldy);
        }
        Kernel::RmsNorm { rows, c, eps, ldx, ldy } => {
            let shape = LayerNorm { rows, c, eps, gamma, beta: None, modulate: None };
            cqc_kernels::rms_norm(run.isa, run.pool, &shape, x, ldx, y, ldy);
        }
        _ => unreachable!("run_step runs the others"),
    }
}

fn side<'a>(
    side: &Side,
    operands: &Operands<'a>,
    i: usize,
    c: usize,
    scratch: &'a mut [f32],
    pool: &Pool,
) -> BroadcastOperand<'a> {
    let x = operands.f32(i);
    match side {
        Side::Full(ld) => BroadcastOperand::Full(x, *ld),
        Side::Scalar => BroadcastOperand::Scalar(x[0]),
        Side::Row => BroadcastOperand::Row(x),
        Side::Column => BroadcastOperand::Column(x),
        Side::Image(spec) => BroadcastOperand::Image(operands.rows(i, *spec)),
        Side::Expanded(copy) => {
            let scratch = &mut scratch[..copy_target_len(copy)];
            cqc_kernels::copy_strided(
                pool,
                &copy.shape,
                x,
                copy.x_offset,
                &copy.x_strides,
                scratch,
                &copy.y_strides,
            );
            BroadcastOperand::Full(scratch, c)
        }
    }
}

/// One past the last element that a copy writes.
fn copy_target_len(copy: &Move) -> usize {
    let last: usize = copy.shape.iter().zip(&copy.y_strides).map(|(n, s)| (n - 1) * s).sum();
    copy.y_offset + last + 1
}

fn copy(
    size: usize,
    fill: Option<Fill>,
    moves: &[Move],
    operands: &Operands,
    y: &mut [u8],
    pool: &Pool,
) {
    match size {
        1 => copy_as::<u8>(fill, moves, operands, y, pool),
        2 => copy_as::<u16>(fill, moves, operands, y, pool),
        4 => copy_as::<u32>(fill, moves, operands, y, pool),
        _ => copy_as::<u64>(fill, moves, operands, y, pool),
    }
}

fn copy_as<T: Pod>(
    fill: Option<Fill>,
    moves: &[Move],
    operands: &Operands,
    y: &mut [u8],
    pool: &Pool,
) {
    let y: &mut [T] = cast_mut(y);
    match fill {
        Some(Fill::Zero) => y.fill(T::default()),
        Some(Fill::Input(i)) => y.fill(operands.of::<T>(i)[0]),
        None => {}
    }
    for m in moves {
        let (x, y) = (operands.of::<T>(m.input), &mut y[m.y_offset..]);
        cqc_kernels::copy_strided(pool, &m.shape, x, m.x_offset, &m.x_strides, y, &m.y_strides);
    }
}

fn run_reference(
    program: &PreparedProgram,
    step: &PreparedStep,
    op: &Op,
    arena: &mut Arena,
    run: Run,
) -> Result<(), String> {
    let tensor = |v: Option<usize>| {
        v.map(|v| {
            read_tensor(
                &program.values[v],
                &program.locations[v],
                arena,
                run.request,
                run.evaluation,
            )
        })
    };
    let inputs: Vec<Option<Tensor>> = step.inputs.iter().copied().map(tensor).collect();
    let inputs: Vec<Option<&Tensor>> = inputs.iter().map(Option::as_ref).collect();
    let outputs = cqc_kernels::reference::eval(op, &inputs).map_err(|e| e.to_string())?;
    for (tensor, &v) in outputs.iter().zip(&step.outputs) {
        write_bytes(&program.values[v], &program.locations[v], tensor.bytes(), arena);
    }
    Ok(())
}

/// A value as a tensor of its own. A value that is stored as codes or bf16 keeps that type.
pub(super) fn read_tensor(
    value: &Value,
    location: &Location,
    arena: &Arena,
    request: &Arena,
    evaluation: usize,
) -> Tensor {
    let bytes: Bytes = match location {
        Location::Table { bytes, row } => bytes.slice(evaluation * row..(evaluation + 1) * row),
        Location::Constant(bytes) => bytes.clone(),
        _ => dense(value, location.get(arena, request, evaluation)).into(),
    };
    Tensor::new(value.stored_as.unwrap_or(value.dtype), value.shape.clone(), bytes)
        .expect("locations are as large as their values")
}

/// The rows of a value without the gaps between them.
fn dense(value: &Value, bytes: &[u8]) -> Vec<u8> {
    let (row, ld) = (value.cols * value.element_size(), value.ld * value.element_size());
    if row == ld {
        return bytes.to_vec();
    }
    let mut dense = Vec::with_capacity(bytes.len().div_ceil(ld) * row);
    bytes.chunks(ld).for_each(|chunk| dense.extend_from_slice(&chunk[..row]));
    dense
}

/// Writes the elements of a value, given without gaps.
pub(super) fn write_bytes(value: &Value, location: &Location, bytes: &[u8], arena: &mut Arena) {
    let span = location.written().expect("results lie in the arena");
    let target: &mut [u8] = arena.get_mut(span).expect("the layout lies in the arena");
    let (row, ld) = (value.cols * value.dtype.size(), value.ld * value.dtype.size());
    for (target, source) in target.chunks_mut(ld).zip(bytes.chunks(row)) {
        target[..row].copy_from_slice(source);
    }
}
