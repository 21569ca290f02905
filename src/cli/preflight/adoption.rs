//! What taking over the data directory of an older PostgreSQL would refuse and change, without doing it.

use super::{fail, ok, warn};
use crate::{
    agent,
    cli::render::Check,
    config::{Config, LocalMember},
};

const NAME: &str = "adoption";

pub(super) fn all(config: &Config, member: &LocalMember) -> Vec<Check> {
    let adoption = match agent::adoption(config, member) {
        Ok(Some(adoption)) => adoption,
        Ok(None) => return Vec::new(),
        Err(error) => return vec![fail(NAME, format!("it can't be read: {error}"))],
    };
    let how = match (adoption.standby, adoption.goes_on) {
        (false, true) => "it is taken over while it runs when the cluster is founded",
        (false, false) => "it is taken over as it lies when the cluster is founded",
        (true, true) => {
            "it is stopped and taken in as a standby as soon as there is a primary that it proves to follow"
        }
        (true, false) => "it is taken in as a standby as soon as there is a primary that it proves to follow",
    };
    let fits = adoption.refused.is_empty().then(|| ok(NAME, how.to_owned()));
    let refused = adoption.refused.iter().map(|why| fail(NAME, format!("refused: {why}")));
    let warnings = adoption.warnings.iter().map(|why| warn(NAME, why.clone()));
    let changes = adoption.changes.iter().map(|what| ok(NAME, format!("would change: {what}")));
    fits.into_iter().chain(refused).chain(warnings).chain(changes).collect()
}
