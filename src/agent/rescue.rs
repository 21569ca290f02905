//! The rescue of a crashed primary's last WAL: its agent gives what nobody else has to the successor, before that is promoted.
//!
//! Who may ask is decided by [`Core::may_be_read`](super::core::Core::may_be_read). What is given is cut at the end of the last
//! record whose checksum is right, and only to a successor whose own WAL ends with the same bytes. Each piece carries
//! a tag that only members can make. The other host is waited for no longer than `wal_rescue_ms`; what came is written and synced whatever that takes.

use std::{
    sync::{Arc, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use futures_util::StreamExt as _;
use tokio::sync::mpsc;
use tonic::{Status, transport::Endpoint};

use super::{
    hands::{Hands, blocking, chain, said},
    order::WalHolder,
    tasks::Job,
};
use crate::{
    domain::{ClusterId, Lsn, TimelineId, WalPosition},
    lease::wire::Codec,
    postgres::{Instance, Session},
    rpc::v1::{self, peer_client::PeerClient},
    telemetry::events,
};

/// How much WAL one message carries.
pub(super) const PIECE: usize = 256 << 10;
/// Pieces that are read ahead.
const AHEAD: usize = 8;
/// The other host is alive, or it isn't asked.
const CONNECT: Duration = Duration::from_millis(300);
/// How often it is looked whether what came is replayed.
const POLL: Duration = Duration::from_millis(10);
/// Nobody is served for longer; whoever asked has given up long before.
const SERVED: Duration = Duration::from_secs(60);
/// So many segment files' worth of room is left for what PostgreSQL writes itself.
const SPARE: u64 = 8;
/// So many looks in a row must find that replay has come to its end.
const LOOKS_AT_THE_END: u32 = 20;
/// What was cut in the middle of a record ends so near its last whole one.
const SMALL: u64 = 1 << 20;

/// What tags of requests, of pieces and of WAL before a position are made of.
const REQUEST: &str = "read WAL";
pub(super) const ANSWER: &str = "WAL";
const BEFORE: &str = "WAL before";

/// What came of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Rescued {
    /// The size of WAL segment files, in bytes.
    segment: u64,
    /// Where it begins.
    from: Lsn,
    /// Bytes that were put into place.
    bytes: u64,
    /// Where they end; 0: none came.
    to: Lsn,
    /// Where the WAL of the last primary ends.
    end: Lsn,
}

fn request_tag(codec: &Codec, request: &v1::ReadWalRequest) -> Vec<u8> {
    codec.tag(REQUEST, &[&request_parts(request)])
}

/// All of a request but its tag.
fn request_parts(request: &v1::ReadWalRequest) -> Vec<u8> {
    let to = request.to.clone().unwrap_or_default();
    let numbers = [
        to.generation,
        to.epoch,
        request.system_identifier,
        u64::from(request.timeline),
        request.from,
        request.record,
        request.most_bytes,
        request.nonce,
    ];
    let numbers: Vec<u8> = numbers.iter().flat_map(|n| n.to_be_bytes()).collect();
    let parts = [to.cluster_id.as_bytes(), to.target.as_bytes(), to.sender.as_bytes(), &numbers, &request.before];
    parts.iter().flat_map(|part| (part.len() as u64).to_be_bytes().into_iter().chain(part.iter().copied())).collect()
}

pub(super) fn piece_numbers(nonce: u64, lsn: u64, end: u64) -> Vec<u8> {
    [nonce, lsn, end].iter().flat_map(|n| n.to_be_bytes()).collect()
}

/// True when a member made this request.
pub fn is_of_a_member(codec: &Codec, request: &v1::ReadWalRequest) -> bool {
    codec.is_tag(&request.tag, REQUEST, &[&request_parts(request)])
}

/// Gives the WAL that is asked for, piece by piece, and ends with the first that nobody takes.
pub async fn serve(hands: Hands, request: v1::ReadWalRequest, pieces: mpsc::Sender<Result<v1::WalPiece, Status>>) {
    let given = tokio::select! {
        given = tokio::time::timeout(SERVED, give(&hands, &request, &pieces)) => given,
        () = pieces.closed() => return,
    };
    if let Err(reason) = given.unwrap_or_else(|_| Err("it took too long".to_owned())) {
        tracing::warn!(reason, timeline = request.timeline, from = %Lsn(request.from), "WAL was asked for, and is not given");
        let _ = pieces.send(Err(Status::failed_precondition(reason))).await;
    }
}

async fn give(
    hands: &Hands,
    request: &v1::ReadWalRequest,
    pieces: &mpsc::Sender<Result<v1::WalPiece, Status>>,
) -> Result<(), String> {
    let (timeline, from) = (TimelineId(request.timeline), Lsn(request.from));
    let segment = segment(&hands.instance).await?;
    let before = tag_before(hands, segment, WalPosition { timeline, lsn: from }).await?;
    if before != request.before {
        return Err(format!("the WAL before {from} is not the same here"));
    }
    let end = last_end(&hands.instance, segment, (timeline, Lsn(request.record))).await?.max(from);
    let until = end.min(Lsn(from.0.saturating_add(request.most_bytes)));
    let mut at = from;
    loop {
        let length = usize::try_from(until.bytes_past(at)).map_or(PIECE, |left| left.min(PIECE));
        let instance = hands.instance.clone();
        let data = match length {
            0 => Vec::new(),
            _ => {
                let position = WalPosition { timeline, lsn: at };
                blocking(move || instance.read_wal(segment, position, length).map_err(said)).await??
            }
        };
        let tag = hands.codec.tag(ANSWER, &[&piece_numbers(request.nonce, at.0, end.0), &data]);
        let next = Lsn(at.0 + data.len() as u64);
        let piece = v1::WalPiece { lsn: at.0, data: data.into(), end: end.0, tag: tag.into() };
        if pieces.send(Ok(piece)).await.is_err() || next >= until {
            tracing::info!(event = events::RESCUED, %timeline, %from, to = %next, %end, "gave WAL to the successor");
            return Ok(());
        }
        at = next;
    }
}

/// Where the last valid record ends. `record` is the end of one, so it is looked for from the beginning of that one's segment on, or where
/// that is not here any more from the last checkpoint.
async fn last_end(instance: &Instance, segment: u64, (timeline, record): (TimelineId, Lsn)) -> Result<Lsn, String> {
    let begin = Lsn(record.0.saturating_sub(1) / segment * segment);
    if let Some(end) = instance.records_end(timeline, begin, SERVED).await.map_err(said)? {
        return Ok(end);
    }
    let control = instance.clone();
    let control = blocking(move || control.control_data().map_err(said)).await??;
    let nothing = || format!("there is no WAL of timeline {timeline} to begin with before {record}");
    if control.timeline != timeline || control.checkpoint > record {
        return Err(nothing());
    }
    instance.records_end(timeline, control.checkpoint, SERVED).await.map_err(said)?.ok_or_else(nothing)
}

/// What a stream of WAL is made of.
pub type Piece = Result<v1::WalPiece, Status>;

/// The way for pieces from [`serve`] to whoever asked.
pub fn pipe() -> (mpsc::Sender<Piece>, mpsc::Receiver<Piece>) {
    mpsc::channel(AHEAD)
}

/// The size of WAL segment files, in bytes.
async fn segment(instance: &Instance) -> Result<u64, String> {
    let instance = instance.clone();
    blocking(move || instance.control_data().map(|control| control.wal_segment_bytes).map_err(said)).await?
}

/// How much can be put into `pg_wal` without taking from PostgreSQL what it needs to go on.
pub(super) async fn room(hands: &Hands, segment: u64) -> u64 {
    let instance = hands.instance.clone();
    let space = blocking(move || instance.space()).await;
    let free = space.ok().and_then(Result::ok).map(|space| space.wal.unwrap_or(space.data).free);
    free.unwrap_or(0).saturating_sub(SPARE * segment)
}

async fn tag_before(hands: &Hands, segment: u64, at: WalPosition) -> Result<Vec<u8>, String> {
    let (instance, codec) = (hands.instance.clone(), hands.codec.clone());
    blocking(move || instance.wal_before(segment, at).map(|wal| codec.tag(BEFORE, &[&wal])).map_err(said)).await?
}

/// What a request says of whom it is from and for.
pub struct Asker {
    /// The cluster.
    pub cluster: ClusterId,
    /// This member.
    pub me: String,
    /// Its system identifier.
    pub system: u64,
    /// At most so much is fetched, in bytes.
    pub most: u64,
    /// And so long at most is waited.
    pub patience: Duration,
}

impl Job {
    /// Gets the WAL that only the last primary has, if its host gives it, and sees it replayed. Nothing is received here any more.
    /// What fails or takes too long is done without; a third of the time that is left for the promotion is the most.
    ///
    /// # Errors
    /// What came can't be said to be on the disk, so nothing may build on it.
    pub(super) async fn rescue(
        &self,
        session: &Session,
        timeline: TimelineId,
        until: tokio::time::Instant,
    ) -> Result<(), String> {
        let Some((holder, asker)) = &self.rescue else { return Ok(()) };
        let began = tokio::time::Instant::now();
        let patience = asker.patience.min(until.saturating_duration_since(began) / 3);
        if holder.timeline != timeline || patience.is_zero() {
            return Ok(());
        }
        self.hands.progress("asking for WAL", 0, 0);
        let mut rescued = Rescued::default();
        let fetched = self.fetch(session, (holder, asker), began + patience, &mut rescued).await;
        // Whatever came is in place by now, and nothing writes to it any more.
        self.keep_rescued(timeline, rescued).await?;
        let elapsed_ms = began.elapsed().as_millis();
        let (member, bytes, to, end) = (&holder.member, rescued.bytes, rescued.to, rescued.end);
        match fetched {
            Ok(()) if bytes == 0 => tracing::info!(%member, elapsed_ms, "the last primary had no WAL that is not here"),
            Ok(()) if to >= end => tracing::info!(event = events::RESCUED, %member, %timeline, bytes, %to, elapsed_ms,
                "got the WAL that only the last primary had"),
            Ok(()) => tracing::warn!(event = events::RESCUED, %member, %timeline, bytes, %to, %end, elapsed_ms,
                "got some of the WAL that only the last primary had: as much as wal_rescue_max, or the room here, allows"),
            Err(error) => tracing::warn!(%member, %timeline, bytes, error, elapsed_ms,
                "the WAL that only the last primary had could not be fetched"),
        }
        if bytes > 0 {
            self.await_rescued(session, to, (began + patience).max(tokio::time::Instant::now() + POLL * 10)).await;
        }
        Ok(())
    }

    /// The deadline is for the other host; a write that was begun is waited for.
    async fn fetch(
        &self,
        session: &Session,
        (holder, asker): (&WalHolder, &Asker),
        until: tokio::time::Instant,
        rescued: &mut Rescued,
    ) -> Result<(), String> {
        let late = |_| "it took too long".to_owned();
        let replay = session.replay(asker.patience).await.map_err(said)?;
        let from = replay.received.max(replay.replayed);
        let timeline = holder.timeline;
        let segment = segment(&self.hands.instance).await?;
        let request = self.request(holder, asker, (segment, from, replay.replayed)).await?;
        let nonce = request.nonce;
        let ask = async {
            let endpoint = Endpoint::from_shared(format!("http://{}", holder.manager)).map_err(said)?;
            let channel = endpoint.connect_timeout(CONNECT).tcp_nodelay(true).connect().await.map_err(said)?;
            let answer = PeerClient::new(channel).read_wal(request).await;
            answer.map(|answer| answer.into_inner()).map_err(|status| status.message().to_owned())
        };
        let mut pieces = tokio::time::timeout_at(until, ask).await.map_err(late)??;
        let mut at = from;
        while let Some(piece) = tokio::time::timeout_at(until, pieces.next()).await.map_err(late)? {
            let piece = piece.map_err(|status| status.message().to_owned())?;
            let numbers = piece_numbers(nonce, piece.lsn, piece.end);
            if piece.lsn != at.0 || !self.hands.codec.is_tag(&piece.tag, ANSWER, &[&numbers, &piece.data]) {
                return Err(format!("what came for {at} is not what was asked for"));
            }
            let next = Lsn(at.0 + piece.data.len() as u64);
            // Before it is written: what was written in part may be replayed as well, and has to be on the disk for that.
            *rescued = Rescued { segment, from, bytes: next.bytes_past(from), to: next, end: Lsn(piece.end) };
            self.put(segment, WalPosition { timeline, lsn: at }, piece.data, from).await?;
            at = next;
            self.hands.progress("fetching WAL", rescued.bytes, rescued.end.bytes_past(from));
        }
        Ok(())
    }

    /// Whoever works in the data directory after this, be it another task because this one was dropped, finds the write done: it holds
    /// the directory until it ends. What fills a segment file is on the disk then.
    async fn put(&self, segment: u64, at: WalPosition, wal: Bytes, from: Lsn) -> Result<(), String> {
        let works = Arc::clone(&self.hands.data_dir).lock_owned().await;
        let end = Lsn(at.lsn.0 + wal.len() as u64);
        *self.hands.rescued.lock().unwrap_or_else(PoisonError::into_inner) = WalPosition { lsn: end, ..at };
        let instance = self.hands.instance.clone();
        let put = move || {
            let _works = works;
            instance.put_wal(segment, at, &wal).map_err(said)?;
            let whole = end.0 / segment * segment;
            let begin = Lsn(at.lsn.0 / segment * segment).max(from);
            if whole > begin.0 {
                instance.sync_wal(segment, WalPosition { lsn: begin, ..at }, Lsn(whole)).map_err(said)
            } else {
                Ok(())
            }
        };
        blocking(put).await?
    }

    /// PostgreSQL builds on it from the promotion on, and doesn't wait for the disk itself.
    async fn keep_rescued(&self, timeline: TimelineId, rescued: Rescued) -> Result<(), String> {
        let Rescued { segment, from, bytes, to, .. } = rescued;
        let (instance, from) = (self.hands.instance.clone(), WalPosition { timeline, lsn: from });
        match bytes {
            0 => Ok(()),
            _ => blocking(move || instance.sync_wal(segment, from, to).map_err(said)).await?,
        }
    }

    async fn request(
        &self,
        holder: &WalHolder,
        asker: &Asker,
        (segment, from, record): (u64, Lsn, Lsn),
    ) -> Result<v1::ReadWalRequest, String> {
        let at = WalPosition { timeline: holder.timeline, lsn: from };
        let mut request = v1::ReadWalRequest {
            to: Some(v1::Target {
                cluster_id: asker.cluster.0.clone(),
                generation: self.generation.0,
                target: holder.member.to_string(),
                epoch: holder.epoch.0,
                sender: asker.me.clone(),
            }),
            system_identifier: asker.system,
            timeline: holder.timeline.0,
            from: from.0,
            record: record.0,
            before: tag_before(&self.hands, segment, at).await?.into(),
            most_bytes: asker.most.min(room(&self.hands, segment).await),
            nonce: uuid::Uuid::new_v4().as_u64_pair().0,
            tag: Bytes::new(),
        };
        request.tag = request_tag(&self.hands.codec, &request).into();
        Ok(request)
    }

    /// The promotion would replay it as well, but nobody could see then how far it is.
    async fn await_rescued(&self, session: &Session, to: Lsn, until: tokio::time::Instant) {
        // A standby that follows nobody looks for more WAL now and then, and when it is told to read its configuration.
        if let Err(error) = session.reload().await {
            tracing::debug!(error = chain(&error), "replay could not be woken");
        }
        let mut at_its_end = 0;
        while tokio::time::Instant::now() < until {
            match session.replay(self.hands.timings.probe).await {
                Ok(replay) if replay.replayed >= to || at_its_end >= LOOKS_AT_THE_END => {
                    // From here on its end is what replay says.
                    *self.hands.rescued.lock().unwrap_or_else(PoisonError::into_inner) = WalPosition::default();
                    return;
                }
                Ok(replay) => {
                    at_its_end = if replay.waits && replay.replayed.0 + SMALL > to.0 { at_its_end + 1 } else { 0 };
                    tokio::time::sleep(POLL).await;
                }
                Err(error) => return tracing::debug!(error = chain(&error), "failed to see how far replay is"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::Secret;

    #[test]
    fn a_request_that_was_changed_or_made_by_a_stranger_is_not_of_a_member() {
        let codec = |secret: &str| Codec::new(&Secret::new(secret));
        let ours = codec("0123456789abcdef0123456789abcdef");
        let to = v1::Target { target: "n1".into(), sender: "n2".into(), epoch: 4, ..Default::default() };
        let mut request = v1::ReadWalRequest { to: Some(to), from: 100, nonce: 7, ..Default::default() };
        request.tag = request_tag(&ours, &request).into();
        assert!(is_of_a_member(&ours, &request));
        assert!(!is_of_a_member(&codec("another secret of the right length"), &request));
        assert!(!is_of_a_member(&ours, &v1::ReadWalRequest { from: 99, ..request.clone() }));
        assert!(!is_of_a_member(&ours, &v1::ReadWalRequest { tag: Bytes::new(), ..request }));
    }
}
