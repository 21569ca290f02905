//! What the clients' memory proves: who acknowledged when, whether two servers
//! did at the same time, and which acknowledged rows are gone. Pure.
//!
//! **When an acknowledgement was given.** Between the server's stamp (it had
//! the row in its hands) and the client's receipt. On a path that no network
//! fault touched the receipt is exact but for the lag of this process. On a
//! touched path the kernel may have delivered it long after the server's death
//! (it retransmits for dead processes too), so only the stamp counts.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    sync::Arc,
};

use crate::workload::{Attempt, Client, Commit, Life, Micros, Outcome, Route};

/// From … to, when packets of clients could be lost.
pub type Span = (Micros, Micros);

/// One acknowledged write.
#[derive(Debug, Clone)]
pub struct Ack<'a> {
    /// Who wrote.
    pub client: &'a Client,
    /// Its number.
    pub seq: i64,
    /// Who acknowledged.
    pub life: Arc<Life>,
    /// The client had the answer.
    pub received: Micros,
    /// The server certainly still acknowledged at this time.
    pub certain: Micros,
    /// The server had the row in its hands.
    pub stamp: Micros,
}

/// The acknowledged writes, in the order of their receipt.
pub fn acks<'a>(clients: &'a [Client], attempts: &[Attempt], disturbed: &[Span]) -> Vec<Ack<'a>> {
    let ack = |a: &Attempt| {
        let Outcome::Acked { life, stamp } = &a.outcome else { return None };
        let client = &clients[a.client];
        let touched = disturbed.iter().any(|(from, to)| a.sent <= *to && a.ended >= *from);
        let certain = if client.route != Route::Local && touched { *stamp } else { a.ended };
        Some(Ack { client, seq: a.seq, life: life.clone(), received: a.ended, certain, stamp: *stamp })
    };
    attempts.iter().filter_map(ack).collect()
}

/// Where standbys confirm, a server that was replaced is confirmed nothing: no hole allows it to acknowledge to who
/// waits for them. But it may tell late, in the hole, what had been confirmed in time. So these acknowledgements count
/// from when it had the row.
pub fn told_late(acks: &mut [Ack], in_hole: impl Fn(&Ack) -> bool) {
    for ack in acks.iter_mut().filter(|a| a.client.commit == Commit::On) {
        if in_hole(ack) {
            ack.certain = ack.stamp;
        }
    }
}

/// A life as its clients saw it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reign {
    /// Whose.
    pub life: Arc<Life>,
    /// By now it had acknowledged.
    pub first: Micros,
    /// At this time it certainly still did.
    pub last: Micros,
    /// Its last acknowledgement was received.
    pub last_received: Micros,
    /// How many.
    pub acked: usize,
}

/// Every life that acknowledged anything, in the order in which they began to.
pub fn reigns<'a>(acks: impl IntoIterator<Item = &'a Ack<'a>>) -> Vec<Reign> {
    let mut all: BTreeMap<Arc<Life>, Reign> = BTreeMap::new();
    for ack in acks {
        let (first, last) = (ack.received, ack.certain);
        let new = || Reign { life: ack.life.clone(), first, last, last_received: first, acked: 0 };
        let reign = all.entry(ack.life.clone()).or_insert_with(new);
        reign.first = reign.first.min(first);
        reign.last = reign.last.max(last);
        reign.last_received = reign.last_received.max(ack.received);
        reign.acked += 1;
    }
    let mut list: Vec<Reign> = all.into_values().collect();
    list.sort_by_key(|r| r.first);
    list
}

/// Two servers that acknowledged at the same time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Overlap {
    /// The one that began earlier.
    pub older: Arc<Life>,
    /// The other.
    pub newer: Arc<Life>,
    /// From the newer one's first acknowledgement …
    pub from: Micros,
    /// … to the last of whichever ended first.
    pub to: Micros,
}

impl Overlap {
    /// How long.
    pub fn micros(&self) -> Micros {
        self.to - self.from
    }
}

