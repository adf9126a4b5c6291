//! The syntax that the text forms of graphs and plans share.

use crate::op::Op;
use std::fmt;

/// Whether a name may contain the character without quotes: letters, digits and `_ . / #`.
pub fn is_name_char(c: char) -> bool {
    c.is_alphanumeric() || matches!(c, '_' | '.' | '/' | '#')
}

/// The name of a value with a percent sign, `%name`. Names with other characters are quoted:
/// `%"a b"`.
pub struct Name<'a>(pub &'a str);

impl fmt::Display for Name<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.0.is_empty() && self.0.chars().all(is_name_char) {
            write!(f, "%{}", self.0)
        } else {
            write!(f, "%{:?}", self.0)
        }
    }
}

/// The attributes of an operator as ` key=json`, without those that have their default values.
pub struct Attributes<'a>(pub &'a Op);

impl fmt::Display for Attributes<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (key, value) in self.0.attributes() {
            match value.as_f64().filter(|_| value.is_f64()) {
                // float attributes are f32, so the shortest digits of an f32 are printed
                Some(v) => write!(f, " {key}={:?}", v as f32)?,
                None => write!(f, " {key}={value}")?,
            }
        }
        Ok(())
    }
}

/// Items separated by `", "`.
pub struct List<T>(pub T);

impl<I: Iterator<Item = T> + Clone, T: fmt::Display> fmt::Display for List<I> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, item) in self.0.clone().enumerate() {
            write!(f, "{}{item}", if i == 0 { "" } else { ", " })?;
        }
        Ok(())
    }
}
