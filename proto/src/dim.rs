//! Sizes that may depend on symbols, such as the batch, whose values are known only at run time.

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

/// The largest size, offset or coefficient that is accepted, 2^40. The product of two checked
/// values fits into an `i128`.
pub const MAX_DIM: i64 = 1 << 40;

/// The length of the longest text form that is read, in bytes.
const MAX_TEXT: usize = 1 << 10;

/// An affine expression `constant + Σ coefficient · symbol` in named symbols, which stand for sizes
/// of at least 1.
///
/// It represents sizes of tensors and intermediate results of shape arithmetic, so it may be
/// negative. Arithmetic returns `None` if the result is not affine (`N·N`, `7 / N`) or exceeds
/// [`MAX_DIM`].
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Dim {
    constant: i64,
    terms: BTreeMap<Arc<str>, i64>, // no zero coefficients
}

/// The values of symbols by name.
pub type Bindings = BTreeMap<Arc<str>, i64>;

impl Dim {
    /// A known size without symbols.
    pub fn constant(value: i64) -> Dim {
        Dim { constant: value, terms: BTreeMap::new() }
    }

    /// The symbol itself, with a coefficient of 1.
    pub fn symbol(name: &str) -> Dim {
        Dim { constant: 0, terms: BTreeMap::from([(Arc::from(name), 1)]) }
    }

    /// The value, if no symbol occurs.
    pub fn as_const(&self) -> Option<i64> {
        self.terms.is_empty().then_some(self.constant)
    }

    /// Whether the expression is exactly this number.
    pub fn is(&self, value: i64) -> bool {
        self.as_const() == Some(value)
    }

    /// The name of the symbol, if the expression is a single symbol with a coefficient of 1.
    pub fn as_symbol(&self) -> Option<&str> {
        let (name, &coefficient) = self.terms.iter().next()?;
        (self.terms.len() == 1 && self.constant == 0 && coefficient == 1).then_some(name)
    }

    /// The symbols that occur, by name.
    pub fn symbols(&self) -> impl Iterator<Item = &Arc<str>> {
        self.terms.keys()
    }

    /// The coefficient of a symbol. It is 0 if the symbol does not occur.
    pub fn coefficient(&self, symbol: &str) -> i64 {
        self.terms.get(symbol).copied().unwrap_or(0)
    }

    /// Whether the expression is positive for all values of the symbols (each ≥ 1): all
    /// coefficients are at least 0, and the value with all symbols at 1 is greater than 0.
    pub fn is_positive(&self) -> bool {
        self.terms.values().all(|&c| c > 0) && self.constant as i128 + self.sum_of_terms() > 0
    }

    fn sum_of_terms(&self) -> i128 {
        self.terms.values().map(|&c| c as i128).sum()
    }

    /// The sum of both expressions.
    pub fn add(&self, other: &Dim) -> Option<Dim> {
        self.combine(other, 1)
    }

    /// The difference of both expressions.
    pub fn sub(&self, other: &Dim) -> Option<Dim> {
        self.combine(other, -1)
    }

    fn combine(&self, other: &Dim, sign: i64) -> Option<Dim> {
        let mut out = self.clone();
        out.accumulate(other, sign)?;
        out.terms.retain(|_, c| *c != 0);
        Some(out)
    }

    /// Adds `sign · other` in place. Coefficients of 0 may remain.
    fn accumulate(&mut self, other: &Dim, sign: i64) -> Option<()> {
        self.constant = bounded(self.constant.checked_add(other.constant.checked_mul(sign)?)?)?;
        for (name, &c) in &other.terms {
            let entry = self.terms.entry(name.clone()).or_insert(0);
            *entry = bounded(entry.checked_add(c.checked_mul(sign)?)?)?;
        }
        Some(())
    }

    /// The product of both expressions, of which one must be constant.
    pub fn mul(&self, other: &Dim) -> Option<Dim> {
        match (self.as_const(), other.as_const()) {
            (_, Some(k)) => self.scale(k),
            (Some(k), _) => other.scale(k),
            _ => None,
        }
    }

    fn scale(&self, k: i64) -> Option<Dim> {
        if k == 0 {
            return Some(Dim::constant(0));
        }
        let mut out = self.clone();
        out.constant = bounded(self.constant.checked_mul(k)?)?;
        for c in out.terms.values_mut() {
            *c = bounded(c.checked_mul(k)?)?;
        }
        Some(out)
    }

    /// The quotient, if there is no remainder: by a constant that divides every coefficient, or of
    /// proportional expressions (`8·N / N`).
    pub fn div_exact(&self, other: &Dim) -> Option<Dim> {
        if let Some(k) = other.as_const() {
            let divides = |v: i64| k != 0 && v % k == 0;
            if !divides(self.constant) || !self.terms.values().all(|&c| divides(c)) {
                return None;
            }
            let mut out = self.clone();
            out.constant /= k;
            out.terms.values_mut().for_each(|c| *c /= k);
            return Some(out);
        }
        let (name, &c) = other.terms.iter().next()?;
        let mine = self.coefficient(name);
        let quotient = (mine % c == 0).then_some(mine / c)?;
        (other.scale(quotient)? == *self).then(|| Dim::constant(quotient))
    }

