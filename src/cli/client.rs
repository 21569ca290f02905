//! Asks any manager: each one in turn, each with a deadline.

use std::{error::Error, fmt::Write as _, time::Duration};

use tokio::time::timeout;
use tonic::{
    Code, Status, Streaming,
    transport::{Channel, Endpoint},
};

use super::{args::ClientArgs, config_file};
use crate::{
    config::{Config, ConfigError, Purpose},
    rpc::v1::{
        AcknowledgeReply, AcknowledgeRequest, CancelOperationReply, CancelOperationRequest, ChangeMemberReply,
        ChangeMemberRequest, Event, EventsRequest, ExplainReply, ExplainRequest, FailoverLossReply, FailoverRequest,
        HistoryReply, HistoryRequest, MaintenanceReply, MaintenanceRequest, OperationReply, OperationsReply,
        OperationsRequest, PauseReply, PauseRequest, PlanOperationReply, PlanOperationRequest, ProfileReply,
        ProfileRequest, RecoverReply, RecoverRequest, RestartRequest, RollingRestartRequest, ScheduleOperationRequest,
        SetSettingsReply, SetSettingsRequest, SettingsReply, SettingsRequest, StatusReply, StatusRequest,
        SwitchoverRequest, Target, TransferLeaderReply, TransferLeaderRequest, admin_client::AdminClient,
    },
};

/// A manager that takes longer to accept a connection or to answer is passed over.
const PATIENCE: Duration = Duration::from_secs(2);
/// An operation is answered once it is committed, which may need a new Raft leader first.
const OPERATION_PATIENCE: Duration = Duration::from_secs(5);

/// Why an admin command got no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum ClientError {
    #[error("{0}")]
    Usage(String),
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error("no manager could be reached ({})", tried.join("; "))]
    NobodyReached { tried: Vec<String>, maybe_received: bool },
    #[error("{manager} refused: {reason}")]
    Refused { manager: String, reason: String },
}

/// The managers to ask, in order.
pub(super) struct Client {
    managers: Vec<String>,
}

impl Client {
    /// From `--manager`, or from the configuration file: this host's manager first.
    pub fn new(args: &ClientArgs) -> Result<Client, ClientError> {
        if args.managers.is_empty() {
            return Ok(Client { managers: configured(args)? });
        }
        for manager in &args.managers {
            let port = manager.rsplit_once(':').and_then(|(host, port)| {
                let bracketed = !host.contains(':') || (host.starts_with('[') && host.ends_with(']'));
                port.parse::<u16>().ok().filter(|_| bracketed && !host.is_empty())
            });
            if port.is_none() {
                let problem = format!("--manager {manager}: not HOST:PORT; write e.g. 10.0.0.1:7400 or [fd00::1]:7400");
                return Err(ClientError::Usage(problem));
            }
        }
        Ok(Client { managers: args.managers.clone() })
    }

    /// The manager of this host only, or the one that is named.
    pub fn local(args: &ClientArgs) -> Result<Client, ClientError> {
        let mut client = Client::new(args)?;
        if args.managers.len() > 1 {
            return Err(ClientError::Usage("--manager is given twice: name the one host to recover on".to_owned()));
        }
        if args.managers.is_empty() {
            let config = Config::load_for(&config_file(args.config.clone()), Purpose::Client)?;
            if config.member.is_none() {
                let problem = "this host has no manager: run it on the host to recover on, or name it with --manager";
                return Err(ClientError::Usage(problem.to_owned()));
            }
        }
        // This host's own manager comes first.
        client.managers.truncate(1);
        Ok(client)
    }

    pub async fn status(&self, local: bool) -> Result<StatusReply, ClientError> {
        self.ask(PATIENCE, async move |mut admin| {
            let request = StatusRequest { to: Some(target("", 0)), local };
            admin.status(request).await.map(tonic::Response::into_inner)
        })
        .await
    }

    pub async fn explain(&self) -> Result<ExplainReply, ClientError> {
        self.ask(PATIENCE, async |mut admin| {
            let request = ExplainRequest { to: Some(target("", 0)) };
            admin.explain(request).await.map(tonic::Response::into_inner)
        })
        .await
    }

    pub async fn history(&self) -> Result<HistoryReply, ClientError> {
        self.ask(PATIENCE, async |mut admin| {
            let request = HistoryRequest { to: Some(target("", 0)) };
            admin.history(request).await.map(tonic::Response::into_inner)
        })
        .await
    }

    /// Begins to listen, to the Raft leader where it is known which that is: only that one tells of holds.
    pub async fn events(&self, after: Option<u64>, follow: bool) -> Result<Streaming<Event>, ClientError> {
        let leader = self.status(false).await?.members.into_iter().find(|m| m.raft_role == "leader").map(|m| m.manager);
        let mut managers: Vec<String> = leader.into_iter().collect();
        managers.extend(self.managers.iter().cloned());
        let client = Client { managers };
        client
            .ask(PATIENCE, async |mut admin| {
                let request = EventsRequest { to: Some(target("", 0)), after, follow };
                admin.events(request).await.map(tonic::Response::into_inner)
            })
            .await
    }

