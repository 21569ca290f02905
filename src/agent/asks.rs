//! Requests, as they come from the gRPC face.

use tokio::sync::mpsc;
use tonic::Status;

use super::{
    core::{Event, Refusal, Unlent},
    lend::{self, Borrower},
    order::{Address, WalHolder},
    parameters,
    process::Agent,
    reload,
    rescue::{self, Asker},
    service::Ask,
};
use crate::{domain::Epoch, rpc::v1};

type Pieces = mpsc::Receiver<Result<v1::WalPiece, Status>>;

impl Agent {
    /// A request goes through the rules.
    pub(super) fn ask(&mut self, ask: Ask) -> anyhow::Result<()> {
        match ask {
            Ask::Execute(to, order, reply) => match self.core.admit(&to) {
                Ok(learned) => {
                    tracing::info!(order = order.id, rule = order.rule, epoch = %order.epoch, action = ?order.action,
                        "order received");
                    self.perform(learned, None)?;
                    let effects = self.step(Event::Order(order))?;
                    self.perform(effects, Some(reply))?;
                }
                Err(reason) => {
                    let _ = reply.send(Err(Refusal { reason, highest_epoch: self.core.durable().accepted }));
                }
            },
            Ask::Watch(to, reply) => match self.core.admit(&to) {
                Ok(learned) => {
                    self.perform(learned, None)?;
                    self.publish();
                    let _ = reply.send(Ok(self.statuses.subscribe()));
                }
                Err(reason) => drop(reply.send(Err(reason))),
            },
            Ask::Probe(to, reply) => match self.core.admit(&to) {
                Ok(learned) => {
                    self.perform(learned, None)?;
                    self.asked += 1;
                    self.probes_wanted.push((self.asked, reply));
                }
                Err(reason) => drop(reply.send(Err(reason))),
            },
            Ask::Reload(to, reply) => match self.core.admit(&to) {
                Ok(learned) => {
                    self.perform(learned, None)?;
                    reload::reload_beside(&self.hands, self.identity.member.to_string(), reply);
                }
                Err(reason) => drop(reply.send(Err(reason))),
            },
            Ask::Brief(to, briefing, reply) => match self.core.admit(&to) {
                Ok(learned) => {
                    self.perform(learned, None)?;
                    let effects = self.step(Event::Briefed(briefing.into()))?;
                    self.perform(effects, None)?;
                    let _ = reply.send(Ok(()));
                }
                Err(reason) => drop(reply.send(Err(reason))),
            },
            Ask::LendReader(to, request, reply) => match self.core.admit(&to) {
                Ok(learned) => {
                    self.perform(learned, None)?;
                    let _ = reply.send(self.lend_reader(&request));
                }
                Err(reason) => drop(reply.send(Err(reason))),
            },
            Ask::Parameters(to, request, reply) => match self.core.admit(&to) {
                Ok(learned) => {
                    self.perform(learned, None)?;
                    tokio::spawn(parameters::answer(self.hands.instance.clone(), request, reply));
                }
                Err(reason) => drop(reply.send(Err(reason))),
            },
            Ask::ReadWal(to, request, reply) => drop(reply.send(self.give_wal(&to, request))),
            Ask::ReadSegment(to, request, reply) => drop(reply.send(self.lend(&to, &request))),
        }
        self.look_around();
        Ok(())
    }

    fn give_wal(&mut self, to: &Address, request: v1::ReadWalRequest) -> Result<Pieces, String> {
        if !rescue::is_of_a_member(&self.hands.codec, &request) {
            return Err("the request has no tag of a member".to_owned());
        }
        let epoch = Epoch(request.to.as_ref().map(|t| t.epoch).unwrap_or_default());
        self.core.may_be_read(to, epoch, request.system_identifier)?;
        let (sender, pieces) = rescue::pipe();
        let serves = tokio::spawn(rescue::serve(self.hands.clone(), request, sender));
        // One at a time: whoever asks again has given the first request up.
        if let Some(earlier) = self.serves.replace(serves) {
            earlier.abort();
        }
        Ok(pieces)
    }

    fn lend(&self, to: &Address, request: &v1::ReadSegmentRequest) -> Result<Pieces, Status> {
        if !lend::is_of_a_member(&self.hands.codec, request) {
            return Err(Status::permission_denied("the request has no tag of a member"));
        }
        let wanted = lend::wanted(request).map_err(Status::invalid_argument)?;
        self.core.may_lend(to, &wanted).map_err(|unlent| match unlent {
            Unlent::Refused(why) => Status::failed_precondition(why),
            Unlent::NotYet(why) => Status::out_of_range(why),
        })?;
        let (sender, pieces) = rescue::pipe();
        tokio::spawn(lend::serve(self.hands.clone(), wanted.segment, request.nonce, sender));
        Ok(pieces)
    }

    /// What becomes other WAL is read no more.
    pub(super) fn end_serving(&mut self) {
        if !self.core.has_wal_left()
            && let Some(serves) = self.serves.take()
        {
            serves.abort();
        }
    }

    /// Whom a promotion asks for WAL, and how.
    pub(super) fn asks_for_wal(&self) -> Option<(WalHolder, Asker)> {
        Some((self.core.wal_holder()?.clone(), self.asker()?))
    }

    /// Whom to ask for WAL that was removed here.
    pub(super) fn borrower(&self) -> Option<Borrower> {
        let others = self.core.others().map(|(member, manager)| (member.clone(), manager.to_owned()));
        let (hands, asker, members) = (self.hands.clone(), self.asker()?, others.collect());
        let (generation, epoch) = (self.core.durable().generation, self.core.durable().accepted);
        Some(Borrower { hands, members, asker, generation, epoch })
    }

    fn asker(&self) -> Option<Asker> {
        let (durable, settings) = (self.core.durable(), self.core.settings());
        Some(Asker {
            cluster: durable.cluster_id.clone(),
            me: self.identity.member.to_string(),
            system: self.core.system_identifier()?,
            most: settings.wal_rescue_max,
            patience: settings.wal_rescue,
        })
    }
}
