//! Secrets in documents: there the key says what a value is, whatever it looks like.

use serde_json::{Map, Value};

use super::{MASK, Redactor, is_secret};

/// What the key above says of what stands below it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Below {
    Anything,
    /// All of it is.
    Secret,
    /// A program with its arguments, in one text or one by one.
    Command,
}

/// What is said of a setting beside its value.
const REMARKS: [&str; 4] = ["help", "problem", "set", "reason"];

/// Keys whose values are commands, as Patroni calls them.
const CALLBACKS: [&str; 7] =
    ["pre_promote", "before_stop", "on_start", "on_stop", "on_restart", "on_reload", "on_role_change"];

/// Fields that say which thing the other fields are of.
const NAMES: [&str; 7] = ["name", "key", "setting", "parameter", "option", "variable", "header"];

impl Redactor {
    /// `None`: it is no JSON.
    pub(super) fn json(&self, text: &str) -> Option<String> {
        let document: Value = serde_json::from_str(text).ok()?;
        let masked = self.masked(&document, Below::Anything);
        if masked == document {
            return Some(text.to_owned());
        }
        serde_json::to_string_pretty(&masked).ok().map(|text| text + "\n")
    }

    /// One line; `None`: it is no JSON, or has nothing to mask.
    pub(super) fn json_line(&self, line: &str) -> Option<String> {
        let document: Value = serde_json::from_str(line).ok()?;
        let masked = self.masked(&document, Below::Anything);
        (masked != document).then(|| serde_json::to_string(&masked).ok()).flatten()
    }

    /// Without its comments; `None`: it is no TOML.
    pub(super) fn toml(&self, text: &str) -> Option<String> {
        let document = serde_json::to_value(text.parse::<toml::Table>().ok()?).ok()?;
        toml::to_string(&toml::Table::try_from(self.masked(&document, Below::Anything)).ok()?).ok()
    }

    fn masked(&self, value: &Value, below: Below) -> Value {
        match (value, below) {
            (Value::String(text), _) if text.is_empty() => value.clone(),
            (Value::String(_) | Value::Number(_), Below::Secret) => MASK.into(),
            (Value::String(text), Below::Command) => self.program(text).into(),
            (Value::String(text), Below::Anything) => self.text(text).into(),
            (Value::Array(items), below) => self.items(items, below).into(),
            (Value::Object(fields), below) => self.fields(fields, below).into(),
            (Value::Null | Value::Bool(_) | Value::Number(_), _) => value.clone(),
        }
    }

    /// Of a command only the program is shown.
    fn program(&self, command: &str) -> String {
        match command.trim().split_once(char::is_whitespace) {
            // `PGPASSWORD=x psql`
            Some((first, _)) if first.contains('=') => MASK.to_owned(),
            Some((first, _)) => format!("{} {MASK}", self.text(first)),
            None => self.text(command),
        }
    }

    fn fields(&self, fields: &Map<String, Value>, below: Below) -> Map<String, Value> {
        let named = |key: &str| NAMES.contains(&key);
        let of_secret = fields.iter().any(|(key, value)| named(key) && value.as_str().is_some_and(is_secret));
        let masked = fields.iter().map(|(key, value)| {
            let below = match below {
                Below::Secret => Below::Secret,
                Below::Command if !REMARKS.contains(&key.as_str()) => Below::Command,
                _ if of_secret && !named(key) => Below::Secret,
                _ => what_is_below(key),
            };
            (self.words(key), self.masked(value, below))
        });
        masked.collect()
    }

    fn items(&self, items: &[Value], below: Below) -> Vec<Value> {
        let mut out: Vec<Value> = Vec::new();
        for (n, item) in items.iter().enumerate() {
            let before = n.checked_sub(1).and_then(|n| items[n].as_str());
            let below = match below {
                // An object in it names its program itself.
                Below::Command if item.is_object() => Below::Anything,
                Below::Command if n > 0 => Below::Secret,
                Below::Anything if before.is_some_and(|before| wants_a_secret(before, item)) => Below::Secret,
                below => below,
            };
            out.push(match item.as_str() {
                Some(argument) if below == Below::Anything => self.argument(argument).into(),
                _ => self.masked(item, below),
            });
        }
        out
    }

    /// `-phunter2` is an option with its value.
    fn argument(&self, argument: &str) -> String {
        match argument.split_at_checked(2) {
            Some((option @ ("-p" | "-P"), value)) if !value.is_empty() => format!("{option}{MASK}"),
            Some((option @ ("-u" | "-U"), value)) if value.contains(':') => format!("{option}{MASK}"),
            _ => self.text(argument),
        }
    }
}

fn what_is_below(key: &str) -> Below {
    match key.rsplit('.').next().unwrap_or(key) {
        last if last == "command" || last.ends_with("_command") || CALLBACKS.contains(&last) => Below::Command,
        _ if is_secret(key) => Below::Secret,
        _ => Below::Anything,
    }
}

/// An argument after which a secret stands, when this one does.
fn wants_a_secret(before: &str, item: &Value) -> bool {
    let one_word = !before.contains(|c: char| c.is_whitespace() || matches!(c, '=' | ':'));
    match before {
        "-p" | "-P" => true,
        "-u" | "-U" | "--user" | "--proxy-user" => item.as_str().is_some_and(|item| item.contains(':')),
        _ => one_word && is_secret(before),
    }
}
