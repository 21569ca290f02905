//! Asks any manager, so that one that is dead or frozen costs a moment and no more: when the first has not answered soon,
//! the next is tried beside it. What only looks is asked of both; what changes something goes to one after the other.

use std::{error::Error, fmt::Write as _, time::Duration};

use futures_util::{FutureExt as _, StreamExt as _, future::LocalBoxFuture, stream::FuturesUnordered};
use tokio::time::{sleep, timeout};
use tonic::{
    Code, Status, Streaming,
    transport::{Channel, Endpoint},
};

use super::{args::ClientArgs, clusters, config_file};
use crate::{
    config::{Config, ConfigError, Purpose},
    rpc::v1::{
        AcknowledgeReply, AcknowledgeRequest, CancelOperationReply, CancelOperationRequest, ChangeMemberReply,
        ChangeMemberRequest, Event, EventsRequest, ExplainReply, ExplainRequest, FailoverLossReply, FailoverRequest,
        HistoryReply, HistoryRequest, MaintenanceReply, MaintenanceRequest, OperationReply, OperationsReply,
        OperationsRequest, ParametersReply, ParametersRequest, PauseReply, PauseRequest, PlanOperationReply,
        PlanOperationRequest, ProfileReply, ProfileRequest, ReachReply, ReachRequest, RecoverReply, RecoverRequest,
        ReinitRequest, ReloadReply, ReloadRequest, RestartRequest, RollingRestartRequest, ScheduleOperationRequest,
        SetSettingsReply, SetSettingsRequest, SettingsHistoryReply, SettingsReply, SettingsRequest, StatusReply,
        StatusRequest, SwitchoverRequest, Target, TransferLeaderReply, TransferLeaderRequest,
        admin_client::AdminClient,
    },
};

/// A manager that takes longer to accept a connection or to answer is passed over.
const PATIENCE: Duration = Duration::from_secs(2);
/// After so long the next manager is tried beside those that have not answered: a healthy one answers in a few milliseconds.
const NEXT: Duration = Duration::from_millis(150);
/// An operation is answered once it is committed, which may need a new Raft leader first: longer than a manager waits for one,
/// and for its answer.
pub(super) const OPERATION_PATIENCE: Duration = Duration::from_secs(8);

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

/// How far managers are asked beside each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// Whoever answers first: it changes nothing to be asked in vain.
    Look,
    /// Whoever can be connected to first, and the next one when that has failed.
    Change,
}

/// What one manager made of a request.
enum Tried<T> {
    Answer(Result<T, Status>),
    Connected(AdminClient<Channel>),
    NotConnected(String),
    Silent,
}

/// The managers to ask, in order.
#[derive(Debug)]
pub(super) struct Client {
    managers: Vec<String>,
}

impl Client {
    /// From `--manager` or `--cluster`, or from the configuration file: this host's manager first.
    pub fn new(args: &ClientArgs) -> Result<Client, ClientError> {
        if let Some(name) = &args.cluster {
            return Ok(Client { managers: clusters::named(name).map_err(ClientError::Usage)? });
        }
        if args.managers.is_empty() {
            return Ok(Client { managers: configured(args)? });
        }
        for manager in &args.managers {
            check_address(manager).map_err(|problem| ClientError::Usage(format!("--manager {problem}")))?;
        }
        Ok(Client { managers: args.managers.clone() })
    }

    /// Of managers whose addresses were checked.
    pub fn of_all(managers: Vec<String>) -> Client {
        Client { managers }
    }

    /// Those that are asked, in order.
    pub fn managers(&self) -> &[String] {
        &self.managers
    }

    /// The manager of this host only, or the one that is named.
    pub fn local(args: &ClientArgs) -> Result<Client, ClientError> {
        let mut client = Client::new(args)?;
        if args.cluster.is_some() {
            let problem = "--cluster names several hosts: name the one to recover on with --manager";
            return Err(ClientError::Usage(problem.to_owned()));
        }
        if args.managers.len() > 1 {
            return Err(ClientError::Usage("--manager is given twice: name the one host to recover on".to_owned()));
        }
        if args.managers.is_empty() {
            let config = Config::load_for(&config_file(args.config.clone()), Purpose::Client)?;
            if config.local().is_none() {
                let problem = "this host has no manager: run it on the host to recover on, or name it with --manager";
                return Err(ClientError::Usage(problem.to_owned()));
            }
        }
        // This host's own manager comes first.
        client.managers.truncate(1);
        Ok(client)
    }

