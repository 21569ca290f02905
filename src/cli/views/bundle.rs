//! `matriarch support-bundle`: what whoever helps needs to know, in one file. Everything goes through [`Redactor`] on its way in,
//! and what could not be had is named in it.

use std::{
    collections::VecDeque,
    fs,
    io::{self, BufRead as _, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use flate2::{Compression, write::GzEncoder};
use tokio::{process::Command, time::timeout};

use super::{
    super::{
        args::views::BundleArgs,
        client::{Client, ClientError},
        complain, complain_client, config_file,
        exit::{self, Exit},
        history, preflight, print, render, settings,
    },
    matrix,
    redact::Redactor,
};
use crate::config::{Config, Purpose};

/// A program of the host that takes longer is left out.
const PROGRAM: Duration = Duration::from_secs(10);
/// What a stream of events may take to say what is kept.
const EVENTS: Duration = Duration::from_secs(3);

/// Files of the host that say what it is and how it is set. None has a secret of ours.
const FILES: [&str; 14] = [
    "/etc/os-release",
    "/proc/version",
    "/proc/cmdline",
    "/proc/cpuinfo",
    "/proc/meminfo",
    "/proc/loadavg",
    "/proc/uptime",
    "/proc/mounts",
    "/proc/self/limits",
    "/proc/self/cgroup",
    "/proc/pressure/cpu",
    "/proc/pressure/io",
    "/proc/pressure/memory",
    "/proc/sys/vm/overcommit_memory",
];

/// Programs of the host, with their arguments. Of processes only names are asked: arguments can hold anything.
const PROGRAMS: [(&str, &[&str]); 4] = [
    ("df", &["-P", "-k"]),
    ("lsblk", &["-o", "NAME,TYPE,SIZE,ROTA,SCHED,MOUNTPOINT"]),
    ("ps", &["-eo", "user,pid,ppid,stat,etimes,rss,cls,ni,comm"]),
    ("timedatectl", &["show"]),
];

/// What goes in.
#[derive(Default)]
struct Bundle {
    files: Vec<(String, String)>,
    missing: Vec<String>,
    redactor: Redactor,
}

impl Bundle {
    fn put(&mut self, name: &str, text: &str) {
        self.files.push((name.to_owned(), self.redactor.file(name, text)));
    }

    fn try_put(&mut self, name: &str, text: Result<String, String>) {
        match text {
            Ok(text) => self.put(name, &text),
            Err(why) => {
                let why = self.redactor.text(&why);
                self.missing.push(format!("{name}: {why}"));
            }
        }
    }

    /// All of it as `.tar.gz`, below one directory.
    fn packed(mut self, top: &str, now: u64) -> io::Result<Vec<u8>> {
        self.files.push(("missing.txt".to_owned(), self.missing.iter().map(|line| format!("{line}\n")).collect()));
        let mut archive = tar::Builder::new(GzEncoder::new(Vec::new(), Compression::default()));
        for (name, text) in &self.files {
            let mut header = tar::Header::new_gnu();
            header.set_size(text.len() as u64);
            header.set_mode(0o600);
            header.set_mtime(now);
            archive.append_data(&mut header, format!("{top}/{name}"), text.as_bytes())?;
        }
        archive.into_inner()?.finish()
    }
}

pub(super) async fn run(args: BundleArgs) -> Exit {
    let client = match Client::new(&args.client) {
        Ok(client) => client,
        Err(error) => return complain_client(&error),
    };
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let mut bundle = Bundle::default();
    // First the secrets, so that they are known before anything is put in.
    let config = own_config(&args, &mut bundle);
    let cluster = of_cluster(&client, &mut bundle).await;
    if let Some(config) = &config
        && config.local().is_some()
    {
        let checks = preflight::checks(config);
        bundle.put("host/preflight.json", &render::preflight_json(&checks));
    }
    of_host(&mut bundle, args.lines).await;
    for log in &args.logs {
        let name = log.file_name().map_or_else(|| "log".into(), |name| name.to_string_lossy().into_owned());
        let end = tail(log, args.lines as usize).map_err(|error| format!("{}: {error}", log.display()));
        let n = bundle.files.len();
        bundle.try_put(&format!("logs/{n}-{name}"), end);
    }
    let name = cluster.or_else(|| config.map(|c| c.cluster.name)).unwrap_or_else(|| "cluster".to_owned());
    let top = format!("matriarch-{name}-{now}");
    bundle.put("about.txt", &about(&name, now));
    let file = args.file.unwrap_or_else(|| PathBuf::from(format!("{top}.tar.gz")));
    finish(bundle, &top, now, &file)
}

fn finish(bundle: Bundle, top: &str, now: u64, file: &Path) -> Exit {
    let (files, missing) = (bundle.files.len(), bundle.missing.len());
    let written = bundle.packed(top, now).and_then(|packed| {
        let mut out = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(file)?;
        out.write_all(&packed)
    });
    match written {
        Ok(()) => {
            print(&format!(
                "{} has {files} files; {missing} could not be had (missing.txt in it says which and why)\n\
                 Secrets are masked as far as they are known or look like one: look through it before you hand it on.\n",
                file.display()
            ));
            exit::OK
        }
        Err(error) => {
            let what = format!("support-bundle: can't write {} ({error}); name another with --file", file.display());
            complain(&what, exit::FAILED)
        }
    }
}

fn about(cluster: &str, now: u64) -> String {
    format!(
        "Support bundle of the cluster {cluster}, made at {now} (seconds since 1970) by matriarch {}.\n\
         cluster/: what the managers say. host/: the host where this was made. logs/: the end of its logs.\n",
        env!("CARGO_PKG_VERSION")
    )
}

/// This host's configuration, without what it keeps secret. Its secrets are learned on the way.
fn own_config(args: &BundleArgs, bundle: &mut Bundle) -> Option<Config> {
    let file = config_file(args.client.config.clone());
    let config = Config::load_for(&file, Purpose::Host).or_else(|_| Config::load_for(&file, Purpose::Client));
    let text = fs::read_to_string(&file).map_err(|error| format!("{}: {error}", file.display()));
    if let Ok(text) = &text {
        for path in secret_files(text) {
            // Whoever may not read it can't give it away either.
            if let Ok(secret) = fs::read_to_string(path) {
                bundle.redactor.learn(&secret);
            }
        }
    }
    bundle.try_put("host/matriarch.toml", text);
    config.ok()
}

/// Every file that the configuration names for a secret, whatever its section.
fn secret_files(text: &str) -> Vec<String> {
    fn walk(value: &toml::Value, key: &str, out: &mut Vec<String>) {
        match value {
            toml::Value::Table(table) => table.iter().for_each(|(key, value)| walk(value, key, out)),
            toml::Value::Array(items) => items.iter().for_each(|item| walk(item, key, out)),
            toml::Value::String(path)
                if ["secret_file", "password_file", "token_file"].iter().any(|k| key.ends_with(k)) =>
            {
                out.push(path.clone());
            }
            _ => {}
        }
    }
    let mut out = Vec::new();
    if let Ok(table) = text.parse::<toml::Table>() {
        walk(&toml::Value::Table(table), "", &mut out);
    }
    out
}

/// What the managers say; the cluster's name when one answers.
async fn of_cluster(client: &Client, bundle: &mut Bundle) -> Option<String> {
    let words = |error: ClientError| error.to_string();
    bundle.put("cluster/managers.txt", &client.managers().join("\n"));
    let status = client.status(false).await.map_err(words);
    bundle.try_put("cluster/status.json", status.as_ref().map(render::status_json).map_err(Clone::clone));
    let explain = client.explain().await;
    bundle.try_put("cluster/explain.json", explain.map(|r| render::explain_json(&r)).map_err(words));
    let told = client.history().await;
    bundle.try_put("cluster/history.json", told.map(|r| history::history_json(&r, usize::MAX)).map_err(words));
    bundle.try_put("cluster/events.jsonl", events(client).await);
    let set = client.settings().await;
    bundle.try_put("cluster/settings.json", set.map(|r| settings::json(&r, &[])).map_err(words));
    let status = status.ok()?;
    bundle.put("cluster/matrix.json", &matrix::document(&status, &matrix::ask(&status).await));
    bundle.put("cluster/status.txt", &render::status(&status, render::Style::Plain));
    Some(status.cluster)
}

async fn events(client: &Client) -> Result<String, String> {
    let mut stream = client.events(None, false).await.map_err(|error| error.to_string())?;
    let mut text = String::new();
    // What has come by then is worth having.
    let _ = timeout(EVENTS, async {
        while let Ok(Some(event)) = stream.message().await {
            text.push_str(&history::event_json(&event));
        }
    })
    .await;
    Ok(text)
}

async fn of_host(bundle: &mut Bundle, lines: u32) {
    for file in FILES {
        let text = fs::read_to_string(file).map_err(|error| error.to_string());
        bundle.try_put(&format!("host/{}", file.trim_start_matches('/').replace('/', "-")), text);
    }
    for (program, args) in PROGRAMS {
        bundle.try_put(&format!("host/{program}.txt"), said(program, args).await);
    }
    let lines = lines.to_string();
    let units = ["manager", "agent", "router"].map(|part| format!("matriarch-{part}.service"));
    for unit in &units {
        let journal = said("journalctl", &["--no-pager", "-o", "short-iso", "-n", &lines, "-u", unit]).await;
        bundle.try_put(&format!("logs/{unit}.txt"), journal);
    }
}

async fn said(program: &str, args: &[&str]) -> Result<String, String> {
    let mut command = Command::new(program);
    command.args(args).stdin(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
    match timeout(PROGRAM, command.output()).await {
        Ok(Ok(output)) if output.status.success() => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        Ok(Ok(output)) => Err(format!("{program} ended with {}", output.status)),
        Ok(Err(error)) => Err(format!("{program}: {error}")),
        Err(_) => Err(format!("{program} did not end within {} s", PROGRAM.as_secs())),
    }
}

/// The last lines of a file, however long it is.
fn tail(file: &Path, lines: usize) -> io::Result<String> {
    let mut last: VecDeque<String> = VecDeque::new();
    let mut reader = io::BufReader::new(fs::File::open(file)?);
    let mut line = Vec::new();
    while reader.read_until(b'\n', &mut line)? > 0 {
        last.push_back(String::from_utf8_lossy(&line).into_owned());
        if last.len() > lines {
            last.pop_front();
        }
        line.clear();
    }
    Ok(last.into_iter().collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{collections::BTreeMap, io::Read as _};

    fn unpacked(packed: &[u8]) -> BTreeMap<String, String> {
        let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(packed));
        let entries = archive.entries().unwrap();
        entries
            .map(|entry| {
                let mut entry = entry.unwrap();
                let (name, mut text) = (entry.path().unwrap().display().to_string(), String::new());
                entry.read_to_string(&mut text).unwrap();
                (name, text)
            })
            .collect()
    }

    #[test]
    fn a_planted_secret_is_in_no_file_of_it() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::write(at("secret"), "planted-1-of-the-cluster\n").unwrap();
        fs::write(at("rest"), "planted-2-of-the-api").unwrap();
        let config = format!(
            "[cluster]\nsecret_file = \"{}\"\n[rest]\npassword_file = \"{}\"\npassword = \"planted-3\"\n",
            at("secret").display(),
            at("rest").display()
        );
        fs::write(at("m.toml"), &config).unwrap();
        let log = "said planted-1-of-the-cluster\nconninfo host=a password=planted-4\nlast postgres://u:planted-5@h/\n";
        fs::write(at("a.log"), log).unwrap();
        let mut bundle = Bundle::default();
        let args = BundleArgs {
            client: crate::cli::args::ClientArgs { managers: Vec::new(), cluster: None, config: Some(at("m.toml")) },
            file: None,
            logs: Vec::new(),
            lines: 2,
        };
        own_config(&args, &mut bundle);
        bundle.try_put("logs/a.log", tail(&at("a.log"), 3).map_err(|e| e.to_string()));
        bundle.try_put("cluster/x", Err("no answer to Authorization: Basic planted-6".to_owned()));
        bundle.put("host/env", "x planted-2-of-the-api y");
        let files = unpacked(&bundle.packed("top", 1).unwrap());
        assert_eq!(files.len(), 4, "{files:?}");
        for (name, text) in &files {
            assert!(!text.contains("planted"), "{name}: {text}");
        }
        assert!(files["top/host/matriarch.toml"].contains("secret_file = "), "the names of files stay");
        assert!(files["top/missing.txt"].starts_with("cluster/x: no answer to Authorization"));
        assert!(files["top/logs/a.log"].ends_with("@h/\n"));
    }

    #[test]
    fn of_a_log_only_the_end_is_taken() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), "1\n2\n3\n4").unwrap();
        assert_eq!(tail(file.path(), 2).unwrap(), "3\n4");
        assert_eq!(tail(file.path(), 0).unwrap(), "");
        assert_eq!(tail(file.path(), 9).unwrap(), "1\n2\n3\n4");
    }
}
