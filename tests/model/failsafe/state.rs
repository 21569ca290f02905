//! What failsafe consists of: a holder, the agents it asks, and the voters as one.
//!
//! The voters stand for one that is a majority by itself: how they agree is what
//! the other two models are about.

/// Agents beside the holder's: two in the first list, a third in the second.
pub const AGENTS: usize = 3;
/// The one that was added later.
pub const ADDED: u8 = 2;
/// The age of a question that there is none of.
pub const NO_ROUND: u8 = u8::MAX;

/// One of the other agents.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Agent {
    /// The version of the member list that it has applied, 1 or 2.
    pub list: u8,
    /// Units of its clock for which it still refuses to promote.
    pub refuses: u8,
    /// That it ever acknowledged is on disk.
    pub flagged: bool,
    /// It, or its manager, knows epoch 2.
    pub knows_higher: bool,
    /// It acknowledged the present question.
    pub acked: bool,
}

/// How far epoch 1 has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Phase {
    /// Granted, and never held.
    Seeking,
    /// Held until its deadline.
    Held,
    /// Fenced, and some process of the tree may still acknowledge.
    Killing,
    /// The tree is empty.
    Dead,
}

/// What the holder sent last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Round {
    /// Units of its clock since then; [`NO_ROUND`].
    pub age: u8,
    /// To the agents, not to the voters.
    pub failsafe: bool,
    /// The list that it names.
    pub list: u8,
    /// The voters acked it.
    pub acked: bool,
}

/// Everything.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct State {
    /// Epoch 1.
    pub phase: Phase,
    /// Until its deadline while held; until the tree is empty while killing.
    pub left: u8,
    /// The last list that the holder's agent has applied.
    pub list: u8,
    /// What it sent last.
    pub round: Round,
    /// The deadline was prolonged by the agents.
    pub prolonged: bool,
    /// The other agents.
    pub agents: [Agent; AGENTS],
    /// The list in the log.
    pub committed: u8,
    /// A renewal was counted with the second list in it.
    pub counted: bool,
    /// The voters' promise.
    pub until: u8,
    /// Epoch 2 is fenced, and sealed by the voters.
    pub sealed: bool,
    /// Whom epoch 2 is granted to.
    pub granted: Option<u8>,
    /// It has promoted.
    pub promoted: bool,
}

impl State {
    /// The first two agents are interchangeable: they stand in order.
    pub fn sorted(mut self) -> Self {
        if self.agents[0] > self.agents[1] {
            self.agents.swap(0, 1);
            self.granted = self.granted.map(|agent| if agent < ADDED { 1 - agent } else { agent });
        }
        self
    }
}
