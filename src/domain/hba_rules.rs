//! What PostgreSQL demands of a line of `pg_hba.conf` (manual, 21.1 and the chapters of the methods; `parse_hba_line` and
//! `parse_hba_auth_opt` of its hba.c). A line that it refuses does no harm to a server that runs, and keeps one from starting.

use std::collections::BTreeMap;

// An address as a value; nothing is reached by it.
use core::net::IpAddr;

use super::hba::{Field, Token, is_no_include, single};

const TYPES: [&str; 6] = ["local", "host", "hostssl", "hostnossl", "hostgssenc", "hostnogssenc"];
/// `oauth` is of PostgreSQL 18.
const METHODS: [&str; 13] = [
    "trust",
    "reject",
    "scram-sha-256",
    "md5",
    "password",
    "gss",
    "ident",
    "peer",
    "pam",
    "ldap",
    "radius",
    "cert",
    "oauth",
];
/// Of other systems: no PostgreSQL on Linux is built with them.
const ELSEWHERE: [(&str, &str); 2] = [("sspi", "Windows"), ("bsd", "OpenBSD")];
/// What stands for addresses, unless in quotes.
const ADDRESS_WORDS: [&str; 3] = ["all", "samehost", "samenet"];

/// Each option with the methods that have it; none: all have.
const OPTIONS: [(&str, &[&str]); 27] = [
    ("clientcert", &[]),
    ("clientname", &[]),
    ("map", &["ident", "peer", "gss", "cert", "oauth"]),
    ("pamservice", &["pam"]),
    ("pam_use_hostname", &["pam"]),
    ("ldapurl", &["ldap"]),
    ("ldaptls", &["ldap"]),
    ("ldapscheme", &["ldap"]),
    ("ldapserver", &["ldap"]),
    ("ldapport", &["ldap"]),
    ("ldapbinddn", &["ldap"]),
    ("ldapbindpasswd", &["ldap"]),
    ("ldapsearchattribute", &["ldap"]),
    ("ldapsearchfilter", &["ldap"]),
    ("ldapbasedn", &["ldap"]),
    ("ldapprefix", &["ldap"]),
    ("ldapsuffix", &["ldap"]),
    ("krb_realm", &["gss"]),
    ("include_realm", &["gss"]),
    ("radiusservers", &["radius"]),
    ("radiussecrets", &["radius"]),
    ("radiusidentifiers", &["radius"]),
    ("radiusports", &["radius"]),
    ("issuer", &["oauth"]),
    ("scope", &["oauth"]),
    ("validator", &["oauth"]),
    ("delegate_ident_mapping", &["oauth"]),
];

/// What is wrong with a line.
pub(super) fn hba_line(fields: &[Field]) -> Result<(), String> {
    let Some((kind, rest)) = fields.split_first() else { return Ok(()) };
    let kind = single(kind, "the type of connection")?.text.as_str();
    is_no_include(kind)?;
    if !TYPES.contains(&kind) {
        return Err(format!("a line begins with one of {}, not `{kind}`", TYPES.join(", ")));
    }
    let [_database, _user, rest @ ..] = rest else {
        return Err(format!("`{kind}` is followed by a database and a user"));
    };
    // A connection that is not local has an address as well.
    let rest = if kind == "local" { rest } else { after_address(rest)? };
    let [method, options @ ..] = rest else { return Err("it has no method".to_owned()) };
    let method = single(method, "the method")?.text.as_str();
    method_goes_with(kind, method)?;
    let options = options.iter().flatten().map(|token| option(kind, method, token));
    complete(method, &options.collect::<Result<_, _>>()?)
}

/// What follows the address, and its mask where it has one.
fn after_address(fields: &[Field]) -> Result<&[Field], String> {
    let [address, rest @ ..] = fields else { return Err("it has no address".to_owned()) };
    let address = single(address, "the address")?;
    let Some(ip) = needs_mask(address)? else { return Ok(rest) };
    let [mask, rest @ ..] = rest else { return Err(format!("the address {ip} has no mask")) };
    let mask = &single(mask, "the mask")?.text;
    match mask.parse::<IpAddr>() {
        Ok(mask) if mask.is_ipv4() == ip.is_ipv4() => Ok(rest),
        Ok(_) => Err(format!("the mask {mask} is none for the address {ip}")),
        Err(_) => Err(format!("{ip} has no mask: write e.g. {ip}/{}, not `{mask}`", bits(ip))),
    }
}

fn bits(ip: IpAddr) -> u8 {
    if ip.is_ipv4() { 32 } else { 128 }
}

