//! Connections that have not said yet what they want. They take no place of those that have, and there are so many of them at
//! most: when another comes the oldest goes, for a client says what it wants at once.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use tokio::task::AbortHandle;

/// Who has said nothing yet, and how many have a place.
#[derive(Debug)]
pub struct Lobby {
    waiting: Mutex<Waiting>,
    room: usize,
    places: usize,
    taken: AtomicUsize,
}

#[derive(Debug, Default)]
struct Waiting {
    next: u64,
    /// By the order in which they came. `None`: it has come, and its task is about to begin.
    silent: BTreeMap<u64, Option<AbortHandle>>,
}

/// What a connection has from when it is accepted to when it has said what it wants.
#[derive(Debug)]
pub struct Ticket {
    lobby: Arc<Lobby>,
    number: u64,
}

/// The right to be served.
#[derive(Debug)]
pub struct Place {
    lobby: Arc<Lobby>,
    task: Option<AbortHandle>,
}

impl Lobby {
    /// With `places` for those that are served; `room`: so many may say nothing at one time.
    pub fn new(places: usize, room: usize) -> Arc<Self> {
        Arc::new(Self { waiting: Mutex::default(), room, places, taken: AtomicUsize::new(0) })
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets one in; whoever has been silent for longest has to go for it where there are too many.
    pub fn enter(self: &Arc<Self>) -> Ticket {
        self.let_in(None)
    }

    fn let_in(self: &Arc<Self>, task: Option<AbortHandle>) -> Ticket {
        let mut waiting = self.lock();
        let number = waiting.next;
        waiting.next += 1;
        waiting.silent.insert(number, task);
        if waiting.silent.len() > self.room
            && let Some((_, task)) = waiting.silent.pop_first()
        {
            task.inspect(AbortHandle::abort);
        }
        Ticket { lobby: Arc::clone(self), number }
    }

    /// Which task serves the connection of a ticket.
    pub fn serves(&self, number: u64, task: AbortHandle) {
        if let Some(silent) = self.lock().silent.get_mut(&number) {
            *silent = Some(task);
        }
    }
}

impl Ticket {
    /// For [`Lobby::serves`].
    pub fn number(&self) -> u64 {
        self.number
    }

    /// It has said what it wants; `None`: there is no place for another.
    pub fn take_place(self) -> Option<Place> {
        self.or_stay().ok()
    }

    /// It has said what it wants.
    ///
    /// # Errors
    /// There is no place for another, so it stays in the lobby.
    pub fn or_stay(self) -> Result<Place, Ticket> {
        let lobby = Arc::clone(&self.lobby);
        let more = |taken: usize| (taken < lobby.places).then_some(taken + 1);
        if lobby.taken.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_err() {
            return Err(self);
        }
        let task = lobby.lock().silent.remove(&self.number).flatten();
        Ok(Place { lobby, task })
    }
}

impl Place {
    /// It has been served, and what comes next is up to the client again.
    pub fn leave(mut self) -> Ticket {
        let task = self.task.take();
        self.lobby.let_in(task)
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.lobby.lock().silent.remove(&self.number);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.lobby.taken.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_given_to_those_who_speak_and_given_back() {
        let lobby = Lobby::new(1, 9);
        let (first, second, third) = (lobby.enter(), lobby.enter(), lobby.enter());
        let place = first.take_place().unwrap();
        assert!(second.take_place().is_none());
        let back = place.leave();
        assert_eq!(lobby.lock().silent.len(), 2, "the third, and the first again");
        drop(back);
        assert!(third.take_place().is_some());
        assert!(lobby.lock().silent.is_empty());
    }

    #[tokio::test]
    async fn the_oldest_goes_when_there_are_too_many() {
        const ROOM: usize = 5;
        let lobby = Lobby::new(1, ROOM);
        let mut tasks = tokio::task::JoinSet::new();
        let mut tickets = Vec::new();
        for _ in 0..ROOM + 2 {
            let ticket = lobby.enter();
            let task = tasks.spawn(std::future::pending::<()>());
            lobby.serves(ticket.number(), task);
            tickets.push(ticket);
        }
        for _ in 0..2 {
            assert!(tasks.join_next().await.unwrap().unwrap_err().is_cancelled());
        }
        assert_eq!((tasks.len(), lobby.lock().silent.len()), (ROOM, ROOM));
        assert_eq!(lobby.lock().silent.first_key_value().unwrap().0, &2, "in the order in which they came");
    }
}
