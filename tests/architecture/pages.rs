//! A page that names a test which is not there proves nothing.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use super::files_below;

/// Pages that name tests.
const PAGES: &[&str] = &[
    "docs/anomalies.md",
    "docs/failure-modes.md",
    "docs/guarantees.md",
    "docs/hooks.md",
    "docs/layers.md",
    "docs/patroni-scenarios.md",
    "docs/proof/lease-sentences.md",
    "docs/proof/model.md",
    "docs/proof/nemesis.md",
    "docs/proof/simulation.md",
    "docs/proof/turmoil.md",
];

/// Pages on which every name in the last column is one of a test, of an area before it if there is one.
const TABLES: &[&str] = &["docs/anomalies.md", "docs/guarantees.md", "docs/proof/lease-sentences.md"];

/// The names of functions, by file.
struct Tree(BTreeMap<String, BTreeSet<String>>);

impl Tree {
    fn read() -> Tree {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let mut found = Vec::new();
        files_below(&root.join("src"), &mut found);
        files_below(&root.join("tests"), &mut found);
        let names = |text: &str| -> BTreeSet<String> {
            let after = text.split("fn ").skip(1);
            after.filter_map(|rest| rest.split_once('(')).map(|(name, _)| name.to_owned()).collect()
        };
        let mut tree = BTreeMap::new();
        for file in found {
            let path = file.strip_prefix(root).unwrap().to_string_lossy().replace('\\', "/");
            tree.insert(path, names(&fs::read_to_string(&file).unwrap()));
        }
        // What is named by its file: scripts, and the promises of the simulation.
        for (dir, end) in [("tests/scenarios", ".txt"), ("tests/sim/invariants", ".rs")] {
            let files = fs::read_dir(root.join(dir)).unwrap();
            let names = files.map(|file| file.unwrap().file_name().into_string().unwrap());
            tree.insert(format!("{dir}/"), names.filter_map(|n| Some(n.strip_suffix(end)?.to_owned())).collect());
        }
        Tree(tree)
    }

    fn has(&self, area: &str, name: &str) -> bool {
        self.0.iter().any(|(file, names)| file.starts_with(area) && names.contains(name))
    }

    /// Where the files of `lease::holder`, `reconcile` or `tests/agent` begin.
    fn area(&self, token: &str) -> Option<String> {
        let start = match token.strip_suffix(".rs").unwrap_or(token) {
            tests if tests.starts_with("tests/") => tests.to_owned(),
            room => format!("src/{}", room.replace("::", "/")),
        };
        let begins = |file: &String| file.strip_prefix(&start).is_some_and(|rest| rest.starts_with(['.', '/', '_']));
        self.0.keys().any(begins).then_some(start)
    }

    /// `file.rs::name` or `scenarios/name.txt`; `None` when the token is neither.
    fn knows_path(&self, token: &str) -> Option<bool> {
        if let Some(script) = token.strip_prefix("scenarios/").and_then(|t| t.strip_suffix(".txt")) {
            return Some(script == "…" || self.has("tests/scenarios/", script));
        }
        let (file, name) = token.split_once(".rs::")?;
        let file = if file.starts_with("src/") { format!("{file}.rs") } else { format!("tests/{file}.rs") };
        Some(self.0.get(&file).is_some_and(|names| names.contains(name)))
    }
}

fn tokens(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

fn is_a_name(token: &str) -> bool {
    token.contains('_') && token.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
}

/// Names in the last column that nothing has. An area counts until the next one, and until a semicolon.
fn unknown_in_last_column(tree: &Tree, row: &str, unknown: &mut Vec<String>) {
    let cell = row.trim_end().trim_end_matches('|').rsplit(" | ").next().unwrap();
    for part in cell.split(';') {
        let mut area = String::new();
        for token in tokens(part) {
            if is_a_name(token) && !tree.has(&area, token) {
                unknown.push(format!("`{area}` `{token}`"));
            } else if let Some(known) = tree.area(token) {
                area = known;
            }
        }
    }
}

#[test]
fn every_test_that_a_page_names_is_there() {
    let tree = Tree::read();
    let mut unknown = Vec::new();
    for page in PAGES {
        let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(page)).unwrap();
        let mut here: Vec<String> = tokens(&text.replace("```", ""))
            .filter(|token| tree.knows_path(token) == Some(false))
            .map(|token| format!("`{token}`"))
            .collect();
        if TABLES.contains(page) {
            for row in text.lines().filter(|line| line.starts_with("| ")) {
                unknown_in_last_column(&tree, row, &mut here);
            }
        }
        unknown.extend(here.into_iter().map(|token| format!("{page}: {token}")));
    }
    assert!(unknown.is_empty(), "no test has these names:\n{}", unknown.join("\n"));
}

#[test]
fn a_name_that_is_missing_or_in_another_place_is_found() {
    let tree = Tree::read();
    let unknown = |row: &str| {
        let mut unknown = Vec::new();
        unknown_in_last_column(&tree, row, &mut unknown);
        unknown
    };
    let none: [&str; 0] = [];
    assert_eq!(unknown("| a | `tests/architecture` `every_test_that_a_page_names_is_there`; `one_writer` |"), none);
    assert_eq!(unknown("| a | scenarios `lease_expires`, `tie` |"), none);
    assert_eq!(unknown("| `not_looked_at` | `no_such_test` |"), ["`` `no_such_test`"]);
    assert_eq!(unknown("| a | `reconcile` `one_writer` |"), ["`src/reconcile` `one_writer`"]);
    assert_eq!(tree.knows_path("architecture/pages.rs::is_a_name"), Some(true));
    assert_eq!(tree.knows_path("architecture.rs::is_a_name"), Some(false));
    assert_eq!(tree.knows_path("scenarios/no_such_script.txt"), Some(false));
}
