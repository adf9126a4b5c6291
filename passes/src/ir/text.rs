//! The text form of graphs, for dumps and filetests.
//!
//! ```text
//! graph(%x: f32[N,8], %t: i64[N]) {
//!   %w = const f32[8,4] 0.5             one number: every element; [..]: all of them; #hash: not printed, cannot be read back
//!   %h = linear(%x, %w)
//!   %y: f32[N,4] = silu(%h)             types are optional when reading, checked when there
//!   return %y
//! }
//! ```
//! `%name` may have letters, digits and `_ . / #`. Other names are written in quotes: `%"a b"`. A
//! `#` without quotes says that the name was numbered here
//! ([`Value::numbered`](super::Value::numbered)); a name of the source model that has a `#` is
//! written in quotes. Attributes follow the operands as `key=json`. An absent operand is `_`.

use super::{Def, Graph, ValueId};
use cqc_proto::text::{Attributes, Name, is_name_char};
use cqc_proto::{DType, Dim, Op, Tensor, ValueType};
use std::collections::HashMap;
use std::fmt;

/// Constants with at most this number of elements are printed in full.
const MAX_PRINTED: usize = 16;

impl fmt::Display for Graph {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "graph(")?;
        for (i, &v) in self.inputs.iter().enumerate() {
            write!(f, "{}{}: {}", if i == 0 { "" } else { ", " }, self.written(v), self.ty(v))?;
        }
        writeln!(f, ") {{")?;
        let mut printed = vec![false; self.values().count()];
        for (_, node) in self.nodes() {
            for v in node.inputs.iter().flatten() {
                self.print_constant(*v, &mut printed, f)?;
            }
            write!(f, "  ")?;
            for (i, &v) in node.outputs.iter().enumerate() {
                write!(f, "{}{}: {}", if i == 0 { "" } else { ", " }, self.written(v), self.ty(v))?;
            }
            write!(f, " = {}(", node.op.name())?;
            for (i, v) in node.inputs.iter().enumerate() {
                let separator = if i == 0 { "" } else { ", " };
                match v {
                    Some(v) => write!(f, "{separator}{}", self.written(*v))?,
                    None => write!(f, "{separator}_")?,
                }
            }
            writeln!(f, "){}", Attributes(&node.op))?;
        }
        for (_, v) in &self.outputs {
            self.print_constant(*v, &mut printed, f)?;
        }
        write!(f, "  return ")?;
        for (i, (_, v)) in self.outputs.iter().enumerate() {
            write!(f, "{}{}", if i == 0 { "" } else { ", " }, self.written(*v))?;
        }
        writeln!(f, "\n}}")
    }
}

impl Graph {
    /// The value's name as it is printed.
    fn written(&self, v: ValueId) -> String {
        let value = self.value(v);
        match value.name.contains('#') && !value.numbered {
            true => format!("%{:?}", value.name),
            false => Name(&value.name).to_string(),
        }
    }

    fn print_constant(
        &self,
        v: ValueId,
        printed: &mut [bool],
        f: &mut fmt::Formatter<'_>,
    ) -> fmt::Result {
        let value = self.value(v);
        let Def::Constant(t) = &value.def else { return Ok(()) };
        if std::mem::replace(&mut printed[v.0 as usize], true) {
            return Ok(());
        }
        write!(f, "  {} = const {} ", self.written(v), value.ty)?;
        writeln!(f, "{}", Elements(t))
    }
}

/// The elements of a constant as they are printed.
struct Elements<'a>(&'a Tensor);

impl fmt::Display for Elements<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number = |i: usize| -> String {
            if self.0.dtype().is_float() {
                format!("{}", self.0.to_f32_vec()[i])
            } else {
                format!("{}", self.0.to_i64_vec()[i])
            }
        };
        let size = self.0.dtype().size();
        let first = &self.0.bytes()[..size.min(self.0.bytes().len())];
        if !self.0.is_empty() && self.0.bytes().chunks(size).all(|c| c == first) {
            return f.write_str(&number(0));
        }
        if self.0.len() <= MAX_PRINTED {
            return write!(f, "[{}]", (0..self.0.len()).map(number).collect::<Vec<_>>().join(","));
        }
        // FNV-1a, which is enough to tell constants apart in a dump.
        let hash =
            self.0.bytes().iter().fold(0xcbf2_9ce4_8422_2325u64, |h, &b| {
                (h ^ b as u64).wrapping_mul(0x100_0000_01b3)
            });
        write!(f, "#{hash:016x}")
    }
}

