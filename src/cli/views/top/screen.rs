//! What `matriarch top` draws. Pure, but for the clock that WAL rates are counted by.

use std::{collections::BTreeMap, time::Instant};

use ratatui::{
    Frame,
    layout::{Constraint, Layout, Rect},
    style::{Color, Modifier, Style},
    text::{Line, Span},
    widgets::{Block, Cell, Paragraph, Row, Table},
};

use super::super::super::{history, render};
use crate::{
    domain::{Lsn, room::per_second},
    rpc::v1::{HistoryReply, MemberStatus, OperationStatus, StatusReply},
};

/// All that is on the screen.
pub(super) struct Screen {
    colours: bool,
    status: Option<StatusReply>,
    /// Why the last look failed; what was seen before stays.
    problem: Option<String>,
    history: Option<HistoryReply>,
    /// Where each member's WAL ended, and when that was seen.
    ends: BTreeMap<String, (Lsn, Instant)>,
    rates: BTreeMap<String, u64>,
    seen_at: Instant,
}

impl Screen {
    pub(super) fn new(colours: bool) -> Screen {
        Screen {
            colours,
            status: None,
            problem: None,
            history: None,
            ends: BTreeMap::new(),
            rates: BTreeMap::new(),
            seen_at: Instant::now(),
        }
    }

    pub(super) fn see(&mut self, status: Result<StatusReply, String>, history: Option<HistoryReply>) {
        self.see_at(status, history, Instant::now());
    }

    fn see_at(&mut self, status: Result<StatusReply, String>, history: Option<HistoryReply>, now: Instant) {
        match status {
            Ok(status) => {
                self.count(&status, now);
                (self.status, self.problem, self.seen_at) = (Some(status), None, now);
            }
            Err(problem) => self.problem = Some(problem),
        }
        self.history = history.or_else(|| self.history.take());
    }

    /// WAL that came since the last look, by the second.
    fn count(&mut self, status: &StatusReply, now: Instant) {
        self.rates.clear();
        for member in &status.members {
            let Ok(end) = member.lsn.parse::<Lsn>() else { continue };
            if let Some((before, then)) = self.ends.insert(member.member.clone(), (end, now)) {
                let millis = now.saturating_duration_since(then).as_millis().max(1);
                let bytes = u128::from(end.0.saturating_sub(before.0));
                self.rates.insert(member.member.clone(), u64::try_from(bytes * 1_000 / millis).unwrap_or(u64::MAX));
            }
        }
    }

    fn colour(&self, colour: Color) -> Style {
        if self.colours { Style::new().fg(colour) } else { Style::new() }
    }
}

/// Draws the screen, whatever its size.
pub(super) fn draw(frame: &mut Frame<'_>, screen: &Screen) {
    let members = screen.status.as_ref().map_or(1, |s| s.members.len());
    let table = u16::try_from(members + 3).unwrap_or(u16::MAX);
    let panes = [
        Constraint::Length(3),
        Constraint::Length(table),
        Constraint::Min(3),
        Constraint::Min(3),
        Constraint::Length(1),
    ];
    let [head, middle, held, events, keys] = Layout::vertical(panes).areas(frame.area());
    draw_head(frame, head, screen);
    draw_members(frame, middle, screen);
    draw_held(frame, held, screen);
    draw_events(frame, events, screen);
    frame.render_widget(Paragraph::new("q quit"), keys);
}

fn draw_head(frame: &mut Frame<'_>, area: Rect, screen: &Screen) {
    let Some(status) = &screen.status else {
        let why = screen.problem.as_deref().unwrap_or("nobody has answered yet");
        frame.render_widget(Paragraph::new(Line::styled(why.to_owned(), screen.colour(Color::Red))), area);
        return;
    };
    let (word, colour) = match (render::is_healthy(status), status.lock.as_str()) {
        (true, _) => ("healthy", Color::Green),
        (false, "open") => ("degraded", Color::Yellow),
        (false, _) => ("no open primary", Color::Red),
    };
    let bold = Style::new().add_modifier(Modifier::BOLD);
    let name = Line::from(vec![
        Span::styled(format!("{} ", status.cluster), bold),
        Span::styled(word, screen.colour(colour)),
        Span::raw(format!(
            "  primary {}  epoch {}  timeline {}  Raft leader {}  answered by {}",
            or_none(&status.primary),
            status.epoch,
            status.timeline,
            or_none(&status.leader),
            status.answered_by
        )),
    ]);
    let note = match (&screen.problem, status.banners.first()) {
        (Some(problem), _) => {
            let old = screen.seen_at.elapsed().as_secs();
            Line::styled(format!("seen {old} s ago: {problem}"), screen.colour(Color::Red))
        }
        (None, Some(banner)) => Line::styled(format!("*** {banner} ***"), screen.colour(Color::Yellow)),
        (None, None) => Line::default(),
    };
    frame.render_widget(Paragraph::new(vec![name, note]), area);
}

