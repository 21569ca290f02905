//! From where something may be changed by the REST API.

use std::net::IpAddr;

use super::{
    draft::Draft,
    map::{Mapping, Outcome},
    yaml::Value,
};

impl Draft {
    /// Who may change something. What there are no addresses for must not become a list that lets everybody in.
    pub(super) fn allowed(&mut self, tree: &Value, mapping: &mut Mapping<'_>) {
        let key = "restapi.allowlist";
        let listed = tree.at(key).map(Value::texts).unwrap_or_default();
        let is_network = |text: &String| text.parse::<crate::config::Network>().is_ok();
        let (fit, mut names): (Vec<_>, Vec<_>) = listed.into_iter().partition(is_network);
        self.allowlist = fit;
        let members = tree.at("restapi.allowlist_include_members").and_then(Value::truth);
        if members == Some(true) {
            let (fit, named): (Vec<_>, Vec<_>) =
                self.members.iter().map(|member| member.host.clone()).partition(|host| host.parse::<IpAddr>().is_ok());
            self.allowlist.extend(fit);
            names.extend(named);
        }
        let closed = self.allowlist.is_empty() && !names.is_empty();
        if closed {
            self.allowlist = ["127.0.0.1", "::1"].map(str::to_owned).to_vec();
        }
        let names = names.join(", ");
        if !names.is_empty() {
            let only = if closed { "so only this host itself is in it" } else { "they are not in it" };
            let told = format!(
                "rest.allowlist has addresses only, and {names} are names, {only}: write their addresses there"
            );
            if !mapping.imported.remarks.contains(&told) {
                mapping.imported.remarks.push(told);
            }
        }
        let outcome = match (closed, names.is_empty()) {
            (_, true) => Outcome::Mapped("rest.allowlist".to_owned()),
            (false, false) => Outcome::Mapped(format!("rest.allowlist, without {names}: addresses only")),
            (true, false) => Outcome::Without(format!(
                "rest.allowlist has addresses only, {names} are none; it is [\"127.0.0.1\", \"::1\"] instead of nothing, which would \
                 let everybody in who has the password"
            )),
        };
        if tree.at(key).is_some() {
            mapping.note(key, outcome.clone());
        }
        match (members, outcome) {
            (Some(true), Outcome::Mapped(to)) => {
                mapping.mapped(
                    "restapi.allowlist_include_members",
                    to.replacen("list", "list, with the members' addresses", 1),
                );
            }
            (Some(true), other) => mapping.note("restapi.allowlist_include_members", other),
            (Some(false), _) => mapping.mapped("restapi.allowlist_include_members", "rest.allowlist, as it is"),
            (None, _) => {}
        }
    }
}
