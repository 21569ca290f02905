//! What can be typed, command by command: the end of each help. They stand here and nowhere else, and every line is tried
//! by a test.

use crate::config::DEFAULT_FILE;

/// A line to type, and what it is for; empty where the line says it.
type Example = (&'static str, &'static str);

/// The examples of a command by its words, as text; the whole command line has none. `None`: there are none here.
pub(super) fn of(words: &str) -> Option<String> {
    let (_, examples) = EXAMPLES.iter().find(|(command, _)| *command == words)?;
    let lines: Vec<(String, &str)> = examples.iter().map(|(line, what)| (typed(line), *what)).collect();
    let noted = lines.iter().filter(|(_, what)| !what.is_empty());
    let width = noted.map(|(line, _)| line.chars().count()).max().unwrap_or_default();
    let line = |(line, what): &(String, &str)| match *what {
        "" => format!("\n  {line}"),
        // As the shell reads it, so that a line can be pasted as it is.
        what => format!("\n  {line:width$}  # {what}"),
    };
    Some(format!("Examples:{}", lines.iter().map(line).collect::<String>()))
}

/// Whatever names the program itself (a pipe, a variable before it) stands as it is.
fn typed(line: &str) -> String {
    let begin = if line.contains("matriarch ") { "" } else { "matriarch " };
    format!("{begin}{}", line.replace("{config}", &format!("--config {DEFAULT_FILE}")))
}

const EXAMPLES: &[(&str, &[Example])] = &[
    (
        "",
        &[
            ("status", "members, primary, lag, and what is not healthy"),
            ("switchover --candidate n2", ""),
            ("config set parameters.work_mem=64MB", "on every host"),
            ("config set --help", ""),
        ],
    ),
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
            ("check quorum", "1: the loss of one more host is too much"),
            ("check sync", "1: the loss of one more standby is too much"),
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
        "stop",
        &[
            ("stop n3 --reason \"disk is changed\"", ""),
            ("stop --all --reason \"move\" --yes", "hibernate: everything, cleanly, the primary first"),
            ("stop --all --dry-run", "what would be given up, or why it would be refused"),
        ],
    ),
    ("start", &[("start n3", ""), ("start --all --timeout 600", "")]),
    (
        "reinit",
        &[
            ("reinit n3", "copy n3 anew, from a standby if one is fit"),
            ("reinit n3 --from n1 --yes", "from n1, without being asked"),
            ("maintenance on n3", "give a copy up that is under way"),
        ],
    ),
    ("reload", &[("reload n2 n3", ""), ("reload --all --json", "")]),
    (
        "rolling-restart",
        &[
            ("rolling-restart --pending --yes", "those whose settings wait for it"),
            ("rolling-restart --only standbys", ""),
            ("rolling-restart --in-place", "the primary stays primary"),
        ],
    ),
    ("operations", &[("operations list", ""), ("operations cancel 7", "")]),
    ("operations list", &[("operations list", ""), ("operations list --json", "")]),
    ("operations show", &[("operations show 7", "")]),
    ("operations cancel", &[("operations cancel 7", "")]),
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
    ("raft", &[("raft status", ""), ("raft transfer n2", "")]),
    ("raft status", &[("raft status", ""), ("raft status --json | jq '.nodes[].own.applied'", "")]),
    ("raft snapshot", &[("raft snapshot", ""), ("raft snapshot --member n2", "")]),
    ("raft transfer", &[("raft transfer n2", "")]),
    ("member", &[("member list", ""), ("member replace n3", "its log is gone")]),
    ("member list", &[("member list", ""), ("member list --output tsv", "")]),
    ("member check", &[("member check n2 && ssh n2 reboot", "")]),
    (
        "member add",
        &[
            ("member add n4", "it stands in cluster.members of every host's file"),
            ("member add w1 --witness", "there with witness = true"),
            ("member add n8 --learner", "there with learner = true"),
        ],
    ),
    ("member remove", &[("member remove n4 --dry-run", ""), ("member remove n4", "")]),
    (
        "member address",
        &[
            ("member address n3", "as this host's configuration file has it"),
            ("member address n3 --to-manager 10.0.0.9:7400 --to-postgres 10.0.0.9:5432", ""),
        ],
    ),
    ("member replace", &[("member replace n3 --dry-run", ""), ("member replace n3", "")]),
    (
        "recover",
        &[("recover", "on the host to go on with; says what would be done, and asks"), ("recover --confirm main", "")],
    ),
    ("preflight", &[("preflight {config}", ""), ("preflight --output yaml", "")]),
    ("config", &[("config check {config}", ""), ("config show --output yaml", ""), ("config set crash_budget=5", "")]),
    ("config check", &[("config check {config}", "")]),
    ("config show", &[("config show", ""), ("config show --output yaml", "")]),
    (
        "config set",
        &[
            ("config set crash_budget=5 on_primary_crash=restart", ""),
            ("config set parameters.work_mem=64MB --dry-run", "could it be changed?"),
            ("config set priority=0 --member n2", ""),
            ("config set hba=@pg_hba.conf", "the lines of this file"),
            ("config set --unset crash_budget", "its default again"),
        ],
    ),
    (
        "config diff",
        &[
            ("config diff", "what is set against what runs on each member"),
            ("config diff 7", "version 7 against the present one"),
            ("config diff 7 9", ""),
        ],
    ),
    ("config history", &[("config history", ""), ("config history --json", "")]),
    ("config rollback", &[("config rollback 7 --dry-run", ""), ("config rollback 7", "")]),
    ("config explain", &[("config explain work_mem", ""), ("config explain crash_budget", "")]),
    ("config edit", &[("EDITOR=nano matriarch config edit", "")]),
    (
        "import",
        &[
            ("import pg1.yml pg2.yml pg3.yml --primary pg2 --output ./matriarch", "of three hosts"),
            ("patronictl show-config | matriarch import pg1.yml pg2.yml pg3.yml --dynamic - --json", ""),
        ],
    ),
    ("demo", &[("demo", "a live view; q ends it"), ("demo --fault kill-host --runs 5 --json host.json", "unattended")]),
];
