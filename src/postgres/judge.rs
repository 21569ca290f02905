//! What PostgreSQL itself says of settings: whether it could take them, which wait for a restart, and what they are.
//!
//! Values are judged by `postgres -C`, which reads them as a start would and ends at once: so also those that only a start
//! can change, and while no server runs. What only a running server knows, the settings of extensions, is asked there.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use super::{
    command::HelperError,
    conf::sql_literal,
    files,
    instance::Instance,
    session::{Session, SqlError},
};
use crate::domain::{PendingSetting, parameters};

/// For statements that a healthy server answers at once.
const SHORT: Duration = Duration::from_secs(5);
/// Fewer connections than this are left to nobody but the agent and the members.
const CONNECTIONS_MIN: u64 = 10;
const LIBRARIES: [&str; 3] = ["shared_preload_libraries", "session_preload_libraries", "local_preload_libraries"];

/// Which lines PostgreSQL refuses. One that it takes may have an error beside it, such as a `hostssl` line while it has no TLS,
/// which may come with the same reload; of one that it refuses it tells nothing but its number, and not always an error.
const LINES: [(&str, &str, &str); 2] =
    [("hba", "pg_hba_file_rules", "auth_method IS NULL"), ("ident", "pg_ident_file_mappings", "error IS NOT NULL")];

/// What was found of settings that are to be made.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Judged {
    /// Names that can't be set so, and why.
    pub problems: BTreeMap<String, String>,
    /// What somebody should know.
    pub warnings: Vec<String>,
}

/// A setting as a server has it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Described {
    /// Its name.
    pub name: String,
    /// In force, with its unit.
    pub value: String,
    /// Of PostgreSQL.
    pub default: String,
    /// bool, integer, real, string or enum.
    pub kind: String,
    /// What it may be, in words; empty: anything.
    pub range: String,
    /// When it can be changed.
    pub context: String,
    /// Of what kind the place is where it was set.
    pub source: String,
    /// Where it was set.
    pub file: String,
    /// It was changed, and waits for a restart.
    pub pending: bool,
    /// What it does.
    pub help: String,
}

/// The words of `postgres` without its prefix.
fn words(stderr: &str) -> String {
    let of = |mark: &str| stderr.lines().find_map(|line| line.split_once(mark).map(|(_, said)| said.trim().to_owned()));
    let hint = of("HINT:").map(|hint| format!(" ({})", hint.trim_end_matches('.')));
    let said = of("FATAL:").or_else(|| of("ERROR:")).unwrap_or_else(|| stderr.trim().to_owned());
    said + &hint.unwrap_or_default()
}

/// Libraries of a value, by their bare names; one with a path is looked for by nobody.
fn libraries(value: &str) -> impl Iterator<Item = &str> {
    let names = value.split(',').map(|name| name.trim().trim_matches('"')).filter(|name| !name.is_empty());
    names.map(|name| name.strip_prefix("$libdir/").unwrap_or(name)).filter(|name| !name.contains('/'))
}

impl Instance {
    /// Judges values by PostgreSQL's own program. Nothing is changed and no server is needed.
    ///
    /// # Errors
    /// It can't be run.
    pub fn judge_values(&self, values: &BTreeMap<String, String>) -> Result<Judged, HelperError> {
        let mut judged = Judged::default();
        let connections = values.get("max_connections").and_then(|value| value.trim().parse::<u64>().ok());
        if connections.is_some_and(|many| many < CONNECTIONS_MIN) {
            let why = format!("fewer than {CONNECTIONS_MIN} leave no room beside the agent's own connections");
            judged.problems.insert("max_connections".to_owned(), why);
        }
        let Some(together) = (if values.is_empty() { None } else { self.try_values(values.iter())? }) else {
            return Ok(judged);
        };
        // One of them: which, and all others that are wrong too.
        let mut each = BTreeMap::new();
        for one in values {
            each.extend(self.try_values([one].into_iter())?.map(|why| (one.0.clone(), why)));
        }
        if each.is_empty() {
            // Each by itself is possible, and all of them are not.
            let named = values.keys().rev().find(|name| together.contains(&format!("\"{name}\"")));
            each.extend(named.or_else(|| values.keys().next()).map(|name| (name.clone(), together)));
        }
        judged.problems.extend(each);
        Ok(judged)
    }