/// An error in a text, with its line.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {what}")]
pub struct ParseError {
    /// Number of the line, from 1.
    pub line: usize,
    /// The text that was expected and the one that was found.
    pub what: String,
}

/// Parses the text form of a graph. `;` begins a comment that ends with the line.
///
/// # Errors
/// [`ParseError`] with the line.
pub fn parse(text: &str) -> Result<Graph, ParseError> {
    let mut graph = Graph::new("");
    let mut names: HashMap<String, ValueId> = HashMap::new();
    let mut done = false;
    for (i, raw) in text.lines().enumerate() {
        let line = raw.split(" ;").next().unwrap_or("").trim();
        if line.is_empty() || line.starts_with(';') || line == "}" {
            continue;
        }
        let result = if let Some(rest) = line.strip_prefix("graph(") {
            header(rest, &mut graph, &mut names)
        } else if let Some(rest) = line.strip_prefix("return ") {
            done = true;
            outputs(rest, &mut graph, &names)
        } else {
            statement(line, &mut graph, &mut names)
        };
        result.map_err(|what| ParseError { line: i + 1, what })?;
    }
    if !done {
        return Err(ParseError { line: text.lines().count(), what: "no `return`".into() });
    }
    Ok(graph)
}

/// A name as it was read.
struct Written {
    name: String,
    numbered: bool,
}

impl Written {
    /// Makes it the name of `v`.
    fn defines(self, v: ValueId, graph: &mut Graph, names: &mut HashMap<String, ValueId>) {
        if self.numbered {
            graph.set_numbered(v);
        }
        names.insert(self.name, v);
    }
}

/// A position in a line.
struct Cursor<'a>(&'a str);

impl<'a> Cursor<'a> {
    fn eat(&mut self, token: &str) -> bool {
        let rest = self.0.trim_start();
        rest.strip_prefix(token).map(|r| self.0 = r).is_some()
    }

    fn expect(&mut self, token: &str) -> Result<(), String> {
        if self.eat(token) {
            Ok(())
        } else {
            Err(format!("expected `{token}` before `{}`", self.0))
        }
    }

    fn name(&mut self) -> Result<Written, String> {
        self.expect("%")?;
        if self.0.starts_with('"') {
            let name = self.json()?.as_str().map(str::to_string).ok_or("a name is a string")?;
            return Ok(Written { name, numbered: false });
        }
        let name = self.word().to_string();
        Ok(Written { numbered: name.contains('#'), name })
    }

    fn word(&mut self) -> &'a str {
        let rest = self.0.trim_start();
        let end = rest.find(|c| !is_name_char(c)).unwrap_or(rest.len());
        self.0 = &rest[end..];
        &rest[..end]
    }

    fn json(&mut self) -> Result<serde_json::Value, String> {
        let rest = self.0.trim_start();
        let mut stream = serde_json::Deserializer::from_str(rest).into_iter::<serde_json::Value>();
        let value = stream.next().ok_or("a value is missing")?.map_err(|e| e.to_string())?;
        self.0 = &rest[stream.byte_offset()..];
        Ok(value)
    }

    fn ty(&mut self) -> Result<ValueType, String> {
        let name = self.word();
        let dtype = DType::parse(name).ok_or_else(|| format!("`{name}` is no element type"))?;
        self.expect("[")?;
        let (inside, rest) = self.0.split_once(']').ok_or("a shape ends with `]`")?;
        self.0 = rest;
        let dim = |d: &str| Dim::parse(d).ok_or_else(|| format!("`{d}` is no size"));
        let shape = inside
            .split(',')
            .filter(|d| !d.trim().is_empty())
            .map(dim)
            .collect::<Result<Vec<_>, _>>()?;
        Ok(ValueType { dtype, shape })
    }
}

fn header(
    rest: &str,
    graph: &mut Graph,
    names: &mut HashMap<String, ValueId>,
) -> Result<(), String> {
    let mut c = Cursor(rest);
    while !c.eat(")") {
        let name = c.name()?;
        c.expect(":")?;
        let ty = c.ty()?;
        let v = graph.input(&name.name, ty);
        name.defines(v, graph, names);
        c.eat(",");
    }
    Ok(())
}

fn outputs(rest: &str, graph: &mut Graph, names: &HashMap<String, ValueId>) -> Result<(), String> {
    let mut c = Cursor(rest);
    loop {
        let Written { name, .. } = c.name()?;
        let v = *names.get(&name).ok_or_else(|| format!("`%{name}` is not defined"))?;
        graph.outputs.push((name, v));
        if !c.eat(",") {
            return Ok(());
        }
    }
}

