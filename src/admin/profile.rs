//! The timings in force, shown and changed.

use tonic::Status;

use crate::{
    domain::TimingsId,
    manager::ManagerHandle,
    policy::timings::Asked,
    rpc::{briefing, v1},
};

/// Shows the timings; puts those of the profile in force first, when the request names one.
pub(super) async fn of(manager: &ManagerHandle, asked: v1::ProfileRequest) -> Result<v1::ProfileReply, Status> {
    let refused = match asked.profile.as_str() {
        "" if asked.overrides.is_empty() => None,
        "" => return Err(Status::invalid_argument("overrides are of a profile: name one")),
        name => {
            let profile = briefing::profile(name).map_err(|e| Status::invalid_argument(e.problem))?;
            let id = if asked.request_id.is_empty() { uuid::Uuid::now_v7().to_string() } else { asked.request_id };
            let (overrides, reset) = (&asked.overrides, asked.reset);
            let instead_of = asked.if_version.map(TimingsId);
            manager.set_timings(Asked { profile, overrides, reset, instead_of }, id).await.err()
        }
    };
    let cluster = &manager.config().cluster;
    Ok(v1::ProfileReply {
        accepted: refused.is_none(),
        reason: refused.unwrap_or_default(),
        in_use: Some(briefing::timings_in_use(&manager.state().timings)),
        file_profile: cluster.profile.to_string(),
        file_values: briefing::values(&cluster.timings),
        answered_by: manager.me().to_string(),
    })
}
