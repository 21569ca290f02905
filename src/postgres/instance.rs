//! The PostgreSQL of this host: where its files are, what state they are in,
//! and the configuration it is started with.

use std::{
    ffi::OsString,
    fs, io,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use nix::unistd::{AccessFlags, Uid, access};

use super::{
    archive::ArchiveRules,
    command::{Helper, HelperError},
    conf::{self, ConfigRole, Settings, Silence, SyncedSlots, Upstream},
    controldata::ControlData,
    error::PostgresError,
    files,
    parameters::{Standing, Texts},
};
use crate::{
    config::{AgentConfig, CgroupUse, ContentSource, MemberConfig, PostgresqlConfig},
    domain::{
        Least, MemberId, MemberSettings, Settings as ClusterSettings, SettingsDocument, Side, SlotBudget, Timings,
        version::{self, PostgresVersion, Support},
    },
};

/// The programs of `bin_dir` that are used.
const PROGRAMS: [&str; 7] =
    ["postgres", "initdb", "pg_controldata", "pg_rewind", "pg_basebackup", "pg_waldump", "pg_verifybackup"];

/// What is in the data directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DataState {
    /// There is no such directory.
    Missing,
    /// The directory is empty.
    Empty,
    /// A data directory with readable control data.
    Present(ControlData),
    /// A data directory that can't be started: `pg_control` is missing or damaged. It may be recloned.
    Incomplete(String),
    /// Something else is in there; it is never touched.
    Foreign(String),
}

/// How the guard starts the postmaster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PostmasterCommand {
    /// `postgres`.
    pub program: PathBuf,
    /// Its arguments.
    pub args: Vec<OsString>,
    /// What its environment has beyond the guard's own.
    pub env: Vec<(OsString, OsString)>,
    /// Where its stderr goes.
    pub log_file: PathBuf,
}

/// The PostgreSQL of this host. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Instance(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    cfg: PostgresqlConfig,
    me: MemberId,
    members: Vec<MemberConfig>,
    /// Whom it was told to follow last, and where: a member may have moved since the file was written.
    followed: Mutex<Option<Upstream>>,
    runtime_dir: PathBuf,
    passfile: PathBuf,
    log_file: PathBuf,
    slot_copies: PathBuf,
    /// There once a data directory was adopted: from then on it is Matriarch's, whatever becomes of its configuration.
    adopted: PathBuf,
    /// It may run in a cgroup of its own only.
    needs_cgroup: bool,
    silence: Mutex<Silence>,
    /// What operators have set.
    settings: Mutex<SettingsDocument>,
    /// What of that PostgreSQL can't take here.
    standing: Mutex<Standing>,
    /// How much WAL slots may hold back, as it was set.
    slot_wal: Mutex<Least>,
    /// What slots that are synced to standbys need; `None`: there are none.
    synced_slots: Mutex<Option<SyncedSlots>>,
    /// Held by whoever changes a configuration file: a change of the timings must not undo a change of role.
    writing: Mutex<()>,
    /// What is set of the archive, once somebody has said.
    archive: Mutex<Option<ArchiveRules>>,
    /// The same for the live configuration, which is not on the disk of the data directory.
    live: Mutex<()>,
    /// Held by whoever saves WAL: a task that was dropped goes on with it, and the next waits.
    saving: Mutex<()>,
}

impl Instance {
    /// Nothing is touched or checked yet; see [`Instance::preflight`].
    pub fn new(
        cfg: &PostgresqlConfig,
        me: &MemberId,
        members: &[MemberConfig],
        agent: &AgentConfig,
        timings: &Timings,
    ) -> Self {
        Self(Arc::new(Inner {
            cfg: cfg.clone(),
            me: me.clone(),
            // What is only a witness has no PostgreSQL to stream to or from.
            members: members.iter().filter(|member| !member.witness).cloned().collect(),
            followed: Mutex::default(),
            runtime_dir: agent.runtime_dir.clone(),
            passfile: agent.state_dir.join("pgpass"),
            // Not in the runtime directory: that is memory, and gone after a reboot.
            log_file: agent.state_dir.join("postgres.log"),
            slot_copies: agent.state_dir.join("slot-copies"),
            adopted: agent.state_dir.join("adopted"),
            needs_cgroup: agent.cgroup == CgroupUse::Required,
            silence: Mutex::new(Silence::from(timings)),
            settings: Mutex::default(),
            standing: Mutex::default(),
            slot_wal: Mutex::new(ClusterSettings::default().slot_wal_max),
            synced_slots: Mutex::new(None),
            writing: Mutex::new(()),
            live: Mutex::new(()),
            saving: Mutex::new(()),
            archive: Mutex::new(None),
        }))
    }

