//! How a command changes the state. Compare-and-set throughout: what no longer
//! holds makes the command stale, never an error.

use super::{
    agenda::at_of,
    cluster::{
        ClusterState, FinishedOperation, GrantPhase, INCIDENTS_KEPT, Identity, Incident, Lock, Operation,
        OperationKind, OperationPhase, Release, TimelineRecord,
    },
    command::{Applied, Command, Kind, RuleId},
    pause::{Asked, Stopped},
};
use crate::domain::{EndCause, Epoch, Lsn, MemberId, SyncStart, TimelineHistory, TimelineId, WalPosition};

/// Where a timeline began, and the CRC of its first WAL record as far as it is known.
type Beginning = (WalPosition, Option<u32>);

impl ClusterState {
    /// Applies one committed command. The same on every node, for ever.
    pub fn apply(&mut self, command: &Command) -> Applied {
        if command.expected != self.epoch {
            return self.stale(format!("decided in epoch {}", command.expected));
        }
        let (before, stayed, settings) = (self.members.clone(), self.stays_put(), self.settings.clone());
        let done = self.change(command);
        match done {
            Err(why) => self.stale(why),
            Ok(incident) => {
                self.revision += 1;
                self.pauses += u64::from(self.stays_put() != stayed);
                self.roster.follow(&before, &self.members);
                self.format = self.format.max(command.kind.format());
                self.chronicle(command);
                self.note_settings(&settings, command);
                if let Some(what) = incident {
                    self.remember(what, command);
                }
                Applied::Changed
            }
        }
    }

    fn stale(&self, why: String) -> Applied {
        Applied::Stale { current: self.epoch, why }
    }

    fn remember(&mut self, what: String, command: &Command) {
        self.incidents.push_back(Incident {
            revision: self.revision,
            epoch: self.epoch,
            what,
            rule: command.because.0,
            evidence: command.evidence.clone(),
        });
        while self.incidents.len() > INCIDENTS_KEPT {
            self.incidents.pop_front();
        }
    }

    fn change(&mut self, command: &Command) -> Result<Option<String>, String> {
        let kind = &command.kind;
        match kind {
            Kind::Genesis { .. } => self.genesis(kind),
            Kind::RecordSystem { system_identifier, history } => {
                self.record_system(*system_identifier, history.as_ref())
            }
            Kind::Fence { reason, cause } => self.fence(reason, *cause),
            Kind::Grant { member, floor, sync } => self.grant(member, *floor, sync.as_ref()),
            Kind::GrantRunning { member, floor } => self.grant_running(member, *floor),
            Kind::PromotionComplete { member, timeline, switch, first_record } => {
                self.promoted(member, *timeline, (*switch, *first_record))
            }
            Kind::AdoptTimeline { member, timeline, switch, first_record } => {
                self.adopt_timeline(member, *timeline, (*switch, *first_record))
            }
            Kind::Open { member } => self.open(member),
            Kind::Release { member, end, clean, cause } => self.release(member, *end, *clean, *cause),
            Kind::BeginOperation { kind, from, to, accepts_loss } => {
                let asked = (command.request_id.as_str(), command.because, *accepts_loss);
                self.begin(*kind, from.as_ref(), to, asked)
            }
            Kind::AdvanceOperation { id, phase } => self.advance(*id, *phase),
            Kind::EndOperation { id, succeeded, reason } => self.end(*id, *succeeded, reason),
            Kind::RecordStonith { member, epoch, succeeded, how } => {
                let outcome = if *succeeded { "succeeded" } else { "failed" };
                Ok(Some(format!("STONITH of {member}, which held epoch {epoch}, {outcome}: {how}")))
            }
            Kind::SetTimings { profile, timings, decided } => self.set_timings(*profile, **timings, *decided),
            Kind::SettleTimings { id } => self.settle_timings(*id),
            Kind::ReplaceNode { member, old, node, reason } => self.replace_node(member, *old, *node, reason),
            Kind::AddMember { member, manager, postgres, learner } => {
                self.add_member(member, (manager, postgres), *learner)
            }
            Kind::RemoveMember { member } => self.remove_member(member),
            Kind::MoveMember { member, manager, postgres, agent } => {
                self.move_member(member, [manager, postgres, agent])
            }
            Kind::SetSettings { version, changes, by, beside } => self.set_settings(*version, changes, by, *beside),
            Kind::SetSync { after, rule } => self.set_sync(*after, rule.as_ref()),
            Kind::SettleSync { id } => self.settle_sync(*id),
            Kind::KeepOut { on } => self.keep_out(*on),
            Kind::Cascade { member, source, falls, reason } => self.lead_to(member, source.as_ref(), *falls, reason),
            Kind::Lend { member, id, life } => self.lend(member, *id, *life),
            Kind::EndLend { id, reason } => self.end_lend(*id, reason),
            Kind::NoteFormat { format } => self.note_format(*format),
            Kind::Agenda(change) => self.change_agenda(command, change),
            Kind::Hibernate(change) => self.hibernate(command, change),
            Kind::Pause { reason, by } => self.pause(reason, by),
            Kind::Resume { by } => self.resume(by),
            Kind::Acknowledge { by } => self.acknowledge(by),
            Kind::Maintenance { member, on, reason, by, stop } => {
                let stopped = stop.map(|force| Stopped { at_ms: at_of(command), force });
                self.maintain(member, *on, Asked { reason: reason.clone(), by: by.clone(), stopped })
            }
        }
    }

