//! Gives PostgreSQL the settings of all hosts, sees how it took them, and answers for them.

use std::time::Duration;

use tokio::{
    sync::{oneshot, watch},
    time::Instant,
};

use super::{
    hands::{blocking, said},
    prober::Plan,
};
use crate::{
    domain::{ConfigurationView, StraySetting},
    postgres::{Described, Instance, Session, Staged},
    rpc::{configuration, v1},
};

/// Between two looks.
const EVERY: Duration = Duration::from_secs(2);
/// To be let in by a server that does well …
const CONNECT: Duration = Duration::from_millis(500);
/// … and for all that it is asked.
const PATIENCE: Duration = Duration::from_secs(3);

/// Writes what was committed over the configuration of the server that runs, whoever reloads it next. What PostgreSQL can't
/// take is left out, and told.
pub(super) async fn apply(instance: &Instance) {
    // Whoever is to work in the data directory waits for this.
    let done = tokio::time::timeout(PATIENCE, try_to_apply(instance)).await;
    if let Err(error) = done.unwrap_or_else(|_| Err("PostgreSQL does not answer".to_owned())) {
        tracing::warn!(
            error,
            "failed to give PostgreSQL the settings of the cluster; it gets them with its next start or change of role"
        );
    }
}

async fn try_to_apply(instance: &Instance) -> Result<(), String> {
    let at_work = instance.clone();
    if blocking(move || at_work.is_configured_as_wanted()).await? {
        return Ok(());
    }
    // Without a server they are looked at by its programs alone.
    let session = instance.connect_within(CONNECT).await.ok();
    let values = instance.given_by_settings(instance.side());
    if !values.is_empty() {
        let judged = instance.judge(&values, session.as_ref()).await.map_err(said)?;
        for (name, why) in &judged.problems {
            tracing::error!(setting = %name, error = %why, "a setting of the cluster is not possible here, and left out");
        }
        instance.reject(judged.problems);
    }
    let Some(staged) = stage(instance).await? else { return Ok(()) };
    let Some(session) = session else { return Ok(()) };
    let bad = instance.configuration_errors(&session).await.map_err(said)?;
    if bad.is_empty() {
        tracing::info!("PostgreSQL is given other settings");
        return Ok(());
    }
    tracing::error!(errors = ?bad, "PostgreSQL can't read its configuration");
    if !instance.reject(bad) {
        return Ok(());
    }
    // Without what it can't take; and as it was, if that is not all.
    stage(instance).await?;
    if !instance.configuration_errors(&session).await.map_err(said)?.is_empty() {
        let at_work = instance.clone();
        blocking(move || at_work.unstage(staged)).await?.map_err(said)?;
    }
    Ok(())
}

async fn stage(instance: &Instance) -> Result<Option<Staged>, String> {
    let at_work = instance.clone();
    blocking(move || at_work.stage_configuration()).await?.map_err(said)
}

/// Looks how PostgreSQL's configuration stands, until the sender of the plans is gone.
pub(super) async fn watch(instance: Instance, mut plans: watch::Receiver<Option<Plan>>) {
    let (mut session, mut life, mut strays) = (None, 0, Vec::new());
    loop {
        let plan = *plans.borrow_and_update();
        let Some(plan) = plan else {
            session = None;
            instance.see_configuration(None);
            if plans.changed().await.is_err() {
                return;
            }
            continue;
        };
        if std::mem::replace(&mut life, plan.life) != plan.life {
            session = None;
            instance.see_configuration(None);
        }
        if let Err(why) = look(&instance, &mut session, plan.deadline, &mut strays).await {
            tracing::debug!(why, "PostgreSQL could not be asked how its configuration stands");
            session = None;
        }
        let next = Instant::now() + EVERY;
        while let Ok(changed) = tokio::time::timeout_at(next, plans.changed()).await {
            if changed.is_err() {
                return;
            }
            if plans.borrow().is_none_or(|plan| plan.life != life) {
                break;
            }
        }
    }
}

async fn look(
    instance: &Instance,
    session: &mut Option<Session>,
    deadline: Duration,
    before: &mut Vec<StraySetting>,
) -> Result<(), String> {
    if session.as_ref().is_none_or(Session::is_closed) {
        *session = Some(instance.connect_within(deadline).await.map_err(said)?);
    }
    let open = session.as_ref().ok_or("no connection")?;
    let pending = instance.pending(open).await.map_err(said)?;
    let (pending, counts) = instance.counts(open, pending).await.map_err(said)?;
    let at_work = instance.clone();
    let found = blocking(move || at_work.strays()).await?;
    // Whoever is about to write a file has not written it yet: what is strange twice in a row is.
    let strays = found.iter().filter(|stray| before.contains(stray)).cloned().collect();
    *before = found;
    let (version, problem) = (instance.document().version, instance.rejections());
    instance.see_configuration(Some(ConfigurationView { version, pending, strays, problem, counts }));
    Ok(())
}

/// Judges, and tells of settings.
pub(super) async fn answer(
    instance: Instance,
    request: v1::ParametersRequest,
    reply: oneshot::Sender<Result<v1::ParametersReply, String>>,
) {
    // Whoever asked may be gone.
    let _ = reply.send(tell(&instance, request).await);
}

async fn tell(instance: &Instance, request: v1::ParametersRequest) -> Result<v1::ParametersReply, String> {
    let session = instance.connect().await.ok();
    // What nobody may set is not given to a program either: one of them names a file to read.
    let mut check = request.check;
    check.retain(|name, value| crate::domain::parameters::refused(name, Some(value)).is_none());
    let judged = instance.judge(&check, session.as_ref()).await.map_err(said)?;
    let asks = request.describe_all || !request.describe.is_empty();
    let described = match session.as_ref().filter(|_| asks) {
        Some(session) => session.describe(&request.describe).await.map_err(said)?,
        None => Vec::new(),
    };
    let view = instance.configuration().unwrap_or_default();
    let given = instance.given(instance.side());
    let parameter = |is: Described| {
        let wanted = given.get(&is.name.to_ascii_lowercase());
        let pending = view.pending.iter().find(|pending| pending.name == is.name);
        v1::Parameter {
            wanted: wanted.map(|given| given.value.clone()).unwrap_or_default(),
            origin: wanted.map(|given| given.origin.to_string()).unwrap_or_default(),
            pending: pending.map(|pending| pending.configured.clone()).unwrap_or_default(),
            name: is.name,
            value: is.value,
            default: is.default,
            kind: is.kind,
            range: is.range,
            context: is.context,
            source: is.source,
            file: is.file,
            help: is.help,
        }
    };
    Ok(v1::ParametersReply {
        problems: judged.problems.iter().map(|(name, why)| format!("{name}: {why}")).collect(),
        warnings: judged.warnings,
        live: session.is_some(),
        parameters: described.into_iter().map(parameter).collect(),
        version: instance.document().version,
        strays: view.strays.iter().map(configuration::stray).collect(),
    })
}
