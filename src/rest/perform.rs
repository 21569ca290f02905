//! Carries out what a request asks for, by the admin service of this host, which any other operator's tool asks as well:
//! the same checks, passed on to the Raft leader, and the same record of who decided what.

use std::{collections::BTreeMap, time::Duration};

use tonic::{Request, Status};

use super::{
    Reply,
    orders::{Order, Settings},
    told::{self, Shown},
};
use crate::{
    domain::MemberId,
    manager::ManagerHandle,
    rpc::v1::{
        CancelOperationRequest, FailoverRequest, OperationKind, OperationRecord, OperationReply, OperationsRequest,
        ReinitRequest, ReloadReply, ReloadRequest, RestartRequest, ScheduleOperationRequest, SetSettingsReply,
        SetSettingsRequest, SettingsOutcome, SettingsReply, SettingsRequest, StatusRequest, SwitchoverRequest,
        admin_server::Admin,
    },
    state::{ClusterState, Outcome},
};

/// The Raft leader has so long to say what it knows of the members; a load balancer that waits for `/cluster` gets what is
/// known here then.
const ASKED: Duration = Duration::from_secs(1);
/// So long an operation is followed. Patroni gives a switchover 20 s, and `patronictl` hangs up after a minute.
pub const FOLLOWED: Duration = Duration::from_secs(50);
/// What is committed is soon applied here, too.
const APPLIED: Duration = Duration::from_secs(1);

/// What the Raft leader knows of the members; nothing where this manager leads itself, or nobody answers in time.
pub async fn members(manager: &ManagerHandle, admin: &impl Admin) -> BTreeMap<MemberId, Shown> {
    let leadership = manager.leadership();
    if leadership.am_leader || leadership.leader.is_none() {
        return BTreeMap::new();
    }
    let asked = admin.status(Request::new(StatusRequest { to: None, local: false }));
    match tokio::time::timeout(ASKED, asked).await {
        Ok(Ok(reply)) => told::members(reply.get_ref()),
        Ok(Err(_)) | Err(_) => BTreeMap::new(),
    }
}

/// Who asks, and what for.
pub struct Asked<'a> {
    /// The name of `rest.username`.
    pub user: &'a str,
    /// What for.
    pub order: Order,
}

/// Does it, and says what came of it. `config` makes the document of `/config`.
pub async fn perform(
    manager: &ManagerHandle,
    admin: &impl Admin,
    asked: Asked<'_>,
    config: impl Fn() -> Reply,
) -> Reply {
    if !manager.is_led_soon().await {
        return Reply::text(503, "no Raft leader answers: bring a majority of managers up; nothing was changed\n");
    }
    let (user, request_id) = (asked.user, uuid::Uuid::now_v7().to_string());
    match asked.order {
        Order::Set(settings) => match set(admin, settings, (user, request_id)).await {
            Ok(reply) => match outcome(&reply) {
                Some(refusal) => refusal,
                None => {
                    applied(manager, reply.settings.map_or(0, |settings| settings.version)).await;
                    config()
                }
            },
            Err(status) => unanswered("the change of settings", &status),
        },
        Order::Switchover { from, to, at: Some(at_ms) } => {
            let asked = (OperationKind::Switchover, from, to);
            scheduled(admin, &SWITCHOVER, later(asked, at_ms, (format!("{user} (REST)"), request_id))).await
        }
        Order::Restart { at: Some(at_ms) } => {
            let asked = (OperationKind::Restart, String::new(), manager.me().to_string());
            scheduled(admin, &RESTART, later(asked, at_ms, (format!("{user} (REST)"), request_id))).await
        }
        Order::CancelSwitchover => take_back(manager, admin, &SWITCHOVER, (format!("{user} (REST)"), request_id)).await,
        Order::CancelRestart => take_back(manager, admin, &RESTART, (format!("{user} (REST)"), request_id)).await,
        Order::Switchover { from, to, at: None } => {
            let request = SwitchoverRequest { to: None, candidate: to, request_id, from };
            follow(manager, &SWITCHOVER, admin.switchover(Request::new(request)).await).await
        }
        Order::Failover { to } => {
            let request = FailoverRequest { to: None, candidate: to, request_id, allow_data_loss: false };
            follow(manager, &FAILOVER, admin.failover(Request::new(request)).await).await
        }
        Order::Restart { at: None } => {
            let request = RestartRequest { to: None, member: manager.me().to_string(), request_id, force: false };
            follow(manager, &RESTART, admin.restart(Request::new(request)).await).await
        }
        Order::Reload => {
            let members = vec![manager.me().to_string()];
            match admin.reload(Request::new(ReloadRequest { to: None, members })).await {
                Ok(reply) => reloaded(reply.get_ref()),
                Err(status) => unanswered("the reload", &status),
            }
        }
        Order::Reinitialize { force, from_leader } => {
            let from = if from_leader { primary(manager) } else { String::new() };
            let request = ReinitRequest { to: None, member: manager.me().to_string(), from, force, request_id };
            match admin.reinit(Request::new(request)).await {
                Ok(reply) => begun(reply.get_ref()),
                Err(status) => unanswered("the copy", &status),
            }
        }
    }
}