    fn genesis(&mut self, kind: &Kind) -> Result<Option<String>, String> {
        let Kind::Genesis { cluster_id, generation, name, members, initializer } = kind else {
            return Err("not a genesis".to_owned());
        };
        if self.identity.is_some() {
            return Err("the cluster exists".to_owned());
        }
        self.identity = Some(Identity { cluster_id: cluster_id.clone(), generation: *generation, name: name.clone() });
        self.members = members.iter().cloned().collect();
        self.last_node = members.iter().map(|(_, m)| m.node).max().unwrap_or_default();
        self.initializer = Some(initializer.clone());
        Ok(Some(format!("cluster {name} founded with {} members, {initializer} runs initdb", members.len())))
    }

    fn record_system(
        &mut self,
        system_identifier: u64,
        history: Option<&TimelineHistory>,
    ) -> Result<Option<String>, String> {
        if let Some(known) = self.system_identifier {
            return Err(format!("system identifier {known} is recorded"));
        }
        self.system_identifier = Some(system_identifier);
        let first = TimelineHistory::root(TimelineId(1));
        let history = history.unwrap_or(&first);
        let epoch = self.epoch;
        let mut began = None;
        let ancestors = history.switches.iter().map(|s| (s.timeline, Some(s.end)));
        for (timeline, end) in ancestors.chain([(history.timeline, None)]) {
            let first_record = history.first_records.get(&timeline).copied();
            self.lineage.push(TimelineRecord { timeline, epoch, switch: began, first_record });
            began = end.map(|lsn| WalPosition { timeline, lsn });
        }
        let told = || format!("the cluster begins with data on timeline {}", history.timeline);
        Ok((history != &first).then(told))
    }

    fn fence(&mut self, reason: &str, cause: EndCause) -> Result<Option<String>, String> {
        let (previous, released) = match &self.lock {
            Lock::Free => (None, None),
            Lock::Granted { epoch, member, .. } => (Some((*epoch, member.clone())), None),
            Lock::Released(release) => (Some((release.epoch, release.member.clone())), Some(release.clone())),
            Lock::Fenced { .. } => return Err("the epoch is fenced".to_owned()),
        };
        if let (Some((epoch, holder)), None) = (&previous, &released) {
            self.ended_by_others(holder, *epoch, cause);
        }
        self.epoch = self.epoch.next();
        self.kept_out = false;
        let holder = previous.as_ref().map_or_else(|| "nobody".to_owned(), |(_, m)| m.to_string());
        self.lock = Lock::Fenced { epoch: self.epoch, previous, released };
        Ok(Some(format!("epoch {} begins, {holder} held the last one: {reason}", self.epoch)))
    }

    fn grant(
        &mut self,
        member: &MemberId,
        floor: WalPosition,
        sync: Option<&SyncStart>,
    ) -> Result<Option<String>, String> {
        let Lock::Fenced { epoch, .. } = &self.lock else {
            return Err("a grant needs a fenced epoch".to_owned());
        };
        let epoch = *epoch;
        self.may_be_granted(member)?;
        self.start_sync(epoch, member, sync)?;
        let timeline = self.highest_timeline().next();
        self.lineage.push(TimelineRecord { timeline, epoch, switch: None, first_record: None });
        self.hand_to(member, (epoch, timeline), floor);
        Ok(Some(format!("{member} is to be primary of epoch {epoch} on timeline {timeline}, its WAL ends at {floor}")))
    }

