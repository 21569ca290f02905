//! How far the log had come, kept outside of its directory. A directory that was
//! put back from an older copy is a voter that has forgotten what it acknowledged;
//! the mark beside it tells that from a directory that was only left alone.
//!
//! A mark is written after what it speaks of is durable, never before it, so that
//! no power loss makes an honest log look old. It may lag by [`LAG`].

use std::{
    fs::{self, File},
    io::{self, Write as _},
    path::{Path, PathBuf},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use super::{
    backend::{OpenError, io_at, sync_dir},
    convert,
    types::{LogId, Vote},
};
use crate::{domain::NodeId, rpc::v1};

/// New entries are marked at most this late. A vote is marked at once.
pub(super) const LAG: Duration = Duration::from_millis(200);
const HEAD: &str = "matriarch-raft-mark-1";

/// How far a node's log had come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Mark {
    pub(super) node: NodeId,
    pub(super) vote: Option<Vote>,
    pub(super) last: Option<LogId>,
}

impl Mark {
    /// The log was further once than it is `now`: what is older, `None` when nothing is.
    ///
    /// A new vote may be followed by the loss of entries that were never committed, so the
    /// entries are compared under the same vote only.
    pub(super) fn is_ahead_of(&self, now: &Mark) -> bool {
        let rank = |vote: &Option<Vote>| vote.as_ref().map(|v| (v.leader_id.term, v.committed));
        if rank(&self.vote) != rank(&now.vote) {
            return rank(&self.vote) > rank(&now.vote);
        }
        let voted_for = |vote: &Option<Vote>| vote.as_ref().map(|v| v.leader_id.voted_for);
        voted_for(&self.vote) != voted_for(&now.vote) || self.last > now.last
    }

    /// For messages.
    pub(super) fn words(&self) -> String {
        let vote = self.vote.as_ref().map_or(0, |v| v.leader_id.term);
        match &self.last {
            Some(id) => format!("vote of term {vote}, last entry {} of term {}", id.index, id.leader_id.term),
            None => format!("vote of term {vote}, no entry"),
        }
    }

    fn render(&self) -> String {
        let vote = self.vote.as_ref().map(convert::vote_out).unwrap_or_default();
        let last = self.last.as_ref().map(convert::log_id_out);
        let index = last.as_ref().map_or(0, |id| id.index + 1);
        let term = last.map_or(0, |id| id.term);
        let known = u8::from(self.vote.is_some());
        let committed = u8::from(vote.committed);
        let line = format!("{HEAD} {} {known} {} {} {committed} {term} {index}", self.node, vote.term, vote.node_id);
        format!("{line} {:08x}\n", crc32c::crc32c(line.as_bytes()))
    }

    fn parse(text: &str) -> Option<Mark> {
        let (line, crc) = text.strip_suffix('\n')?.rsplit_once(' ')?;
        if u32::from_str_radix(crc, 16).ok()? != crc32c::crc32c(line.as_bytes()) {
            return None;
        }
        let mut words = line.strip_prefix(HEAD)?.strip_prefix(' ')?.split(' ').map(|w| w.parse::<u64>().ok());
        let mut next = || words.next().flatten();
        let (node, known, term, voted_for, committed) = (next()?, next()?, next()?, next()?, next()?);
        let (last_term, index) = (next()?, next()?);
        let vote = v1::Vote { term, node_id: voted_for, committed: committed == 1 };
        let last = index.checked_sub(1).map(|index| convert::log_id_in(&v1::LogId { term: last_term, index }));
        Some(Mark { node: NodeId(node), vote: (known == 1).then(|| convert::vote_in(&vote)), last })
    }
}

/// Where the mark of a log in `dir` is: beside the directory, so that a copy of it takes no mark along.
pub(super) fn path(dir: &Path) -> PathBuf {
    let mut name = dir.as_os_str().to_owned();
    name.push(".mark");
    name.into()
}

/// The mark of the log in `dir`, `None` when there never was one.
pub(super) fn load(dir: &Path) -> Result<Option<Mark>, OpenError> {
    let path = path(dir);
    let text = match fs::read_to_string(&path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other.map_err(io_at("read", &path))?,
    };
    let why = || format!("`{}` is no mark", text.trim_end());
    Mark::parse(&text).map(Some).ok_or_else(|| OpenError::Damaged { path: path.clone(), why: why() })
}

fn store(dir: &Path, mark: &Mark) -> io::Result<()> {
    let path = path(dir);
    let temporary = path.with_extension("mark.tmp");
    let mut file = File::create(&temporary)?;
    file.write_all(mark.render().as_bytes())?;
    file.sync_all()?;
    fs::rename(&temporary, &path)?;
    path.parent().filter(|p| !p.as_os_str().is_empty()).map_or(Ok(()), sync_dir)
}

