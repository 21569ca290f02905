//! What can be typed, command by command, for the end of each help. Every line of it is tried by a test.

use crate::config::DEFAULT_FILE;

/// A line to type, and what it is for; empty where the line says it.
type Example = (&'static str, &'static str);

/// The examples of a command by its words, as text; `None`: there are none here.
pub(super) fn of(words: &str) -> Option<String> {
    let (_, examples) = EXAMPLES.iter().find(|(command, _)| *command == words)?;
    let lines: Vec<String> = examples
        .iter()
        .map(|(line, what)| (line.replace("{config}", &format!("--config {DEFAULT_FILE}")), what))
        .map(line)
        .collect();
    let title = if lines.len() == 1 { "Example" } else { "Examples" };
    Some(format!("{title}:\n{}", lines.join("\n")))
}

fn line((line, what): (String, &&str)) -> String {
    if what.is_empty() { format!("  matriarch {line}") } else { format!("  matriarch {line}  ({what})") }
}

const EXAMPLES: &[(&str, &[Example])] = &[
    ("manager", &[("manager {config}", ""), ("manager --log json --log-level info,matriarch::raft=debug", "")]),
    ("agent", &[("agent {config}", "as the user postgres")]),
    ("router", &[("router {config}", "")]),
    (
        "status",
        &[
            ("status", ""),
            ("status --watch", "again every second"),
            ("status --cluster east --output yaml", ""),
            ("status --all", "one line for each cluster that is known by name"),
        ],
    ),
    ("topology", &[("topology", ""), ("topology --output json", "")]),
    ("top", &[("top", ""), ("top --cluster east --interval 5", "")]),
    (
        "check",
        &[
            ("check", "all of it, the worst decides"),
            ("check quorum", "1: the loss of one more host would be the loss of the majority"),
            ("check sync", "1: the loss of one more standby would be too much"),
            ("check lag --warning 16MB --critical 1GB", ""),
            ("check lag --warning 10s --critical 60s --member n2", ""),
            ("check role --member n1 --role primary", ""),
            ("check disk --warning 20 --critical 10", "percent that are free"),
        ],
    ),
    ("matrix", &[("matrix", ""), ("matrix --json", "")]),
    (
        "support-bundle",
        &[("support-bundle", ""), ("support-bundle --file /tmp/bundle.tar.gz --log /var/log/matriarch.log", "")],
    ),
    (
        "completion",
        &[
            ("completion bash > /etc/bash_completion.d/matriarch", ""),
            ("completion zsh > ~/.zfunc/_matriarch", ""),
            ("completion fish > ~/.config/fish/completions/matriarch.fish", ""),
        ],
    ),
    ("man", &[("man | man -l -", ""), ("man --dir /usr/local/share/man/man1", "")]),
    (
        "switchover",
        &[
            ("switchover", "to the best standby, after a question"),
            ("switchover --candidate n2 --yes", ""),
            ("switchover --dry-run", "what it would do, and how long writes may wait"),
            ("switchover --scheduled 2030-12-01T03:00:00+01:00", ""),
        ],
    ),
    (
        "failover",
        &[
            ("failover --candidate n2", "shows what would be lost, and asks"),
            ("failover --candidate n2 --allow-data-loss --yes --json", ""),
        ],
    ),
    ("pause", &[("pause --reason \"new kernel on all hosts\" --wait", "")]),
    ("resume", &[("resume --wait", "")]),
    ("acknowledge", &[("acknowledge", "")]),
    ("maintenance", &[("maintenance on n3 --reason \"disk is changed\"", ""), ("maintenance off n3", "")]),
    ("maintenance on", &[("maintenance on n3 --reason \"disk is changed\"", "")]),
    ("maintenance off", &[("maintenance off n3", "")]),
    ("restart", &[("restart n2 --yes", ""), ("restart n1 --yes --timeout 600", "the primary, which stays it")]),
    (
        "profile",
        &[("profile", "what is in force"), ("profile fast", ""), ("profile normal --set promote_ms=20000 --yes", "")],
    ),
    ("rto", &[("rto --phases", ""), ("rto --profile fast --set grant_ms=2000", "without a cluster")]),
    ("explain", &[("explain", ""), ("explain --incident 57", "a past decision")]),
    ("history", &[("history --last 50", ""), ("history --output tsv", "")]),
    ("events", &[("events --follow", ""), ("events --after 120 --json", "")]),
    ("rules", &[("rules", ""), ("rules --mermaid > states.mmd", "")]),
    ("dsn", &[("dsn --database app --user app", ""), ("dsn --driver jdbc --for read-only --router r1:6433", "")]),
    ("raft", &[("raft transfer n2", "")]),
    ("raft transfer", &[("raft transfer n2", "")]),
    ("member", &[("member list", ""), ("member replace n3", "its log is gone")]),
    ("member list", &[("member list", ""), ("member list --output tsv", "")]),
    (
        "member add",
        &[
            ("member add n4", "it stands in cluster.members of every host's file"),
            ("member add w1 --witness", "there with witness = true"),
            ("member add n8 --learner", "there with learner = true"),
        ],
    ),
    (
        "recover",
        &[("recover", "on the host to go on with; says what would be done, and asks"), ("recover --confirm main", "")],
    ),
    ("preflight", &[("preflight {config}", ""), ("preflight --output yaml", "")]),
    ("config", &[("config check {config}", ""), ("config show --output yaml", ""), ("config set crash_budget=5", "")]),
    ("config check", &[("config check {config}", "")]),
    ("demo", &[("demo", "")]),
];
