//! Whether PostgreSQL lets anybody in: a connection that is begun and not finished.
//!
//! The postmaster has to accept it and to start a process, and that process has to find the role: so much and no more
//! says that the server lives. Without a password and a query it costs one fork, and no exchange of hashes. What is
//! answered, be it "too many clients" (53300) or "starting up" (57P03), comes from a living server. One that says the latter
//! after it had let others in is being shut down.
//! Messages: PostgreSQL manual, 55.7 "Message Formats", StartupMessage.

use std::{io, time::Duration};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::UnixStream,
    time::{sleep, timeout},
};

use super::instance::Instance;

/// Protocol 3.0.
const PROTOCOL: u32 = 196_608;
/// No first message is longer.
const WORDS_MAX: usize = 16 * 1024;
/// While the queue of a postmaster that takes nobody is full, the next connection is tried again after this.
const AGAIN: Duration = Duration::from_millis(50);

/// A server that ends closes its socket a moment before it is gone: only one that is closed in so many tries is.
const REFUSALS: u32 = 3;
/// `cannot_connect_now`: it starts, recovers or shuts down (PostgreSQL manual, appendix A).
const NOT_NOW: &[u8] = b"57P03";

/// What became of a new connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Knock {
    /// A server process said something.
    Answered,
    /// It is not to be connected to now (57P03).
    TurnsAway,
    /// Nobody listens.
    Refused,
    /// Nothing came in time.
    Silent,
}

impl Instance {
    /// Begins a new connection to the local server and waits for its first word, for no longer than `deadline`: a
    /// frozen postmaster leaves old connections alive.
    pub async fn knock(&self, deadline: Duration) -> Knock {
        timeout(deadline, self.await_first_word()).await.unwrap_or(Knock::Silent)
    }

    async fn await_first_word(&self) -> Knock {
        let cfg = self.config();
        let socket = cfg.socket_dir.join(format!(".s.PGSQL.{}", cfg.port));
        let mut refusals = 0;
        loop {
            let answer = async {
                let mut stream = UnixStream::connect(&socket).await?;
                stream.write_all(&startup(&cfg.superuser)).await?;
                hear_out(&mut stream).await
            };
            match answer.await {
                Ok(true) => return Knock::TurnsAway,
                Ok(false) => return Knock::Answered,
                // Its queue is full.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => sleep(AGAIN).await,
                Err(error) if is_nobody(error.kind()) => {
                    refusals += 1;
                    if refusals >= REFUSALS {
                        return Knock::Refused;
                    }
                    sleep(AGAIN).await;
                }
                // Closed without a word: whoever was to answer ended. The next one may.
                Err(_) => sleep(AGAIN).await,
            }
        }
    }
}

/// One whole message, for the server logs a connection that is closed before all it sent was read. At its end the server
/// finds the connection closed, and says nothing. True when it is an error that says "not now".
async fn hear_out(stream: &mut UnixStream) -> io::Result<bool> {
    let mut head = [0; 5];
    stream.read_exact(&mut head).await?;
    let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]);
    let mut rest = vec![0; usize::try_from(length).unwrap_or(0).saturating_sub(4).min(WORDS_MAX)];
    // A server that ends in the middle of it has answered all the same.
    let whole = stream.read_exact(&mut rest).await.is_ok();
    Ok(whole && head[0] == b'E' && says_not_now(&rest))
}

/// Fields of an error: a letter and a text each (manual, 55.8).
fn says_not_now(fields: &[u8]) -> bool {
    fields.split(|byte| *byte == 0).any(|field| field.strip_prefix(b"C") == Some(NOT_NOW))
}

fn is_nobody(kind: io::ErrorKind) -> bool {
    matches!(kind, io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound)
}

fn startup(user: &str) -> Vec<u8> {
    let mut body = PROTOCOL.to_be_bytes().to_vec();
    for text in ["user", user, "database", "postgres", "application_name", "matriarch"] {
        body.extend(text.as_bytes());
        body.push(0);
    }
    body.push(0);
    let length = u32::try_from(body.len() + 4).unwrap_or(u32::MAX);
    [length.to_be_bytes().as_slice(), &body].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_code_of_an_error_says_not_now() {
        let shutting_down = b"SFATAL\0VFATAL\0C57P03\0Mthe database system is shutting down\0Fpostmaster.c\0\0";
        assert!(says_not_now(shutting_down));
        assert!(!says_not_now(b"SFATAL\0VFATAL\0C53300\0Msorry, too many clients already, C57P03\0\0"));
    }

    #[test]
    fn the_first_message_names_its_length_the_protocol_and_the_role() {
        let message = startup("postgres");
        assert_eq!(message[..4], u32::try_from(message.len()).unwrap_or(0).to_be_bytes());
        assert_eq!(message[4..8], [0, 3, 0, 0]);
        assert!(message[8..].starts_with(b"user\0postgres\0") && message.ends_with(b"\0\0"));
    }
}
