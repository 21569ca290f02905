//! The table `[hooks]`: programs of the operator's that the agent runs, in its own words and in Patroni's.

use std::{path::Path, time::Duration};

use nix::unistd::{AccessFlags, access};

use super::{
    error::Wrong,
    raw::{RawHook, RawHooks, RawPatroniHooks, closest},
};
use crate::domain::hooks::HookEvent;

const DEADLINE_MS: u64 = 10_000;
const RETRIES_MAX: u32 = 10;

/// The operator's programs, in the order in which they run.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct HooksConfig {
    /// One after the other as in the file, Patroni's after them.
    pub run: Vec<Hook>,
}

/// One program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hook {
    /// Where it stands in the file, for messages.
    pub key: String,
    /// When it is run. Never empty.
    pub on: Vec<HookEvent>,
    /// Program and arguments. In these `{event}`, `{role}`, `{cluster}`, `{member}`, `{epoch}` and `{timeline}` are filled in.
    pub command: Vec<String>,
    /// Patroni's action, the role and the name of the cluster follow the arguments.
    pub as_callback: bool,
    /// What comes next waits for its end.
    pub blocking: bool,
    /// How long one try may take.
    pub deadline: Duration,
    /// So often it is tried again when it fails.
    pub retries: u32,
    /// When it fails the member is not promoted. Only of blocking ones that run before a promotion.
    pub required: bool,
}

pub(super) fn check(raw: Option<RawHooks>) -> Result<HooksConfig, Wrong> {
    let raw = raw.unwrap_or_default();
    let own = raw.run.unwrap_or_default().into_iter().enumerate();
    let mut run = own.map(|(index, raw)| hook(&format!("hooks.run[{index}]"), raw)).collect::<Result<Vec<_>, _>>()?;
    run.extend(patroni(raw.patroni.unwrap_or_default())?);
    Ok(HooksConfig { run })
}

fn hook(table: &str, raw: RawHook) -> Result<Hook, Wrong> {
    let key = |name: &str| format!("{table}.{name}");
    let on = events(&key("on"), &raw.on.unwrap_or_default())?;
    let command = raw.command.unwrap_or_default();
    program(&key("command"), &command)?;
    let blocking = raw.blocking.unwrap_or(true);
    let required = raw.required.unwrap_or(false);
    if required && on.iter().any(|event| *event != HookEvent::BeforePromote) {
        let problem = "only what runs before a promotion can be required";
        let advice = "make a hook of its own with on = [\"before_promote\"], or remove the key";
        return Err(Wrong::new(key("required"), problem, advice));
    }
    if required && !blocking {
        let problem = "what is not waited for can't be required";
        return Err(Wrong::new(key("required"), problem, "set blocking = true, or remove the key"));
    }
    let (deadline, retries) = limits(table, raw.deadline_ms, raw.retries)?;
    Ok(Hook { key: table.to_owned(), on, command, as_callback: false, blocking, deadline, retries, required })
}

fn events(key: &str, names: &[String]) -> Result<Vec<HookEvent>, Wrong> {
    let known = HookEvent::ALL.map(HookEvent::name);
    let read = |name: &String| {
        name.parse().map_err(|problem: String| {
            let advice = match closest(name, &known) {
                Some(meant) => format!("did you mean `{meant}`?"),
                None => format!("known here: {}", known.join(", ")),
            };
            Wrong::new(key, problem, advice)
        })
    };
    let on: Vec<HookEvent> = names.iter().map(read).collect::<Result<_, _>>()?;
    match on.is_empty() {
        true => Err(Wrong::new(key, "missing or empty", format!("name moments: {}", known.join(", ")))),
        false => Ok(on),
    }
}

