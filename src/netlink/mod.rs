//! The little of netlink that three kernel interfaces need: messages with
//! attributes, sent in one datagram, and the kernel's answers to them. And [`marked`]: the
//! addresses of this host that carry our mark, which agent and guard take away.
//!
//! The kernel works a request off inside of `send`, so its answers are there when
//! that returns; nothing here waits but for a lock of the kernel.

pub mod marked;

use std::{
    io,
    os::fd::{AsRawFd as _, OwnedFd},
};

use nix::{
    errno::Errno,
    sys::socket::{AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, sendto, socket},
};

/// `NLM_F_REQUEST`.
const REQUEST: u16 = 0x1;
/// `NLM_F_ACK`: answer also when all went well.
const ACK: u16 = 0x4;
/// `NLM_F_ROOT | NLM_F_MATCH`: everything, in many messages.
pub const DUMP: u16 = 0x300;
/// `NLM_F_CREATE`.
pub const CREATE: u16 = 0x400;
/// `NLM_F_APPEND`.
pub const APPEND: u16 = 0x800;

const ERROR: u16 = 2;
const DONE: u16 = 3;
const HEADER: usize = 16;
const NESTED: u16 = 0x8000;

/// Several messages for one datagram.
#[derive(Debug, Default)]
pub struct Batch {
    bytes: Vec<u8>,
    sequence: u32,
    /// Where the last message begins.
    last: usize,
}

impl Batch {
    /// An empty one whose first message gets this sequence number.
    pub fn new(sequence: u32) -> Batch {
        Batch { bytes: Vec::with_capacity(4096), sequence, last: 0 }
    }

    /// Appends a message; `body` writes what follows its header.
    pub fn message(&mut self, kind: u16, flags: u16, body: impl FnOnce(&mut Body<'_>)) {
        let start = self.bytes.len();
        self.last = start;
        self.bytes.extend_from_slice(&[0; 4]);
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(&(flags | REQUEST).to_ne_bytes());
        self.bytes.extend_from_slice(&self.sequence.to_ne_bytes());
        self.bytes.extend_from_slice(&[0; 4]); // the kernel knows the sender
        body(&mut Body { bytes: &mut self.bytes });
        let length = u32::try_from(self.bytes.len() - start).unwrap_or(u32::MAX);
        self.bytes[start..start + 4].copy_from_slice(&length.to_ne_bytes());
        self.sequence += 1;
    }

    /// As they are sent.
    #[cfg(test)]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Asks for an answer to the last message also when all went well; gives its sequence number.
    pub fn acknowledge_last(&mut self) -> u32 {
        if let Some([one, two]) = self.bytes.get_mut(self.last + 6..self.last + 8) {
            [*one, *two] = (u16::from_ne_bytes([*one, *two]) | ACK).to_ne_bytes();
        }
        self.sequence.saturating_sub(1)
    }
}

/// Writes the body of one message: raw parts, then attributes, each padded to four bytes.
pub struct Body<'a> {
    bytes: &'a mut Vec<u8>,
}

