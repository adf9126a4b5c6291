//! Small models to start from: one line each.

use cqc_proto::onnx::*;
use prost::Message;
use std::collections::HashMap;

/// One model per paragraph, a node per line: `OP OPERAND.. @KEY=VALUE..`. An operand is the name of
/// an input with its type and sizes (`x:f1x3x8x8`, `i:i2`, a `N` size is the batch), of a constant
/// (`w=f4x3` of sizes, `s=i1,-1` and `k=I1` of values), of the result of a line (`0`, `1`, ..), or
/// `_`, none. Operators of `com.microsoft` begin with a dot. A paragraph that begins with
/// `graph NAME INPUT.. -> OUTPUT..` is one that the attribute value `&NAME` names; results of its
/// lines are `s0`, `s1`, ..
const MODELS: &str = include_str!("seeds.txt");

/// Graphs that attributes name.
type Graphs = HashMap<String, GraphProto>;

/// All models.
pub fn seeds() -> Vec<Vec<u8>> {
    let mut graphs = Graphs::new();
    let mut models = Vec::new();
    for text in MODELS.split("\n\n") {
        let mut lines =
            text.lines().filter(|l| !l.trim().is_empty() && !l.starts_with('#')).peekable();
        match lines.peek().and_then(|line| line.strip_prefix("graph ")) {
            Some(head) => {
                lines.next();
                let (name, graph) = inner_graph(head, lines, &graphs);
                graphs.insert(name, graph);
            }
            None if lines.peek().is_some() => models.push(model(lines, &graphs).encode_to_vec()),
            None => {}
        }
    }
    models
}

fn inner_graph<'a>(
    head: &str,
    lines: impl Iterator<Item = &'a str>,
    graphs: &Graphs,
) -> (String, GraphProto) {
    let (inputs, outputs) = head.split_once("->").expect("a graph has outputs");
    let mut words = inputs.split_whitespace();
    let name = words.next().expect("a graph has a name");
    let mut graph = GraphProto { name: Some(name.into()), ..Default::default() };
    words.for_each(|word| drop(operand(word, &mut graph)));
    for (number, line) in lines.enumerate() {
        let node = node(line, format!("s{number}"), &mut graph, graphs);
        graph.node.push(node);
    }
    graph.output = outputs.split_whitespace().map(output).collect();
    (name.into(), graph)
}

fn output(name: &str) -> ValueInfoProto {
    ValueInfoProto { name: Some(name.into()), r#type: None }
}

fn model<'a>(lines: impl Iterator<Item = &'a str>, graphs: &Graphs) -> ModelProto {
    let mut graph = GraphProto { name: Some("g".into()), ..Default::default() };
    for (number, line) in lines.enumerate() {
        let node = node(line, number.to_string(), &mut graph, graphs);
        graph.node.push(node);
    }
    let last = graph.node.last().and_then(|n| n.output.first());
    graph.output = last.map(|name| output(name)).into_iter().collect();
    let set = |domain: &str, version| OperatorSetIdProto {
        domain: Some(domain.into()),
        version: Some(version),
    };
    ModelProto {
        ir_version: Some(10),
        opset_import: vec![set("", 21), set("com.microsoft", 1)],
        graph: Some(graph),
        ..Default::default()
    }
}

fn node(line: &str, output: String, graph: &mut GraphProto, graphs: &Graphs) -> NodeProto {
    let mut words = line.split_whitespace();
    let op = words.next().expect("a line names an operator");
    let (domain, op) = match op.strip_prefix('.') {
        Some(op) => (Some("com.microsoft".into()), op),
        None => (None, op),
    };
    let output = vec![output];
    let mut node = NodeProto { op_type: Some(op.into()), domain, output, ..NodeProto::default() };
    for word in words {
        match word.strip_prefix('@') {
            Some(attribute) => node.attribute.push(parse_attribute(attribute, graphs)),
            None => node.input.push(operand(word, graph)),
        }
    }
    node
}

/// The operand's name; declares it where the word says what it is.
fn operand(word: &str, graph: &mut GraphProto) -> String {
    if word == "_" {
        return String::new();
    }
    if let Some((name, ty)) = word.split_once(':') {
        graph.input.push(input(name, ty));
        return name.into();
    }
    if let Some((name, what)) = word.split_once('=') {
        graph.initializer.push(constant(name, what));
        return name.into();
    }
    word.into()
}

fn dtype(letter: &str) -> i32 {
    match letter {
        "i" => data_type::INT64,
        "h" => data_type::FLOAT16,
        "b" => data_type::BOOL,
        "u" => data_type::UINT8,
        _ => data_type::FLOAT,
    }
}

fn input(name: &str, ty: &str) -> ValueInfoProto {
    let (letter, sizes) = ty.split_at(1);
    let dim = |size: &str| match size.parse() {
        Ok(n) => DimensionProto { dim_value: Some(n), dim_param: None },
        Err(_) => DimensionProto { dim_value: None, dim_param: Some(size.into()) },
    };
    let dim = sizes.split('x').filter(|s| !s.is_empty()).map(dim).collect();
    let shape = Some(TensorShapeProto { dim });
    let tensor = TensorTypeProto { elem_type: Some(dtype(letter)), shape };
    let ty = TypeProto { tensor_type: Some(tensor), ..Default::default() };
    ValueInfoProto { name: Some(name.into()), r#type: Some(ty) }
}

/// `f4x3`: floats of these sizes; `i1,-1`: whole numbers; `I7`: one without axes.
fn constant(name: &str, what: &str) -> TensorProto {
    let (letter, rest) = what.split_at(1);
    let mut t = TensorProto {
        name: Some(name.into()),
        data_type: Some(dtype(letter)),
        ..Default::default()
    };
    if letter == "i" || letter == "I" {
        t.data_type = Some(data_type::INT64);
        t.int64_data = rest.split(',').filter_map(|n| n.parse().ok()).collect();
        t.dims = if letter == "i" { vec![t.int64_data.len() as i64] } else { vec![] };
        return t;
    }
    t.dims = rest.split('x').filter_map(|n| n.parse().ok()).collect();
    let count = t.dims.iter().product::<i64>() as usize;
    match letter {
        "u" | "b" => {
            t.raw_data = Some((0..count).map(|i| (i % 2) as u8).collect::<Vec<_>>().into())
        }
        "h" => t.raw_data = Some([0x00, 0x38].repeat(count).into()),
        _ => t.float_data = (0..count).map(|i| (i % 5) as f32 * 0.25 - 0.5).collect(),
    }
    t
}

/// `key=1`, `key=0.5`, `key=text`, `key=[1,2]`, `key=&graph`.
fn parse_attribute(text: &str, graphs: &Graphs) -> AttributeProto {
    let (name, value) = text.split_once('=').expect("an attribute has a value");
    let mut a = AttributeProto { name: Some(name.into()), ..Default::default() };
    let list = value.strip_prefix('[').map(|l| l.trim_end_matches(']'));
    a.r#type = Some(if let Some(graph) = value.strip_prefix('&') {
        a.g = Some(Box::new(graphs[graph].clone()));
        attribute_type::GRAPH
    } else if let Some(list) = list {
        a.ints = list.split(',').filter_map(|n| n.parse().ok()).collect();
        attribute_type::INTS
    } else if let Ok(i) = value.parse() {
        a.i = Some(i);
        attribute_type::INT
    } else if let Ok(f) = value.parse() {
        a.f = Some(f);
        attribute_type::FLOAT
    } else {
        a.s = Some(value.as_bytes().to_vec().into());
        attribute_type::STRING
    });
    a
}