    pub(super) fn may_be_granted(&self, member: &MemberId) -> Result<(), String> {
        if !self.members.contains_key(member) {
            return Err(format!("{member} is no member"));
        }
        if self.is_witness(member) {
            return Err(format!("{member} is a witness"));
        }
        if let Some(asleep) = self.asleep() {
            return Err(format!("the cluster is hibernated{}", asleep.asked));
        }
        if let Some(asked) = self.maintenance.get(member) {
            return Err(format!("{member} is {}", asked.aside()));
        }
        Ok(())
    }

    pub(super) fn hand_to(&mut self, member: &MemberId, (epoch, timeline): (Epoch, TimelineId), floor: WalPosition) {
        self.roster.grant();
        self.keep_newest_timings();
        self.unexplained.remove(member);
        // Whose WAL is on the new primary's history shows only when it streams from there.
        self.cascade.clear();
        self.lock = Lock::Granted {
            epoch,
            member: member.clone(),
            phase: GrantPhase::Promoting,
            timeline,
            switch_lsn: Lsn(0),
            floor,
        };
    }

    fn promoted(&mut self, by: &MemberId, on: TimelineId, began: Beginning) -> Result<Option<String>, String> {
        if let Lock::Fenced { previous, .. } = &self.lock {
            let theirs = previous.as_ref().filter(|(_, holder)| holder == by).map(|(epoch, _)| *epoch);
            return self.promoted_late(by, theirs, on, began);
        }
        let Lock::Granted { epoch, member, phase, timeline, switch_lsn, .. } = &mut self.lock else {
            return Err("nothing is granted".to_owned());
        };
        if member != by || *timeline != on || *phase != GrantPhase::Promoting {
            return Err(format!("{member} is {phase:?} on timeline {timeline}"));
        }
        *phase = GrantPhase::Promoted;
        let (at, first_record) = began;
        *switch_lsn = at.lsn;
        let epoch = *epoch;
        self.roster.taken();
        for record in &mut self.lineage {
            // One that goes on running has not begun its timeline: where that comes from was recorded before.
            if record.timeline == on && record.epoch == epoch {
                (record.switch, record.first_record) = (Some(at), first_record);
            }
        }
        Ok(Some(format!("{by} is primary of epoch {epoch} on timeline {on} from {at}")))
    }

    /// The holder had left recovery on its reserved timeline, and its epoch ended before that was committed.
    fn promoted_late(
        &mut self,
        by: &MemberId,
        in_epoch: Option<Epoch>,
        on: TimelineId,
        (at, first_record): Beginning,
    ) -> Result<Option<String>, String> {
        let unknown = |r: &&mut TimelineRecord| r.timeline == on && Some(r.epoch) == in_epoch && r.switch.is_none();
        let Some(record) = self.lineage.iter_mut().find(unknown) else {
            return Err("nothing is granted".to_owned());
        };
        (record.switch, record.first_record) = (Some(at), first_record);
        Ok(Some(format!("{by} had begun timeline {on} at {at} before its epoch ended")))
    }

    /// Nobody granted it, so it is of no epoch.
    fn adopt_timeline(
        &mut self,
        by: &MemberId,
        timeline: TimelineId,
        (at, first_record): Beginning,
    ) -> Result<Option<String>, String> {
        if !matches!(self.lock, Lock::Fenced { .. }) {
            return Err("a timeline is adopted between two epochs only".to_owned());
        }
        let (highest, last) = (self.highest_timeline(), self.newest_complete_timeline());
        if timeline <= highest || at.timeline != last {
            return Err(format!("timeline {timeline} from {at} does not go on from {last}, or {highest} is used"));
        }
        self.lineage.push(TimelineRecord { timeline, epoch: Epoch(0), switch: Some(at), first_record });
        self.by_hand.insert(timeline, by.clone());
        Ok(Some(format!("timeline {timeline}, begun by hand at {at}, is the cluster's: {by} has no other WAL")))
    }

