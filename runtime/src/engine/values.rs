//! The values of a program at a given batch size: their sizes, and the storage in which they lie.

use super::EngineError;
use cqc_proto::plan::{Alias, PlanValue, Program, ProgramKind, Source};
use cqc_proto::types::element_count;
use cqc_proto::{Bindings, DType, Op};

/// A value with known sizes: `rows` rows of `cols` elements, `ld` elements apart. It begins
/// `column` elements into the storage of the value `home`, which is often the value itself.
#[derive(Clone, Debug)]
pub(crate) struct Value {
    pub name: String,
    pub dtype: DType,
    pub shape: Vec<usize>,
    pub source: Source,
    pub home: usize,
    pub column: usize,
    pub rows: usize,
    pub cols: usize,
    pub ld: usize,
    /// The type in which it is stored if that is codes or bf16 ([`codes`](super::codes)). For the
    /// operators its type is still `dtype`.
    pub stored_as: Option<DType>,
}

impl Value {
    /// The number of elements.
    pub fn len(&self) -> usize {
        self.rows * self.cols
    }

    /// The size of an element in memory, in bytes.
    pub fn element_size(&self) -> usize {
        self.stored_as.unwrap_or(self.dtype).size()
    }

    /// The size of all elements in bytes, without gaps.
    pub fn bytes(&self) -> usize {
        self.len() * self.element_size()
    }

    /// Whether there are no gaps between rows.
    pub fn is_dense(&self) -> bool {
        self.ld == self.cols
    }

    /// The first byte in the storage of its home, and the number of bytes from there to its last
    /// element, gaps included.
    pub fn range(&self) -> (usize, usize) {
        let size = self.element_size();
        (self.column * size, ((self.rows - 1) * self.ld + self.cols) * size)
    }

    /// The distance between neighbours along each axis, in elements.
    pub fn strides(&self) -> Vec<usize> {
        let mut strides = vec![1; self.shape.len()];
        for axis in (0..self.shape.len().saturating_sub(1)).rev() {
            let next = axis + 1;
            let last = next == self.shape.len() - 1;
            strides[axis] = if last { self.ld } else { strides[next] * self.shape[next] };
        }
        strides
    }
}

/// Resolves the sizes and the homes of all values.
pub(crate) fn resolve(
    kind: ProgramKind,
    program: &Program,
    bindings: &Bindings,
) -> Result<Vec<Value>, EngineError> {
    let sized = |(i, v): (usize, &PlanValue)| {
        let error = || EngineError::Size { program: kind, name: v.name.clone(), ty: v.ty.clone() };
        let shape = v.ty.resolve(bindings).filter(|s| !s.contains(&0)).ok_or_else(error)?;
        let cols = shape.last().copied().unwrap_or(1);
        let rows = element_count(&shape).ok_or_else(error)? / cols;
        let (name, dtype, source) = (v.name.clone(), v.ty.dtype, v.source);
        Ok(Value {
            name,
            dtype,
            shape,
            source,
            home: i,
            column: 0,
            rows,
            cols,
            ld: cols,
            stored_as: None,
        })
    };
    let mut values =
        program.values.iter().enumerate().map(sized).collect::<Result<Vec<_>, EngineError>>()?;
    share_storage(program, &mut values);
    if !kind.is_step() {
        share_parts(program, bindings, &mut values);
    }
    Ok(values)
}

/// Places results of a prelude that are columns of another value within that value. No step reads
/// them, and they are only copied into the request's memory.
fn share_parts(program: &Program, bindings: &Bindings, values: &mut [Value]) {
    let mut members = vec![Vec::new(); values.len()];
    values.iter().enumerate().for_each(|(i, value)| members[value.home].push(i));
    let sharing = |v: usize| members[v].iter().copied();
    let mut read = vec![false; values.len()];
    program.steps.iter().flat_map(|s| s.inputs.iter().flatten()).for_each(|&v| read[v] = true);
    let mut parts = Vec::new();
    for step in &program.steps {
        let (Op::Slice { .. }, [Some(x)], &[y]) = (&step.op, &step.inputs[..], &step.outputs[..])
        else {
            continue;
        };
        let Some(Op::Slice { axes, starts, steps, .. }) = bind(&step.op, bindings) else {
            continue;
        };
        let Some(first) = starts.first().and_then(|d| usize::try_from(d.as_const()?).ok()) else {
            continue;
        };
        let is_columns = axes.len() == 1 && axes[0] + 1 == values[*x].shape.len() && steps == [1];
        let is_whole = values[*x].source == Source::Step && sharing(*x).eq([*x]);
        let only_kept = sharing(y).all(|z| !read[z] && values[z].cols == values[y].cols);
        if is_columns && is_whole && only_kept && values[y].home == y {
            parts.extend(sharing(y).map(|z| (*x, z, first)));
        }
    }
    for (x, part, first) in parts {
        (values[part].home, values[part].column, values[part].ld) = (x, first, values[x].ld);
    }
}

/// The sizes of the segments of the last axis of `value`. An empty list is one segment.
pub(crate) fn segment_sizes(segments: &[usize], value: &Value) -> Vec<usize> {
    if segments.is_empty() { vec![value.cols] } else { segments.to_vec() }
}

/// Sets the homes from the declared aliases, and of reshapes that need no copy.
fn share_storage(program: &Program, values: &mut [Value]) {
    let mut is_target = vec![false; values.len()];
    for (i, declared) in program.values.iter().enumerate() {
        let Some(alias) = &declared.alias else { continue };
        let (Alias::Same { of } | Alias::Columns { of, .. }) = alias;
        is_target[*of] = true;
        values[i].home = *of;
        if let Alias::Columns { offset, .. } = alias {
            values[i].column = offset.as_const().unwrap_or(0) as usize;
            // with one row there is no gap
            values[i].ld = if values[i].rows == 1 { values[i].cols } else { values[*of].cols };
        }
    }
    for step in &program.steps {
        let (Op::Reshape { .. }, [Some(x)], [y]) = (&step.op, &step.inputs[..], &step.outputs[..])
        else {
            continue;
        };
        let free = values[*y].home == *y && !is_target[*y];
        if free && values[*x].is_dense() && values[*x].len() == values[*y].len() {
            values[*y].home = values[*x].home;
            values[*y].column = values[*x].column;
        }
    }
}

/// The operator with its symbolic sizes replaced by numbers.
pub(crate) fn bind(op: &Op, bindings: &Bindings) -> Option<Op> {
    let all =
        |dims: &[cqc_proto::Dim]| dims.iter().map(|d| d.bind(bindings)).collect::<Option<Vec<_>>>();
    Some(match op {
        Op::Reshape { shape } => Op::Reshape { shape: all(shape)? },
        Op::Expand { shape } => Op::Expand { shape: all(shape)? },
        Op::Slice { axes, starts, ends, steps } => Op::Slice {
            axes: axes.clone(),
            starts: all(starts)?,
            ends: all(ends)?,
            steps: steps.clone(),
        },
        Op::Resize {
            sizes,
            scales,
            mode,
            coordinates,
            nearest,
            cubic_a,
            exclude_outside,
            antialias,
        } => Op::Resize {
            sizes: all(sizes)?,
            scales: scales.clone(),
            mode: *mode,
            coordinates: *coordinates,
            nearest: *nearest,
            cubic_a: *cubic_a,
            exclude_outside: *exclude_outside,
            antialias: *antialias,
        },
        _ => op.clone(),
    })
}