fn program(key: &str, command: &[String]) -> Result<(), Wrong> {
    match command.first() {
        Some(program) if program.starts_with('/') => {}
        Some(program) => {
            let problem = format!("`{program}` is no path from the root");
            return Err(Wrong::new(key, problem, "write the program's whole path, then its arguments, one by one"));
        }
        None => return Err(Wrong::new(key, "missing or empty", "name a program")),
    }
    match command.iter().any(|argument| argument.contains('\0')) {
        true => Err(Wrong::new(key, "an argument has a zero byte in it", "remove it")),
        false => Ok(()),
    }
}

fn limits(table: &str, deadline_ms: Option<u64>, retries: Option<u32>) -> Result<(Duration, u32), Wrong> {
    let deadline_ms = deadline_ms.unwrap_or(DEADLINE_MS);
    if !(100..=3_600_000).contains(&deadline_ms) {
        let problem = format!("{deadline_ms} ms is out of range");
        return Err(Wrong::new(format!("{table}.deadline_ms"), problem, "use 100 to 3600000 (an hour)"));
    }
    let retries = retries.unwrap_or(0);
    if retries > RETRIES_MAX {
        let problem = format!("{retries} is out of range");
        return Err(Wrong::new(format!("{table}.retries"), problem, format!("use 0 to {RETRIES_MAX}")));
    }
    Ok((Duration::from_millis(deadline_ms), retries))
}

/// Patroni's keys. It splits what they say as a shell would, and so is it done here.
fn patroni(raw: RawPatroniHooks) -> Result<Vec<Hook>, Wrong> {
    const TABLE: &str = "hooks.patroni";
    let callback = true;
    let keys = [
        ("pre_promote", raw.pre_promote, HookEvent::BeforePromote, !callback),
        ("before_stop", raw.before_stop, HookEvent::BeforeStop, !callback),
        ("on_start", raw.on_start, HookEvent::AfterStart, callback),
        ("on_stop", raw.on_stop, HookEvent::AfterStop, callback),
        ("on_restart", raw.on_restart, HookEvent::AfterRestart, callback),
        ("on_reload", raw.on_reload, HookEvent::AfterReload, callback),
        ("on_role_change", raw.on_role_change, HookEvent::AfterRoleChange, callback),
    ];
    let (deadline, retries) = limits(TABLE, raw.deadline_ms, raw.retries)?;
    let mut run = Vec::new();
    for (name, line, event, as_callback) in keys {
        let Some(line) = line else { continue };
        let key = format!("{TABLE}.{name}");
        let split = shlex::split(&line);
        let command = split.ok_or_else(|| Wrong::new(key.clone(), "a quote is not closed", "close it"))?;
        program(&key, &command)?;
        let required = event == HookEvent::BeforePromote;
        run.push(Hook { key, on: vec![event], command, as_callback, blocking: true, deadline, retries, required });
    }
    Ok(run)
}

/// Whether the programs are there and this user may run them. A hook that can't be run keeps no agent from starting: a
/// primary must survive the restart of its agent.
pub(super) fn on_host(hooks: &HooksConfig) -> Result<(), Wrong> {
    for hook in &hooks.run {
        if let Some(program) = hook.command.first() {
            runnable(program).map_err(|problem| {
                Wrong::new(hook.key.clone(), problem, "name a program that the user of the agent may run")
            })?;
        }
    }
    Ok(())
}

