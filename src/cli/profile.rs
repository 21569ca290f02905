//! `matriarch profile`: the timings in force beside those of every profile, and
//! the way to others.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    io::{self, IsTerminal as _},
};

use serde::Serialize;
use uuid::Uuid;

use super::{
    args::ProfileArgs,
    client::{Client, target},
    complain, complain_client,
    exit::{self, Exit},
    operations::confirmed,
    print, render,
};
use crate::{
    domain::{Profile, Timings},
    rpc::v1::{ProfileReply, ProfileRequest},
};

const PROFILES: [Profile; 4] = [Profile::Fast, Profile::Normal, Profile::Slow, Profile::Safe];

pub(super) async fn run(args: ProfileArgs) -> Exit {
    let overrides = match overrides(&args.set) {
        Ok(overrides) => overrides,
        Err(problem) => return complain(&problem, exit::USAGE),
    };
    if let Some(Err(problem)) = args.name.as_ref().map(|name| name.parse::<Profile>()) {
        return complain(&problem, exit::USAGE);
    }
    if args.name.is_some() && !args.yes && !io::stdin().is_terminal() {
        return complain("there is no terminal to ask for confirmation; use --yes", exit::USAGE);
    }
    let question = || {
        let name = args.name.as_deref().unwrap_or_default();
        format!("Put the timings of profile {name} in force? Nothing is restarted and no write fails by it.")
    };
    if args.name.is_some() && !args.yes && !confirmed(&question()) {
        return complain("not confirmed; nothing was changed", exit::FAILED);
    }
    let request = ProfileRequest {
        to: Some(target("", 0)),
        profile: args.name.clone().unwrap_or_default(),
        overrides,
        reset: args.reset,
        if_version: args.if_version,
        request_id: Uuid::now_v7().to_string(),
    };
    let answer = match Client::new(&args.client) {
        Ok(client) => client.profile(request).await,
        Err(error) => Err(error),
    };
    match answer {
        Ok(reply) if !reply.accepted => {
            let name = args.name.as_deref().unwrap_or_default();
            complain(&format!("profile {name} refused: {}", reply.reason), exit::FAILED)
        }
        Ok(reply) => {
            print(&if args.json { json(&reply) } else { text(&reply) });
            exit::OK
        }
        Err(error) => complain_client(&error),
    }
}

pub(super) fn overrides(set: &[String]) -> Result<BTreeMap<String, u64>, String> {
    let one = |word: &String| {
        let parts =
            word.split_once('=').and_then(|(key, value)| Some((key.trim().to_owned(), value.trim().parse().ok()?)));
        parts.ok_or_else(|| format!("--set {word}: write KEY=NUMBER, e.g. promote_ms=20000"))
    };
    set.iter().map(one).collect()
}

/// The profile in force, its number (0: of the files), and its values.
fn in_force(reply: &ProfileReply) -> (&str, u64, &BTreeMap<String, u64>) {
    match reply.in_use.as_ref().and_then(|t| t.committed.last()) {
        Some(last) => (&last.profile, last.id, &last.values),
        None => (&reply.file_profile, 0, &reply.file_values),
    }
}

fn is_settled(reply: &ProfileReply) -> bool {
    let (_, id, _) = in_force(reply);
    reply.in_use.as_ref().is_none_or(|t| t.oldest == id)
}

fn text(reply: &ProfileReply) -> String {
    let (profile, id, values) = in_force(reply);
    let mut out = match id {
        0 => format!("profile {profile}, from the files of the hosts (shown: that of {})\n", reply.answered_by),
        id => format!("profile {profile}, committed as timings {id}\n"),
    };
    if !is_settled(reply) {
        out.push_str("older timings are still in use: waiting times are as long as the longest of them\n");
    }
    if id > 0 && reply.file_values != *values {
        let _ = writeln!(
            out,
            "the file of {} says something else; it counts for Raft only, which keeps what it starts with, and until a process \
             has heard of the committed ones",
            reply.answered_by
        );
    }
    let columns: Vec<BTreeMap<&str, u64>> =
        PROFILES.iter().map(|profile| Timings::of(*profile).values().into_iter().collect()).collect();
    let _ = write!(out, "\n{:<18}{:>10}", "", "in force");
    for profile in PROFILES {
        let _ = write!(out, "{:>9}", profile.to_string());
    }
    out.push('\n');
    for (key, value) in values {
        let _ = write!(out, "{key:<18}{value:>10}");
        for column in &columns {
            let known = column.get(key.as_str()).map_or_else(|| "?".to_owned(), u64::to_string);
            let _ = write!(out, "{known:>9}");
        }
        out.push('\n');
    }
    out
}

