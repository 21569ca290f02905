//! Messages between agent and guard: one datagram of fixed size each, little endian.
//! An agent may be newer than the guard that it finds, therefore the version.

use std::{net::IpAddr, time::Duration};

use super::{
    ExitKind, Postmaster, PostmasterSignal,
    addresses::Addresses,
    deadline::Refusal,
    means::{FileId, Means, Method, Shield, Shields},
};
use crate::domain::{Epoch, moment::TwoClocks};

/// Every message has this size.
pub const BYTES: usize = 80;
pub type Frame = [u8; BYTES];

const MAGIC: u32 = u32::from_le_bytes(*b"MGRD");
/// Goes up when a field changes its meaning. New fields use the zeroes at the end.
pub const VERSION: u16 = 1;

/// From the agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request {
    /// Asks for the state now and on each later change. `addresses`: those that go with a fence, from now on; `None` says nothing of them,
    /// as an older agent does, and an older guard reads none.
    Hello {
        addresses: Option<Addresses>,
    },
    Arm {
        epoch: Epoch,
        at: TwoClocks,
    },
    Disarm {
        epoch: Epoch,
    },
    Signal(PostmasterSignal),
    Fence,
    /// The end of PostgreSQL was read: the guard may go.
    Bye,
    /// Execute the program that the agent has named in the runtime directory, and go on as before.
    /// Guards that report no form of hand-over don't know this request.
    Upgrade {
        /// The newest form of hand-over that program understands; it understands the older ones too.
        handover: u8,
        program: FileId,
    },
}

/// From the guard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    State(Report),
    Done(Result<(), Refusal>),
}

/// What the guard knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Report {
    pub guard_pid: u32,
    pub postmaster: Postmaster,
    pub epoch: Epoch,
    pub deadline: Option<TwoClocks>,
    pub means: Means,
}

/// What can be wrong with a datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    #[error("not a guard message ({0} bytes)")]
    Foreign(usize),
    #[error("guard protocol version {0}, this binary speaks {VERSION}")]
    Version(u16),
    #[error("unknown guard message {0}")]
    Kind(u16),
}

/// `sequence` comes back with the answer; a push has 0.
pub fn encode_request(sequence: u64, request: &Request) -> Frame {
    match *request {
        Request::Hello { addresses: None } => Writer::new(1, sequence),
        Request::Hello { addresses: Some(addresses) } => Writer::new(1, sequence).u8(NAMED, 1).addresses(addresses),
        Request::Arm { epoch, at } => Writer::new(2, sequence).u64(EPOCH, epoch.0).clocks(at),
        Request::Disarm { epoch } => Writer::new(3, sequence).u64(EPOCH, epoch.0),
        Request::Signal(signal) => Writer::new(4, sequence).u8(
            CODE,
            match signal {
                PostmasterSignal::Fast => 0,
                PostmasterSignal::Immediate => 1,
                PostmasterSignal::Reload => 2,
            },
        ),
        Request::Fence => Writer::new(5, sequence),
        Request::Bye => Writer::new(6, sequence),
        Request::Upgrade { handover, program } => Writer::new(7, sequence).u8(CODE, handover).file(program),
    }
    .0
}

pub fn decode_request(bytes: &[u8]) -> Result<(u64, Request), WireError> {
    let reader = Reader::new(bytes)?;
    let request = match reader.kind() {
        1 => Request::Hello { addresses: (reader.u8(NAMED) != 0).then(|| reader.addresses()) },
        2 => Request::Arm { epoch: Epoch(reader.u64(EPOCH)), at: reader.clocks() },
        3 => Request::Disarm { epoch: Epoch(reader.u64(EPOCH)) },
        4 => Request::Signal(match reader.u8(CODE) {
            0 => PostmasterSignal::Fast,
            1 => PostmasterSignal::Immediate,
            2 => PostmasterSignal::Reload,
            _ => return Err(WireError::Kind(4)),
        }),
        5 => Request::Fence,
        6 => Request::Bye,
        7 => Request::Upgrade { handover: reader.u8(CODE), program: reader.file() },
        other => return Err(WireError::Kind(other)),
    };
    Ok((reader.u64(SEQUENCE), request))
}

