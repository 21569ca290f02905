//! The rescue of a crashed primary's last WAL: its agent gives what nobody else has to the successor, before that is promoted.
//!
//! Who may ask is decided by [`Core::may_be_read`](super::core::Core::may_be_read). What is given is cut at the end of the last
//! record whose checksum is right, and only to a successor whose own WAL ends with the same bytes. Each piece carries
//! a tag that only members can make. Nothing here holds a promotion up for longer than `wal_rescue_ms`.

use std::{sync::PoisonError, time::Duration};

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
const PIECE: usize = 256 << 10;
/// Pieces that are read ahead.
const AHEAD: usize = 8;
/// The other host is alive, or it isn't asked.
const CONNECT: Duration = Duration::from_millis(300);
/// How often it is looked whether what came is replayed.
const POLL: Duration = Duration::from_millis(10);
/// Nobody waits longer for an answer that begins with reading the WAL.
const READ: Duration = Duration::from_secs(60);

/// What tags of requests, of pieces and of WAL before a position are made of.
const REQUEST: &str = "read WAL";
const ANSWER: &str = "WAL";
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
    codec.tag(REQUEST, &parts)
}

fn piece_numbers(nonce: u64, lsn: u64, end: u64) -> Vec<u8> {
    [nonce, lsn, end].iter().flat_map(|n| n.to_be_bytes()).collect()
}

/// True when a member made this request.
pub fn is_of_a_member(codec: &Codec, request: &v1::ReadWalRequest) -> bool {
    request.tag == request_tag(codec, request)
}

/// Gives the WAL that is asked for, piece by piece, and ends with the first that nobody takes.
pub async fn serve(hands: Hands, request: v1::ReadWalRequest, pieces: mpsc::Sender<Result<v1::WalPiece, Status>>) {
    if let Err(reason) = give(&hands, &request, &pieces).await {
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
    let end = hands.instance.records_end(timeline, Lsn(request.record), READ).await.map_err(said)?;
    let end = end.unwrap_or(from).max(from);
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

/// The way for pieces from [`serve`] to whoever asked.
pub fn pipe() -> (mpsc::Sender<Result<v1::WalPiece, Status>>, mpsc::Receiver<Result<v1::WalPiece, Status>>) {
    mpsc::channel(AHEAD)
}

/// The size of WAL segment files, in bytes.
async fn segment(instance: &Instance) -> Result<u64, String> {
    let instance = instance.clone();
    blocking(move || instance.control_data().map(|control| control.wal_segment_bytes).map_err(said)).await?
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
    /// Gets the WAL that only the last primary has, if its host gives it, and sees it replayed. Nothing is received here any more,
    /// and what fails or takes too long is done without.
    pub(super) async fn rescue(&self, session: &Session, timeline: TimelineId) {
        let Some((holder, asker)) = &self.rescue else { return };
        if holder.timeline != timeline || asker.patience.is_zero() {
            return;
        }
        let began = tokio::time::Instant::now();
        self.hands.progress("asking for WAL", 0, 0);
        let mut rescued = Rescued::default();
        let fetched = tokio::time::timeout(asker.patience, self.fetch(session, (holder, asker), &mut rescued)).await;
        let fetched = fetched.unwrap_or_else(|_| Err(format!("it took longer than {} ms", asker.patience.as_millis())));
        let elapsed_ms = began.elapsed().as_millis();
        let (member, bytes, to, end) = (&holder.member, rescued.bytes, rescued.to, rescued.end);
        let kept = self.keep_rescued(timeline, rescued).await;
        match fetched.and(kept) {
            Ok(()) if bytes == 0 => tracing::info!(%member, elapsed_ms, "the last primary had no WAL that is not here"),
            Ok(()) if to >= end => tracing::info!(event = events::RESCUED, %member, %timeline, bytes, %to, elapsed_ms,
                "got the WAL that only the last primary had"),
            Ok(()) => tracing::warn!(event = events::RESCUED, %member, %timeline, bytes, %to, %end, elapsed_ms,
                "got some of the WAL that only the last primary had: wal_rescue_max was reached"),
            Err(error) => tracing::warn!(%member, %timeline, bytes, error, elapsed_ms,
                "the WAL that only the last primary had could not be fetched"),
        }
        if bytes > 0 {
            let left = asker.patience.saturating_sub(began.elapsed()).max(POLL);
            self.await_rescued(session, to, tokio::time::Instant::now() + left).await;
        }
    }

    async fn fetch(
        &self,
        session: &Session,
        (holder, asker): (&WalHolder, &Asker),
        rescued: &mut Rescued,
    ) -> Result<(), String> {
        let replay = session.replay(asker.patience).await.map_err(said)?;
        let from = replay.received.max(replay.replayed);
        let timeline = holder.timeline;
        let segment = segment(&self.hands.instance).await?;
        let request = self.request(holder, asker, (segment, from, replay.replayed)).await?;
        let nonce = request.nonce;
        let endpoint = Endpoint::from_shared(format!("http://{}", holder.manager)).map_err(said)?;
        let channel = endpoint.connect_timeout(CONNECT).tcp_nodelay(true).connect().await.map_err(said)?;
        let answer = PeerClient::new(channel).read_wal(request).await.map_err(|status| status.message().to_owned())?;
        let mut pieces = answer.into_inner();
        let mut at = from;
        while let Some(piece) = pieces.next().await {
            let piece = piece.map_err(|status| status.message().to_owned())?;
            let numbers = piece_numbers(nonce, piece.lsn, piece.end);
            if piece.lsn != at.0 || !self.hands.codec.is_tag(&piece.tag, ANSWER, &[&numbers, &piece.data]) {
                return Err(format!("what came for {at} is not what was asked for"));
            }
            let (instance, position) = (self.hands.instance.clone(), WalPosition { timeline, lsn: at });
            let length = piece.data.len() as u64;
            blocking(move || instance.put_wal(segment, position, &piece.data).map_err(said)).await??;
            at = Lsn(at.0 + length);
            *self.hands.rescued.lock().unwrap_or_else(PoisonError::into_inner) = WalPosition { timeline, lsn: at };
            *rescued = Rescued { segment, from, bytes: at.bytes_past(from), to: at, end: Lsn(piece.end) };
            self.hands.progress("fetching WAL", rescued.bytes, rescued.end.bytes_past(from));
        }
        Ok(())
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
            most_bytes: asker.most,
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
        while tokio::time::Instant::now() < until {
            match session.replay(self.hands.timings.probe).await {
                Ok(replay) if replay.replayed < to => tokio::time::sleep(POLL).await,
                Ok(_) => return,
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
