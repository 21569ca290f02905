//! WAL that this member has removed and others still have: segments that lie wholly before the position where histories part are the
//! same bytes everywhere. Who lends is decided by [`Core::may_lend`](super::core::Core::may_lend), what comes is looked at before
//! it is kept, and no file of this member is ever replaced.

use std::{fs::File, os::unix::fs::FileExt as _, sync::Arc, time::Duration};

use futures_util::StreamExt as _;
use tokio::sync::{Semaphore, mpsc};
use tonic::{
    Code, Status,
    transport::{Channel, Endpoint},
};

use super::{
    core::Wanted,
    hands::{Hands, blocking, chain, said},
    order::Source,
    rescue::{ANSWER, Asker, PIECE, Piece, piece_numbers, room},
};
use crate::{
    domain::{Epoch, Generation, Lsn, MemberId, TimelineHistory, TimelineId, WalPosition},
    lease::wire::Codec,
    postgres::Segment,
    rpc::v1::{self, peer_client::PeerClient},
    telemetry::events,
};

/// So much WAL is fetched at most; beyond that a copy is no more work.
const MOST: u64 = 2 << 30;
/// And so long it may take in all, with the reading of what is here.
const LONGEST: Duration = Duration::from_secs(600);
/// A member that says nothing for so long is asked no more.
const SILENCE: Duration = Duration::from_secs(5);
/// Segments that are being lent at one time.
static LENT: Semaphore = Semaphore::const_new(2);
/// What tags of requests are made of.
const REQUEST: &str = "read segment";

/// Whoever lacks WAL, and whom it may ask.
pub struct Borrower {
    /// What to touch things with.
    pub hands: Hands,
    /// The other members, with `host:port` of their managers.
    pub members: Vec<(MemberId, String)>,
    /// What a request says.
    pub asker: Asker,
    /// Of the cluster.
    pub generation: Generation,
    /// Highest epoch accepted.
    pub epoch: Epoch,
}

/// A member that may have what is missing.
struct Lender {
    member: MemberId,
    manager: String,
    client: Option<PeerClient<Channel>>,
}

/// What is known of this member's WAL.
struct Own {
    system: u64,
    /// The size of segment files, in bytes.
    segment: u64,
    history: TimelineHistory,
}

/// Why a member gave nothing.
struct Unlent {
    why: String,
    /// It has none of that segment yet, or not all.
    not_yet: bool,
}

impl From<String> for Unlent {
    fn from(why: String) -> Self {
        Self { why, not_yet: false }
    }
}

impl From<Status> for Unlent {
    fn from(status: Status) -> Self {
        Self { why: status.message().to_owned(), not_yet: status.code() == Code::OutOfRange }
    }
}

fn request_parts(request: &v1::ReadSegmentRequest) -> Vec<u8> {
    let to = request.to.clone().unwrap_or_default();
    let numbers = [
        to.generation,
        to.epoch,
        request.system_identifier,
        u64::from(request.timeline),
        request.start,
        request.segment_bytes,
        u64::from(request.first_record.is_some()),
        u64::from(request.first_record.unwrap_or_default()),
        request.nonce,
    ];
    let numbers: Vec<u8> = numbers.iter().flat_map(|n| n.to_be_bytes()).collect();
    let parts = [to.cluster_id.as_bytes(), to.target.as_bytes(), to.sender.as_bytes(), &numbers];
    parts.iter().flat_map(|part| (part.len() as u64).to_be_bytes().into_iter().chain(part.iter().copied())).collect()
}

/// True when a member made this request.
pub fn is_of_a_member(codec: &Codec, request: &v1::ReadSegmentRequest) -> bool {
    codec.is_tag(&request.tag, REQUEST, &[&request_parts(request)])
}

/// The segment that is asked for.
///
/// # Errors
/// There can be no such segment.
pub fn wanted(request: &v1::ReadSegmentRequest) -> Result<Wanted, String> {
    let v1::ReadSegmentRequest { start, segment_bytes: bytes, .. } = *request;
    if !bytes.is_power_of_two() || !(1 << 20..=1 << 30).contains(&bytes) || start % bytes != 0 {
        return Err(format!("no segment of {bytes} bytes begins at {}", Lsn(start)));
    }
    let segment = Segment { timeline: TimelineId(request.timeline), start: Lsn(start), bytes };
    Ok(Wanted { segment, system: request.system_identifier, first_record: request.first_record })
}