    fn open(&mut self, who: &MemberId) -> Result<Option<String>, String> {
        match &mut self.lock {
            Lock::Granted { member, phase, .. } if member == who && *phase == GrantPhase::Promoted => {
                *phase = GrantPhase::Open;
                self.hibernation = None;
                Ok(Some(format!("{who} is open for clients")))
            }
            Lock::Granted { .. } | Lock::Free | Lock::Released(_) | Lock::Fenced { .. } => {
                Err(format!("{who} is not promoted, or open already"))
            }
        }
    }

    fn release(
        &mut self,
        who: &MemberId,
        end: WalPosition,
        clean: bool,
        cause: EndCause,
    ) -> Result<Option<String>, String> {
        match &self.lock {
            Lock::Granted { epoch, member, .. } if member == who => {
                let release = Release { epoch: *epoch, member: member.clone(), end, clean, cause };
                let how = if clean { "cleanly" } else { "after a crash or a fence" };
                let what = format!("{who} released epoch {epoch} {how}, its WAL ends at {end}{}", told(cause));
                self.lock = Lock::Released(release);
                self.count_crash(cause);
                Ok(Some(what))
            }
            // Its epoch was ended before its word came; the word is worth the same.
            Lock::Fenced { epoch, previous: Some((last, member)), released: None } if member == who => {
                let (epoch, last, member) = (*epoch, *last, member.clone());
                let release = Release { epoch: last, member: member.clone(), end, clean, cause };
                self.lock = Lock::Fenced { epoch, previous: Some((last, member)), released: Some(release) };
                self.explained(who, last, cause);
                Ok(Some(format!("{who} has ended epoch {last}, its WAL ends at {end}{}", told(cause))))
            }
            Lock::Granted { .. } | Lock::Free | Lock::Released(_) | Lock::Fenced { .. } => {
                // Somebody else has been granted since; that it is over matters to nobody any more, why it is does.
                let last = *self.unexplained.get(who).ok_or_else(|| format!("{who} does not hold the lock"))?;
                self.explained(who, last, cause);
                Ok(Some(format!("{who} says why its epoch {last} ended{}", told(cause))))
            }
        }
    }

    pub(super) fn begin(
        &mut self,
        kind: OperationKind,
        from: Option<&MemberId>,
        to: &MemberId,
        (request_id, because, accepts_loss): (&str, RuleId, bool),
    ) -> Result<Option<String>, String> {
        if let Some(known) = self.number_of(request_id) {
            return Err(format!("this request began operation {known}"));
        }
        if let Some(running) = &self.operation {
            return Err(format!("operation {} is under way", running.id));
        }
        let holder = self.holder().map(|(_, m)| m);
        if kind != OperationKind::Reinit && holder != from {
            return Err("the primary has changed".to_owned());
        }
        let stays = matches!(kind, OperationKind::Restart | OperationKind::Hibernate);
        let to_itself = [from, holder].contains(&Some(to)) && !stays;
        // Whoever else has all WAL may be primary when a cluster wakes.
        let aside = self.maintenance.contains_key(to) && kind != OperationKind::Wake;
        if !self.members.contains_key(to) || self.is_witness(to) || to_itself || aside {
            return Err(format!("{to} can't be the target"));
        }
        self.operations += 1;
        let phase = match kind {
            OperationKind::Switchover | OperationKind::Hibernate => OperationPhase::Checkpoint,
            OperationKind::Failover => OperationPhase::Transfer,
            OperationKind::Restart if from == Some(to) => OperationPhase::Checkpoint,
            // Nobody waits for a standby.
            OperationKind::Restart => OperationPhase::Stop,
            OperationKind::Reinit => OperationPhase::Copy,
            OperationKind::Wake => OperationPhase::Start,
        };
        self.operation = Some(Operation {
            id: self.operations,
            kind,
            from: from.cloned(),
            to: to.clone(),
            phase,
            request_id: request_id.to_owned(),
            because,
            accepts_loss,
        });
        let id = self.operations;
        Ok(Some(match kind {
            OperationKind::Switchover => format!("switchover {id} to {to} begins"),
            OperationKind::Failover => format!("failover by command {id} to {to} begins"),
            OperationKind::Restart => format!("restart {id} of {to} begins"),
            OperationKind::Reinit => format!("reinit {id} of {to} begins: its data is copied anew"),
            OperationKind::Hibernate => format!("hibernation {id} begins"),
            OperationKind::Wake => format!("wake {id} begins"),
        }))
    }

