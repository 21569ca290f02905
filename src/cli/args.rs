//! The command line as typed. Only this and `tree`, which hangs on it what commands have in common, know clap.

pub(super) mod views;

use std::{path::PathBuf, str::FromStr, time::Duration};

use clap::{Args, Parser, Subcommand};

use super::{
    agenda::{LaterArgs, OperationsArgs, RollingRestartArgs},
    args_verbs::{AddMemberArgs, HaltCommand, ReinitArgs, ReloadArgs, RestartArgs},
    dsn::{Access, Driver},
    wiring::DemoArgs,
};
use crate::telemetry::Format;

/// PostgreSQL high availability without an external store.
#[derive(Debug, Parser)]
#[command(name = "matriarch", version, max_term_width = 100, disable_help_subcommand = true)]
pub struct Arguments {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the manager of this host: it decides together with the others
    Manager(ProcessArgs),
    /// Run the agent of this host: it controls PostgreSQL and holds the lease
    Agent(ProcessArgs),
    /// Run a router: it leads clients to the primary
    Router(RouterArgs),
    /// Parent of the postmaster; started by the agent only
    #[command(hide = true)]
    Guard,
    /// Archives or gets a file of WAL; called by PostgreSQL only
    #[command(hide = true)]
    Wal(WalArgs),
    /// Show members, primary, lag, and why something is not healthy
    Status(StatusArgs),
    #[command(flatten)]
    View(views::ViewCommand),
    /// Make a standby the primary with the old primary's help; nothing is lost
    Switchover(SwitchoverArgs),
    /// Make a standby the primary without the old primary's help
    Failover(FailoverArgs),
    /// Stop all decisions of the cluster, for work on it; the lease and what it protects go on
    Pause(PauseArgs),
    /// Let a paused cluster decide again
    Resume(ResumeArgs),
    /// Let a cluster fail over again that has stopped to, after too many crashes in a row
    Acknowledge(AcknowledgeArgs),
    /// Leave a member alone, so that it is chosen for nothing, or do so no more
    Maintenance(MaintenanceArgs),
    /// Stop and start PostgreSQL of a member; that of the primary stays primary
    Restart(RestartArgs),
    #[command(flatten)]
    Halt(HaltCommand),
    /// Copy the data of a standby anew; what it has is kept until the copy is complete
    Reinit(ReinitArgs),
    /// Write PostgreSQL's configuration anew and have it read, and say what waits for a restart
    Reload(ReloadArgs),
    /// Restart one member after the other, each when the one before is well again
    RollingRestart(RollingRestartArgs),
    /// Show operations, or take one back: scheduled, under way, over
    Operations(OperationsArgs),
    /// Show the timings, or put those of another profile in force
    Profile(ProfileArgs),
    /// Say how long writes stop, for each way to fail, by the timings in force
    Rto(RtoArgs),
    /// Say what the cluster considered, what holds it up, and what can be done
    Explain(ExplainArgs),
    /// Show who was primary from when to when and why it ended, and the last decisions
    History(HistoryArgs),
    /// Show decisions as they are made, with what holds the cluster up
    Events(EventsArgs),
    /// Print the numbered rules by which the cluster decides and each host acts
    Rules(RulesArgs),
    /// Print connection strings for applications, driver by driver; asks nobody
    Dsn(DsnArgs),
    /// Work with the managers' Raft group
    Raft(RaftArgs),
    /// Show, add, remove or replace members
    Member(MemberArgs),
    /// Begin a new generation with what this host has, when a majority of the hosts is gone for good
    Recover(RecoverArgs),
    /// Check whether this host is fit to run what its configuration asks for
    Preflight(PreflightArgs),
    /// Check the configuration file; show or change the settings of the cluster
    Config(ConfigArgs),
    /// Turn a configuration of Patroni into Matriarch's, and say what becomes of each key; asks nobody
    Import(ImportArgs),
    /// Run a whole cluster in a temporary directory and break it
    Demo(DemoArgs),
}

