//! How a layer's thread hears of things: orders in their sequence, and of the
//! deadlines only the newest. Whoever puts something in never waits for the layer.

use std::{
    collections::VecDeque,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use crate::domain::{Epoch, moment::TwoClocks};

/// Both ends of it. Cheap to clone.
#[derive(Debug)]
pub struct Inbox<O> {
    inner: Arc<Inner<O>>,
}

#[derive(Debug)]
struct Inner<O> {
    slot: Mutex<Slot<O>>,
    bell: Condvar,
}

#[derive(Debug)]
struct Slot<O> {
    orders: VecDeque<O>,
    moved: Option<(Epoch, TwoClocks)>,
}

/// What came in.
#[derive(Debug, PartialEq, Eq)]
pub enum Mail<O> {
    /// To be done before anything later.
    Order(O),
    /// The deadline of this epoch is there now.
    Moved(Epoch, TwoClocks),
    /// Nothing, for as long as was waited.
    Nothing,
}

impl<O> Clone for Inbox<O> {
    fn clone(&self) -> Self {
        Inbox { inner: Arc::clone(&self.inner) }
    }
}

impl<O> Inbox<O> {
    /// An empty one.
    pub fn new() -> Inbox<O> {
        let slot = Mutex::new(Slot { orders: VecDeque::new(), moved: None });
        Inbox { inner: Arc::new(Inner { slot, bell: Condvar::new() }) }
    }

    /// Puts an order in.
    pub fn order(&self, order: O) {
        self.lock().orders.push_back(order);
        self.inner.bell.notify_one();
    }

    /// Puts a deadline in, in place of one that was not looked at yet.
    pub fn moved(&self, epoch: Epoch, deadline: TwoClocks) {
        self.lock().moved = Some((epoch, deadline));
        self.inner.bell.notify_one();
    }

    /// Waits for the next thing, at most `patience`.
    pub fn wait(&self, patience: Option<Duration>) -> Mail<O> {
        let empty = |slot: &mut Slot<O>| slot.orders.is_empty() && slot.moved.is_none();
        let mut slot = match patience {
            Some(patience) => {
                let waited = self.inner.bell.wait_timeout_while(self.lock(), patience, empty);
                waited.unwrap_or_else(PoisonError::into_inner).0
            }
            None => self.inner.bell.wait_while(self.lock(), empty).unwrap_or_else(PoisonError::into_inner),
        };
        // Orders first: a deadline is of the time after them, or of an epoch that is over.
        match (slot.orders.pop_front(), slot.moved) {
            (Some(order), _) => Mail::Order(order),
            (None, Some((epoch, deadline))) => {
                slot.moved = None;
                Mail::Moved(epoch, deadline)
            }
            (None, None) => Mail::Nothing,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Slot<O>> {
        self.inner.slot.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_keep_their_sequence_and_only_the_newest_deadline_counts() {
        let inbox = Inbox::new();
        let at = |ms| TwoClocks::default().plus(Duration::from_millis(ms));
        inbox.moved(Epoch(1), at(1));
        inbox.order("arm");
        inbox.moved(Epoch(1), at(2));
        inbox.order("down");
        assert_eq!(inbox.wait(None), Mail::Order("arm"));
        assert_eq!(inbox.wait(None), Mail::Order("down"));
        assert_eq!(inbox.wait(None), Mail::Moved(Epoch(1), at(2)));
        assert_eq!(inbox.wait(Some(Duration::ZERO)), Mail::Nothing);
    }
}
