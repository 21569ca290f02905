//! `matriarch rto`: how long writes stop for each way to fail, computed from the
//! timings in force, of a file, or of a profile.

use std::{collections::BTreeMap, fmt::Write as _, time::Duration};

use serde::Serialize;

use super::{
    args::RtoArgs,
    client::{Client, target},
    complain, complain_client, config_file,
    exit::{self, Exit},
    print,
    profile::overrides,
    render::{self, Cell, Column, Style, Tone},
    style,
};
use crate::{
    config::{Config, Purpose},
    domain::{
        Profile, Settings, Timings,
        rto::{
            Effect, Figure, Latencies, Network, Phase, Spread, figures,
            patroni::{Class, Parameters},
        },
    },
    rpc::{
        Malformed, briefing,
        v1::{ProfileReply, ProfileRequest, SettingsReply},
    },
};

/// What is computed from, and where it comes from.
struct Basis {
    profile: Profile,
    timings: Timings,
    settings: Settings,
    source: String,
    /// What keeps the figures from being the whole truth at this moment; may be empty.
    warning: &'static str,
}

pub(super) async fn run(args: RtoArgs) -> Exit {
    let basis = match basis(&args).await {
        Ok(basis) => basis,
        Err(exit) => return exit,
    };
    let rows = figures(basis.profile, &basis.timings, &basis.settings, &Latencies::QUIET_MACHINE);
    print(&match (args.json, args.phases) {
        (true, _) => json(&basis, &rows),
        (false, false) => text(&basis, &rows, style()),
        (false, true) => format!("{}{}", text(&basis, &rows, style()), phases(&rows, style())),
    });
    exit::OK
}

async fn basis(args: &RtoArgs) -> Result<Basis, Exit> {
    if let Some(name) = &args.profile {
        return of_profile(name, &args.set).map_err(|problem| complain(&problem, exit::USAGE));
    }
    if args.offline {
        let file = config_file(args.client.config.clone());
        let config = Config::load_for(&file, Purpose::Client).map_err(|e| complain(&e.to_string(), exit::USAGE))?;
        let (profile, timings) = (config.cluster.profile, config.cluster.timings);
        let source = format!("of {}", file.display());
        return Ok(Basis { profile, timings, settings: Settings::default(), source, warning: "" });
    }
    let client = Client::new(&args.client).map_err(|error| complain_client(&error))?;
    let request = ProfileRequest { to: Some(target("", 0)), ..ProfileRequest::default() };
    let reply = client.profile(request).await.map_err(|error| complain_client(&error))?;
    let settings = client.settings().await.map_err(|error| complain_client(&error))?;
    in_force(reply, &settings).map_err(|problem| complain(&problem, exit::FAILED))
}

fn of_profile(name: &str, set: &[String]) -> Result<Basis, String> {
    let profile: Profile = name.parse()?;
    let mut timings = Timings::of(profile);
    for (key, value) in overrides(set)? {
        timings.set(&key, value).map_err(|e| format!("--set {key}={value}: {e}"))?;
    }
    timings.check().map_err(|e| format!("--set: {e}"))?;
    let source = if set.is_empty() { "unchanged".to_owned() } else { format!("with {}", set.join(", ")) };
    Ok(Basis { profile, timings, settings: Settings::default(), source, warning: "" })
}

/// The committed timings, with Raft's own from the file: it keeps what it starts with.
fn in_force(reply: ProfileReply, settings: &SettingsReply) -> Result<Basis, String> {
    let of = |e: Malformed| format!("the timings of {} can't be read: {e}", reply.answered_by);
    let file_profile = briefing::profile(&reply.file_profile).map_err(of)?;
    let file = briefing::timings(file_profile, &reply.file_values).map_err(of)?;
    let in_use = briefing::timings_in_use_of(reply.in_use.clone()).map_err(of)?;
    let unsettled = "older timings are still in use: the lease takes as long as the longest of them";
    let warning = if in_use.is_settled() { "" } else { unsettled };
    let settings = settings_of(settings);
    Ok(match in_use.in_force() {
        Some(last) => Basis {
            profile: last.profile,
            settings,
            timings: last.timings.with_raft_of(&file),
            source: format!("committed as timings {}", last.id),
            warning,
        },
        None => {
            let source = format!("from the files of the hosts (that of {})", reply.answered_by);
            Basis { profile: file_profile, timings: file, settings, source, warning }
        }
    })
}

/// Those that this version knows; of another it takes no notice, for no figure rests on it.
fn settings_of(reply: &SettingsReply) -> Settings {
    let mut settings = Settings::default();
    for one in &reply.settings {
        let _ = settings.set(&one.key, &one.value);
    }
    settings
}

// ---- for people ----------------------------------------------------------------------------------------------

