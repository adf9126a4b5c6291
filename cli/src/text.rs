//! Numbers, paths and columns as text for people.

use super::report::Failure;
use cqc_proto::Tensor;
use serde::Serializer;
use std::fmt::Display;
use std::io::Read;
use std::path::Path;

/// Most bytes that are read of standard input.
const MAX_TEXT: u64 = 1 << 24;

/// The lines of a file that are not empty; `-` reads standard input.
pub fn lines(path: &Path) -> Result<Vec<String>, Failure> {
    let text = if path == Path::new("-") {
        let mut text = String::new();
        let read = std::io::stdin().take(MAX_TEXT).read_to_string(&mut text);
        read.map_err(|e| Failure::failed(format!("cannot read standard input: {e}")))?;
        text
    } else {
        cachequant::io::read_text(path)?
    };
    Ok(text.lines().map(str::trim).filter(|l| !l.is_empty()).map(str::to_string).collect())
}

/// A path as text in JSON. Bytes that are not UTF-8 are replaced.
pub fn shown(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

/// [`shown`], for `serde(serialize_with)`.
pub fn lossy<S: Serializer>(path: &Path, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(&shown(path))
}

/// Groups digits by thousands: `1234567` becomes `1,234,567`.
pub fn grouped(n: impl Display) -> String {
    let digits = n.to_string();
    let (sign, digits) = digits.strip_prefix('-').map_or(("", digits.as_str()), |d| ("-", d));
    let mut out = String::new();
    for (i, c) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i) % 3 == 0 {
            out.push(',');
        }
        out.push(c);
    }
    format!("{sign}{out}")
}

/// A number of bytes in the largest unit in which it is at least 1.
pub fn bytes(n: u64) -> String {
    match n {
        0..1_024 => format!("{n} B"),
        1_024..1_048_576 => format!("{:.1} KiB", n as f64 / 1024.0),
        1_048_576..1_073_741_824 => format!("{:.1} MiB", n as f64 / 1_048_576.0),
        _ => format!("{:.2} GiB", n as f64 / 1_073_741_824.0),
    }
}

/// A large count with three digits and a prefix, as in `577 M`.
pub fn short(n: f64) -> String {
    let (value, unit) = match n.abs() {
        x if x >= 1e12 => (n / 1e12, " T"),
        x if x >= 1e9 => (n / 1e9, " G"),
        x if x >= 1e6 => (n / 1e6, " M"),
        x if x >= 1e3 => (n / 1e3, " k"),
        _ => return format!("{n}"),
    };
    let decimals = if value.abs() >= 100.0 {
        0
    } else if value.abs() >= 10.0 {
        1
    } else {
        2
    };
    format!("{value:.decimals$}{unit}")
}

/// Rows in aligned columns, two spaces apart, each line indented by two.
pub fn columns(rows: &[Vec<String>]) -> String {
    let count = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |c: usize| {
        rows.iter().filter_map(|r| r.get(c)).map(|s| s.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..count).map(width).collect();
    let mut out = String::new();
    for row in rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            line.push_str(&format!("  {cell:width$}"));
        }
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out
}

/// Smallest, largest and mean element; `None` for a tensor without elements. The smallest and the
/// largest ignore NaN.
pub fn range(tensor: &Tensor) -> Option<[f64; 3]> {
    let values = tensor.to_f64_vec();
    let (least, most) =
        values.iter().fold((f64::INFINITY, f64::NEG_INFINITY), |(a, b), &v| (a.min(v), b.max(v)));
    (!values.is_empty()).then(|| [least, most, values.iter().sum::<f64>() / values.len() as f64])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_readable() {
        assert_eq!(
            [grouped(0), grouped(999), grouped(1000), grouped(-1234567)],
            ["0", "999", "1,000", "-1,234,567"]
        );
        assert_eq!(
            [bytes(1023), bytes(1536), bytes(3 << 20), bytes(5 << 30)],
            ["1023 B", "1.5 KiB", "3.0 MiB", "5.00 GiB"]
        );
        assert_eq!([short(12.0), short(1234.0), short(5.77e8)], ["12", "1.23 k", "577 M"]);
        let rows = [vec!["a".to_string(), "1".into()], vec!["long".into(), "2".into()]];
        assert_eq!(columns(&rows), "  a     1\n  long  2\n");
    }
}