    /// What the program has against them; `None`: nothing.
    fn try_values<'a>(
        &self,
        values: impl Iterator<Item = (&'a String, &'a String)>,
    ) -> Result<Option<String>, HelperError> {
        let empty = self.runtime_dir().join("judge.conf");
        let start = |source| HelperError::Start { program: empty.clone(), source };
        // Without what is configured here: it is in question by itself.
        std::fs::write(&empty, "").map_err(start)?;
        let config = format!("config_file={}", empty.display());
        let mut helper =
            self.helper("postgres", SHORT).arg("-D").arg(self.runtime_dir()).args(["-c".to_owned(), config]);
        for (name, value) in values {
            helper = helper.args(["-c".to_owned(), format!("{name}={value}")]);
        }
        match helper.args(["-C", "server_version"]).run_short() {
            Ok(_) => Ok(None),
            Err(HelperError::Failed { tail, .. }) => Ok(Some(words(&tail))),
            Err(error) => Err(error),
        }
    }

    /// [`Instance::judge_values`], and what only the running server knows, when there is one.
    ///
    /// # Errors
    /// The program can't be run.
    pub async fn judge(
        &self,
        values: &BTreeMap<String, String>,
        session: Option<&Session>,
    ) -> Result<Judged, HelperError> {
        let (instance, asked) = (self.clone(), values.clone());
        let judged = files::reading(move || Ok(instance.judge_values(&asked)));
        let mut judged = match judged.await {
            Ok(judged) => judged?,
            Err(error) => {
                return Err(HelperError::Start {
                    program: self.runtime_dir().to_owned(),
                    source: std::io::Error::other(error),
                });
            }
        };
        if let Some(session) = session {
            // A server that breaks off in the middle is as none.
            let _ = judge_live(session, values, &mut judged).await;
        }
        Ok(judged)
    }

    /// What PostgreSQL has against its configuration files as they lie there, by name of the setting or key of the lines.
    ///
    /// # Errors
    /// See [`SqlError`].
    pub async fn configuration_errors(&self, session: &Session) -> Result<BTreeMap<String, String>, SqlError> {
        let doing = "looking at the configuration files";
        let text = |row: &tokio_postgres::SimpleQueryRow, column: usize| row.get(column).unwrap_or_default().to_owned();
        let sql = "SELECT coalesce(name, ''), error FROM pg_file_settings WHERE error IS NOT NULL";
        let rows = session.query(doing, sql, SHORT).await?;
        let mut bad: BTreeMap<String, String> =
            rows.iter().map(|row| (text(row, 0).to_ascii_lowercase(), text(row, 1))).collect();
        // What only a restart changes is an error there, too.
        let rows = session.query(doing, "SELECT name FROM pg_settings WHERE pending_restart", SHORT).await?;
        for row in &rows {
            bad.remove(&text(row, 0).to_ascii_lowercase());
        }
        for (key, view, refused) in LINES {
            let sql =
                format!("SELECT line_number, coalesce(error, 'its log says why') FROM {view} WHERE {refused} LIMIT 1");
            match session.query(doing, &sql, SHORT).await {
                Ok(rows) => {
                    let told = rows.first().map(|row| format!("line {} of {view}: {}", text(row, 0), text(row, 1)));
                    bad.extend(told.map(|why| (key.to_owned(), why)));
                }
                // Before version 15 there is no such view.
                Err(SqlError::Database { sqlstate, .. }) if sqlstate == "42P01" => {}
                Err(error) => return Err(error),
            }
        }
        Ok(bad)
    }

    /// What waits for a restart, with what it will be.
    ///
    /// # Errors
    /// See [`SqlError`].
    pub async fn pending(&self, session: &Session) -> Result<Vec<PendingSetting>, SqlError> {
        let doing = "asking what waits for a restart";
        let text = |row: &tokio_postgres::SimpleQueryRow, column: usize| row.get(column).unwrap_or_default().to_owned();
        // What only recovery goes by would wait for ever on a standby that was promoted.
        let sql = "SELECT name, current_setting(name), coalesce(boot_val, ''), setting FROM pg_settings WHERE pending_restart AND name NOT LIKE 'recovery_target%'";
        let waiting = session.query(doing, sql, SHORT).await?;
        let mut pending = Vec::new();
        if !waiting.is_empty() {
            let sql = "SELECT lower(name), setting FROM pg_file_settings WHERE name IS NOT NULL ORDER BY seqno";
            let rows = session.query(doing, sql, SHORT).await?;
            let files: BTreeMap<String, String> = rows.iter().map(|row| (text(row, 0), text(row, 1))).collect();
            pending.extend(waiting.iter().filter_map(|row| {
                let (name, running) = (text(row, 0), text(row, 1));
                let configured = files.get(&name.to_ascii_lowercase()).cloned().unwrap_or_else(|| text(row, 2));
                // One that was taken back before the restart counts as waiting in PostgreSQL until it is started again.
                if configured == running || configured == text(row, 3) {
                    return None;
                }
                let order = parameters::restart_order(&name, &running, &configured);
                let why =
                    order.map_or_else(|| "needs a restart".to_owned(), |order| format!("needs a restart, {order}"));
                Some(PendingSetting { name, running, configured, why })
            }));
        }
        Ok(pending)
    }
}