pub fn encode_answer(sequence: u64, answer: &Answer) -> Frame {
    match *answer {
        Answer::Done(outcome) => Writer::new(101, sequence).u8(
            CODE,
            match outcome {
                Ok(()) => 0,
                Err(Refusal::LowerEpoch) => 1,
                Err(Refusal::OtherEpoch) => 2,
                Err(Refusal::Ended) => 3,
                Err(Refusal::StillRunning) => 4,
                Err(Refusal::TooLate) => 5,
                Err(Refusal::OtherHandover) => 6,
                Err(Refusal::NotExecuted) => 7,
                Err(Refusal::TakenOver) => 8,
            },
        ),
        Answer::State(report) => {
            let mut writer = Writer::new(102, sequence)
                .u64(EPOCH, report.epoch.0)
                .clocks(report.deadline.unwrap_or_default())
                .u8(ARMED, report.deadline.is_some().into())
                .u32(GUARD_PID, report.guard_pid)
                .means(&report.means);
            match report.postmaster {
                Postmaster::Running { pid } => writer = writer.u8(CODE, 0).u32(POSTMASTER, pid),
                Postmaster::Gone { status, tree_empty, fenced } => {
                    let (code, number) = match status {
                        ExitKind::Code(code) => (1, code),
                        ExitKind::Signal(signal) => (2, signal),
                    };
                    writer = writer
                        .u8(CODE, code)
                        .u32(POSTMASTER, number as u32)
                        .u8(TREE_EMPTY, tree_empty.into())
                        .u8(FENCED, fenced.into());
                }
            }
            writer
        }
    }
    .0
}

pub fn decode_answer(bytes: &[u8]) -> Result<(u64, Answer), WireError> {
    let reader = Reader::new(bytes)?;
    let answer = match reader.kind() {
        101 => Answer::Done(match reader.u8(CODE) {
            0 => Ok(()),
            1 => Err(Refusal::LowerEpoch),
            2 => Err(Refusal::OtherEpoch),
            3 => Err(Refusal::Ended),
            4 => Err(Refusal::StillRunning),
            5 => Err(Refusal::TooLate),
            6 => Err(Refusal::OtherHandover),
            7 => Err(Refusal::NotExecuted),
            8 => Err(Refusal::TakenOver),
            _ => return Err(WireError::Kind(101)),
        }),
        102 => {
            let gone = |status| Postmaster::Gone {
                status,
                tree_empty: reader.u8(TREE_EMPTY) != 0,
                fenced: reader.u8(FENCED) != 0,
            };
            let number = reader.u32(POSTMASTER);
            Answer::State(Report {
                guard_pid: reader.u32(GUARD_PID),
                postmaster: match reader.u8(CODE) {
                    0 => Postmaster::Running { pid: number },
                    1 => gone(ExitKind::Code(number as i32)),
                    2 => gone(ExitKind::Signal(number as i32)),
                    _ => return Err(WireError::Kind(102)),
                },
                epoch: Epoch(reader.u64(EPOCH)),
                deadline: (reader.u8(ARMED) != 0).then(|| reader.clocks()),
                means: reader.means(),
            })
        }
        other => return Err(WireError::Kind(other)),
    };
    Ok((reader.u64(SEQUENCE), answer))
}

// Where the fields are; 0..8 is magic, version, kind.
const SEQUENCE: usize = 8;
const EPOCH: usize = 16;
const BOOT: usize = 24;
const RAW: usize = 32;
const GUARD_PID: usize = 40;
const POSTMASTER: usize = 44;
const CODE: usize = 48;
const TREE_EMPTY: usize = 49;
const FENCED: usize = 50;
const ARMED: usize = 51;
const METHOD: usize = 52;
const MEMORY: usize = 53;
const PRIORITY: usize = 54;
const OOM: usize = 55;
const DEVICE: usize = 56;
const INODE: usize = 64;
const HANDOVER: usize = 72;
// Of a Hello: whether it names addresses, and for each of both its kind and its bytes.
const NAMED: usize = 40;
const KINDS: [usize; 2] = [41, 42];
const ADDRESSES: [usize; 2] = [48, 64];

struct Writer(Frame);

impl Writer {
    fn new(kind: u16, sequence: u64) -> Self {
        let mut frame = [0; BYTES];
        frame[..4].copy_from_slice(&MAGIC.to_le_bytes());
        frame[4..6].copy_from_slice(&VERSION.to_le_bytes());
        frame[6..8].copy_from_slice(&kind.to_le_bytes());
        Self(frame).u64(SEQUENCE, sequence)
    }

    fn u8(mut self, at: usize, value: u8) -> Self {
        self.0[at] = value;
        self
    }