    /// The value for given symbols, or `None` if a symbol is missing or the result exceeds
    /// ±[`MAX_DIM`].
    pub fn eval(&self, bindings: &Bindings) -> Option<i64> {
        let mut sum = self.constant as i128;
        for (name, &c) in &self.terms {
            sum += c as i128 * *bindings.get(name)? as i128;
        }
        i64::try_from(sum).ok().and_then(bounded)
    }

    /// Replaces the symbols that have a value in `bindings`. `None` if the result exceeds
    /// [`MAX_DIM`].
    pub fn bind(&self, bindings: &Bindings) -> Option<Dim> {
        let mut out = Dim::constant(self.constant);
        for (name, &c) in &self.terms {
            let term = match bindings.get(name) {
                Some(&v) => Dim::constant(v).scale(c)?,
                None => Dim::symbol(name).scale(c)?,
            };
            out = out.add(&term)?;
        }
        Some(out)
    }

    /// Parses the text form: `3`, `N`, `8*N`, `2*N+1`, `N+M-1`.
    pub fn parse(text: &str) -> Option<Dim> {
        if text.len() > MAX_TEXT {
            return None;
        }
        let mut out = Dim::constant(0);
        let spaced = text.replace('-', "+-");
        for term in spaced.split('+').map(str::trim).filter(|t| !t.is_empty()) {
            let (negative, term) =
                term.strip_prefix('-').map_or((false, term), |t| (true, t.trim()));
            let (coefficient, name) = match term.split_once('*') {
                Some((k, name)) => (k.trim().parse().ok()?, name.trim()),
                None => (1, term),
            };
            let value = match name.parse::<i64>() {
                Ok(k) => Dim::constant(bounded(k)?),
                Err(_) if is_symbol(name) => Dim::symbol(name),
                Err(_) => return None,
            };
            out.accumulate(&value.scale(if negative { -coefficient } else { coefficient })?, 1)?;
        }
        out.terms.retain(|_, c| *c != 0);
        (!text.trim().is_empty()).then_some(out)
    }
}

fn bounded(v: i64) -> Option<i64> {
    (-MAX_DIM..=MAX_DIM).contains(&v).then_some(v)
}

/// Whether the name is a valid symbol: letters, digits, `_`, `.`, `/`, `:` and `#`, beginning with
/// a letter or `_`.
pub fn is_symbol(name: &str) -> bool {
    let mut chars = name.chars();
    chars.next().is_some_and(|c| c.is_alphabetic() || c == '_')
        && chars.all(|c| c.is_alphanumeric() || matches!(c, '_' | '.' | '/' | ':' | '#'))
}

impl From<i64> for Dim {
    fn from(value: i64) -> Dim {
        Dim::constant(value)
    }
}

impl fmt::Display for Dim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut first = true;
        for (name, &c) in &self.terms {
            match (first, c) {
                (true, 1) => write!(f, "{name}")?,
                (true, -1) => write!(f, "-{name}")?,
                (true, _) => write!(f, "{c}*{name}")?,
                (false, 1) => write!(f, "+{name}")?,
                (false, -1) => write!(f, "-{name}")?,
                (false, _) => write!(f, "{c:+}*{name}")?,
            }
            first = false;
        }
        match (first, self.constant) {
            (true, k) => write!(f, "{k}"),
            (false, 0) => Ok(()),
            (false, k) => write!(f, "{k:+}"),
        }
    }
}

impl Serialize for Dim {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        match self.as_const() {
            Some(k) => s.serialize_i64(k),
            None => s.collect_str(self),
        }
    }
}

impl<'de> Deserialize<'de> for Dim {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Dim, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Raw {
            Number(i64),
            Text(String),
        }
        let bad = |what: String| serde::de::Error::custom(format!("`{what}` is not a size"));
        match Raw::deserialize(d)? {
            Raw::Number(k) => bounded(k).map(Dim::constant).ok_or_else(|| bad(k.to_string())),
            Raw::Text(t) => Dim::parse(&t).ok_or_else(|| bad(t)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_form_reads_back() {
        for text in ["0", "-3", "N", "-N", "8*N", "2*N+1", "2*N-1", "M+3*N", "M-N+7"] {
            let dim = Dim::parse(text).unwrap();
            assert_eq!(dim.to_string(), text);
            assert_eq!(
                serde_json::from_str::<Dim>(&serde_json::to_string(&dim).unwrap()).unwrap(),
                dim
            );
        }
        for bad in ["", "3x", "N*N", "1e3", "N M", "9223372036854775807"] {
            assert_eq!(Dim::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn arithmetic_is_affine_or_none() {
        let n = Dim::symbol("N");
        let n8 = n.mul(&8.into()).unwrap();
        assert_eq!(n8.div_exact(&n), Some(8.into()));
        assert_eq!(n8.div_exact(&4.into()), Dim::parse("2*N"));
        assert_eq!(n8.div_exact(&3.into()), None);
        assert_eq!(n.mul(&n), None);
        assert_eq!(n8.sub(&n8), Some(0.into()));
        assert_eq!(n8.eval(&Bindings::from([("N".into(), 4)])), Some(32));
        assert_eq!(Dim::constant(MAX_DIM).add(&1.into()), None);
    }
}
