//! Has the Raft leader do what only that one can, and waits where none is known yet: who asks in the seconds after a host
//! died means to be served by the next leader, and not to be told that there is none.

use std::time::Duration;

use tokio::time::{Instant, timeout_at};
use tonic::{Code, Response, Status, transport::Channel};

use super::{AdminService, to_leader, was_passed_on};
use crate::{
    domain::MemberId,
    manager::{ManagerHandle, view::ELECTED},
    rpc::v1,
};

/// A client of the Raft leader's admin service.
pub(super) type Leader = v1::admin_client::AdminClient<Channel>;

/// Before a leader that can't be reached is tried again, if nothing is known of another before.
const AGAIN: Duration = Duration::from_millis(100);

/// Whether a request may be sent a second time where it is not known what became of the first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Repeat {
    /// It has a `request_id`, or changes nothing.
    Safe,
    /// It would be another request.
    Never,
}

impl AdminService {
    /// The leader's answer; `None`: this host's manager leads, or nobody does, so that it is to be answered here. A leader that
    /// can't be reached is asked again, and so is its successor, if that is safe.
    pub(super) async fn by_leader<R, F>(
        &self,
        (to, repeat): (Option<&v1::Target>, Repeat),
        ask: impl Fn(Leader, Option<v1::Target>) -> F + Send,
    ) -> Option<Result<Response<R>, Status>>
    where
        F: Future<Output = Result<Response<R>, Status>> + Send,
    {
        if was_passed_on(to) {
            let leads = self.manager.leadership().am_leader;
            return (!leads).then(|| Err(Status::unavailable("this manager leads no more")));
        }
        let until = Instant::now() + ELECTED;
        let mut leadership = self.manager.watch_leadership();
        loop {
            let am_leader = leadership.borrow_and_update().am_leader;
            if am_leader {
                return None;
            }
            let answer = match self.manager.leader_admin() {
                None => None,
                Some((leader, client)) => {
                    let asked = ask(client, to_leader(&leader, &self.manager));
                    tokio::select! {
                        answer = asked => Some(answer),
                        // One without power says nothing; its successor does.
                        () = is_succeeded(&self.manager, &leader, until), if repeat == Repeat::Safe => continue,
                    }
                }
            };
            let waits = match &answer {
                Some(Err(status)) => status.code() == Code::Unavailable && repeat == Repeat::Safe,
                Some(Ok(_)) => false,
                None => true,
            };
            if !waits || Instant::now() >= until {
                return answer;
            }
            let pause = if answer.is_some() { until.min(Instant::now() + AGAIN) } else { until };
            if timeout_at(pause, leadership.changed()).await.is_ok_and(|changed| changed.is_err()) {
                return answer;
            }
        }
    }

    /// No Raft leader is known here.
    pub(super) fn leaderless(&self) -> bool {
        self.manager.leadership().leader.is_none()
    }
}

/// Waits until another leads, as long as it may be waited for one.
async fn is_succeeded(manager: &ManagerHandle, leader: &MemberId, until: Instant) {
    let mut leadership = manager.watch_leadership();
    let another = leadership.wait_for(|l| l.leader.as_ref().is_some_and(|now| now != leader));
    if !timeout_at(until, another).await.is_ok_and(|found| found.is_ok()) {
        std::future::pending::<()>().await;
    }
}