impl Body<'_> {
    /// A fixed part.
    pub fn raw(&mut self, bytes: &[u8]) -> &mut Self {
        self.bytes.extend_from_slice(bytes);
        self.pad()
    }

    /// An attribute.
    pub fn attr(&mut self, kind: u16, value: &[u8]) -> &mut Self {
        self.within(kind, |body| {
            body.bytes.extend_from_slice(value);
        })
    }

    /// A number in network byte order, as nf_tables wants all of its numbers.
    pub fn u32(&mut self, kind: u16, value: u32) -> &mut Self {
        self.attr(kind, &value.to_be_bytes())
    }

    /// The same with 64 bits.
    pub fn u64(&mut self, kind: u16, value: u64) -> &mut Self {
        self.attr(kind, &value.to_be_bytes())
    }

    /// A text with its closing zero.
    pub fn text(&mut self, kind: u16, value: &str) -> &mut Self {
        self.within(kind, |body| {
            body.bytes.extend_from_slice(value.as_bytes());
            body.bytes.push(0);
        })
    }

    /// An attribute made of attributes.
    pub fn nested(&mut self, kind: u16, inner: impl FnOnce(&mut Body<'_>)) -> &mut Self {
        self.within(kind | NESTED, inner)
    }

    fn within(&mut self, kind: u16, inner: impl FnOnce(&mut Body<'_>)) -> &mut Self {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 2]);
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        inner(&mut Body { bytes: self.bytes });
        // Without the padding, which only aligns the next one.
        let length = u16::try_from(self.bytes.len() - start).unwrap_or(u16::MAX);
        self.bytes[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        self.pad()
    }

    fn pad(&mut self) -> &mut Self {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
        self
    }
}

/// A socket to one part of the kernel, in the network namespace of the process that opened it.
#[derive(Debug)]
pub struct Netlink {
    socket: OwnedFd,
    sequence: u32,
}

impl Netlink {
    /// Opens one; needs no privilege.
    ///
    /// # Errors
    /// The kernel doesn't have this part.
    pub fn open(protocol: SockProtocol) -> io::Result<Netlink> {
        let socket =
            socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK, protocol)?;
        bind(socket.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
        Ok(Netlink { socket, sequence: 1 })
    }

    /// A batch that this socket can send.
    pub fn batch(&self) -> Batch {
        Batch::new(self.sequence)
    }

    /// Sends the messages, and waits for the answer to the one numbered `last`, which asks for one ([`Batch::acknowledge_last`]).
    ///
    /// # Errors
    /// What the kernel said to the first message that it refused.
    pub fn ask(&mut self, batch: Batch, last: u32) -> Result<(), Errno> {
        self.send(batch)?;
        let mut outcome = None;
        let mut buffer = vec![0; 16 * 1024];
        // All of them, so that none is taken for an answer to the next request.
        while let Some(length) = self.receive(&mut buffer)? {
            for message in messages(&buffer[..length]) {
                match message.error() {
                    Some(0) if message.sequence == last => outcome = outcome.or(Some(Ok(()))),
                    Some(0) | None => {}
                    Some(code) if !matches!(outcome, Some(Err(_))) => outcome = Some(Err(Errno::from_raw(code))),
                    Some(_) => {}
                }
            }
        }
        outcome.unwrap_or(Err(Errno::ENOMSG))
    }

    /// Sends one request for a dump and gives every message of the answer to `each`.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn dump(&mut self, batch: Batch, mut each: impl FnMut(&[u8])) -> Result<(), Errno> {
        self.send(batch)?;
        let mut buffer = vec![0; 64 * 1024];
        while let Some(length) = self.receive(&mut buffer)? {
            for message in messages(&buffer[..length]) {
                match message.kind {
                    DONE => return Ok(()),
                    ERROR => return Err(Errno::from_raw(message.error().unwrap_or(0))),
                    _ => each(message.body),
                }
            }
        }
        Err(Errno::ENOMSG)
    }

    fn send(&mut self, batch: Batch) -> Result<(), Errno> {
        // What an earlier request left unread is of no interest any more.
        let mut stale = [0; 64];
        while self.receive(&mut stale)?.is_some() {}
        self.sequence = batch.sequence.max(1);
        let sent = sendto(self.socket.as_raw_fd(), &batch.bytes, &NetlinkAddr::new(0, 0), MsgFlags::empty())?;
        if sent == batch.bytes.len() { Ok(()) } else { Err(Errno::EMSGSIZE) }
    }

    fn receive(&self, buffer: &mut [u8]) -> Result<Option<usize>, Errno> {
        loop {
            match recv(self.socket.as_raw_fd(), buffer, MsgFlags::MSG_DONTWAIT) {
                Ok(length) => return Ok(Some(length)),
                Err(Errno::EAGAIN) => return Ok(None),
                // Some answer was lost for want of memory; what is missing then is seen by the caller.
                Err(Errno::EINTR | Errno::ENOBUFS) => {}
                Err(errno) => return Err(errno),
            }
        }
    }
}

struct Message<'a> {
    kind: u16,
    sequence: u32,
    body: &'a [u8],
}

impl Message<'_> {
    /// The error number of an answer, 0 for "done as asked"; `None` for any other message.
    fn error(&self) -> Option<i32> {
        let code = self.body.first_chunk::<4>().filter(|_| self.kind == ERROR)?;
        Some(i32::from_ne_bytes(*code).saturating_neg())
    }
}

fn messages(mut bytes: &[u8]) -> impl Iterator<Item = Message<'_>> {
    std::iter::from_fn(move || {
        let length = usize::try_from(u32::from_ne_bytes(*bytes.first_chunk()?)).ok()?;
        if length < HEADER || length > bytes.len() {
            return None;
        }
        let (message, rest) = (&bytes[..length], &bytes[length.next_multiple_of(4).min(bytes.len())..]);
        bytes = rest;
        Some(Message {
            kind: u16::from_ne_bytes([message[4], message[5]]),
            sequence: u32::from_ne_bytes([message[8], message[9], message[10], message[11]]),
            body: &message[HEADER..],
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_padded_and_their_length_is_not() {
        let mut batch = Batch::new(7);
        batch.message(0x0a00, 0, |body| {
            body.raw(&[1, 0, 0, 0]).text(1, "abcd").nested(4, |inner| {
                inner.u32(1, 3);
            });
        });
        let all: Vec<Message<'_>> = messages(&batch.bytes).collect();
        assert_eq!((all.len(), all[0].kind, all[0].sequence), (1, 0x0a00, 7));
        let expected: [&[u8]; 6] = [
            &[1, 0, 0, 0],
            &[9, 0, 1, 0, b'a', b'b', b'c', b'd'],
            &[0, 0, 0, 0],
            &[12, 0, 4, 0x80],
            &[8, 0, 1, 0],
            &[0, 0, 0, 3],
        ];
        assert_eq!(all[0].body, expected.concat());
        assert_eq!(batch.acknowledge_last(), 7);
    }

    #[test]
    fn an_answer_that_is_cut_off_is_no_answer() {
        assert_eq!(messages(&[40, 0, 0, 0, 2, 0]).count(), 0);
        assert_eq!(messages(&[]).count(), 0);
        let mut refused = vec![0; 20];
        refused[0] = 20;
        refused[4] = 2;
        refused[16..20].copy_from_slice(&(-1_i32).to_ne_bytes());
        assert_eq!(messages(&refused).next().and_then(|m| m.error()), Some(1));
    }
}