/// Every pair of lives whose reigns overlap. That covers an acknowledgement by an
/// older epoch after a newer one opened, too: it lengthens the older one's reign.
pub fn overlaps(reigns: &[Reign]) -> Vec<Overlap> {
    let mut found = Vec::new();
    for (i, a) in reigns.iter().enumerate() {
        for b in &reigns[i + 1..] {
            let (from, to) = (a.first.max(b.first), a.last.min(b.last));
            // One acknowledgement alone in the middle of another reign is no span, and two writers all the same.
            if to >= from {
                found.push(Overlap { older: a.life.clone(), newer: b.life.clone(), from, to });
            }
        }
    }
    found
}

/// The acknowledgements in a documented hole that another server's reign makes stale, and the longest overlap of
/// what is left without any of the hole.
pub fn past_holes<'a>(acks: &'a [Ack<'a>], in_hole: impl Fn(&Ack) -> bool) -> (Vec<&'a Ack<'a>>, Option<Overlap>) {
    let (excused, rest): (Vec<&Ack>, Vec<&Ack>) = acks.iter().partition(|a| in_hole(a));
    let reigns = reigns(rest);
    let stale = |ack: &&Ack| {
        let meanwhile = |r: &Reign| r.life != ack.life && r.first < ack.certain && ack.certain <= r.last;
        reigns.iter().any(meanwhile)
    };
    let overlap = overlaps(&reigns).into_iter().max_by_key(Overlap::micros);
    (excused.into_iter().filter(stale).collect(), overlap)
}

/// Acknowledgements that were received after a later timeline had opened, over a
/// path that the fault touched: given in time, as far as can be told.
pub fn late_deliveries(acks: &[Ack]) -> usize {
    let reigns = reigns(acks);
    let opened = |timeline| reigns.iter().filter(|r| r.life.timeline > timeline).map(|r| r.first).min();
    acks.iter()
        .filter(|a| a.certain < a.received && opened(a.life.timeline).is_some_and(|open| a.received > open))
        .count()
}

/// What an acknowledged row may be lost to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Excuse {
    /// Nothing may be lost.
    None,
    /// Asynchronous replication: what was acknowledged after this moment, by a server that was replaced.
    Replaced(Micros),
    /// Standbys confirm: nothing may be lost to a session as configured. Of others, that don't wait for them, as above.
    Confirmed(Micros),
}

/// Why an acknowledged row may be gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Pardon {
    /// It was acknowledged in a documented hole: nobody held a lease for it.
    Hole,
    /// The session didn't wait for the disk, and its server ended.
    Off,
    /// The session didn't wait for standbys where others do, and its server was replaced.
    Own,
    /// Nobody waits for standbys, and its server was replaced.
    AsyncEnd,
}

impl Pardon {
    /// As it is counted.
    pub fn name(self) -> &'static str {
        match self {
            Pardon::Hole => "rows: acknowledged in a documented hole",
            Pardon::Off => "rows: synchronous_commit = off, and the server ended",
            Pardon::Own => "rows: synchronous_commit = local or off, and the server was replaced",
            Pardon::AsyncEnd => "rows: asynchronous end",
        }
    }
}

/// An acknowledged row that is gone.
#[derive(Debug, Clone)]
pub struct Lost<'a> {
    /// The acknowledgement.
    pub ack: &'a Ack<'a>,
    /// Why that may be, or why it must not be.
    pub judged: Result<Pardon, &'static str>,
}

impl Lost<'_> {
    /// Why that must not be; `None` when it is excused.
    pub fn unexcused(&self) -> Option<&'static str> {
        self.judged.err()
    }
}

