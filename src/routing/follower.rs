//! Follows the messages of a server and notices one: PostgreSQL's word that a wait for
//! synchronous replication was cancelled. What comes after it would acknowledge a commit
//! that no standby has confirmed. Pure: bytes in, a verdict out.
//!
//! Nothing is held back and nothing is copied. Whoever carries the bytes may hand each
//! piece on as it came, up to the end of that notice; only headers are looked at, and the
//! fields of notices. So the size of a message doesn't matter, and neither does where it is cut.

/// The function that waits (syncrep.c, PostgreSQL 9.1 and later). Error fields with names of
/// functions and the severity `V` are not translated, whatever `lc_messages` says.
const ROUTINE: &[u8] = b"SyncRepWaitForLSN";
const WARNING: &[u8] = b"WARNING";
/// Kind and length of a message.
const HEAD: usize = 5;

/// Where in the stream of one server the bytes have got to.
#[derive(Debug, Default)]
pub struct Follower {
    state: State,
    /// How often it has said that it is ready for a query.
    ready: u64,
    /// It said so outside of a transaction at last.
    outside: bool,
}

#[derive(Debug)]
enum State {
    /// Between two messages, or in the middle of a header.
    Head { head: [u8; HEAD], have: usize },
    /// So many bytes of a message of no interest are to come.
    Body { left: u64 },
    /// The byte of a ReadyForQuery is to come.
    Ready,
    /// So many bytes of a NoticeResponse are to come.
    Notice { left: u64, fields: Fields },
    /// Not looked at any more.
    Unread,
}

impl Default for State {
    fn default() -> Self {
        Self::Head { head: [0; HEAD], have: 0 }
    }
}

/// The fields of one notice, as far as they have come.
#[derive(Debug, Default)]
struct Fields {
    /// Tag of the field that is being read; `None` where the next one begins.
    tag: Option<u8>,
    /// How much of the text that is looked for has been seen; `None` when it is another text.
    matched: Option<usize>,
    warning: bool,
    routine: bool,
}

impl Follower {
    /// Takes in what the server sent next. `Some(n)` when a notice of a cancelled wait ends after the first `n`
    /// bytes of it: from there on nothing may be handed on.
    pub fn follow(&mut self, bytes: &[u8]) -> Option<usize> {
        let mut at = 0;
        while at < bytes.len() {
            let rest = &bytes[at..];
            // Small rows come by the hundred, and most of them whole.
            if let (State::Head { have: 0, .. }, Some(size)) = (&self.state, whole(rest)) {
                if rest[0] == b'Z' {
                    self.is_ready(rest[size - 1]);
                }
                at += size;
                continue;
            }
            match &mut self.state {
                State::Head { head, have } => {
                    let taken = rest.len().min(HEAD - *have);
                    head[*have..*have + taken].copy_from_slice(&rest[..taken]);
                    *have += taken;
                    at += taken;
                    if *have == HEAD {
                        self.state = State::after(*head);
                    }
                }
                State::Body { left } => {
                    let taken = u64::min(*left, rest.len() as u64);
                    *left -= taken;
                    at += usize::try_from(taken).unwrap_or(rest.len());
                    if *left == 0 {
                        self.state = State::default();
                    }
                }
                State::Ready => {
                    self.is_ready(rest[0]);
                    self.state = State::default();
                    at += 1;
                }
                State::Notice { left, fields } => {
                    let taken = usize::try_from(*left).unwrap_or(usize::MAX).min(rest.len());
                    rest[..taken].iter().for_each(|byte| fields.take(*byte));
                    *left -= taken as u64;
                    at += taken;
                    if *left == 0 {
                        let cancelled = fields.warning && fields.routine;
                        self.state = State::default();
                        if cancelled {
                            return Some(at);
                        }
                    }
                }
                State::Unread => return None,
            }
        }
        None
    }
}

impl Follower {
    fn is_ready(&mut self, status: u8) {
        self.ready += 1;
        self.outside = status == b'I';
    }

    /// How often the server has said that it is ready; `None` when a transaction is open, or its words were not understood.
    pub fn ready_outside(&self) -> Option<u64> {
        (self.outside && !matches!(self.state, State::Unread)).then_some(self.ready)
    }
}

/// The size of the message that these bytes begin with, when it is all there and of no interest.
fn whole(bytes: &[u8]) -> Option<usize> {
    let &[kind, a, b, c, d, ..] = bytes else { return None };
    let length = usize::try_from(u32::from_be_bytes([a, b, c, d])).ok()?;
    (kind != b'N' && length >= 4 && length < bytes.len()).then_some(1 + length)
}

impl State {
    /// What follows a whole header.
    fn after(head: [u8; HEAD]) -> Self {
        let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]);
        match (head[0], length) {
            // What has such a length is no message.
            (_, 0..=3) => Self::Unread,
            (_, 4) => Self::default(),
            (b'Z', 5) => Self::Ready,
            (b'N', length) => Self::Notice { left: u64::from(length) - 4, fields: Fields::default() },
            (_, length) => Self::Body { left: u64::from(length) - 4 },
        }
    }
}

impl Fields {
    fn take(&mut self, byte: u8) {
        let Some(tag) = self.tag else {
            // The zero that ends the list is a tag too: nothing follows it.
            (self.tag, self.matched) = (Some(byte), Some(0));
            return;
        };
        let wanted = match tag {
            b'V' => WARNING,
            b'R' => ROUTINE,
            _ => b"",
        };
        if byte != 0 {
            self.matched = self.matched.filter(|seen| wanted.get(*seen) == Some(&byte)).map(|seen| seen + 1);
            return;
        }
        if !wanted.is_empty() && self.matched == Some(wanted.len()) {
            self.warning |= tag == b'V';
            self.routine |= tag == b'R';
        }
        self.tag = None;
    }
}

#[cfg(test)]
#[path = "follower_test.rs"]
mod tests;
