//! The clusters that one person's command line knows by name.

use std::{collections::BTreeMap, env, ffi::OsString, fs, io, path::PathBuf};

use serde::Deserialize;

use super::client::check_address;

/// Names the file.
const VARIABLE: &str = "MATRIARCH_CLI_CONFIG";

/// The file as written.
#[derive(Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Clusters {
    /// Asked where no cluster is named and this host belongs to none.
    #[serde(default)]
    default: Option<String>,
    #[serde(default)]
    clusters: BTreeMap<String, Cluster>,
}

#[derive(Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Cluster {
    /// `host:port`, the first is asked first.
    managers: Vec<String>,
}

/// The managers of the cluster of this name.
pub(super) fn named(name: &str) -> Result<Vec<String>, String> {
    let file = file().ok_or_else(|| format!("--cluster {name}: no file is known to look in; set {VARIABLE}"))?;
    load(&file)?.managers(name).map_err(|problem| format!("--cluster {name}: {}: {problem}", file.display()))
}

/// The managers of the cluster that the file calls the default; `None`: there is no file, or it names none.
pub(super) fn default() -> Result<Option<Vec<String>>, String> {
    let Some(file) = file().filter(|file| file.exists()) else { return Ok(None) };
    let clusters = load(&file)?;
    let Some(name) = &clusters.default else { return Ok(None) };
    clusters.managers(name).map(Some).map_err(|problem| format!("{}: default: {problem}", file.display()))
}

/// Every cluster of the file, by name.
pub(super) fn all() -> Result<BTreeMap<String, Vec<String>>, String> {
    let file = file().ok_or_else(|| format!("--all: no file is known to look in; set {VARIABLE}"))?;
    let clusters = load(&file)?.clusters;
    if clusters.is_empty() {
        return Err(format!("--all: {} has no cluster; write [clusters.NAME] and its managers", file.display()));
    }
    Ok(clusters.into_iter().map(|(name, cluster)| (name, cluster.managers)).collect())
}

fn load(file: &PathBuf) -> Result<Clusters, String> {
    let text = fs::read_to_string(file).map_err(|error| {
        let hint = match error.kind() {
            io::ErrorKind::NotFound => "; create it (docs/cli.md) or name another in MATRIARCH_CLI_CONFIG",
            _ => "",
        };
        format!("{}: can't be read ({error}){hint}", file.display())
    })?;
    parse(&text).map_err(|problem| format!("{}: {problem}", file.display()))
}

fn parse(text: &str) -> Result<Clusters, String> {
    let clusters: Clusters = toml::from_str(text).map_err(|error| error.to_string().trim_end().to_owned())?;
    for (name, cluster) in &clusters.clusters {
        if cluster.managers.is_empty() {
            return Err(format!("clusters.{name}.managers is empty; write e.g. managers = [\"10.0.0.1:7400\"]"));
        }
        for manager in &cluster.managers {
            check_address(manager).map_err(|problem| format!("clusters.{name}.managers: {problem}"))?;
        }
    }
    Ok(clusters)
}

impl Clusters {
    fn managers(&self, name: &str) -> Result<Vec<String>, String> {
        let known: Vec<&str> = self.clusters.keys().map(String::as_str).collect();
        match (self.clusters.get(name), known.is_empty()) {
            (Some(cluster), _) => Ok(cluster.managers.clone()),
            (None, true) => Err(format!("no cluster `{name}`, nor any other; write [clusters.{name}]")),
            (None, false) => Err(format!("no cluster `{name}`; there is {}", known.join(", "))),
        }
    }
}

fn file() -> Option<PathBuf> {
    place(|name| env::var_os(name).filter(|value| !value.is_empty()))
}

fn place(variable: impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    if let Some(file) = variable(VARIABLE) {
        return Some(PathBuf::from(file));
    }
    let home = || variable("HOME").map(|home| PathBuf::from(home).join(".config"));
    let below = variable("XDG_CONFIG_HOME").map(PathBuf::from).or_else(home)?;
    Some(below.join("matriarch/cli.toml"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TWO: &str = r#"
        default = "east"
        [clusters.east]
        managers = ["10.0.0.1:7400", "[fd00::1]:7400"]
        [clusters.west]
        managers = ["w1:7400"]
    "#;

    #[test]
    fn clusters_have_names_and_one_may_be_the_default() {
        let clusters = parse(TWO).unwrap();
        assert_eq!(clusters.managers("east").unwrap(), ["10.0.0.1:7400", "[fd00::1]:7400"]);
        assert_eq!(clusters.default.as_deref(), Some("east"));
        assert_eq!(clusters.managers("north").unwrap_err(), "no cluster `north`; there is east, west");
        assert!(parse("").unwrap().managers("x").unwrap_err().contains("write [clusters.x]"));
    }

    #[test]
    fn the_file_on_the_page_is_good() {
        let page = include_str!("../../docs/cli.md");
        let file = page.split("```toml\n").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
        let clusters = parse(file).unwrap();
        assert_eq!((clusters.clusters.len(), clusters.managers("west").unwrap().len()), (2, 2));
    }

    #[test]
    fn a_file_that_is_wrong_says_where() {
        let wrong = |text: &str| parse(text).unwrap_err();
        assert!(wrong("[clusters.a]\nmanagers = []").starts_with("clusters.a.managers is empty"));
        assert!(wrong("[clusters.a]\nmanagers = [\"10.0.0.1\"]").contains("10.0.0.1: not HOST:PORT"));
        assert!(wrong("[clusters.a]\nmanager = [\"10.0.0.1:1\"]").contains("managers"), "what is meant is said");
        assert!(wrong("cluster = 1").contains("unknown field"));
    }

    #[test]
    fn the_file_is_where_the_variables_say() {
        let of = |set: &[(&str, &str)]| {
            place(|name| set.iter().find(|(n, _)| *n == name).map(|(_, value)| OsString::from(value)))
        };
        let (mine, xdg, home) = (("MATRIARCH_CLI_CONFIG", "/m"), ("XDG_CONFIG_HOME", "/x"), ("HOME", "/h"));
        assert_eq!(of(&[mine, xdg, home]), Some("/m".into()));
        assert_eq!(of(&[xdg, home]), Some("/x/matriarch/cli.toml".into()));
        assert_eq!(of(&[home]), Some("/h/.config/matriarch/cli.toml".into()));
        assert_eq!(of(&[]), None);
    }
}
