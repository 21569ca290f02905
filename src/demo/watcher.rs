//! What the managers say, asked over the admin API and listened to over the
//! routing stream, as an operator and a router would.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use tokio::{sync::watch, task::JoinHandle, time::timeout};
use tonic::transport::{Channel, Endpoint};

use super::{layout::Layout, phases::Marks};
use crate::rpc::v1::{
    RoutingRequest, SetSettingsRequest, SettingsOutcome, StatusReply, StatusRequest, SwitchoverRequest, Target,
    TransferLeaderRequest, admin_client::AdminClient, routing_client::RoutingClient,
};

const CONNECT_DEADLINE: Duration = Duration::from_millis(500);
const CALL_DEADLINE: Duration = Duration::from_secs(2);
/// How often the state of the whole cluster is asked for.
const PERIOD: Duration = Duration::from_millis(250);
/// How often each manager is asked while a recovery is being measured.
const CLOSE_PERIOD: Duration = Duration::from_millis(50);

/// What one manager was seen to say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Sighting {
    at: Instant,
    epoch: u64,
    lock: String,
    primary_is_well: bool,
}

/// Follows the managers in the background.
#[derive(Debug)]
pub(crate) struct Watcher {
    managers: Vec<Manager>,
    latest: watch::Receiver<Option<StatusReply>>,
    sightings: Arc<Mutex<Vec<Sighting>>>,
    close: Arc<AtomicBool>,
    well_since: Arc<Mutex<Option<Instant>>>,
    tasks: Vec<JoinHandle<()>>,
}

#[derive(Debug, Clone)]
struct Manager {
    name: String,
    channel: Channel,
}

impl Drop for Watcher {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

impl Watcher {
    /// Starts watching; managers that are not there yet are tried again and again.
    pub(crate) fn start(layout: &Layout) -> Result<Watcher> {
        let mut managers = Vec::new();
        for member in &layout.members {
            let uri = format!("http://{}:{}", member.address, member.manager_port);
            let endpoint = Endpoint::from_shared(uri).context("the manager's address")?;
            let channel = endpoint.connect_timeout(CONNECT_DEADLINE).timeout(CALL_DEADLINE).connect_lazy();
            managers.push(Manager { name: member.name.clone(), channel });
        }
        let (sender, latest) = watch::channel(None);
        let sightings = Arc::new(Mutex::new(Vec::new()));
        let close = Arc::new(AtomicBool::new(false));
        let well_since = Arc::new(Mutex::new(None));
        let mut tasks = vec![tokio::spawn(follow_status(managers.clone(), sender, well_since.clone()))];
        for manager in &managers {
            tasks.push(tokio::spawn(follow_routing(manager.clone(), sightings.clone())));
            tasks.push(tokio::spawn(look_closely(manager.clone(), sightings.clone(), close.clone())));
        }
        Ok(Watcher { managers, latest, sightings, close, well_since, tasks })
    }

    /// The newest state of the cluster; `None` when nobody answers.
    pub(crate) fn status(&self) -> Option<StatusReply> {
        self.latest.borrow().clone()
    }

