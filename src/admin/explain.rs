//! Why the cluster does what it does, and what an operator can do about it.

use std::time::Duration;

use super::trouble;
use crate::{
    domain::{
        MemberId, PostgresState, Uncovered,
        uncovered::{Imitator, Override, OwnLevel},
    },
    manager::{ManagerHandle, view::SeenMember},
    policy::{
        Hold,
        report::{Unfit, Unsettled},
    },
    rpc::v1,
};

/// The rules one by one, the holds, and the ways out.
pub(super) fn of(manager: &ManagerHandle) -> v1::ExplainReply {
    let state = manager.state();
    let plan = manager.plan();
    let leads = manager.leadership().am_leader;
    let mut next: Vec<String> = plan.holds.iter().flat_map(ways_out).collect();
    let trouble = if leads { manager.look(trouble::of) } else { None };
    next.extend(trouble.iter().flat_map(|t| t.ways.clone()));
    next.extend(foreign_data(manager));
    next.extend(cures(manager));
    let primary = state.holder().and_then(|(_, m)| manager.seen().remove(m)).and_then(|seen| seen.agent);
    next.extend(primary.iter().flat_map(|agent| uncovered(&agent.uncovered)));
    next.extend(manager.seen().iter().flat_map(|(member, seen)| kept_wal(member, seen)));
    let unfounded = manager.waits_to_be_founded();
    if manager.has_lost_its_log() {
        next.insert(0, "this manager has lost its Raft log: it is taken in as a new node by itself when a majority of the others has a leader".into());
    } else if !unfounded.is_empty() {
        let what =
            "the cluster is not founded: bring every member up, each with empty directories; it then happens by itself";
        next.insert(0, what.to_owned());
    } else if !leads {
        next.insert(
            0,
            "no Raft leader answers: bring a majority of managers up, or `matriarch status` on each of them".into(),
        );
    } else if next.is_empty() {
        next.push("nothing: the cluster is where it should be, or on its way".to_owned());
    }
    next.extend(manager.group_warnings());
    next.dedup();
    v1::ExplainReply {
        considered: manager.considered().into_iter().map(|(id, name, says)| format!("{id} {name}: {says}")).collect(),
        holds: unfounded
            .into_iter()
            .chain(plan.holds.iter().map(ToString::to_string))
            .chain(trouble.map(|t| t.what))
            .collect(),
        next,
        banners: super::status::banners(&state),
        answered_by: manager.me().to_string(),
        incidents: state
            .incidents
            .iter()
            .rev()
            .take(20)
            .map(|i| format!("revision {} epoch {} (rule {}): {}", i.revision, i.epoch, i.rule, i.what))
            .collect(),
    }
}

/// A database of another cluster is left alone; only an operator can say what is to become of it.
fn foreign_data(manager: &ManagerHandle) -> Vec<String> {
    let ours = manager.state().system_identifier;
    let theirs = |(member, seen): (&MemberId, &SeenMember)| {
        let found = seen.agent.as_ref()?.system_identifier?;
        let ours = ours.filter(|ours| *ours != found)?;
        Some(format!(
            "the data directory of {member} has system identifier {found}, this cluster's is {ours}: it is left alone; \
             set postgresql.data_dir of {member} to the right or an empty place"
        ))
    };
    manager.seen().iter().filter_map(theirs).collect()
}

/// Members that can't get in line with what they have.
fn cures(manager: &ManagerHandle) -> Vec<String> {
    let most = manager.state().settings.settings().max_concurrent_clones;
    let of = |(member, seen): (&MemberId, &SeenMember)| Some(super::cure::ways(member, seen.agent.as_ref()?, most));
    manager.seen().iter().filter_map(of).flatten().collect()
}

