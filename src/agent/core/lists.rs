//! What the manager tells of the committed state, and what is promised on it:
//! members, timings, settings, and the promise of failsafe not to be promoted.

use std::collections::BTreeMap;

use super::{Core, Effect, Now};
use crate::{
    domain::{
        Briefing, CloneCompression, Epoch, HowToCopy, MemberId, Settings, SettingsDocument, observation::ClockView,
    },
    lease::{
        failsafe::{Knowledge, Promiser},
        message::Letter,
    },
};

impl Core {
    /// Takes what is newer than what is known: on disk first, for a restart must not count by less,
    /// and then to the lease.
    pub(super) fn on_briefed(&mut self, briefing: Briefing, now: Now, out: &mut Vec<Effect>) {
        self.briefed = self.briefed.max(briefing.epoch);
        if briefing.members.version >= self.durable.members.version {
            self.lineage.take_managers(briefing.managers);
        }
        let moved = self.take_moved(briefing.members.version, briefing.moved);
        let other_members = briefing.members.version > self.durable.members.version;
        let age = |t: &crate::domain::TimingsInUse| (t.newest(), t.oldest);
        let other_timings = age(&briefing.timings) > age(&self.durable.timings);
        if other_members {
            self.durable.members = briefing.members;
        }
        if other_timings {
            self.durable.timings = briefing.timings;
        }
        let before = self.durable.settings.clone();
        let other_settings = self.take_settings(briefing.settings);
        let now_set = &self.durable.settings;
        if before.of_streams() != now_set.of_streams() || before.of_postgres() != now_set.of_postgres() {
            out.push(Effect::Streams(Box::new(self.durable.settings.clone())));
        }
        self.take_pause(briefing.pause, now);
        let other_sync = self.take_sync(briefing.sync);
        if other_members || other_timings || other_settings || other_sync || moved.is_some() {
            out.push(Effect::Persist);
        }
        out.extend(moved.map(Effect::Moved));
        self.take_lineage((briefing.epoch, briefing.lineage), other_settings, out);
        if other_members {
            out.push(Effect::Members(self.durable.members.clone()));
        }
        if let Some(in_force) = self.durable.timings.in_force().filter(|_| other_timings) {
            self.limits = super::Limits::of(&in_force.timings);
            out.push(Effect::Timings((*in_force).into()));
        }
    }

    /// Managers that were moved by command, when they are others than before. None are left when the last of them was removed
    /// and added anew: then what the file says counts again.
    fn take_moved(&mut self, members: u64, told: BTreeMap<MemberId, String>) -> Option<BTreeMap<MemberId, String>> {
        if members < self.durable.members.version || told == self.durable.moved {
            return None;
        }
        self.durable.moved.clone_from(&told);
        Some(told)
    }

    /// True when they are newer.
    fn take_settings(&mut self, told: SettingsDocument) -> bool {
        if told.version <= self.durable.settings.version {
            return false;
        }
        let (settings, bad) = told.read();
        for problem in bad {
            tracing::warn!(problem = %problem, "a setting that this version can't read has its default here");
        }
        (self.durable.settings, self.settings) = (told, settings);
        true
    }

    /// A holder that has lost the managers asks whether it may go on.
    pub(super) fn on_failsafe(&mut self, from: &MemberId, letter: Letter, now: Now, out: &mut Vec<Effect>) {
        let known = Knowledge {
            me: &self.me,
            highest: self.durable.accepted.max(self.briefed),
            members: &self.durable.members,
            timings: &self.durable.timings,
        };
        let answer = self.promiser.receive(from, letter, now.clocks, known);
        if answer.persist {
            self.durable.failsafe = self.promiser.durable();
            out.push(Effect::Persist);
        }
        if let Some(letter) = answer.reply {
            out.push(Effect::Answer(letter));
        }
        if let Some(refusal) = answer.refused {
            tracing::debug!(member = %from, why = refusal.name(), "a question in failsafe is not answered");
        }
    }

    /// Why this member must not become primary now, whatever its PostgreSQL could do.
    pub(super) fn may_not_be_promoted(&self, now: Now) -> Option<String> {
        let left = self.promiser.left(now.clocks);
        if !left.is_zero() {
            let to = match self.promiser.holder() {
                Some((epoch, holder)) => format!("{holder}, primary of epoch {epoch},"),
                None => "a primary, before this agent was restarted,".to_owned(),
            };
            return Some(format!("it promised {to} to help nobody else for another {} ms", left.as_millis()));
        }
        self.clock.own_off.then(|| {
            "its clocks differ from most others' by more than half of the bound; restart the agent when that is repaired"
                .to_owned()
        })
    }

    pub(super) fn on_clocks(&mut self, clock: ClockView) {
        self.clock = clock;
    }

    /// A promise that has run out need not be found again by a restart.
    pub(super) fn forget_promise(&mut self, now: Now, out: &mut Vec<Effect>) {
        if self.promiser.forget(now.clocks) {
            self.durable.failsafe = None;
            out.push(Effect::Persist);
        }
    }

    /// What operators have set.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// What a copy may take. After one that failed it is not compressed, for not every build of PostgreSQL can.
    pub fn how_to_copy(&self) -> HowToCopy {
        let compression = match self.durable.clone_failures {
            0 => self.settings.clone_compression,
            _ => CloneCompression::None,
        };
        HowToCopy { max_rate: self.settings.clone_rate, compression }
    }

    /// What is known of clocks.
    pub fn clock(&self) -> &ClockView {
        &self.clock
    }

    /// The promise of failsafe.
    pub fn promiser(&self) -> &Promiser {
        &self.promiser
    }

    /// An epoch that nobody was above, and how long ago that was known.
    pub fn confirmed(&self, now: Now) -> Option<(Epoch, std::time::Duration)> {
        let lease = Some(self.lease).filter(|_| !self.lease_left(now).is_zero());
        let held = lease.and_then(|l| Some((l.epoch, l.confirmed?)));
        let (epoch, at) = held.or_else(|| self.promiser.confirmed())?;
        Some((epoch, now.clocks.boot.saturating_sub(at.boot)))
    }
}
