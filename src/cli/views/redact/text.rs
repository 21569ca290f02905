//! Secrets in text that is no document: logs, what programs say, files that can't be read. Where it is not plain how far a
//! value goes, more is masked rather than less.

use std::ops::Range;

use super::{MASK, ends_of_words, in_name, is_place, plain};

/// So far a list is looked at for its end, in bytes.
const LIST: usize = 4096;

/// Options that are followed by a secret …
const OF_SECRETS: [&str; 2] = ["-p", "-P"];
/// … and those that are when it has a colon.
const OF_USERS: [&str; 4] = ["--proxy-user", "--user", "-u", "-U"];

/// What is assigned to a name that speaks of a secret, or follows it as an argument or in SQL, without those secrets.
pub(super) fn values(text: &str) -> String {
    let plain = plain(text);
    let named = ends_of_words(&plain).into_iter().filter_map(|end| after_word(text, &plain, end));
    let mut found: Vec<Range<usize>> =
        named.chain(after_options(text)).filter(|range| is_worth(&text[range.clone()])).collect();
    found.sort_unstable_by_key(|range| (range.start, range.end));
    let mut out = String::new();
    let mut from = 0;
    for range in found {
        if range.start >= from {
            out.push_str(&text[from..range.start]);
            out.push_str(MASK);
        }
        from = from.max(range.end);
    }
    out.push_str(&text[from..]);
    out
}

/// Nothing is lost when it is masked already, or says that there is nothing.
fn is_worth(value: &str) -> bool {
    let bare = value.trim_end_matches([',', ';', ')', ']', '}', '"', '\'', '\\']);
    !value.trim().is_empty() && value != MASK && bare != "null"
}

/// The value that belongs to the name in which a word of a secret ends here.
fn after_word(text: &str, plain: &str, end: usize) -> Option<Range<usize>> {
    let rest = &plain[end..];
    let dotted = |c: char| in_name(c) || c == '.';
    let left = rest.trim_start_matches(dotted);
    let left = &rest[..rest.len() - left.len()];
    let left = left.trim_end_matches('.');
    if is_place(left) {
        return None;
    }
    let after = end + left.len();
    let name = plain[..end].rfind(|c| !dotted(c)).map_or(0, |at| at + 1);
    let closed = skip(text, after, &['\\', '"', '\'', ']']);
    let spaced = blanks(text, closed);
    if let Some(sign) = text[spaced..].chars().next().filter(|c| matches!(c, '=' | ':')) {
        let value = blanks(text, skip(text, spaced, &['=', ':', '>']));
        let whole_line = plain[name..after].ends_with("authorization");
        return Some(value_at(text, value, (sign, whole_line)));
    }
    if spaced > closed
        && let Some(quoted) = sql(text, spaced)
    {
        return Some(quoted);
    }
    // As an argument: with blanks, or as the next of a list.
    let is_option = text[name..].starts_with('-');
    let value = (is_option || listed(text, after)).then(|| argument(text, after)).flatten()?;
    // `{"name": "db_password", "value": "x"}`: what follows is a key.
    let sign = blanks(text, skip(text, value.end, &['\\', '"', '\'']));
    let is_key = !is_option && text[sign..].starts_with(':');
    Some(if is_key { value_at(text, blanks(text, sign + 1), (':', false)) } else { value })
}

/// `'x'`, `E'x'`, `U&'x'`, `$$x$$` and `"x"`, as SQL has them behind a word.
fn sql(text: &str, at: usize) -> Option<Range<usize>> {
    let rest = &text[at..];
    if let Some(tag) = rest.strip_prefix('$').and_then(|rest| rest.split_once('$')).map(|(tag, _)| tag)
        && tag.chars().all(in_name)
    {
        let begin = at + tag.len() + 2;
        let close = format!("${tag}$");
        return Some(begin..text[begin..].find(&close).map_or_else(|| line_end(text, begin), |end| begin + end));
    }
    let prefix = ["U&", "u&", "E", "e", "N", "n", "B", "b", "X", "x"].into_iter().find(|p| rest.starts_with(p));
    let open = [prefix.map_or(0, str::len), 0].into_iter().map(|skipped| at + skipped);
    open.into_iter().find_map(|open| quoted(text, open))
}

