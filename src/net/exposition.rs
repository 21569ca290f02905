//! Metrics in the text format of Prometheus, version 0.0.4. Pure.

use std::fmt::{Display, Write as _};

/// What such a page says that it is.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// A page that is being written.
#[derive(Debug, Default)]
pub struct Exposition {
    text: String,
}

/// One metric of a page, to which values are added.
#[derive(Debug)]
pub struct Family<'a> {
    page: &'a mut Exposition,
    name: &'a str,
}

impl Exposition {
    /// A metric that goes up and down.
    pub fn gauge<'a>(&'a mut self, name: &'a str, help: &str) -> Family<'a> {
        self.family(name, "gauge", help)
    }

    /// A metric that only grows while the process lives.
    pub fn counter<'a>(&'a mut self, name: &'a str, help: &str) -> Family<'a> {
        self.family(name, "counter", help)
    }

    fn family<'a>(&'a mut self, name: &'a str, kind: &str, help: &str) -> Family<'a> {
        let help = help.replace('\\', "\\\\").replace('\n', "\\n");
        // Writing to a String can't fail.
        let _ = writeln!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}");
        Family { page: self, name }
    }

    /// The page.
    pub fn into_text(self) -> String {
        self.text
    }
}

impl Family<'_> {
    /// A value, told from the metric's others by its labels.
    pub fn value(&mut self, labels: &[(&str, &str)], value: impl Display) -> &mut Self {
        let text = &mut self.page.text;
        text.push_str(self.name);
        for (index, (label, is)) in labels.iter().enumerate() {
            let before = if index == 0 { '{' } else { ',' };
            let _ = write!(text, "{before}{label}=\"{}\"", escaped(is));
        }
        let end = if labels.is_empty() { "" } else { "}" };
        let _ = writeln!(text, "{end} {value}");
        self
    }
}

fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;

    #[test]
    fn values_follow_their_help_and_whatever_is_in_a_label_stays_there() {
        let mut page = Exposition::default();
        page.counter("a_total", "What is \\ and\nwhere.")
            .value(&[], 3)
            .value(&[("at", "x\"y\\z\n"), ("port", "read_write")], 0.5);
        page.gauge("b", "Nothing.");
        expect![[r#"
            # HELP a_total What is \\ and\nwhere.
            # TYPE a_total counter
            a_total 3
            a_total{at="x\"y\\z\n",port="read_write"} 0.5
            # HELP b Nothing.
            # TYPE b gauge
        "#]]
        .assert_eq(&page.into_text());
    }
}