    /// From the next writing of a configuration on, these are in it.
    pub fn set_timings(&self, timings: &Timings) {
        *self.0.silence.lock().unwrap_or_else(PoisonError::into_inner) = Silence::from(timings);
    }

    /// From the next writing of a configuration on, and the next look at slots, it goes by these.
    pub fn set_settings(&self, settings: SettingsDocument) {
        let mut known = self.0.settings.lock().unwrap_or_else(PoisonError::into_inner);
        self.see_settings(&settings);
        *known = settings;
    }

    /// What operators have set.
    pub fn document(&self) -> SettingsDocument {
        self.0.settings.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn standing_lock(&self) -> &Mutex<Standing> {
        &self.0.standing
    }

    /// Whether `agent.cgroup = "required"`.
    pub(super) fn needs_cgroup(&self) -> bool {
        self.0.needs_cgroup
    }

    /// What operators have set for a member.
    pub fn settings_of(&self, member: &MemberId) -> MemberSettings {
        self.0.settings.lock().unwrap_or_else(PoisonError::into_inner).of_member(member)
    }

    /// Which member this is.
    pub fn me(&self) -> &MemberId {
        &self.0.me
    }

    fn silence(&self) -> Silence {
        *self.0.silence.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn archive_lock(&self) -> MutexGuard<'_, Option<ArchiveRules>> {
        self.0.archive.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whoever changes a configuration file does it alone.
    pub(super) fn config_alone(&self) -> MutexGuard<'_, ()> {
        self.0.writing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn passfile(&self) -> &Path {
        &self.0.passfile
    }

    pub(super) fn runtime_dir(&self) -> &Path {
        &self.0.runtime_dir
    }

    /// Every member but this one.
    pub fn others(&self) -> impl Iterator<Item = &MemberConfig> {
        self.0.members.iter().filter(|member| member.id != self.0.me)
    }

    /// How long the other end of a connection may not answer until it is given up: `tcp_ms`.
    pub fn peer_silence(&self) -> Duration {
        self.silence().tcp
    }

    /// Writes the timings, and how old a commit is when it is replayed, into what the running server was configured with; they
    /// take effect with a reload.
    ///
    /// # Errors
    /// A file can't be written.
    pub fn refresh_timings(&self) -> Result<(), PostgresError> {
        let _alone = self.0.writing.lock().unwrap_or_else(PoisonError::into_inner);
        if !self.runtime_conf_path().exists() {
            return Ok(());
        }
        self.refresh_runtime_conf()?;
        let main = self.data_dir().join("postgresql.conf");
        let text = fs::read_to_string(&main).unwrap_or_default();
        let delayed = conf::other_delay(&text, self.settings_of(self.me()).recovery_min_apply_delay);
        let text = delayed.as_ref().unwrap_or(&text);
        match conf::other_conninfo(text, self.silence()).or_else(|| delayed.clone()) {
            Some(other) => files::replace(&main, &other),
            None => Ok(()),
        }
    }

    /// How much WAL slots may hold back, from the next writing of the configuration on. True when that is new.
    pub fn set_slot_wal(&self, most: Least) -> bool {
        let mut set = self.0.slot_wal.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut *set, most) != most
    }

    /// What slots that are synced to standbys need, from the next writing of the configuration on. True when that is new.
    pub fn set_synced_slots(&self, synced: Option<SyncedSlots>) -> bool {
        let mut set = self.0.synced_slots.lock().unwrap_or_else(PoisonError::into_inner);
        let other = *set != synced;
        *set = synced;
        other
    }

    /// Writes the budget of slots, and what else they need, into what the running server was configured with. True when it
    /// is another; it takes effect with a reload.
    ///
    /// # Errors
    /// The file can't be written.
    pub fn refresh_slot_budget(&self) -> Result<bool, PostgresError> {
        let _alone = self.0.writing.lock().unwrap_or_else(PoisonError::into_inner);
        self.refresh_runtime_conf()
    }

    pub(super) fn refresh_runtime_conf(&self) -> Result<bool, PostgresError> {
        let runtime = self.runtime_conf_path();
        // Without it nothing was started since the host was; the next start writes it.
        let Ok(was) = fs::read_to_string(&runtime) else { return Ok(false) };
        let now = self.runtime_conf();
        let other = was != now;
        if other {
            files::replace(&runtime, &now)?;
        }
        Ok(other)
    }

    /// As much as the volume of WAL allows; what was written last where it can't be asked.
    fn slot_budget(&self) -> Option<SlotBudget> {
        let in_force = fs::read_to_string(self.runtime_conf_path()).ok().and_then(|text| conf::budget_in(&text));
        let set = *self.0.slot_wal.lock().unwrap_or_else(PoisonError::into_inner);
        let Ok(space) = self.space() else { return in_force };
        Some(SlotBudget::resolve(set, space.wal.unwrap_or(space.data).size, in_force))
    }

    pub(super) fn adopted_mark(&self) -> &Path {
        &self.0.adopted
    }

    pub(super) fn slot_copies_path(&self) -> &Path {
        &self.0.slot_copies
    }

    /// The data directory.
    pub fn data_dir(&self) -> &Path {
        &self.0.cfg.data_dir
    }

    /// Where the postmaster and its guard write what they have to say.
    pub fn log_file(&self) -> &Path {
        &self.0.log_file
    }

    /// What the configuration file says of PostgreSQL.
    pub fn config(&self) -> &PostgresqlConfig {
        &self.0.cfg
    }

    fn followed(&self) -> MutexGuard<'_, Option<Upstream>> {
        self.0.followed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where PostgreSQL of another member is: where this one was last told to follow it, or as the configuration says.
    pub fn place_of(&self, member: &MemberId) -> Option<Upstream> {
        let told = self.followed().clone().filter(|of| of.member == *member);
        told.or_else(|| {
            let of = self.0.members.iter().find(|of| of.id == *member)?;
            Some(Upstream { member: of.id.clone(), host: of.host.clone(), port: of.postgres_port })
        })
    }

    /// Whose PostgreSQL is at this address.
    pub(super) fn member_at(&self, host: &str, port: u16) -> Option<MemberId> {
        let told = self.followed().clone().filter(|of| of.host == host && of.port == port);
        told.map(|of| of.member)
            .or_else(|| self.0.members.iter().find(|m| m.host == host && m.postgres_port == port).map(|m| m.id.clone()))
    }

    /// The members the configuration names.
    pub fn members(&self) -> &[MemberConfig] {
        &self.0.members
    }

    /// Checks everything that would make a later step fail, and returns `server_version_num`.
    ///
    /// # Errors
    /// The first thing that is wrong, with what to do about it.
    pub fn preflight(&self) -> Result<u32, PostgresError> {
        let cfg = &self.0.cfg;
        if Uid::effective().is_root() {
            let problem = "PostgreSQL refuses to run as root; run the agent as `postgres`";
            return Err(preflight("postgresql", "the user", problem));
        }
        for program in PROGRAMS {
            let path = cfg.bin_dir.join(program);
            access(&path, AccessFlags::X_OK)
                .map_err(|e| preflight(BIN_DIR, path.display(), format!("can't be run: {e}")))?;
        }
        let version = self.version()?;
        check_version(PostgresVersion(version))
            .map_err(|problem| preflight(BIN_DIR, cfg.bin_dir.join("postgres").display(), problem))?;
        self.superuser_password()?;
        self.replication_password()?;
        check_data_dir(&cfg.data_dir)?;
        for (key, dir) in [("agent.runtime_dir", &self.0.runtime_dir), ("postgresql.socket_dir", &cfg.socket_dir)] {
            // The agent makes its runtime directory when it starts, and often the sockets lie there too.
            let dir = if dir == &self.0.runtime_dir { nearest(dir) } else { dir };
            access(dir, AccessFlags::W_OK)
                .map_err(|e| preflight(key, dir.display(), format!("is not writable: {e}")))?;
        }
        Ok(version)
    }

    /// `server_version_num` of the programs in `bin_dir`, from `postgres -V`.
    ///
    /// # Errors
    /// The program can't be run, or says something else.
    pub fn version(&self) -> Result<u32, PostgresError> {
        let (text, _) = self.helper("postgres", Duration::from_secs(10)).arg("-V").run_short()?;
        PostgresVersion::parse(&text)
            .map(|version| version.0)
            .ok_or_else(|| preflight(BIN_DIR, "postgres -V", format!("unexpected answer `{}`", text.trim())))
    }

    /// What is in the data directory.
    ///
    /// # Errors
    /// The directory can't be read.
    pub fn data_state(&self) -> Result<DataState, PostgresError> {
        self.data_state_of(self.data_dir())
    }

    pub(super) fn data_state_of(&self, dir: &Path) -> Result<DataState, PostgresError> {
        let mut entries = match fs::read_dir(dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(DataState::Missing),
            Err(source) => return Err(PostgresError::File { doing: "reading", path: dir.to_owned(), source }),
        };
        if entries.next().is_none() {
            return Ok(DataState::Empty);
        }
        let Ok(major) = fs::read_to_string(dir.join("PG_VERSION")) else {
            return Ok(DataState::Foreign(format!("{} is not empty and has no PG_VERSION", dir.display())));
        };
        let ours = self.version()? / 10_000;
        if major.trim().parse() != Ok(ours) {
            let text = format!("{} is of PostgreSQL {}, the programs are of {ours}", dir.display(), major.trim());
            return Ok(DataState::Foreign(text));
        }
        match self.control_data_of(dir) {
            Ok(data) => Ok(DataState::Present(data)),
            // pg_controldata ran and couldn't read it; that it couldn't run says nothing of the directory.
            Err(error @ (PostgresError::ControlData { .. } | PostgresError::Helper(HelperError::Failed { .. }))) => {
                Ok(DataState::Incomplete(error.to_string()))
            }
            Err(error) => Err(error),
        }
    }

    /// What `pg_control` says.
    ///
    /// # Errors
    /// It is missing, damaged, or of another version.
    pub fn control_data(&self) -> Result<ControlData, PostgresError> {
        self.control_data_of(self.data_dir())
    }

    pub(super) fn control_data_of(&self, dir: &Path) -> Result<ControlData, PostgresError> {
        let fail = |problem: String| PostgresError::ControlData { data_dir: dir.to_owned(), problem };
        let mut tries = 0;
        loop {
            let helper = self.helper("pg_controldata", Duration::from_secs(10)).arg("-D").arg(dir);
            let (text, warnings) = helper.run_short()?;
            // A running server may write the file in the middle of our reading it.
            if !warnings.contains("CRC") && !text.contains("WARNING") {
                return ControlData::parse(&text).map_err(fail);
            }
            tries += 1;
            if tries == 3 {
                return Err(fail("its checksum is wrong".to_owned()));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Writes `postgresql.conf` and `pg_hba.conf` into the data directory, the password file beside it, and
    /// takes our settings out of `postgresql.auto.conf`.
    ///
    /// # Errors
    /// A file can't be written, or a password can't be read.
    pub fn write_config(&self, role: &ConfigRole) -> Result<(), PostgresError> {
        self.write_config_to(self.data_dir(), role)
    }

    pub(super) fn write_config_to(&self, dir: &Path, role: &ConfigRole) -> Result<(), PostgresError> {
        if let ConfigRole::Standby { upstream: Some(upstream), .. } = role {
            *self.followed() = Some(upstream.clone());
        }
        let upstream = match role {
            ConfigRole::Standby { upstream, .. } => upstream.as_ref(),
            ConfigRole::DormantPrimary => None,
        };
        self.write_passfile(upstream)?;
        let _alone = self.config_alone();
        if dir == self.data_dir() {
            // Nothing is restored from the moment on in which it follows nobody, but by one that is never promoted.
            let alone = matches!(role, ConfigRole::Standby { .. }) && self.settings_of(self.me()).nostream;
            if upstream.is_some() || alone {
                self.write_get_permit(false)?
            } else {
                self.forbid_restores()?
            }
            self.write_put_permit()?;
        }
        let side = match role {
            ConfigRole::Standby { .. } => Side::Standby,
            ConfigRole::DormantPrimary => Side::Primary,
        };
        let document = self.accepted();
        let texts = self.texts_of(&document, side);
        let settings = self.settings(&texts);
        files::replace(&dir.join("postgresql.conf"), &conf::postgresql_conf(&settings, role))?;
        if dir == self.data_dir() {
            self.wrote(&document);
            if self.config().bootstrap.source == ContentSource::Adopt {
                files::ensure(self.adopted_mark(), "")?;
            }
        }
        files::replace(&dir.join("pg_hba.conf"), &conf::pg_hba(&settings, false))?;
        let ident = dir.join("pg_ident.conf");
        if let Some(text) = Self::ident(&document, &fs::read_to_string(&ident).unwrap_or_default()) {
            files::replace(&ident, &text)?;
        }
        let auto_conf = dir.join("postgresql.auto.conf");
        match fs::read_to_string(&auto_conf).ok().and_then(|text| conf::without_owned(&text)) {
            Some(kept) => files::replace(&auto_conf, &kept),
            None => Ok(()),
        }
    }

    /// `primary_conninfo` in this role; empty: it follows nobody.
    pub fn conninfo(&self, role: &ConfigRole) -> String {
        let texts = self.texts(Side::Standby);
        conf::primary_conninfo(&self.settings(&texts), role)
    }

    /// `pg_hba.conf` of the data directory.
    pub(super) fn hba_path(&self) -> PathBuf {
        self.data_dir().join("pg_hba.conf")
    }

    /// For whoever saves WAL.
    pub(super) fn saving(&self) -> MutexGuard<'_, ()> {
        self.0.saving.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes it anew; `closed`: for nobody but us.
    pub(super) fn write_hba(&self, closed: bool) -> Result<(), PostgresError> {
        let _alone = self.0.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let texts = self.texts(Side::Standby);
        files::replace(&self.hba_path(), &conf::pg_hba(&self.settings(&texts), closed))
    }

    /// Whether we configured the data directory at any time. One that we didn't is
    /// somebody else's and is left as it is.
    pub fn is_configured_by_us(&self) -> bool {
        let conf = fs::read_to_string(self.data_dir().join("postgresql.conf"));
        conf.is_ok_and(|text| text.starts_with(conf::WRITTEN_BY_US))
    }

    /// Makes `standby.signal` be there or not, durably.
    ///
    /// # Errors
    /// The file can't be created, removed or synced.
    pub fn set_standby_signal(&self, present: bool) -> Result<(), PostgresError> {
        let path = self.data_dir().join("standby.signal");
        if present { files::ensure(&path, "") } else { files::remove(&path).map(|_| ()) }
    }

    /// True when the data directory has `standby.signal`.
    pub fn has_standby_signal(&self) -> bool {
        self.data_dir().join("standby.signal").exists()
    }

    /// How to start the postmaster. Writes the configuration file it is started with into the runtime
    /// directory, and removes stubs: a start would take one for its target. Only below its own newest timeline a
    /// standby has some.
    ///
    /// # Errors
    /// A file can't be written, `pg_control` can't be read, or a rewind was cut off.
    pub fn postmaster_command(&self) -> Result<PostmasterCommand, PostgresError> {
        if self.rewind_unfinished() {
            return Err(PostgresError::HalfRewound { data_dir: self.data_dir().to_owned() });
        }
        self.remove_stubs()?;
        if self.has_standby_signal() {
            self.bridge_gaps()?;
        }
        self.write_passfile(None)?;
        let runtime = self.runtime_conf_path();
        files::replace(&runtime, &self.runtime_conf())?;
        let mut config_file = OsString::from("config_file=");
        config_file.push(&runtime);
        let mut args: Vec<OsString> = vec!["-D".into(), self.data_dir().into()];
        for setting in [config_file, "restart_after_crash=off".into()] {
            args.extend(["-c".into(), setting]);
        }
        if self.has_standby_signal() {
            let texts = self.texts(Side::Standby);
            for (name, floor) in conf::raised_to(&self.settings(&texts), &self.control_data()?.floors) {
                args.extend(["-c".into(), format!("{name}={floor}").into()]);
            }
        }
        self.begins();
        Ok(PostmasterCommand {
            program: self.0.cfg.bin_dir.join("postgres"),
            args,
            env: vec![("LC_ALL".into(), "C".into())],
            log_file: self.0.log_file.clone(),
        })
    }

    fn runtime_conf_path(&self) -> PathBuf {
        self.0.runtime_dir.join("postgresql.conf")
    }

    fn runtime_conf(&self) -> String {
        let main = self.data_dir().join("postgresql.conf");
        let parameters = self.parameters(self.side());
        let mut budget = conf::budget_lines(&parameters, self.slot_budget());
        let synced = self.0.synced_slots.lock().unwrap_or_else(PoisonError::into_inner);
        budget.push_str(&conf::synced_lines(&parameters, synced.as_ref()));
        conf::runtime_conf(self.silence(), &budget, &main.to_string_lossy(), &self.live_path().to_string_lossy())
    }

    /// Removes the live configuration; after the next reload or start the placeholder holds.
    ///
    /// # Errors
    /// The file can't be removed.
    pub fn remove_live(&self) -> Result<(), PostgresError> {
        let _alone = self.live_alone();
        files::remove(&self.live_path()).map(|_| ())
    }

    /// Whoever changes the live configuration does it alone.
    pub(super) fn live_alone(&self) -> MutexGuard<'_, ()> {
        self.0.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The file the live configuration is in; the guard deletes it on a fence.
    pub fn live_path(&self) -> PathBuf {
        self.0.runtime_dir.join("live.conf")
    }

    /// The process that runs in the data directory; a stale `postmaster.pid` counts for nothing.
    pub fn running_pid(&self) -> Option<i32> {
        let pid = self.lock_file_pid()?;
        let proc = PathBuf::from(format!("/proc/{pid}"));
        // By device and inode: another container may see its own directory under the same path.
        let (here, there) = (fs::metadata(self.data_dir()).ok()?, fs::metadata(proc.join("cwd")).ok()?);
        let same_dir = (here.dev(), here.ino()) == (there.dev(), there.ino());
        let zombie = fs::read_to_string(proc.join("stat")).is_ok_and(|stat| stat.contains(") Z "));
        (same_dir && !zombie).then_some(pid)
    }

    /// The pid in `postmaster.pid`, whether such a process lives or not.
    pub fn lock_file_pid(&self) -> Option<i32> {
        let text = fs::read_to_string(self.data_dir().join("postmaster.pid")).ok()?;
        // A single-user process writes its pid negated.
        text.lines().next()?.trim().trim_start_matches('-').parse().ok()
    }

    /// The files by which an earlier postmaster of this data directory would keep another from starting, each
    /// with the pid in it: `postmaster.pid`, and the lock beside its socket, whose second line names the directory.
    pub fn lock_files(&self) -> Vec<(PathBuf, i32)> {
        let socket = self.0.cfg.socket_dir.join(format!(".s.PGSQL.{}.lock", self.0.cfg.port));
        let ours = |path: PathBuf| {
            let text = fs::read_to_string(&path).ok()?;
            let mut lines = text.lines();
            let pid = lines.next()?.trim().trim_start_matches('-').parse().ok()?;
            (lines.next().map(Path::new) == Some(self.data_dir())).then_some((path, pid))
        };
        [self.data_dir().join("postmaster.pid"), socket].into_iter().filter_map(ours).collect()
    }

    /// Gives one of the [`Instance::lock_files`] another name, for a start that it would forbid. Only for a caller
    /// that has seen that no process of this data directory is left.
    ///
    /// # Errors
    /// The file can't be renamed.
    pub fn set_lock_file_aside(path: &Path) -> Result<(), PostgresError> {
        fs::rename(path, files::beside(path, ".stale")).map_err(PostgresError::file("setting aside", path))?;
        files::sync_parent(path)
    }

    pub(super) fn demand_stopped(&self) -> Result<(), PostgresError> {
        match self.running_pid() {
            Some(pid) => Err(PostgresError::Running { data_dir: self.data_dir().to_owned(), pid }),
            None => Ok(()),
        }
    }

    /// The password of the superuser.
    pub(super) fn superuser_password(&self) -> Result<String, PostgresError> {
        read_secret("postgresql.superuser_password_file", &self.0.cfg.superuser_password_file)
    }

    /// The password of the replication role.
    pub(super) fn replication_password(&self) -> Result<String, PostgresError> {
        read_secret("postgresql.replication_password_file", &self.0.cfg.replication_password_file)
    }

    pub(super) fn write_passfile(&self, upstream: Option<&Upstream>) -> Result<(), PostgresError> {
        let known = self.0.members.iter().map(|m| (m.host.as_str(), m.postgres_port));
        let hosts = known.chain(upstream.map(|u| (u.host.as_str(), u.port)));
        let text = conf::passfile(hosts, &self.0.cfg.replication_user, &self.replication_password()?);
        files::replace(&self.0.passfile, &text)
    }

    /// The connection string of a helper to `source`.
    pub(super) fn source_conninfo(&self, source: &Upstream, dbname: Option<&str>) -> String {
        let texts = self.texts(Side::Standby);
        conf::replication_conninfo(&self.settings(&texts), source, self.0.me.as_str(), dbname)
    }

    /// `<data_dir><suffix>`.
    pub(super) fn beside(&self, suffix: &str) -> PathBuf {
        files::beside(self.data_dir(), suffix)
    }

    /// Where what makes the first data directory writes what it has to say.
    pub(super) fn content_log(&self) -> PathBuf {
        self.0.log_file.with_file_name("initial.log")
    }

    /// For the socket and the configuration of the server that makes it.
    pub(super) fn private_dir(&self) -> PathBuf {
        self.0.runtime_dir.join("initial")
    }

    /// The text of the configuration with which that server recovers or completes `dir`: that of a standby which follows
    /// nobody, and what `more` adds.
    pub(super) fn private_conf(&self, dir: &Path, more: &[(&str, String)]) -> Result<String, PostgresError> {
        let texts = self.texts(Side::Standby);
        let settings = self.settings(&texts);
        let raised = conf::raised_to(&settings, &self.control_data_of(dir)?.floors);
        let raised = raised.into_iter().map(|(name, floor)| (name, floor.to_string()));
        let more = more.iter().map(|(name, value)| (*name, value.clone()));
        Ok(conf::private_conf(&settings, raised.chain(more)))
    }

    pub(super) fn helper(&self, name: &str, deadline: Duration) -> Helper {
        Helper::new(&self.0.cfg.bin_dir, name, deadline)
    }

    pub(super) fn settings<'a>(&'a self, texts: &'a Texts) -> Settings<'a> {
        let Texts { socket_dir, passfile, parameters, hba, moved_hosts } = texts;
        let Inner { cfg, me, members, .. } = &*self.0;
        Settings {
            listen_addresses: &cfg.listen_addresses,
            port: cfg.port,
            socket_dir,
            superuser: &cfg.superuser,
            replication_user: &cfg.replication_user,
            passfile,
            member: me,
            member_hosts: members.iter().map(|m| m.host.as_str()).collect(),
            moved_hosts,
            hba,
            parameters,
            silence: self.silence(),
            archive_alone: self.settings_of(me).nostream,
            delay: self.settings_of(me).recovery_min_apply_delay,
            archive: self.archive_lines(),
        }
    }
}

const BIN_DIR: &str = "postgresql.bin_dir";
const DATA_DIR: &str = "postgresql.data_dir";

fn preflight(key: &'static str, what: impl ToString, problem: impl Into<String>) -> PostgresError {
    PostgresError::Preflight { key, what: what.to_string(), problem: problem.into() }
}

/// The directory, or the nearest one above it that is there.
fn nearest(dir: &Path) -> &Path {
    dir.ancestors().find(|d| d.exists()).unwrap_or(dir)
}

/// Says what is wrong with a version that is not managed.
fn check_version(version: PostgresVersion) -> Result<(), String> {
    match version.support() {
        Support::Tested | Support::Untested => Ok(()),
        Support::Refused => Err(format!("is of PostgreSQL {version}, and {} are supported", version::supported())),
    }
}

fn check_data_dir(data_dir: &Path) -> Result<(), PostgresError> {
    let parent = nearest(data_dir.parent().unwrap_or(data_dir));
    access(parent, AccessFlags::W_OK).map_err(|e| {
        let problem = format!("is not writable ({e}); a new copy is made beside the data directory and renamed");
        preflight(DATA_DIR, parent.display(), problem)
    })?;
    let Ok(meta) = fs::metadata(data_dir) else { return Ok(()) };
    if !meta.is_dir() {
        return Err(preflight(DATA_DIR, data_dir.display(), "is not a directory"));
    }
    if meta.uid() != Uid::effective().as_raw() {
        return Err(preflight(
            DATA_DIR,
            data_dir.display(),
            format!("belongs to uid {}, not to this user", meta.uid()),
        ));
    }
    // Renames replace it, so it can't be a file system of its own.
    if fs::metadata(parent).is_ok_and(|p| p.dev() != meta.dev()) {
        return Err(preflight(
            DATA_DIR,
            data_dir.display(),
            "is a mount point; use a directory inside the mounted file system",
        ));
    }
    Ok(())
}

/// A password file: one line, readable by this user alone.
pub(super) fn read_secret(key: &'static str, path: &Path) -> Result<String, PostgresError> {
    let meta = fs::metadata(path).map_err(PostgresError::file("reading", path))?;
    if meta.permissions().mode() & 0o077 != 0 {
        return Err(preflight(key, path.display(), "can be read by others; make its mode 0600"));
    }
    let text = fs::read_to_string(path).map_err(PostgresError::file("reading", path))?;
    let secret = text.trim_end_matches(['\n', '\r']);
    if secret.is_empty() || secret.contains(['\n', '\r', '\0']) {
        return Err(preflight(key, path.display(), "must hold one line: the password"));
    }
    Ok(secret.to_owned())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_version_that_is_not_managed_is_named() {
        let problem = |number| check_version(PostgresVersion(number)).err();
        let wrong = "is of PostgreSQL 13.23, and PostgreSQL 14 to 18 are supported";
        assert_eq!(problem(130_023).as_deref(), Some(wrong));
        assert!(problem(190_000).is_some(), "a newer one is not taken to be like those that are known");
        assert_eq!([140_000, 150_018, 180_006].map(problem), [const { None }; 3]);
    }

    #[test]
    fn a_password_file_others_can_read_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pass");
        fs::write(&path, "secret\n").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        assert!(read_secret("key", &path).unwrap_err().to_string().contains("0600"));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        assert_eq!(read_secret("key", &path).unwrap(), "secret");
        fs::write(&path, "\n").unwrap();
        assert!(read_secret("key", &path).is_err());
    }
}
