//! Lines of `pg_hba.conf` and `pg_ident.conf`, looked at one by one before they are committed for all hosts. PostgreSQL
//! looks at them once more on each host; here is found what no version of it takes, and what doesn't belong into a log.

use super::{archive::SECRET_WORDS, hba_rules::hba_line};

/// So many bytes all lines may have: each change of them is kept for a while.
const BYTES_MAX: usize = 32 << 10;
/// Options that hold a secret.
const SECRETS: [&str; 2] = ["ldapbindpasswd", "radiussecrets"];
/// What goes before a secret elsewhere, too, with a `=` behind it or, in a remark, a colon.
const MORE_WORDS: [&str; 2] = ["pwd", "passphrase"];

/// The lines that say something.
pub fn lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let all = text.lines().enumerate().map(|(at, line)| (at + 1, line.trim()));
    all.filter(|(_, line)| !line.is_empty() && !line.starts_with('#'))
}

/// All that is wrong with lines of `pg_hba.conf`, each with its number.
pub fn problems_of_hba(text: &str) -> Vec<String> {
    problems(text, hba_line)
}

/// All that is wrong with lines of `pg_ident.conf`, each with its number.
pub fn problems_of_ident(text: &str) -> Vec<String> {
    problems(text, ident_line)
}

fn problems(text: &str, judge: fn(&[Field]) -> Result<(), String>) -> Vec<String> {
    if text.len() > BYTES_MAX {
        return vec![format!("it has {} bytes, and {BYTES_MAX} are possible", text.len())];
    }
    if text.chars().any(|c| c.is_control() && !matches!(c, '\n' | '\r' | '\t')) {
        return vec!["it has a control character".to_owned()];
    }
    // Before anything of a line is repeated in words, and in remarks as well: all of it stands in the log.
    let secrets: Vec<String> = text.lines().enumerate().filter_map(secret).collect();
    if !secrets.is_empty() {
        return secrets;
    }
    let problem = |(at, line)| {
        let judged = fields(line).and_then(|fields| if fields.is_empty() { Ok(()) } else { judge(&fields) });
        judged.err().map(|why| format!("line {at}: {why}"))
    };
    lines(text).filter_map(problem).collect()
}

/// What is said of a line that looks as if it held a secret; nothing of the line is repeated.
fn secret((at, line): (usize, &str)) -> Option<String> {
    let squeeze = |text: &str| -> String {
        let kept = text.chars().filter(|c| !c.is_whitespace() && !matches!(c, '"' | '\'' | '\\'));
        kept.flat_map(char::to_lowercase).collect()
    };
    let (whole, remark) = (squeeze(line), squeeze(line.split_once('#').map_or("", |(_, remark)| remark)));
    let has = |text: &str, word: &str, mark: char| text.contains(&format!("{word}{mark}"));
    let option = SECRETS.into_iter().find(|option| has(&whole, option, '='));
    if let Some(option) = option {
        return Some(format!(
            "line {}: {option} is a secret and would stand in the cluster's log; keep such lines in each host's file",
            at + 1
        ));
    }
    let named =
        SECRET_WORDS.into_iter().chain(MORE_WORDS).any(|word| has(&whole, word, '=') || has(&remark, word, ':'));
    (named || names_user_and_password(&whole)).then(|| {
        format!(
            "line {}: it looks as if it held a password, which would stand in the cluster's log; take it out",
            at + 1
        )
    })
}

/// `postgres://user:password@host`.
fn names_user_and_password(text: &str) -> bool {
    text.split("://").skip(1).any(|rest| rest.split(['/', '?', '#']).next().is_some_and(|place| place.contains('@')))
}

/// A part of a field, between commas.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Token {
    /// Without its quotes.
    pub(super) text: String,
    /// It begins with a quote: then it is no keyword.
    pub(super) quoted: bool,
}

/// What blanks part, a list where there are commas.
pub(super) type Field = Vec<Token>;

/// As PostgreSQL takes a line apart (`next_token` and `next_field_expand` of its hba.c): blanks outside of quotes part fields,
/// a comma goes on with a list, also behind blanks that follow it, two quotes in quotes are one, `#` ends the line.
fn fields(line: &str) -> Result<Vec<Field>, String> {
    if line.ends_with('\\') {
        return Err("it goes on in the next line; write it in one".to_owned());
    }
    let mut rest = line.chars().peekable();
    let (mut fields, mut listed): (Vec<Field>, bool) = (Vec::new(), false);
    loop {
        while rest.next_if(|c| c.is_whitespace() || *c == ',').is_some() {}
        if rest.peek().is_none_or(|c| *c == '#') {
            return Ok(fields);
        }
        let (mut token, mut in_quotes, mut comma) =
            (Token { quoted: rest.peek() == Some(&'"'), ..Token::default() }, false, false);
        while let Some(c) = rest.next_if(|c| in_quotes || !(c.is_whitespace() || *c == '#')) {
            match c {
                '"' if in_quotes && rest.next_if(|next| *next == '"').is_some() => token.text.push('"'),
                '"' => in_quotes = !in_quotes,
                ',' if !in_quotes => {
                    comma = true;
                    break;
                }
                c => token.text.push(c),
            }
        }
        if in_quotes {
            return Err("a quote is not closed".to_owned());
        }
        if !token.quoted && token.text.starts_with('@') && token.text.len() > 1 {
            return Err(format!("`{}` names a file of one host, and this is for all; write what is in it", token.text));
        }
        match fields.last_mut().filter(|_| listed) {
            Some(list) => list.push(token),
            None => fields.push(vec![token]),
        }
        listed = comma;
    }
}