/// Who is primary as of the committed state; empty: nobody.
fn primary(manager: &ManagerHandle) -> String {
    manager.state().holder().map(|(_, member)| member.to_string()).unwrap_or_default()
}

/// As Patroni answers, which does it a moment later.
fn reloaded(reply: &ReloadReply) -> Reply {
    let Some(member) = reply.members.first() else { return Reply::text(503, "nobody was asked to reload\n") };
    if !member.done {
        return Reply::text(503, format!("reload failed: {}\n", member.reason));
    }
    let pending: Vec<&str> = member.pending.iter().map(|p| p.name.as_str()).collect();
    Reply::text(
        202,
        match pending.is_empty() {
            true => "reloaded\n".to_owned(),
            false => format!("reloaded; these settings wait for a restart: {}\n", pending.join(", ")),
        },
    )
}

/// A copy may take hours: nobody waits for it, as in Patroni.
fn begun(reply: &OperationReply) -> Reply {
    match (reply.accepted, reply.undecided) {
        (true, _) => Reply::text(200, "reinitialize started\n"),
        (false, true) => {
            Reply::text(503, format!("reinitialize may not have begun: {}; see `matriarch status`\n", reply.reason))
        }
        (false, false) => Reply::text(503, format!("reinitialize is not possible: {}\n", reply.reason)),
    }
}

async fn set(
    admin: &impl Admin,
    settings: Settings,
    (user, request_id): (&str, String),
) -> Result<SetSettingsReply, Status> {
    let known = admin.settings(Request::new(SettingsRequest { to: None })).await?.into_inner();
    let request = request(settings, &known, (user, request_id));
    Ok(admin.set_settings(Request::new(request)).await?.into_inner())
}

/// The request for other settings, by those that are known. Without a version it is for the ones just read, so that
/// whoever changes them in between is not overruled.
fn request(settings: Settings, known: &SettingsReply, (user, request_id): (&str, String)) -> SetSettingsRequest {
    let mut request = SetSettingsRequest {
        to: None,
        version: settings.version.unwrap_or(known.version),
        by: format!("{user} (REST)"),
        request_id,
        ..SetSettingsRequest::default()
    };
    if settings.replace {
        // What this version can't read is not shown either: whoever left it out didn't know of it.
        let shown = known.settings.iter().filter(|s| s.problem.is_empty());
        let left_out = shown.filter(|s| s.is_set && !settings.named.contains_key(&s.key));
        request.unset.extend(left_out.map(|s| s.key.clone()));
    }
    // Whoever sends back what was shown sets nothing that is a default to what it is.
    let is_default =
        |key: &str, value: &str| known.settings.iter().any(|s| s.key == key && !s.is_set && s.value == value);
    for (key, value) in settings.named {
        match value {
            Some(value) if settings.replace && is_default(&key, &value) => {}
            Some(value) => drop(request.set.insert(key, value)),
            None => request.unset.push(key),
        }
    }
    request
}

