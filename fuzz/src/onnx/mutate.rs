//! Mutations of ONNX models: decode, change fields, nodes and edges, encode.

use super::names::{ATTRIBUTES, SYMBOLS, TEXTS};
use crate::Random;
use cqc_proto::onnx::*;
use prost::Message;
use std::sync::OnceLock;

/// Changes one to three places, mostly one; `None` if `data` is no model.
pub fn mutate(data: &[u8], random: &mut Random) -> Option<Vec<u8>> {
    let mut model = ModelProto::decode(data).ok()?;
    for _ in 0..=random.few() {
        if random.one_in(30) {
            mutate_model(&mut model, random);
        } else {
            mutate_graph(model.graph.as_mut()?, random);
        }
    }
    Some(model.encode_to_vec())
}

fn mutate_model(model: &mut ModelProto, random: &mut Random) {
    match random.below(4) {
        0 => {
            let domain = *random.pick(&["", "com.microsoft", "ai.onnx", "local"]);
            let version = Some(random.below(30) as i64);
            model.opset_import.push(OperatorSetIdProto { domain: Some(domain.into()), version });
        }
        1 if !model.functions.is_empty() => {
            let f = random.pick_mut(&mut model.functions).expect("not empty");
            let names: Vec<String> = f.input.clone();
            if let Some(node) = random.pick_mut(&mut f.node) {
                mutate_node(node, &names, random);
            }
        }
        // some nodes become a function that is called once more
        2 => {
            let Some(node) = model.graph.as_mut().and_then(|g| random.pick_mut(&mut g.node)) else {
                return;
            };
            let f = FunctionProto {
                name: Some("F".into()),
                domain: Some("local".into()),
                input: node.input.clone(),
                output: node.output.clone(),
                node: vec![node.clone()],
                opset_import: model.opset_import.clone(),
                ..Default::default()
            };
            (node.op_type, node.domain) = (Some("F".into()), Some("local".into()));
            model.functions.push(f);
            let version = Some(1);
            model.opset_import.push(OperatorSetIdProto { domain: Some("local".into()), version });
        }
        _ => {
            if let Some(set) = random.pick_mut(&mut model.opset_import) {
                set.version = Some(11 + random.below(18) as i64);
            }
        }
    }
}

