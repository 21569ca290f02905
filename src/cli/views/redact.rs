//! What a support bundle may not carry. Whatever looks like a secret is masked, and every secret that is known by its file is
//! masked wherever it stands. Pure.

/// What stands in place of a secret.
pub(super) const MASK: &str = "[redacted]";

/// A shorter secret stands in too much that is none.
const SHORTEST: usize = 6;

/// Words in a name whose value nobody else is to see.
const SECRET_WORDS: [&str; 8] =
    ["password", "passwd", "passphrase", "secret", "token", "credential", "private_key", "access_key"];

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

    /// The text without secrets.
    pub(super) fn text(&self, text: &str) -> String {
        let mut text = text.to_owned();
        for secret in &self.known {
            text = text.replace(secret.as_str(), MASK);
        }
        let ends = text.ends_with('\n');
        let mut out = Vec::new();
        let mut in_key = false;
        for line in text.lines() {
            if line.contains("-----BEGIN") && line.contains("PRIVATE KEY") {
                in_key = true;
                out.push(MASK.to_owned());
            }
            if !in_key {
                out.push(address(&assignment(line)));
            }
            in_key &= !(line.contains("-----END") && line.contains("PRIVATE KEY"));
        }
        let mut text = out.join("\n");
        if ends {
            text.push('\n');
        }
        text
    }
}

/// `password = "x"`, `PGPASSWORD=x`, `"token": "x"`, and `authorization: Basic x`: the value is masked. Names of files are
/// no secrets: `password_file` stays.
fn assignment(line: &str) -> String {
    let lower = line.to_ascii_lowercase();
    let mut out = String::new();
    let mut from = 0;
    while let Some((begin, end)) = next_value(&lower, from) {
        out.push_str(&line[from..begin]);
        out.push_str(MASK);
        from = end;
    }
    out.push_str(&line[from..]);
    out
}

/// Where the next secret value begins and ends, from `from` on.
fn next_value(lower: &str, from: usize) -> Option<(usize, usize)> {
    let words = SECRET_WORDS.iter().chain(&["authorization"]);
    let mut hits: Vec<usize> =
        words.flat_map(|word| lower[from..].match_indices(word).map(|(at, found)| from + at + found.len())).collect();
    hits.sort_unstable();
    hits.into_iter().find_map(|after| value_after(lower, after))
}

/// The value that follows a name which ends at `after` or a little later; `None`: nothing is assigned to it.
fn value_after(lower: &str, after: usize) -> Option<(usize, usize)> {
    let rest = &lower[after..];
    // What is left of the name: `password_file` names a file, `secret_key` a secret.
    let name = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-').len();
    if rest[..name].contains("file") || rest[..name].contains("env") || rest[..name].contains("encryption") {
        return None;
    }
    let rest = &rest[name..];
    let sign = rest.trim_start_matches(['"', '\'', ' ', '\\']);
    // `password 'x'` is what SQL says.
    let sql = name == 0 && rest.starts_with(" '");
    let value = match sign.strip_prefix([':', '=']) {
        Some(value) => value.trim_start_matches(['=', '>', ' ', '\\']),
        None if sql => rest.trim_start(),
        None => return None,
    };
    let quote = value.chars().next().filter(|c| matches!(c, '"' | '\''));
    let begin = lower.len() - value.len() + quote.map_or(0, char::len_utf8);
    let value = &lower[begin..];
    let end = match quote {
        Some(quote) => value.find(quote).unwrap_or(value.len()),
        // `authorization: basic x` has two words.
        None if value.starts_with("basic ") || value.starts_with("bearer ") => value.len(),
        None => value.find([' ', ',', ';', '&', '}', '\t', '"', '\'']).unwrap_or(value.len()),
    };
    let masked = value.starts_with(MASK) || value[..end].starts_with("null");
    (end > 0 && !masked).then_some((begin, begin + end))
}

/// `postgres://user:x@host`: what stands between the colon and the `@` is masked.
fn address(line: &str) -> String {
    let mut out = String::new();
    let mut rest = line;
    while let Some(at) = rest.find("://") {
        let (before, after) = rest.split_at(at + 3);
        out.push_str(before);
        let ends = after.find(['/', ' ', '"', '\'', '?']).unwrap_or(after.len());
        let authority = &after[..ends];
        match authority.rfind('@').and_then(|at| Some((at, authority[..at].find(':')?))) {
            Some((at, colon)) => {
                out.push_str(&authority[..=colon]);
                out.push_str(MASK);
                out.push_str(&authority[at..]);
            }
            None => out.push_str(authority),
        }
        rest = &after[ends..];
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn becomes(text: &str, expected: &str) {
        assert_eq!(Redactor::default().text(text), expected.replace("X", MASK));
    }

    #[test]
    fn a_value_whose_name_speaks_of_a_secret_is_masked() {
        becomes("password = \"hunter2 x\"", "password = \"X\"");
        becomes("PGPASSWORD=hunter2 psql", "PGPASSWORD=X psql");
        becomes(r#"{"token": "abc", "member": "n1"}"#, r#"{"token": "X", "member": "n1"}"#);
        becomes(r#"x: "AWS_SECRET_ACCESS_KEY=abc cp %p""#, r#"x: "AWS_SECRET_ACCESS_KEY=X cp %p""#);
        becomes("Authorization: Basic YTpi", "Authorization: X");
        becomes("host=a password=one user=b password='two'", "host=a password=X user=b password='X'");
        becomes("ALTER ROLE a PASSWORD 'hunter2';", "ALTER ROLE a PASSWORD 'X';");
        becomes(r#"{\"password\": \"hunter2\"}"#, r#"{\"password\": \"X"}"#);
    }

    #[test]
    fn what_is_no_secret_stays() {
        for text in [
            "secret_file = \"/etc/matriarch/secret\"",
            "superuser_password_file = \"/etc/x\"",
            "password_env = \"PGPASSWORD_OF_ROUTER\"",
            "password_encryption = scram-sha-256",
            "the secret of the cluster can't be read",
            "http://10.0.0.1:7400/status",
            "",
            "two\n\nlines\n",
        ] {
            becomes(text, text);
        }
    }

    #[test]
    fn addresses_lose_their_passwords_and_keys_are_left_out() {
        becomes("to postgres://app:hunter2@db:5432/x and http://a@b/", "to postgres://app:X@db:5432/x and http://a@b/");
        becomes("a\n-----BEGIN EC PRIVATE KEY-----\nMIIB\n-----END EC PRIVATE KEY-----\nb\n", "a\nX\nb\n");
    }

    #[test]
    fn what_is_known_is_masked_wherever_it_stands() {
        let mut redactor = Redactor::default();
        redactor.learn("s3cret-of-main\n");
        redactor.learn("abc");
        assert_eq!(
            redactor.text("it is s3cret-of-main, abc"),
            format!("it is {MASK}, abc"),
            "too short to be told apart"
        );
    }
}
