//! Other programs that manage a PostgreSQL of this host, and whether they manage this member's.

use std::{
    fs,
    io::Read as _,
    path::{Path, PathBuf},
};

use super::instance::Instance;

/// Programs that would not leave PostgreSQL alone.
const MANAGERS: [&str; 6] = ["patroni", "patroni.py", "pg_autoctl", "repmgrd", "stolon-keeper", "pacemakerd"];
/// Programs that only speak of one: a name among their arguments says nothing.
const SPEAKERS: [&str; 14] = [
    "journalctl",
    "systemctl",
    "patronictl",
    "psql",
    "grep",
    "pgrep",
    "pkill",
    "tail",
    "less",
    "cat",
    "vi",
    "vim",
    "nano",
    "man",
];
/// No configuration of a manager's is longer.
const LONGEST: u64 = 1 << 20;

/// A program that manages a PostgreSQL, and runs beside our data directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OtherManager {
    /// Its program.
    pub name: String,
    /// Its process.
    pub pid: u32,
    /// Its arguments, environment or configuration name our data directory; else they could not all be read.
    pub named: bool,
}

/// Its words, as far as they can be read.
enum Words {
    NameIt,
    NameAnother,
    Unreadable,
}

/// Every manager of this host with its process.
pub(super) fn managers(proc: &Path) -> Vec<(String, u32)> {
    let entries = fs::read_dir(proc).into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.filter_map(|pid| Some((manager(&arguments(proc, pid))?, pid))).collect()
}

/// The program may be run by an interpreter, with options of its own (`python3 -X dev -m patroni`), or by another that hands
/// its arguments on (`setpriv`, `tini`): so any word counts.
fn manager(words: &[String]) -> Option<String> {
    fn program(word: &str) -> &str {
        word.rsplit('/').next().unwrap_or_default()
    }
    if words.first().is_some_and(|first| SPEAKERS.contains(&program(first))) {
        return None;
    }
    words.iter().find_map(|word| MANAGERS.into_iter().find(|manager| program(word) == *manager)).map(str::to_owned)
}

fn arguments(proc: &Path, pid: u32) -> Vec<String> {
    let line = fs::read(proc.join(pid.to_string()).join("cmdline")).unwrap_or_default();
    line.split(|b| *b == 0).map(|word| String::from_utf8_lossy(word).into_owned()).collect()
}

impl Instance {
    /// A manager that runs now and has this member's data directory in its words; else one of which that can't be told.
    pub fn other_manager(&self) -> Option<OtherManager> {
        of_directory(Path::new("/proc"), self.data_dir())
    }
}

fn of_directory(proc: &Path, data_dir: &Path) -> Option<OtherManager> {
    let found = managers(proc).into_iter().filter_map(|(name, pid)| match words_of(proc, pid, data_dir) {
        Words::NameIt => Some(OtherManager { name, pid, named: true }),
        Words::Unreadable => Some(OtherManager { name, pid, named: false }),
        Words::NameAnother => None,
    });
    found.max_by_key(|manager| manager.named)
}

/// Patroni has the directory in its file or in its environment, pg_autoctl in its arguments or environment, repmgrd in its file.
fn words_of(proc: &Path, pid: u32, data_dir: &Path) -> Words {
    let (process, arguments) = (proc.join(pid.to_string()), arguments(proc, pid));
    let environment = fs::read(process.join("environ"));
    let mut unreadable = environment.is_err();
    let environment = environment.unwrap_or_default();
    let mut texts = arguments.clone();
    texts.extend(environment.split(|b| *b == 0).map(|word| String::from_utf8_lossy(word).into_owned()));
    let (mut files, cwd) = (0, process.join("cwd"));
    for file in arguments.iter().skip(1).flat_map(|word| configurations(&cwd, word)) {
        match text_of(&file) {
            Some(text) => texts.push(text),
            None => unreadable = true,
        }
        files += 1;
    }
    let real = fs::canonicalize(data_dir).ok();
    let names = [Some(data_dir), real.as_deref()];
    let names = Vec::from_iter(names.into_iter().flatten().filter_map(Path::to_str));
    match texts.iter().any(|text| names.iter().any(|name| says(text, name))) {
        true => Words::NameIt,
        // One without a file may have it from somewhere that is not looked at.
        false if unreadable || files == 0 => Words::Unreadable,
        false => Words::NameAnother,
    }
}

/// The files that a word names: itself, or those of a directory of configurations.
fn configurations(cwd: &Path, word: &str) -> Vec<PathBuf> {
    // `--config=FILE` as well.
    let name = word.rsplit('=').next().unwrap_or_default();
    let ends =
        |path: &Path| path.extension().is_some_and(|end| ["yml", "yaml", "conf", "json"].iter().any(|e| end == *e));
    let path = cwd.join(name);
    match fs::metadata(&path) {
        Ok(found) if found.is_dir() && !name.is_empty() && name != "/" => {
            let entries = fs::read_dir(&path).into_iter().flatten().flatten().map(|entry| entry.path());
            entries.filter(|path| ends(path)).collect()
        }
        Ok(found) if found.is_file() && ends(&path) => vec![path],
        // What is there and may not be looked at.
        Err(error) if ends(&path) && error.kind() != std::io::ErrorKind::NotFound => vec![path],
        Ok(_) | Err(_) => Vec::new(),
    }
}