/// The one part of a field that is no list.
pub(super) fn single<'a>(field: &'a [Token], what: &str) -> Result<&'a Token, String> {
    match field {
        [one] => Ok(one),
        _ => Err(format!("{what} is one, not a list")),
    }
}

/// Refuses lines that take others from a file.
pub(super) fn is_no_include(kind: &str) -> Result<(), String> {
    match kind {
        "include" | "include_if_exists" | "include_dir" => {
            Err(format!("`{kind}` names a file of one host, and this is for all; write its lines here"))
        }
        _ => Ok(()),
    }
}

fn ident_line(fields: &[Field]) -> Result<(), String> {
    if let Some([first]) = fields.first().map(Vec::as_slice) {
        is_no_include(&first.text)?;
    }
    match fields {
        [map, of_system, of_postgres] => {
            for (field, what) in
                [(map, "the map"), (of_system, "the user of the system"), (of_postgres, "the user of PostgreSQL")]
            {
                single(field, what)?;
            }
            Ok(())
        }
        other => Err(format!("it has {} fields, not 3: map, user of the system, user of PostgreSQL", other.len())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_that_postgresql_takes_are_taken() {
        let text = "# who comes in\n\
            local all all peer map=ops\n\
            host    app, other  \"strange user\"  10.0.0.0/8  scram-sha-256 # the office\n\
            host all all 10.0.0.1 255.255.255.255 md5\n\
            hostssl all +staff ::/0 cert clientcert=verify-full # a password is not asked for\n\
            host all all samenet reject\n\
            \n\
            host all all .example.com ldap ldapserver=l ldapprefix=\"cn=\"\n";
        assert_eq!(problems_of_hba(text), [""; 0]);
        assert_eq!(lines(text).count(), 6);
        let split = |line: &str| {
            let text = |field: &Field| Vec::from_iter(field.iter().map(|token| token.text.as_str())).join("|");
            fields(line).map(|fields| Vec::from_iter(fields.iter().map(text)).join(" "))
        };
        assert_eq!(split("host a, b \"x y\",c \"q\"\"r\" o=\",\"#z").as_deref(), Ok("host a|b x y|c q\"r o=,"));
        assert_eq!(split("host a , b").as_deref(), Ok("host a b"), "as PostgreSQL does");
        assert_eq!(problems_of_ident("ops root postgres\nops /^(.*)@x$ \\1\n"), [""; 0]);
    }

    #[test]
    fn each_line_that_is_wrong_is_named() {
        let only = |line: &str| problems_of_hba(line).join("|");
        for (line, why) in [
            ("hots all all 10.0.0.0/8 md5", "line 1: a line begins with one of local, host, hostssl"),
            ("host all", "line 1: `host` is followed by a database and a user"),
            ("host all all", "line 1: it has no address"),
            ("host all all 10.0.0.1 md5", "line 1: 10.0.0.1 has no mask: write e.g. 10.0.0.1/32, not `md5`"),
            ("host all all 10.0.0.0/33 md5", "line 1: `10.0.0.0/33`: the length is from 0 to 32"),
            ("host all all 10.0.0.0/8", "line 1: it has no method"),
            ("host all all 10.0.0.0/8 scram", "line 1: `scram` is no method"),
            ("host all all all peer", "line 1: peer is for `local` only"),
            ("host all all all cert", "line 1: cert is for `hostssl` only"),
            ("local all all peer map", "line 1: `map` is no option"),
            ("host all all all ldap ldapbindpasswd=x", "line 1: ldapbindpasswd is a secret"),
            ("include other.conf", "line 1: `include` names a file of one host"),
            ("local all \"x peer", "line 1: a quote is not closed"),
            ("local all all \\", "line 1: it goes on in the next line"),
            ("local all @admins peer", "line 1: `@admins` names a file of one host"),
        ] {
            assert!(only(line).starts_with(why), "{line}: {}", only(line));
        }
        assert_eq!(problems_of_hba("local all all peer\nx\nlocal all all y\n").len(), 2);
        assert!(problems_of_ident("a b").join("").contains("2 fields, not 3"));
        assert!(problems_of_hba(&"#".repeat(BYTES_MAX + 1)).join("").contains("are possible"));
    }

    #[test]
    fn a_secret_is_found_wherever_it_stands_and_not_repeated() {
        for line in [
            "# until monday: ldapbindpasswd = hunter2",
            "host all all all ldap ldapserver=l,ldapbindpasswd=hunter2",
            "host all all all ldap ldapserver=l \"ldapbindpasswd=hunter2\"",
            "host all all all ldap ldapserver=l LdapBindPasswd=\"hunter2\"",
            "host all all all radius radiusservers=r radiussecrets=hunter2",
            "local all all peer # Password: hunter2",
            "local all all peer # pwd = hunter2",
            "local all all peer # token: hunter2",
            "# see postgres://app:hunter2@db/app",
            "host all all all ldap ldapurl=\"ldap://cn=x:hunter2@l/dc=x\"",
        ] {
            for told in [problems_of_hba(&format!("local all all peer\n{line}\n")), problems_of_ident(line)] {
                let told = told.join("|");
                assert!(told.contains("would stand in the cluster's log"), "{line}: {told}");
                assert!(!told.contains("hunter2"), "{told}");
            }
        }
        for line in [
            "host all password ::1/128 password # the method is called password",
            "host all all all ldap ldapurl=\"ldap://l/dc=x?uid?sub?(mail=*@x)\" # radiussecrets are in each host's file",
        ] {
            assert_eq!(problems_of_hba(line), [""; 0]);
        }
    }
}