    /// Since when every answer has said that all is well.
    pub(crate) fn well_since(&self) -> Option<Instant> {
        *self.well_since.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// A receiver of [`Watcher::status`].
    pub(crate) fn receiver(&self) -> watch::Receiver<Option<StatusReply>> {
        self.latest.clone()
    }

    /// Forgets old sightings and asks every manager often from now on.
    pub(crate) fn look_closely(&self) {
        lock(&self.sightings).clear();
        self.close.store(true, Ordering::Relaxed);
    }

    /// Back to the usual pace; gives the marks of a recovery.
    pub(crate) fn marks(&self, fault: Instant, epoch: u64) -> Marks {
        self.close.store(false, Ordering::Relaxed);
        marks(&lock(&self.sightings), fault, epoch)
    }

    /// Moves the Raft leader to `member`; a refusal shows in who leads.
    pub(crate) async fn transfer_leader(&self, member: &str) {
        for manager in &self.managers {
            let request = TransferLeaderRequest { to: Some(target()), member: member.to_owned() };
            let mut admin = AdminClient::new(manager.channel.clone());
            if let Ok(Ok(reply)) = timeout(Duration::from_secs(3), admin.transfer_leader(request)).await
                && reply.get_ref().done
            {
                return;
            }
        }
    }

    /// Asks for a switchover through any manager; `status` says in which cluster.
    pub(crate) async fn switchover(&self, status: &StatusReply) -> Result<String> {
        let to = Target { cluster_id: status.cluster_id.clone(), generation: status.generation, ..target() };
        let mut refusals = Vec::new();
        for manager in &self.managers {
            let request = SwitchoverRequest {
                to: Some(to.clone()),
                candidate: String::new(),
                request_id: uuid::Uuid::new_v4().to_string(),
                from: String::new(),
            };
            match AdminClient::new(manager.channel.clone()).switchover(request).await {
                Ok(reply) if reply.get_ref().accepted => return Ok(reply.into_inner().to),
                Ok(reply) => refusals.push(format!("{}: {}", manager.name, reply.into_inner().reason)),
                Err(e) => refusals.push(format!("{}: {}", manager.name, e.message())),
            }
        }
        bail!("no manager took the switchover: {}", refusals.join("; "))
    }

    /// Changes settings of the cluster through any manager.
    pub(crate) async fn change_settings(&self, settings: &[(String, String)]) -> Result<()> {
        if settings.is_empty() {
            return Ok(());
        }
        let mut refusals = Vec::new();
        for manager in &self.managers {
            let request = SetSettingsRequest {
                to: Some(target()),
                set: settings.iter().cloned().collect(),
                by: "demo".to_owned(),
                request_id: uuid::Uuid::new_v4().to_string(),
                ..SetSettingsRequest::default()
            };
            match AdminClient::new(manager.channel.clone()).set_settings(request).await {
                Ok(reply) if reply.get_ref().outcome() == SettingsOutcome::InForce => return Ok(()),
                Ok(reply) => refusals.push(format!("{}: {}", manager.name, reply.into_inner().reason)),
                Err(e) => refusals.push(format!("{}: {}", manager.name, e.message())),
            }
        }
        bail!("no manager changed the settings: {}", refusals.join("; "))
    }
}

fn lock(sightings: &Mutex<Vec<Sighting>>) -> std::sync::MutexGuard<'_, Vec<Sighting>> {
    sightings.lock().unwrap_or_else(|e| e.into_inner())
}

fn target() -> Target {
    Target { sender: "admin".to_owned(), ..Target::default() }
}

async fn status(channel: &Channel, local: bool, deadline: Duration) -> Option<StatusReply> {
    let mut client = AdminClient::new(channel.clone());
    let call = client.status(StatusRequest { to: Some(target()), local });
    Some(timeout(deadline, call).await.ok()?.ok()?.into_inner())
}

async fn follow_status(
    managers: Vec<Manager>,
    sender: watch::Sender<Option<StatusReply>>,
    well_since: Arc<Mutex<Option<Instant>>>,
) {
    let mut good = 0;
    loop {
        let mut reply = None;
        for offset in 0..managers.len() {
            let index = (good + offset) % managers.len();
            reply = status(&managers[index].channel, false, Duration::from_secs(1)).await;
            if reply.is_some() {
                good = index;
                break;
            }
        }
        let well = complaints(reply.as_ref(), managers.len()).is_empty();
        {
            let mut since = well_since.lock().unwrap_or_else(|e| e.into_inner());
            *since = well.then(|| since.unwrap_or_else(Instant::now));
        }
        sender.send_replace(reply);
        tokio::time::sleep(PERIOD).await;
    }
}

async fn look_closely(manager: Manager, sightings: Arc<Mutex<Vec<Sighting>>>, close: Arc<AtomicBool>) {
    loop {
        tokio::time::sleep(CLOSE_PERIOD).await;
        if !close.load(Ordering::Relaxed) {
            continue;
        }
        let Some(reply) = status(&manager.channel, true, CONNECT_DEADLINE).await else { continue };
        let seen = Sighting {
            at: Instant::now(),
            epoch: reply.epoch,
            primary_is_well: primary_is_well(&reply),
            lock: reply.lock,
        };
        lock(&sightings).push(seen);
    }
}

async fn follow_routing(manager: Manager, sightings: Arc<Mutex<Vec<Sighting>>>) {
    loop {
        let mut client = RoutingClient::new(manager.channel.clone());
        if let Ok(stream) = client.watch(RoutingRequest { to: Some(target()) }).await {
            let mut stream = stream.into_inner();
            while let Ok(Some(state)) = stream.message().await {
                let open = state.open;
                let lock_name = if open { "open" } else { "" }.to_owned();
                let seen = Sighting { at: Instant::now(), epoch: state.epoch, lock: lock_name, primary_is_well: true };
                let mut all = lock(&sightings);
                // Heartbeats of the stream would pile up over hours.
                if all.len() < 100_000 {
                    all.push(seen);
                }
            }
        }
        tokio::time::sleep(PERIOD).await;
    }
}

/// The answering manager finds nothing wrong with the primary. One that is no
/// Raft leader may know nothing of the members; that is no suspicion.
fn primary_is_well(reply: &StatusReply) -> bool {
    let primary = reply.members.iter().find(|m| m.member == reply.primary);
    primary.is_none_or(|p| p.healthy || p.state.is_empty())
}

fn marks(sightings: &[Sighting], fault: Instant, epoch: u64) -> Marks {
    let mut after: Vec<&Sighting> = sightings.iter().filter(|s| s.at >= fault).collect();
    after.sort_by_key(|s| s.at);
    let fenced = |s: &Sighting| s.epoch > epoch || s.lock == "fenced" || s.lock == "released";
    let next = |s: &Sighting, locks: &[&str]| s.epoch > epoch && locks.contains(&s.lock.as_str());
    let first = |check: &dyn Fn(&Sighting) -> bool| after.iter().find(|s| check(s)).map(|s| s.at - fault);
    let suspected = first(&|s| !s.primary_is_well || fenced(s));
    // Restart in place keeps the epoch: the primary is open and well again after the suspicion.
    let again = suspected.and_then(|d| first(&|s| s.at > fault + d && s.primary_is_well && s.lock == "open"));
    Marks {
        suspected,
        fenced: first(&fenced),
        granted: first(&|s| next(s, &["granted", "promoted", "open"])),
        promoted: first(&|s| next(s, &["promoted", "open"])).or(again),
    }
}

/// Why the cluster is not (yet) healthy: all members there, one primary, the
/// others streaming from it. Empty when it is.
pub(crate) fn complaints(status: Option<&StatusReply>, members: usize) -> Vec<String> {
    let Some(status) = status else { return vec!["no manager answers".to_owned()] };
    let mut found = Vec::new();
    if status.lock != "open" {
        found.push(format!("the lock is {}", if status.lock.is_empty() { "unknown" } else { &status.lock }));
    }
    if status.leader.is_empty() {
        found.push("there is no Raft leader".to_owned());
    }
    if status.members.len() < members {
        found.push(format!("{} of {members} members are known", status.members.len()));
    }
    if status.operation.as_ref().is_some_and(|o| o.id != 0 && !o.finished) {
        found.push("an operation is under way".to_owned());
    }
    for m in &status.members {
        let wanted = match m.role.as_str() {
            "witness" => "witness",
            _ if m.member == status.primary => "primary",
            _ => "standby",
        };
        if m.role != wanted || !m.healthy {
            let (problems, progress) = (m.problems.join(", "), &m.progress);
            found.push(format!("{} is {} {} {problems} {progress}", m.member, m.role, m.state).trim_end().to_owned());
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rpc::v1::MemberStatus;

    fn member(name: &str, role: &str, healthy: bool) -> MemberStatus {
        MemberStatus { member: name.into(), role: role.into(), state: "running".into(), healthy, ..Default::default() }
    }

    fn healthy() -> StatusReply {
        let members = vec![member("n1", "primary", true), member("n2", "standby", true)];
        StatusReply { primary: "n1".into(), leader: "n2".into(), lock: "open".into(), members, ..Default::default() }
    }

    #[test]
    fn complaints_name_what_is_wrong() {
        assert!(complaints(Some(&healthy()), 2).is_empty());
        assert_eq!(complaints(None, 2), ["no manager answers"]);
        let mut two = healthy();
        two.members[1] = member("n2", "primary", false);
        two.lock = "fenced".into();
        assert_eq!(
            complaints(Some(&two), 3),
            ["the lock is fenced", "2 of 3 members are known", "n2 is primary running"]
        );
    }

    #[test]
    fn marks_of_a_failover_and_of_a_restart_in_place() {
        let fault = Instant::now();
        let ms = Duration::from_millis;
        let seen = |at, epoch, lock: &str, well| Sighting {
            at: fault + ms(at),
            epoch,
            lock: lock.into(),
            primary_is_well: well,
        };
        let failover = [
            seen(10, 1, "open", true),
            seen(400, 1, "open", false),
            seen(1500, 1, "fenced", false),
            seen(1700, 2, "open", true),
            seen(1510, 2, "granted", false),
        ];
        let expected = Marks {
            suspected: Some(ms(400)),
            fenced: Some(ms(1500)),
            granted: Some(ms(1510)),
            promoted: Some(ms(1700)),
        };
        assert_eq!(marks(&failover, fault, 1), expected);

        let restart = [seen(10, 1, "open", true), seen(30, 1, "open", false), seen(800, 1, "open", true)];
        let expected = Marks { suspected: Some(ms(30)), promoted: Some(ms(800)), ..Marks::default() };
        assert_eq!(marks(&restart, fault, 1), expected);
        assert_eq!(marks(&[], fault, 1), Marks::default());
    }
}
