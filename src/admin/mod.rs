//! The gRPC admin service: check the request, pass it on to the Raft leader
//! where only that one knows, answer in the operator's words. No decisions.

mod agenda;
mod cure;
mod explain;
pub(crate) mod halt;
mod history;
mod led;
mod profile;
mod raft;
mod reach;
mod settings;
mod status;
mod trouble;

use std::time::Duration;

use tonic::{Request, Response, Status};

use self::led::{Leader, Repeat};
use crate::{
    domain::MemberId,
    manager::{
        ManagerHandle,
        view::{MemberChange, NotBegun, NotChanged},
    },
    rpc::{convert, errors::Told, v1},
    state::{Operation, OperationKind},
};

/// How long the Raft leader may take to answer a request passed on to it.
const PASSED_ON: Duration = Duration::from_secs(3);
/// The same for what only looks: whoever looks at a cluster with a dead host wants the rest of it soon, and a manager that
/// doesn't lead has an answer of its own.
const LOOKED_UP: Duration = Duration::from_millis(700);
/// What nobody else can say, and what the leader may look at for a second before it answers.
const LOOKED_AT: Duration = Duration::from_millis(1_300);

/// The service, on any manager.
pub struct AdminService {
    manager: ManagerHandle,
}

impl AdminService {
    /// A service over this host's manager.
    pub fn new(manager: ManagerHandle) -> Self {
        Self { manager }
    }

    fn check(&self, to: Option<&v1::Target>) -> Result<(), Status> {
        let Some(to) = to else { return Ok(()) };
        let state = self.manager.state();
        // An operator's tool names no member: any manager will do.
        convert::check_target(Some(to), self.manager.me().as_str(), &state.cluster_id(), state.generation())?;
        Ok(())
    }

    async fn operate(
        &self,
        kind: OperationKind,
        (from, candidate): (&str, &str),
        (request_id, allow_loss): (String, bool),
    ) -> Result<Response<v1::OperationReply>, Status> {
        let (from, wanted) = named(from, candidate)?;
        let moves = (from.as_ref(), wanted.as_ref());
        let reply = match self.manager.begin(kind, moves, (self::request_id(request_id), allow_loss)).await {
            Ok(operation) => accepted(&operation),
            Err(why) => v1::OperationReply {
                reason: why.to_string(),
                undecided: matches!(why, NotBegun::Undecided(_)),
                ..Default::default()
            },
        };
        Ok(Response::new(reply))
    }
}

/// The members that a request names.
#[allow(clippy::result_large_err)]
fn named(from: &str, to: &str) -> Result<(Option<MemberId>, Option<MemberId>), Status> {
    let one = |name| convert::optional_member(name).map_err(|e| Status::invalid_argument(e.to_string()));
    Ok((one(from)?, one(to)?))
}

/// That of the request, or a new one.
fn request_id(mut asked: String) -> String {
    name(&mut asked);
    asked
}

/// Gives a request that has no id one, so that it is the same wherever it is sent again.
fn name(request_id: &mut String) {
    if request_id.is_empty() {
        *request_id = uuid::Uuid::now_v7().to_string();
    }
}

fn accepted(operation: &Operation) -> v1::OperationReply {
    v1::OperationReply {
        id: operation.id,
        from: convert::optional_text(operation.from.as_ref()),
        to: operation.to.to_string(),
        accepted: true,
        reason: String::new(),
        undecided: false,
        past: false,
        taken: false,
    }
}

/// A request passed on must not be passed on again.
fn passed_on<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(PASSED_ON);
    request
}

/// The header of a request that is passed on to the leader.
fn to_leader(leader: &MemberId, from: &ManagerHandle) -> Option<v1::Target> {
    let state = from.state();
    let (cluster, generation) = (state.cluster_id(), state.generation());
    Some(convert::target(&cluster, generation, leader.as_str(), state.epoch, from.me().as_str()))
}

/// True when another manager already passed this request on.
fn was_passed_on(to: Option<&v1::Target>) -> bool {
    to.is_some_and(|t| !t.sender.is_empty() && t.sender != "admin" && t.sender != "router")
}

