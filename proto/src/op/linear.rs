//! Shape rules of products (matmul, linear layers, convolutions) and of pooling.

use super::*;

/// An activation that is fused with the product or normalisation before it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Act {
    /// The identity: x
    #[default]
    None,
    /// x · sigmoid(x)
    Silu,
    /// x/2 · (1 + erf(x/√2))
    GeluErf,
    /// x/2 · (1 + tanh(√(2/π) · (x + 0.044715 x³)))
    GeluTanh,
    /// x · sigmoid(1.702 x)
    QuickGelu,
    /// max(x, 0); NaN stays NaN
    Relu,
    /// 1 / (1 + exp(−x))
    Sigmoid,
    /// tanh(x)
    Tanh,
}

impl Act {
    /// All activations, for tests and tables.
    pub const ALL: [Act; 8] = [
        Act::None,
        Act::Silu,
        Act::GeluErf,
        Act::GeluTanh,
        Act::QuickGelu,
        Act::Relu,
        Act::Sigmoid,
        Act::Tanh,
    ];
}

/// The position of the channel axis.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ConvLayout {
    /// N, C, spatial axes, as in ONNX.
    #[default]
    ChannelsFirst,
    /// N, spatial axes, C.
    ChannelsLast,
}

impl ConvLayout {
    /// The channel axis of a tensor of that rank, which must be at least 2.
    pub fn channel_axis(self, rank: usize) -> usize {
        match self {
            ConvLayout::ChannelsFirst => 1,
            ConvLayout::ChannelsLast => rank - 1,
        }
    }

    /// The spatial axes of a tensor of that rank.
    pub fn spatial_axes(self, rank: usize) -> std::ops::Range<usize> {
        match self {
            ConvLayout::ChannelsFirst => 2..rank,
            ConvLayout::ChannelsLast => 1..rank - 1,
        }
    }
}

/// The function of a pooling window.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs)]
pub enum PoolKind {
    Max,
    Average,
}

pub(super) fn infer(op: &Op, inputs: &InputTypes) -> Inferred {
    match op {
        Op::MatMul => matmul(inputs),
        Op::Linear { .. } => linear(inputs),
        Op::Conv { .. } => conv(op, inputs),
        Op::ConvTranspose { .. } => conv_transpose(op, inputs),
        Op::Pool { .. } => pool(op, single(inputs)?),
        Op::Einsum { equation } => einsum(equation, inputs),
        _ => unreachable!("dispatched by Op::infer"),
    }
}

fn matmul(inputs: &InputTypes) -> Inferred {
    at_most(inputs, 2)?;
    let (a, b) = (required(inputs, 0, "a")?, required(inputs, 1, "b")?);
    check(a.dtype == b.dtype && a.dtype != DType::Bool, || {
        format!("a is {} and b is {}", a.dtype, b.dtype)
    })?;
    check(a.rank() >= 1 && b.rank() >= 1, || "takes no scalar".into())?;
    // numpy: a vector gets an axis of size 1, which the result does not keep
    let (mut sa, mut sb) = (a.shape.clone(), b.shape.clone());
    if a.rank() == 1 {
        sa.insert(0, 1.into());
    }
    if b.rank() == 1 {
        sb.push(1.into());
    }
    let (ka, kb) = (&sa[sa.len() - 1], &sb[sb.len() - 2]);
    check(ka == kb, || format!("a is {a} and b is {b}: {ka} columns against {kb} rows"))?;
    let mut shape = broadcast(&sa[..sa.len() - 2], &sb[..sb.len() - 2])?;
    if a.rank() > 1 {
        shape.push(sa[sa.len() - 2].clone());
    }
    if b.rank() > 1 {
        shape.push(sb[sb.len() - 1].clone());
    }
    Ok(vec![ValueType::new(a.dtype, shape)])
}

fn linear(inputs: &InputTypes) -> Inferred {
    at_most(inputs, 7)?;
    let (x, w) = (required(inputs, 0, "x")?, required(inputs, 1, "w")?);
    check(x.rank() >= 1 && w.rank() == 2, || {
        format!("x is {x} and w is {w}, expected [..., K] and [K, N]")
    })?;
    check(x.dtype == w.dtype && x.dtype.is_float(), || {
        format!("x is {} and w is {}", x.dtype, w.dtype)
    })?;
    let k = &x.shape[x.rank() - 1];
    check(*k == w.shape[0], || format!("x has {k} columns and w {} rows", w.shape[0]))?;
    let mut shape = x.shape.clone();
    *shape.last_mut().expect("rank ≥ 1") = w.shape[1].clone();
    let y = ValueType::new(x.dtype, shape);
    epilogue(inputs, &y, y.rank() - 1)?;
    Ok(vec![y])
}