#[derive(Default)]
struct Desk {
    wanted: Option<Mark>,
    closed: bool,
}

/// Writes marks on a thread of its own: nobody waits for one.
pub(super) struct Marker {
    desk: Arc<(Mutex<Desk>, Condvar)>,
    thread: Option<thread::JoinHandle<()>>,
}

fn lock(desk: &Mutex<Desk>) -> MutexGuard<'_, Desk> {
    desk.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Marker {
    /// A marker of the log in `dir`.
    pub(super) fn start(dir: PathBuf) -> io::Result<Marker> {
        let desk = Arc::<(Mutex<Desk>, Condvar)>::default();
        let theirs = Arc::clone(&desk);
        let thread = thread::Builder::new().name("raft-mark".to_owned()).spawn(move || run(&dir, &theirs))?;
        Ok(Marker { desk, thread: Some(thread) })
    }

    /// What is durable now.
    pub(super) fn put(&self, mark: Mark) {
        let (desk, woken) = &*self.desk;
        lock(desk).wanted = Some(mark);
        woken.notify_one();
    }
}

impl Drop for Marker {
    fn drop(&mut self) {
        let (desk, woken) = &*self.desk;
        lock(desk).closed = true;
        woken.notify_one();
        // The last mark is written before the directory is free for another node.
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::warn!("the thread that marks the Raft log had panicked");
        }
    }
}

fn run(dir: &Path, (desk, woken): &(Mutex<Desk>, Condvar)) {
    let mut written: Option<Mark> = None;
    let mut failed = false;
    loop {
        let mut now = lock(desk);
        while now.wanted.is_none_or(|w| Some(w) == written) && !now.closed {
            now = woken.wait(now).unwrap_or_else(PoisonError::into_inner);
        }
        let hurry = now.closed || now.wanted.map(|w| w.vote) != written.map(|w| w.vote);
        if !hurry {
            let waited = woken
                .wait_timeout_while(now, LAG, |d| !d.closed && d.wanted.map(|w| w.vote) == written.map(|w| w.vote));
            now = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        let (wanted, closed) = (now.wanted, now.closed);
        drop(now);
        if let Some(mark) = wanted.filter(|w| Some(*w) != written) {
            match store(dir, &mark) {
                Ok(()) => failed = false,
                Err(error) if !failed => {
                    failed = true;
                    tracing::warn!(%error, path = %path(dir).display(), "how far the Raft log has come can't be marked");
                }
                Err(_) => {}
            }
            written = Some(mark);
        }
        if closed {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mark(vote: Option<(u64, u64, bool)>, last: Option<(u64, u64)>) -> Mark {
        let vote = vote.map(|(term, node_id, committed)| convert::vote_in(&v1::Vote { term, node_id, committed }));
        let last = last.map(|(term, index)| convert::log_id_in(&v1::LogId { term, index }));
        Mark { node: NodeId(2), vote, last }
    }

    #[test]
    fn a_mark_is_read_back_and_a_damaged_one_is_not_taken_for_none() {
        let dir = tempfile::tempdir().unwrap();
        let raft = dir.path().join("raft");
        assert_eq!(load(&raft).unwrap(), None);
        for known in
            [mark(None, None), mark(Some((3, 1, true)), Some((3, 0))), mark(Some((9, 2, false)), Some((8, 77)))]
        {
            let marker = Marker::start(raft.clone()).unwrap();
            marker.put(known);
            drop(marker);
            assert_eq!(load(&raft).unwrap(), Some(known));
        }
        let text = fs::read_to_string(path(&raft)).unwrap();
        fs::write(path(&raft), text.replace(" 77 ", " 76 ").replace(" 78 ", " 77 ")).unwrap();
        assert!(matches!(load(&raft), Err(OpenError::Damaged { .. })));
    }

    #[test]
    fn an_older_vote_or_a_shorter_log_under_the_same_vote_is_a_log_that_went_back() {
        let was = mark(Some((3, 1, true)), Some((3, 20)));
        for older in [
            mark(None, None),
            mark(Some((2, 1, true)), Some((2, 30))),
            mark(Some((3, 1, false)), Some((3, 20))),
            mark(Some((3, 1, true)), Some((3, 19))),
            mark(Some((3, 1, true)), None),
            mark(Some((3, 2, true)), Some((3, 20))),
        ] {
            assert!(was.is_ahead_of(&older), "{older:?}");
        }
        for newer in [
            was,
            mark(Some((3, 1, true)), Some((3, 21))),
            // The leader of term 4 cut off what was never committed.
            mark(Some((4, 3, true)), Some((2, 18))),
        ] {
            assert!(!was.is_ahead_of(&newer), "{newer:?}");
        }
    }
}