#[tonic::async_trait]
impl v1::admin_server::Admin for AdminService {
    async fn status(&self, request: Request<v1::StatusRequest>) -> Result<Response<v1::StatusReply>, Status> {
        let asked = request.into_inner();
        self.check(asked.to.as_ref())?;
        if !asked.local
            && !was_passed_on(asked.to.as_ref())
            && let Some((leader, mut client)) = self.manager.leader_admin()
        {
            let message = v1::StatusRequest { to: to_leader(&leader, &self.manager), local: true };
            if let Ok(Ok(reply)) = tokio::time::timeout(LOOKED_UP, client.status(passed_on(message))).await {
                return Ok(reply);
            }
        }
        Ok(Response::new(status::of(&self.manager)))
    }

    async fn explain(&self, request: Request<v1::ExplainRequest>) -> Result<Response<v1::ExplainReply>, Status> {
        let asked = request.into_inner();
        self.check(asked.to.as_ref())?;
        if !was_passed_on(asked.to.as_ref())
            && let Some((leader, mut client)) = self.manager.leader_admin()
        {
            let message = v1::ExplainRequest { to: to_leader(&leader, &self.manager) };
            if let Ok(Ok(reply)) = tokio::time::timeout(LOOKED_UP, client.explain(passed_on(message))).await {
                return Ok(reply);
            }
        }
        Ok(Response::new(explain::of(&self.manager)))
    }

    async fn history(&self, request: Request<v1::HistoryRequest>) -> Result<Response<v1::HistoryReply>, Status> {
        let asked = request.into_inner();
        self.check(asked.to.as_ref())?;
        if !was_passed_on(asked.to.as_ref())
            && let Some((leader, mut client)) = self.manager.leader_admin()
        {
            let message = v1::HistoryRequest { to: to_leader(&leader, &self.manager) };
            if let Ok(Ok(reply)) = tokio::time::timeout(LOOKED_UP, client.history(passed_on(message))).await {
                return Ok(reply);
            }
        }
        Ok(Response::new(history::of(&self.manager)))
    }

    type EventsStream = history::Events;

    async fn events(&self, request: Request<v1::EventsRequest>) -> Result<Response<history::Events>, Status> {
        let asked = request.into_inner();
        self.check(asked.to.as_ref())?;
        Ok(Response::new(history::events(&self.manager, asked.after, asked.follow)))
    }

    async fn switchover(
        &self,
        request: Request<v1::SwitchoverRequest>,
    ) -> Result<Response<v1::OperationReply>, Status> {
        let told = Told::of(&request);
        let mut asked = request.into_inner();
        name(&mut asked.request_id);
        self.check(asked.to.as_ref())?;
        let ask = |mut leader: Leader, to| {
            let request = v1::SwitchoverRequest { to, ..asked.clone() };
            async move { leader.switchover(passed_on(request)).await }
        };
        if let Some(reply) = self.by_leader((asked.to.as_ref(), Repeat::Safe), ask).await {
            return told.answer(reply, false);
        }
        // As it is before: an operation of unknown fate was begun by a leader.
        let leaderless = self.leaderless();
        let begun = self.operate(OperationKind::Switchover, (&asked.from, &asked.candidate), (asked.request_id, false));
        told.answer(begun.await, leaderless)
    }

    async fn failover(&self, request: Request<v1::FailoverRequest>) -> Result<Response<v1::OperationReply>, Status> {
        let told = Told::of(&request);
        let mut asked = request.into_inner();
        name(&mut asked.request_id);
        self.check(asked.to.as_ref())?;
        let ask = |mut leader: Leader, to| {
            let request = v1::FailoverRequest { to, ..asked.clone() };
            async move { leader.failover(passed_on(request)).await }
        };
        if let Some(reply) = self.by_leader((asked.to.as_ref(), Repeat::Safe), ask).await {
            return told.answer(reply, false);
        }
        // As it is before: an operation of unknown fate was begun by a leader.
        let leaderless = self.leaderless();
        let meant = (asked.request_id, asked.allow_data_loss);
        let begun = self.operate(OperationKind::Failover, ("", &asked.candidate), meant);
        told.answer(begun.await, leaderless)
    }