/// Of `matriarch import`.
#[derive(Debug, Args)]
#[command(after_help = "Passwords are written into files of mode 0600 below --output, and never printed.")]
pub struct ImportArgs {
    /// patroni.yml of each host, or one that counts for all (with --members)
    #[arg(required = true, value_name = "FILE")]
    pub files: Vec<PathBuf>,
    /// The dynamic configuration, as `patronictl show-config` prints it; -: standard input [default:
    /// bootstrap.dcs of the first file]
    #[arg(long, value_name = "FILE")]
    pub dynamic: Option<PathBuf>,
    /// Names and hosts of the members [default: name and postgresql.connect_address of each file]
    #[arg(long, value_name = "NAME=HOST[:PORT],…", value_delimiter = ',')]
    pub members: Vec<String>,
    /// The member that is primary now; it becomes the first [default: the first given]
    #[arg(long, value_name = "NAME")]
    pub primary: Option<String>,
    /// Only the file of this member
    #[arg(long, value_name = "NAME")]
    pub member: Option<String>,
    /// A directory for the files, the commands and the report; -: print them
    #[arg(long, value_name = "DIR", default_value = "-")]
    pub output: String,
    /// Print JSON
    #[arg(long, conflicts_with = "output")]
    pub json: bool,
}

/// Flags of the processes.
#[derive(Debug, Args)]
pub struct ProcessArgs {
    /// Configuration file [default: $MATRIARCH_CONFIG, else /etc/matriarch/matriarch.toml]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// How log lines look: text or json
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    pub log: Format,
    /// What is logged, e.g. info or info,matriarch::raft=debug [default: $MATRIARCH_LOG, else info]
    #[arg(long, value_name = "LEVELS")]
    pub log_level: Option<String>,
}

/// Of `matriarch router`.
#[derive(Debug, Args)]
pub struct RouterArgs {
    #[command(flatten)]
    pub process: ProcessArgs,
    /// Take the ports of the router that starts this one
    #[arg(long, hide = true)]
    pub inherit: bool,
}

/// As the agent writes them into PostgreSQL's configuration.
#[derive(Debug, Args)]
pub struct WalArgs {
    /// `put` or `get`
    #[arg(value_parser = ["put", "get"])]
    pub verb: String,
    /// The agent's runtime directory
    pub runtime_dir: PathBuf,
    /// The file's name
    pub file: String,
    /// Its path, or where it is to be put
    pub path: PathBuf,
    /// The oldest file that a restart needs
    #[arg(default_value = "")]
    pub oldest: String,
}

/// How an admin command finds a manager.
#[derive(Debug, Args)]
pub struct ClientArgs {
    /// A manager to ask; may be given several times [default: those of the configuration file]
    #[arg(long = "manager", value_name = "HOST:PORT")]
    pub managers: Vec<String>,
    /// One of the clusters in $MATRIARCH_CLI_CONFIG, else ~/.config/matriarch/cli.toml
    #[arg(long, value_name = "NAME", conflicts_with_all = ["managers", "config"])]
    pub cluster: Option<String>,
    /// Configuration file [default: $MATRIARCH_CONFIG, else /etc/matriarch/matriarch.toml]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub struct StatusArgs {
    #[command(flatten)]
    pub client: ClientArgs,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// Show it again every second until interrupted
    #[arg(long, conflicts_with = "json")]
    pub watch: bool,
    /// One line for each cluster in the file that --cluster looks in; the exit code is the worst of theirs
    #[arg(long, conflicts_with_all = ["managers", "cluster", "config", "watch", "local"])]
    pub all: bool,
    /// Ask the manager that answers for its own view, not the Raft leader's
    #[arg(long)]
    pub local: bool,
}

#[derive(Debug, Args)]
pub struct SwitchoverArgs {
    #[command(flatten)]
    pub client: ClientArgs,
    /// Who becomes primary [default: the best standby]
    #[arg(long, value_name = "MEMBER")]
    pub candidate: Option<String>,
    #[command(flatten)]
    pub later: LaterArgs,
    #[command(flatten)]
    pub operation: OperationArgs,
}

#[derive(Debug, Args)]
pub struct FailoverArgs {
    #[command(flatten)]
    pub client: ClientArgs,
    /// Who becomes primary
    #[arg(long, value_name = "MEMBER")]
    pub candidate: String,
    /// Though it lacks WAL the old primary had, or may not become primary by itself; shows what would be lost
    #[arg(long)]
    pub allow_data_loss: bool,
    /// Check all that a real one would, say what it would do, and change nothing
    #[arg(long)]
    pub dry_run: bool,
    #[command(flatten)]
    pub operation: OperationArgs,
}

/// Flags of what changes the cluster.
#[derive(Debug, Args)]
pub struct OperationArgs {
    /// Don't ask for confirmation
    #[arg(long, short)]
    pub yes: bool,
    /// Don't wait until it is done (waiting is the default)
    #[arg(long, conflicts_with = "wait")]
    pub no_wait: bool,
    /// Wait until it is done
    #[arg(long)]
    pub wait: bool,
    /// Print JSON when it is done, and nothing before
    #[arg(long)]
    pub json: bool,
    /// How long to wait, in seconds; the operation itself goes on [default: 180; a reinit and a rolling restart: until it is over]
    #[arg(long, value_name = "SECONDS")]
    pub timeout: Option<u64>,
}