/// Gives the segment, piece by piece, until nobody takes it any more.
pub async fn serve(hands: Hands, segment: Segment, nonce: u64, pieces: mpsc::Sender<Piece>) {
    let _lends = LENT.acquire().await.ok();
    let mut at = segment.start;
    while at < segment.end() {
        let instance = hands.instance.clone();
        let position = WalPosition { timeline: segment.timeline, lsn: at };
        let read = blocking(move || instance.read_wal(segment.bytes, position, PIECE).map_err(said)).await;
        let piece = read.and_then(|read| read).map(|data| {
            let numbers = piece_numbers(nonce, at.0, segment.end().0);
            let tag = hands.codec.tag(ANSWER, &[&numbers, &data]);
            at = Lsn(at.0 + data.len() as u64);
            v1::WalPiece { lsn: position.lsn.0, data: data.into(), end: segment.end().0, tag: tag.into() }
        });
        let failed = piece.is_err();
        if pieces.send(piece.map_err(Status::failed_precondition)).await.is_err() || failed {
            return;
        }
    }
    tracing::info!(segment = segment.name(), "lent WAL to another member");
}

impl Borrower {
    /// pg_rewind needs the WAL from the last checkpoint before the fork on, and some of it is gone here. True when some came.
    pub async fn for_rewind(&self, source: &Source) -> bool {
        let mut bytes = 0;
        let borrowed = tokio::time::timeout(LONGEST, self.borrow(source, &mut bytes)).await;
        let elsewhere = self.hands.instance.forget_lent().await;
        match borrowed.unwrap_or_else(|_| Err("it took too long".to_owned())).and_then(|()| elsewhere.map_err(said)) {
            Ok(()) => tracing::info!(event = events::BORROWED, bytes, "got WAL for the rewind from other members"),
            Err(error) => tracing::warn!(error, bytes, "WAL for the rewind could not be got from other members"),
        }
        bytes > 0
    }

    /// Goes back from the fork to the last checkpoint before it, and to where recovery from that begins.
    async fn borrow(&self, source: &Source, bytes: &mut u64) -> Result<(), String> {
        let fork = source.fork.ok_or("nobody said where the histories part")?.lsn;
        let own = self.own_wal().await?;
        let mut lenders = self.lenders_of(&source.member);
        let most = MOST.min(room(&self.hands, own.segment).await / 2);
        let (mut redo, mut number) = (None, fork.0.saturating_sub(1) / own.segment);
        loop {
            let segment = Segment::on(&own.history, number, own.segment);
            if !self.hands.instance.has_segment(segment) {
                if segment.end() > fork {
                    return Err(format!("{} is gone, which only this member had", segment.name()));
                }
                if *bytes + segment.bytes > most {
                    return Err(format!("more than {most} bytes are missing, or there is no room for them"));
                }
                self.borrow_segment(&mut lenders, (segment, &own), *bytes).await?;
                *bytes += segment.bytes;
            }
            if redo.is_none() {
                let found = self.hands.instance.last_checkpoint(segment, segment.end().min(fork)).await;
                redo = found.map_err(said)?;
            }
            if redo.is_some_and(|redo| redo >= segment.start) {
                return Ok(());
            }
            number = number.checked_sub(1).filter(|n| *n > 0).ok_or("there is no checkpoint before the fork")?;
        }
    }

    /// A standby whose WAL ends at `end` needs what the member that it follows, `upstream`, has removed: whole segments from there
    /// on, up to the first that `upstream` has as well. They are put where `restore_command` finds them. How many bytes came.
    pub async fn for_standby(&self, (history, end): (TimelineHistory, Lsn), upstream: &MemberId) -> u64 {
        let mut bytes = 0;
        let borrowed = tokio::time::timeout(LONGEST, self.offer(history, end, upstream, &mut bytes)).await;
        match borrowed.unwrap_or_else(|_| Err("it took too long".to_owned())) {
            Ok(()) => {
                tracing::info!(
                    event = events::BORROWED,
                    bytes,
                    "got WAL that the primary has removed from other members"
                );
                bytes
            }
            Err(error) => {
                tracing::warn!(error, bytes, "WAL that the primary has removed could not be got from other members");
                if let Err(error) = self.hands.instance.forget_lent().await {
                    tracing::warn!(error = chain(&error), "failed to remove WAL that is of no use");
                }
                0
            }
        }
    }