/// An address in numbers without a length is followed by a mask.
fn needs_mask(token: &Token) -> Result<Option<IpAddr>, String> {
    let address = token.text.as_str();
    if ADDRESS_WORDS.contains(&address) && !token.quoted {
        return Ok(None);
    }
    if let Ok(ip) = address.parse::<IpAddr>() {
        return Ok(Some(ip));
    }
    let nothing = || format!("`{address}` is no address");
    if let Some((ip, length)) = address.split_once('/') {
        let most = bits(ip.parse::<IpAddr>().map_err(|_| nothing())?);
        if length.bytes().all(|b| b.is_ascii_digit()) && length.parse::<u8>().is_ok_and(|length| length <= most) {
            return Ok(None);
        }
        return Err(format!("`{address}`: the length is from 0 to {most}"));
    }
    // A name; what is made of digits alone is a broken address to PostgreSQL as well.
    let in_names = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    let is_name = address.chars().all(in_names) && address.contains(|c: char| c.is_ascii_alphabetic());
    if is_name { Ok(None) } else { Err(nothing()) }
}

fn method_goes_with(kind: &str, method: &str) -> Result<(), String> {
    if let Some((_, system)) = ELSEWHERE.iter().find(|(of, _)| *of == method) {
        return Err(format!("`{method}` is for {system} only"));
    }
    if !METHODS.contains(&method) {
        return Err(format!("`{method}` is no method, there are {}", METHODS.join(", ")));
    }
    match method {
        "peer" if kind != "local" => Err("peer is for `local` only".to_owned()),
        "cert" if kind != "hostssl" => Err("cert is for `hostssl` only".to_owned()),
        "gss" if kind == "local" => Err("gss is not for `local`".to_owned()),
        "radius" => Err("radius needs radiusservers and radiussecrets, and secrets would stand in the cluster's log; keep such lines in each \
                         host's file"
            .to_owned()),
        _ => Ok(()),
    }
}

/// An option that this method has, with a value that it may have.
fn option<'a>(kind: &str, method: &str, token: &'a Token) -> Result<(&'a str, &'a str), String> {
    let Some((name, value)) = token.text.split_once('=').filter(|(name, _)| !name.is_empty()) else {
        return Err(format!("`{}` is no option: write NAME=VALUE", token.text));
    };
    let Some((_, methods)) = OPTIONS.iter().find(|(known, _)| *known == name) else {
        return Err(format!("`{name}` is no option that PostgreSQL knows"));
    };
    if !methods.is_empty() && !methods.contains(&method) {
        return Err(format!("{name} is an option of {}, not of {method}", methods.join(", ")));
    }
    let wrong = match name {
        "clientcert" | "clientname" if kind != "hostssl" => return Err(format!("{name} is for `hostssl` only")),
        "clientcert" if method == "cert" => (value != "verify-full").then_some("with cert it is verify-full"),
        "clientcert" => (!["verify-ca", "verify-full"].contains(&value)).then_some("it is verify-ca or verify-full"),
        "clientname" => (!["CN", "DN"].contains(&value)).then_some("it is CN or DN"),
        "ldapscheme" => (!["ldap", "ldaps"].contains(&value)).then_some("it is ldap or ldaps"),
        "ldapport" => value.parse::<u16>().map_or(true, |port| port == 0).then_some("it is from 1 to 65535"),
        "ldapurl" => (!["ldap://", "ldaps://"].iter().any(|scheme| value.starts_with(scheme)))
            .then_some("it begins with ldap:// or ldaps://"),
        _ => None,
    };
    wrong.map_or(Ok((name, value)), |why| Err(format!("{name}=`{value}`: {why}")))
}

