//! Gives PostgreSQL the settings of all hosts, sees how it took them, and answers for them.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use tokio::{
    sync::{Mutex, oneshot, watch},
    time::Instant,
};

use super::{
    hands::{blocking, said},
    prober::Plan,
};
use crate::{
    domain::{ConfigurationView, StraySetting},
    postgres::{Described, Instance, Session, Staged, StagedOf},
    rpc::{configuration, v1},
};

/// Between two looks.
const EVERY: Duration = Duration::from_secs(2);
/// Between two tries to have PostgreSQL look at its files: whoever waits for the data directory waits for that.
const AGAIN: Duration = Duration::from_secs(10);
/// To be let in by a server that does well …
const CONNECT: Duration = Duration::from_millis(500);
/// … and for all that it is asked.
const PATIENCE: Duration = Duration::from_secs(3);

/// Writes what was committed over the configuration of the server that runs, whoever reloads it next. What PostgreSQL can't
/// take is left out, and told. One that does not come to its end is begun again by [`watch`].
pub(super) async fn apply(instance: &Instance) -> bool {
    // Whoever is to work in the data directory waits for this.
    let done = tokio::time::timeout(PATIENCE, try_to_apply(instance)).await;
    match done.unwrap_or_else(|_| Err("PostgreSQL does not answer".to_owned())) {
        Ok(other) => other,
        Err(error) => {
            tracing::warn!(error, "failed to give PostgreSQL the settings of the cluster; it is tried again");
            false
        }
    }
}

/// True when files were looked at that were not before.
async fn try_to_apply(instance: &Instance) -> Result<bool, String> {
    let at_work = instance.clone();
    if blocking(move || at_work.is_configured_as_wanted()).await? {
        return Ok(false);
    }
    // Without a server they are looked at by its programs alone.
    let session = instance.connect_within(CONNECT).await.ok();
    let values = instance.given_by_settings(instance.side());
    if !values.is_empty() {
        let judged = instance.judge(&values, session.as_ref()).await.map_err(said)?;
        for (name, why) in &judged.problems {
            tracing::error!(setting = %name, error = %why, "a setting of the cluster is not possible here, and left out");
        }
        reject(instance, judged.problems).await?;
    }
    let (mut of, mut staged) = stage(instance).await?;
    let Some(session) = session else { return Ok(false) };
    let bad = instance.configuration_errors(&session).await.map_err(said)?;
    if bad.is_empty() {
        instance.looked_at(&of);
        if staged.is_some() {
            tracing::info!("PostgreSQL is given other settings");
        }
        return Ok(true);
    }
    tracing::error!(errors = ?bad, "PostgreSQL can't read its configuration");
    if reject(instance, bad).await? {
        // Without what it can't take; and as it was, if that is not all.
        let (less, later) = stage(instance).await?;
        of = less;
        staged = match staged {
            Some(first) => Some(first.then(later)),
            None => later,
        };
        if !instance.configuration_errors(&session).await.map_err(said)?.is_empty()
            && let Some(staged) = staged
        {
            let at_work = instance.clone();
            blocking(move || at_work.unstage(staged)).await?.map_err(said)?;
        }
    }
    instance.looked_at(&of);
    Ok(true)
}

async fn reject(instance: &Instance, bad: BTreeMap<String, String>) -> Result<bool, String> {
    let at_work = instance.clone();
    blocking(move || at_work.reject(bad)).await
}

async fn stage(instance: &Instance) -> Result<(StagedOf, Option<Staged>), String> {
    let at_work = instance.clone();
    blocking(move || at_work.stage_configuration()).await?.map_err(said)
}

/// The files may be such that nobody has looked at: an earlier look was cut off, or a change of role has written them.
async fn look_again(instance: &Instance, data_dir: &Mutex<()>, session: &Session) -> Result<(), String> {
    let at_work = instance.clone();
    // Whoever is at work in the directory may be writing them.
    let Ok(_works) = data_dir.try_lock() else { return Ok(()) };
    // What somebody has edited since is not undone for that.
    if blocking(move || at_work.was_looked_at()).await? {
        return Ok(());
    }
    if !apply(instance).await {
        return Err("it was cut off".to_owned());
    }
    session.reload().await.map_err(said)
}

/// Looks how PostgreSQL's configuration stands, until the sender of the plans is gone.
pub(super) async fn watch(instance: Instance, data_dir: Arc<Mutex<()>>, mut plans: watch::Receiver<Option<Plan>>) {
    let (mut session, mut life, mut strays) = (None, 0, Vec::new());
    let mut again = Instant::now();
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
        if let Some(open) = session.as_ref().filter(|_| Instant::now() >= again)
            && let Err(why) = look_again(&instance, &data_dir, open).await
        {
            tracing::debug!(why, "PostgreSQL could not be asked about its configuration");
            again = Instant::now() + AGAIN;
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
    let at_work = instance.clone();
    blocking(move || at_work.has_begun()).await?;
    let pending = instance.pending(open).await.map_err(said)?;
    let (pending, counts) = instance.counts(open, pending).await.map_err(said)?;
    let at_work = instance.clone();
    let found = blocking(move || at_work.strays()).await?;
    // Whoever is about to write a file has not written it yet: what is strange twice in a row is.
    let strays = found.iter().filter(|stray| before.contains(stray)).cloned().collect();
    *before = found;
    let version = instance.version_in_force();
    instance.see_configuration(Some(ConfigurationView {
        version,
        pending,
        strays,
        counts,
        ..ConfigurationView::default()
    }));
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
    let (mut check, mut not_asked) = (request.check, Vec::new());
    check.retain(|name, value| {
        let refused = crate::domain::parameters::refused(name, Some(value));
        not_asked.extend(refused.as_ref().map(|why| format!("{name}: {why}")));
        refused.is_none()
    });
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
        problems: not_asked
            .into_iter()
            .chain(judged.problems.iter().map(|(name, why)| format!("{name}: {why}")))
            .collect(),
        warnings: judged.warnings,
        live: session.is_some(),
        parameters: described.into_iter().map(parameter).collect(),
        version: instance.version_in_force(),
        strays: view.strays.iter().map(configuration::stray).collect(),
    })
}
