//! Text and numbers in HTML.

use std::fmt::{self, Display, Write};

/// Text that is escaped, because names come from models, which may be from anybody.
pub struct Text<T>(pub T);

impl<T: Display> Display for Text<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(Escaping(f), "{}", self.0)
    }
}

struct Escaping<'a, 'b>(&'a mut fmt::Formatter<'b>);

impl Write for Escaping<'_, '_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        text.chars().try_for_each(|c| match c {
            '&' => self.0.write_str("&amp;"),
            '<' => self.0.write_str("&lt;"),
            '>' => self.0.write_str("&gt;"),
            '"' => self.0.write_str("&quot;"),
            '\'' => self.0.write_str("&#39;"),
            // characters that HTML does not allow, and those that change the direction of the text
            // around them
            c if c.is_control()
                || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}') =>
            {
                self.0.write_char('\u{fffd}')
            }
            c => self.0.write_char(c),
        })
    }
}

/// A number with three significant digits.
pub fn number(x: f64) -> String {
    if x == 0.0 || !x.is_finite() {
        return if x == 0.0 { "0".into() } else { x.to_string() };
    }
    let magnitude = x.abs().log10().floor() as i32;
    if !(-4..6).contains(&magnitude) {
        return format!("{x:.2e}").replace('-', "−");
    }
    format!("{x:.*}", (2 - magnitude).max(0) as usize).replace('-', "−")
}

/// A share as a percentage.
pub fn percent(share: f64) -> String {
    format!("{} %", number(share * 100.0))
}

/// A count with its noun: `1 layer`, `2 layers`.
pub fn counted(n: usize, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}

/// Rows of a term and its explanation, which is HTML.
pub fn facts(rows: &[(&str, String)]) -> String {
    let row =
        |(term, value): &(&str, String)| format!("<div><dt>{term}</dt><dd>{value}</dd></div>\n");
    format!("<dl class=\"facts\">\n{}</dl>\n", rows.iter().map(row).collect::<String>())
}

/// A section with its heading.
pub fn section(id: &str, heading: &str, content: &str) -> String {
    format!("<section id=\"{id}\">\n<h2>{heading}</h2>\n{content}</section>\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cannot_leave_their_place() {
        let name = "</td><script>alert('1')</script>&\"\u{202e}\n";
        let safe = Text(name).to_string();
        assert_eq!(
            safe,
            "&lt;/td&gt;&lt;script&gt;alert(&#39;1&#39;)&lt;/script&gt;&amp;&quot;\u{fffd}\u{fffd}"
        );
    }

    #[test]
    fn numbers_have_three_digits() {
        let shown = [0.0, 12.345, -0.012345, 1234.6, 3.2e-7, 99_999_999.0].map(number);
        assert_eq!(shown, ["0", "12.3", "−0.0123", "1235", "3.20e−7", "1.00e8"]);
        assert_eq!(percent(0.98765), "98.8 %");
    }
}
