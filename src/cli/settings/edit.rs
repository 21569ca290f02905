//! `matriarch config edit`: everything that is set, in an editor.

use std::{
    collections::BTreeMap,
    env, fs,
    io::{self, BufRead as _, IsTerminal as _, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use super::{changed_with, request_of, told, versions::lines};
use crate::{
    cli::{
        args::ConfigEditArgs,
        client::{Client, ClientError},
        complain, complain_client,
        exit::{self, Exit},
        print,
    },
    domain::settings_history::differences,
    rpc::v1::SetSettingsRequest,
};

type Values = BTreeMap<String, String>;

pub(in crate::cli) async fn edit(args: ConfigEditArgs) -> Exit {
    if !args.yes && !io::stdin().is_terminal() {
        return complain("config edit: this is no terminal, where it could ask; add --yes", exit::USAGE);
    }
    match try_to_edit(&args).await {
        Ok(exit) => exit,
        Err(error) => complain_client(&error),
    }
}

async fn try_to_edit(args: &ConfigEditArgs) -> Result<Exit, ClientError> {
    let known = Client::new(&args.client)?.settings_history().await?;
    let written = match edited(&text_of(known.version, &known.values)) {
        Ok(written) => written,
        Err(problem) => return Ok(complain(&format!("config edit: {problem}"), exit::FAILED)),
    };
    let (path, text) = written;
    let kept =
        |problem: &str| format!("config edit: {problem}; nothing was changed, what you wrote is in {}", path.display());
    let values = match parse(&text) {
        Ok(values) => values,
        Err(problem) => return Ok(complain(&kept(&problem), exit::USAGE)),
    };
    let found = differences(&known.values, &values);
    if found.is_empty() {
        let _ = fs::remove_file(&path);
        print("nothing was changed\n");
        return Ok(exit::OK);
    }
    print(&lines(&found));
    if !args.yes && !confirmed(known.version) {
        return Ok(complain(&kept("not confirmed"), exit::FAILED));
    }
    let changes = found.into_iter().map(|(key, (_, after))| (key, after));
    let request = SetSettingsRequest { force: args.force, ..request_of(changes) };
    let changed = changed_with(&args.client, Some(known.version), request).await?;
    let exit = told("config edit", &changed, false);
    match exit {
        exit::OK => drop(fs::remove_file(&path)),
        _ => eprintln!("matriarch: what you wrote is in {}", path.display()),
    }
    Ok(exit)
}

/// The file with what came out of the editor.
fn edited(text: &str) -> Result<(PathBuf, String), String> {
    let path = env::temp_dir().join(format!("matriarch-settings-{}.toml", uuid::Uuid::new_v4()));
    let at = |error: io::Error| format!("{}: {error}", path.display());
    let file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
    file.and_then(|mut file| file.write_all(text.as_bytes())).map_err(at)?;
    let editor = ["VISUAL", "EDITOR"].into_iter().filter_map(env::var_os).find(|editor| !editor.is_empty());
    let editor = editor.unwrap_or_else(|| "vi".into());
    run(&editor.to_string_lossy(), &path)?;
    let text = fs::read_to_string(&path).map_err(at)?;
    Ok((path, text))
}

/// By the shell, for an editor may have arguments.
fn run(editor: &str, path: &Path) -> Result<(), String> {
    let status = Command::new("sh").args(["-c", &format!("{editor} \"$1\""), "sh"]).arg(path).status();
    match status {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!("the editor ({editor}) ended with {status}; nothing was changed")),
        Err(error) => Err(format!("the editor ({editor}) can't be run: {error}; set EDITOR")),
    }
}

fn confirmed(version: u64) -> bool {
    print(&format!("Change the settings of version {version} so? [y/N] "));
    let mut answer = String::new();
    let read = io::stdin().lock().read_line(&mut answer);
    read.is_ok() && matches!(answer.trim(), "y" | "Y" | "yes")
}

/// The settings as text: TOML with a line for each key that is set.
fn text_of(version: u64, values: &Values) -> String {
    let head = format!(
        "# Settings of the cluster, version {version}: what is set. A line that is removed gets its default.\n\
         # KEY = \"VALUE\"; settings of PostgreSQL are parameters.NAME, of one side primary.parameters.NAME or\n\
         # standby.parameters.NAME, of a member MEMBER.KEY and MEMBER.parameters.NAME. `matriarch config show` has all keys.\n\n"
    );
    let line = |(key, value): (&String, &String)| {
        let value = toml::Value::String(value.clone());
        match value.as_str().filter(|text| text.contains('\n') && !text.contains("'''")) {
            Some(text) => format!("{key} = '''\n{}'''\n", text.trim_end_matches('\n').to_owned() + "\n"),
            None => format!("{key} = {value}\n"),
        }
    };
    head + &values.iter().map(line).collect::<String>()
}

/// What was written, as keys and values.
fn parse(text: &str) -> Result<Values, String> {
    let table: toml::Table = text.parse().map_err(|error: toml::de::Error| {
        // In one line, with its place.
        let line = error.span().map(|span| text[..span.start.min(text.len())].matches('\n').count() + 1);
        let line = line.map_or_else(String::new, |line| format!("line {line}: "));
        format!("{line}{}", error.message().replace('\n', " "))
    })?;
    let mut values = Values::new();
    flatten("", &table, &mut values)?;
    Ok(values)
}

fn flatten(prefix: &str, table: &toml::Table, values: &mut Values) -> Result<(), String> {
    for (key, value) in table {
        let key = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
        let text = match value {
            toml::Value::Table(table) => {
                flatten(&key, table, values)?;
                continue;
            }
            toml::Value::String(text) => text.trim_end_matches('\n').to_owned(),
            toml::Value::Integer(number) => number.to_string(),
            toml::Value::Float(number) => number.to_string(),
            toml::Value::Boolean(yes) => yes.to_string(),
            toml::Value::Datetime(_) | toml::Value::Array(_) => {
                return Err(format!("{key}: a value of type {} is no setting; write a text", value.type_str()));
            }
        };
        values.insert(key, text);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(of: &[(&str, &str)]) -> Values {
        of.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn what_is_written_is_read_again() {
        let all = values(&[
            ("crash_budget", "5"),
            ("hba", "local all all peer\nhost all all 10.0.0.0/8 \"md5\""),
            ("n1.parameters.work_mem", "1MB"),
            ("n1.priority", "50"),
            ("parameters.log_line_prefix", "%m 'x' \"y\" \\"),
            ("parameters.pg_stat_statements.max", "1000"),
        ]);
        let text = text_of(7, &all);
        assert!(text.contains("\nparameters.pg_stat_statements.max = "), "{text}");
        assert_eq!(parse(&text), Ok(all));
    }

    #[test]
    fn tables_and_numbers_are_as_good() {
        let text = "crash_budget = 5\nsync_strict = true\n[parameters]\nwork_mem = \"1MB\"\n[n1]\npriority = 0\n";
        let expected = values(&[
            ("crash_budget", "5"),
            ("n1.priority", "0"),
            ("parameters.work_mem", "1MB"),
            ("sync_strict", "true"),
        ]);
        assert_eq!(parse(text), Ok(expected));
        assert!(parse("a = 1\nb = [1]\n").unwrap_err().contains("b: a value of type array"));
        assert!(parse("a = 1\nb 2\n").unwrap_err().starts_with("line 2: "));
    }
}
