//! An operator wants PostgreSQL's configuration to be written anew and read, as happens by itself when a setting changes.

use std::time::Duration;

use tokio::sync::oneshot;

use super::{
    hands::{Hands, blocking, said},
    parameters,
};
use crate::{postgres::Instance, rpc::v1};

/// How long work in the data directory is waited for.
const AT_WORK: Duration = Duration::from_secs(1);

/// What goes back to who asked.
pub type Reply = oneshot::Sender<Result<v1::Reloaded, String>>;

/// Does it beside everything else, and answers.
pub fn reload_beside(hands: &Hands, member: String, reply: Reply) {
    let (instance, data_dir) = (hands.instance.clone(), hands.data_dir.clone());
    tokio::spawn(async move {
        // Whoever is at work in it may be writing the same files.
        let done = match tokio::time::timeout(AT_WORK, data_dir.lock()).await {
            Ok(_works) => reload(&instance).await,
            Err(_) => Err("the agent is at work in the data directory: try again when it is done".to_owned()),
        };
        match &done {
            Ok(pending) => {
                let pending = Vec::from_iter(pending.iter().map(|p| p.name.as_str())).join(", ");
                tracing::info!(pending, "the configuration was written and read anew, as an operator wanted");
            }
            Err(error) => tracing::warn!(error, "the configuration was not read anew"),
        }
        let (pending, reason) = match done {
            Ok(pending) => (pending, String::new()),
            Err(reason) => (Vec::new(), reason),
        };
        let _ = reply.send(Ok(v1::Reloaded { member, done: reason.is_empty(), reason, pending }));
    });
}

async fn reload(instance: &Instance) -> Result<Vec<v1::PendingRestart>, String> {
    let session = instance.connect().await.map_err(|error| format!("PostgreSQL lets nobody in: {}", said(error)))?;
    let at_work = instance.clone();
    // Whoever asks for this may have put right what was refused here. What can't be is left out again.
    blocking(move || at_work.try_settings_again()).await?;
    parameters::apply(instance).await;
    let at_work = instance.clone();
    let write = move || {
        at_work.refresh_timings().map_err(said)?;
        at_work.refresh_archive().map_err(said)
    };
    blocking(write).await??;
    let errors = session.configuration_errors().await.map_err(said)?;
    if !errors.is_empty() {
        return Err(format!("its configuration has errors and is not read, correct this first: {}", errors.join("; ")));
    }
    let pending = session.reload_and_look().await.map_err(said)?;
    let told = |p: crate::postgres::Pending| v1::PendingRestart {
        name: p.name,
        now: p.now,
        written: p.written.unwrap_or_default(),
    };
    Ok(pending.into_iter().map(told).collect())
}