/// What keeps WAL, and how it comes to keep none.
fn kept_wal(member: &MemberId, seen: &SeenMember) -> Vec<String> {
    let told = seen.agent.iter().flat_map(|agent| agent.kept_wal.complaints());
    told.map(|what| {
        let way = match what.starts_with("slot") {
            true => {
                "bring back who is to read from it; or, if nobody is, drop it there with pg_drop_replication_slot, or let it \
                 hold less (`slot_wal_max`)"
            }
            false => "look at PostgreSQL's log there; WAL is kept until it is archived, and no setting limits that",
        };
        format!("on {member}: {what}: {way}")
    })
    .chain(seen.agent.iter().flat_map(|agent| agent.kept_wal.problems.iter().map(|what| format!("on {member}: {what}"))))
    .collect()
}

/// How commits that the rule does not cover come to be covered.
pub(super) fn uncovered(of: &Uncovered) -> Vec<String> {
    let quoted = |name: &str| format!("\"{}\"", name.replace('"', "\"\""));
    let level = |level: &OwnLevel| {
        let (role, database) = (quoted(&level.role), quoted(&level.database));
        let alter = match (level.role.as_str(), level.database.as_str()) {
            ("", "") => "ROLE ALL".to_owned(),
            (_, "") => format!("ROLE {role}"),
            ("", _) => format!("DATABASE {database}"),
            _ => format!("ROLE {role} IN DATABASE {database}"),
        };
        let sessions = level.sessions;
        format!(
            "commits of {level}, {sessions} sessions now, are not waited for, and may be lost with the primary: if that is \
             not meant, `ALTER {alter} RESET synchronous_commit`, and let them connect anew"
        )
    };
    let imitator = |i: &Imitator| format!("{i}: find out who that is, and end it or give it another application_name");
    let of_system = |o: &Override| {
        format!(
            "{o}; if it stays, look at the agent's log. The level of the cluster is set with `matriarch config set \
             synchronous_commit=…`, that of a role with `ALTER ROLE … SET`"
        )
    };
    let levels = of.levels.iter().map(level);
    levels.chain(of.imitators.iter().map(imitator)).chain(of.overrides.iter().map(of_system)).collect()
}