/// Checks bias, row, gate, residual and scale (inputs 2 to 6) against the result.
fn epilogue(inputs: &InputTypes, y: &ValueType, channel_axis: usize) -> Result<(), String> {
    norm::per_channel(inputs, 2, "bias", y, &y.shape[channel_axis])?;
    per_image(inputs, 3, "row", y, channel_axis)?;
    per_image(inputs, 4, "gate", y, channel_axis)?;
    norm::per_channel(inputs, 6, "scale", y, &y.shape[channel_axis])?;
    match optional(inputs, 5) {
        Some(r) => check(r == y, || format!("the residual is {r}, the result {y}")),
        None => Ok(()),
    }
}

/// Checks that input `i`, if present, has y's rank and channels, y's batch or 1 as its first size,
/// and 1 elsewhere.
pub(super) fn per_image(
    inputs: &InputTypes,
    i: usize,
    name: &str,
    y: &ValueType,
    channel_axis: usize,
) -> Result<(), String> {
    let Some(t) = optional(inputs, i) else { return Ok(()) };
    let fits = t.dtype == y.dtype
        && t.rank() == y.rank()
        && t.shape.iter().zip(&y.shape).enumerate().all(|(axis, (a, b))| {
            if axis == channel_axis { a == b } else { a.is(1) || (axis == 0 && a == b) }
        });
    check(fits, || {
        format!(
            "{name} is {t}, expected one row of {} values per image of {y}",
            y.shape[channel_axis]
        )
    })
}

/// The size of a window's result along one axis, or `None` if the window does not fit.
fn windows(
    size: &Dim,
    kernel: usize,
    stride: usize,
    dilation: usize,
    pads: usize,
    ceil: bool,
) -> Option<Dim> {
    let span = (kernel as i64 - 1) * dilation as i64 + 1;
    let room = size.add(&Dim::constant(pads as i64 - span))?;
    match room.as_const() {
        Some(room) if room < 0 => None,
        Some(room) => {
            let stride = stride as i64;
            Some(Dim::constant(if ceil { (room + stride - 1) / stride } else { room / stride } + 1))
        }
        None if stride == 1 => room.add(&1.into()),
        None => None,
    }
}

/// Bounds the sizes of windows, so that arithmetic on them cannot overflow.
fn check_windows(rank: usize, lists: [(&str, &[usize]); 4]) -> Result<(), String> {
    for (i, (name, list)) in lists.into_iter().enumerate() {
        let expected = if name == "pads" { 2 * rank } else { rank };
        check(list.len() == expected, || {
            format!("`{name}` has {} entries, expected {expected}", list.len())
        })?;
        let least = if i == 3 { 0 } else { 1 };
        check(list.iter().all(|&v| (least..1 << 20).contains(&v)), || {
            format!("`{name}` is {list:?}")
        })?;
    }
    Ok(())
}

fn spatial(t: &ValueType, layout: ConvLayout) -> Result<&[Dim], String> {
    check((3..=5).contains(&t.rank()), || format!("x is {t}, expected one to three spatial axes"))?;
    Ok(&t.shape[layout.spatial_axes(t.rank())])
}

