//! What of a request for other settings is PostgreSQL's. Here is looked at what can be said without asking it.

use super::Situation;
use crate::domain::{
    MemberId, PostgresKey, SettingChanges, hba, parameters,
    postgres_settings::{NO_NAMES, Scope, parameter_key},
};

/// What a key and its value become; `None`: it is none of PostgreSQL's.
pub(super) fn checked(
    s: &Situation<'_>,
    key: &str,
    value: Option<&str>,
) -> Option<Result<(String, Option<String>), String>> {
    Some(match PostgresKey::of(key)? {
        PostgresKey::Hba => lines(key, value, hba::problems_of_hba),
        PostgresKey::Ident => lines(key, value, hba::problems_of_ident),
        PostgresKey::Parameter(scope, name) => parameter(s, (key, scope, name), value),
    })
}

type Change = (String, Option<String>);

fn lines(key: &str, value: Option<&str>, judge: fn(&str) -> Vec<String>) -> Result<Change, String> {
    let problems = value.map(judge).unwrap_or_default();
    match problems.is_empty() {
        true => Ok((key.to_owned(), value.map(str::to_owned))),
        false => Err(format!("{key}: {}", problems.join("; "))),
    }
}

fn parameter(
    s: &Situation<'_>,
    (key, scope, name): (&str, Scope<'_>, &str),
    value: Option<&str>,
) -> Result<Change, String> {
    // Whoever reads the settings could not tell whose they are.
    let odd = |member: &&MemberId| NO_NAMES[..3].contains(&member.as_str());
    if let Some(member) = s.state.members.keys().find(odd) {
        return Err(format!(
            "{key}: this cluster has a member called {member}, and what begins so is of that member: settings of PostgreSQL can be made \
             in each host's file only, until it has another name"
        ));
    }
    if let Scope::Member(member) = scope
        && value.is_some()
        && !s.state.members.keys().any(|known| known.as_str() == member)
    {
        return Err(s.no_member(member));
    }
    if let Scope::Member(member) = scope
        && let Some(why) = value.and_then(|_| super::settings::no_postgres(s, member))
    {
        return Err(why);
    }
    // What was set by whoever knew no better can always be taken back.
    if value.is_none() && s.state.settings.values.contains_key(key) {
        return Ok((key.to_owned(), None));
    }
    match parameters::refused(name, value) {
        Some(why) => Err(format!("{name}: {why}")),
        None => Ok((parameter_key(scope, name), value.map(str::to_owned))),
    }
}

/// The parameters among changes that get a value, to be judged by PostgreSQL: each name with its values, and lines that
/// are set.
pub fn to_judge(changes: &SettingChanges) -> Vec<(PostgresKey<'_>, &str)> {
    let set = changes.iter().filter_map(|(key, value)| Some((PostgresKey::of(key)?, value.as_deref()?)));
    set.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::testing::Bench;

    fn of(bench: &Bench, key: &str, value: Option<&str>) -> Result<Change, String> {
        checked(&bench.situation(), key, value).unwrap_or_else(|| Err("none of PostgreSQL's".to_owned()))
    }

    #[test]
    fn parameters_are_taken_for_all_for_a_side_and_for_a_member_there_is() {
        let bench = Bench::new("granted a open 2");
        let taken = |key: &str, as_key: &str| {
            assert_eq!(of(&bench, key, Some("64MB")), Ok((as_key.to_owned(), Some("64MB".to_owned()))));
        };
        taken("parameters.Work_Mem", "parameters.work_mem");
        taken("standby.parameters.work_mem", "standby.parameters.work_mem");
        taken("b.parameters.work_mem", "b.parameters.work_mem");
        let why = |key: &str, value| of(&bench, key, Some(value)).unwrap_err();
        assert_eq!(why("n9.parameters.work_mem", "1"), "n9 is no member of this cluster, there are a, b, c");
        assert!(why("parameters.fsync", "off").starts_with("fsync: this setting belongs to Matriarch"));
        assert!(why("hba", "host all all").starts_with("hba: line 1: it has no address"));
        assert_eq!(why("crash_budget", "1"), "none of PostgreSQL's");
        assert_eq!(of(&bench, "ident", None), Ok(("ident".to_owned(), None)));
        assert!(of(&bench, "n9.parameters.work_mem", None).is_ok(), "of one that is gone it can be taken back");
    }

    #[test]
    fn a_member_with_the_name_of_a_key_keeps_its_keys() {
        let mut bench = Bench::new("granted a open 2");
        let member = bench.state.members.values().next().cloned().unwrap();
        bench.state.members.insert("standby".parse().unwrap(), member);
        let why = of(&bench, "parameters.work_mem", Some("1MB")).unwrap_err();
        assert!(why.contains("has a member called standby"), "{why}");
        assert!(checked(&bench.situation(), "standby.priority", Some("5")).is_none(), "it is that member's");
    }
}