/// Whether a quote is closed here and the next word of a list begins.
fn listed(text: &str, at: usize) -> bool {
    let quote = skip(text, at, &['\\']);
    let closed = skip(text, quote, &['"', '\'']);
    let comma = blanks(text, closed);
    let next = skip(text, blanks(text, skip(text, comma, &[','])), &['\\']);
    closed > quote && text[comma..].starts_with(',') && text[next..].starts_with(['"', '\''])
}

/// The next argument, on the command line or in a list.
fn argument(text: &str, at: usize) -> Option<Range<usize>> {
    let mut begin = at;
    loop {
        let next = blanks(text, skip(text, begin, &[',']));
        let quote = skip(text, next, &['\\']);
        // The quote that closes the option before goes by; the one that opens the value is what is looked for.
        let closes = begin == at && next == at && text[quote..].starts_with(['"', '\'']);
        begin = if closes { quote + 1 } else { next };
        if !closes {
            break;
        }
    }
    if begin == at {
        return None;
    }
    if let Some(range) = quoted(text, begin) {
        return Some(range);
    }
    (!text[begin..].starts_with(['-', ']', ')', '}'])).then(|| begin..bare_end(text, begin))
}

/// What follows `-p`, and `-u` where it has a colon.
fn after_options(text: &str) -> Vec<Range<usize>> {
    let mut found = Vec::new();
    for option in OF_SECRETS.iter().chain(&OF_USERS) {
        for (at, _) in text.match_indices(option) {
            let before = text[..at].chars().next_back();
            let begins = before.is_none_or(|c| c.is_whitespace() || matches!(c, '"' | '\'' | '[' | '(' | ',' | '`'));
            let end = at + option.len();
            let value = match text[end..].chars().next().filter(|_| begins) {
                None => None,
                Some('=') => Some(value_at(text, end + 1, ('=', false))),
                Some(c) if c.is_whitespace() || matches!(c, '"' | '\'' | '\\' | ',') => argument(text, end),
                Some(_) => attached(text, option, end),
            };
            let users = OF_USERS.contains(option);
            found.extend(value.filter(|value| !users || text[value.clone()].contains(':')));
        }
    }
    found
}

/// `-ukim:word`, and `-pword` of the programs that take it so: others have options of that beginning.
fn attached(text: &str, option: &str, end: usize) -> Option<Range<usize>> {
    let line = &text[text[..end].rfind('\n').map_or(0, |at| at + 1)..end];
    let takes = OF_USERS.contains(&option) || ["mysql", "mariadb", "sshpass"].iter().any(|name| line.contains(name));
    (takes && option.len() == 2).then(|| end..bare_end(text, end))
}

/// The value that begins here, behind a sign.
fn value_at(text: &str, at: usize, (sign, whole_line): (char, bool)) -> Range<usize> {
    let rest = &text[at..];
    for triple in ["\"\"\"", "'''"] {
        if rest.starts_with(triple) {
            let begin = at + triple.len();
            return begin..text[begin..].find(triple).map_or(text.len(), |end| begin + end);
        }
    }
    if let Some(range) = quoted(text, at) {
        let next = text[range.end..].trim_start_matches(['\\', '"', '\'']);
        // A shell goes on with what stands right beside the quote.
        let goes_on = sign == '=' && next.starts_with(|c: char| in_name(c) || c == '$');
        let end = if goes_on { bare_end(text, text.len() - next.len()) } else { range.end };
        return range.start..end;
    }
    let line = line_end(text, at);
    if whole_line {
        return at..line;
    }
    if sign == ':' && rest[..line - at].trim_start_matches(['|', '>', '+', '-', ' ', '\t', '\r']).is_empty() {
        return block(text, at, line);
    }
    if rest.starts_with(['[', '{', '(']) {
        return list(text, at);
    }
    at..bare_end(text, at)
}