fn statement(
    line: &str,
    graph: &mut Graph,
    names: &mut HashMap<String, ValueId>,
) -> Result<(), String> {
    let mut c = Cursor(line);
    let mut results: Vec<(Written, Option<ValueType>)> = Vec::new();
    loop {
        let name = c.name()?;
        let ty = if c.eat(":") { Some(c.ty()?) } else { None };
        results.push((name, ty));
        if !c.eat(",") {
            break;
        }
    }
    c.expect("=")?;
    let op = c.word();
    if op == "const" {
        let ty = c.ty()?;
        let tensor = constant(&ty, &mut c)?;
        let name = results.remove(0).0;
        let v = graph.constant(&name.name, tensor);
        name.defines(v, graph, names);
        return Ok(());
    }
    c.expect("(")?;
    let mut inputs = Vec::new();
    while !c.eat(")") {
        if c.eat("_") {
            inputs.push(None);
        } else {
            let Written { name, .. } = c.name()?;
            inputs
                .push(Some(*names.get(&name).ok_or_else(|| format!("`%{name}` is not defined"))?));
        }
        c.eat(",");
    }
    let mut attributes = serde_json::Map::new();
    while !c.0.trim().is_empty() {
        let key = c.word().to_string();
        c.expect("=")?;
        attributes.insert(key, c.json()?);
    }
    let op = Op::from_parts(op, attributes)?;
    let output_names: Vec<&str> = results.iter().map(|(n, _)| n.name.as_str()).collect();
    let outputs = graph
        .node_with_outputs(output_names[0], op, &inputs, &output_names)
        .map_err(|e| e.to_string())?;
    for ((name, ty), v) in results.into_iter().zip(outputs) {
        if let Some(ty) = ty
            && ty != *graph.ty(v)
        {
            return Err(format!(
                "`%{}` is written as {ty}, its operator makes {}",
                name.name,
                graph.ty(v)
            ));
        }
        name.defines(v, graph, names);
    }
    Ok(())
}

fn constant(ty: &ValueType, c: &mut Cursor) -> Result<Tensor, String> {
    let shape = ty.fixed_shape().ok_or("the shape of a constant has no symbols")?;
    let count = cqc_proto::types::element_count(&shape)
        .filter(|&n| n <= 1 << 24)
        .ok_or("the constant is too large")?;
    let numbers: Vec<f64> = match c.json()? {
        serde_json::Value::Array(a) => {
            a.iter().map(|v| v.as_f64().ok_or("constants are numbers")).collect::<Result<_, _>>()?
        }
        v => vec![v.as_f64().ok_or("constants are numbers")?; count],
    };
    if numbers.len() != count {
        return Err(format!("{ty} has {count} elements, got {}", numbers.len()));
    }
    let bytes: Vec<u8> = match ty.dtype {
        d if d.is_float() => {
            Tensor::from_f32(&shape, &numbers.iter().map(|&v| v as f32).collect::<Vec<_>>())
                .to_float(d)
                .bytes()
                .to_vec()
        }
        d => numbers.iter().flat_map(|&v| (v as i64).to_le_bytes()[..d.size()].to_vec()).collect(),
    };
    Tensor::new(ty.dtype, shape, bytes).map_err(|e| e.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_form_reads_back() {
        let text = "graph(%x: f32[N,8], %\"a b\": i64[N]) {
  %w = const f32[8,2] 0.5
  %b = const f32[2] [1,-2.5]
  %h: f32[N,2] = linear(%x, %w, %b) act=\"silu\"
  %y: f32[N,2] = leaky_relu(%h) alpha=0.25
  %z: f32[N,2] = add(%y, %h)
  return %z, %y
}
";
        let graph = parse(text).unwrap();
        assert_eq!(graph.to_string(), text);
        super::super::verify(&graph).unwrap();
    }

    #[test]
    fn a_number_added_to_a_name_is_told_from_a_source_name() {
        let text = "graph(%\"a#2\": f32[2]) {
  %b#2: f32[2] = silu(%\"a#2\")
  return %b#2
}
";
        let mut graph = parse(text).unwrap();
        graph.compact().unwrap();
        assert_eq!(graph.to_string(), text);
        assert_eq!(graph.values().map(|(_, v)| v.numbered).collect::<Vec<_>>(), [false, true]);
    }

    #[test]
    fn errors_name_the_line() {
        let e = parse("graph(%x: f32[2]) {\n  %y = silu(%z)\n  return %y\n}").unwrap_err();
        assert_eq!(e.to_string(), "line 2: `%z` is not defined");
    }
}