    async fn offer(
        &self,
        history: TimelineHistory,
        end: Lsn,
        upstream: &MemberId,
        bytes: &mut u64,
    ) -> Result<(), String> {
        let instance = self.hands.instance.clone();
        let control = blocking(move || instance.control_data().map_err(said)).await??;
        let own = Own { system: control.system_identifier, segment: control.wal_segment_bytes, history };
        let mut lenders = self.lenders_of(upstream);
        let most = MOST.min(room(&self.hands, own.segment).await / 2);
        for number in end.0 / own.segment.. {
            let segment = Segment::on(&own.history, number, own.segment);
            if *bytes + segment.bytes > most {
                return Err(format!("more than {most} bytes are missing, or there is no room for them"));
            }
            let lender = self.offered(&mut lenders, (segment, &own), *bytes).await?;
            *bytes += lender.as_ref().map_or(0, |_| segment.bytes);
            if lender.is_none_or(|lender| lender == *upstream) {
                break;
            }
        }
        if *bytes == 0 {
            return Err(format!("{upstream} has not removed what is missing"));
        }
        let instance = self.hands.instance.clone();
        blocking(move || instance.lend().map_err(said)).await?
    }

    /// Who gave it; `None`: the first of them, who is followed, still writes it. What one has removed it may have of later segments.
    async fn offered(
        &self,
        lenders: &mut [Lender],
        (segment, own): (Segment, &Own),
        before: u64,
    ) -> Result<Option<MemberId>, String> {
        let mut why = Vec::new();
        for (place, lender) in lenders.iter_mut().enumerate() {
            match self.borrow_from(lender, (segment, own), before).await {
                Ok(()) => {
                    let instance = self.hands.instance.clone();
                    blocking(move || instance.offer_lent(segment).map_err(said)).await??;
                    return Ok(Some(lender.member.clone()));
                }
                Err(Unlent { not_yet: true, .. }) if place == 0 => return Ok(None),
                Err(Unlent { why: error, .. }) => why.push(format!("{}: {error}", lender.member)),
            }
        }
        Err(format!("no member gives {}: {}", segment.name(), why.join("; ")))
    }

    async fn own_wal(&self) -> Result<Own, String> {
        let end = self.hands.instance.wal_end_on_disk().await.map_err(said)?;
        let instance = self.hands.instance.clone();
        let read = move || {
            let control = instance.control_data().map_err(said)?;
            let history = instance.lineage(end).map_err(said)?;
            Ok(Own { system: control.system_identifier, segment: control.wal_segment_bytes, history })
        };
        blocking(read).await?
    }

    /// The primary first: it has to have most of it anyway.
    fn lenders_of(&self, primary: &MemberId) -> Vec<Lender> {
        let lender = |(member, manager): &(MemberId, String)| {
            let (member, manager) = (member.clone(), manager.clone());
            Lender { member, manager, client: None }
        };
        let mut lenders: Vec<Lender> = self.members.iter().map(lender).collect();
        lenders.sort_by_key(|lender| lender.member != *primary);
        lenders
    }

    /// From the first that gives it as it should be. WAL is removed from its beginning on: who lacks a segment lacks all before.
    async fn borrow_segment(
        &self,
        lenders: &mut Vec<Lender>,
        (segment, own): (Segment, &Own),
        before: u64,
    ) -> Result<(), String> {
        let mut why = Vec::new();
        while let Some(lender) = lenders.first_mut() {
            match self.borrow_from(lender, (segment, own), before).await {
                Ok(()) => {
                    let instance = self.hands.instance.clone();
                    return blocking(move || instance.keep_lent(segment).map_err(said)).await?;
                }
                Err(Unlent { why: error, .. }) => {
                    tracing::warn!(member = %lender.member, segment = segment.name(), error, "WAL was not to be had");
                    why.push(format!("{}: {error}", lender.member));
                }
            }
            lenders.remove(0);
        }
        Err(format!("no member gives {}: {}", segment.name(), why.join("; ")))
    }