    async fn failover_loss(
        &self,
        request: Request<v1::FailoverRequest>,
    ) -> Result<Response<v1::FailoverLossReply>, Status> {
        let asked = request.into_inner();
        self.check(asked.to.as_ref())?;
        let ask = |mut leader: Leader, to| {
            let mut request = passed_on(v1::FailoverRequest { to, ..asked.clone() });
            request.set_timeout(LOOKED_AT);
            async move { leader.failover_loss(request).await }
        };
        if let Some(reply) = self.by_leader((asked.to.as_ref(), Repeat::Safe), ask).await {
            return reply;
        }
        let candidate = convert::member_id(&asked.candidate).map_err(|e| Status::invalid_argument(e.to_string()))?;
        Ok(Response::new(match self.manager.would_lose(&candidate) {
            Ok(loss) => v1::FailoverLossReply {
                bytes: loss.bytes,
                transactions: loss.transactions(),
                says: loss.to_string(),
                reason: String::new(),
            },
            Err(reason) => v1::FailoverLossReply { reason, ..Default::default() },
        }))
    }

    async fn transfer_leader(
        &self,
        request: Request<v1::TransferLeaderRequest>,
    ) -> Result<Response<v1::TransferLeaderReply>, Status> {
        let asked = request.into_inner();
        self.check(asked.to.as_ref())?;
        let ask = |mut leader: Leader, to| {
            let request = v1::TransferLeaderRequest { to, ..asked.clone() };
            async move { leader.transfer_leader(passed_on(request)).await }
        };
        if let Some(reply) = self.by_leader((asked.to.as_ref(), Repeat::Never), ask).await {
            return reply;
        }
        let to = convert::member_id(&asked.member).map_err(|e| Status::invalid_argument(e.to_string()))?;
        let leader = convert::optional_text(self.manager.leadership().leader.as_ref());
        let moved = self.manager.transfer_leader(&to).await;
        let reason = moved.as_ref().err().cloned().unwrap_or_default();
        Ok(Response::new(v1::TransferLeaderReply { done: moved.is_ok(), leader, reason }))
    }

    async fn profile(&self, request: Request<v1::ProfileRequest>) -> Result<Response<v1::ProfileReply>, Status> {
        let mut asked = request.into_inner();
        name(&mut asked.request_id);
        self.check(asked.to.as_ref())?;
        let shows = asked.profile.is_empty() && asked.overrides.is_empty();
        if shows {
            if !was_passed_on(asked.to.as_ref())
                && let Some((leader, mut client)) = self.manager.leader_admin()
            {
                let to = to_leader(&leader, &self.manager);
                let mut request = passed_on(v1::ProfileRequest { to, ..asked.clone() });
                request.set_timeout(LOOKED_UP);
                // What was applied here may be older.
                if let Ok(reply) = client.profile(request).await {
                    return Ok(reply);
                }
            }
        } else {
            let ask = |mut leader: Leader, to| {
                let request = v1::ProfileRequest { to, ..asked.clone() };
                async move { leader.profile(passed_on(request)).await }
            };
            if let Some(reply) = self.by_leader((asked.to.as_ref(), Repeat::Safe), ask).await {
                return reply;
            }
        }
        profile::of(&self.manager, asked).await.map(Response::new)
    }

    async fn settings(&self, request: Request<v1::SettingsRequest>) -> Result<Response<v1::SettingsReply>, Status> {
        let asked = request.into_inner();
        self.check(asked.to.as_ref())?;
        if !was_passed_on(asked.to.as_ref())
            && let Some((leader, mut client)) = self.manager.leader_admin()
        {
            let message = v1::SettingsRequest { to: to_leader(&leader, &self.manager) };
            if let Ok(Ok(reply)) = tokio::time::timeout(LOOKED_UP, client.settings(passed_on(message))).await {
                return Ok(reply);
            }
        }
        // What was applied here may be older; whoever changes it names its version.
        Ok(Response::new(settings::of(&self.manager)))
    }

    async fn set_settings(
        &self,
        request: Request<v1::SetSettingsRequest>,
    ) -> Result<Response<v1::SetSettingsReply>, Status> {
        let mut asked = request.into_inner();
        name(&mut asked.request_id);
        self.check(asked.to.as_ref())?;
        let ask = |mut leader: Leader, to| {
            let mut request = passed_on(v1::SetSettingsRequest { to, ..asked.clone() });
            // PostgreSQL's programs are run for it.
            request.set_timeout(3 * PASSED_ON);
            async move { leader.set_settings(request).await }
        };
        if let Some(reply) = self.by_leader((asked.to.as_ref(), Repeat::Safe), ask).await {
            return reply;
        }
        Ok(Response::new(settings::set(&self.manager, asked).await))
    }