/// Patroni's status for what became of it; `None`: it is in force.
fn outcome(reply: &SetSettingsReply) -> Option<Reply> {
    let status = match reply.outcome() {
        SettingsOutcome::InForce => return None,
        SettingsOutcome::Impossible => 400,
        SettingsOutcome::Stale => 409,
        SettingsOutcome::Refused => 503,
        SettingsOutcome::Unknown | SettingsOutcome::Unspecified => {
            return Some(Reply::text(503, format!("{}; GET /config says what is in force\n", reply.reason)));
        }
    };
    Some(Reply::text(status, format!("{}; nothing was changed\n", reply.reason)))
}

/// Whoever asks this manager next is told of the new settings.
async fn applied(manager: &ManagerHandle, version: u64) {
    let mut states = manager.states();
    let there = states.wait_for(|state| state.settings.version >= version);
    // A manager that lags has its old document still, as before.
    let _ = tokio::time::timeout(APPLIED, there).await;
}

/// An operation in Patroni's words.
struct Words {
    name: &'static str,
    done: fn(&str) -> String,
}

const SWITCHOVER: Words =
    Words { name: "switchover", done: |member| format!("Successfully switched over to \"{member}\"\n") };
const FAILOVER: Words =
    Words { name: "failover", done: |member| format!("Successfully failed over to \"{member}\"\n") };
const RESTART: Words = Words { name: "restart", done: |_| "restarted successfully\n".to_owned() };

/// What is asked for: its kind, who is to be primary then, and who is meant.
type Meant = (OperationKind, String, String);

fn later((kind, from, member): Meant, at_ms: u64, (by, request_id): (String, String)) -> ScheduleOperationRequest {
    ScheduleOperationRequest { to: None, kind: kind as i32, from, member, at_ms, by, request_id }
}

async fn scheduled(admin: &impl Admin, words: &Words, request: ScheduleOperationRequest) -> Reply {
    let name = words.name;
    match admin.schedule_operation(Request::new(request)).await.map(tonic::Response::into_inner) {
        Ok(reply) if reply.accepted => {
            let mut title = name.to_owned();
            title[..1].make_ascii_uppercase();
            Reply::text(202, format!("{title} scheduled\n"))
        }
        Ok(reply) if reply.past => Reply::text(422, format!("Cannot schedule {name} in the past: {}\n", reply.reason)),
        Ok(reply) if reply.undecided => Reply::text(
            503,
            format!("{name} may not be scheduled: {}; see `matriarch operations list`\n", reply.reason),
        ),
        Ok(reply) if reply.taken => Reply::text(409, format!("{}\n", reply.reason)),
        Ok(reply) => Reply::text(412, format!("{name} is not scheduled: {}\n", reply.reason)),
        Err(status) => unanswered(&format!("the {name}"), &status),
    }
}

/// The switchover that is scheduled, or the restart of this host.
async fn take_back(
    manager: &ManagerHandle,
    admin: &impl Admin,
    words: &Words,
    (by, request_id): (String, String),
) -> Reply {
    let name = words.name;
    let all = match admin.operations(Request::new(OperationsRequest { to: None })).await {
        Ok(reply) => reply.into_inner().operations,
        Err(status) => return unanswered("anything", &status),
    };
    let mine = |r: &&OperationRecord| name != RESTART.name || r.to == manager.me().as_str();
    let Some(record) = all.iter().filter(|r| r.state == "scheduled" && r.kind == name).find(mine) else {
        let what = if name == RESTART.name { "no restarts are scheduled\n" } else { "no switchover is scheduled\n" };
        return Reply::text(404, what);
    };
    let request = CancelOperationRequest { to: None, id: record.id, by, request_id };
    match admin.cancel_operation(Request::new(request)).await.map(tonic::Response::into_inner) {
        Ok(reply) if reply.done => Reply::text(200, format!("scheduled {name} deleted\n")),
        Ok(reply) => Reply::text(409, format!("{name} is not taken back: {}\n", reply.reason)),
        Err(status) => unanswered(&format!("the end of the {name}"), &status),
    }
}