fn or_none(text: &str) -> &str {
    if text.is_empty() { "none" } else { text }
}

fn draw_members(frame: &mut Frame<'_>, area: Rect, screen: &Screen) {
    let heads = ["MEMBER", "ROLE", "STATE", "TL", "LSN", "FLUSH LAG", "REPLAY LAG", "WAL", "LEASE", "RAFT", "WHAT"];
    let widths = [10, 8, 10, 3, 12, 12, 14, 10, 6, 9].map(Constraint::Length);
    let widths: Vec<Constraint> = widths.into_iter().chain([Constraint::Min(0)]).collect();
    let members = screen.status.iter().flat_map(|s| &s.members).map(|member| row(member, screen));
    let bold = Style::new().add_modifier(Modifier::BOLD);
    let table =
        Table::new(members, widths).header(Row::new(heads).style(bold)).block(Block::bordered().title("Members"));
    frame.render_widget(table, area);
}

fn row<'a>(member: &'a MemberStatus, screen: &Screen) -> Row<'a> {
    let colour = match (member.healthy, member.state.as_str()) {
        (true, _) => Color::Green,
        (false, "silent" | "crashed" | "stopped") => Color::Red,
        (false, _) => Color::Yellow,
    };
    let [flushed, replayed] = render::lag_cells(member);
    let rate = screen.rates.get(&member.member).map(|rate| per_second(*rate)).unwrap_or_default();
    let lease = match member.lease_remaining_ms {
        0 => String::new(),
        ms => format!("{}.{} s", ms / 1_000, ms % 1_000 / 100),
    };
    let timeline = if member.timeline == 0 { String::new() } else { member.timeline.to_string() };
    let what = [member.problems.first(), Some(&member.progress), Some(&member.note)];
    let what = what.into_iter().flatten().find(|words| !words.is_empty()).map_or("", String::as_str);
    let cells = [
        Cell::from(member.member.as_str()).style(screen.colour(colour)),
        Cell::from(member.role.as_str()),
        Cell::from(member.state.as_str()).style(screen.colour(colour)),
        Cell::from(timeline),
        Cell::from(member.lsn.as_str()),
        Cell::from(flushed),
        Cell::from(replayed),
        Cell::from(rate),
        Cell::from(lease),
        Cell::from(member.raft_role.as_str()),
        Cell::from(what),
    ];
    Row::new(cells)
}

/// The operation that runs, the last one, what holds the cluster up, and warnings.
fn draw_held(frame: &mut Frame<'_>, area: Rect, screen: &Screen) {
    let mut lines = Vec::new();
    if let Some(status) = &screen.status {
        if let Some(running) = status.operation.as_ref().filter(|o| !o.finished) {
            lines.push(Line::from(format!("running: {}, phase {}", words(running), running.phase)));
        }
        if let Some(last) = &status.last_operation {
            let end = if last.succeeded { "succeeded".to_owned() } else { format!("failed: {}", last.reason) };
            let colour = if last.succeeded { Color::Green } else { Color::Red };
            lines.push(Line::styled(format!("last: {} {end}", words(last)), screen.colour(colour)));
        }
        let held = status.holds.iter().map(|hold| format!("hold: {hold}"));
        let warned = status.warnings.iter().map(|warning| format!("warning: {warning}"));
        lines.extend(held.chain(warned).map(|line| Line::styled(line, screen.colour(Color::Yellow))));
    }
    frame.render_widget(Paragraph::new(lines).block(Block::bordered().title("Operations and holds")), area);
}

fn words(operation: &OperationStatus) -> String {
    let OperationStatus { id, kind, from, to, .. } = operation;
    let from = if from.is_empty() { String::new() } else { format!(" from {from}") };
    format!("{kind} {id}{from} to {to}")
}

