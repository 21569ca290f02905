//! The live view: topology, writes per second, event log, keys.

use std::{
    collections::VecDeque,
    io,
    os::fd::AsFd as _,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::RecvTimeoutError,
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use ratatui::{
    DefaultTerminal, Frame,
    crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers},
    layout::{Constraint, Layout as Panes, Rect},
    style::{Color, Modifier, Style},
    text::{Line, Text},
    widgets::{Block, Cell, Paragraph, Row, Sparkline, Table},
};
use tokio::sync::{mpsc, watch};

use super::{
    faults::Fault,
    transcript::{self, Story},
    workload::{Journal, ROUTED},
};
use crate::rpc::v1::{MemberStatus, StatusReply};

const FRAME: Duration = Duration::from_millis(200);
const HISTORY: usize = 240;

/// What a key asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wish {
    /// Inject this.
    Fault(Fault),
    /// End the demo.
    Quit,
}

/// What the view shows; filled as the demo comes up.
pub(crate) struct Sources {
    /// The cluster's state.
    pub(crate) status: watch::Receiver<Option<StatusReply>>,
    /// The writers' attempts, from when there are writers.
    pub(crate) journal: watch::Receiver<Option<Journal>>,
    /// The event log.
    pub(crate) story: Story,
}

/// The view on its thread. The terminal is given back when this is dropped.
pub(crate) struct View {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl View {
    /// Takes the terminal over; wishes come through the returned channel.
    pub(crate) fn start(sources: Sources) -> Result<(View, mpsc::UnboundedReceiver<Wish>)> {
        let terminal = ratatui::try_init().context("take over the terminal")?;
        let (wishes, receiver) = mpsc::unbounded_channel();
        let stop = Arc::new(AtomicBool::new(false));
        let stop2 = stop.clone();
        let run = move || {
            let story = sources.story.clone();
            if let Err(e) = Screen::new(sources).run(terminal, &wishes, &stop2) {
                story.say(format!("the live view ended: {e:#}"));
                let _ = wishes.send(Wish::Quit);
            }
        };
        let thread = thread::Builder::new().name("view".into()).spawn(run).context("start the live view")?;
        Ok((View { stop, thread: Some(thread) }, receiver))
    }
}

impl Drop for View {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // It looks once a frame. Should it hang all the same, the process ends without it.
        let patience = Instant::now() + FRAME * 4;
        while self.thread.as_ref().is_some_and(|t| !t.is_finished()) && Instant::now() < patience {
            thread::sleep(Duration::from_millis(10));
        }
        ratatui::restore();
    }
}

struct Screen {
    sources: Sources,
    rates: VecDeque<u64>,
    counted: Instant,
}

impl Screen {
    fn new(sources: Sources) -> Screen {
        Screen { sources, rates: VecDeque::new(), counted: Instant::now() }
    }

