//! Lines of `pg_hba.conf` and `pg_ident.conf`, looked at one by one before they are committed for all hosts. PostgreSQL
//! looks at them once more on each host; here is found what no version of it takes, and what doesn't belong into a log.

// An address as a value; nothing is reached by it.
use core::net::IpAddr;

/// So many bytes all lines may have: each change of them is kept for a while.
const BYTES_MAX: usize = 32 << 10;

const TYPES: [&str; 6] = ["local", "host", "hostssl", "hostnossl", "hostgssenc", "hostnogssenc"];
const METHODS: [&str; 14] = [
    "trust",
    "reject",
    "scram-sha-256",
    "md5",
    "password",
    "gss",
    "sspi",
    "ident",
    "peer",
    "pam",
    "ldap",
    "radius",
    "cert",
    "bsd",
];
/// Of PostgreSQL 18.
const OAUTH: &str = "oauth";
/// Options that hold a secret.
const SECRETS: [&str; 2] = ["ldapbindpasswd", "radiussecrets"];

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

fn problems(text: &str, judge: fn(&[String]) -> Result<(), String>) -> Vec<String> {
    if text.len() > BYTES_MAX {
        return vec![format!("it has {} bytes, and {BYTES_MAX} are possible", text.len())];
    }
    if text.chars().any(|c| c.is_control() && !matches!(c, '\n' | '\r' | '\t')) {
        return vec!["it has a control character".to_owned()];
    }
    let problem = |(at, line)| {
        let judged = fields(line).and_then(|fields| judge(&fields));
        judged.err().map(|why| format!("line {at}: {why}"))
    };
    lines(text).filter_map(problem).collect()
}

/// As PostgreSQL takes a line apart: blanks outside of quotes part fields, a comma goes on with a list, `#` ends the line.
fn fields(line: &str) -> Result<Vec<String>, String> {
    if line.ends_with('\\') {
        return Err("it goes on in the next line; write it in one".to_owned());
    }
    let (mut fields, mut field, mut quoted, mut listed) = (Vec::new(), String::new(), false, false);
    for c in line.chars() {
        match c {
            '"' => {
                quoted = !quoted;
                field.push(c);
            }
            '#' if !quoted => break,
            c if c.is_whitespace() && !quoted => {
                if !field.is_empty() && !listed {
                    fields.push(std::mem::take(&mut field));
                }
            }
            c => {
                listed = c == ',' && !quoted;
                field.push(c);
                continue;
            }
        }
        listed = listed && c.is_whitespace();
    }
    if quoted {
        return Err("a quote is not closed".to_owned());
    }
    if !field.is_empty() {
        fields.push(field);
    }
    Ok(fields)
}

fn hba_line(fields: &[String]) -> Result<(), String> {
    let kind = fields.first().map(String::as_str).unwrap_or_default();
    if kind.starts_with("include") {
        return Err(format!("`{kind}` names a file of one host, and this is for all; write its lines here"));
    }
    if !TYPES.contains(&kind) {
        return Err(format!("a line begins with one of {}, not `{kind}`", TYPES.join(", ")));
    }
    // Database and user; beside them a connection that is not local has an address.
    let mut rest = fields.get(3..).unwrap_or_default();
    if fields.len() < 3 {
        return Err(format!("`{kind}` is followed by a database and a user"));
    }
    if kind != "local" {
        let [address, after @ ..] = rest else { return Err("it has no address".to_owned()) };
        rest = after;
        if needs_mask(address)? {
            let [mask, after @ ..] = rest else { return Err(format!("the address {address} has no mask")) };
            mask.parse::<IpAddr>()
                .map_err(|_| format!("{address} has no mask: write e.g. {address}/32, not `{mask}`"))?;
            rest = after;
        }
    }
    let [method, options @ ..] = rest else { return Err("it has no method".to_owned()) };
    if !METHODS.contains(&method.as_str()) && method != OAUTH {
        return Err(format!("`{method}` is no method, there are {}, {OAUTH}", METHODS.join(", ")));
    }
    if kind != "local" && method == "peer" {
        return Err("peer is for `local` only".to_owned());
    }
    if kind != "hostssl" && method == "cert" {
        return Err("cert is for `hostssl` only".to_owned());
    }
    options.iter().try_for_each(|option| option_is_possible(option))
}

fn option_is_possible(option: &str) -> Result<(), String> {
    let bare = option.trim_matches('"');
    let Some((key, _)) = bare.split_once('=').filter(|(key, _)| !key.is_empty()) else {
        return Err(format!("`{option}` is no option: write NAME=VALUE"));
    };
    if SECRETS.contains(&key) {
        return Err(format!(
            "{key} is a secret and would stand in the cluster's log; keep such lines in each host's file"
        ));
    }
    Ok(())
}

/// An address in numbers without a length is followed by a mask.
fn needs_mask(address: &str) -> Result<bool, String> {
    if address.parse::<IpAddr>().is_ok() {
        return Ok(true);
    }
    if let Some((ip, length)) = address.split_once('/') {
        let most = match ip.parse::<IpAddr>() {
            Ok(IpAddr::V4(_)) => 32,
            Ok(IpAddr::V6(_)) => 128,
            Err(_) => return Err(format!("`{address}` is no address")),
        };
        if length.parse::<u8>().is_ok_and(|length| length <= most) {
            return Ok(false);
        }
        return Err(format!("`{address}`: the length is from 0 to {most}"));
    }
    let well_formed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | '"');
    if address.chars().all(well_formed) { Ok(false) } else { Err(format!("`{address}` is no address")) }
}

fn ident_line(fields: &[String]) -> Result<(), String> {
    match fields {
        [first, ..] if first.starts_with("include") => {
            Err(format!("`{first}` names a file of one host, and this is for all; write its lines here"))
        }
        [_, _, _] => Ok(()),
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
            hostssl all +staff ::/0 cert clientcert=verify-full\n\
            host all all samenet reject\n\
            \n\
            host all all .example.com ldap ldapserver=l ldapprefix=\"cn=\"\n";
        assert_eq!(problems_of_hba(text), [""; 0]);
        assert_eq!(lines(text).count(), 6);
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
        ] {
            assert!(only(line).starts_with(why), "{line}: {}", only(line));
        }
        assert_eq!(problems_of_hba("local all all peer\nx\nlocal all all y\n").len(), 2);
        assert!(problems_of_ident("a b").join("").contains("2 fields, not 3"));
        assert!(problems_of_hba(&"#".repeat(BYTES_MAX + 1)).join("").contains("are possible"));
    }
}
