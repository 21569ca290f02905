//! Bytes that nobody looks at and that come in bulk, from socket to socket by way of a pipe: the kernel hands its pages on, and
//! none is copied (splice(2)). Pipes belong to threads, and a session has one only while bulk is on its way.

use std::{
    cell::RefCell,
    io,
    os::fd::OwnedFd,
    sync::atomic::{AtomicBool, Ordering},
    task::{Context, Poll, ready},
};

use rustix::{
    io::Errno,
    pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, splice},
};
use tokio::{io::Interest, net::TcpStream};

/// What a pipe is to hold at most.
const MOST: usize = 512 << 10;
/// A pipe that holds less is slower than a copy. The kernel gives no more to a user who has many.
const LEAST: usize = 256 << 10;
/// After so much the other way of the session has its turn.
const TURN: usize = 1 << 20;
/// Less at one time is no bulk any more.
const THIN: usize = 16 << 10;
/// Pipes of one thread; what finds none is copied.
pub const PIPES: usize = 32;
/// Of these so many are kept that nobody needs now.
const UNUSED: usize = 4;

thread_local! {
    static OF_THREAD: RefCell<Pipes> = const { RefCell::new(Pipes { unused: Vec::new(), in_use: 0 }) };
}

/// This kernel, or what is between it and this process, doesn't move anything so.
static REFUSED: AtomicBool = AtomicBool::new(false);

struct Pipes {
    unused: Vec<Pipe>,
    in_use: usize,
}

/// What is between two sockets.
#[derive(Debug)]
struct Pipe {
    out: OwnedFd,
    into: OwnedFd,
    /// Bytes in it.
    holds: usize,
}

/// Bulk on its way; a pipe that is empty goes back to its thread with it.
#[derive(Debug)]
pub struct Bulk {
    /// Until it is dropped.
    pipe: Option<Pipe>,
    /// Bytes that were moved since there was nothing to move.
    moved: usize,
}

impl Bulk {
    /// `None` when there is no pipe to be had: then bytes are copied.
    pub fn begin() -> Option<Self> {
        let pipe = OF_THREAD.with_borrow_mut(|pipes| {
            if pipes.in_use == PIPES || REFUSED.load(Ordering::Relaxed) {
                return None;
            }
            let new = || {
                let (out, into) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).ok()?;
                fcntl_setpipe_size(&into, MOST).ok().filter(|size| *size >= LEAST)?;
                Some(Pipe { out, into, holds: 0 })
            };
            let pipe = pipes.unused.pop().or_else(new)?;
            pipes.in_use += 1;
            Some(pipe)
        });
        // What made it begin counts, so that a pause right after it is none.
        pipe.map(|pipe| Self { pipe: Some(pipe), moved: THIN })
    }

    /// Moves what there is. Ready with true when it has thinned out and nothing is held, with false when nothing more comes.
    /// `count` is told of each piece.
    pub fn poll_move(
        &mut self,
        cx: &mut Context<'_>,
        from: &TcpStream,
        to: &TcpStream,
        count: impl Fn(usize),
    ) -> Poll<io::Result<bool>> {
        let Some(pipe) = &mut self.pipe else { return Poll::Ready(Ok(true)) };
        let mut this_turn = 0;
        loop {
            if this_turn >= TURN {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            while pipe.holds > 0 {
                ready!(to.poll_write_ready(cx))?;
                let moved = to.try_io(Interest::WRITABLE, || {
                    Ok(splice(&pipe.out, None, to, None, pipe.holds, SpliceFlags::NONBLOCK)?)
                });
                match moved {
                    Ok(0) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                    Ok(moved) => {
                        this_turn += moved;
                        pipe.holds -= moved;
                        self.moved += moved;
                        count(moved);
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(error) => return Poll::Ready(Err(error)),
                }
            }
            if from.poll_read_ready(cx)?.is_pending() {
                let thin = std::mem::take(&mut self.moved) < THIN;
                return if thin { Poll::Ready(Ok(true)) } else { Poll::Pending };
            }
            let moved = from
                .try_io(Interest::READABLE, || Ok(splice(from, None, &pipe.into, None, MOST, SpliceFlags::NONBLOCK)?));
            match moved {
                Ok(0) => return Poll::Ready(Ok(false)),
                Ok(moved) => pipe.holds = moved,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) if is_refusal(&error) => {
                    REFUSED.store(true, Ordering::Relaxed);
                    return Poll::Ready(Ok(true));
                }
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

/// It was not tried at all: nothing is lost, and all is copied from then on.
fn is_refusal(error: &io::Error) -> bool {
    let codes = [Errno::INVAL, Errno::NOSYS, Errno::PERM, Errno::OPNOTSUPP];
    codes.iter().any(|code| error.raw_os_error() == Some(code.raw_os_error()))
}

impl Drop for Bulk {
    fn drop(&mut self) {
        let pipe = self.pipe.take();
        // A thread that ends has no place for it.
        let _ = OF_THREAD.try_with(|pipes| {
            let mut pipes = pipes.borrow_mut();
            // What a runtime of several threads carries may end on another one.
            pipes.in_use = pipes.in_use.saturating_sub(1);
            // One with bytes of this session in it must not be used again.
            if let Some(pipe) = pipe.filter(|pipe| pipe.holds == 0)
                && pipes.unused.len() < UNUSED
            {
                pipes.unused.push(pipe);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use std::{cell::Cell, future::poll_fn};

    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpListener,
    };

    use super::*;

    async fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        (near, listener.accept().await.unwrap().0)
    }

    #[tokio::test]
    async fn all_of_it_is_moved_up_to_its_end_and_the_pipe_is_used_again() {
        for _ in 0..2 {
            let ((mut client, from), (to, mut server)) = (pair().await, pair().await);
            let said: Vec<u8> = (0u32..1 << 20).flat_map(u32::to_be_bytes).collect();
            let expected = said.clone();
            let sends = async {
                client.write_all(&said).await.unwrap();
                drop(client);
            };
            let moved = Cell::new(0);
            let moves = async {
                let mut bulk = Bulk::begin().expect("a pipe");
                let count = |more| moved.set(moved.get() + more);
                while poll_fn(|cx| bulk.poll_move(cx, &from, &to, count)).await.unwrap() {}
                drop((bulk, to));
            };
            let mut heard = Vec::new();
            tokio::join!(sends, moves, async { server.read_to_end(&mut heard).await.unwrap() });
            assert!(heard == expected && moved.get() == expected.len(), "{} bytes", heard.len());
            assert_eq!(OF_THREAD.with_borrow(|pipes| (pipes.unused.len(), pipes.in_use)), (1, 0));
        }
    }
}
