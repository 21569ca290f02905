//! What a manager costs those who commit: the same PostgreSQL, with the same settings, standbys, slots and rule of
//! acknowledgement, under Matriarch and by itself; and by itself once more, which shows what this measurement can tell apart.
//!
//! All run all the time, and one of them works: a slice of each, in turns of order, for a disk is faster in one minute than
//! in the next. So what managers and agents do beside commits is there for all; it is measured by itself
//! (deploy/scripts/idle-cost.sh). `ROUNDS` (default 60), `SECONDS` of each slice (default 2), `DIR` (default /tmp) for all
//! data, `MATRIARCH`: another program than the one under test, say a release build; `BARE`, set to anything: the control has
//! no slots, and shows what these cost.

use std::{
    fs,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use matriarch::demo::rig::{Ground, Rig, Unstarted};

use crate::stage::{self, EXE, HEAL, until};

/// The median of a ratio may not be less, throughput against throughput and latency the other way round.
const LEAST: f64 = 0.98;
/// pgbench's scale, and each way it is run: clients, threads.
const SCALE: &str = "20";
const LOADS: [(&str, &str); 2] = [("1", "1"), ("8", "2")];
/// What names a place or a role, and is not the same for two servers.
const OWN: &str = "'config_file','data_directory','hba_file','ident_file','external_pid_file','port','listen_addresses',\
    'unix_socket_directories','cluster_name','primary_conninfo','primary_slot_name','synchronous_standby_names',\
    'archive_command','restore_command','recovery_target_timeline'";

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// Where pgbench connects to.
struct Server {
    host: String,
    port: u16,
    password: String,
}

/// Transactions per second and milliseconds of one.
#[derive(Debug, Clone, Copy)]
struct Figures {
    tps: f64,
    latency: f64,
}

impl Server {
    fn run(&self, bin: &Path, program: &str, args: &[&str]) -> String {
        let mut command = Command::new(bin.join(program));
        command.args(["-h", &self.host, "-p", &self.port.to_string(), "-U", "postgres"]).args(args).arg("postgres");
        let output = command.env("PGPASSWORD", &self.password).output().unwrap();
        assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    fn fill(&self, bin: &Path) {
        self.run(bin, "pgbench", &["-i", "-q", "-s", SCALE]);
    }

    fn measure(&self, bin: &Path, (clients, threads): (&str, &str)) -> Figures {
        let seconds = number("SECONDS", 2).to_string();
        let args = ["-n", "-N", "-M", "prepared", "-c", clients, "-j", threads, "-T", &seconds];
        let text = self.run(bin, "pgbench", &args);
        let after = |word: &str| {
            let rest = text.split(word).nth(1).unwrap_or_else(|| panic!("{text}"));
            rest.split_whitespace().next().and_then(|n| n.parse().ok()).unwrap_or_else(|| panic!("{text}"))
        };
        Figures { tps: after("\ntps = "), latency: after("latency average = ") }
    }
}

/// A primary and two standbys that nobody manages.
struct Plain {
    bin: PathBuf,
    dir: PathBuf,
    user: Option<(u32, u32)>,
    ports: [u16; 3],
    /// Its standbys have slots, as members of a managed cluster have.
    slots: bool,
    /// Removed when nothing runs in it any more.
    _dir: tempfile::TempDir,
}

impl Plain {
    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(self.bin.join(program));
        if let Some((uid, gid)) = self.user {
            command.uid(uid).gid(gid);
        }
        command.current_dir("/");
        command
    }

    fn done(mut command: Command) {
        let output = command.output().unwrap();
        assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    }

    fn data(&self, server: usize) -> PathBuf {
        self.dir.join(format!("s{server}"))
    }

    /// A new cluster with these settings, in a locale and encoding.
    fn create(&self, settings: &str, locale: &str, encoding: &str) {
        let mut initdb = self.command("initdb");
        initdb.args(["--locale", locale, "--encoding", encoding]);
        initdb.args(["-k", "-U", "postgres", "-A", "trust", "-D"]).arg(self.data(0));
        Self::done(initdb);
        self.configure(0, settings, "ANY 1 (s1, s2)");
        // Nothing is acknowledged before there are standbys; a copy needs no commit.
        self.start(0);
        for standby in [1, 2] {
            let from = format!("host=127.0.0.1 port={} user=postgres application_name=s{standby}", self.ports[0]);
            let mut copy = self.command("pg_basebackup");
            copy.args(["-R", "-c", "fast", "-d", &from, "-D"]).arg(self.data(standby));
            Self::done(copy);
            let mut settings = settings.to_owned();
            if self.slots {
                let slot = format!("select pg_create_physical_replication_slot('s{standby}', true)");
                self.server().run(&self.bin, "psql", &["-qAtc", &slot]);
                settings += &format!("\nprimary_slot_name = 's{standby}'");
            }
            self.configure(standby, &settings, "ANY 1 (s1, s2)");
            self.start(standby);
        }
    }

    fn configure(&self, server: usize, settings: &str, names: &str) {
        let text = format!(
            "{settings}\nport = {}\nlisten_addresses = '127.0.0.1'\nunix_socket_directories = '{}'\nsynchronous_standby_names = '{names}'\n",
            self.ports[server],
            self.dir.display()
        );
        fs::write(self.data(server).join("postgresql.conf"), text).unwrap();
    }

    fn start(&self, server: usize) {
        let mut start = self.command("pg_ctl");
        start.args(["start", "-w", "-s", "-l"]).arg(self.dir.join(format!("s{server}.log")));
        start.arg("-D").arg(self.data(server));
        // Its output would be waited for as long as the server runs.
        assert!(start.status().unwrap().success(), "{start:?}");
    }

    fn server(&self) -> Server {
        Server { host: self.dir.display().to_string(), port: self.ports[0], password: String::new() }
    }

    fn down(&self) {
        for server in 0..3 {
            let mut stop = self.command("pg_ctl");
            stop.args(["stop", "-w", "-s", "-m", "immediate", "-D"]).arg(self.data(server));
            let _ = stop.status();
        }
    }
}

impl Drop for Plain {
    fn drop(&mut self) {
        self.down();
    }
}

/// The cluster's primary, once two standbys may confirm its commits.
fn ready(rig: &Rig) -> Server {
    rig.healthy(HEAL).unwrap();
    until("commits are confirmed by one of two", HEAL, || {
        rig.status().and_then(|s| s.commits).is_some_and(|c| c.in_effect && c.count == 1 && c.names.len() == 2)
    });
    let contact = rig.contact(&rig.status().unwrap().primary).unwrap();
    Server {
        host: contact.socket_dir.display().to_string(),
        port: contact.postgres_port,
        password: rig.superuser_password().to_owned(),
    }
}

/// Median, and the interval that holds it with 95 % (order statistics of a sample, binomial).
fn median(mut sample: Vec<f64>) -> (f64, f64, f64) {
    sample.sort_by(f64::total_cmp);
    let n = sample.len();
    let middle = (sample[(n - 1) / 2] + sample[n / 2]) / 2.0;
    let off = (1.96 * (n as f64).sqrt() / 2.0).ceil() as usize;
    let low = (n / 2).saturating_sub(off);
    (sample[low], middle, sample[(n - 1).saturating_sub(low)])
}

/// Servers that nobody manages, with the settings, the locale and the encoding of a managed one.
fn by_itself(rig: &Rig, base: &str, slots: bool) -> Plain {
    let of_its = format!(
        "select name || ' = ' || quote_literal(current_setting(name)) from pg_settings \
         where source in ('configuration file', 'command line') and name not in ({OWN})"
    );
    let primary = rig.status().unwrap().primary;
    let settings = rig.query(&primary, &of_its).unwrap().join("\n");
    let of_its = "select datcollate, pg_encoding_to_char(encoding) from pg_database where datname = 'postgres'";
    let made = rig.query(&primary, &of_its.replace(", pg", " || '|' || pg")).unwrap().remove(0);
    let (locale, encoding) = made.split_once('|').unwrap();

    let dir = tempfile::Builder::new().prefix("matriarch-plain-").tempdir_in(base).unwrap();
    let user = rig.user();
    if let Some((uid, gid)) = user {
        std::os::unix::fs::chown(dir.path(), Some(uid), Some(gid)).unwrap();
    }
    let ports = [(); 3].map(|()| std::net::TcpListener::bind("127.0.0.1:0").unwrap());
    let ports = ports.map(|listener| listener.local_addr().unwrap().port());
    let plain = Plain { bin: rig.bin_dir().to_owned(), dir: dir.path().to_owned(), user, ports, slots, _dir: dir };
    plain.create(&settings, locale, encoding);
    plain
}

/// One slice of each server, in an order that changes from round to round.
fn round(bin: &Path, servers: &[Server; 3], load: (&str, &str), number: u64) -> [Figures; 3] {
    const ORDERS: [[usize; 3]; 6] = [[0, 1, 2], [2, 1, 0], [1, 2, 0], [0, 2, 1], [2, 0, 1], [1, 0, 2]];
    let mut figures = [Figures { tps: f64::NAN, latency: f64::NAN }; 3];
    for server in ORDERS[(number % 6) as usize] {
        figures[server] = servers[server].measure(bin, load);
    }
    figures
}

pub fn play() {
    let _alone = stage::alone();
    let exe = std::env::var("MATRIARCH").unwrap_or_else(|_| EXE.to_owned());
    let base = std::env::var("DIR").unwrap_or_else(|_| "/tmp".to_owned());
    let ground = Ground { quiet: true, ..Ground::default() };
    let rig = Unstarted::lay_out_on(Path::new(&exe), Path::new(&base), "normal", ground).unwrap().up().unwrap();
    let bin = rig.bin_dir().to_owned();
    let config = rig.config(&rig.members()[0]).unwrap();
    let mut set = Command::new(EXE);
    set.args(["config", "set", "protection=max-protection", "--config"]).arg(config);
    assert!(set.status().unwrap().success());
    let managed = ready(&rig);
    let plain = by_itself(&rig, &base, true);
    let control = by_itself(&rig, &base, std::env::var_os("BARE").is_none());
    let servers = [managed, plain.server(), control.server()];
    servers.iter().for_each(|server| server.fill(&bin));

    // The managed ones against both others, which differ from each other by what this can't tell apart; and those.
    let mut ratios = [(); LOADS.len()].map(|()| [(); 2].map(|()| (Vec::new(), Vec::new())));
    for number in 0..number("ROUNDS", 60) {
        if number % 10 == 0 {
            servers.iter().for_each(|server| drop(server.run(&bin, "psql", &["-qc", "checkpoint"])));
        }
        for (load, ratios) in LOADS.iter().zip(&mut ratios) {
            let [ours, theirs, control] = round(&bin, &servers, *load, number);
            stage::say(format!("round {number}, {} clients: {ours:?} against {theirs:?}, control {control:?}", load.0));
            let plain =
                Figures { tps: (theirs.tps * control.tps).sqrt(), latency: (theirs.latency * control.latency).sqrt() };
            for ((figures, against), ratios) in [(ours, plain), (control, theirs)].iter().zip(ratios) {
                ratios.0.push(figures.tps / against.tps);
                ratios.1.push(against.latency / figures.latency);
            }
        }
    }
    let mut least = f64::INFINITY;
    for (load, [ours, control]) in LOADS.iter().zip(ratios) {
        for (who, (tps, latency)) in [("managed", ours), ("control", control)] {
            for (what, sample) in [("throughput", tps), ("latency (plain / this)", latency)] {
                let (low, middle, high) = median(sample);
                stage::say(format!(
                    "{} clients, {who}, {what}: median ratio {middle:.3}, 95 % {low:.3} to {high:.3}",
                    load.0
                ));
                least = least.min(if who == "managed" { high } else { f64::INFINITY });
            }
        }
    }
    // What is certain, not what one run happened to give.
    assert!(least >= LEAST, "with 95 % certainty the manager costs more than 2 %");
}

/// How long a median's interval is.
#[test]
fn the_interval_of_a_median_is_that_of_its_ranks() {
    let sample = (1..=20).map(f64::from).collect();
    assert_eq!(median(sample), (6.0, 10.5, 15.0));
}