/// Acknowledged rows that are not in `present`, each with whether that is excused. Those of a documented hole are,
/// but not where standbys confirm and the session waited for them: these had to promise the next epoch first, and
/// confirmed nothing after that.
pub fn lost<'a>(
    acks: &'a [Ack<'a>],
    present: &HashSet<(String, i64)>,
    excuse: Excuse,
    in_hole: impl Fn(&Ack) -> bool,
) -> Vec<Lost<'a>> {
    let newest = acks.iter().map(|a| (a.life.timeline, a.life.started.clone())).max();
    let mut gone: Vec<&Ack> = acks.iter().filter(|a| !present.contains(&(a.client.name.clone(), a.seq))).collect();
    gone.sort_by_key(|a| a.received);
    let first_gone: BTreeMap<(&str, &Life), i64> =
        gone.iter().rev().map(|a| ((a.client.name.as_str(), &*a.life), a.seq)).collect();
    let gone_rows: BTreeSet<(&str, i64)> = gone.iter().map(|a| (a.client.name.as_str(), a.seq)).collect();
    // One client's rows are in the WAL in the order of their numbers, so an end of the WAL takes an end of them.
    let survived_later: BTreeSet<(&str, &Life)> = acks
        .iter()
        .filter(|a| !gone_rows.contains(&(a.client.name.as_str(), a.seq)))
        .filter(|a| first_gone.get(&(a.client.name.as_str(), &*a.life)).is_some_and(|first| a.seq > *first))
        .map(|a| (a.client.name.as_str(), &*a.life))
        .collect();
    gone.into_iter()
        .map(|ack| {
            let replaced = newest.as_ref().is_some_and(|(timeline, _)| ack.life.timeline < *timeline);
            let died = newest.as_ref().is_some_and(|n| (ack.life.timeline, ack.life.started.clone()) < *n);
            let (excuse, end) = match excuse {
                Excuse::Confirmed(_) if ack.client.commit == Commit::On => {
                    return Lost { ack, judged: Err("it was confirmed") };
                }
                Excuse::Confirmed(since) => (Excuse::Replaced(since), Pardon::Own),
                other => (other, Pardon::AsyncEnd),
            };
            let judged = match excuse {
                _ if in_hole(ack) => Ok(Pardon::Hole),
                _ if survived_later.contains(&(ack.client.name.as_str(), &*ack.life)) => {
                    Err("a later row of the same client and server survived")
                }
                // Not even its own disk was waited for.
                Excuse::Replaced(_) if ack.client.commit == Commit::Off && died => Ok(Pardon::Off),
                Excuse::None => Err("nothing may be lost here"),
                Excuse::Replaced(_) if !replaced => Err("its server was not replaced"),
                Excuse::Replaced(since) if ack.received < since => Err("the standbys had time to get it"),
                Excuse::Replaced(_) | Excuse::Confirmed(_) => Ok(end),
            };
            Lost { ack, judged }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn two_writers<'a>(acks: impl IntoIterator<Item = &'a Ack<'a>>) -> Option<Overlap> {
        overlaps(&reigns(acks)).into_iter().max_by_key(Overlap::micros)
    }

    fn client(name: &str, route: Route, commit: Commit) -> Client {
        Client {
            name: name.into(),
            route,
            host: "n1".into(),
            commit,
            transactions: false,
            patient: true,
            pause: std::time::Duration::ZERO,
        }
    }

    fn clients() -> Vec<Client> {
        vec![
            client("local", Route::Local, Commit::On),
            client("direct", Route::Direct, Commit::On),
            client("off", Route::Local, Commit::Off),
        ]
    }

    /// Attempts as (client, sent, stamp, received, timeline of the server), in ms; timeline 0 means failed.
    fn attempts(list: &[(usize, u64, u64, u64, u32)]) -> Vec<Attempt> {
        let make = |(i, (client, sent, stamp, ended, timeline)): (usize, &(usize, u64, u64, u64, u32))| {
            let life = Life { timeline: *timeline, server: format!("s{timeline}"), started: String::new() };
            let outcome = match timeline {
                0 => Outcome::Failed,
                _ => Outcome::Acked { life: Arc::new(life), stamp: stamp * 1000 },
            };
            Attempt { client: *client, seq: i as i64, sent: sent * 1000, ended: ended * 1000, outcome }
        };
        list.iter().enumerate().map(make).collect()
    }

    #[test]
    fn servers_one_after_the_other_are_no_two_writers() {
        let clients = clients();
        let list = attempts(&[(0, 0, 0, 10, 2), (0, 20, 20, 30, 2), (1, 30, 0, 35, 0), (0, 40, 40, 50, 3)]);
        let acks = acks(&clients, &list, &[]);
        assert_eq!(acks.len(), 3);
        assert_eq!(two_writers(&acks), None);
        let reigns = reigns(&acks);
        assert_eq!((reigns[0].acked, reigns[0].first, reigns[0].last), (2, 10_000, 30_000));
    }

    /// An ack of the old server after the first of the new one, though the old one had been silent in between.
    #[test]
    fn an_old_epoch_that_acknowledges_after_a_newer_one_opened_is_found() {
        let clients = clients();
        let list = attempts(&[(0, 0, 0, 10, 2), (1, 50, 50, 60, 3), (1, 90, 90, 95, 3), (0, 70, 70, 80, 2)]);
        let acks = acks(&clients, &list, &[]);
        let found = two_writers(&acks).unwrap();
        assert_eq!((found.older.timeline, found.newer.timeline, found.micros()), (2, 3, 20_000));
        assert_eq!(two_writers(acks.iter().filter(|a| a.client.route == Route::Local)), None);
        assert_eq!(two_writers(acks.iter().filter(|a| a.seq != 3)), None);
        let (stale, left) = past_holes(&acks, |a| a.seq == 3);
        assert_eq!((stale.iter().map(|a| a.seq).collect::<Vec<_>>(), left), (vec![3], None));
        assert_eq!(past_holes(&acks, |_| false).1.unwrap().micros(), 20_000);
    }

    /// The new server's first acknowledgement goes to one kind of session, the old one's next to another.
    #[test]
    fn a_hole_covers_all_sessions_of_its_server_from_the_other_ones_first_acknowledgement() {
        let clients = clients();
        let list = attempts(&[(0, 0, 0, 10, 2), (0, 40, 40, 50, 3), (2, 50, 50, 55, 2), (2, 60, 60, 65, 3)]);
        let acks = acks(&clients, &list, &[]);
        let (stale, left) = past_holes(&acks, |a| a.life.timeline == 2 && a.certain > 20_000);
        assert_eq!((stale.len(), left), (1, None));
        // A hole that ended before it is none for it.
        let (stale, left) = past_holes(&acks, |a| a.life.timeline == 2 && (20_000..52_000).contains(&a.certain));
        assert_eq!((stale.len(), left.unwrap().micros()), (0, 5_000));
        let (_, left) = past_holes(&acks, |a| a.life.timeline == 2 && a.certain < 52_000);
        assert_eq!(left.unwrap().micros(), 0);
    }

    /// The kernel delivered it when the cut was mended; the server had given it long before.
    #[test]
    fn a_late_delivery_over_a_cut_path_is_judged_by_the_servers_stamp() {
        let clients = clients();
        let list = attempts(&[(1, 0, 0, 10, 2), (0, 60, 60, 70, 3), (1, 20, 20, 100, 2), (0, 110, 110, 120, 3)]);
        let cut = [(30_000, 90_000)];
        let touched = acks(&clients, &list, &cut);
        assert_eq!(two_writers(&touched), None);
        assert_eq!(late_deliveries(&touched), 1);
        let untouched = acks(&clients, &list, &[]);
        assert_eq!(two_writers(&untouched).unwrap().micros(), 30_000);
        // A stamp after the opening is proof whatever the path.
        let list = attempts(&[(1, 0, 0, 10, 2), (0, 60, 60, 70, 3), (1, 20, 80, 100, 2), (0, 110, 110, 120, 3)]);
        let touched = acks(&clients, &list, &cut);
        assert_eq!(two_writers(&touched).unwrap().micros(), 10_000);
    }

    /// A frozen host tells, when it goes on, what had been confirmed before. It is told nothing new.
    #[test]
    fn what_is_told_late_counts_from_when_the_server_had_it() {
        let clients = clients();
        let judge = |stamp: u64| {
            let list = attempts(&[(0, 0, 0, 10, 2), (0, 60, 60, 70, 3), (0, 20, stamp, 100, 2), (0, 110, 110, 120, 3)]);
            let mut acks = acks(&clients, &list, &[]);
            told_late(&mut acks, |a| a.certain >= 95_000 && a.life.timeline == 2);
            two_writers(&acks).map(|o| o.micros())
        };
        assert_eq!((judge(20), judge(90)), (None, Some(20_000)));
    }

    /// A unix socket has no network: its receipt is exact in any cut.
    #[test]
    fn a_local_session_is_judged_by_its_receipt() {
        let clients = clients();
        let list = attempts(&[(0, 0, 0, 10, 2), (1, 60, 60, 70, 3), (0, 20, 20, 100, 2), (1, 110, 110, 120, 3)]);
        let acks = acks(&clients, &list, &[(0, 200_000)]);
        assert_eq!(two_writers(&acks).unwrap().micros(), 30_000);
    }

    fn rows(list: &[(&str, i64)]) -> HashSet<(String, i64)> {
        list.iter().map(|(c, s)| ((*c).to_owned(), *s)).collect()
    }

    #[test]
    fn losses_are_excused_only_at_the_end_of_a_replaced_server() {
        let clients = clients();
        let list = attempts(&[
            (0, 0, 0, 10, 2),
            (0, 20, 20, 30, 2),
            (0, 40, 40, 50, 2),
            (2, 41, 41, 51, 2),
            (0, 90, 90, 95, 3),
        ]);
        let acks = acks(&clients, &list, &[]);
        let judge = |present: &[(&str, i64)], excuse| -> Vec<Option<&'static str>> {
            lost(&acks, &rows(present), excuse, |_| false).iter().map(Lost::unexcused).collect()
        };
        let since = Excuse::Replaced(45_000);
        assert!(judge(&[("local", 0), ("local", 1), ("local", 2), ("off", 3), ("local", 4)], Excuse::None).is_empty());
        assert_eq!(judge(&[("local", 0), ("local", 1), ("off", 3), ("local", 4)], since), [None]);
        assert!(judge(&[("local", 0), ("local", 1), ("off", 3), ("local", 4)], Excuse::None)[0].is_some());
        // Number 1 was acknowledged long enough before.
        assert!(judge(&[("local", 0), ("off", 3), ("local", 4)], since)[0].unwrap().contains("time to get it"));
        // Number 2 survived, number 1 did not: no end of the WAL.
        assert!(
            judge(&[("local", 0), ("local", 2), ("off", 3), ("local", 4)], since)[0].unwrap().contains("later row")
        );
        // The last server still runs.
        assert!(judge(&[("local", 0), ("local", 1), ("local", 2), ("off", 3)], since)[0].unwrap().contains("replaced"));
        let confirmed = |present| judge(present, Excuse::Confirmed(0));
        assert_eq!(confirmed(&[("local", 0), ("local", 1), ("local", 2), ("local", 4)]), [None], "it waits for nobody");
        assert!(confirmed(&[("local", 0), ("local", 1), ("off", 3), ("local", 4)])[0].is_some());
        assert_eq!(judge(&[("local", 0), ("local", 1), ("local", 2), ("local", 4)], Excuse::Replaced(0)), [None]);
        let present = rows(&[("local", 0), ("local", 1), ("local", 2), ("local", 4)]);
        let in_hole = lost(&acks, &present, Excuse::None, |a| a.client.commit == Commit::Off);
        assert_eq!(in_hole.iter().map(|l| l.judged).collect::<Vec<_>>(), [Ok(Pardon::Hole)]);
        let present = rows(&[("local", 0), ("local", 1), ("local", 4)]);
        let confirmed = lost(&acks, &present, Excuse::Confirmed(0), |_| true);
        let judged = confirmed.iter().map(|l| (l.ack.seq, l.judged)).collect::<Vec<_>>();
        assert_eq!(judged, [(2, Err("it was confirmed")), (3, Ok(Pardon::Hole))], "no hole takes what was confirmed");
    }
}