fn seconds(time: Duration) -> String {
    format!("{:.2}", time.as_secs_f64())
}

fn text(basis: &Basis, rows: &[Figure], style: Style) -> String {
    let Basis { profile, source, warning, settings, .. } = basis;
    let Network { name, round_trip } = Network::of(*profile);
    let ms = |d: Duration| d.as_secs_f64() * 1_000.0;
    let mut out = format!("profile {profile}, {source}\n");
    if !warning.is_empty() {
        let _ = writeln!(out, "{} {warning}", style.paint(Tone::Warn, "Warning:"));
    }
    let _ = write!(
        out,
        "network: {name}, round trip {} / {} / {} ms\n\
         seconds from the fault to the first acknowledged write through a router; --phases says how each comes about\n\
         machine: a quiet one, what it takes is in docs/rto.md\n\
         settings: on_primary_crash {}, crash_budget {} within {} s\n\
         Patroni: by Pigsty's formulas with its parameters `{}`, not measured\n\n",
        ms(round_trip.best),
        ms(round_trip.average),
        ms(round_trip.worst),
        settings.on_primary_crash,
        settings.crash_budget,
        settings.crash_window.as_secs_f64(),
        Parameters::of(*profile).name,
    );
    out.push_str(&table(rows, style));
    out.push_str("\nPigsty's classes:");
    for class in Class::ALL {
        let _ =
            write!(out, "{} {} {class}", if class.number() == 6 { "\n                 " } else { "" }, class.number());
        out.push_str(if class.number() == 10 { "\n" } else { "," });
    }
    out
}

fn table(rows: &[Figure], style: Style) -> String {
    let columns: &[Column] = &[
        ("FAULT", false),
        ("DOMAIN", false),
        ("BEST", true),
        ("AVERAGE", true),
        ("WORST", true),
        ("PATRONI", true),
        ("AVERAGE", true),
        ("WORST", true),
        ("CLASS", false),
    ];
    let cells: Vec<Vec<Cell>> = rows.iter().map(row).collect();
    render::table(columns, &cells, style)
}

fn row(figure: &Figure) -> Vec<Cell> {
    let mut cells = vec![Cell::new(figure.name), Cell::new(figure.domain.to_string())];
    cells.extend(match (&figure.effect, figure.total()) {
        (_, Some(total)) => [total.best, total.average, total.worst].map(|d| Cell::new(seconds(d))),
        (Effect::NotNoticed, None) => ["", "", "not noticed"].map(|t| Cell::toned(t, Tone::Bad)),
        (Effect::UntilRepaired, None) => ["", "", "until back"].map(|t| Cell::toned(t, Tone::Warn)),
        (Effect::Endless, None) => ["", "", "no end"].map(|t| Cell::toned(t, Tone::Bad)),
        (Effect::RuledOut, None) => ["", "", "ruled out"].map(Cell::new),
        (Effect::Harmless | Effect::Outage(_), None) => ["", "", "none"].map(|t| Cell::toned(t, Tone::Good)),
    });
    cells.extend(match figure.patroni {
        Some(p) => [p.best, p.average, p.worst].map(|d| Cell::new(format!("{:.1}", d.as_secs_f64()))),
        None if !figure.patroni_sees => ["", "", "unseen"].map(Cell::new),
        None => ["", "", ""].map(Cell::new),
    });
    let classes: Vec<String> = figure.classes.iter().map(|class| class.number().to_string()).collect();
    cells.push(Cell::new(classes.join(" ")));
    cells
}

/// One block for each path.
fn phases(rows: &[Figure], style: Style) -> String {
    let mut out = String::new();
    for figure in rows {
        let _ = write!(out, "\n{}: {}\n", figure.path, figure.name);
        if !figure.note.is_empty() {
            let _ = writeln!(out, "  {}", wrapped(figure.note));
        }
        let Effect::Outage(phases) = &figure.effect else { continue };
        let _ =
            writeln!(out, "  {}\n  {}", wrapped(&figure.scope.to_string()), wrapped(&figure.statistics.to_string()));
        let columns: &[Column] =
            &[("  PHASE", false), ("BEST", true), ("AVERAGE", true), ("WORST", true), ("WHAT", false)];
        let cells: Vec<Vec<Cell>> = phases
            .iter()
            .map(|p| {
                let Spread { best, average, worst } = p.spread;
                let times = [best, average, worst].map(|d| Cell::new(seconds(d)));
                let mut cells = vec![Cell::new(format!("  {}", p.name))];
                cells.extend(times);
                cells.push(Cell::new(p.formula));
                cells
            })
            .collect();
        out.push_str(&render::table(columns, &cells, style));
    }
    out
}

