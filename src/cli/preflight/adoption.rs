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
    let how = if adoption.goes_on { "it is taken over while it runs" } else { "it is taken over as it lies" };
    let fits = adoption.refused.is_empty().then(|| ok(NAME, format!("{how} when the cluster is founded")));
    let refused = adoption.refused.iter().map(|why| fail(NAME, format!("refused: {why}")));
    let warnings = adoption.warnings.iter().map(|why| warn(NAME, why.clone()));
    let changes = adoption.changes.iter().map(|what| ok(NAME, format!("would change: {what}")));
    fits.into_iter().chain(refused).chain(warnings).chain(changes).collect()
}