fn mutate_graph(graph: &mut GraphProto, random: &mut Random) {
    let names = value_names(graph);
    match random.below(20) {
        0..=6 => {
            if let Some(node) = random.pick_mut(&mut graph.node) {
                mutate_node(node, &names, random);
            }
        }
        7..=10 => {
            if let Some(t) = random.pick_mut(&mut graph.initializer) {
                mutate_tensor(t, random);
            }
        }
        11 => {
            let t = random_tensor(random);
            let name = Some(format!("w{}", graph.initializer.len() + random.below(3)));
            graph.initializer.push(TensorProto { name, ..t });
        }
        12 => {
            if let Some(input) = random.pick_mut(&mut graph.input) {
                mutate_info(input, random);
            }
        }
        13 if !names.is_empty() => {
            let name = Some(random.pick(&names).clone());
            graph.output.push(ValueInfoProto { name, r#type: None });
        }
        14 if graph.output.len() > 1 => drop(graph.output.remove(random.below(graph.output.len()))),
        15 if !graph.node.is_empty() => drop(graph.node.remove(random.below(graph.node.len()))),
        16 if graph.node.len() > 1 => {
            let (i, j) = (random.below(graph.node.len()), random.below(graph.node.len()));
            graph.node.swap(i, j);
        }
        _ => add_node(graph, &names, random),
    }
}

/// Another node that reads what is there, or a copy of one; what it makes is an output.
fn add_node(graph: &mut GraphProto, names: &[String], random: &mut Random) {
    let name = format!("v{}", graph.node.len() + random.below(3));
    let mut node = match graph.node.get(random.below(2 * graph.node.len())) {
        Some(node) => node.clone(),
        None => {
            let mut node = NodeProto::default();
            set_operator(&mut node, random);
            node
        }
    };
    let operands = if node.input.is_empty() { 1 + random.below(3) } else { node.input.len() };
    node.input.resize(operands, String::new());
    for input in &mut node.input {
        if input.is_empty() || random.one_in(2) {
            *input = other_name(names, random);
        }
    }
    node.output = vec![name.clone()];
    if random.one_in(2) {
        // in the middle: a reader of something reads it instead
        let at = random.below(graph.node.len());
        if let Some(input) = graph.node.get_mut(at).and_then(|n| random.pick_mut(&mut n.input)) {
            *input = name;
        }
        graph.node.insert(at, node);
    } else {
        graph.node.push(node);
        graph.output.push(ValueInfoProto { name: Some(name), r#type: None });
    }
}

fn value_names(graph: &GraphProto) -> Vec<String> {
    let inputs = graph.input.iter().map(|i| i.name());
    let initializers = graph.initializer.iter().map(|t| t.name());
    let made = graph.node.iter().flat_map(|n| n.output.iter().map(String::as_str));
    inputs.chain(initializers).chain(made).map(str::to_string).collect()
}

fn other_name(names: &[String], random: &mut Random) -> String {
    if names.is_empty() || random.one_in(40) { String::new() } else { random.pick(names).clone() }
}

fn set_operator(node: &mut NodeProto, random: &mut Random) {
    static OPERATORS: OnceLock<Vec<(&str, &str)>> = OnceLock::new();
    let all = OPERATORS.get_or_init(|| {
        let control = ["If", "Loop", "Scan", "Constant"].map(|op| ("ai.onnx", op));
        cqc_passes::onnx::operators().chain(control).collect()
    });
    let (domain, op) = random.pick(all);
    node.op_type = Some((*op).into());
    node.domain = (*domain != "ai.onnx").then(|| (*domain).into());
}

fn mutate_node(node: &mut NodeProto, names: &[String], random: &mut Random) {
    match random.below(16) {
        0..=2 => set_operator(node, random),
        3..=5 => {
            let other = other_name(names, random);
            match random.pick_mut(&mut node.input) {
                Some(input) => *input = other,
                None => node.input.push(other),
            }
        }
        6 => node.input.push(other_name(names, random)),
        7 => drop(node.input.pop()),
        8 if node.input.len() > 1 => {
            let last = node.input.len() - 1;
            node.input.swap(random.below(last), last);
        }
        9 => match random.below(3) {
            0 => drop(node.output.pop()),
            1 => node.output.push(format!("{}_{}", node.op_type(), node.output.len())),
            _ => node.output.insert(0, String::new()),
        },
        10 if !node.attribute.is_empty() => {
            drop(node.attribute.remove(random.below(node.attribute.len())));
        }
        11 => {
            let mut attribute = AttributeProto {
                name: Some((*random.pick(ATTRIBUTES)).into()),
                ..Default::default()
            };
            set_value(&mut attribute, random);
            node.attribute.push(attribute);
        }
        _ => {
            if let Some(attribute) = random.pick_mut(&mut node.attribute) {
                mutate_attribute(attribute, random);
            }
        }
    }
}

fn set_value(attribute: &mut AttributeProto, random: &mut Random) {
    let name = attribute.name.take();
    *attribute = AttributeProto { name, ..Default::default() };
    let kind = match random.below(8) {
        0 | 1 => {
            attribute.i = Some(random.number(1));
            attribute_type::INT
        }
        2 => {
            attribute.f = Some(random.float(0.5) as f32);
            attribute_type::FLOAT
        }
        3 => {
            attribute.s = Some((*random.pick(TEXTS)).into());
            attribute_type::STRING
        }
        4 => {
            attribute.t = Some(random_tensor(random));
            attribute_type::TENSOR
        }
        5 => {
            attribute.floats = (0..random.below(5)).map(|_| random.float(1.0) as f32).collect();
            attribute_type::FLOATS
        }
        _ => {
            attribute.ints = (0..random.below(6)).map(|_| random.number(1)).collect();
            attribute_type::INTS
        }
    };
    attribute.r#type = Some(kind);
}

fn mutate_attribute(attribute: &mut AttributeProto, random: &mut Random) {
    if random.one_in(16) {
        attribute.name = Some((*random.pick(ATTRIBUTES)).into());
        return;
    }
    match attribute.r#type.unwrap_or_default() {
        attribute_type::INT => attribute.i = Some(random.number(attribute.i())),
        attribute_type::FLOAT => attribute.f = Some(random.float(attribute.f().into()) as f32),
        attribute_type::STRING => attribute.s = Some((*random.pick(TEXTS)).into()),
        attribute_type::INTS => mutate_ints(&mut attribute.ints, random),
        attribute_type::TENSOR if attribute.t.is_some() => {
            mutate_tensor(attribute.t.as_mut().expect("checked"), random);
        }
        attribute_type::GRAPH if attribute.g.is_some() => {
            mutate_graph(attribute.g.as_mut().expect("checked"), random);
        }
        _ => set_value(attribute, random),
    }
}

fn mutate_ints(ints: &mut Vec<i64>, random: &mut Random) {
    match random.below(6) {
        0 => ints.push(random.number(1)),
        1 => drop(ints.pop()),
        2 if ints.len() > 1 => {
            let last = ints.len() - 1;
            ints.swap(random.below(last), last);
        }
        _ => {
            if let Some(n) = random.pick_mut(ints) {
                *n = random.number(*n);
            }
        }
    }
}

fn mutate_info(info: &mut ValueInfoProto, random: &mut Random) {
    let Some(tensor) = info.r#type.as_mut().and_then(|t| t.tensor_type.as_mut()) else { return };
    if random.one_in(4) {
        tensor.elem_type = Some(random.below(24) as i32);
        return;
    }
    let Some(shape) = &mut tensor.shape else {
        tensor.shape = Some(TensorShapeProto::default());
        return;
    };
    let dim = match random.below(6) {
        0 => DimensionProto { dim_value: None, dim_param: Some((*random.pick(SYMBOLS)).into()) },
        1 => DimensionProto::default(),
        _ => DimensionProto { dim_value: Some(random.number(4)), dim_param: None },
    };
    match random.below(5) {
        0 => shape.dim.push(dim),
        1 => drop(shape.dim.pop()),
        _ => {
            if let Some(old) = random.pick_mut(&mut shape.dim) {
                *old = dim;
            }
        }
    }
}

/// A tensor of a few elements.
fn random_tensor(random: &mut Random) -> TensorProto {
    let dims: Vec<i64> = (0..random.below(4)).map(|_| random.below(5) as i64).collect();
    let count = dims.iter().product::<i64>() as usize;
    let mut t = TensorProto { dims, ..Default::default() };
    if random.one_in(2) {
        t.data_type = Some(data_type::INT64);
        t.int64_data = (0..count).map(|_| random.number(1)).collect();
    } else {
        t.data_type = Some(data_type::FLOAT);
        t.float_data = (0..count).map(|_| random.float(0.5) as f32).collect();
    }
    t
}

/// Changes sizes, type or elements; mostly the elements then fit the sizes again.
fn mutate_tensor(t: &mut TensorProto, random: &mut Random) {
    match random.below(8) {
        0 => mutate_ints(&mut t.dims, random),
        1 => t.dims.push(1),
        2 => t.data_type = Some(random.below(24) as i32),
        3 => *t = TensorProto { name: t.name.take(), ..random_tensor(random) },
        _ if !t.int64_data.is_empty() => {
            let n = random.pick_mut(&mut t.int64_data).expect("not empty");
            *n = random.number(*n);
        }
        _ if !t.float_data.is_empty() => {
            let x = random.pick_mut(&mut t.float_data).expect("not empty");
            *x = random.float((*x).into()) as f32;
        }
        4 if t.dims.len() > 1 => t.dims.reverse(),
        _ => {
            let Some(raw) = &t.raw_data else { return };
            let mut bytes = raw.to_vec();
            let at = random.below(bytes.len());
            let edge = *random.pick(&[0, 1, 0x7f, 0x80, 0xff, 0x3f, 0xc0]);
            if let Some(byte) = bytes.get_mut(at) {
                *byte = edge;
            }
            t.raw_data = Some(bytes.into());
        }
    }
    if !random.one_in(6) {
        fit(t);
    }
}

/// As many elements as the sizes say, if those are few.
fn fit(t: &mut TensorProto) {
    let count = t.dims.iter().try_fold(1usize, |n, &d| n.checked_mul(usize::try_from(d).ok()?));
    let Some(count) = count.filter(|&n| n <= 256) else { return };
    let width = match t.data_type() {
        data_type::DOUBLE | data_type::INT64 | data_type::UINT64 => 8,
        data_type::FLOAT | data_type::INT32 | data_type::UINT32 => 4,
        data_type::FLOAT16 | data_type::BFLOAT16 | data_type::INT16 | data_type::UINT16 => 2,
        data_type::INT8 | data_type::UINT8 | data_type::BOOL => 1,
        _ => return,
    };
    if t.raw_data.is_some() {
        let mut bytes = t.raw_data.take().unwrap_or_default().to_vec();
        bytes.resize(count * width, 0);
        t.raw_data = Some(bytes.into());
    } else if t.data_type() == data_type::INT64 {
        t.int64_data.resize(count, 1);
    } else if t.data_type() == data_type::FLOAT {
        t.float_data.resize(count, 0.5);
    }
}
