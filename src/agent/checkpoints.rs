//! Checkpoints that are asked for, and not those that PostgreSQL writes by itself.

use std::time::Duration;

use super::{
    hands::{Hands, chain},
    process::Wake,
};
use crate::postgres::Instance;

/// After a promotion: members are rewound and copied from this one only once it has a checkpoint on its timeline.
pub fn checkpoint_beside(hands: &Hands) {
    const DEADLINE: Duration = Duration::from_secs(3600);
    let (instance, wakes) = (hands.instance.clone(), hands.wakes.clone());
    tokio::spawn(async move {
        match checkpoint(&instance, DEADLINE).await {
            // Who is gone needs no look.
            Ok(()) => drop(wakes.send(Wake::Look)),
            Err(error) => tracing::warn!(error, "failed to write the checkpoint after the promotion"),
        }
    });
}

/// Writes a checkpoint.
///
/// # Errors
/// What PostgreSQL said.
pub async fn checkpoint(instance: &Instance, deadline: Duration) -> Result<(), String> {
    let session = instance.connect().await.map_err(|e| chain(&e))?;
    session.checkpoint(deadline).await.map_err(|e| chain(&e))
}