/// Until it ends, or the client would lose patience.
async fn follow(
    manager: &ManagerHandle,
    words: &Words,
    begun: Result<tonic::Response<OperationReply>, Status>,
) -> Reply {
    let begun = match begun {
        Ok(reply) => reply.into_inner(),
        Err(status) => return unanswered(&format!("the {}", words.name), &status),
    };
    if !begun.accepted && begun.undecided {
        return Reply::text(
            503,
            format!("{} may not have begun: {}; see `matriarch status`\n", words.name, begun.reason),
        );
    }
    if !begun.accepted {
        return Reply::text(412, format!("{} is not possible: {}\n", words.name, begun.reason));
    }
    let mut states = manager.states();
    let over = states.wait_for(|state| ended(state, begun.id).is_some());
    match tokio::time::timeout(FOLLOWED, over).await {
        Ok(Ok(state)) => ended(&state, begun.id).map_or_else(|| goes_on(words, begun.id), |end| told(words, end)),
        Ok(Err(_)) | Err(_) => goes_on(words, begun.id),
    }
}

fn goes_on(words: &Words, id: u64) -> Reply {
    Reply::text(
        503,
        format!(
            "{} {id} was not over within {} s, and may go on: see `matriarch status`\n",
            words.name,
            FOLLOWED.as_secs()
        ),
    )
}

/// How an operation ended.
#[derive(Debug, PartialEq, Eq)]
enum End {
    Succeeded(MemberId),
    Failed(String),
    /// A later one is over, too: nobody can say any more.
    Forgotten,
}

fn ended(state: &ClusterState, id: u64) -> Option<End> {
    if let Some(ended) = state.agenda.ended_of(id) {
        let member = ended.to.clone().filter(|_| ended.outcome == Outcome::Succeeded);
        return Some(member.map_or_else(|| End::Failed(ended.reason.clone()), End::Succeeded));
    }
    let last = state.last_operation.as_ref().filter(|last| last.operation.id >= id)?;
    Some(match (last.operation.id == id, last.succeeded) {
        (false, _) => End::Forgotten,
        (true, true) => End::Succeeded(last.operation.to.clone()),
        (true, false) => End::Failed(last.reason.clone()),
    })
}

fn told(words: &Words, end: End) -> Reply {
    match end {
        End::Succeeded(member) => Reply::text(200, (words.done)(member.as_str())),
        End::Failed(why) => Reply::text(503, format!("{} failed: {why}\n", words.name)),
        End::Forgotten => {
            Reply::text(503, format!("{} is over, and a later operation too: see `matriarch status`\n", words.name))
        }
    }
}