impl OperationArgs {
    /// How long to wait for an operation of this `kind`. A copy takes as long as it takes, and so do many restarts.
    pub fn patience(&self, kind: &str) -> Duration {
        let limit =
            if ["reinit", "rolling restart"].contains(&kind) { Duration::MAX } else { Duration::from_secs(180) };
        self.timeout.map_or(limit, Duration::from_secs)
    }
}

#[derive(Debug, Args)]
pub struct PauseArgs {
    #[command(flatten)]
    pub client: ClientArgs,
    /// Why, for everybody who looks at the cluster meanwhile
    #[arg(long, value_name = "TEXT", default_value = "")]
    pub reason: String,
    /// Wait until every member's agent has been told
    #[arg(long)]
    pub wait: bool,
    /// How long to wait, in seconds; the pause itself stays
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    pub timeout: u64,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct ResumeArgs {
    #[command(flatten)]
    pub client: ClientArgs,
    /// Wait until every member is healthy and the primary is open
    #[arg(long)]
    pub wait: bool,
    /// How long to wait, in seconds; the cluster itself goes on
    #[arg(long, value_name = "SECONDS", default_value_t = 180)]
    pub timeout: u64,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct MaintenanceArgs {
    #[command(subcommand)]
    pub command: MaintenanceCommand,
}

#[derive(Debug, Subcommand)]
pub enum MaintenanceCommand {
    /// Leave a member alone: it gets no orders and is no candidate
    On(MaintenanceOnArgs),
    /// The member takes part again
    Off(MaintenanceOffArgs),
}

#[derive(Debug, Args)]
pub struct MaintenanceOnArgs {
    /// Which; not the primary
    #[arg(value_name = "MEMBER")]
    pub member: String,
    #[command(flatten)]
    pub client: ClientArgs,
    /// Why, for everybody who looks at the cluster meanwhile
    #[arg(long, value_name = "TEXT", default_value = "")]
    pub reason: String,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct MaintenanceOffArgs {
    /// Which
    #[arg(value_name = "MEMBER")]
    pub member: String,
    #[command(flatten)]
    pub client: ClientArgs,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct ProfileArgs {
    #[command(flatten)]
    pub client: ClientArgs,
    /// fast, normal, slow or safe [default: only show]
    #[arg(value_name = "NAME")]
    pub name: Option<String>,
    /// Another value for one timing, e.g. promote_ms=20000; may be given several times
    #[arg(long, value_name = "KEY=VALUE", requires = "name")]
    pub set: Vec<String>,
    /// Drop other values that were set before and are not given again
    #[arg(long, requires = "name")]
    pub reset: bool,
    /// Change nothing unless the timings of this number are in force (0: those of the files)
    #[arg(long, value_name = "NUMBER", requires = "name")]
    pub if_version: Option<u64>,
    /// Don't ask for confirmation
    #[arg(long, short)]
    pub yes: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct RtoArgs {
    #[command(flatten)]
    pub client: ClientArgs,
    /// Of a profile, without a cluster: fast, normal, slow or safe [default: the timings in force]
    #[arg(long, value_name = "NAME", conflicts_with_all = ["managers", "cluster", "config"])]
    pub profile: Option<String>,
    /// Another value for one timing of the profile, e.g. grant_ms=2000; may be given several times
    #[arg(long, value_name = "KEY=VALUE", requires = "profile")]
    pub set: Vec<String>,
    /// Of the configuration file as it is, without a cluster
    #[arg(long, conflicts_with_all = ["managers", "cluster", "profile"])]
    pub offline: bool,
    /// Show the phases of each, and how they come about
    #[arg(long)]
    pub phases: bool,
    /// Print JSON, with the phases
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct ExplainArgs {
    #[command(flatten)]
    pub client: ClientArgs,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// Say what a past decision went by; its revision is in `matriarch history`
    #[arg(long, value_name = "REVISION")]
    pub incident: Option<u64>,
}

#[derive(Debug, Args)]
pub struct AcknowledgeArgs {
    #[command(flatten)]
    pub client: ClientArgs,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct HistoryArgs {
    #[command(flatten)]
    pub client: ClientArgs,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// So many decisions at most
    #[arg(long, value_name = "N", default_value_t = 20)]
    pub last: usize,
}

#[derive(Debug, Args)]
pub struct EventsArgs {
    #[command(flatten)]
    pub client: ClientArgs,
    /// Go on with what happens, until interrupted; another manager is asked when one falls silent
    #[arg(long, short)]
    pub follow: bool,
    /// Only what came after this revision of the cluster's state [default: all that is kept]
    #[arg(long, value_name = "REVISION")]
    pub after: Option<u64>,
    /// Print one JSON object a line
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct RulesArgs {
    /// Print a drawing of the states of a member's PostgreSQL instead, for Mermaid
    #[arg(long, conflicts_with = "json")]
    pub mermaid: bool,
    /// Print JSON: the rules, and the states with what leads from one to the other
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct DsnArgs {
    /// Whose: libpq-uri, libpq, jdbc, node, go, dotnet, sqlalchemy, asyncpg, rust; of one only the string is printed
    #[arg(long, value_name = "NAME", default_value = "all")]
    pub driver: DsnDrivers,
    /// What for: read-write (the primary) or read-only (a standby, or the primary where there is none)
    #[arg(long = "for", value_name = "ACCESS", default_value = "read-write")]
    pub access: Access,
    /// Database to connect to
    #[arg(long, value_name = "NAME", default_value = "postgres")]
    pub database: String,
    /// Role to connect as [default: none is named, and the driver has its own]
    #[arg(long, value_name = "NAME")]
    pub user: Option<String>,
    /// Through a router, by its port for this access; may be given several times [default: to the members]
    #[arg(long = "router", value_name = "HOST:PORT")]
    pub routers: Vec<String>,
    /// Print JSON, with what the strings can't say
    #[arg(long)]
    pub json: bool,
    /// Configuration file [default: $MATRIARCH_CONFIG, else /etc/matriarch/matriarch.toml]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
}

/// One driver, or each that there is.
#[derive(Debug, Clone, Copy)]
pub enum DsnDrivers {
    All,
    One(Driver),
}

impl FromStr for DsnDrivers {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "all" { Ok(Self::All) } else { text.parse().map(Self::One) }
    }
}

#[derive(Debug, Args)]
pub struct RaftArgs {
    #[command(subcommand)]
    pub command: RaftCommand,
}

#[derive(Debug, Args)]
pub struct RaftStatusArgs {
    #[command(flatten)]
    pub client: ClientArgs,
    /// What the node of this host's manager, or of the one that is named, knows by itself
    #[arg(long)]
    pub local: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct RaftSnapshotArgs {
    #[command(flatten)]
    pub client: ClientArgs,
    /// Of this member only [default: of every one that answers]
    #[arg(long, value_name = "MEMBER")]
    pub member: Option<String>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Subcommand)]
pub enum RaftCommand {
    /// Show the nodes: term, vote, how far each has come, log and snapshot, who votes
    Status(RaftStatusArgs),
    /// Build a snapshot now and drop the log that it covers; it happens by itself as the log grows
    Snapshot(RaftSnapshotArgs),
    /// Move the Raft leader to another member; PostgreSQL and its primary don't notice
    Transfer {
        /// Whose manager becomes leader
        #[arg(value_name = "MEMBER")]
        member: String,
        #[command(flatten)]
        client: ClientArgs,
    },
}

#[derive(Debug, Args)]
pub struct MemberArgs {
    #[command(subcommand)]
    pub command: MemberCommand,
}

#[derive(Debug, Subcommand)]
pub enum MemberCommand {
    /// Show the members, their Raft nodes, and which of them vote
    List {
        #[command(flatten)]
        client: ClientArgs,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Say whether a member's host may be taken down now: 0 yes, 1 no
    Check {
        /// Whose host
        #[arg(value_name = "MEMBER")]
        member: String,
        #[command(flatten)]
        client: ClientArgs,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Add a member of the configuration file to the cluster
    Add(AddMemberArgs),
    /// Take a member out of the cluster; its data stays where it is
    Remove {
        /// Which
        #[arg(value_name = "MEMBER")]
        member: String,
        /// Only say whether it would be refused, and why
        #[arg(long)]
        dry_run: bool,
        #[command(flatten)]
        client: ClientArgs,
    },
    /// Say where a member is reached from now on; it has to be started there with its new address in its own file
    Address {
        /// Which
        #[arg(value_name = "MEMBER")]
        member: String,
        /// Where its manager is
        #[arg(long, value_name = "HOST:PORT")]
        to_manager: Option<String>,
        /// Where its PostgreSQL is
        #[arg(long, value_name = "HOST:PORT")]
        to_postgres: Option<String>,
        /// Where its agent gets datagrams [default: as it is]
        #[arg(long, value_name = "HOST:PORT")]
        to_agent: Option<String>,
        /// Only say whether it would be refused, and why
        #[arg(long)]
        dry_run: bool,
        #[command(flatten)]
        client: ClientArgs,
    },
    /// Give a member a new Raft node, so that its present one never votes again
    Replace {
        /// Which
        #[arg(value_name = "MEMBER")]
        member: String,
        /// Only say whether it would be refused, and why
        #[arg(long)]
        dry_run: bool,
        #[command(flatten)]
        client: ClientArgs,
    },
}

#[derive(Debug, Args)]
pub struct RecoverArgs {
    #[command(flatten)]
    pub client: ClientArgs,
    /// The cluster's name, instead of typing it when asked
    #[arg(long, value_name = "NAME")]
    pub confirm: Option<String>,
    /// Go on though another host has a longer log, or this host's agent or data is missing
    #[arg(long)]
    pub force: bool,
}

#[derive(Debug, Args)]
pub struct PreflightArgs {
    /// Configuration file [default: $MATRIARCH_CONFIG, else /etc/matriarch/matriarch.toml]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct ConfigArgs {
    #[command(subcommand)]
    pub command: ConfigCommand,
}

#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Check the file and what it asks of this host; change nothing
    Check {
        /// Configuration file [default: $MATRIARCH_CONFIG, else /etc/matriarch/matriarch.toml]
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
    },
    /// Show the settings of the cluster: each key, its value, its default, what it does
    Show(ConfigShowArgs),
    /// Change settings of the cluster, all that are given or none; no host is restarted
    Set(ConfigSetArgs),
    /// Show what is set against what runs on each member, or one version against another
    Diff(ConfigDiffArgs),
    /// Show the last changes of the settings: which version, who, when, what
    History(ConfigHistoryArgs),
    /// Set everything as it was in a version; that makes a new version
    Rollback(ConfigRollbackArgs),
    /// Say what a key is, where its value comes from on each member, and whether it takes a restart
    Explain(ConfigExplainArgs),
    /// Change what is set in an editor ($VISUAL, $EDITOR, else vi)
    Edit(ConfigEditArgs),
}

#[derive(Debug, Args)]
pub struct ConfigDiffArgs {
    #[command(flatten)]
    pub client: ClientArgs,
    /// One version, which is compared with the present one, or two
    #[arg(value_name = "VERSION", num_args = 0..=2)]
    pub versions: Vec<u64>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct ConfigHistoryArgs {
    #[command(flatten)]
    pub client: ClientArgs,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct ConfigRollbackArgs {
    #[command(flatten)]
    pub client: ClientArgs,
    /// As in this version; `matriarch config history` lists them
    #[arg(value_name = "VERSION")]
    pub version: u64,
    #[command(flatten)]
    pub taken: TakenArgs,
}

#[derive(Debug, Args)]
pub struct ConfigExplainArgs {
    #[command(flatten)]
    pub client: ClientArgs,
    /// A setting of the cluster, or of PostgreSQL
    #[arg(value_name = "KEY")]
    pub key: String,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct ConfigEditArgs {
    #[command(flatten)]
    pub client: ClientArgs,
    /// Don't ask before it is changed
    #[arg(long)]
    pub yes: bool,
    /// Also when PostgreSQL can't be asked whether it could take the values
    #[arg(long)]
    pub force: bool,
}

/// How a change of settings is taken.
#[derive(Debug, Args)]
pub struct TakenArgs {
    /// Change nothing unless the settings are of this version [default: the one they have when asked]
    #[arg(long, value_name = "N")]
    pub if_version: Option<u64>,
    /// Say whether it could be changed, and change nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Also when PostgreSQL can't be asked whether it could take the values
    #[arg(long)]
    pub force: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct ConfigShowArgs {
    #[command(flatten)]
    pub client: ClientArgs,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct ConfigSetArgs {
    #[command(flatten)]
    pub client: ClientArgs,
    /// A key and its new value, e.g. crash_budget=5, parameters.work_mem=64MB or hba=@FILE; `matriarch config show` lists the keys
    #[arg(value_name = "KEY=VALUE", required_unless_present = "unset")]
    pub assignments: Vec<String>,
    /// Of this member only: priority, failover, site, replicatefrom, nostream, recovery_min_apply_delay, parameters.NAME
    #[arg(long, value_name = "MEMBER")]
    pub member: Option<String>,
    /// Bring the default of a key back; may be given several times
    #[arg(long, value_name = "KEY")]
    pub unset: Vec<String>,
    #[command(flatten)]
    pub taken: TakenArgs,
}
