//! `matriarch top`: the cluster on the whole screen. What is drawn depends on what was seen alone; a terminal is taken over
//! around it and given back at the end.

mod screen;

use std::{
    io::{self, IsTerminal as _},
    thread,
    time::Duration,
};

use ratatui::{
    DefaultTerminal,
    crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers},
};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::mpsc,
    time::{MissedTickBehavior, interval},
};

use self::screen::{Screen, draw};
use super::super::{
    args::views::TopArgs,
    client::Client,
    complain, complain_client,
    exit::{self, Exit},
    render::Style,
    style,
};
use crate::rpc::v1::{HistoryReply, StatusReply};

/// How often the keyboard is looked at.
const KEYS: Duration = Duration::from_millis(200);

/// What the keyboard or the window says.
enum Typed {
    Quit,
    Resized,
}

pub(super) async fn run(args: TopArgs) -> Exit {
    let client = match Client::new(&args.client) {
        Ok(client) => client,
        Err(error) => return complain_client(&error),
    };
    if !io::stdout().is_terminal() || !io::stdin().is_terminal() {
        return complain("top needs a terminal; `matriarch status` prints the same", exit::USAGE);
    }
    let mut signals = match Signals::new() {
        Ok(signals) => signals,
        Err(error) => return complain(&format!("top: can't wait for signals ({error})"), exit::FAILED),
    };
    let mut terminal = match ratatui::try_init() {
        Ok(terminal) => terminal,
        Err(error) => return complain(&format!("top: can't take over the terminal ({error})"), exit::FAILED),
    };
    let mut screen = Screen::new(style() == Style::Colour);
    let ended = watch(&client, Duration::from_secs(args.interval), &mut signals, (&mut screen, &mut terminal)).await;
    ratatui::restore();
    match ended {
        Ok(exit) => exit,
        Err(error) => complain(&format!("top: can't draw ({error})"), exit::FAILED),
    }
}

/// Draws until somebody has enough. A look never keeps keys and signals waiting: managers may take their time.
async fn watch(
    client: &Client,
    every: Duration,
    signals: &mut Signals,
    (screen, terminal): (&mut Screen, &mut DefaultTerminal),
) -> io::Result<Exit> {
    let mut typed = keyboard();
    let mut ticks = interval(every);
    // After a look that took long the next one has its pause as well.
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let looking = look(client);
    tokio::pin!(looking);
    let mut looks = false;
    loop {
        terminal.draw(|frame| draw(frame, screen))?;
        tokio::select! {
            biased;
            key = typed.recv() => match key {
                Some(Typed::Resized) => {}
                Some(Typed::Quit) | None => return Ok(exit::OK),
            },
            number = signals.next() => return Ok(Exit(128 + number)),
            (status, history) = &mut looking, if looks => {
                screen.see(status, history);
                looks = false;
            }
            _ = ticks.tick(), if !looks => {
                looking.set(look(client));
                looks = true;
            }
        }
    }
}

async fn look(client: &Client) -> (Result<StatusReply, String>, Option<HistoryReply>) {
    let (status, history) = tokio::join!(client.status(false), client.history());
    (status.map_err(|error| error.to_string()), history.ok())
}

/// What ends a process from outside: the terminal is given back before.
struct Signals {
    hangup: Signal,
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    fn new() -> io::Result<Signals> {
        Ok(Signals {
            hangup: signal(SignalKind::hangup())?,
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
        })
    }

    /// The number of the next one.
    async fn next(&mut self) -> u8 {
        tokio::select! {
            _ = self.hangup.recv() => 1,
            _ = self.interrupt.recv() => 2,
            _ = self.terminate.recv() => 15,
        }
    }
}

/// Keys come from a thread, for reading them waits. It ends with the process, or when nobody listens any more.
fn keyboard() -> mpsc::Receiver<Typed> {
    let (send, receive) = mpsc::channel(8);
    let read = move || {
        while !send.is_closed() {
            let said = match event::poll(KEYS) {
                Ok(false) => continue,
                Ok(true) => event::read(),
                Err(error) => Err(error),
            };
            // A terminal that is gone has no more keys.
            let Ok(said) = said else { return };
            if let Some(typed) = meant(&said)
                && send.blocking_send(typed).is_err()
            {
                return;
            }
        }
    };
    // Without a thread the channel is closed, and top ends at once.
    let _ = thread::Builder::new().name("keys".to_owned()).spawn(read);
    receive
}

fn meant(said: &Event) -> Option<Typed> {
    match said {
        Event::Resize(..) => Some(Typed::Resized),
        Event::Key(key) if key.kind == KeyEventKind::Press => {
            let control_c = key.code == KeyCode::Char('c') && key.modifiers.contains(KeyModifiers::CONTROL);
            (control_c || matches!(key.code, KeyCode::Char('q') | KeyCode::Esc)).then_some(Typed::Quit)
        }
        _ => None,
    }
}