/// What a method needs, and what excludes each other.
fn complete(method: &str, options: &BTreeMap<&str, &str>) -> Result<(), String> {
    let any = |names: &[&str]| names.iter().any(|name| options.contains_key(name));
    match method {
        "ldap" => {
            let simple = any(&["ldapprefix", "ldapsuffix"]);
            let search = ["ldapurl", "ldapbasedn", "ldapbinddn", "ldapsearchattribute", "ldapsearchfilter"];
            if simple && any(&search) {
                return Err(format!("ldapprefix and ldapsuffix don't go with {}", search.join(", ")));
            }
            if any(&["ldapsearchattribute"]) && any(&["ldapsearchfilter"]) {
                return Err("either ldapsearchattribute or ldapsearchfilter".to_owned());
            }
            if !simple && !any(&["ldapurl", "ldapbasedn"]) {
                return Err("ldap needs ldapprefix, ldapsuffix, ldapbasedn or ldapurl".to_owned());
            }
            // Without a server it is looked for in DNS, by the base's name.
            let server = any(&["ldapurl", "ldapserver", "ldapbasedn"]);
            if server { Ok(()) } else { Err("ldap needs ldapserver or ldapurl".to_owned()) }
        }
        "oauth" if !(any(&["issuer"]) && any(&["scope"])) => Err("oauth needs issuer and scope".to_owned()),
        "oauth" if any(&["map"]) && options.get("delegate_ident_mapping") == Some(&"1") => {
            Err("either map or delegate_ident_mapping".to_owned())
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use crate::domain::hba::problems_of_hba;

    /// Each of them was tried with PostgreSQL 15 (`pg_hba_file_rules`). Refused here and taken there are LDAP without any server,
    /// and addresses of fewer than four numbers.
    #[test]
    fn what_postgresql_takes_is_taken_and_what_it_refuses_is_refused() {
        for line in [
            "local all all ident map=ops",
            "host all all samehost ident",
            "host all all samenet gss include_realm=0 krb_realm=X map=m",
            "host all all all pam pamservice=pg pam_use_hostname=1",
            "host app, other all .example.com scram-sha-256",
            "host all all 10.0.0.1 255.0.255.0 md5",
            "host all all fd00:: ffff:: md5",
            "hostssl all all all scram-sha-256 clientcert=verify-ca clientname=DN",
            "hostssl all all all cert map=m",
            "hostgssenc all all all gss",
            "host all all all ldap ldapserver=l ldapport=636 ldapscheme=ldaps ldapbasedn=\"dc=x, dc=y\" ldapsearchattribute=uid",
            "host all all all ldap ldapbasedn=\"dc=x\" ldaptls=1 ldapbinddn=cn",
            "host all all all ldap ldapurl=ldap://l/dc=x?uid?sub",
            "host all all all ldap ldapserver=l ldapsuffix=\",dc=x\"",
        ] {
            assert_eq!(problems_of_hba(line), [""; 0], "{line}");
        }
        for (line, why) in [
            ("host all all all ldap", "ldap needs ldapprefix, ldapsuffix, ldapbasedn or ldapurl"),
            ("host all all all ldap ldapserver=l", "ldap needs ldapprefix"),
            ("host all all all ldap ldapprefix=cn=", "ldap needs ldapserver or ldapurl"),
            ("host all all all ldap ldapserver=l ldapprefix=a ldapbasedn=b", "ldapprefix and ldapsuffix don't go with"),
            (
                "host all all all ldap ldapbasedn=b ldapsearchattribute=a ldapsearchfilter=f",
                "either ldapsearchattribute",
            ),
            ("host all all all ldap ldapserver=l ldapsuffix=,dc=x", "`dc` is no option"),
            ("host all all all ldap ldapserver=l ldapbasedn=b ldapport=x", "ldapport=`x`: it is from 1"),
            ("host all all all ldap ldapurl=http://l", "ldapurl=`http://l`: it begins with"),
            ("host all all all radius", "radius needs radiusservers and radiussecrets"),
            ("host all all all radius radiusservers=r", "radius needs radiusservers and radiussecrets"),
            ("host all all all sspi", "`sspi` is for Windows only"),
            ("host all all all bsd", "`bsd` is for OpenBSD only"),
            ("local all all gss", "gss is not for `local`"),
            ("host all all all peer", "peer is for `local` only"),
            ("hostnossl all all all cert", "cert is for `hostssl` only"),
            ("host all all all md5 clientcert=verify-full", "clientcert is for `hostssl` only"),
            ("hostssl all all all md5 clientcert=1", "clientcert=`1`: it is verify-ca or verify-full"),
            ("hostssl all all all cert clientcert=verify-ca", "clientcert=`verify-ca`: with cert it is"),
            ("hostssl all all all cert clientname=cn", "clientname=`cn`: it is CN or DN"),
            ("host all all all scram-sha-256 map=m", "map is an option of ident, peer, gss, cert, oauth, not of"),
            ("host all all all md5 pamservice=x", "pamservice is an option of pam, not of md5"),
            ("host all all all md5 colour=red", "`colour` is no option that PostgreSQL knows"),
            ("host all all all md5 =x", "`=x` is no option"),
            ("host all all 10.0.0.1,10.0.0.2 255.0.0.0 md5", "the address is one, not a list"),
            ("host all all 10.0.0.1 ffff:: md5", "the mask ffff:: is none for the address 10.0.0.1"),
            ("host all all 10.0.0.1 255.0.0 md5", "10.0.0.1 has no mask"),
            ("host all all 10.0.0/8 md5", "`10.0.0/8` is no address"),
            ("host all all db3/32 md5", "`db3/32` is no address"),
            ("host all all 10.0.0.0/ md5", "`10.0.0.0/`: the length"),
            ("host all all 300.0.0.1 md5", "`300.0.0.1` is no address"),
            ("host all all all md5,trust", "the method is one, not a list"),
            ("host,local all all all md5", "the type of connection is one"),
            ("host all all all oauth issuer=x", "oauth needs issuer and scope"),
        ] {
            let told = problems_of_hba(line).join("|");
            assert!(told.starts_with(&format!("line 1: {why}")), "{line}: {told}");
        }
    }
}