    async fn settings_history(
        &self,
        request: Request<v1::SettingsRequest>,
    ) -> Result<Response<v1::SettingsHistoryReply>, Status> {
        let asked = request.into_inner();
        self.check(asked.to.as_ref())?;
        if !was_passed_on(asked.to.as_ref())
            && let Some((leader, mut client)) = self.manager.leader_admin()
        {
            let message = v1::SettingsRequest { to: to_leader(&leader, &self.manager) };
            if let Ok(Ok(reply)) = tokio::time::timeout(LOOKED_UP, client.settings_history(passed_on(message))).await {
                return Ok(reply);
            }
        }
        Ok(Response::new(settings::history(&self.manager)))
    }

    async fn postgres_settings(
        &self,
        request: Request<v1::ParametersRequest>,
    ) -> Result<Response<v1::ParametersReply>, Status> {
        let asked = request.into_inner();
        self.check(asked.to.as_ref())?;
        self.manager.postgres_settings(asked).await.map(Response::new).map_err(Status::unavailable)
    }

    async fn pause(&self, request: Request<v1::PauseRequest>) -> Result<Response<v1::PauseReply>, Status> {
        let mut asked = request.into_inner();
        name(&mut asked.request_id);
        self.check(asked.to.as_ref())?;
        let ask = |mut leader: Leader, to| {
            let request = v1::PauseRequest { to, ..asked.clone() };
            async move { leader.pause(passed_on(request)).await }
        };
        if let Some(reply) = self.by_leader((asked.to.as_ref(), Repeat::Safe), ask).await {
            return reply;
        }
        let done = self.manager.pause(asked.on, (&asked.reason, &asked.by), request_id(asked.request_id)).await;
        let reason = done.as_ref().err().cloned().unwrap_or_default();
        let paused = self.manager.state().paused.is_some();
        Ok(Response::new(v1::PauseReply { done: done.is_ok(), reason, paused }))
    }

    async fn acknowledge(
        &self,
        request: Request<v1::AcknowledgeRequest>,
    ) -> Result<Response<v1::AcknowledgeReply>, Status> {
        let mut asked = request.into_inner();
        name(&mut asked.request_id);
        self.check(asked.to.as_ref())?;
        let ask = |mut leader: Leader, to| {
            let request = v1::AcknowledgeRequest { to, ..asked.clone() };
            async move { leader.acknowledge(passed_on(request)).await }
        };
        if let Some(reply) = self.by_leader((asked.to.as_ref(), Repeat::Safe), ask).await {
            return reply;
        }
        Ok(Response::new(match self.manager.acknowledge(&asked.by, request_id(asked.request_id)).await {
            Ok(failovers) => v1::AcknowledgeReply { done: true, failovers, reason: String::new() },
            Err(reason) => v1::AcknowledgeReply { reason, ..Default::default() },
        }))
    }

    async fn maintenance(
        &self,
        request: Request<v1::MaintenanceRequest>,
    ) -> Result<Response<v1::MaintenanceReply>, Status> {
        let mut asked = request.into_inner();
        name(&mut asked.request_id);
        self.check(asked.to.as_ref())?;
        let ask = |mut leader: Leader, to| {
            let request = v1::MaintenanceRequest { to, ..asked.clone() };
            async move { leader.maintenance(passed_on(request)).await }
        };
        if let Some(reply) = self.by_leader((asked.to.as_ref(), Repeat::Safe), ask).await {
            return reply;
        }
        let member = convert::member_id(&asked.member).map_err(|e| Status::invalid_argument(e.to_string()))?;
        let words = (asked.reason.as_str(), asked.by.as_str());
        let done = self.manager.maintain((&member, asked.on), words, request_id(asked.request_id)).await;
        let reason = done.as_ref().err().cloned().unwrap_or_default();
        Ok(Response::new(v1::MaintenanceReply { done: done.is_ok(), reason }))
    }

    async fn restart(&self, request: Request<v1::RestartRequest>) -> Result<Response<v1::OperationReply>, Status> {
        let told = Told::of(&request);
        let mut asked = request.into_inner();
        name(&mut asked.request_id);
        self.check(asked.to.as_ref())?;
        let ask = |mut leader: Leader, to| {
            let request = v1::RestartRequest { to, ..asked.clone() };
            async move { leader.restart(passed_on(request)).await }
        };
        if let Some(reply) = self.by_leader((asked.to.as_ref(), Repeat::Safe), ask).await {
            return told.answer(reply, false);
        }
        // As it is before: an operation of unknown fate was begun by a leader.
        let leaderless = self.leaderless();
        let begun = self.operate(OperationKind::Restart, ("", &asked.member), (asked.request_id, asked.force));
        told.answer(begun.await, leaderless)
    }

