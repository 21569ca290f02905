//! What a support bundle may not carry. Whatever looks like a secret is masked, and every secret that is known by its file is
//! masked wherever it stands. Documents are masked by their keys, all other text by what stands beside it. Pure.

mod document;
mod text;

use crate::domain::archive::SECRET_WORDS;

/// What stands in place of a secret.
pub(super) const MASK: &str = "[redacted]";

/// A shorter secret stands in too much that is none.
const SHORTEST: usize = 6;

/// More words in a name whose value nobody else is to see, beside those that no command of the settings may have. All of them
/// as [`plain`] writes them.
const MORE_WORDS: [&str; 8] = [
    "passphrase",
    "credential",
    "private_key",
    "azure_key",
    "s3_key",
    "encryption_key",
    "signing_key",
    "authorization",
];

/// These are words of a secret only at the end of a name: `db_pass`, and not `passed`.
const LAST_WORDS: [&str; 3] = ["pass", "pwd", "passcode"];

/// What stands behind such a word where the value only says where the secret is, or how it is kept.
const PLACES: [&str; 4] = ["file", "files", "env", "encryption"];

/// Masks what it knows, and what looks like a secret.
#[derive(Debug, Default)]
pub(super) struct Redactor {
    known: Vec<String>,
}

impl Redactor {
    /// One more secret, and each line of it.
    pub(super) fn learn(&mut self, secret: &str) {
        let lines = secret.lines().chain([secret]).map(str::trim).filter(|line| line.len() >= SHORTEST);
        for line in lines {
            if !self.known.iter().any(|known| known == line) {
                self.known.push(line.to_owned());
            }
        }
        // The whole before its parts, so that nothing of it is left.
        self.known.sort_by_key(|known| std::cmp::Reverse(known.len()));
    }

    /// A file by the ending of its name. What is no document, or none that can be read, is text.
    pub(super) fn file(&self, name: &str, text: &str) -> String {
        let masked = match name.rsplit('.').next() {
            Some("json") => self.json(text),
            Some("toml") => self.toml(text),
            _ => None,
        };
        masked.unwrap_or_else(|| self.text(text))
    }

    /// The text without secrets.
    pub(super) fn text(&self, text: &str) -> String {
        let ends = text.ends_with('\n');
        let mut out = Vec::new();
        let mut in_key = false;
        for line in text.lines() {
            if line.contains("-----BEGIN") && line.contains("PRIVATE KEY") {
                in_key = true;
                out.push(MASK.to_owned());
            }
            if !in_key {
                // A line of a log, or of events, may be a document of its own.
                let document = line.trim_start().starts_with(['{', '[']).then(|| self.json_line(line)).flatten();
                out.push(document.unwrap_or_else(|| line.to_owned()));
            }
            in_key &= !(line.contains("-----END") && line.contains("PRIVATE KEY"));
        }
        let mut text = self.words(&out.join("\n"));
        if ends {
            text.push('\n');
        }
        text
    }

    /// What is no document in itself.
    fn words(&self, text: &str) -> String {
        let mut text = text.to_owned();
        for secret in &self.known {
            text = text.replace(secret.as_str(), MASK);
        }
        text::addresses(&text::values(&text))
    }
}

/// A name as words are looked for in it. It has as many bytes as before.
fn plain(name: &str) -> String {
    name.to_ascii_lowercase().replace('-', "_")
}

/// Where in `plain` text a word of a secret ends; the same place can be there twice.
fn ends_of_words(plain: &str) -> Vec<usize> {
    let anywhere = SECRET_WORDS.iter().chain(&MORE_WORDS);
    let mut ends: Vec<usize> =
        anywhere.flat_map(|word| plain.match_indices(word).map(|(at, word)| at + word.len())).collect();
    for word in LAST_WORDS {
        let all = plain.match_indices(word).map(|(at, word)| at + word.len());
        ends.extend(all.filter(|end| !plain[*end..].starts_with(in_name)));
    }
    ends.sort_unstable();
    ends
}

fn in_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_'
}

/// What is left of a name behind such a word says that the value is no secret.
fn is_place(rest: &str) -> bool {
    PLACES.contains(&rest.trim_start_matches('_'))
}

/// The name is that of a secret.
fn is_secret(name: &str) -> bool {
    let plain = plain(name);
    ends_of_words(&plain).into_iter().any(|end| !is_place(&plain[end..]))
}

#[cfg(test)]
#[path = "redact_test.rs"]
mod tests;
