//! Settings of which a standby needs as much as its primary has: what the server runs with, what it is configured for, and
//! what the WAL it has replayed needs, which stands in `pg_control`.

use std::{collections::BTreeMap, time::Duration};

use super::{
    conf,
    instance::Instance,
    session::{Session, SqlError},
};
use crate::domain::{
    PendingSetting, Side, parameters,
    postgres_settings::{HELD_UP, LACKING},
};

/// For a statement that a healthy server answers at once.
const SHORT: Duration = Duration::from_secs(5);

/// One of them.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Count {
    name: String,
    running: u64,
    configured: u64,
}

/// What a standby has to say of `count` beside what PostgreSQL says, by what its WAL needs.
fn of_standby(count: &Count, floor: u64) -> Option<PendingSetting> {
    let Count { name, running, configured } = count;
    let (will, why) = match () {
        () if floor > *running => (floor.max(*configured), LACKING),
        () if configured >= running => return started_with(count),
        () if floor > *configured => (*configured, HELD_UP),
        () => (*configured, "needs a restart, the primary has been restarted"),
    };
    let (running, configured) = (running.to_string(), will.to_string());
    Some(PendingSetting { name: name.clone(), running, configured, why: why.to_owned() })
}

/// Of a server that was started with what its WAL needed then PostgreSQL does not say that it is configured for something else.
fn started_with(count: &Count) -> Option<PendingSetting> {
    let Count { name, running, configured } = count;
    let (is, will) = (running.to_string(), configured.to_string());
    let order = parameters::restart_order(name, &is, &will)?;
    let why = format!("needs a restart, {order}");
    Some(PendingSetting { name: name.clone(), running: is, configured: will, why })
}

/// `pending` with what is known better.
fn amended(mut pending: Vec<PendingSetting>, better: impl Iterator<Item = PendingSetting>) -> Vec<PendingSetting> {
    for known in better {
        match pending.iter_mut().find(|p| p.name == known.name) {
            Some(told) => *told = known,
            None => pending.push(known),
        }
    }
    pending
}

impl Instance {
    /// What of `pending` (all that PostgreSQL says waits for a restart) is otherwise because a standby needs as much of some
    /// settings as its primary has, and what the server runs with of them.
    ///
    /// # Errors
    /// See [`SqlError`].
    pub async fn counts(
        &self,
        session: &Session,
        pending: Vec<PendingSetting>,
    ) -> Result<(Vec<PendingSetting>, BTreeMap<String, u64>), SqlError> {
        let names = parameters::AT_LEAST_THE_PRIMARYS.map(conf::sql_literal).join(", ");
        let sql = format!(
            "SELECT name, setting, source = 'command line', pg_is_in_recovery(), \
             CASE WHEN pg_is_in_recovery() THEN pg_is_wal_replay_paused() END FROM pg_settings WHERE name IN ({names})"
        );
        let rows = session.query("asking what it runs with", &sql, SHORT).await?;
        let is = |column: usize| rows.first().and_then(|row| row.get(column)) == Some("t");
        let (in_recovery, paused) = (is(3), is(4));
        let texts = self.texts(if in_recovery { Side::Standby } else { Side::Primary });
        let settings = self.settings(&texts);
        let of = |row: &tokio_postgres::SimpleQueryRow| {
            let (name, running) = (row.get(0)?.to_owned(), row.get(1)?.parse().ok()?);
            // What a start was given says nothing of what the next one gets.
            let configured = match (row.get(2), pending.iter().find(|p| p.name == name)) {
                (Some("t"), _) => conf::count_of(&settings, &name),
                (_, Some(waits)) => waits.configured.parse().ok()?,
                (_, None) => running,
            };
            Some(Count { name, running, configured })
        };
        let counts: Vec<Count> = rows.iter().filter_map(of).collect();
        let runs_with = counts.iter().map(|count| (count.name.clone(), count.running)).collect();
        if !in_recovery {
            return Ok((amended(pending, counts.iter().filter_map(started_with)), runs_with));
        }
        // What its WAL needs is known without a look when it goes on and is to have no less than it has.
        if !paused && counts.iter().all(|count| count.configured >= count.running) {
            return Ok((amended(pending, counts.iter().filter_map(started_with)), runs_with));
        }
        let at = self.clone();
        let floors = match tokio::task::spawn_blocking(move || at.control_data()).await {
            Ok(Ok(data)) => BTreeMap::from(data.floors),
            Ok(Err(_)) | Err(_) => return Ok((pending, runs_with)),
        };
        let better = |count: &Count| of_standby(count, *floors.get(count.name.as_str())?);
        Ok((amended(pending, counts.iter().filter_map(better)), runs_with))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn count(running: u64, configured: u64) -> Count {
        Count { name: "max_connections".to_owned(), running, configured }
    }

    #[test]
    fn a_standby_has_what_its_primary_needs_and_says_whose_turn_it_is() {
        let of = |running, configured, floor| {
            of_standby(&count(running, configured), floor).map(|p| (p.running, p.configured, p.why))
        };
        let told = |running: u64, configured: u64, why: &str| {
            Some((running.to_string(), configured.to_string(), why.to_owned()))
        };
        assert_eq!(of(100, 100, 100), None);
        assert_eq!(of(100, 200, 100), told(100, 200, "needs a restart, standbys first"));
        assert_eq!(of(200, 100, 200), told(200, 100, HELD_UP), "the primary has not been restarted yet");
        let has_been = "needs a restart, the primary has been restarted";
        assert_eq!(of(200, 100, 100), told(200, 100, has_been));
        assert_eq!(of(100, 200, 200), told(100, 200, LACKING), "the primary was restarted first");
        assert_eq!(of(100, 50, 200), told(100, 200, LACKING), "the start gives it what the WAL needs");
    }

    #[test]
    fn what_is_known_better_takes_the_place_of_what_postgresql_says() {
        let told = PendingSetting { name: "shared_buffers".into(), ..PendingSetting::default() };
        let falls = PendingSetting { name: "max_connections".into(), why: "as said".into(), ..told.clone() };
        let known = of_standby(&count(200, 100), 200);
        let all = amended(vec![told.clone(), falls], known.clone().into_iter());
        assert_eq!(all, [told, known.unwrap()]);
        let added = amended(Vec::new(), started_with(&count(200, 100)).into_iter());
        assert_eq!(added[0].why, "needs a restart, the primary first", "of a primary that was started as a standby");
        assert_eq!(started_with(&count(100, 100)), None);
    }
}