    /// Asks for a switchover. The same `request_id` goes to every manager tried, so it happens once.
    pub async fn switchover(&self, request: SwitchoverRequest) -> Result<OperationReply, ClientError> {
        self.ask(OPERATION_PATIENCE, async |mut admin| {
            admin.switchover(request.clone()).await.map(tonic::Response::into_inner)
        })
        .await
    }

    /// Asks for a failover. The same `request_id` goes to every manager tried, so it happens once.
    pub async fn failover(&self, request: FailoverRequest) -> Result<OperationReply, ClientError> {
        self.ask(OPERATION_PATIENCE, async |mut admin| {
            admin.failover(request.clone()).await.map(tonic::Response::into_inner)
        })
        .await
    }

    /// Asks what a failover would lose.
    pub async fn failover_loss(&self, request: FailoverRequest) -> Result<FailoverLossReply, ClientError> {
        self.ask(OPERATION_PATIENCE, async |mut admin| {
            admin.failover_loss(request.clone()).await.map(tonic::Response::into_inner)
        })
        .await
    }

    /// Asks for a move of the Raft leader; a second try after an unknown first one does no harm.
    pub async fn transfer_leader(&self, member: &str) -> Result<TransferLeaderReply, ClientError> {
        self.ask(OPERATION_PATIENCE, async |mut admin| {
            let request = TransferLeaderRequest { to: Some(target("", 0)), member: member.to_owned() };
            admin.transfer_leader(request).await.map(tonic::Response::into_inner)
        })
        .await
    }

    /// Asks for the timings, or for others. The same `request_id` goes to every manager tried.
    pub async fn profile(&self, request: ProfileRequest) -> Result<ProfileReply, ClientError> {
        self.ask(OPERATION_PATIENCE, async |mut admin| {
            admin.profile(request.clone()).await.map(tonic::Response::into_inner)
        })
        .await
    }

    /// Asks for what operators have set.
    pub async fn settings(&self) -> Result<SettingsReply, ClientError> {
        self.ask(OPERATION_PATIENCE, async |mut admin| {
            let request = SettingsRequest { to: Some(target("", 0)) };
            admin.settings(request).await.map(tonic::Response::into_inner)
        })
        .await
    }

    /// Changes settings. A second try after an unknown first one finds them as asked.
    pub async fn set_settings(&self, request: SetSettingsRequest) -> Result<SetSettingsReply, ClientError> {
        self.ask(OPERATION_PATIENCE, async |mut admin| {
            admin.set_settings(request.clone()).await.map(tonic::Response::into_inner)
        })
        .await
    }

    /// Pauses the cluster, or lets it go on. A second try finds it so.
    pub async fn pause(&self, request: PauseRequest) -> Result<PauseReply, ClientError> {
        self.ask(OPERATION_PATIENCE, async |mut admin| {
            admin.pause(request.clone()).await.map(tonic::Response::into_inner)
        })
        .await
    }

    /// Makes failovers after crashes count no more. A second try finds none.
    pub async fn acknowledge(&self, request: AcknowledgeRequest) -> Result<AcknowledgeReply, ClientError> {
        self.ask(OPERATION_PATIENCE, async |mut admin| {
            admin.acknowledge(request.clone()).await.map(tonic::Response::into_inner)
        })
        .await
    }

    /// Leaves a member alone, or does so no more. A second try finds it so.
    pub async fn maintenance(&self, request: MaintenanceRequest) -> Result<MaintenanceReply, ClientError> {
        self.ask(OPERATION_PATIENCE, async |mut admin| {
            admin.maintenance(request.clone()).await.map(tonic::Response::into_inner)
        })
        .await
    }

    /// Asks for a restart. The same `request_id` goes to every manager tried, so it happens once.
    pub async fn restart(&self, request: RestartRequest) -> Result<OperationReply, ClientError> {
        self.ask(OPERATION_PATIENCE, async |mut admin| {
            admin.restart(request.clone()).await.map(tonic::Response::into_inner)
        })
        .await
    }

    /// Asks for what is scheduled, under way and over.
    pub async fn operations(&self) -> Result<OperationsReply, ClientError> {
        self.ask(OPERATION_PATIENCE, async |mut admin| {
            let request = OperationsRequest { to: Some(target("", 0)) };
            admin.operations(request).await.map(tonic::Response::into_inner)
        })
        .await
    }

    /// Takes something back. A second try after an unknown first one is refused, for it is over then.
    pub async fn cancel_operation(&self, request: CancelOperationRequest) -> Result<CancelOperationReply, ClientError> {
        self.ask(OPERATION_PATIENCE, async |mut admin| {
            admin.cancel_operation(request.clone()).await.map(tonic::Response::into_inner)
        })
        .await
    }

    /// Schedules an operation. The same `request_id` goes to every manager tried, so it happens once.
    pub async fn schedule_operation(&self, request: ScheduleOperationRequest) -> Result<OperationReply, ClientError> {
        self.ask(OPERATION_PATIENCE, async |mut admin| {
            admin.schedule_operation(request.clone()).await.map(tonic::Response::into_inner)
        })
        .await
    }