    async fn reinit(&self, request: Request<v1::ReinitRequest>) -> Result<Response<v1::OperationReply>, Status> {
        let mut asked = request.into_inner();
        name(&mut asked.request_id);
        self.check(asked.to.as_ref())?;
        let ask = |mut leader: Leader, to| {
            let request = v1::ReinitRequest { to, ..asked.clone() };
            async move { leader.reinit(passed_on(request)).await }
        };
        if let Some(reply) = self.by_leader((asked.to.as_ref(), Repeat::Safe), ask).await {
            return reply;
        }
        if asked.member.is_empty() {
            return Err(Status::invalid_argument("the request names no member"));
        }
        self.operate(OperationKind::Reinit, (&asked.from, &asked.member), (asked.request_id, asked.force)).await
    }

    async fn reload(&self, request: Request<v1::ReloadRequest>) -> Result<Response<v1::ReloadReply>, Status> {
        let asked = request.into_inner();
        self.check(asked.to.as_ref())?;
        let wanted = asked.members.iter().map(|m| convert::member_id(m)).collect::<Result<Vec<_>, _>>();
        let wanted = wanted.map_err(|e| Status::invalid_argument(e.to_string()))?;
        Ok(Response::new(v1::ReloadReply { members: self.manager.reload(&wanted).await }))
    }

    async fn operations(
        &self,
        request: Request<v1::OperationsRequest>,
    ) -> Result<Response<v1::OperationsReply>, Status> {
        let asked = request.into_inner();
        self.check(asked.to.as_ref())?;
        if !was_passed_on(asked.to.as_ref())
            && let Some((leader, mut client)) = self.manager.leader_admin()
        {
            let message = v1::OperationsRequest { to: to_leader(&leader, &self.manager) };
            if let Ok(Ok(reply)) = tokio::time::timeout(PASSED_ON, client.operations(passed_on(message))).await {
                return Ok(reply);
            }
        }
        Ok(Response::new(agenda::list(&self.manager)))
    }

    async fn cancel_operation(
        &self,
        request: Request<v1::CancelOperationRequest>,
    ) -> Result<Response<v1::CancelOperationReply>, Status> {
        let asked = request.into_inner();
        self.check(asked.to.as_ref())?;
        let ask = |mut leader: Leader, to| {
            let request = v1::CancelOperationRequest { to, ..asked.clone() };
            async move { leader.cancel_operation(passed_on(request)).await }
        };
        if let Some(reply) = self.by_leader((asked.to.as_ref(), Repeat::Never), ask).await {
            return reply;
        }
        let words = (asked.by.as_str(), request_id(asked.request_id));
        Ok(Response::new(match self.manager.cancel(asked.id, words).await {
            Ok(says) => v1::CancelOperationReply { done: true, reason: String::new(), says },
            Err(reason) => v1::CancelOperationReply { reason, ..Default::default() },
        }))
    }

    async fn schedule_operation(
        &self,
        request: Request<v1::ScheduleOperationRequest>,
    ) -> Result<Response<v1::OperationReply>, Status> {
        let mut asked = request.into_inner();
        name(&mut asked.request_id);
        self.check(asked.to.as_ref())?;
        let ask = |mut leader: Leader, to| {
            let request = v1::ScheduleOperationRequest { to, ..asked.clone() };
            async move { leader.schedule_operation(passed_on(request)).await }
        };
        if let Some(reply) = self.by_leader((asked.to.as_ref(), Repeat::Safe), ask).await {
            return reply;
        }
        let (kind, (from, to)) = (agenda::kind(asked.kind)?, named(&asked.from, &asked.member)?);
        Ok(Response::new(agenda::schedule(&self.manager, (kind, from, to), asked).await))
    }

