//! YAML as Patroni reads it (PyYAML, version 1.1), as far as a configuration needs it.

use yaml_rust2::{
    Event, Yaml, YamlLoader,
    parser::{MarkedEventReceiver, Parser},
    scanner::{Marker, TScalarStyle},
};

/// A node, in the order of the file.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// Nothing.
    Null,
    /// `true` or `false`; `on`, `yes` and their like stay text, see [`Value::truth`].
    Bool(bool),
    /// A scalar as it was written, numbers included.
    Text(String),
    /// A sequence.
    List(Vec<Value>),
    /// A mapping.
    Map(Vec<(String, Value)>),
}

/// Reads one document; an empty one is an empty mapping.
///
/// # Errors
/// Where it is no YAML, or no mapping.
pub fn parse(text: &str) -> Result<Value, String> {
    // This one says what is wrong with it, and drops zeros in front of numbers, which may be passwords.
    YamlLoader::load_from_str(text).map_err(|error| error.to_string())?;
    let mut written = AsWritten(YamlLoader::default());
    Parser::new_from_str(text).load(&mut written, true).map_err(|error| error.to_string())?;
    let mut documents = written.0.documents().to_vec();
    if documents.len() > 1 {
        return Err(format!("it has {} documents, and one is wanted", documents.len()));
    }
    match documents.pop() {
        None | Some(Yaml::Null) => Ok(Value::Map(Vec::new())),
        Some(document @ Yaml::Hash(_)) => Ok(of(document)),
        Some(_) => Err("it is no mapping of keys to values".to_owned()),
    }
}

/// Whole numbers stay texts.
struct AsWritten(YamlLoader);

impl MarkedEventReceiver for AsWritten {
    fn on_event(&mut self, event: Event, mark: Marker) {
        let event = match event {
            Event::Scalar(text, TScalarStyle::Plain, anchor, tag)
                if matches!(Yaml::from_str(&text), Yaml::Integer(_)) =>
            {
                Event::Scalar(text, TScalarStyle::SingleQuoted, anchor, tag)
            }
            other => other,
        };
        self.0.on_event(event, mark);
    }
}

fn of(node: Yaml) -> Value {
    match node {
        Yaml::Boolean(value) => Value::Bool(value),
        Yaml::Integer(number) => Value::Text(number.to_string()),
        Yaml::Real(text) | Yaml::String(text) => Value::Text(text),
        Yaml::Array(items) => Value::List(items.into_iter().map(of).collect()),
        Yaml::Hash(entries) => {
            let mut own = Vec::new();
            for (key, value) in entries {
                match (of(key).text(), of(value)) {
                    // A merge key; what stands beside it counts more, wherever it stands.
                    (Some(key), Value::Map(merged)) if key == "<<" => {
                        own.extend(merged.into_iter().map(|e| (false, e)))
                    }
                    (Some(key), value) => own.push((true, (key, value))),
                    (None, _) => {}
                }
            }
            let mut map: Vec<(String, Value)> = Vec::new();
            for (_, (key, value)) in own.iter().filter(|(direct, _)| *direct).chain(own.iter().filter(|(d, _)| !d)) {
                if !map.iter().any(|(known, _)| known == key) {
                    map.push((key.clone(), value.clone()));
                }
            }
            Value::Map(map)
        }
        Yaml::Null | Yaml::Alias(_) | Yaml::BadValue => Value::Null,
    }
}

impl Value {
    /// The node at `path`, keys with dots between; no key of Patroni's that is asked for has a dot in it.
    pub fn at(&self, path: &str) -> Option<&Value> {
        path.split('.').try_fold(self, |node, key| match node {
            Value::Map(entries) => entries.iter().find(|(name, _)| name == key).map(|(_, value)| value),
            Value::Null | Value::Bool(_) | Value::Text(_) | Value::List(_) => None,
        })
    }

    /// A scalar as text.
    pub fn text(&self) -> Option<String> {
        match self {
            Value::Bool(value) => Some(value.to_string()),
            Value::Text(text) => Some(text.clone()),
            Value::Null | Value::List(_) | Value::Map(_) => None,
        }
    }

    /// What is true for Patroni.
    pub fn truth(&self) -> Option<bool> {
        match self.text()?.to_ascii_lowercase().as_str() {
            "true" | "on" | "yes" | "1" => Some(true),
            "false" | "off" | "no" | "0" => Some(false),
            _ => None,
        }
    }

    /// The scalars of a sequence, or of a text with commas.
    pub fn texts(&self) -> Vec<String> {
        match self {
            Value::List(items) => items.iter().filter_map(Value::text).collect(),
            Value::Text(text) => text.split(',').map(|part| part.trim().to_owned()).filter(|t| !t.is_empty()).collect(),
            Value::Null | Value::Bool(_) | Value::Map(_) => Vec::new(),
        }
    }

    /// The entries of a mapping.
    pub fn entries(&self) -> &[(String, Value)] {
        match self {
            Value::Map(entries) => entries,
            Value::Null | Value::Bool(_) | Value::Text(_) | Value::List(_) => &[],
        }
    }

    /// The paths of all nodes that have none below them, but for sequences, which are one.
    pub fn leaves(&self, prefix: &str) -> Vec<String> {
        let entries = self.entries();
        if entries.is_empty() {
            return if prefix.is_empty() { Vec::new() } else { vec![prefix.to_owned()] };
        }
        let below = |(key, value): &(String, Value)| match prefix {
            "" => value.leaves(key),
            _ => value.leaves(&format!("{prefix}.{key}")),
        };
        entries.iter().flat_map(below).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_patroni_reads_is_read() {
        let text = "a: &x {b: on, c: 'off', d: 010}\ne:\n  <<: *x\n  b: no\nlist: [1, two]\nempty: {}\nnone:\n";
        let value = parse(text).unwrap();
        assert_eq!(value.at("a.b").unwrap().truth(), Some(true));
        assert_eq!(value.at("a.c").unwrap().truth(), Some(false));
        assert_eq!(value.at("e.b").unwrap().truth(), Some(false), "what stands beside a merge key counts more");
        assert_eq!(value.at("e.c").unwrap().text().as_deref(), Some("off"));
        assert_eq!(value.at("list").unwrap().texts(), ["1", "two"]);
        let mut leaves = value.leaves("");
        leaves.sort();
        assert_eq!(leaves, ["a.b", "a.c", "a.d", "e.b", "e.c", "e.d", "empty", "list", "none"]);
        let zeros = parse("a: 0123\nb: &x 007\nc: *x\nd: +5\ne: [00, 0x1F]\nf: 12\ng: '012'\nh: !!int 09\n").unwrap();
        let written = ["a", "b", "c", "d", "f", "g", "h"].map(|key| zeros.at(key).unwrap().text().unwrap());
        assert_eq!(written, ["0123", "007", "007", "+5", "12", "012", "09"]);
        assert_eq!(zeros.at("e").unwrap().texts(), ["00", "0x1F"]);
        assert!(parse("a: 1\na: 2\n").is_err(), "a key twice");
        assert_eq!(parse("").unwrap().leaves(""), [""; 0]);
        assert!(parse("- a\n").is_err() && parse("a: [1\n").is_err() && parse("---\na: 1\n---\nb: 1\n").is_err());
    }
}