fn conv(op: &Op, inputs: &InputTypes) -> Inferred {
    let Op::Conv { strides, pads, dilations, groups, layout, upsample, .. } = op else {
        unreachable!()
    };
    at_most(inputs, 7)?;
    let (x, w) = (required(inputs, 0, "x")?, required(inputs, 1, "w")?);
    check(x.dtype == w.dtype && x.dtype.is_float(), || {
        format!("x is {} and w is {}", x.dtype, w.dtype)
    })?;
    let sizes = spatial(x, *layout)?;
    check(w.rank() == x.rank(), || format!("x is {x} and w is {w}"))?;
    let kernel = kernel_sizes(w)?;
    check_windows(
        sizes.len(),
        [("strides", strides), ("dilations", dilations), ("kernel", &kernel), ("pads", pads)],
    )?;
    let channels = &x.shape[layout.channel_axis(x.rank())];
    let per_group = w.shape[1].mul(&Dim::constant(*groups as i64));
    check((1..=MAX_GROUPS).contains(groups) && per_group.as_ref() == Some(channels), || {
        format!(
            "w is {w}: with {groups} groups it needs {} · {groups} channels, x has {channels}",
            w.shape[1]
        )
    })?;
    check(w.shape[0].div_exact(&Dim::constant(*groups as i64)).is_some(), || {
        format!("{groups} groups do not divide {} outputs", w.shape[0])
    })?;
    check(*upsample == 1 || *upsample == 2, || {
        format!("`upsample` is {upsample}, expected 1 or 2")
    })?;
    let n = sizes.len();
    let mut shape = x.shape.clone();
    shape[layout.channel_axis(x.rank())] = w.shape[0].clone();
    for (i, axis) in layout.spatial_axes(x.rank()).enumerate() {
        let size = sizes[i].mul(&Dim::constant(*upsample as i64)).ok_or("x is too large")?;
        shape[axis] =
            windows(&size, kernel[i], strides[i], dilations[i], pads[i] + pads[n + i], false)
                .ok_or_else(|| {
                    format!(
                        "a window of {} (dilation {}) does not fit spatial axis {i} of {x}",
                        kernel[i], dilations[i]
                    )
                })?;
    }
    let y = ValueType::new(x.dtype, shape);
    epilogue(inputs, &y, layout.channel_axis(x.rank()))?;
    Ok(vec![y])
}

fn kernel_sizes(w: &ValueType) -> Result<Vec<usize>, String> {
    let fixed =
        w.fixed_shape().ok_or_else(|| format!("the weights are {w}, expected known sizes"))?;
    Ok(fixed[2..].to_vec())
}

fn conv_transpose(op: &Op, inputs: &InputTypes) -> Inferred {
    let Op::ConvTranspose { strides, pads, dilations, output_padding, groups } = op else {
        unreachable!()
    };
    at_most(inputs, 3)?;
    let (x, w) = (required(inputs, 0, "x")?, required(inputs, 1, "w")?);
    check(x.dtype == w.dtype && x.dtype.is_float(), || {
        format!("x is {} and w is {}", x.dtype, w.dtype)
    })?;
    let sizes = spatial(x, ConvLayout::ChannelsFirst)?;
    check(w.rank() == x.rank() && w.shape[0] == x.shape[1], || format!("x is {x} and w is {w}"))?;
    let kernel = kernel_sizes(w)?;
    let n = sizes.len();
    check_windows(
        n,
        [("strides", strides), ("dilations", dilations), ("kernel", &kernel), ("pads", pads)],
    )?;
    check(output_padding.len() == n && output_padding.iter().all(|&p| p < 1 << 20), || {
        "`output_padding` is off".into()
    })?;
    check(
        (1..=MAX_GROUPS).contains(groups)
            && x.shape[1].div_exact(&Dim::constant(*groups as i64)).is_some(),
        || format!("`groups` is {groups}"),
    )?;
    let channels = w.shape[1].mul(&Dim::constant(*groups as i64)).ok_or("too many channels")?;
    let mut shape = vec![x.shape[0].clone(), channels];
    for i in 0..n {
        let grown =
            sizes[i].add(&Dim::constant(-1)).and_then(|s| s.mul(&Dim::constant(strides[i] as i64)));
        let extra = ((kernel[i] - 1) * dilations[i] + 1 + output_padding[i]) as i64
            - (pads[i] + pads[n + i]) as i64;
        let size = grown
            .and_then(|s| s.add(&Dim::constant(extra)))
            .filter(|s| s.as_const().is_none_or(|v| v >= 0));
        shape
            .push(size.ok_or_else(|| format!("spatial axis {i} of the result has no valid size"))?);
    }
    let y = ValueType::new(x.dtype, shape);
    norm::per_channel(inputs, 2, "bias", &y, &y.shape[1])?;
    Ok(vec![y])
}