    fn u32(mut self, at: usize, value: u32) -> Self {
        self.0[at..at + 4].copy_from_slice(&value.to_le_bytes());
        self
    }

    fn u64(mut self, at: usize, value: u64) -> Self {
        self.0[at..at + 8].copy_from_slice(&value.to_le_bytes());
        self
    }

    fn clocks(self, at: TwoClocks) -> Self {
        // 64 bits of nanoseconds are 584 years of uptime.
        let nanos = |d: Duration| u64::try_from(d.as_nanos()).unwrap_or(u64::MAX);
        self.u64(BOOT, nanos(at.boot)).u64(RAW, nanos(at.raw))
    }

    fn addresses(mut self, addresses: Addresses) -> Self {
        for ((address, kind), at) in addresses.into_iter().zip(KINDS).zip(ADDRESSES) {
            match address {
                None => {}
                Some(IpAddr::V4(four)) => {
                    self.0[kind] = 4;
                    self.0[at..at + 4].copy_from_slice(&four.octets());
                }
                Some(IpAddr::V6(six)) => {
                    self.0[kind] = 6;
                    self.0[at..at + 16].copy_from_slice(&six.octets());
                }
            }
        }
        self
    }

    fn file(self, file: FileId) -> Self {
        self.u64(DEVICE, file.device).u64(INODE, file.inode)
    }

    fn means(self, means: &Means) -> Self {
        let Means { method, shields, program, handover } = *means;
        self.u8(METHOD, method.to_byte())
            .u8(MEMORY, shields.memory.to_byte())
            .u8(PRIORITY, shields.priority.to_byte())
            .u8(OOM, shields.oom.to_byte())
            .u8(HANDOVER, handover)
            .file(program)
    }
}

struct Reader<'a>(&'a Frame);

impl<'a> Reader<'a> {
    fn new(bytes: &'a [u8]) -> Result<Self, WireError> {
        let frame: &Frame = bytes.try_into().map_err(|_| WireError::Foreign(bytes.len()))?;
        let reader = Self(frame);
        if reader.u32(0) != MAGIC {
            return Err(WireError::Foreign(bytes.len()));
        }
        match reader.u16(4) {
            VERSION => Ok(reader),
            other => Err(WireError::Version(other)),
        }
    }

    fn kind(&self) -> u16 {
        self.u16(6)
    }

    fn u8(&self, at: usize) -> u8 {
        self.0[at]
    }

    fn u16(&self, at: usize) -> u16 {
        u16::from_le_bytes([self.0[at], self.0[at + 1]])
    }

    fn u32(&self, at: usize) -> u32 {
        u32::from(self.u16(at)) | u32::from(self.u16(at + 2)) << 16
    }

    fn u64(&self, at: usize) -> u64 {
        u64::from(self.u32(at)) | u64::from(self.u32(at + 4)) << 32
    }

    fn addresses(&self) -> Addresses {
        let bytes = |at: usize| self.0[at..].first_chunk::<16>();
        [0, 1].map(|i| match (self.u8(KINDS[i]), bytes(ADDRESSES[i])) {
            (4, Some([a, b, c, d, ..])) => Some(IpAddr::from([*a, *b, *c, *d])),
            (6, Some(six)) => Some(IpAddr::from(*six)),
            // None, or of a kind that came later.
            _ => None,
        })
    }

    fn file(&self) -> FileId {
        FileId { device: self.u64(DEVICE), inode: self.u64(INODE) }
    }

    fn means(&self) -> Means {
        let shield = |at| Shield::from_byte(self.u8(at));
        Means {
            method: Method::from_byte(self.u8(METHOD)),
            shields: Shields { memory: shield(MEMORY), priority: shield(PRIORITY), oom: shield(OOM) },
            program: self.file(),
            handover: self.u8(HANDOVER),
        }
    }