/// What an operator can do about a hold, or until when it is waited.
pub(super) fn ways_out(hold: &Hold) -> Vec<String> {
    let one = match hold {
        Hold::WaitingForInitdb { member, .. } => format!(
            "look at the agent's log on {member}, and at initial.log beside it: it makes the first data directory as [bootstrap] says"
        ),
        Hold::LeaseHeld { member, .. } => format!(
            "if {member} is dead for good, wait until its lease has run out; if it lives and should not be primary, \
             `matriarch switchover` or `matriarch failover --candidate …`"
        ),
        Hold::AgentSlow { member, .. } => format!(
            "look at the load of {member} and at its agent's log; an agent that hangs loses its lease by itself, and another \
             member follows; to go ahead: restart the agent of {member} (its PostgreSQL goes on), or \
             `matriarch failover --candidate …`"
        ),
        Hold::Promoting { member, .. } | Hold::NotOpen { member } => {
            format!("look at the agent's log on {member}; another member follows by itself when the promotion fails")
        }
        Hold::TooFewSeals { .. } => {
            "bring up more managers: a majority must seal the old epoch; if a majority is lost for good, \
             `matriarch recover`"
                .to_owned()
        }
        Hold::StaysPut { .. } => {
            "find what ends PostgreSQL (its log on the hosts that were primary; perhaps one query), or make room; `matriarch acknowledge` lets it fail \
             over again, `matriarch failover --candidate …` moves it now"
                .to_owned()
        }
        Hold::Hibernated { .. } => "`matriarch start --all` wakes the cluster".to_owned(),
        Hold::Paused { .. } => {
            "`matriarch resume` lets the cluster decide again; or choose: `matriarch failover --candidate …`".to_owned()
        }
        Hold::Reader { remaining, .. } if !remaining.is_zero() => wait(*remaining, "it is decided anew then"),
        Hold::Reader { .. } => {
            "bring a standby up; or let the primary have it meanwhile: `matriarch config set vip_standby_fallback=primary`".to_owned()
        }
        Hold::NotCascaded { member, source, .. } => format!(
            "bring {source} up, or wait until it has streamed for a while; or let {member} stream from the primary: \
             `matriarch config set --unset replicatefrom --member {member}`"
        ),
        Hold::Collecting { remaining, .. } => wait(*remaining, "it goes on without them then"),
        Hold::Agenda { id, .. } => format!("wait, or `matriarch operations cancel {id}`"),
        Hold::Operation { remaining, .. } => wait(*remaining, "the operation ends or is rolled back then"),
        Hold::GroupUnsettled { unsettled: Unsettled::NotRenewed { holder, .. }, .. } => {
            format!("nothing, the next renewal settles it; if it stays, look at the agent's log on {holder}")
        }
        Hold::GroupUnsettled { unsettled: Unsettled::NotSealed { .. }, .. } => {
            "bring up more managers: a majority must seal the epoch under the present membership".to_owned()
        }
        Hold::SlotsGiveWay { member, .. } => {
            format!(
                "{member} gives up slots, and the primary moves if that is not enough; `matriarch config set slots_yield=…` says \
                 whose, and `matriarch switchover` doesn't wait for it"
            )
        }
        Hold::NoRoom { member, remaining, .. } => {
            let make_room = format!(
                "make room on {member}; or give a standby more room than the first threshold (`matriarch config show`), then \
                 the primary moves there by itself; or `matriarch switchover --candidate …`"
            );
            let again = (!remaining.is_zero()).then(|| wait(*remaining, "a switchover is tried again then"));
            return again.into_iter().chain([make_room]).collect();
        }
        Hold::Archive { member, .. } => format!(
            "put archive_command right (`matriarch config show`, and what it needs on {member}); WAL that waits stays on the disk until \
             then"
        ),
        Hold::TooOld(old) => format!("upgrade the manager of {0}, or `matriarch member remove {0}`", old.member),
        Hold::NewVotersNotReady { why } => {
            let who: Vec<&str> = why.iter().map(|(member, _)| member.as_str()).collect();
            format!("look at the manager's log on {}: it is to vote and can't yet", who.join(", "))
        }
        Hold::Unconfirmed { last, heard, needed, .. } => {
            let last = last.as_ref().map_or("the last primary", MemberId::as_str);
            let is_last = |member: &&MemberId| member.as_str() == last;
            let who = heard.iter().find(|m| !is_last(m)).or_else(|| heard.first()).map_or("NAME", MemberId::as_str);
            let bring = match (heard.iter().any(|m| is_last(&m)), needed) {
                (false, None) => format!("bring {last} up"),
                (false, Some(_)) => format!("bring {last} up, or more of those who confirmed"),
                (true, None) => format!("bring {last} up with the data directory that it had"),
                (true, Some(_)) => "bring more of those who confirmed up".to_owned(),
            };
            format!(
                "{bring}: the next primary is granted then; or accept that acknowledged commits are lost: \
                 `matriarch failover --candidate {who} --allow-data-loss`"
            )
        }
        Hold::KeptOut { .. } => {
            "bring those up who are to confirm; or let clients in without them: `matriarch config set sync_strict=false`".to_owned()
        }
        Hold::TooFewSync { strict: true, .. } => {
            "bring a standby up that may confirm (`sync`, `sync_priority`); or let commits go on: `matriarch config set \
             sync_strict=false`"
                .to_owned()
        }
        Hold::TooFewSync { strict: false, .. } => {
            "bring a standby up that may confirm (`sync`, `sync_priority`): it is taken in by itself".to_owned()
        }
        Hold::TakenOver { member, .. } => format!(
            "`matriarch restart {member}`, or `matriarch switchover`: from then on it runs with Matriarch's configuration, under a guard"
        ),
        Hold::SyncUnsettled { .. } => {
            "bring those up who are to confirm; or `matriarch config set replication_mode=async` until then".to_owned()
        }
        Hold::LagUnknown { would_be, .. } => {
            let who = would_be.first().map_or("…", MemberId::as_str);
            format!(
                "bring the last primary's host up, it knows; or accept the loss: \
                 `matriarch failover --candidate {who} --allow-data-loss`; or \
                 `matriarch config set maximum_lag_on_failover=off`"
            )
        }
        Hold::NoSuccessor { why } => {
            let mut ways: Vec<String> = why.iter().map(|(member, unfit)| way_out(member, unfit)).collect();
            ways.sort();
            ways.dedup();
            return ways;
        }
    };
    vec![one]
}