    pub(super) fn advance(&mut self, id: u64, to: OperationPhase) -> Result<Option<String>, String> {
        let Some(operation) = self.operation.as_mut().filter(|o| o.id == id) else {
            return Err(format!("operation {id} is over"));
        };
        // The lease may be given up as soon as a transfer is committed: there is no way back from it.
        if to <= operation.phase || operation.phase == OperationPhase::Transfer {
            return Err(format!("operation {id} is in {:?}", operation.phase));
        }
        operation.phase = to;
        Ok(None)
    }

    pub(super) fn end(&mut self, id: u64, succeeded: bool, reason: &str) -> Result<Option<String>, String> {
        let Some(operation) = self.operation.take_if(|o| o.id == id) else {
            return Err(format!("operation {id} is over"));
        };
        self.give_up_hibernation();
        let how = if succeeded { "succeeded" } else { "failed" };
        let what = format!("operation {id} {how}: {reason}");
        if succeeded {
            self.count_move(operation.because);
        }
        self.last_operation = Some(FinishedOperation { operation, succeeded, reason: reason.to_owned() });
        Ok(Some(what))
    }
}

/// `: PostgreSQL let nobody in`, or nothing when nobody said why.
fn told(cause: EndCause) -> String {
    if cause == EndCause::Unknown { String::new() } else { format!(": {cause}") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        domain::{ClusterId, Generation, NodeId, Profile, Timings, TimingsId},
        state::{Member, RuleId},
    };

    fn id(name: &str) -> MemberId {
        name.parse().unwrap()
    }

    fn at(timeline: u32, lsn: u64) -> WalPosition {
        WalPosition { timeline: TimelineId(timeline), lsn: Lsn(lsn) }
    }

    fn run(state: &mut ClusterState, kind: Kind) -> Applied {
        let command =
            Command { request_id: "r".into(), expected: state.epoch, because: RuleId(1), kind, evidence: None };
        state.apply(&command)
    }

    fn founded() -> ClusterState {
        let mut state = ClusterState::default();
        let member = |n: u64| Member {
            node: NodeId(n),
            manager: format!("h{n}:7400"),
            postgres: format!("h{n}:5432"),
            agent: format!("h{n}:7401"),
            learner: false,
        };
        let members = vec![(id("a"), member(1)), (id("b"), member(2)), (id("c"), member(3))];
        let genesis = Kind::Genesis {
            cluster_id: ClusterId("x".into()),
            generation: Generation(1),
            name: "test".into(),
            members,
            initializer: id("a"),
        };
        assert_eq!(run(&mut state, genesis), Applied::Changed);
        assert_eq!(run(&mut state, Kind::RecordSystem { system_identifier: 7, history: None }), Applied::Changed);
        state
    }

    fn opened() -> ClusterState {
        let mut state = founded();
        for kind in [
            Kind::fence("first".into()),
            Kind::Grant { member: id("a"), floor: at(1, 50), sync: None },
            Kind::PromotionComplete {
                member: id("a"),
                timeline: TimelineId(2),
                switch: at(1, 60),
                first_record: Some(5),
            },
            Kind::Open { member: id("a") },
        ] {
            assert_eq!(run(&mut state, kind), Applied::Changed);
        }
        state
    }

    fn is_stale(applied: &Applied) -> bool {
        matches!(applied, Applied::Stale { .. })
    }

    #[test]
    fn a_cluster_is_founded_once() {
        let mut state = founded();
        let again = Kind::Genesis {
            cluster_id: ClusterId("y".into()),
            generation: Generation(1),
            name: "other".into(),
            members: vec![],
            initializer: id("b"),
        };
        assert!(is_stale(&run(&mut state, again)));
        assert!(is_stale(&run(&mut state, Kind::RecordSystem { system_identifier: 8, history: None })));
        assert_eq!(state.system_identifier, Some(7));
    }

    #[test]
    fn a_command_of_an_old_epoch_changes_nothing() {
        let mut state = opened();
        let before = state.clone();
        let late = Command {
            request_id: "r".into(),
            expected: Epoch(0),
            because: RuleId(1),
            kind: Kind::fence("late".into()),
            evidence: None,
        };
        assert!(is_stale(&state.apply(&late)));
        assert_eq!(state, before);
    }

    #[test]
    fn no_grant_without_a_fence() {
        let mut state = opened();
        assert!(is_stale(&run(&mut state, Kind::Grant { member: id("b"), floor: at(2, 70), sync: None })));
        assert_eq!(state.holder(), Some((Epoch(1), &id("a"))));
    }

    #[test]
    fn each_grant_reserves_a_timeline_of_its_own_even_when_nothing_came_of_the_last() {
        let mut state = opened();
        run(&mut state, Kind::fence("a is lost".into()));
        run(&mut state, Kind::Grant { member: id("b"), floor: at(2, 70), sync: None });
        run(&mut state, Kind::fence("b is lost too".into()));
        run(&mut state, Kind::Grant { member: id("c"), floor: at(2, 70), sync: None });
        let Lock::Granted { timeline, epoch, .. } = state.lock else { panic!() };
        assert_eq!((timeline, epoch), (TimelineId(4), Epoch(3)));
    }

    #[test]
    fn a_promotion_on_another_timeline_than_the_granted_one_is_stale() {
        let mut state = opened();
        run(&mut state, Kind::fence("x".into()));
        run(&mut state, Kind::Grant { member: id("b"), floor: at(2, 70), sync: None });
        let wrong =
            Kind::PromotionComplete { member: id("b"), timeline: TimelineId(2), switch: at(2, 71), first_record: None };
        assert!(is_stale(&run(&mut state, wrong)));
    }

    #[test]
    fn a_promotion_nobody_was_told_of_is_recorded_while_nobody_else_is_granted() {
        let mut state = opened();
        run(&mut state, Kind::fence("a is lost".into()));
        run(&mut state, Kind::Grant { member: id("b"), floor: at(2, 70), sync: None });
        run(&mut state, Kind::fence("b is lost".into()));
        let late = |member: &str, timeline: u32| Kind::PromotionComplete {
            member: id(member),
            timeline: TimelineId(timeline),
            switch: at(2, 70),
            first_record: Some(6),
        };
        assert!(is_stale(&run(&mut state, late("c", 3))), "not the holder");
        assert!(is_stale(&run(&mut state, late("b", 2))), "not its timeline");
        assert_eq!(run(&mut state, late("b", 3)), Applied::Changed);
        assert!(is_stale(&run(&mut state, late("b", 3))), "known already");
        let history = state.history_of(TimelineId(3));
        assert_eq!(history.switches.len(), 2);
        assert_eq!(history.first_records, [(TimelineId(2), 5), (TimelineId(3), 6)].into());
        assert!(matches!(state.lock, Lock::Fenced { .. }));
    }

    #[test]
    fn only_the_holder_releases_and_the_fence_keeps_its_word() {
        let mut state = opened();
        assert!(is_stale(&run(
            &mut state,
            Kind::Release { member: id("b"), end: at(2, 9), clean: true, cause: EndCause::Unknown }
        )));
        run(&mut state, Kind::Release { member: id("a"), end: at(2, 90), clean: true, cause: EndCause::Crash });
        run(&mut state, Kind::fence("released".into()));
        let Lock::Fenced { released: Some(release), .. } = &state.lock else { panic!() };
        assert_eq!((release.member.clone(), release.end, release.clean), (id("a"), at(2, 90), true));
    }

    #[test]
    fn a_holder_whose_epoch_was_ended_may_still_say_that_it_is_over() {
        let mut state = opened();
        run(&mut state, Kind::fence("by command".into()));
        let said =
            |who: &str| Kind::Release { member: id(who), end: at(2, 90), clean: false, cause: EndCause::Unknown };
        assert!(is_stale(&run(&mut state, said("b"))), "it held nothing");
        assert_eq!(run(&mut state, said("a")), Applied::Changed);
        let Lock::Fenced { epoch, released: Some(release), .. } = &state.lock else { panic!() };
        assert_eq!((*epoch, release.epoch, release.end), (Epoch(2), Epoch(1), at(2, 90)));
        assert!(is_stale(&run(&mut state, said("a"))), "once is enough");
    }

    #[test]
    fn phases_of_an_operation_only_go_forward() {
        let mut state = opened();
        let begin = Kind::BeginOperation {
            kind: OperationKind::Switchover,
            from: Some(id("a")),
            to: id("b"),
            accepts_loss: false,
        };
        run(&mut state, begin);
        assert!(state.open_primary().is_some());
        run(&mut state, Kind::AdvanceOperation { id: 1, phase: OperationPhase::Stop });
        assert!(state.open_primary().is_none());
        assert!(is_stale(&run(&mut state, Kind::AdvanceOperation { id: 1, phase: OperationPhase::Checkpoint })));
        run(&mut state, Kind::EndOperation { id: 1, succeeded: false, reason: "rolled back".into() });
        assert!(state.open_primary().is_some());
    }

    #[test]
    fn a_request_begins_one_operation_however_often_it_is_heard() {
        let mut state = opened();
        let kind = Kind::BeginOperation {
            kind: OperationKind::Switchover,
            from: Some(id("a")),
            to: id("b"),
            accepts_loss: false,
        };
        let ask = |state: &mut ClusterState, request_id: &str| {
            let (request_id, expected) = (request_id.to_owned(), state.epoch);
            state.apply(&Command { request_id, expected, because: RuleId(1), kind: kind.clone(), evidence: None })
        };
        assert_eq!(ask(&mut state, "first"), Applied::Changed);
        assert!(is_stale(&ask(&mut state, "first")));
        assert!(is_stale(&ask(&mut state, "second")), "one at a time");
        run(&mut state, Kind::EndOperation { id: 1, succeeded: false, reason: "rolled back".into() });
        assert!(is_stale(&ask(&mut state, "first")), "it is over, and was this one");
        assert_eq!(state.operation_of("first").map(|o| o.id), Some(1));
        assert_eq!(ask(&mut state, "second"), Applied::Changed);
        assert_eq!((state.operation_of("second").map(|o| o.id), state.operation_of("third")), (Some(2), None));
    }

    #[test]
    fn a_transfer_is_not_rolled_back_by_a_command_that_was_decided_before_it() {
        let mut state = opened();
        run(
            &mut state,
            Kind::BeginOperation {
                kind: OperationKind::Switchover,
                from: Some(id("a")),
                to: id("b"),
                accepts_loss: false,
            },
        );
        run(&mut state, Kind::AdvanceOperation { id: 1, phase: OperationPhase::Transfer });
        assert!(is_stale(&run(&mut state, Kind::AdvanceOperation { id: 1, phase: OperationPhase::RollBack })));
    }

    fn of(profile: Profile) -> Kind {
        Kind::SetTimings { profile, timings: Timings::of(profile).into(), decided: None }
    }

    #[test]
    fn older_timings_stay_in_use_until_they_are_settled() {
        let mut state = opened();
        assert!(state.timings.files() && state.timings.in_force().is_none());
        run(&mut state, of(Profile::Slow));
        run(&mut state, of(Profile::Fast));
        assert!(is_stale(&run(&mut state, of(Profile::Fast))), "they are in force");
        let (slow, fast) = (Timings::of(Profile::Slow), Timings::of(Profile::Fast));
        let file = Timings::of(Profile::Normal).grant;
        assert_eq!(state.timings.in_force().map(|c| (c.id, c.timings)), Some((TimingsId(2), fast)));
        assert_eq!(state.timings.longest_grant(file), slow.grant);
        assert_eq!(state.timings.grant_of(TimingsId(1), file), Some(slow.grant));
        assert_eq!(state.timings.grant_of(TimingsId::FILES, file), Some(file));

        assert!(is_stale(&run(&mut state, Kind::SettleTimings { id: TimingsId(1) })), "not the newest");
        assert_eq!(run(&mut state, Kind::SettleTimings { id: TimingsId(2) }), Applied::Changed);
        assert!(is_stale(&run(&mut state, Kind::SettleTimings { id: TimingsId(2) })), "once");
        assert_eq!(state.timings.longest_grant(file), fast.grant);
        assert_eq!(state.timings.grant_of(TimingsId(1), file), None);
        assert_eq!(state.timings.grant_of(TimingsId::FILES, file), None);
    }

    #[test]
    fn a_grant_begins_under_the_newest_timings_alone() {
        let mut state = opened();
        run(&mut state, of(Profile::Slow));
        run(&mut state, of(Profile::Fast));
        run(&mut state, Kind::fence("x".into()));
        assert_eq!(state.timings.committed.len(), 2, "the old holder may still be there");
        run(&mut state, Kind::Grant { member: id("b"), floor: at(2, 70), sync: None });
        assert!(state.timings.is_settled());
        run(&mut state, of(Profile::Normal));
        assert_eq!(state.timings.newest(), TimingsId(3), "numbers are not used again");
    }

    #[test]
    fn changes_of_timings_that_nobody_follows_are_bounded() {
        let mut state = opened();
        let profiles = [Profile::Fast, Profile::Normal];
        let applied = (0..20).filter(|n| run(&mut state, of(profiles[n % 2])) == Applied::Changed).count();
        assert_eq!(applied, crate::state::timings::TIMINGS_KEPT);
    }

    #[test]
    fn the_list_of_members_has_a_version_that_the_grant_remembers() {
        let mut state = founded();
        assert_eq!((state.roster.version, state.roster.at_grant), (1, 0));
        run(&mut state, Kind::fence("first".into()));
        run(&mut state, Kind::Grant { member: id("a"), floor: at(1, 50), sync: None });
        assert_eq!((state.roster.version, state.roster.at_grant), (1, 1));
        assert_eq!(state.briefing().members.agents[&id("b")], "h2:7401");
    }

    fn replace(state: &mut ClusterState, who: &str, old: u64, node: u64) -> Applied {
        let reason = "its log is gone".to_owned();
        run(state, Kind::ReplaceNode { member: id(who), old: NodeId(old), node: NodeId(node), reason })
    }

    #[test]
    fn a_raft_id_is_never_given_twice() {
        let mut state = opened();
        assert_eq!(state.next_node(), NodeId(4));
        assert_eq!(replace(&mut state, "b", 2, 4), Applied::Changed);
        assert!(is_stale(&replace(&mut state, "b", 2, 5)), "asked with the node before the present one");
        assert!(is_stale(&replace(&mut state, "c", 3, 4)), "given already");
        assert!(is_stale(&replace(&mut state, "c", 3, 7)), "a gap would be a number nobody accounts for");
        assert!(is_stale(&replace(&mut state, "x", 0, 5)));
        assert_eq!(run(&mut state, Kind::RemoveMember { member: id("b") }), Applied::Changed);
        assert_eq!(state.next_node(), NodeId(5), "node 4 is gone and not forgotten");
        assert_eq!(replace(&mut state, "c", 3, 5), Applied::Changed);
    }

    #[test]
    fn a_member_is_added_without_a_node_and_removed_unless_it_holds_the_lock() {
        let mut state = opened();
        let add = |who: &str, host: &str| Kind::AddMember {
            member: id(who),
            manager: format!("{host}:7400"),
            postgres: format!("{host}:5432"),
            learner: false,
        };
        assert!(is_stale(&run(&mut state, add("a", "h9"))));
        assert!(is_stale(&run(&mut state, add("d", "h2"))), "b is there");
        assert_eq!(run(&mut state, add("d", "h4")), Applied::Changed);
        assert_eq!((state.members[&id("d")].node, state.next_node()), (NodeId(0), NodeId(4)));
        assert_eq!(replace(&mut state, "d", 0, 4), Applied::Changed);
        assert!(is_stale(&run(&mut state, Kind::RemoveMember { member: id("a") })), "it is primary");
        run(
            &mut state,
            Kind::BeginOperation {
                kind: OperationKind::Failover,
                from: Some(id("a")),
                to: id("b"),
                accepts_loss: false,
            },
        );
        assert!(is_stale(&run(&mut state, Kind::RemoveMember { member: id("b") })), "it is about to be primary");
        assert_eq!(run(&mut state, Kind::RemoveMember { member: id("c") }), Applied::Changed);
        assert_eq!(state.members.keys().map(MemberId::as_str).collect::<Vec<_>>(), ["a", "b", "d"]);
    }

    #[test]
    fn incidents_are_bounded() {
        let mut state = opened();
        for _ in 0..100 {
            run(&mut state, Kind::fence("x".into()));
            run(&mut state, Kind::Grant { member: id("b"), floor: at(2, 70), sync: None });
        }
        assert_eq!(state.incidents.len(), INCIDENTS_KEPT);
    }
}
