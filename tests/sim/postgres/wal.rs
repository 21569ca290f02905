//! WAL as it really is, behind the numbers.
//!
//! PostgreSQL knows WAL by the number of a timeline and a position. Two promotions can take the same
//! number, and then equal names hide different bytes. Here each promotion makes a *branch* of its own, so
//! that the simulation always knows what a data directory truly contains: all bytes up to `end` of one
//! branch, and below its beginning those of its parents.

use std::collections::BTreeMap;

use matriarch::domain::{Epoch, Lsn, TimelineHistory, TimelineId, TimelineSwitch};

/// Records are this long, so that a stream can be cut in the middle of one.
pub const RECORD: u64 = 256;

/// The end of the last whole record at or before `lsn`.
pub fn whole(lsn: u64) -> u64 {
    lsn - lsn % RECORD
}

/// A number for a branch, never used twice.
pub type BranchId = usize;

/// What one initdb or one promotion began.
#[derive(Debug, Clone)]
pub struct Branch {
    pub timeline: TimelineId,
    /// The branch it grew out of, and where.
    pub parent: Option<(BranchId, u64)>,
    /// Which host began it.
    pub host: usize,
    /// Under which grant; `None` by hand or by initdb.
    #[allow(dead_code)] // Read in messages only, through Debug.
    pub epoch: Option<Epoch>,
    /// Where its last checkpoint lies.
    pub checkpoint: Option<u64>,
    /// How far it was ever flushed by whoever wrote it.
    pub tip: u64,
}

/// All bytes of a branch and its parents up to `end`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Content {
    pub branch: BranchId,
    pub end: u64,
}

/// Every branch there ever was.
#[derive(Debug, Clone, Default)]
pub struct Branches(Vec<Branch>);

impl Branches {
    pub fn add(&mut self, branch: Branch) -> BranchId {
        self.0.push(branch);
        self.0.len() - 1
    }

    /// `host` may go on with its own branch when nobody has more of it than it has.
    pub fn may_continue(&self, host: usize, content: Content) -> bool {
        let branch = &self.0[content.branch];
        branch.host == host && content.end >= branch.tip
    }

    pub fn note_flush(&mut self, content: Content) {
        let tip = &mut self.0[content.branch].tip;
        *tip = content.end.max(*tip);
    }

    pub fn note_checkpoint(&mut self, id: BranchId, at: u64) {
        self.0[id].checkpoint = Some(at);
    }

    /// The last checkpoint before `lsn`: where a standby that replayed so far would restart.
    pub fn last_checkpoint(&self, id: BranchId, lsn: u64) -> Option<(TimelineId, u64)> {
        let (mut branch, mut end) = (self.branch_at(id, lsn), lsn);
        loop {
            if let Some(at) = self.0[branch].checkpoint.filter(|at| *at < end) {
                return Some((self.timeline(branch), at));
            }
            let (parent, begin) = self.0[branch].parent?;
            (branch, end) = (parent, end.min(begin));
        }
    }

    pub fn timeline(&self, id: BranchId) -> TimelineId {
        self.0[id].timeline
    }

    /// Where a branch begins.
    pub fn begin(&self, id: BranchId) -> u64 {
        self.0[id].parent.map_or(0, |(_, at)| at)
    }

    /// The branches from the oldest to `id`.
    fn path(&self, id: BranchId) -> Vec<BranchId> {
        let mut path = vec![id];
        while let Some((parent, _)) = self.0[path[path.len() - 1]].parent {
            path.push(parent);
        }
        path.reverse();
        path
    }

    /// The history file that a server on `id` has of its own timeline.
    pub fn history(&self, id: BranchId) -> TimelineHistory {
        let path = self.path(id);
        // A server started by hand can go on with a number that is another's already.
        let steps = path.windows(2).filter(|pair| self.timeline(pair[0]) != self.timeline(pair[1]));
        let switch =
            |pair: &[BranchId]| TimelineSwitch { timeline: self.timeline(pair[0]), end: Lsn(self.begin(pair[1])) };
        TimelineHistory { timeline: self.timeline(id), switches: steps.map(switch).collect(), ..Default::default() }
    }

    /// Each promotion's first record, known by its branch, as far as `content` has it and it is not from before `kept`.
    pub fn first_records(&self, content: Content, kept: u64) -> BTreeMap<TimelineId, u32> {
        let mut found = BTreeMap::new();
        for branch in self.path(content.branch) {
            let begin = self.begin(branch);
            if self.0[branch].parent.is_some() && begin >= kept && begin + RECORD <= content.end {
                found.entry(self.timeline(branch)).or_insert(branch as u32);
            }
        }
        found
    }

    /// Up to where two contents are the same bytes.
    pub fn common(&self, a: Content, b: Content) -> u64 {
        let (pa, pb) = (self.path(a.branch), self.path(b.branch));
        let shared = pa.iter().zip(&pb).take_while(|(x, y)| x == y).count();
        if shared == 0 {
            return 0;
        }
        let leaves = |path: &[BranchId], end: u64| path.get(shared).map_or(end, |next| self.begin(*next).min(end));
        leaves(&pa, a.end).min(leaves(&pb, b.end))
    }

    /// Everything `a` has is in `b` too.
    pub fn is_prefix(&self, a: Content, b: Content) -> bool {
        a.end <= b.end && self.common(a, b) >= a.end
    }

    /// What of `content` lies on `timeline` and before it: all that a recovery along it reads.
    pub fn up_to_timeline(&self, content: Content, timeline: TimelineId) -> Content {
        let path = self.path(content.branch);
        let last = path.iter().rposition(|b| self.timeline(*b) == timeline).unwrap_or(path.len() - 1);
        let end = path.get(last + 1).map_or(content.end, |next| self.begin(*next).min(content.end));
        Content { branch: path[last], end }
    }

    /// The branch of `id`'s path that has the byte before `lsn`.
    pub fn branch_at(&self, id: BranchId, lsn: u64) -> BranchId {
        let mut branch = id;
        while let Some((parent, _)) = self.0[branch].parent.filter(|(_, at)| lsn <= *at) {
            branch = parent;
        }
        branch
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn branches() -> Branches {
        let mut all = Branches::default();
        let mut add = |timeline, parent| {
            all.add(Branch { timeline: TimelineId(timeline), parent, host: 0, epoch: None, checkpoint: None, tip: 0 });
        };
        add(1, None);
        add(2, Some((0, 1_000)));
        add(2, Some((0, 1_200)));
        add(3, Some((1, 1_500)));
        all
    }

    #[test]
    fn equal_numbers_are_not_equal_bytes() {
        let all = branches();
        let content = |branch, end| Content { branch, end };
        assert_eq!(all.common(content(1, 1_400), content(2, 1_400)), 1_000);
        assert_eq!(all.common(content(3, 1_900), content(1, 1_700)), 1_500);
        assert!(all.is_prefix(content(0, 900), content(3, 1_600)));
        assert!(!all.is_prefix(content(0, 1_100), content(3, 1_600)));
        assert!(!all.is_prefix(content(2, 1_300), content(1, 1_400)));
    }

    #[test]
    fn a_history_names_where_each_ancestor_ended() {
        let history = branches().history(3);
        let switches: Vec<(u32, u64)> = history.switches.iter().map(|s| (s.timeline.0, s.end.0)).collect();
        assert_eq!((history.timeline, switches), (TimelineId(3), vec![(1, 1_000), (2, 1_500)]));
        assert_eq!(branches().branch_at(3, 1_500), 1);
        assert_eq!(branches().branch_at(3, 1_501), 3);
    }
}
