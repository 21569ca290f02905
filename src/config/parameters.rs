//! Checks what a host's file sets of PostgreSQL.

use super::error::Wrong;
use crate::domain::parameters;

/// Checks one entry of `postgresql.parameters`, and gives its value as text for `postgresql.conf`.
pub(super) fn check(name: &str, value: &toml::Value) -> Result<String, Wrong> {
    let key = || format!("postgresql.parameters.{name}");
    if let Some((problem, advice)) = parameters::forbidden(name) {
        return Err(Wrong::new(key(), problem, advice));
    }
    let text = match value {
        toml::Value::String(text) => text.clone(),
        toml::Value::Integer(number) => number.to_string(),
        toml::Value::Float(number) => number.to_string(),
        toml::Value::Boolean(true) => "on".to_owned(),
        toml::Value::Boolean(false) => "off".to_owned(),
        toml::Value::Datetime(_) | toml::Value::Array(_) | toml::Value::Table(_) => {
            let problem = format!("a value of type {} can't be a PostgreSQL setting", value.type_str());
            return Err(Wrong::new(key(), problem, "write text, a number or a boolean; lists as one text"));
        }
    };
    if let Some((problem, advice)) = parameters::impossible(name, &text) {
        return Err(Wrong::new(key(), problem, advice));
    }
    Ok(text)
}
