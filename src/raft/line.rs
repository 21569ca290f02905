//! The way to one other manager: a connection that is shared, and the address it goes to.
//!
//! A member that was moved by command is looked for where the log says. Where nobody has answered for it there, because the
//! address is wrong or the host not up yet, it may still be where the group first knew it, and a majority may hang on that. So
//! the two are tried in turn, until it has answered where it was moved to: from then on it is looked for nowhere else. Each
//! request names cluster, generation, member and node, so that whoever else is there refuses it.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::sync::watch;
use tonic::transport::Channel;

use super::{
    network::{Dialer, chain},
    types::PeerNode,
};
use crate::state::ClusterState;

/// After so many answers missed in a row the connection is given up. A
/// connection through a healed partition can stay silent for as long as TCP
/// backed off; a new one answers at once.
const MISSED_MAX: u32 = 3;

/// The shared connection to one manager.
pub(super) struct Line {
    member: String,
    /// As the group has it.
    address: String,
    state: watch::Receiver<Arc<ClusterState>>,
    dialer: Arc<dyn Dialer>,
    connect_timeout: Duration,
    line: Mutex<LineState>,
}

#[derive(Default)]
struct LineState {
    /// And where to.
    channel: Option<(String, Channel)>,
    missed: u32,
    /// Where the log says, when it was looked at last.
    moved: Option<String>,
    /// It has answered there.
    arrived: bool,
    /// The address of the group is next.
    detour: bool,
}

impl LineState {
    /// Another move begins anew; so does one that was undone.
    fn follow(&mut self, moved: Option<&String>) {
        if self.moved.as_ref() != moved {
            *self = LineState { moved: moved.cloned(), ..LineState::default() };
        }
    }

    fn give_up(&mut self) {
        (self.channel, self.missed) = (None, 0);
    }
}

impl Line {
    /// Nothing is dialled before it is used.
    pub(super) fn new(
        node: &PeerNode,
        state: watch::Receiver<Arc<ClusterState>>,
        dialer: Arc<dyn Dialer>,
        connect_timeout: Duration,
    ) -> Line {
        let (member, address) = (node.member.clone(), node.address.clone());
        Line { member, address, state, dialer, connect_timeout, line: Mutex::default() }
    }

    /// Where to now. The entries that make a member a voter keep the address it came with: the log says where it is since.
    fn wanted(&self, line: &mut LineState) -> String {
        let state = self.state.borrow();
        let moved = state.moved.iter().find(|(member, _)| member.as_str() == self.member).map(|(_, at)| at);
        line.follow(moved);
        moved.filter(|_| !line.detour).unwrap_or(&self.address).clone()
    }

    /// A connection of its own, which ends when it is dropped.
    ///
    /// # Errors
    /// If the address can't be one.
    pub(super) fn dial(&self) -> Result<(String, Channel), String> {
        let at = self.wanted(&mut self.lock());
        let channel = self.dial_to(&at)?;
        Ok((at, channel))
    }

    fn dial_to(&self, address: &str) -> Result<Channel, String> {
        self.dialer.dial(address, self.connect_timeout).map_err(|e| chain(&e))
    }

    /// The shared connection, and where it goes: what becomes of a call is to be told with that.
    ///
    /// # Errors
    /// If the address can't be one.
    pub(super) fn channel(&self) -> Result<(String, Channel), String> {
        let mut line = self.lock();
        let wanted = self.wanted(&mut line);
        if let Some((at, channel)) = &line.channel
            && *at == wanted
        {
            return Ok((wanted, channel.clone()));
        }
        let channel = self.dial_to(&wanted)?;
        (line.channel, line.missed) = (Some((wanted.clone(), channel.clone())), 0);
        Ok((wanted, channel))
    }