/// The newest decision stands at the bottom, where the eye is.
fn draw_events(frame: &mut Frame<'_>, area: Rect, screen: &Screen) {
    let incidents = screen.history.iter().flat_map(|h| &h.incidents);
    let all: Vec<Line<'_>> = incidents.map(|incident| Line::from(history::decision_line(incident))).collect();
    let fits = usize::from(area.height.saturating_sub(2));
    let shown = all[all.len().saturating_sub(fits)..].to_vec();
    frame.render_widget(Paragraph::new(shown).block(Block::bordered().title("Decisions")), area);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    use crate::rpc::v1::{Incident, Lag};
    use ratatui::{Terminal, backend::TestBackend};

    fn status(lsn: &str) -> StatusReply {
        let member = |name: &str, role: &str| MemberStatus {
            member: name.into(),
            role: role.into(),
            state: if role == "primary" { "running".into() } else { "streaming".into() },
            timeline: 3,
            lsn: lsn.into(),
            lag_known: true,
            flushed: Some(Lag { bytes: 0, ms: Some(0) }),
            replayed: Some(Lag { bytes: 328, ms: Some(1_300) }),
            raft_role: "follower".into(),
            healthy: true,
            ..MemberStatus::default()
        };
        StatusReply {
            cluster: "main".into(),
            primary: "n1".into(),
            lock: "open".into(),
            leader: "n2".into(),
            answered_by: "n2".into(),
            epoch: 4,
            timeline: 3,
            members: vec![member("n1", "primary"), member("n2", "standby")],
            holds: vec!["n3 is silent".into()],
            operation: Some(OperationStatus {
                id: 7,
                kind: "switchover".into(),
                from: "n1".into(),
                to: "n2".into(),
                phase: "stop".into(),
                ..OperationStatus::default()
            }),
            ..StatusReply::default()
        }
    }

    fn drawn(screen: &Screen, width: u16, height: u16) -> (Vec<String>, bool) {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| draw(frame, screen)).unwrap();
        let buffer = terminal.backend().buffer();
        let line = |y| (0..width).map(|x| buffer[(x, y)].symbol()).collect::<String>().trim_end().to_owned();
        let coloured = buffer.content().iter().any(|cell| cell.fg != Color::Reset);
        ((0..height).map(line).collect(), coloured)
    }

    fn screen(colours: bool) -> Screen {
        let incident =
            |revision| Incident { revision, epoch: 4, what: format!("decision {revision}"), rule: 330, evidence: None };
        let history = HistoryReply { incidents: (1..=50).map(incident).collect(), ..HistoryReply::default() };
        let mut screen = Screen::new(colours);
        let now = Instant::now();
        screen.see_at(Ok(status("0/5000000")), Some(history), now);
        screen.see_at(Ok(status("0/5200000")), None, now + Duration::from_secs(2));
        screen
    }

    #[test]
    fn members_rates_operations_holds_and_the_last_decisions_are_on_it() {
        let (lines, coloured) = drawn(&screen(true), 130, 24);
        let all = lines.join("\n");
        assert!(lines[0].starts_with("main healthy  primary n1  epoch 4  timeline 3  Raft leader n2"), "{all}");
        let standby = lines.iter().find(|l| l.contains("│n2")).unwrap();
        for part in ["standby", "streaming", "0/5200000", "328 B 1.3 s", &per_second(1 << 20)] {
            assert!(standby.contains(part), "{part} in {standby}");
        }
        assert!(all.contains("running: switchover 7 from n1 to n2, phase stop"), "{all}");
        assert!(all.contains("hold: n3 is silent"), "{all}");
        assert!(all.contains("decision 50") && !all.contains("decision 12"), "the newest: {all}");
        assert!(coloured);
        assert_eq!(lines[23], "q quit");
    }

    #[test]
    fn without_colours_it_says_the_same() {
        let (with, _) = drawn(&screen(true), 130, 24);
        let (without, coloured) = drawn(&screen(false), 130, 24);
        assert_eq!(with, without);
        assert!(!coloured);
    }

    #[test]
    fn any_size_can_be_drawn_and_what_was_seen_stays() {
        let mut screen = screen(true);
        for (width, height) in [(1, 1), (20, 4), (80, 24), (300, 90)] {
            drawn(&screen, width, height);
        }
        screen.see(Err("no manager could be reached".into()), None);
        let (lines, _) = drawn(&screen, 130, 24);
        assert!(lines[1].contains("no manager could be reached"), "{lines:?}");
        assert!(lines.iter().any(|l| l.contains("│n2")), "{lines:?}");
        let empty = drawn(&Screen::new(false), 80, 12).0;
        assert!(empty[0].contains("nobody has answered yet"), "{empty:?}");
    }
}
