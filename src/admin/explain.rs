//! Why the cluster does what it does, and what an operator can do about it.

use crate::{
    domain::MemberId,
    manager::{ManagerHandle, view::SeenMember},
    policy::{Hold, report::Unfit},
    rpc::v1,
};

/// The rules one by one, the holds, and the ways out.
pub(super) fn of(manager: &ManagerHandle) -> v1::ExplainReply {
    let state = manager.state();
    let plan = manager.plan();
    let leads = manager.leadership().am_leader;
    let mut next: Vec<String> = plan.holds.iter().filter_map(way_out).collect();
    next.extend(foreign_data(manager));
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
        holds: unfounded.into_iter().chain(plan.holds.iter().map(ToString::to_string)).collect(),
        next,
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

/// What an operator can do about a hold, `None` when waiting is right.
fn way_out(hold: &Hold) -> Option<String> {
    Some(match hold {
        Hold::WaitingForInitdb { member, .. } => format!("look at the agent's log on {member}: it runs initdb"),
        Hold::LeaseHeld { member, .. } => format!(
            "if {member} is dead for good, wait until its lease has run out; if it lives and should not be primary, \
             `matriarch switchover` or `matriarch failover --candidate …`"
        ),
        Hold::Promoting { member, .. } | Hold::NotOpen { member } => {
            format!("look at the agent's log on {member}; another member follows by itself when the promotion fails")
        }
        Hold::TooFewSeals { .. } => "bring up more managers: a majority must seal the old epoch".to_owned(),
        Hold::Collecting { .. } | Hold::Operation { .. } | Hold::GroupUnsettled { .. } => return None,
        Hold::NoSuccessor { why } if why.iter().any(|(_, unfit)| matches!(unfit, Unfit::ClockOff { .. })) => {
            "repair the clocks (time keeping, virtual machine), then restart manager and agent of that member; \
             or bring another member up"
                .to_owned()
        }
        Hold::NoRoom { member, .. } => format!(
            "free space on {member} or make its volume larger; or give a standby more room than the first threshold \
             (`matriarch config show`), then the primary moves there by itself; or move it now: `matriarch switchover --candidate …`"
        ),
        Hold::TooOld(old) => format!("upgrade the manager of {0}, or `matriarch member remove {0}`", old.member),
        Hold::NewVotersNotReady { why } => {
            let who: Vec<&str> = why.iter().map(|(member, _)| member.as_str()).collect();
            format!("look at the manager's log on {}: it is to vote and can't yet", who.join(", "))
        }
        Hold::NoSuccessor { .. } => "bring one of these members up, or `matriarch failover --candidate …`".to_owned(),
    })
}
