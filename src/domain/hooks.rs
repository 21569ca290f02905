//! Programs of the operator's that an agent runs when its PostgreSQL starts, stops or changes its role: the moments there are.

use std::{fmt, str::FromStr};

/// A moment at which an agent runs hooks. `Before…`: what follows may wait for them; `After…`: nothing does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum HookEvent {
    /// The member was granted the lock and is about to be promoted; no lease is held yet. The one moment that has a veto.
    BeforePromote,
    /// It accepts writes.
    AfterPromote,
    /// A primary is about to be stopped as somebody has planned: by a switchover or a restart.
    BeforeDemote,
    /// It is primary no more and nothing of its PostgreSQL is left, however that came.
    AfterDemote,
    /// PostgreSQL is about to be started as a standby.
    BeforeStart,
    /// It answers for the first time since it was started.
    AfterStart,
    /// PostgreSQL is about to be stopped as somebody has planned.
    BeforeStop,
    /// It has ended, however that came.
    AfterStop,
    /// A primary is about to be started again under the lease it still holds.
    BeforeRestart,
    /// It answers again, as primary.
    AfterRestart,
    /// It was told to read its configuration anew, for operators have set something.
    AfterReload,
    /// It is primary now, or is no more.
    AfterRoleChange,
    /// Its processes were killed so that they could not write.
    AfterFence,
}

impl HookEvent {
    /// All of them.
    pub const ALL: [HookEvent; 13] = [
        HookEvent::BeforePromote,
        HookEvent::AfterPromote,
        HookEvent::BeforeDemote,
        HookEvent::AfterDemote,
        HookEvent::BeforeStart,
        HookEvent::AfterStart,
        HookEvent::BeforeStop,
        HookEvent::AfterStop,
        HookEvent::BeforeRestart,
        HookEvent::AfterRestart,
        HookEvent::AfterReload,
        HookEvent::AfterRoleChange,
        HookEvent::AfterFence,
    ];

    /// Its name in the configuration and in `MATRIARCH_EVENT`.
    pub fn name(self) -> &'static str {
        match self {
            HookEvent::BeforePromote => "before_promote",
            HookEvent::AfterPromote => "after_promote",
            HookEvent::BeforeDemote => "before_demote",
            HookEvent::AfterDemote => "after_demote",
            HookEvent::BeforeStart => "before_start",
            HookEvent::AfterStart => "after_start",
            HookEvent::BeforeStop => "before_stop",
            HookEvent::AfterStop => "after_stop",
            HookEvent::BeforeRestart => "before_restart",
            HookEvent::AfterRestart => "after_restart",
            HookEvent::AfterReload => "after_reload",
            HookEvent::AfterRoleChange => "after_role_change",
            HookEvent::AfterFence => "after_fence",
        }
    }

    /// What Patroni calls the moment when it calls a program; `None`: Patroni's programs aren't called then.
    pub fn patroni(self) -> Option<&'static str> {
        match self {
            HookEvent::AfterStart => Some("on_start"),
            HookEvent::AfterStop => Some("on_stop"),
            HookEvent::AfterRestart => Some("on_restart"),
            HookEvent::AfterReload => Some("on_reload"),
            HookEvent::AfterRoleChange => Some("on_role_change"),
            HookEvent::BeforePromote
            | HookEvent::AfterPromote
            | HookEvent::BeforeDemote
            | HookEvent::AfterDemote
            | HookEvent::BeforeStart
            | HookEvent::BeforeStop
            | HookEvent::BeforeRestart
            | HookEvent::AfterFence => None,
        }
    }
}

impl fmt::Display for HookEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for HookEvent {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = HookEvent::ALL.into_iter().find(|event| event.name() == text);
        found.ok_or_else(|| format!("`{text}` is no moment at which hooks run"))
    }
}

/// What a member is to whoever is told by a hook, in Patroni's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum HookRole {
    /// It holds the lock and was promoted.
    Primary,
    /// Anything else.
    #[default]
    Replica,
}

impl HookRole {
    /// As Patroni says it since its version 4.
    pub fn name(self) -> &'static str {
        match self {
            HookRole::Primary => "primary",
            HookRole::Replica => "replica",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_moment_is_read_by_its_name() {
        for event in HookEvent::ALL {
            assert_eq!(event.name().parse(), Ok(event));
        }
        assert_eq!("after_all".parse::<HookEvent>().unwrap_err(), "`after_all` is no moment at which hooks run");
    }
}