    fn clocks(&self) -> TwoClocks {
        TwoClocks { boot: Duration::from_nanos(self.u64(BOOT)), raw: Duration::from_nanos(self.u64(RAW)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at() -> TwoClocks {
        TwoClocks { boot: Duration::from_nanos(1_234_567_890_123), raw: Duration::from_nanos(987_654_321_012) }
    }

    fn addresses() -> Addresses {
        [Some("10.0.0.100".parse().unwrap()), Some("fd00::1:101".parse().unwrap())]
    }

    #[test]
    fn a_guard_or_an_agent_that_knows_no_addresses_misses_nothing_else() {
        let named = Request::Hello { addresses: Some(addresses()) };
        let frame = encode_request(7, &named);
        // An older guard reads magic, version, kind and number, as of any Hello; an older agent leaves the rest zero.
        let mut old = frame;
        old[NAMED..].fill(0);
        assert_eq!(frame[..NAMED], old[..NAMED]);
        assert_eq!(old, encode_request(7, &Request::Hello { addresses: None }));
        assert_eq!(decode_request(&old), Ok((7, Request::Hello { addresses: None })));
        // A kind of address that comes later is none for this guard.
        let mut later = frame;
        later[KINDS[0]] = 9;
        assert_eq!(decode_request(&later), Ok((7, Request::Hello { addresses: Some([None, addresses()[1]]) })));
    }

    #[test]
    fn every_message_comes_back_as_it_went() {
        let requests = [
            Request::Hello { addresses: None },
            Request::Hello { addresses: Some([None, None]) },
            Request::Hello { addresses: Some(addresses()) },
            Request::Hello { addresses: Some([None, addresses()[0]]) },
            Request::Arm { epoch: Epoch(1 << 40), at: at() },
            Request::Disarm { epoch: Epoch(9) },
            Request::Signal(PostmasterSignal::Fast),
            Request::Signal(PostmasterSignal::Immediate),
            Request::Signal(PostmasterSignal::Reload),
            Request::Fence,
            Request::Bye,
            Request::Upgrade { handover: 3, program: FileId { device: 1 << 40, inode: u64::MAX } },
        ];
        for request in requests {
            assert_eq!(decode_request(&encode_request(77, &request)), Ok((77, request)));
        }
        let shields = Shields { memory: Shield::Active, priority: Shield::Weaker, oom: Shield::NotPermitted };
        let program = FileId { device: 2, inode: 1 << 50 };
        let means = Means { method: Method::Group, shields, program, handover: 1 };
        let report = |postmaster, deadline| {
            Answer::State(Report { guard_pid: 71, postmaster, epoch: Epoch(4), deadline, means })
        };
        let answers = [
            Answer::Done(Ok(())),
            Answer::Done(Err(Refusal::LowerEpoch)),
            Answer::Done(Err(Refusal::OtherEpoch)),
            Answer::Done(Err(Refusal::Ended)),
            Answer::Done(Err(Refusal::StillRunning)),
            Answer::Done(Err(Refusal::TooLate)),
            Answer::Done(Err(Refusal::OtherHandover)),
            Answer::Done(Err(Refusal::NotExecuted)),
            Answer::Done(Err(Refusal::TakenOver)),
            report(Postmaster::Running { pid: 72 }, Some(at())),
            report(Postmaster::Gone { status: ExitKind::Signal(9), tree_empty: true, fenced: true }, None),
            report(Postmaster::Gone { status: ExitKind::Code(-1), tree_empty: false, fenced: false }, None),
        ];
        for answer in answers {
            assert_eq!(decode_answer(&encode_answer(78, &answer)), Ok((78, answer)));
        }
    }

    #[test]
    fn a_guard_of_the_first_build_says_nothing_of_its_means() {
        let report = Report {
            guard_pid: 71,
            postmaster: Postmaster::Running { pid: 72 },
            epoch: Epoch(4),
            deadline: None,
            means: Means { handover: 9, method: Method::Group, ..Means::default() },
        };
        let mut frame = encode_answer(1, &Answer::State(report));
        frame[METHOD..].fill(0);
        let old = Report { means: Means::default(), ..report };
        assert_eq!(decode_answer(&frame), Ok((1, Answer::State(old))));
    }

    #[test]
    fn what_is_not_ours_is_refused() {
        assert_eq!(decode_request(b"GET / HTTP/1.1"), Err(WireError::Foreign(14)));
        assert_eq!(decode_request(&[0; BYTES]), Err(WireError::Foreign(BYTES)));
        let mut newer = encode_request(1, &Request::Hello { addresses: None });
        newer[4] = 9;
        assert_eq!(decode_request(&newer), Err(WireError::Version(9)));
        let mut unknown = encode_request(1, &Request::Hello { addresses: None });
        unknown[6] = 99;
        assert_eq!(decode_request(&unknown), Err(WireError::Kind(99)));
        assert_eq!(decode_answer(&encode_request(1, &Request::Hello { addresses: None })), Err(WireError::Kind(1)));
    }
}