/// The lines below a key of YAML that belong to it.
fn block(text: &str, at: usize, end_of_line: usize) -> Range<usize> {
    let indent = |line: &str| line.len() - line.trim_start_matches([' ', '\t']).len();
    let begin = text[..at].rfind('\n').map_or(0, |at| at + 1);
    let key = indent(&text[begin..at]);
    let mut end = end_of_line;
    for line in text[end_of_line..].split('\n').skip(1) {
        let below = line.trim().is_empty()
            || indent(line) > key
            || (indent(line) == key && line.trim_start().starts_with("- "));
        if !below {
            break;
        }
        end += 1 + line.len();
    }
    let begin = (end_of_line + 1).min(end);
    begin..end
}

/// What a list or a table has in it, to its end.
fn list(text: &str, at: usize) -> Range<usize> {
    let (mut depth, mut end) = (0_usize, at);
    while let Some(c) = text[end..].chars().next().filter(|_| end < at + LIST) {
        match c {
            '[' | '{' | '(' => depth += 1,
            ']' | '}' | ')' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            // `{SCRAM}x` is one word.
            let next = end + c.len_utf8();
            let goes_on = text[next..].starts_with(|c: char| !c.is_whitespace() && !",;)]}\"'".contains(c));
            return if goes_on { at..bare_end(text, next) } else { at + 1..end };
        }
        let closed = quoted(text, end).map(|inside| skip(text, inside.end, &['\\']) + 1);
        end = closed.map_or_else(|| end + c.len_utf8(), |closed| closed.min(line_end(text, end)));
    }
    at..line_end(text, end)
}

/// What stands in the quotes that open here, however often they are escaped; to the end of the line when nothing closes them.
fn quoted(text: &str, at: usize) -> Option<Range<usize>> {
    let open = skip(text, at, &['\\']);
    let escapes = open - at;
    let quote = text[open..].chars().next().filter(|c| matches!(c, '"' | '\''))?;
    let begin = open + 1;
    let line = line_end(text, begin);
    let mut from = begin;
    while let Some(close) = text[from..line].find(quote).map(|found| from + found) {
        let backslashes = close - text[begin..close].trim_end_matches('\\').len() - begin;
        // Twice is SQL for once.
        let twice = escapes == 0 && text[close + 1..line].starts_with(quote) && close > begin;
        if backslashes % (2 * (escapes + 1)) == escapes && !twice {
            return Some(begin..close - escapes.min(backslashes));
        }
        from = close + if twice { 2 } else { 1 };
    }
    Some(begin..line)
}

/// Where a value without quotes around it ends: at a blank that is neither escaped nor in quotes.
fn bare_end(text: &str, at: usize) -> usize {
    let line = line_end(text, at);
    let mut end = at;
    while let Some(c) = text[end..line].chars().next() {
        end = match c {
            ' ' | '\t' | '\r' => break,
            '\\' => end + 1 + text[end + 1..line].chars().next().map_or(0, char::len_utf8),
            '"' | '\'' => match text[end + 1..line].find(c) {
                Some(close) => end + close + 2,
                None => end + 1,
            },
            c => end + c.len_utf8(),
        };
    }
    end
}

fn line_end(text: &str, at: usize) -> usize {
    text[at..].find('\n').map_or(text.len(), |end| at + end)
}

fn skip(text: &str, at: usize, what: &[char]) -> usize {
    text.len() - text[at..].trim_start_matches(what).len()
}

/// Past blanks, and past the end of a line that goes on.
fn blanks(text: &str, at: usize) -> usize {
    let mut at = skip(text, at, &[' ', '\t']);
    while text[at..].starts_with("\\\n") {
        at = skip(text, at + 2, &[' ', '\t']);
    }
    at
}

/// `postgres://user:x@host`: what stands between the colon and the last `@` is masked.
pub(super) fn addresses(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find("://") {
        let (before, after) = rest.split_at(at + 3);
        out.push_str(before);
        // A password may have all kinds of signs in it, but no blanks.
        let ends = after.find(char::is_whitespace).unwrap_or(after.len());
        let ends = after[..ends].find("://").unwrap_or(ends);
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
