//! A session that has begun: bytes both ways until one side ends, the state says
//! so, or the server is about to acknowledge a commit that is not confirmed.

use std::{io, time::Duration};

use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, copy, split},
    select,
    time::{sleep, timeout},
};

use super::{desk::Pass, follower::Follower, stream::Stream, table::Cut};

/// Time for the last message of one side after the other has stopped to listen.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// Bytes of a server that are on their way to a client at once.
const BUFFER: usize = 16 << 10;

/// How a session ended.
#[derive(Debug)]
pub enum Ending {
    /// The server ended it.
    Server,
    /// The state said so.
    Cut(Cut),
    /// The server said that it gave a wait for standbys up. The client has its notice, and nothing after it.
    Unconfirmed,
    /// A socket failed.
    Broken(io::Error),
}

/// Carries bytes. `early` are those of the client that have been read already; with a follower the server's messages are
/// looked at. What the server had said before this has been handed on, and followed.
pub async fn carry(
    client: &mut Stream,
    backend: &mut Stream,
    early: &[u8],
    follower: Option<Follower>,
    pass: &mut Pass,
) -> Ending {
    // Two plain sockets need no lock between reading and writing.
    if let (Stream::Plain(client), Stream::Plain(backend)) = (&mut *client, &mut *backend) {
        return both_ways(client.split(), backend.split(), early, follower, pass).await;
    }
    both_ways(split(client), split(backend), early, follower, pass).await
}

async fn both_ways<CR, CW, BR, BW>(
    (mut from_client, mut to_client): (CR, CW),
    (mut from_backend, mut to_backend): (BR, BW),
    early: &[u8],
    follower: Option<Follower>,
    pass: &mut Pass,
) -> Ending
where
    CR: AsyncRead + Unpin,
    CW: AsyncWrite + Unpin,
    BR: AsyncRead + Unpin,
    BW: AsyncWrite + Unpin,
{
    let up = async {
        let carried = async {
            to_backend.write_all(early).await?;
            copy(&mut from_client, &mut to_backend).await
        };
        let carried = carried.await;
        // The backend may have more to say, so only its input ends here.
        let _ = to_backend.shutdown().await;
        let Err(error) = carried else { return std::future::pending().await };
        // A backend that was told to stop takes no bytes, but why it stops is on its way.
        sleep(LAST_WORDS).await;
        error
    };
    let down = async {
        match follower {
            Some(follower) => followed(&mut from_backend, &mut to_client, follower).await,
            None => copy(&mut from_backend, &mut to_client).await.map(|_| Ending::Server),
        }
    };
    // When the backend ends the session, so does this: a client that doesn't notice must not hold a place.
    select! {
        biased;
        cut = pass.cut() => Ending::Cut(cut),
        carried = down => carried.unwrap_or_else(Ending::Broken),
        error = up => Ending::Broken(error),
    }
}

/// Hands on what the server says, up to the end of a notice that makes its next word untrue.
async fn followed(
    from: &mut (impl AsyncRead + Unpin),
    to: &mut (impl AsyncWrite + Unpin),
    mut follower: Follower,
) -> io::Result<Ending> {
    let mut buffer = vec![0; BUFFER];
    loop {
        let read = from.read(&mut buffer).await?;
        if read == 0 {
            return Ok(Ending::Server);
        }
        let end = follower.follow(&buffer[..read]);
        to.write_all(&buffer[..end.unwrap_or(read)]).await?;
        to.flush().await?;
        if end.is_some() {
            return Ok(Ending::Unconfirmed);
        }
    }
}

/// Says a last thing, then ends the connection in order. A client that is still sending is listened to for a moment: to
/// close on unread bytes is a reset, which would take the last words with it.
pub async fn farewell(client: &mut Stream, words: &[u8]) {
    let talk = async {
        client.write_all(words).await?;
        client.shutdown().await?;
        let mut unread = [0; 512];
        while client.read(&mut unread).await? > 0 {}
        Ok::<_, io::Error>(())
    };
    // One that has gone hears nothing, and one that goes on talking is cut off.
    let _ = timeout(LAST_WORDS, talk).await;
}