    async fn plan_operation(
        &self,
        request: Request<v1::PlanOperationRequest>,
    ) -> Result<Response<v1::PlanOperationReply>, Status> {
        let asked = request.into_inner();
        self.check(asked.to.as_ref())?;
        let ask = |mut leader: Leader, to| {
            let request = v1::PlanOperationRequest { to, ..asked.clone() };
            async move { leader.plan_operation(passed_on(request)).await }
        };
        if let Some(reply) = self.by_leader((asked.to.as_ref(), Repeat::Safe), ask).await {
            return reply;
        }
        let (kind, (from, to)) = (agenda::kind(asked.kind)?, named(&asked.from, &asked.member)?);
        Ok(Response::new(agenda::plan(&self.manager, (kind, from, to), asked.allow_data_loss).await))
    }

    async fn rolling_restart(
        &self,
        request: Request<v1::RollingRestartRequest>,
    ) -> Result<Response<v1::OperationReply>, Status> {
        let mut asked = request.into_inner();
        name(&mut asked.request_id);
        self.check(asked.to.as_ref())?;
        let ask = |mut leader: Leader, to| {
            let request = v1::RollingRestartRequest { to, ..asked.clone() };
            async move { leader.rolling_restart(passed_on(request)).await }
        };
        if let Some(reply) = self.by_leader((asked.to.as_ref(), Repeat::Safe), ask).await {
            return reply;
        }
        Ok(Response::new(agenda::roll(&self.manager, asked).await))
    }

    async fn stop(&self, request: Request<v1::StopRequest>) -> Result<Response<v1::StopReply>, Status> {
        let mut asked = request.into_inner();
        name(&mut asked.request_id);
        self.check(asked.to.as_ref())?;
        let ask = |mut leader: Leader, to| {
            let request = v1::StopRequest { to, ..asked.clone() };
            async move { leader.stop(passed_on(request)).await }
        };
        if let Some(reply) = self.by_leader((asked.to.as_ref(), Repeat::Safe), ask).await {
            return reply;
        }
        halt::stop(&self.manager, asked).await.map(Response::new)
    }

    async fn start(&self, request: Request<v1::StartRequest>) -> Result<Response<v1::StopReply>, Status> {
        let mut asked = request.into_inner();
        name(&mut asked.request_id);
        self.check(asked.to.as_ref())?;
        let ask = |mut leader: Leader, to| {
            let request = v1::StartRequest { to, ..asked.clone() };
            async move { leader.start(passed_on(request)).await }
        };
        if let Some(reply) = self.by_leader((asked.to.as_ref(), Repeat::Safe), ask).await {
            return reply;
        }
        halt::start(&self.manager, asked).await.map(Response::new)
    }

    async fn change_member(
        &self,
        request: Request<v1::ChangeMemberRequest>,
    ) -> Result<Response<v1::ChangeMemberReply>, Status> {
        let asked = request.into_inner();
        self.check(asked.to.as_ref())?;
        let ask = |mut leader: Leader, to| {
            let request = v1::ChangeMemberRequest { to, ..asked.clone() };
            async move { leader.change_member(passed_on(request)).await }
        };
        if let Some(reply) = self.by_leader((asked.to.as_ref(), Repeat::Never), ask).await {
            return reply;
        }
        let dry_run = is_dry(asked.change());
        let changed = self.manager.change_members(member_change(asked)?, dry_run).await;
        let note = self.manager.note().unwrap_or_default();
        Ok(Response::new(match changed {
            Ok(()) => v1::ChangeMemberReply { done: true, note, ..Default::default() },
            Err(NotChanged { reason, advice }) => v1::ChangeMemberReply { done: false, reason, advice, note },
        }))
    }

    async fn raft_status(
        &self,
        request: Request<v1::RaftStatusRequest>,
    ) -> Result<Response<v1::RaftStatusReply>, Status> {
        let asked = request.into_inner();
        self.check(asked.to.as_ref())?;
        if !asked.local
            && !was_passed_on(asked.to.as_ref())
            && let Some((leader, mut client)) = self.manager.leader_admin()
        {
            let message = v1::RaftStatusRequest { to: to_leader(&leader, &self.manager), local: false };
            // The others are asked meanwhile: should the leader be dead, nobody waits for one after the other.
            let led = tokio::time::timeout(raft::BY_LEADER, client.raft_status(passed_on(message)));
            let (led, here) = tokio::join!(led, raft::status(&self.manager, false));
            return led.ok().and_then(Result::ok).map_or_else(|| Ok(Response::new(here)), Ok);
        }
        Ok(Response::new(raft::status(&self.manager, asked.local).await))
    }