    pub async fn status(&self, local: bool) -> Result<StatusReply, ClientError> {
        self.look(PATIENCE, async move |mut admin| {
            let request = StatusRequest { to: Some(target("", 0)), local };
            admin.status(request).await.map(tonic::Response::into_inner)
        })
        .await
    }

    pub async fn explain(&self) -> Result<ExplainReply, ClientError> {
        self.look(PATIENCE, async |mut admin| {
            let request = ExplainRequest { to: Some(target("", 0)) };
            admin.explain(request).await.map(tonic::Response::into_inner)
        })
        .await
    }

    pub async fn history(&self) -> Result<HistoryReply, ClientError> {
        self.look(PATIENCE, async |mut admin| {
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
            .look(PATIENCE, async |mut admin| {
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
        self.look(OPERATION_PATIENCE, async |mut admin| {
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
        let way = if request.profile.is_empty() { Way::Look } else { Way::Change };
        self.race(way, OPERATION_PATIENCE, async |mut admin| {
            admin.profile(request.clone()).await.map(tonic::Response::into_inner)
        })
        .await
    }

    /// Asks for what operators have set.
    pub async fn settings(&self) -> Result<SettingsReply, ClientError> {
        self.look(PATIENCE, async |mut admin| {
            let request = SettingsRequest { to: Some(target("", 0)) };
            admin.settings(request).await.map(tonic::Response::into_inner)
        })
        .await
    }

    /// One manager, whose address a reply had.
    pub fn of(manager: &str) -> Client {
        Client { managers: vec![manager.to_owned()] }
    }

    /// Asks for the last changes of the settings.
    pub async fn settings_history(&self) -> Result<SettingsHistoryReply, ClientError> {
        self.look(OPERATION_PATIENCE, async |mut admin| {
            let request = SettingsRequest { to: Some(target("", 0)) };
            admin.settings_history(request).await.map(tonic::Response::into_inner)
        })
        .await
    }

    /// Asks for PostgreSQL's settings on the host of the manager that answers.
    pub async fn postgres_settings(&self, request: ParametersRequest) -> Result<ParametersReply, ClientError> {
        self.look(OPERATION_PATIENCE, async |mut admin| {
            let request = ParametersRequest { to: Some(target("", 0)), ..request.clone() };
            admin.postgres_settings(request).await.map(tonic::Response::into_inner)
        })
        .await
    }

    /// Changes settings. A second try after an unknown first one finds them as asked.
    pub async fn set_settings(&self, request: SetSettingsRequest) -> Result<SetSettingsReply, ClientError> {
        // PostgreSQL's programs are run for it.
        self.ask(2 * OPERATION_PATIENCE, async |mut admin| {
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

    /// Asks for a copy. The same `request_id` goes to every manager tried, so it happens once.
    pub async fn reinit(&self, request: ReinitRequest) -> Result<OperationReply, ClientError> {
        self.ask(OPERATION_PATIENCE, async |mut admin| {
            admin.reinit(request.clone()).await.map(tonic::Response::into_inner)
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

    /// Has configurations read anew. To do it twice is harmless.
    pub async fn reload(&self, request: ReloadRequest) -> Result<ReloadReply, ClientError> {
        self.ask(OPERATION_PATIENCE, async |mut admin| {
            admin.reload(request.clone()).await.map(tonic::Response::into_inner)
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

    /// Whom the first manager of this client reaches, and no other's word for it.
    pub async fn reach(&self) -> Result<ReachReply, ClientError> {
        self.look(PATIENCE, async |mut admin| {
            let request = ReachRequest { to: Some(target("", 0)) };
            admin.reach(request).await.map(tonic::Response::into_inner)
        })
        .await
    }

    pub(super) async fn look<T>(
        &self,
        patience: Duration,
        call: impl AsyncFn(AdminClient<Channel>) -> Result<T, Status>,
    ) -> Result<T, ClientError> {
        self.race(Way::Look, patience, call).await
    }

    pub(super) async fn ask<T>(
        &self,
        patience: Duration,
        call: impl AsyncFn(AdminClient<Channel>) -> Result<T, Status>,
    ) -> Result<T, ClientError> {
        self.race(Way::Change, patience, call).await
    }

    async fn race<T>(
        &self,
        way: Way,
        patience: Duration,
        call: impl AsyncFn(AdminClient<Channel>) -> Result<T, Status>,
    ) -> Result<T, ClientError> {
        let (mut failed, mut maybe_received) = (Failures::default(), false);
        let mut rest = self.managers.iter();
        let begin = |manager| attempt(manager, way, patience, &call).boxed_local();
        let mut running: FuturesUnordered<LocalBoxFuture<'_, _>> = rest.next().map(begin).into_iter().collect();
        while !running.is_empty() {
            let (manager, tried) = tokio::select! {
                biased;
                Some(ended) = running.next() => ended,
                () = sleep(NEXT), if rest.len() > 0 => {
                    running.extend(rest.next().map(begin));
                    continue;
                }
            };
            let tried = match tried {
                Tried::Connected(admin) => told(patience, call(admin)).await,
                other => other,
            };
            let why = match tried {
                Tried::Answer(Ok(reply)) => return Ok(reply),
                Tried::Answer(Err(status)) if is_final(status.code()) => {
                    return Err(ClientError::Refused { manager: manager.clone(), reason: status.message().to_owned() });
                }
                Tried::Answer(Err(status)) => {
                    maybe_received = true;
                    words(&status)
                }
                Tried::Silent => {
                    maybe_received = true;
                    format!("no answer within {} s", patience.as_secs())
                }
                Tried::NotConnected(why) => why,
                // It was called above.
                Tried::Connected(_) => continue,
            };
            failed.note(manager, &why);
            running.extend(rest.next().map(begin));
        }
        Err(ClientError::NobodyReached { tried: failed.in_order(&self.managers), maybe_received })
    }
}

/// Why each manager gave no answer. They are told in the order of the managers, for who failed first is chance.
#[derive(Default)]
struct Failures(Vec<(String, String)>);

impl Failures {
    fn note(&mut self, manager: &str, why: &str) {
        self.0.push((manager.to_owned(), why.to_owned()));
    }

    fn in_order(mut self, managers: &[String]) -> Vec<String> {
        self.0.sort_by_key(|(manager, _)| managers.iter().position(|m| m == manager));
        self.0.iter().map(|(manager, why)| format!("{manager}: {why}")).collect()
    }
}

/// Connects, and asks where that may be done beside others.
async fn attempt<'a, T>(
    manager: &'a String,
    way: Way,
    patience: Duration,
    call: &impl AsyncFn(AdminClient<Channel>) -> Result<T, Status>,
) -> (&'a String, Tried<T>) {
    let tried = match (connect(manager).await, way) {
        (Err(why), _) => Tried::NotConnected(why),
        (Ok(admin), Way::Change) => Tried::Connected(admin),
        (Ok(admin), Way::Look) => told(patience, call(admin)).await,
    };
    (manager, tried)
}

async fn told<T>(patience: Duration, call: impl Future<Output = Result<T, Status>>) -> Tried<T> {
    timeout(patience, call).await.map_or(Tried::Silent, Tried::Answer)
}

/// Whether a manager can be at this address.
pub(super) fn check_address(address: &str) -> Result<(), String> {
    let port = address.rsplit_once(':').and_then(|(host, port)| {
        let bracketed = !host.contains(':') || (host.starts_with('[') && host.ends_with(']'));
        port.parse::<u16>().ok().filter(|_| bracketed && !host.is_empty())
    });
    match port {
        Some(_) => Ok(()),
        None => Err(format!("{address}: not HOST:PORT; write e.g. 10.0.0.1:7400 or [fd00::1]:7400")),
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

fn words(status: &Status) -> String {
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
        if let Some(managers) = clusters::default().map_err(ClientError::Usage)? {
            return Ok(managers);
        }
        let problem = format!(
            "no manager to ask: {} doesn't exist; use --manager HOST:PORT, --cluster NAME or --config FILE",
            file.display()
        );
        return Err(ClientError::Usage(problem));
    }
    let config = Config::load_for(&file, Purpose::Client)?;
    let me = config.local().map(|(me, _)| me.clone());
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