/// Whether this user may run it.
///
/// # Errors
/// Why not, with its path.
pub fn runnable(program: &str) -> Result<(), String> {
    let path = Path::new(program);
    match std::fs::metadata(path) {
        Err(error) => return Err(format!("{program} can't be looked at ({error})")),
        Ok(meta) if !meta.is_file() => return Err(format!("{program} is no file")),
        Ok(_) => {}
    }
    access(path, AccessFlags::X_OK).map_err(|error| format!("{program} can't be run ({error})"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Vec<Hook>, String> {
        let raw: RawHooks = toml::from_str(text).map_err(|e| e.to_string())?;
        check(Some(raw)).map(|hooks| hooks.run).map_err(|wrong| wrong.in_file(Path::new("m.toml")).to_string())
    }

    #[test]
    fn own_hooks_come_in_the_order_of_the_file_and_patronis_after_them() {
        let text = "[[run]]\non = [\"after_promote\", \"after_demote\"]\ncommand = [\"/a\"]\n\
                    [[run]]\non = [\"before_promote\"]\ncommand = [\"/b\", \"{epoch}\"]\nrequired = true\nretries = 2\n\
                    deadline_ms = 3000\n\
                    [patroni]\non_role_change = \"/cb 'a b' c\"\npre_promote = \"/fence\"\n";
        let hooks = read(text).unwrap();
        let told: Vec<_> =
            hooks.iter().map(|h| (h.key.as_str(), h.command.join("|"), h.as_callback, h.required)).collect();
        assert_eq!(
            told,
            [
                ("hooks.run[0]", "/a".to_owned(), false, false),
                ("hooks.run[1]", "/b|{epoch}".to_owned(), false, true),
                ("hooks.patroni.pre_promote", "/fence".to_owned(), false, true),
                ("hooks.patroni.on_role_change", "/cb|a b|c".to_owned(), true, false),
            ]
        );
        assert_eq!(hooks[0].on, [HookEvent::AfterPromote, HookEvent::AfterDemote]);
        assert!(hooks.iter().all(|hook| hook.blocking));
        assert_eq!((hooks[1].deadline, hooks[1].retries), (Duration::from_secs(3), 2));
        assert_eq!(hooks[3].deadline, Duration::from_millis(DEADLINE_MS));
        assert_eq!(read("").unwrap(), []);
    }

    #[test]
    fn what_can_not_be_is_refused_with_its_key() {
        let wrong = |text: &str| read(text).unwrap_err();
        let run = |rest: &str| wrong(&format!("[[run]]\n{rest}\n"));
        assert_eq!(
            run("on = [\"after_promot\"]\ncommand = [\"/a\"]"),
            "m.toml: hooks.run[0].on: `after_promot` is no moment at which hooks run; did you mean `after_promote`?"
        );
        assert!(
            run("command = [\"/a\"]").starts_with("m.toml: hooks.run[0].on: missing or empty; name moments: before_")
        );
        assert!(run("on = [\"after_stop\"]\ncommand = [\"a\"]").contains("hooks.run[0].command: `a` is no path"));
        assert!(
            run("on = [\"after_stop\"]\ncommand = [\"/a\"]\nrequired = true").contains("hooks.run[0].required: only")
        );
        let aside = run("on = [\"before_promote\"]\ncommand = [\"/a\"]\nrequired = true\nblocking = false");
        assert!(aside.contains("hooks.run[0].required: what is not waited for"), "{aside}");
        assert!(
            run("on = [\"after_stop\"]\ncommand = [\"/a\"]\nretries = 11").contains("hooks.run[0].retries: 11 is out")
        );
        assert!(run("on = [\"after_stop\"]\ncommand = [\"/a\"]\ndeadline_ms = 1").contains("run[0].deadline_ms: 1 ms"));
        assert!(
            wrong("[patroni]\non_stop = \"/a 'b\"").contains("hooks.patroni.on_stop: a quote is not closed; close it")
        );
        assert!(wrong("[patroni]\non_start = \"a\"").contains("hooks.patroni.on_start: `a` is no path from the root"));
    }

    #[test]
    fn a_program_that_this_host_can_not_run_is_named() {
        assert_eq!(runnable("/bin/sh"), Ok(()));
        assert!(runnable("/no/such").unwrap_err().starts_with("/no/such can't be looked at"));
        assert_eq!(runnable("/tmp").unwrap_err(), "/tmp is no file");
        // A new file has no right to be run, not even for root.
        let file = tempfile::NamedTempFile::new().unwrap();
        let path = file.path().display().to_string();
        assert!(runnable(&path).unwrap_err().starts_with(&format!("{path} can't be run")));
    }
}
