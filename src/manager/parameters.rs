//! PostgreSQL's word on settings, by the agent of this host.

use std::{collections::BTreeMap, time::Duration};

use super::{ManagerHandle, peers::timed};
use crate::{
    domain::{MemberId, PostgresKey, SettingChanges},
    policy::{self, Situation, settings::Refused},
    rpc::v1,
    state::Kind,
};

/// Programs are run for it, one for each value that is wrong.
const PATIENCE: Duration = Duration::from_secs(8);

impl ManagerHandle {
    /// What a request for other settings would change, by all that can be said without PostgreSQL; nothing is changed.
    ///
    /// # Errors
    /// Why it would be refused.
    pub fn would_set(&self, version: u64, changes: &SettingChanges, by: &str) -> Result<SettingChanges, Refused> {
        if !self.leadership().am_leader {
            // Only a leader hears what the hosts can apply.
            return Err(Refused::NotNow("no Raft leader answers: bring a majority of managers up".to_owned()));
        }
        let state = self.state();
        let admit = |s: &Situation<'_>| policy::settings::admit(s, version, changes, by);
        match self.manager.inner.board.situation(&state, &self.manager.timings(), admit)? {
            Some(Kind::SetSettings { changes, .. }) => Ok(changes),
            Some(_) | None => Ok(SettingChanges::new()),
        }
    }

    /// Has PostgreSQL of this host judge the parameters among these changes; gives what somebody should know.
    ///
    /// # Errors
    /// What is wrong with them, or that PostgreSQL can't be asked; with `force` only the former.
    pub async fn judge_settings(&self, changes: &SettingChanges, force: bool) -> Result<Vec<String>, Refused> {
        let mut warnings = Vec::new();
        for check in rounds(changes) {
            let request = v1::ParametersRequest { check, ..v1::ParametersRequest::default() };
            match self.postgres_settings(request).await {
                Ok(reply) if !reply.problems.is_empty() => return Err(Refused::Impossible(reply.problems.join("; "))),
                Ok(reply) => {
                    warnings.extend(reply.warnings);
                    if !reply.live {
                        let me = self.me();
                        warnings.push(format!(
                            "PostgreSQL of {me} doesn't answer: its programs alone have looked at the values"
                        ));
                    }
                }
                Err(why) if force => warnings.push(format!("nobody has looked at the values: {why}")),
                Err(why) => {
                    let advice = "try again, or `--force` to take them unseen; `matriarch raft transfer` lets another host be asked";
                    return Err(Refused::NotNow(format!("{}: PostgreSQL can't be asked: {why}; {advice}", self.me())));
                }
            }
        }
        warnings.dedup();
        Ok(warnings)
    }

    /// Asks the agent of this host; a witness, which has none, the manager of another.
    ///
    /// # Errors
    /// Why it gives no answer.
    pub async fn postgres_settings(&self, request: v1::ParametersRequest) -> Result<v1::ParametersReply, String> {
        if !self.manager.inner.link.is_there() {
            return self.ask_another(request).await;
        }
        let to = Some(self.manager.target(self.me()));
        let asked = self.manager.inner.link.parameters(v1::ParametersRequest { to, ..request }, PATIENCE);
        asked.await.map_err(|status| status.message().to_owned())
    }

    /// The primary's host first. None of them passes it on.
    async fn ask_another(&self, request: v1::ParametersRequest) -> Result<v1::ParametersReply, String> {
        let state = self.state();
        let primary = state.holder().map(|(_, holder)| holder);
        let mut hosts: Vec<&MemberId> = state.with_postgres().collect();
        hosts.sort_by_key(|member| Some(*member) != primary);
        let mut why = Vec::new();
        for member in hosts {
            let to = Some(self.manager.target(member));
            let asked = timed(v1::ParametersRequest { to, ..request.clone() }, PATIENCE);
            let answer = async { self.manager.inner.peers.admin(member)?.postgres_settings(asked).await };
            match tokio::time::timeout(PATIENCE, answer).await {
                Ok(Ok(reply)) => return Ok(reply.into_inner()),
                Ok(Err(status)) => why.push(format!("{member}: {}", status.message())),
                Err(_) => why.push(format!("{member}: no answer in time")),
            }
        }
        Err(format!("{} is a witness, and no other host answers: {}", self.me(), why.join("; ")))
    }
}

/// The values to judge. A name that is set for several is judged several times.
fn rounds(changes: &SettingChanges) -> Vec<BTreeMap<String, String>> {
    let mut rounds: Vec<BTreeMap<String, String>> = Vec::new();
    for (key, value) in policy::postgres_settings::to_judge(changes) {
        let PostgresKey::Parameter(_, name) = key else { continue };
        match rounds.iter_mut().find(|round| !round.contains_key(name)) {
            Some(round) => drop(round.insert(name.to_owned(), value.to_owned())),
            None => rounds.push([(name.to_owned(), value.to_owned())].into()),
        }
    }
    rounds
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_value_is_judged_also_when_one_name_has_several() {
        let changes = [
            ("crash_budget", Some("5")),
            ("hba", Some("local all all peer")),
            ("n1.parameters.work_mem", Some("2MB")),
            ("parameters.log_lock_waits", Some("on")),
            ("parameters.work_mem", Some("1MB")),
            ("primary.parameters.work_mem", None),
        ];
        let changes = changes.map(|(key, value)| (key.to_owned(), value.map(str::to_owned))).into();
        let words = |round: BTreeMap<String, String>| round.into_iter().map(|(name, value)| format!("{name}={value}"));
        let found: Vec<Vec<String>> = rounds(&changes).into_iter().map(|round| words(round).collect()).collect();
        assert_eq!(
            found,
            [vec!["log_lock_waits=on".to_owned(), "work_mem=2MB".to_owned()], vec!["work_mem=1MB".to_owned()]]
        );
    }
}