    fn run(
        mut self,
        mut terminal: DefaultTerminal,
        wishes: &mpsc::UnboundedSender<Wish>,
        stop: &AtomicBool,
    ) -> Result<()> {
        while !stop.load(Ordering::Relaxed) {
            self.count();
            terminal.draw(|frame| self.draw(frame)).context("draw")?;
            match next_key(FRAME) {
                Ok(event) => {
                    if let Some(wish) = wish(&event) {
                        let _ = wishes.send(wish);
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => anyhow::bail!("the terminal is gone"),
            }
        }
        Ok(())
    }

    /// One bar of the sparkline for each frame's worth of acknowledged writes, as writes per second.
    fn count(&mut self) {
        let now = Instant::now();
        let length = now - self.counted;
        if length < FRAME {
            return;
        }
        let journal = self.sources.journal.borrow().clone();
        let attempts = journal.map(|j| j.since(self.counted)).unwrap_or_default();
        let acked = attempts.iter().filter(|a| &*a.writer == ROUTED && a.is_acked()).count();
        self.counted = now;
        self.rates.push_back((acked as f64 / length.as_secs_f64()).round() as u64);
        if self.rates.len() > HISTORY {
            self.rates.pop_front();
        }
    }

    fn draw(&self, frame: &mut Frame) {
        let status = self.sources.status.borrow().clone();
        let members = status.as_ref().map_or(3, |s| s.members.len().max(3)) as u16;
        let panes = [Constraint::Length(members + 3), Constraint::Length(6), Constraint::Min(4), Constraint::Length(1)];
        let [top, middle, bottom, keys] = Panes::vertical(panes).areas(frame.area());
        draw_members(frame, top, status.as_ref());
        self.draw_rates(frame, middle);
        let lines = self.sources.story.last(usize::from(bottom.height.saturating_sub(2)));
        let text: Text = lines.iter().map(|l| Line::raw(transcript::render(l))).collect();
        frame.render_widget(Paragraph::new(text).block(Block::bordered().title(" Events ")), bottom);
        let help = " 1 kill-host  2 kill-postgres  3 switchover  4 kill-agent  5 kill-manager  q quit";
        frame.render_widget(Paragraph::new(help).style(Style::new().add_modifier(Modifier::REVERSED)), keys);
    }

    fn draw_rates(&self, frame: &mut Frame, area: Rect) {
        let now = self.rates.back().copied().unwrap_or_default();
        let title = format!(" Writes per second through the router: {now} ");
        let width = usize::from(area.width.saturating_sub(2));
        let shown: Vec<u64> = self.rates.iter().skip(self.rates.len().saturating_sub(width)).copied().collect();
        let line = Sparkline::default().data(shown).style(Style::new().fg(Color::Green));
        frame.render_widget(line.block(Block::bordered().title(title)), area);
    }
}

/// The next event within `wait`.
fn next_key(wait: Duration) -> Result<Event, RecvTimeoutError> {
    // Asked of the kernel first: the library reads a terminal that is gone for ever.
    if is_gone(wait) {
        return Err(RecvTimeoutError::Disconnected);
    }
    match event::poll(Duration::ZERO) {
        Ok(true) => event::read().map_err(|_| RecvTimeoutError::Disconnected),
        Ok(false) => Err(RecvTimeoutError::Timeout),
        Err(_) => Err(RecvTimeoutError::Disconnected),
    }
}

/// Waits until there is a key or the time is up; true when the terminal behind stdin has hung up.
fn is_gone(wait: Duration) -> bool {
    let stdin = io::stdin();
    let mut fds = [PollFd::new(stdin.as_fd(), PollFlags::POLLIN)];
    let wait = PollTimeout::try_from(wait).unwrap_or(PollTimeout::MAX);
    // An error is EINTR at most, for instance by a change of the window's size.
    let _ = poll(&mut fds, wait);
    let gone = PollFlags::POLLHUP | PollFlags::POLLERR | PollFlags::POLLNVAL;
    fds[0].revents().is_some_and(|seen| seen.intersects(gone))
}

fn wish(event: &Event) -> Option<Wish> {
    let Event::Key(key) = event else { return None };
    if key.kind == KeyEventKind::Release {
        return None;
    }
    // In raw mode the terminal sends Ctrl-C as a key, not as a signal.
    let interrupt = key.modifiers.contains(KeyModifiers::CONTROL) && key.code == KeyCode::Char('c');
    match key.code {
        _ if interrupt => Some(Wish::Quit),
        KeyCode::Char('q') | KeyCode::Esc => Some(Wish::Quit),
        KeyCode::Char('1') => Some(Wish::Fault(Fault::KillHost)),
        KeyCode::Char('2') => Some(Wish::Fault(Fault::KillPostgres)),
        KeyCode::Char('3') => Some(Wish::Fault(Fault::Switchover)),
        KeyCode::Char('4') => Some(Wish::Fault(Fault::KillAgent)),
        KeyCode::Char('5') => Some(Wish::Fault(Fault::KillManager)),
        _ => None,
    }
}

fn draw_members(frame: &mut Frame, area: Rect, status: Option<&StatusReply>) {
    let empty = StatusReply::default();
    let answered = status.is_some();
    let status = status.unwrap_or(&empty);
    let title = if answered {
        let (epoch, lock, profile) = (status.epoch, &status.lock, &status.profile);
        format!(" Cluster {}: epoch {epoch}, lock {lock}, profile {profile} ", status.cluster)
    } else {
        " Cluster: no manager answers ".to_owned()
    };
    let widths = [8, 9, 12, 5, 14, 12, 10].map(Constraint::Length).into_iter().chain([Constraint::Min(10)]);
    let head = ["member", "role", "state", "tl", "lsn", "lag", "raft", "why not healthy"];
    let rows = status.members.iter().map(member_row);
    let table = Table::new(rows, widths).header(Row::new(head).style(Style::new().add_modifier(Modifier::BOLD)));
    frame.render_widget(table.block(Block::bordered().title(title)), area);
}

fn member_row(m: &MemberStatus) -> Row<'_> {
    let color = match (m.healthy, m.role.as_str()) {
        (false, _) => Color::Red,
        (true, "primary") => Color::Green,
        (true, _) => Color::Cyan,
    };
    let lag = match (m.role.as_str(), m.lag_known) {
        ("primary", _) => String::new(),
        (_, true) => format!("{} B", m.lag_bytes),
        (_, false) => "unknown".to_owned(),
    };
    let why = if m.progress.is_empty() { m.problems.join(", ") } else { m.progress.clone() };
    let cells = [&m.member, &m.role, &m.state, &m.timeline.to_string(), &m.lsn, &lag, &m.raft_role, &why];
    Row::new(cells.map(|text| Cell::from(text.clone()))).style(Style::new().fg(color))
}

#[cfg(test)]
mod tests {
    use ratatui::{Terminal, backend::TestBackend, crossterm::event::KeyEvent};

    use super::*;

    #[test]
    fn keys() {
        let press = |code, modifiers| wish(&Event::Key(KeyEvent::new(code, modifiers)));
        assert_eq!(press(KeyCode::Char('q'), KeyModifiers::NONE), Some(Wish::Quit));
        assert_eq!(press(KeyCode::Char('c'), KeyModifiers::CONTROL), Some(Wish::Quit));
        assert_eq!(press(KeyCode::Char('c'), KeyModifiers::NONE), None);
        assert_eq!(press(KeyCode::Char('3'), KeyModifiers::NONE), Some(Wish::Fault(Fault::Switchover)));
    }

    #[test]
    fn the_screen_shows_members_rate_and_events() {
        let status = StatusReply {
            cluster: "demo".into(),
            epoch: 4,
            lock: "open".into(),
            members: vec![
                MemberStatus { member: "n1".into(), role: "primary".into(), healthy: true, ..Default::default() },
                MemberStatus { member: "n2".into(), problems: vec!["silent".into()], ..Default::default() },
            ],
            ..Default::default()
        };
        let (_keep, status) = watch::channel(Some(status));
        let (_keep, journal) = watch::channel(None);
        let story = Story::new(false);
        story.say("the host loses power");
        let mut screen = Screen::new(Sources { status, journal, story });
        screen.rates.extend([0, 5, 199]);
        let mut terminal = Terminal::new(TestBackend::new(100, 24)).unwrap();
        terminal.draw(|frame| screen.draw(frame)).unwrap();
        let shown = terminal.backend().to_string();
        for text in ["epoch 4", "n1", "primary", "silent", "router: 199", "the host loses power", "q quit"] {
            assert!(shown.contains(text), "{text} is missing in\n{shown}");
        }
    }
}