    async fn raft_snapshot(
        &self,
        request: Request<v1::RaftSnapshotRequest>,
    ) -> Result<Response<v1::RaftSnapshotReply>, Status> {
        let asked = request.into_inner();
        self.check(asked.to.as_ref())?;
        Ok(Response::new(raft::snapshot(&self.manager, asked).await))
    }

    async fn check_member(
        &self,
        request: Request<v1::CheckMemberRequest>,
    ) -> Result<Response<v1::CheckMemberReply>, Status> {
        let asked = request.into_inner();
        self.check(asked.to.as_ref())?;
        let ask = |mut leader: Leader, to| {
            let mut request = passed_on(v1::CheckMemberRequest { to, ..asked.clone() });
            request.set_timeout(LOOKED_AT);
            async move { leader.check_member(request).await }
        };
        if let Some(reply) = self.by_leader((asked.to.as_ref(), Repeat::Safe), ask).await {
            return reply;
        }
        let member = convert::member_id(&asked.member).map_err(|e| Status::invalid_argument(e.to_string()))?;
        raft::check(&self.manager, &member).await.map(Response::new)
    }

    async fn reach(&self, request: Request<v1::ReachRequest>) -> Result<Response<v1::ReachReply>, Status> {
        self.check(request.into_inner().to.as_ref())?;
        Ok(Response::new(reach::of(&self.manager).await))
    }

    async fn recover(&self, request: Request<v1::RecoverRequest>) -> Result<Response<v1::RecoverReply>, Status> {
        let asked = request.into_inner();
        self.check(asked.to.as_ref())?;
        let mut reply = v1::RecoverReply {
            cluster: self.manager.config().cluster.name.clone(),
            member: self.manager.me().to_string(),
            ..v1::RecoverReply::default()
        };
        match self.manager.recover(&asked.confirm, asked.force).await {
            Ok((says, done)) => (reply.says, reply.done) = (says, done),
            Err(reason) => reply.reason = reason,
        }
        Ok(Response::new(reply))
    }
}

/// It is only asked whether it would be refused.
fn is_dry(change: v1::MemberChange) -> bool {
    matches!(change, v1::MemberChange::DryRemove | v1::MemberChange::DryReplace | v1::MemberChange::DryMove)
}

// tonic's own error type; boxing it here would only be undone by the caller.
#[allow(clippy::result_large_err)]
fn member_change(asked: v1::ChangeMemberRequest) -> Result<MemberChange, Status> {
    let change = asked.change();
    let member = convert::member_id(&asked.member).map_err(|e| Status::invalid_argument(e.to_string()))?;
    if crate::domain::membership::is_reserved(&member) {
        return Err(Status::invalid_argument(format!("no member may be called {member}")));
    }
    let adds = matches!(change, v1::MemberChange::Add | v1::MemberChange::AddWitness | v1::MemberChange::AddLearner);
    if let Some(why) = crate::domain::postgres_settings::no_name(member.as_str()).filter(|_| adds) {
        return Err(Status::invalid_argument(why));
    }
    Ok(match change {
        v1::MemberChange::Add | v1::MemberChange::AddLearner if asked.postgres.is_empty() => {
            return Err(Status::invalid_argument(
                "the request names no address of PostgreSQL; a witness is added as one",
            ));
        }
        v1::MemberChange::AddWitness if !asked.postgres.is_empty() => {
            return Err(Status::invalid_argument(
                "a witness has no PostgreSQL, and the request names an address of one",
            ));
        }
        v1::MemberChange::Add | v1::MemberChange::AddWitness | v1::MemberChange::AddLearner => {
            let learner = change == v1::MemberChange::AddLearner;
            MemberChange::Add { member, manager: asked.manager, postgres: asked.postgres, learner }
        }
        v1::MemberChange::Remove | v1::MemberChange::DryRemove => MemberChange::Remove { member },
        v1::MemberChange::Replace | v1::MemberChange::DryReplace => MemberChange::Replace { member },
        v1::MemberChange::Move | v1::MemberChange::DryMove => {
            let (manager, postgres, agent) = (asked.manager, asked.postgres, asked.agent);
            MemberChange::Move { member, manager, postgres, agent }
        }
        v1::MemberChange::Unspecified => return Err(Status::invalid_argument("the request names no change")),
    })
}