fn text_of(file: &Path) -> Option<String> {
    let mut bytes = Vec::new();
    fs::File::open(file).ok()?.take(LONGEST).read_to_end(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

/// `directory` is named in `text`, and not only one whose name begins alike.
fn says(text: &str, directory: &str) -> bool {
    let part = |c: char| c.is_alphanumeric() || "-_.".contains(c);
    text.match_indices(directory).any(|(at, _)| {
        let before = text[..at].chars().next_back();
        let after = text[at + directory.len()..].chars().next();
        !before.is_some_and(|c| part(c) || c == '/') && !after.is_some_and(part)
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    struct Host(tempfile::TempDir);

    impl Host {
        fn new() -> Host {
            Host(tempfile::tempdir().unwrap())
        }

        fn proc(&self) -> PathBuf {
            self.0.path().join("proc")
        }

        fn runs(&self, pid: u32, words: &[&str], environment: &[&str]) {
            let process = self.proc().join(pid.to_string());
            fs::create_dir_all(process.join("cwd")).unwrap();
            fs::write(process.join("cmdline"), words.join("\0") + "\0").unwrap();
            fs::write(process.join("environ"), environment.join("\0")).unwrap();
        }

        fn file(&self, name: &str, text: &str) -> String {
            let path = self.0.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, text).unwrap();
            path.display().to_string()
        }
    }

    #[test]
    fn a_manager_is_known_wherever_its_name_stands() {
        let host = Host::new();
        host.runs(7, &["/usr/bin/python3", "/usr/bin/patroni", "/etc/patroni.yml"], &[]);
        host.runs(8, &["postgres", "-D", "/data"], &[]);
        host.runs(9, &["/usr/sbin/pacemakerd"], &[]);
        host.runs(10, &["python3", "-X", "dev", "-m", "patroni", "/etc/p.yml"], &[]);
        host.runs(11, &["setpriv", "--reuid", "26", "/opt/patroni/bin/patroni", "/etc/p.yml"], &[]);
        host.runs(12, &["python3", "-u", "/opt/patroni.py", "postgres0.yml"], &[]);
        host.runs(13, &["tail", "-f", "/var/log/patroni"], &[]);
        host.runs(14, &["psql", "-U", "patroni"], &[]);
        host.runs(15, &["vim", "/etc/patroni.yml"], &[]);
        fs::create_dir_all(host.proc().join("self")).unwrap();
        let mut found = managers(&host.proc());
        found.sort_by_key(|(_, pid)| *pid);
        let patroni = |pid| ("patroni".to_owned(), pid);
        let all = [patroni(7), ("pacemakerd".to_owned(), 9), patroni(10), patroni(11), ("patroni.py".to_owned(), 12)];
        assert_eq!(found, all);
    }

    #[test]
    fn whose_directory_it_manages_says_its_file_its_environment_or_an_argument() {
        let (ours, manages) = (Path::new("/data/main"), |host: &Host| {
            of_directory(&host.proc(), Path::new("/data/main")).map(|found| (found.pid, found.named))
        });
        let host = Host::new();
        assert_eq!(of_directory(&host.proc(), ours), None);
        let other = host.file("other.yml", "postgresql:\n  data_dir: /data/main2\n");
        host.runs(7, &["python3", "/usr/bin/patroni", &other], &["HOME=/"]);
        assert_eq!(manages(&host), None, "it manages another directory of this host");
        host.runs(8, &["pg_autoctl", "run"], &["PGDATA=/data/main.new"]);
        assert_eq!(manages(&host), Some((8, false)), "nobody knows");
        let file = host.file("patroni.yml", "postgresql:\n  data_dir: \"/data/main/\"\n");
        host.runs(9, &["python3", "/usr/bin/patroni", &file], &[]);
        assert_eq!(manages(&host), Some((9, true)), "what is known counts more");

        let ours_by = |words: &[&str], environment: &[&str]| {
            let host = Host::new();
            host.file("conf/patroni.yml", "postgresql: {data_dir: /data/main}\n");
            let dir = host.0.path().join("conf").display().to_string();
            let words = Vec::from_iter(words.iter().map(|word| if *word == "DIR" { dir.as_str() } else { word }));
            host.runs(7, &words, environment);
            manages(&host)
        };
        assert_eq!(ours_by(&["patroni", "DIR"], &[]), Some((7, true)), "a directory of files");
        assert_eq!(ours_by(&["patroni"], &["PATRONI_POSTGRESQL_DATA_DIR=/data/main"]), Some((7, true)));
        assert_eq!(ours_by(&["pg_autoctl", "run", "--pgdata=/data/main"], &[]), Some((7, true)));
    }
}
