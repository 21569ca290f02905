//! How a value is written where it stands among others. Each format has its own rules, and its readers
//! differ in what they undo: what a driver doesn't decode must not be encoded for it.

use std::fmt::Write as _;

/// What stands for itself everywhere in a URI (RFC 3986).
fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')
}

/// Nothing in it needs to be written in another way.
pub(super) fn is_plain(text: &str) -> bool {
    text.bytes().all(is_unreserved)
}

fn encoded(text: &str, stays: impl Fn(u8) -> bool) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if is_unreserved(byte) || stays(byte) {
            out.push(char::from(byte));
        } else {
            // Writing to a String can't fail.
            let _ = write!(out, "%{byte:02X}");
        }
    }
    out
}

/// For any part of a URI. A space is `%20`, which everybody reads, and `+` is `%2B`, which some would take for a space.
pub(super) fn percent(text: &str) -> String {
    encoded(text, |_| false)
}

/// For the database in a URI of node-postgres, which reads it by `decodeURI`: of these characters the codes stay as
/// they are. `None` where the name would end the path, or be taken for `.` or `..`.
pub(super) fn node_path(text: &str) -> Option<String> {
    if text.contains(['?', '#']) || text.split('/').any(|part| matches!(part, "." | "..")) {
        return None;
    }
    Some(encoded(text, |byte| b";/:@&=+$,".contains(&byte)))
}

/// For a value of a keyword/value string: in quotes unless it is plain, with `\` before what would end them.
pub(super) fn keyword(text: &str) -> String {
    let stays = |c: char| c.is_ascii_alphanumeric() || "-._~:,/@%+".contains(c);
    if !text.is_empty() && text.chars().all(stays) {
        return text.to_owned();
    }
    format!("'{}'", text.replace('\\', "\\\\").replace('\'', "\\'"))
}

/// For a value of an ADO.NET connection string: in double quotes where it needs to be, and those inside twice.
pub(super) fn ado(text: &str) -> String {
    let needs_quotes = |c: char| matches!(c, '"' | '\'' | ';' | '=') || c.is_whitespace() || c.is_control();
    if !text.contains(needs_quotes) {
        return text.to_owned();
    }
    format!("\"{}\"", text.replace('"', "\"\""))
}