/// At most 118 characters a line, the later ones set in like the first.
fn wrapped(text: &str) -> String {
    let mut lines = vec![String::new()];
    for word in text.split(' ') {
        if let Some(line) = lines.last_mut().filter(|l| l.is_empty() || l.len() + 1 + word.len() <= 116) {
            line.push_str(if line.is_empty() { "" } else { " " });
            line.push_str(word);
        } else {
            lines.push(word.to_owned());
        }
    }
    lines.join("\n  ")
}

// ---- for programs --------------------------------------------------------------------------------------------

#[derive(Serialize)]
struct JsonSpread {
    best_ms: f64,
    average_ms: f64,
    worst_ms: f64,
}

impl From<Spread> for JsonSpread {
    fn from(spread: Spread) -> JsonSpread {
        // Whole microseconds: figures are no finer.
        let ms = |d: Duration| (d.as_secs_f64() * 1_000_000.0).round() / 1_000.0;
        JsonSpread { best_ms: ms(spread.best), average_ms: ms(spread.average), worst_ms: ms(spread.worst) }
    }
}

#[derive(Serialize)]
struct JsonPhase {
    phase: &'static str,
    #[serde(flatten)]
    times: JsonSpread,
    formula: &'static str,
}

/// What is assumed of the machine.
#[derive(Serialize)]
struct JsonPart {
    part: &'static str,
    #[serde(flatten)]
    times: JsonSpread,
    source: &'static str,
}

#[derive(Serialize)]
struct JsonPatroni {
    detection: String,
    /// It does not: its figures would be of something else.
    notices: bool,
    times: Option<JsonSpread>,
}

#[derive(Serialize)]
struct JsonPath {
    path: &'static str,
    name: &'static str,
    domain: String,
    scope: String,
    statistics: String,
    network: &'static str,
    effect: &'static str,
    times: Option<JsonSpread>,
    phases: Vec<JsonPhase>,
    classes: Vec<u8>,
    patroni: Option<JsonPatroni>,
    note: &'static str,
}

#[derive(Serialize)]
struct JsonClass {
    class: u8,
    name: String,
    detection: String,
    paths: Vec<&'static str>,
}

fn json_path(figure: &Figure) -> JsonPath {
    let phases: &[_] = if let Effect::Outage(phases) = &figure.effect { phases } else { &[] };
    let phase = |p: &Phase| JsonPhase { phase: p.name, times: p.spread.into(), formula: p.formula };
    JsonPath {
        path: figure.path,
        name: figure.name,
        domain: figure.domain.to_string(),
        scope: figure.scope.to_string(),
        statistics: figure.statistics.to_string(),
        network: figure.network.name,
        effect: match figure.effect {
            Effect::Outage(_) => "outage",
            Effect::NotNoticed => "not-noticed",
            Effect::Harmless => "none",
            Effect::UntilRepaired => "until-repaired",
            Effect::Endless => "endless",
            Effect::RuledOut => "ruled-out",
        },
        times: figure.total().map(JsonSpread::from),
        phases: phases.iter().map(phase).collect(),
        classes: figure.classes.iter().map(|c| c.number()).collect(),
        patroni: figure.detection.map(|detection| JsonPatroni {
            detection: detection.to_string(),
            notices: figure.patroni_sees,
            times: figure.patroni.map(JsonSpread::from),
        }),
        note: figure.note,
    }
}

fn json_class(class: Class, rows: &[Figure]) -> JsonClass {
    let paths = rows.iter().filter(|f| f.classes.contains(&class)).map(|f| f.path);
    JsonClass {
        class: class.number(),
        name: class.to_string(),
        detection: class.detection().to_string(),
        paths: paths.collect(),
    }
}

fn json(basis: &Basis, rows: &[Figure]) -> String {
    #[derive(Serialize)]
    struct Json<'a> {
        profile: String,
        source: &'a str,
        warning: &'a str,
        network: &'static str,
        round_trip: JsonSpread,
        settings: BTreeMap<&'static str, String>,
        machine: Vec<JsonPart>,
        pigsty_parameters: &'static str,
        paths: Vec<JsonPath>,
        classes: Vec<JsonClass>,
    }
    let network = Network::of(basis.profile);
    let parts = Latencies::QUIET_MACHINE.parts().into_iter();
    render::json(&Json {
        profile: basis.profile.to_string(),
        source: &basis.source,
        warning: basis.warning,
        network: network.name,
        round_trip: network.round_trip.into(),
        settings: basis.settings.values(),
        machine: parts.map(|(part, spread, source)| JsonPart { part, times: spread.into(), source }).collect(),
        pigsty_parameters: Parameters::of(basis.profile).name,
        paths: rows.iter().map(json_path).collect(),
        classes: Class::ALL.into_iter().map(|class| json_class(class, rows)).collect(),
    })
}

#[cfg(test)]
#[path = "rto_test.rs"]
mod tests;