    async fn borrow_from(
        &self,
        lender: &mut Lender,
        (segment, own): (Segment, &Own),
        before: u64,
    ) -> Result<(), Unlent> {
        let silent = |_| "it doesn't answer".to_owned();
        let request = self.segment_request(&lender.member, (segment, own));
        let nonce = request.nonce;
        let ask = async {
            let client = match &mut lender.client {
                Some(client) => client,
                none => {
                    let endpoint = Endpoint::from_shared(format!("http://{}", lender.manager)).map_err(said)?;
                    none.insert(PeerClient::new(endpoint.connect().await.map_err(said)?))
                }
            };
            Ok::<_, Unlent>(client.read_segment(request).await?)
        };
        let mut pieces = tokio::time::timeout(SILENCE, ask).await.map_err(silent)??.into_inner();
        let instance = self.hands.instance.clone();
        let file: Arc<File> = blocking(move || instance.lend_into(segment).map_err(said)).await??.into();
        let mut at = segment.start;
        while let Some(piece) = tokio::time::timeout(SILENCE, pieces.next()).await.map_err(silent)? {
            let piece = piece?;
            let numbers = piece_numbers(nonce, piece.lsn, piece.end);
            let next = Lsn(at.0 + piece.data.len() as u64);
            let tagged = self.hands.codec.is_tag(&piece.tag, ANSWER, &[&numbers, &piece.data]);
            if piece.lsn != at.0 || next > segment.end() || !tagged {
                return Err(format!("what came for {at} is not what was asked for").into());
            }
            let (file, offset) = (Arc::clone(&file), at.bytes_past(segment.start));
            blocking(move || file.write_all_at(&piece.data, offset).map_err(said)).await??;
            at = next;
            self.hands.progress("fetching WAL from other members", before + at.bytes_past(segment.start), 0);
        }
        self.hands.instance.check_lent(segment, own.system, &own.history).await.map_err(|error| said(error).into())
    }

    fn segment_request(&self, to: &MemberId, (segment, own): (Segment, &Own)) -> v1::ReadSegmentRequest {
        let asker = &self.asker;
        let mut request = v1::ReadSegmentRequest {
            to: Some(v1::Target {
                cluster_id: asker.cluster.0.clone(),
                generation: self.generation.0,
                target: to.to_string(),
                epoch: self.epoch.0,
                sender: asker.me.clone(),
            }),
            system_identifier: own.system,
            timeline: segment.timeline.0,
            start: segment.start.0,
            segment_bytes: segment.bytes,
            first_record: own.history.first_records.get(&segment.timeline).copied(),
            nonce: uuid::Uuid::new_v4().as_u64_pair().0,
            tag: bytes::Bytes::new(),
        };
        request.tag = self.hands.codec.tag(REQUEST, &[&request_parts(&request)]).into();
        request
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::Secret;

    #[test]
    fn a_request_that_was_changed_is_of_nobody_and_one_that_can_not_be_is_refused() {
        let codec = Codec::new(&Secret::new("0123456789abcdef0123456789abcdef"));
        let mut request = v1::ReadSegmentRequest { start: 48 << 20, segment_bytes: 16 << 20, ..Default::default() };
        request.tag = codec.tag(REQUEST, &[&request_parts(&request)]).into();
        assert!(is_of_a_member(&codec, &request) && wanted(&request).is_ok());
        let other = v1::ReadSegmentRequest { first_record: Some(0), ..request.clone() };
        assert!(!is_of_a_member(&codec, &other));
        for (start, segment_bytes) in [(8 << 20, 16 << 20), (0, 0), (0, 3 << 20), (0, 1 << 40)] {
            assert!(wanted(&v1::ReadSegmentRequest { start, segment_bytes, ..request.clone() }).is_err());
        }
    }
}
