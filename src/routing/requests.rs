//! Counts what a client has asked for that a server answers with ReadyForQuery, and so knows when nothing is under way. Pure.
//!
//! PostgreSQL manual, "Message Flow": Query, Sync and FunctionCall are each answered so, once, and the begin of a session is.
//! A Sync in the middle of COPY FROM STDIN is ignored; such a session counts as busy for the rest of its life.

/// Kind and length of a message.
const HEAD: usize = 5;

/// What is asked for by the begin of a session.
pub const BEGIN: u64 = 1;

/// Where in the stream of one client the bytes have got to.
#[derive(Debug)]
pub struct Requests {
    head: [u8; HEAD],
    have: usize,
    /// Bytes of a message's body that are to come.
    left: u64,
    asked: u64,
    /// Messages of the extended protocol have come, and no Sync after them: a transaction may be open by them.
    open: bool,
    /// It has said that it ends (Terminate), and nothing after that.
    over: bool,
}

impl Default for Requests {
    fn default() -> Self {
        Self { head: [0; HEAD], have: 0, left: 0, asked: BEGIN, open: false, over: false }
    }
}

impl Requests {
    /// Takes in what the client sent next.
    pub fn follow(&mut self, bytes: &[u8]) {
        let mut rest = bytes;
        while !rest.is_empty() {
            if self.left > 0 {
                let taken = usize::try_from(self.left).unwrap_or(usize::MAX).min(rest.len());
                self.left -= taken as u64;
                rest = &rest[taken..];
                continue;
            }
            let taken = rest.len().min(HEAD - self.have);
            self.head[self.have..self.have + taken].copy_from_slice(&rest[..taken]);
            self.have += taken;
            rest = &rest[taken..];
            if self.have == HEAD {
                self.begin();
            }
        }
    }

    fn begin(&mut self) {
        let [kind, a, b, c, d] = self.head;
        self.have = 0;
        self.over = kind == b'X';
        self.left = u64::from(u32::from_be_bytes([a, b, c, d])).saturating_sub(4);
        match kind {
            b'Q' | b'S' | b'F' => (self.asked, self.open) = (self.asked + 1, false),
            b'P' | b'B' | b'E' | b'D' | b'C' => self.open = true,
            // Parts of a COPY, Flush, passwords, the end.
            _ => {}
        }
    }

    /// How often a server that is done with all of it has said that it is ready. What has not come whole, or waits for its
    /// Sync, counts as well: it is under way, and its answer is to come.
    pub fn asked(&self) -> u64 {
        self.asked + u64::from(self.is_amidst() || self.open)
    }

    /// Whether its last word was that it ends.
    pub fn is_over(&self) -> bool {
        self.over && !self.is_amidst()
    }

    /// Part of a message is to come.
    fn is_amidst(&self) -> bool {
        self.have > 0 || self.left > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: u8, body: &[u8]) -> Vec<u8> {
        let mut out = vec![kind];
        out.extend((u32::try_from(body.len()).unwrap() + 4).to_be_bytes());
        out.extend(body);
        out
    }

    #[test]
    fn what_is_answered_with_ready_is_counted_wherever_the_bytes_are_cut() {
        let stream = [
            message(b'p', b"SCRAM"),
            message(b'Q', b"select 'S'\0"),
            message(b'P', b"\0begin\0\0\0"),
            message(b'B', b"\0\0"),
            message(b'E', b"\0\0\0\0\0"),
            message(b'S', b""),
            message(b'd', b"Q\0\0\0\x04"),
            message(b'c', b""),
            message(b'F', b"\0\0"),
        ]
        .concat();
        for cut in 0..stream.len() {
            let mut requests = Requests::default();
            requests.follow(&stream[..cut]);
            requests.follow(&stream[cut..]);
            assert_eq!(requests.asked(), 4, "cut at {cut}");
        }
        let mut requests = Requests::default();
        for byte in stream {
            requests.follow(&[byte]);
        }
        assert_eq!(requests.asked(), 4);
    }

    #[test]
    fn a_message_that_has_begun_is_under_way() {
        let mut requests = Requests::default();
        requests.follow(b"Q\0");
        assert_eq!(requests.asked(), 2);
        // Its text has not come, and no answer to it either.
        requests.follow(b"\0\0\x09");
        assert_eq!(requests.asked(), 3);
        requests.follow(b"text\0");
        assert_eq!(requests.asked(), 2);
    }

    #[test]
    fn what_waits_for_its_sync_is_under_way() {
        let mut requests = Requests::default();
        for (kind, asked) in [(b'P', 2), (b'B', 2), (b'E', 2), (b'H', 2), (b'S', 2), (b'H', 2), (b'C', 3), (b'S', 3)] {
            requests.follow(&message(kind, b""));
            assert_eq!(requests.asked(), asked, "{}", char::from(kind));
        }
        // Half of a Bind.
        let bind = message(b'B', &[7; 100]);
        requests.follow(&bind[..50]);
        assert_eq!(requests.asked(), 4);
    }

    #[test]
    fn the_end_is_said_by_the_last_message() {
        let mut requests = Requests::default();
        requests.follow(&message(b'Q', b"select 'X'\0"));
        assert!(!requests.is_over());
        requests.follow(b"X\0\0\0");
        assert!(!requests.is_over(), "not all of it has come");
        requests.follow(b"\x04");
        assert!(requests.is_over());
        assert_eq!(requests.asked(), 2, "it asks for nothing");
        requests.follow(b"Q");
        assert!(!requests.is_over());
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(0u8.., 0..64)) {
            Requests::default().follow(&bytes);
        }
    }
}