fn json(reply: &ProfileReply) -> String {
    #[derive(Serialize)]
    struct Json<'a> {
        profile: &'a str,
        timings: u64,
        settled: bool,
        values: &'a BTreeMap<String, u64>,
        file_profile: &'a str,
        file_values: &'a BTreeMap<String, u64>,
        answered_by: &'a str,
    }
    let (profile, timings, values) = in_force(reply);
    render::json(&Json {
        profile,
        timings,
        settled: is_settled(reply),
        values,
        file_profile: &reply.file_profile,
        file_values: &reply.file_values,
        answered_by: &reply.answered_by,
    })
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;
    use crate::rpc::v1::{CommittedTimings, TimingsInUse};

    fn values(profile: Profile) -> BTreeMap<String, u64> {
        crate::rpc::briefing::values(&Timings::of(profile))
    }

    fn reply(oldest: u64, committed: &[(u64, Profile)]) -> ProfileReply {
        let committed = committed.iter().map(|(id, profile)| CommittedTimings {
            id: *id,
            profile: profile.to_string(),
            values: values(*profile),
        });
        ProfileReply {
            accepted: true,
            in_use: Some(TimingsInUse { oldest, committed: committed.collect() }),
            file_profile: "normal".into(),
            file_values: values(Profile::Normal),
            answered_by: "n1".into(),
            ..ProfileReply::default()
        }
    }

    #[test]
    fn the_timings_in_force_stand_beside_those_of_every_profile() {
        expect![[r#"
            profile fast, committed as timings 1
            older timings are still in use: waiting times are as long as the longest of them
            the file of n1 says something else; it counts for Raft only, which keeps what it starts with, and until a process has heard of the committed ones

                                in force     fast   normal     slow     safe
            collect_ms               100      100      150      500     1000
            drift_permille            10       10       20       20       20
            election_max_ms          600      600     1200     4000    10000
            election_min_ms          300      300      600     2000     5000
            grant_ms                1650     1650     3200    10400    25000
            heartbeat_ms             100      100      150      500     1000
            hold_ms                 1300     1300     2500     8000    20000
            kill_ms                  300      300      500     2000     4000
            primary_start_ms       30000    30000    60000   120000   300000
            probe_ms                3000     3000     5000    10000    20000
            promote_ms             15000    15000    30000    60000   120000
            renew_ms                 200      200      300     1000     2000
            replication_ms          5000     5000    10000    30000    60000
            report_ms               1000     1000     1000     2000     4000
            router_hold_ms         15000    15000    20000    40000    90000
            router_stale_ms        10000    10000    15000    30000    60000
            rpc_ms                   150      150      250      800     1500
            silent_ms               2500     2500     3500     8000    20000
            stop_ms                15000    15000    30000    60000   120000
            tcp_ms                  3000     3000     5000    15000    30000
        "#]]
        .assert_eq(&text(&reply(0, &[(1, Profile::Fast)])));
    }

    #[test]
    fn files_are_named_and_settled_timings_need_no_word() {
        let first = |r: &ProfileReply| text(r).split_once("\n\n").unwrap().0.to_owned();
        assert_eq!(first(&reply(0, &[])), "profile normal, from the files of the hosts (shown: that of n1)");
        assert_eq!(first(&reply(3, &[(3, Profile::Normal)])), "profile normal, committed as timings 3");
    }

    #[test]
    fn an_override_is_a_key_and_a_number() {
        assert_eq!(overrides(&["hold_ms=3000".into()]), Ok([("hold_ms".to_owned(), 3_000)].into()));
        for bad in ["hold_ms", "hold_ms=", "hold_ms=3s"] {
            assert!(overrides(&[bad.to_owned()]).is_err(), "{bad}");
        }
    }
}
