//! The agent's door for datagrams of other members' holders. Only what carries
//! the cluster's tag comes in; the rules decide what is answered.

use std::{net::SocketAddr, sync::Arc};

use tokio::{net::UdpSocket, sync::mpsc};

use super::process::Agent;
use crate::{
    config::{Config, LocalMember},
    domain::{ClusterId, Generation, MemberId, Secret},
    lease::{
        message::{Envelope, Letter},
        wire::{Codec, Identity, MAX_DATAGRAM, check_target},
    },
};

/// More questions at once than any cluster has members are dropped: they come again.
const QUEUE: usize = 64;

/// A question, and where its answer goes.
pub type Question = (Envelope, SocketAddr);

/// The open door.
pub struct Door {
    socket: Arc<UdpSocket>,
    codec: Codec,
}

impl Agent {
    /// To the question that is being answered.
    pub(super) fn answer(&self, letter: Letter) {
        if let (Some(door), Some((question, sender))) = (&self.door, &self.question) {
            door.answer(question, letter, *sender);
        }
    }
}

impl Door {
    /// Opens it; questions come out at the other end.
    ///
    /// # Errors
    /// The address is taken or is none of this host's.
    pub fn open(address: SocketAddr, secret: &Secret) -> std::io::Result<(Door, mpsc::Receiver<Question>)> {
        let socket = std::net::UdpSocket::bind(address)?;
        socket.set_nonblocking(true)?;
        let socket = Arc::new(UdpSocket::from_std(socket)?);
        let (sender, questions) = mpsc::channel(QUEUE);
        let door = Door { socket, codec: Codec::new(secret) };
        tokio::spawn(listen(door.socket.clone(), door.codec.clone(), sender));
        Ok((door, questions))
    }

    /// True when a question is for this member of this life of this cluster.
    pub fn is_for(&self, envelope: &Envelope, me: &MemberId, cluster: &ClusterId, generation: Generation) -> bool {
        let identity = Identity { cluster: cluster.clone(), generation };
        !cluster.0.is_empty() && check_target(envelope, me, &identity).is_ok()
    }

    /// Sends an answer, or drops it: the holder asks again.
    pub fn answer(&self, question: &Envelope, letter: Letter, to: SocketAddr) {
        let Envelope { cluster, generation, to: me, from, .. } = question.clone();
        let answer = Envelope { cluster, generation, to: from, from: me, letter };
        let sent = self.codec.encode(&answer).map(|bytes| self.socket.try_send_to(&bytes, to));
        if !matches!(sent, Ok(Ok(_))) {
            tracing::debug!(member = %answer.to, ?sent, "failed to answer in failsafe");
        }
    }
}

async fn listen(socket: Arc<UdpSocket>, codec: Codec, questions: mpsc::Sender<Question>) {
    let mut buffer = [0_u8; MAX_DATAGRAM + 1];
    loop {
        // An error is of an earlier answer and concerns nobody.
        let Ok((length, sender)) = socket.recv_from(&mut buffer).await else { continue };
        match codec.decode(&buffer[..length]) {
            Ok(envelope) => {
                if let Err(mpsc::error::TrySendError::Closed(_)) = questions.try_send((envelope, sender)) {
                    return;
                }
            }
            Err(refusal) => tracing::debug!(%sender, why = refusal.name(), "a datagram is passed over"),
        }
    }
}

impl Agent {
    /// Opens the door for holders in failsafe where the configuration wants it. Without, nobody ever asks.
    pub(super) fn open_door(
        &mut self,
        config: &Config,
        local: &LocalMember,
    ) -> anyhow::Result<mpsc::Receiver<Question>> {
        let Some(address) = local.agent.failsafe_listen else { return Ok(mpsc::channel(1).1) };
        let secret = crate::config::read_secret(&config.cluster.secret_file)?;
        let opened = Door::open(address, &secret);
        let (door, questions) =
            opened.map_err(|error| config.cannot_listen("agent.failsafe_listen", &format!("{address} UDP"), &error))?;
        self.door = Some(door);
        Ok(questions)
    }
}