fn pool(op: &Op, x: &ValueType) -> Inferred {
    let Op::Pool { kind, kernel, strides, pads, dilations, ceil, layout, .. } = op else {
        unreachable!()
    };
    let accepts = if *kind == PoolKind::Max { x.dtype != DType::Bool } else { x.dtype.is_float() };
    check(accepts, || format!("{kind:?} pooling does not take {}", x.dtype))?;
    let sizes = spatial(x, *layout)?;
    let n = sizes.len();
    check_windows(
        n,
        [("strides", strides), ("dilations", dilations), ("kernel", kernel), ("pads", pads)],
    )?;
    let mut shape = x.shape.clone();
    for (i, axis) in layout.spatial_axes(x.rank()).enumerate() {
        let mut size =
            windows(&sizes[i], kernel[i], strides[i], dilations[i], pads[i] + pads[n + i], *ceil)
                .ok_or_else(|| {
                format!("a window of {} does not fit spatial axis {i} of {x}", kernel[i])
            })?;
        // a window that would start in the padding after the input is left out
        if let (true, Some(count), Some(len)) = (*ceil, size.as_const(), sizes[i].as_const())
            && (count - 1) * strides[i] as i64 >= len + pads[i] as i64
        {
            size = Dim::constant(count - 1);
        }
        shape[axis] = size;
    }
    Ok(vec![ValueType::new(x.dtype, shape)])
}

/// The sizes of an equation's letters, checked against the inputs.
fn letters(equation: &str, inputs: &InputTypes) -> Result<(Vec<(char, Dim)>, String), String> {
    let (left, right) =
        equation.split_once("->").ok_or_else(|| format!("`{equation}` has no `->`"))?;
    let terms: Vec<&str> = left.split(',').collect();
    check(terms.len() == inputs.len(), || {
        format!("`{equation}` has {} terms for {} inputs", terms.len(), inputs.len())
    })?;
    let mut sizes: Vec<(char, Dim)> = Vec::new();
    for (i, term) in terms.iter().enumerate() {
        let t = required(inputs, i, "operand")?;
        check(term.len() == t.rank() && term.bytes().all(|c| c.is_ascii_alphabetic()), || {
            format!("`{term}` does not fit {t}")
        })?;
        for (c, d) in term.chars().zip(&t.shape) {
            match sizes.iter_mut().find(|(k, _)| *k == c) {
                Some((_, known)) if known == d || d.is(1) => {}
                Some((_, known)) if known.is(1) => *known = d.clone(),
                Some((_, known)) => return Err(format!("`{c}` is {known} and {d}")),
                None => sizes.push((c, d.clone())),
            }
        }
    }
    Ok((sizes, right.to_string()))
}

fn einsum(equation: &str, inputs: &InputTypes) -> Inferred {
    let (sizes, right) = letters(equation, inputs)?;
    let dtype = required(inputs, 0, "operand")?.dtype;
    let same = inputs.iter().flatten().all(|t| t.dtype == dtype);
    check(same && dtype != DType::Bool, || "the operands need one number type".into())?;
    // there are 52 letters
    let twice = right.len() > 52 || right.char_indices().any(|(i, c)| right[..i].contains(c));
    check(!twice, || format!("`{equation}` names a letter twice in the result"))?;
    let shape = right
        .chars()
        .map(|c| {
            sizes
                .iter()
                .find(|(k, _)| *k == c)
                .map(|(_, d)| d.clone())
                .ok_or_else(|| format!("`{c}` has no size"))
        })
        .collect::<Result<Shape, _>>()?;
    Ok(vec![ValueType::new(dtype, shape)])
}

pub(super) fn macs(op: &Op, inputs: &InputTypes, outputs: &[ValueType]) -> Option<Dim> {
    let y = outputs.first()?.elements()?;
    match op {
        Op::MatMul | Op::Linear { .. } => y.mul(optional(inputs, 0)?.shape.last()?),
        Op::Conv { .. } => {
            let w = optional(inputs, 1)?;
            w.shape[1..].iter().try_fold(y, |n, d| n.mul(d))
        }
        Op::ConvTranspose { .. } => {
            let w = optional(inputs, 1)?;
            w.shape[1..].iter().try_fold(optional(inputs, 0)?.elements()?, |n, d| n.mul(d))
        }
        Op::Einsum { equation } => letters(equation, inputs)
            .ok()?
            .0
            .iter()
            .try_fold(Dim::constant(1), |n, (_, d)| n.mul(d)),
        _ => None,
    }
}