async fn judge_live(session: &Session, values: &BTreeMap<String, String>, judged: &mut Judged) -> Result<(), SqlError> {
    let doing = "judging settings";
    let rows = session.query(doing, "SELECT lower(name), context FROM pg_settings", SHORT).await?;
    let known: BTreeMap<&str, &str> = rows.iter().filter_map(|row| Some((row.get(0)?, row.get(1)?))).collect();
    for (name, value) in values {
        match known.get(name.as_str()) {
            Some(&"internal") => {
                judged.problems.insert(name.clone(), "it can't be set: PostgreSQL tells it of itself".to_owned());
            }
            // Those of extensions are unknown to the program.
            Some(_) if name.contains('.') => {
                let sql =
                    format!("BEGIN; SELECT set_config({}, {}, true); ROLLBACK", sql_literal(name), sql_literal(value));
                let tried = session.query(doing, &sql, SHORT).await;
                let _ = session.query(doing, "ROLLBACK", SHORT).await;
                if let Err(SqlError::Database { sqlstate, message, .. }) = tried
                    && sqlstate == "22023"
                {
                    judged.problems.insert(name.clone(), message);
                }
            }
            Some(_) => {}
            None if name.contains('.') => {
                judged
                    .warnings
                    .push(format!("{name}: nothing that is loaded knows it, so nobody can say whether it is right"));
            }
            None => {
                let meant = parameters::nearest(name, known.keys().copied());
                if let (Some(meant), Some(why)) = (meant, judged.problems.get_mut(name)) {
                    why.push_str(&format!(", did you mean `{meant}`?"));
                }
            }
        }
    }
    judge_libraries(session, values, judged).await
}

/// A server doesn't start with a library that isn't there.
async fn judge_libraries(
    session: &Session,
    values: &BTreeMap<String, String>,
    judged: &mut Judged,
) -> Result<(), SqlError> {
    let wanted = LIBRARIES.into_iter().filter_map(|name| Some((name, values.get(name)?)));
    let wanted: BTreeSet<(&str, &str)> =
        wanted.flat_map(|(name, value)| libraries(value).map(move |library| (name, library))).collect();
    if wanted.is_empty() {
        return Ok(());
    }
    let sql = "SELECT setting, current_setting('dynamic_library_path') FROM pg_config WHERE name = 'PKGLIBDIR'";
    let rows = session.query("looking for libraries", sql, SHORT).await?;
    let Some((dir, "$libdir")) = rows.first().and_then(|row| row.get(0).zip(row.get(1))) else { return Ok(()) };
    for (name, library) in wanted {
        let path = std::path::Path::new(dir).join(format!("{}.so", library.trim_end_matches(".so")));
        if !path.exists() {
            let why = format!("there is no {}: PostgreSQL would not start", path.display());
            judged.problems.insert(name.to_owned(), why);
        }
    }
    Ok(())
}

impl Session {
    /// Settings as they are in force; with no names all of them.
    ///
    /// # Errors
    /// See [`SqlError`].
    pub async fn describe(&self, names: &[String]) -> Result<Vec<Described>, SqlError> {
        let list = Vec::from_iter(names.iter().map(|name| sql_literal(&name.to_ascii_lowercase()))).join(", ");
        let which = if names.is_empty() { String::new() } else { format!("WHERE lower(name) IN ({list})") };
        let sql = format!(
            "SELECT name, current_setting(name), coalesce(boot_val, ''), coalesce(unit, ''), vartype, coalesce(min_val, ''), \
             coalesce(max_val, ''), coalesce(array_to_string(enumvals, ', '), ''), context, source, \
             coalesce(sourcefile || ':' || sourceline, ''), pending_restart, short_desc FROM pg_settings {which} ORDER BY name"
        );
        let rows = self.query("asking for settings", &sql, SHORT).await?;
        Ok(rows.iter().map(described).collect())
    }
}

fn described(row: &tokio_postgres::SimpleQueryRow) -> Described {
    let text = |column: usize| row.get(column).unwrap_or_default().to_owned();
    let unit = text(3);
    let with_unit = |number: String| match unit.as_str() {
        _ if number.is_empty() => number,
        "" => number,
        // Blocks.
        unit if unit.starts_with(|c: char| c.is_ascii_digit()) => format!("{number} x {unit}"),
        unit => format!("{number}{unit}"),
    };
    let range = match (text(5), text(6), text(7)) {
        (_, _, words) if !words.is_empty() => words,
        (least, most, _) if !least.is_empty() => format!("{} to {}", with_unit(least), with_unit(most)),
        _ => String::new(),
    };
    Described {
        name: text(0),
        value: text(1),
        default: with_unit(text(2)),
        kind: text(4),
        range,
        context: text(8),
        source: text(9),
        file: text(10),
        pending: text(11) == "t",
        help: text(12),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_of_the_program_are_told_without_its_prefix() {
        let said = "2026-11-28 15:39:52.559 GMT [20088] FATAL:  invalid value for parameter \"log_min_messages\": \"loud\"\n\
                    2026-11-28 15:39:52.559 GMT [20088] HINT:  Available values: debug5, panic.\n";
        assert_eq!(
            words(said),
            "invalid value for parameter \"log_min_messages\": \"loud\" (Available values: debug5, panic)"
        );
        assert_eq!(words("odd\n"), "odd");
    }

    #[test]
    fn libraries_without_a_path_are_looked_for() {
        let found: Vec<&str> = libraries("pg_stat_statements, \"$libdir/auto_explain\",/opt/x.so,").collect();
        assert_eq!(found, ["pg_stat_statements", "auto_explain"]);
    }
}