/// The leader refused the request itself, or nobody knows whether it came through.
fn unanswered(what: &str, status: &Status) -> Reply {
    match status.code() {
        tonic::Code::InvalidArgument => Reply::text(400, format!("{}; nothing was changed\n", status.message())),
        _ => Reply::text(
            503,
            format!(
                "nobody has confirmed {what}, it may still happen ({}): see `matriarch status`\n",
                status.message()
            ),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{policy::testing, rpc::v1::Setting, state::FinishedOperation};

    fn known() -> SettingsReply {
        let one = |key: &str, value: &str, is_set| Setting {
            key: key.to_owned(),
            value: value.to_owned(),
            is_set,
            ..Setting::default()
        };
        let settings =
            vec![one("crash_budget", "5", true), one("sync_count", "1", false), one("n2.priority", "50", true)];
        SettingsReply { version: 7, settings, answered_by: "n1".to_owned() }
    }

    fn settings(replace: bool, named: &[(&str, Option<&str>)]) -> Settings {
        let named = named.iter().map(|(key, value)| ((*key).to_owned(), value.map(str::to_owned)));
        Settings { version: None, named: named.collect(), replace }
    }

    #[test]
    fn a_patch_changes_what_it_names_and_a_put_all_the_rest_too() {
        let asked = |settings| request(settings, &known(), ("ops", "x".to_owned()));
        let patch = asked(settings(false, &[("crash_budget", Some("6")), ("n2.priority", None)]));
        assert_eq!((patch.version, patch.by.as_str()), (7, "ops (REST)"));
        assert_eq!(
            (patch.set, patch.unset),
            ([("crash_budget".to_owned(), "6".to_owned())].into(), vec!["n2.priority".to_owned()])
        );
        let put = asked(settings(true, &[("crash_budget", Some("6"))]));
        assert_eq!((put.set.len(), put.unset), (1, vec!["n2.priority".to_owned()]));
        let back = [("crash_budget", Some("5")), ("sync_count", Some("1")), ("n2.priority", Some("50"))];
        let back = asked(settings(true, &back));
        assert_eq!((back.set.len(), back.unset.len()), (2, 0), "what was a default stays one");
        let of_version = asked(Settings { version: Some(3), ..settings(false, &[("sync_count", Some("2"))]) });
        assert_eq!(of_version.version, 3);
    }

    #[test]
    fn each_outcome_has_patronis_status() {
        let says = |outcome: SettingsOutcome| {
            let reply =
                SetSettingsReply { outcome: outcome.into(), reason: "why".to_owned(), ..SetSettingsReply::default() };
            super::outcome(&reply).map(|reply| (reply.status, reply.body))
        };
        assert_eq!(says(SettingsOutcome::InForce), None);
        assert_eq!(says(SettingsOutcome::Impossible), Some((400, "why; nothing was changed\n".to_owned())));
        assert_eq!(says(SettingsOutcome::Stale).unwrap().0, 409);
        assert_eq!(says(SettingsOutcome::Refused).unwrap().0, 503);
        assert_eq!(
            says(SettingsOutcome::Unknown).unwrap(),
            (503, "why; GET /config says what is in force\n".to_owned())
        );
    }

    #[test]
    fn a_reload_and_a_copy_have_patronis_statuses() {
        use crate::rpc::v1::{PendingRestart, Reloaded};
        let told = |done, pending| {
            let reason = if done { String::new() } else { "it is down".to_owned() };
            let reply =
                reloaded(&ReloadReply { members: vec![Reloaded { member: "b".to_owned(), done, reason, pending }] });
            (reply.status, reply.body)
        };
        assert_eq!(told(true, vec![]), (202, "reloaded\n".to_owned()));
        let waits = PendingRestart { name: "max_connections".to_owned(), ..PendingRestart::default() };
        assert_eq!(
            told(true, vec![waits]),
            (202, "reloaded; these settings wait for a restart: max_connections\n".to_owned())
        );
        assert_eq!(told(false, vec![]), (503, "reload failed: it is down\n".to_owned()));
        let answer = |accepted, undecided| {
            let reason = "b is the primary".to_owned();
            let reply = begun(&OperationReply { accepted, undecided, reason, ..OperationReply::default() });
            (reply.status, reply.body)
        };
        assert_eq!(answer(true, false), (200, "reinitialize started\n".to_owned()));
        assert_eq!(answer(false, false), (503, "reinitialize is not possible: b is the primary\n".to_owned()));
        assert!(answer(false, true).1.contains("may not have begun"));
    }

    #[test]
    fn an_operation_is_followed_to_its_end_and_no_further() {
        let running = testing::state("granted a open 2; switchover b checkpoint");
        let operation = running.operation.clone().unwrap();
        let id = operation.id;
        assert_eq!(ended(&running, id), None);
        let finished = |succeeded| {
            let last = FinishedOperation { operation: operation.clone(), succeeded, reason: "b lags".to_owned() };
            ClusterState { last_operation: Some(last), ..testing::state("granted b open 2") }
        };
        assert_eq!(ended(&finished(true), id + 1), None, "an earlier one");
        assert_eq!(ended(&finished(true), id.saturating_sub(1)), Some(End::Forgotten));
        let reply = told(&SWITCHOVER, ended(&finished(true), id).unwrap());
        assert_eq!((reply.status, reply.body.as_str()), (200, "Successfully switched over to \"b\"\n"));
        let reply = told(&RESTART, ended(&finished(false), id).unwrap());
        assert_eq!((reply.status, reply.body.as_str()), (503, "restart failed: b lags\n"));
        let refused = unanswered("the switchover", &Status::invalid_argument("`N 1` can't name a member"));
        assert_eq!((refused.status, refused.body.as_str()), (400, "`N 1` can't name a member; nothing was changed\n"));
        assert_eq!(unanswered("the switchover", &Status::unavailable("gone")).status, 503);
    }
}