    /// The node itself answered at `at`.
    pub(super) fn answered(&self, at: &str) {
        let mut line = self.lock();
        if self.wanted(&mut line) == at {
            line.missed = 0;
        }
        // Also when it was about to be looked for elsewhere: two that hold one log must not be taken for one.
        if line.moved.as_deref() == Some(at) && !line.arrived {
            (line.arrived, line.detour) = (true, false);
        }
    }

    /// Nobody is there, or not that node.
    pub(super) fn failed(&self, at: &str) {
        self.turn(&mut self.lock(), at);
    }

    /// No answer came in time.
    pub(super) fn missed(&self, at: &str) {
        let mut line = self.lock();
        if self.turn(&mut line, at) {
            return;
        }
        line.missed += 1;
        if line.missed >= MISSED_MAX {
            line.give_up();
        }
    }

    /// The other address is next, where there is one. Of several calls that failed at one address the first alone counts.
    fn turn(&self, line: &mut LineState, at: &str) -> bool {
        let other = self.wanted(line) == at && !line.arrived;
        let turns = other && line.moved.as_ref().is_some_and(|moved| *moved != self.address);
        if turns {
            line.detour = !line.detour;
            line.give_up();
        }
        turns
    }

    fn lock(&self) -> MutexGuard<'_, LineState> {
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::raft::TcpDialer;

    const HOME: &str = "127.0.0.1:7400";
    const THERE: &str = "127.0.0.9:7400";

    fn line() -> (watch::Sender<Arc<ClusterState>>, Line) {
        let (state, watched) = watch::channel(Arc::new(ClusterState::default()));
        let node = PeerNode { member: "n3".into(), address: HOME.into() };
        (state, Line::new(&node, watched, Arc::new(TcpDialer), Duration::from_millis(100)))
    }

    fn moves(state: &watch::Sender<Arc<ClusterState>>, to: Option<&str>) {
        let moved = to.map(|to| ("n3".parse().unwrap(), to.to_owned()));
        state.send_replace(Arc::new(ClusterState { moved: moved.into_iter().collect(), ..ClusterState::default() }));
    }

    fn next(line: &Line) -> String {
        line.channel().unwrap().0
    }

    #[tokio::test]
    async fn a_member_that_is_not_where_it_was_moved_to_is_looked_for_at_both_addresses_in_turn() {
        let (state, line) = line();
        line.failed(HOME);
        assert_eq!(next(&line), HOME, "there is one address only");
        moves(&state, Some(THERE));
        assert_eq!(next(&line), THERE);
        line.failed(THERE);
        line.failed(THERE);
        assert_eq!(next(&line), HOME, "calls that failed together count once");
        assert_eq!(line.dial().unwrap().0, HOME, "a snapshot goes the same way");
        line.answered(HOME);
        assert_eq!(next(&line), HOME);
        line.missed(HOME);
        assert_eq!(next(&line), THERE, "as soon as it is silent there");
        line.missed(THERE);
        assert_eq!(next(&line), HOME);
        moves(&state, Some("127.0.0.8:7400"));
        assert_eq!(next(&line), "127.0.0.8:7400", "another move begins anew");
        line.failed("127.0.0.8:7400");
        moves(&state, None);
        assert_eq!(next(&line), HOME);
    }

    #[tokio::test]
    async fn who_has_answered_where_it_was_moved_to_is_looked_for_nowhere_else() {
        let (state, line) = line();
        moves(&state, Some(THERE));
        assert_eq!(next(&line), THERE);
        line.failed(THERE);
        assert_eq!(next(&line), HOME);
        // An answer that was under way.
        line.answered(THERE);
        assert_eq!(next(&line), THERE);
        for _ in 0..10 {
            line.failed(THERE);
            line.missed(THERE);
            assert_eq!(next(&line), THERE, "a copy of its log that was left behind is asked nothing");
        }
        moves(&state, Some(HOME));
        assert_eq!(next(&line), HOME);
        line.failed(HOME);
        assert_eq!(next(&line), HOME, "moved back: both are the same");
    }
}
