//! `matriarch dsn`: what an application is given to connect with. Made of the configuration file alone; no manager is
//! asked, for the strings name every member and so outlive each change of primary.

mod driver;
mod escape;

use std::fmt::Write as _;

use serde::Serialize;

pub(super) use driver::{Access, Driver};

use self::driver::{CONNECT_S, Endpoint, Target, Through};
use super::{
    args::{DsnArgs, DsnDrivers},
    complain, config_file,
    exit::{self, Exit},
    print, render,
};
use crate::config::{Config, MemberConfig, Purpose};

/// Where passwords come from, for they are in none of the strings.
const PASSWORDS: &str = "\
No password is in any of these. Drivers take it from PGPASSWORD or from the password file (~/.pgpass; * as host stands
for all members). pgjdbc has the file and its property, tokio-postgres neither.
";

pub(super) fn run(args: &DsnArgs) -> Exit {
    let file = config_file(args.config.clone());
    let config = match Config::load_for(&file, Purpose::Client) {
        Ok(config) => config,
        Err(error) => return complain(&error.to_string(), exit::USAGE),
    };
    let target = match target(args, &config) {
        Ok(target) => target,
        Err(problem) => return complain(&problem, exit::USAGE),
    };
    let text = match args.driver {
        _ if args.json => json(args, &config.cluster.name, &target),
        DsnDrivers::All => text(&config.cluster.name, &target),
        DsnDrivers::One(driver) => match driver.string(&target) {
            Ok(string) => format!("{string}\n"),
            Err(reason) => return complain(&format!("--driver {}: {reason}", driver.name()), exit::USAGE),
        },
    };
    print(&text);
    exit::OK
}

fn target(args: &DsnArgs, config: &Config) -> Result<Target, String> {
    let given = |name: &str, value: &str| match value {
        "" => Err(format!("--{name}: empty; leave it out for the default")),
        value => Ok(value.to_owned()),
    };
    let (through, endpoints, open_s) = if args.routers.is_empty() {
        (Through::Members, members(config)?, CONNECT_S)
    } else {
        // What the router answers after its own bound is a reason; who left before got none.
        let hold = config.cluster.timings.router_hold.as_millis().div_ceil(1_000) as u64;
        (Through::Router, routers(&args.routers)?, hold + CONNECT_S)
    };
    let user = args.user.as_deref().map(|user| given("user", user)).transpose()?;
    Ok(Target { through, endpoints, access: args.access, database: given("database", &args.database)?, user, open_s })
}

fn members(config: &Config) -> Result<Vec<Endpoint>, String> {
    let one = |member: &MemberConfig| {
        Endpoint::new(&member.host, member.postgres_port)
            .ok_or_else(|| format!("{}: clients can't connect to {}", member.id, member.postgres()))
    };
    config.cluster.members.iter().filter(|member| !member.witness).map(one).collect()
}

fn routers(given: &[String]) -> Result<Vec<Endpoint>, String> {
    given.iter().map(|router| router.parse().map_err(|problem| format!("--router {router}: {problem}"))).collect()
}

fn text(cluster: &str, target: &Target) -> String {
    let endpoints: Vec<String> = target.endpoints.iter().map(Endpoint::to_string).collect();
    let by = match target.through {
        Through::Members => "the driver finds the member among",
        Through::Router => "through",
    };
    let mut out = format!("cluster {cluster}, {}: {by} {}\n", target.access, endpoints.join(", "));
    for driver in Driver::ALL {
        let string = driver.string(target).unwrap_or_else(|reason| format!("none: {reason}"));
        // Writing to a String can't fail.
        let _ = writeln!(out, "\n{}: {}\n  {string}", driver.name(), driver.title());
        for note in driver.notes(target) {
            let _ = writeln!(out, "  # {note}");
        }
    }
    let _ = write!(out, "\n{PASSWORDS}");
    out
}

fn json(args: &DsnArgs, cluster: &str, target: &Target) -> String {
    #[derive(Serialize)]
    struct One {
        driver: &'static str,
        string: Option<String>,
        /// Why there is no string.
        reason: Option<&'static str>,
        notes: Vec<String>,
    }
    #[derive(Serialize)]
    struct Json<'a> {
        cluster: &'a str,
        r#for: String,
        through: &'static str,
        hosts: Vec<String>,
        database: &'a str,
        user: Option<&'a str>,
        strings: Vec<One>,
    }
    let one = |driver: Driver| {
        let (string, reason) = match driver.string(target) {
            Ok(string) => (Some(string), None),
            Err(reason) => (None, Some(reason)),
        };
        One { driver: driver.name(), string, reason, notes: driver.notes(target) }
    };
    let drivers = match args.driver {
        DsnDrivers::All => Driver::ALL.to_vec(),
        DsnDrivers::One(driver) => vec![driver],
    };
    render::json(&Json {
        cluster,
        r#for: target.access.to_string(),
        through: if target.through == Through::Members { "members" } else { "router" },
        hosts: target.endpoints.iter().map(Endpoint::to_string).collect(),
        database: &target.database,
        user: target.user.as_deref(),
        strings: drivers.into_iter().map(one).collect(),
    })
}