fn wait(remaining: Duration, then: &str) -> String {
    format!("wait {:.1} s: {then}", remaining.as_secs_f64())
}

/// What makes this member fit, or takes it as it is.
fn way_out(member: &MemberId, unfit: &Unfit) -> String {
    let take = |loses: &str| format!("`matriarch failover --candidate {member}{loses}`");
    match unfit {
        Unfit::NotSealed => format!("start the manager of {member}"),
        Unfit::Maintenance(asked) => asked.ended_by(member),
        Unfit::AgentSilent => format!("start the agent of {member}"),
        Unfit::OtherSystem { found: Some(_) } => {
            format!("set postgresql.data_dir of {member} to the right or an empty place, and restart its agent")
        }
        Unfit::OtherSystem { found: None } | Unfit::State(PostgresState::NoData) => {
            format!("bring a member with data up: {member} is cloned when there is a primary")
        }
        Unfit::State(PostgresState::Failed) | Unfit::FailedBefore { .. } => {
            format!("look at the agent's log on {member}, repair it and restart its agent")
        }
        Unfit::State(_) | Unfit::WalEndUnknown => {
            format!(
                "wait for PostgreSQL on {member} to be a standby or stopped; if it stays so, look at the agent's log there"
            )
        }
        Unfit::HalfRewound | Unfit::Diverged { .. } => {
            format!(
                "bring another member up: {member} is rewound or cloned when there is a primary; if none is left, \
                 stop the other managers and `matriarch recover` on the host whose data is to be kept"
            )
        }
        Unfit::ClockOff { .. } => format!(
            "repair the clocks of {member} (time keeping, virtual machine), then restart its manager and agent; \
             or bring another member up"
        ),
        Unfit::SlowFence { .. } => {
            format!("restart the agent of {member}, or put a slower profile in force: `matriarch profile NAME`")
        }
        Unfit::NoRoom { .. } => format!("`matriarch status` says how much room {member} has; make more"),
        Unfit::Storage { .. } => {
            format!("repair the disk of {member}; it counts again once a write there ends")
        }
        Unfit::NoTarget { .. } => format!("look at the agent's log on {member}, if it should stream"),
        Unfit::Promised { left } => wait(*left, &format!("the promise of {member} ends then")),
        Unfit::NotAsked { .. } => {
            format!("bring the last primary's host up, it says whether it knew {member}; or another member")
        }
        Unfit::NeverStreamed | Unfit::TooFar { .. } | Unfit::TooOld { .. } | Unfit::AgeUnknown { .. } => {
            format!("bring the last primary's host up; or accept the loss: {}", take(" --allow-data-loss"))
        }
        Unfit::NoStream => {
            format!("`matriarch config set nostream=false --member {member}`, or {}", take(" --allow-data-loss"))
        }
        Unfit::Delayed { .. } => {
            format!("`matriarch config set recovery_min_apply_delay=0 --member {member}`, or {}", take(""))
        }
        Unfit::NoFailover { failover: false, .. } => {
            format!("`matriarch config set failover=true --member {member}`, or {}", take(" --allow-data-loss"))
        }
        Unfit::NoFailover { .. } => {
            format!("`matriarch config set priority=100 --member {member}`, or {}", take(""))
        }
        Unfit::OtherSite { .. } => format!("`matriarch config set site_failover=any`, or {}", take("")),
        Unfit::LacksCommits { .. } => {
            format!(
                "bring up whoever has them, or allow who does to be primary; or lose them: {}",
                take(" --allow-data-loss")
            )
        }
        Unfit::Behind { .. } => {
            format!("the switchover ends by its deadline; to lose what {member} lacks: {}", take(" --allow-data-loss"))
        }
    }
}

#[cfg(test)]
#[path = "explain_test.rs"]
mod tests;