    /// Asks what an operation would do.
    pub async fn plan_operation(&self, request: PlanOperationRequest) -> Result<PlanOperationReply, ClientError> {
        self.ask(OPERATION_PATIENCE, async |mut admin| {
            admin.plan_operation(request.clone()).await.map(tonic::Response::into_inner)
        })
        .await
    }

    /// Begins a rolling restart. The same `request_id` goes to every manager tried, so it happens once.
    pub async fn rolling_restart(&self, request: RollingRestartRequest) -> Result<OperationReply, ClientError> {
        self.ask(OPERATION_PATIENCE, async |mut admin| {
            admin.rolling_restart(request.clone()).await.map(tonic::Response::into_inner)
        })
        .await
    }

    /// Adds, removes or replaces a member. A repetition is refused, for it is done then.
    pub async fn change_member(&self, request: ChangeMemberRequest) -> Result<ChangeMemberReply, ClientError> {
        self.ask(OPERATION_PATIENCE, async |mut admin| {
            admin.change_member(request.clone()).await.map(tonic::Response::into_inner)
        })
        .await
    }

    /// Asks about a recovery, or for one, when it names the cluster.
    pub async fn recover(&self, request: RecoverRequest) -> Result<RecoverReply, ClientError> {
        self.ask(OPERATION_PATIENCE, async |mut admin| {
            admin.recover(request.clone()).await.map(tonic::Response::into_inner)
        })
        .await
    }

    async fn ask<T>(
        &self,
        patience: Duration,
        call: impl AsyncFn(AdminClient<Channel>) -> Result<T, Status>,
    ) -> Result<T, ClientError> {
        let mut tried = Vec::new();
        let mut maybe_received = false;
        for manager in &self.managers {
            let admin = match connect(manager).await {
                Ok(admin) => admin,
                Err(why) => {
                    tried.push(format!("{manager}: {why}"));
                    continue;
                }
            };
            match timeout(patience, call(admin)).await {
                Ok(Ok(reply)) => return Ok(reply),
                Ok(Err(status)) if is_final(status.code()) => {
                    return Err(ClientError::Refused { manager: manager.clone(), reason: status.message().to_owned() });
                }
                Ok(Err(status)) => {
                    maybe_received = true;
                    tried.push(format!("{manager}: {}", told(&status)));
                }
                Err(_) => {
                    maybe_received = true;
                    tried.push(format!("{manager}: no answer within {} s", patience.as_secs()));
                }
            }
        }
        Err(ClientError::NobodyReached { tried, maybe_received })
    }
}

/// Whether another manager would say the same.
fn is_final(code: Code) -> bool {
    matches!(
        code,
        Code::InvalidArgument
            | Code::FailedPrecondition
            | Code::PermissionDenied
            | Code::NotFound
            | Code::AlreadyExists
    )
}

fn told(status: &Status) -> String {
    let mut text = format!("{:?}", status.code()).to_lowercase();
    if !status.message().is_empty() {
        // Writing to a String can't fail.
        let _ = write!(text, " ({})", status.message());
    }
    text
}

async fn connect(manager: &str) -> Result<AdminClient<Channel>, String> {
    let endpoint = Endpoint::from_shared(format!("http://{manager}")).map_err(|e| root_cause(&e))?;
    // A stream of events is silent for hours; a host without power is, too.
    let endpoint = endpoint.http2_keep_alive_interval(PATIENCE).keep_alive_timeout(PATIENCE);
    match timeout(PATIENCE, endpoint.connect()).await {
        Ok(Ok(channel)) => Ok(AdminClient::new(channel)),
        Ok(Err(error)) => Err(root_cause(&error)),
        Err(_) => Err(format!("no connection within {} s", PATIENCE.as_secs())),
    }
}

/// The last error of a chain: tonic's own says no more than "transport error".
fn root_cause(error: &dyn Error) -> String {
    let mut last = error;
    while let Some(next) = last.source() {
        last = next;
    }
    last.to_string()
}

fn configured(args: &ClientArgs) -> Result<Vec<String>, ClientError> {
    let file = config_file(args.config.clone());
    if args.config.is_none() && !file.exists() {
        let problem =
            format!("no manager to ask: {} doesn't exist; use --manager HOST:PORT or --config FILE", file.display());
        return Err(ClientError::Usage(problem));
    }
    let config = Config::load_for(&file, Purpose::Client)?;
    let me = config.member.as_ref().map(|m| m.id.clone());
    let (own, others): (Vec<_>, Vec<_>) = config.cluster.members.iter().partition(|m| Some(&m.id) == me.as_ref());
    Ok(own.into_iter().chain(others).map(|m| m.manager()).collect())
}

/// Addresses a request to a life of a cluster; an empty id means "whichever you are in".
pub(super) fn target(cluster_id: &str, generation: u64) -> Target {
    Target {
        cluster_id: cluster_id.to_owned(),
        generation,
        target: String::new(),
        epoch: 0,
        sender: "admin".to_owned(),
    }
}
