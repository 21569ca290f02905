//! A primary whose disk is full moves to a standby that has room, before it has to end.
//!
//! Only to a member with more room than the first threshold, and away only below the second, or when the reserve had to
//! be used: so nothing goes to and fro, unless there is too little on every host; moves count as failovers after crashes do,
//! and end like them. While slots are given up for room on the volume of WAL it waits: that may be enough. The step is a switchover like any other and loses nothing.

use std::time::Duration;

use super::{Hold, Situation, Verdict, candidates::Wishes, pause, reinit, report::Unfit, switchover};
use crate::{
    domain::{MemberId, PostgresState, RoomView},
    state::{Kind, OperationKind, OperationPhase},
};

/// A switchover from here that failed is not tried again before this: each one holds up writes.
const PAUSE: Duration = Duration::from_secs(60);

/// Rule 270.
pub fn wal_is_short(s: &Situation<'_>) -> Option<Verdict> {
    if let Some(hold) = slots_give_way(s) {
        return Some(hold);
    }
    move_away(s, |room| room.of_wal().is_short())
}

/// Rule 272. Statements fail, and nothing ends yet.
pub fn data_is_short(s: &Situation<'_>) -> Option<Verdict> {
    move_away(s, |room| room.data.is_short() && !room.of_wal().is_short())
}

/// The agent says for how long, so that it ends also when nothing comes of it.
fn slots_give_way(s: &Situation<'_>) -> Option<Verdict> {
    let (_, primary) = s.state.open_primary()?;
    let agent = s.agent(primary).filter(|a| a.kept_wal.gives_way && a.state == PostgresState::Primary)?;
    let volumes = agent.room.filter(|room| room.of_wal().is_short())?.complaints();
    let free = !s.state.stays_put() && s.state.brief_operation().is_none();
    free.then(|| Verdict::Hold(Hold::SlotsGiveWay { member: primary.clone(), volumes }))
}

fn move_away(s: &Situation<'_>, is_short: fn(&RoomView) -> bool) -> Option<Verdict> {
    let (_, primary) = s.state.open_primary()?;
    let agent =
        s.agent(primary).filter(|a| a.state == PostgresState::Primary && s.state.brief_operation().is_none())?;
    let room = agent.room.filter(is_short)?;
    let hold = |why, remaining| {
        let (member, volumes) = (primary.clone(), room.complaints());
        Some(Verdict::Hold(Hold::NoRoom { member, volumes, why, remaining }))
    };
    // Rule 150 says so.
    if s.state.stays_put() {
        return None;
    }
    let left = pause_left(s, primary);
    if !left.is_zero() {
        return hold(Vec::new(), left);
    }
    let to = match target(s, primary) {
        Ok(to) => to,
        // The copy itself keeps WAL, and its member may be the one that had room.
        Err(_) if room.of_wal().is_short() && s.state.paused.is_none() && copies(s) => return give_way(s),
        Err(why) => return hold(why, Duration::ZERO),
    };
    if let Some(paused) = pause::holds(s, || format!("{primary} is short of room and moves to {to}")) {
        return Some(Verdict::Hold(paused));
    }
    if let Some(first) = give_way(s) {
        return Some(first);
    }
    let from = Some(primary.clone());
    Some(Verdict::Propose(Kind::BeginOperation { kind: OperationKind::Switchover, from, to, accepts_loss: false }))
}

fn copies(s: &Situation<'_>) -> bool {
    s.state.operation.as_ref().is_some_and(|o| o.phase == OperationPhase::Copy)
}

/// A copy by command, which may take hours, ends first.
fn give_way(s: &Situation<'_>) -> Option<Verdict> {
    reinit::give_up(s, "for the primary is short of room").map(Verdict::Propose)
}

/// How long nothing is tried after a switchover from `primary` failed; one that it crashed under has held nothing up. Counted from when this leader saw it end, so for
/// a new leader it only gets longer.
fn pause_left(s: &Situation<'_>, primary: &MemberId) -> Duration {
    let failed = s.state.last_operation.as_ref().filter(|last| {
        let was = &last.operation;
        !last.succeeded && was.kind == OperationKind::Switchover && was.from.as_ref() == Some(primary)
    });
    let failed = failed.filter(|last| last.operation.phase != OperationPhase::Stop);
    failed.map_or(Duration::ZERO, |_| PAUSE.saturating_sub(s.now.since(s.since.operation)))
}

/// Of the members that could take over now, may become primary by themselves and have room, the one that a switchover
/// would go to.
fn target(s: &Situation<'_>, primary: &MemberId) -> Result<MemberId, Vec<(MemberId, Unfit)>> {
    let (mut fit, mut why) = (Vec::new(), Vec::new());
    let wishes = Wishes::of(s);
    for member in s.state.with_postgres().filter(|m| *m != primary) {
        match wishes.forbid(&s.state.settings.of_member(member)).or_else(|| unfit(s, primary, member)) {
            None => fit.push(member),
            Some(unfit) => why.push((member.clone(), unfit)),
        }
    }
    switchover::best(s, &wishes, fit.into_iter(), |_| true).cloned().ok_or(why)
}

fn unfit(s: &Situation<'_>, primary: &MemberId, member: &MemberId) -> Option<Unfit> {
    if let Some(why) = switchover::unfit(s, primary, member) {
        return Some(Unfit::NoTarget { why });
    }
    let room = s.agent(member)?.room;
    (!room.is_some_and(|r| r.is_fine())).then(|| Unfit::NoRoom { volumes: room.map_or(vec![], |r| r.complaints()) })
}

/// How long a switchover away from `member` may wait for a checkpoint before it goes on without; `None`: as long as any.
/// A full disk finishes none, and each second uses up more of the reserve.
pub fn hurry(s: &Situation<'_>, member: &MemberId) -> Option<Duration> {
    let room = s.agent(member)?.room.filter(RoomView::is_short)?;
    Some(if room.of_wal().is_short() { Duration::ZERO } else { Duration::from_secs(3) })
}

/// Whether this member is known to be short of room; among members with the same WAL another is preferred.
pub fn is_short(room: Option<&RoomView>) -> bool {
    room.is_some_and(RoomView::is_short)
}
