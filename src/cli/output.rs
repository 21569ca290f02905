//! How documents are written: as JSON, as YAML, or as lines with tabs. Every command makes one document of what it shows,
//! and this is the one place that turns it into text.

use std::{
    fmt::Write as _,
    sync::atomic::{AtomicU8, Ordering},
};

use clap::ValueEnum;
use serde::Serialize;
use serde_json::Value;

/// What `--output` takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Text for people
    Table,
    /// The same as --json
    Json,
    /// The same document as YAML
    Yaml,
    /// Lines with tabs: its table with a head, or a key and its value
    Tsv,
}

/// A process writes all its documents in one way, which is chosen before the command begins.
static CHOSEN: AtomicU8 = AtomicU8::new(Format::Json as u8);

/// How documents are written from now on.
pub(super) fn choose(format: Format) {
    CHOSEN.store(format as u8, Ordering::Relaxed);
}

fn chosen() -> Format {
    let all = [Format::Table, Format::Json, Format::Yaml, Format::Tsv];
    all.into_iter().find(|f| *f as u8 == CHOSEN.load(Ordering::Relaxed)).unwrap_or(Format::Json)
}

/// One whole document as it was chosen.
pub(super) fn document(value: &impl Serialize) -> String {
    match chosen() {
        // A command that makes a table asks for no document.
        Format::Table | Format::Json => {
            let mut text = serde_json::to_string_pretty(value).expect("plain structs with text keys always serialize");
            text.push('\n');
            text
        }
        Format::Yaml => yaml(&whole(value)),
        Format::Tsv => tsv(&whole(value)),
    }
}

/// One of a stream of documents: a line, or a document of YAML that says where it begins.
pub(super) fn streamed(value: &impl Serialize) -> String {
    match chosen() {
        Format::Table | Format::Json => {
            let mut line = serde_json::to_string(value).expect("plain structs with text keys always serialize");
            line.push('\n');
            line
        }
        Format::Yaml => format!("---\n{}", yaml(&whole(value))),
        Format::Tsv => {
            let cells = flat(&whole(value)).into_iter().map(|(key, value)| format!("{key}={}", cell(&value)));
            format!("{}\n", cells.collect::<Vec<_>>().join("\t"))
        }
    }
}

fn whole(value: &impl Serialize) -> Value {
    serde_json::to_value(value).expect("plain structs with text keys always serialize")
}

fn yaml(value: &Value) -> String {
    let mut text = serde_saphyr::to_string(value).expect("a JSON document is a YAML document");
    if !text.ends_with('\n') {
        text.push('\n');
    }
    text
}

/// Where the table of a document is, when it has several lists.
const TABLES: [&str; 8] = ["members", "reigns", "clusters", "checks", "hosts", "operations", "events", "rules"];

/// The table of the document with a head; of one that has none a key and its value in each line. Nothing is lost in a table
/// but what stands beside it: whoever wants all of it takes JSON.
fn tsv(document: &Value) -> String {
    match table_of(document) {
        Some(rows) => {
            let rows: Vec<Vec<(String, Value)>> = rows.iter().map(flat).collect();
            let mut columns: Vec<String> = Vec::new();
            for (key, _) in rows.iter().flatten() {
                if !columns.contains(key) {
                    columns.push(key.clone());
                }
            }
            let mut text = format!("{}\n", columns.join("\t"));
            for row in &rows {
                let of = |column: &String| row.iter().find(|(key, _)| key == column).map(|(_, value)| cell(value));
                let cells: Vec<String> = columns.iter().map(|c| of(c).unwrap_or_default()).collect();
                let _ = writeln!(text, "{}", cells.join("\t"));
            }
            text
        }
        None => {
            let lines = flat(document).into_iter().map(|(key, value)| format!("{key}\t{}\n", cell(&value)));
            lines.collect()
        }
    }
}

/// The list of objects that the document is, or that stands in it.
fn table_of(document: &Value) -> Option<&Vec<Value>> {
    let rows = |value: &'_ Value| value.as_array().is_some_and(|a| !a.is_empty() && a.iter().all(Value::is_object));
    if document.is_array() {
        return document.as_array().filter(|_| rows(document));
    }
    let object = document.as_object()?;
    let named = TABLES.iter().filter_map(|name| object.get(*name)).find(|value| rows(value));
    named.or_else(|| object.values().find(|value| rows(value))).and_then(Value::as_array)
}

/// What stands in a document, with the way to it as the key. Short lists of words stay one value.
fn flat(value: &Value) -> Vec<(String, Value)> {
    fn walk(way: &str, value: &Value, out: &mut Vec<(String, Value)>) {
        let below = |key: &str| if way.is_empty() { key.to_owned() } else { format!("{way}.{key}") };
        match value {
            Value::Object(fields) if !fields.is_empty() => {
                fields.iter().for_each(|(key, value)| walk(&below(key), value, out));
            }
            Value::Array(items) if items.iter().any(|i| i.is_object() || i.is_array()) => {
                items.iter().enumerate().for_each(|(n, item)| walk(&below(&n.to_string()), item, out));
            }
            other => out.push((way.to_owned(), other.clone())),
        }
    }
    let mut out = Vec::new();
    walk("", value, &mut out);
    out
}

/// One value on one line: what would end a cell or a line is written as `\t`, `\n`, `\r` and `\\`.
fn cell(value: &Value) -> String {
    let text = match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        Value::Array(items) => items.iter().map(cell).collect::<Vec<_>>().join("; "),
        Value::Object(_) => String::new(),
        Value::Bool(_) | Value::Number(_) => value.to_string(),
    };
    if matches!(value, Value::Array(_)) {
        // Its items are escaped already.
        return text;
    }
    text.replace('\\', "\\\\").replace('\t', "\\t").replace('\n', "\\n").replace('\r', "\\r")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_table_has_a_head_and_a_line_for_each_row() {
        let document = json!({"cluster": "main", "holds": ["a hold"], "members": [
            {"member": "n1", "lag": null, "problems": []},
            {"member": "n2", "lag": {"bytes": 5}, "problems": ["a\tb", "c"]},
        ]});
        assert_eq!(tsv(&document), "lag\tmember\tproblems\tlag.bytes\n\tn1\t\t\n\tn2\ta\\tb; c\t5\n");
    }

    #[test]
    fn a_document_without_a_table_is_keys_and_values() {
        let document = json!({"paused": true, "by": {"whom": "ada", "why": "new\nkernel"}, "words": ["x", "y"]});
        assert_eq!(tsv(&document), "by.whom\tada\nby.why\tnew\\nkernel\npaused\ttrue\nwords\tx; y\n");
        assert_eq!(tsv(&json!([])), "\t\n");
    }

    /// Text that YAML would take for something else stays text.
    #[test]
    fn yaml_says_the_same_as_json() {
        let text = yaml(
            &json!({"lsn": "0/5000060", "no": "no", "none": null, "nodes": 12, "list": [{"a": "1"}, {"a": "x: y"}]}),
        );
        for line in ["lsn: 0/5000060", "nodes: 12", "a: \"1\"", "a: \"x: y\"", "none: null"] {
            assert!(text.contains(line), "{line} in\n{text}");
        }
        assert!(!text.contains("no: no\n"), "{text}");
    }
}
