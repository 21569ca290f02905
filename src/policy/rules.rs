//! The ordered table of rules. The first that matches wins; its number goes
//! into the command it causes and so into the log.

use super::{
    Hold, Plan, Situation, Verdict, agenda, archive, by_hand, cascade, failover, flaps, format, genesis, hibernate,
    leadership, membership, outvoted, promotion, reader, reinit, restart, restart_order, rolling, room, stonith,
    switchover, sync, timings,
};
use crate::state::{Command, RuleId};

/// A rule: number, condition in words, function.
pub struct Rule {
    /// Its number.
    pub id: u32,
    /// When it matches.
    pub name: &'static str,
    /// What it says of a situation; `None` when it does not match.
    pub decide: fn(&Situation<'_>) -> Option<Verdict>,
}

/// The rules in order.
pub const RULES: &[Rule] = &[
    Rule { id: 10, name: "Raft runs and no cluster is founded: found it", decide: genesis::found },
    Rule { id: 20, name: "initdb is done: record the system identifier", decide: genesis::record_system },
    Rule { id: 30, name: "nobody ever held the lock: begin the first epoch", decide: genesis::first_epoch },
    Rule { id: 110, name: "the holder says its process tree is empty: release", decide: failover::released_by_holder },
    Rule { id: 120, name: "the promoted member is on its timeline: record it", decide: promotion::complete },
    Rule { id: 130, name: "the new primary accepts writes: open it", decide: promotion::open },
    Rule {
        id: 132,
        name: "the primary crashed where commits are confirmed: keep clients out until what it has is",
        decide: sync::keep_out,
    },
    Rule { id: 134, name: "what the primary has after its crash is confirmed: let clients in", decide: sync::let_in },
    Rule {
        id: 140,
        name: "the holder counts by the newest timings, older promises are over: settle",
        decide: timings::settle,
    },
    Rule {
        id: 150,
        name: "failovers followed crashes and the primary has lasted: they count no more",
        decide: flaps::calm,
    },
    Rule { id: 210, name: "the target of the operation is primary: it succeeded", decide: switchover::succeeded },
    Rule { id: 220, name: "the operation can't succeed any more: end it", decide: switchover::failed },
    Rule { id: 230, name: "switchover: the primary has flushed, hold new writes", decide: switchover::hold_writes },
    Rule { id: 240, name: "switchover: writes are held, stop the primary", decide: switchover::stop },
    Rule { id: 250, name: "switchover: stopped and caught up, transfer", decide: switchover::transfer },
    Rule {
        id: 260,
        name: "switchover: the stop took too long or its target is gone, roll back",
        decide: switchover::roll_back,
    },
    Rule { id: 262, name: "restart: it runs again, or can't any more: end it", decide: restart::over },
    Rule { id: 264, name: "restart: flushed, writes held or stopped: the next step", decide: restart::go_on },
    Rule { id: 266, name: "reinit: it streams again, or can't any more: end it", decide: reinit::over },
    Rule {
        id: 267,
        name: "hibernation, or its end: all is done, or can't be any more: end it",
        decide: hibernate::over,
    },
    Rule { id: 268, name: "reinit: the copy is in place, it is to stream", decide: reinit::go_on },
    Rule {
        id: 269,
        name: "hibernation: flushed, writes held, stopped with its WAL received: the next step",
        decide: hibernate::go_on,
    },
    Rule {
        id: 270,
        name: "the primary is short of room for WAL, a standby has room: switch over",
        decide: room::wal_is_short,
    },
    Rule {
        id: 272,
        name: "the primary is short of room for data, a standby has room: switch over",
        decide: room::data_is_short,
    },
    Rule {
        id: 274,
        name: "the primary's archive fails or falls behind: say so before the disk is full",
        decide: archive::falls_behind,
    },
    Rule { id: 310, name: "an operator asked for a failover: end the epoch", decide: failover::by_command },
    Rule { id: 320, name: "the lock was released: end the epoch", decide: failover::after_release },
    Rule { id: 330, name: "a majority reports the lease run out: end the epoch", decide: failover::lease_ran_out },
    Rule {
        id: 332,
        name: "nothing is heard of the holder, its standbys can outvote it: end the epoch",
        decide: outvoted::by_standbys,
    },
    Rule {
        id: 335,
        name: "the fenced holder says its process tree is empty: wait for no promise to it",
        decide: failover::released_while_fenced,
    },
    Rule {
        id: 337,
        name: "an earlier holder says that PostgreSQL or its disk failed: note it",
        decide: failover::explained_late,
    },
    Rule {
        id: 405,
        name: "the last holder had left recovery before its epoch ended: record its timeline",
        decide: promotion::complete_late,
    },
    Rule {
        id: 407,
        name: "all WAL goes on from a promotion by hand: its timeline becomes the cluster's",
        decide: by_hand::adopt_timeline,
    },
    Rule { id: 410, name: "the old epoch is sealed and over: grant to the successor", decide: failover::grant },
    Rule { id: 430, name: "the newest rule of commits is in effect: older ones go", decide: sync::settle },
    Rule { id: 432, name: "other standbys are to confirm commits: the next rule", decide: sync::change },
    Rule { id: 434, name: "the time of something scheduled has come: begin it, or say why not", decide: agenda::due },
    Rule { id: 436, name: "a rolling restart: the next step when all is well, or its end", decide: rolling::go_on },
    Rule {
        id: restart_order::RULE,
        name: "a standby has stopped replaying, for its primary runs with more: restart the standby",
        decide: restart_order::revive,
    },
    Rule {
        id: 440,
        name: "a standby's source fails it, or is not its source any more: it follows the primary",
        decide: cascade::leave,
    },
    Rule { id: 442, name: "the source of a standby does well: it follows that", decide: cascade::join },
    Rule {
        id: 444,
        name: "a standby has followed its source for long: how often it left it counts no more",
        decide: cascade::calm,
    },
    Rule { id: 446, name: "who has the address for standbys is not fit for it: it ends", decide: reader::end },
    Rule {
        id: 448,
        name: "nobody has the address for standbys, or could keep it: the best of them gets it",
        decide: reader::lend,
    },
    Rule { id: 450, name: "the Raft group is joint: only the new voters vote", decide: membership::settle },
    Rule {
        id: 460,
        name: "a member's node is not in the Raft group: it gets the log",
        decide: membership::add_learner,
    },
    Rule { id: 470, name: "voters and members differ: the old and the new have to agree", decide: membership::join },
    Rule { id: 480, name: "a node in the Raft group is nobody's: drop it", decide: membership::drop_node },
    Rule {
        id: 485,
        name: "the leader's host is in maintenance, another voter's isn't: it leads",
        decide: leadership::leave_maintenance,
    },
    Rule {
        id: 490,
        name: "syncs of the log take long here and another voter's don't: it leads",
        decide: leadership::lead_elsewhere,
    },
    Rule { id: 495, name: "every host can apply a later format: note it in the log", decide: format::note },
];

/// What the leader should propose now, a command or a change of the Raft group, and why not more.
///
/// `request` names the proposal; the same situation asked twice under the same
/// name gives the same command.
pub fn decide(situation: &Situation<'_>, request: &str) -> Plan {
    let mut plan = Plan::default();
    for rule in RULES {
        match (rule.decide)(situation) {
            None => {}
            Some(Verdict::Hold(hold)) => plan.holds.push(hold),
            Some(Verdict::Change(step)) => {
                plan.step = Some((RuleId(rule.id), step));
                return plan;
            }
            Some(Verdict::Lead { to, .. }) => {
                plan.lead = Some((RuleId(rule.id), to));
                return plan;
            }
            Some(Verdict::Propose(kind)) => {
                // No rule has to remember that there may be older hosts.
                if let Err(old) = format::gate(situation, kind.format()) {
                    plan.holds.push(Hold::TooOld(old));
                    continue;
                }
                plan.command = Some(Command {
                    request_id: request.to_owned(),
                    expected: situation.state.epoch,
                    because: RuleId(rule.id),
                    kind,
                    evidence: None,
                });
                return plan;
            }
        }
    }
    plan
}

/// The name of a rule, for logs and `explain`.
pub fn name(id: RuleId) -> &'static str {
    if id == stonith::RULE {
        return stonith::RULE_NAME;
    }
    RULES.iter().find(|r| r.id == id.0).map_or("a rule of another version", |r| r.name)
}
