//! Both addresses on one host, where the primary has that for standbys as well.
//!
//! Each write of one keeps the kernel from looking at the other's end for up to a second, and a short lease has no second to
//! spare. So while the primary's is here the other is written with it, in the same moment, and never by itself; what of it can't
//! be written in that moment goes before. Then the kernel looks at both when the first of them is over.

use std::{
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use super::{Order, Run, plan::Step};
use crate::{domain::moment::TwoClocks, guard::sys::two_clocks};

/// A thread's own part, for the thread of the other address. Cheap to clone.
#[derive(Clone)]
pub(super) struct Shared(Arc<Mutex<Run>>);

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Shared")
    }
}

impl Shared {
    pub(super) fn new(run: Run) -> Shared {
        Shared(Arc::new(Mutex::new(run)))
    }

    /// Held while an address is written, and never while anything is waited for but the kernel.
    pub(super) fn lock(&self) -> MutexGuard<'_, Run> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The primary's is here, or may be. Never blocks for what the other thread does in the kernel.
    fn flag(&self) -> Option<Arc<AtomicBool>> {
        match &self.lock().kind {
            Kind::Reader(reader) => Some(Arc::clone(&reader.primary_is_here)),
            Kind::Primary(_) => None,
        }
    }
}

/// Which address it is.
pub(super) enum Kind {
    /// That of the primary, with that for standbys where there is one.
    Primary(Option<Other>),
    /// That for standbys.
    Reader(Reader),
}

/// The address for standbys, as the thread of the primary's has it.
pub(super) struct Other {
    run: Shared,
    primary_is_here: Arc<AtomicBool>,
}

impl Kind {
    /// Of the primary.
    pub(super) fn primary(reader: Option<Shared>) -> Kind {
        Kind::Primary(reader.and_then(|run| run.flag().map(|primary_is_here| Other { run, primary_is_here })))
    }
}

/// What the one for standbys knows of the primary's.
#[derive(Default)]
pub(super) struct Reader {
    /// It is here, or may be.
    primary_is_here: Arc<AtomicBool>,
    /// What an earlier agent left of this address was looked at.
    looked: bool,
}

impl Run {
    /// The primary's address is on this host, too.
    pub(super) fn is_beside(&self) -> bool {
        matches!(&self.kind, Kind::Reader(reader) if reader.primary_is_here.load(Ordering::SeqCst))
    }

    /// Of the primary's: it is here, or may be, or not any more.
    pub(super) fn say_here(&self, here: bool) {
        if let Kind::Primary(Some(other)) = &self.kind {
            other.primary_is_here.store(here, Ordering::SeqCst);
        }
    }

    /// False when it has to be looked at again.
    pub(super) fn write_both(&mut self, seconds: u32, now: TwoClocks) -> bool {
        // Before the lock: whoever has that by then writes no more after this.
        self.say_here(true);
        let other = match &self.kind {
            Kind::Primary(Some(other)) => Some(other.run.clone()),
            Kind::Primary(None) | Kind::Reader(_) => None,
        };
        let mut reader = other.as_ref().map(Shared::lock);
        if let Some(reader) = &mut reader {
            reader.make_way(now);
        }
        // This one before: should everything end in between, it is over in time.
        let written = self.write(seconds, now);
        if let Some(reader) = reader.as_mut().filter(|_| self.known.written.is_some()) {
            reader.go_along(two_clocks());
        }
        written && self.is_still_in_time(seconds)
    }

    /// Of the one for standbys: it goes, unless it can be written anew now.
    fn make_way(&mut self, now: TwoClocks) {
        let Kind::Reader(reader) = &mut self.kind else { return };
        let left_over = !std::mem::replace(&mut reader.looked, true);
        match self.known.together(now) {
            Step::Write(_) => {
                self.stand();
            }
            Step::Leave if left_over => self.remove(),
            Step::Leave => {}
            Step::Remove => self.remove(),
        }
    }

    /// Of the one for standbys: it is written anew.
    fn go_along(&mut self, now: TwoClocks) {
        match self.known.together(now) {
            Step::Write(seconds) => {
                let new = self.known.written.is_none();
                self.write(seconds, now);
                self.announce();
                if new {
                    // It is announced again and again.
                    self.inbox.order(Order::Beside);
                }
            }
            Step::Remove => self.remove(),
            Step::Leave => {}
        }
    }
}
