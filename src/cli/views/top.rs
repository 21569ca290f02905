//! `matriarch top`: the cluster on the whole screen. What is drawn depends on what was seen alone; a terminal is taken over
//! around it and given back at the end.

mod screen;

use std::{io::IsTerminal as _, thread, time::Duration};

use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};
use tokio::{sync::mpsc, time::interval};

use self::screen::{Screen, draw};
use super::super::{
    args::views::TopArgs,
    client::Client,
    complain, complain_client,
    exit::{self, Exit},
    render::Style,
    style,
};

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
    if !std::io::stdout().is_terminal() || !std::io::stdin().is_terminal() {
        return complain("top needs a terminal; `matriarch status` prints the same", exit::USAGE);
    }
    let mut screen = Screen::new(style() == Style::Colour);
    look(&client, &mut screen).await;
    let mut terminal = match ratatui::try_init() {
        Ok(terminal) => terminal,
        Err(error) => return complain(&format!("top: can't take over the terminal ({error})"), exit::FAILED),
    };
    let mut typed = keyboard();
    let mut ticks = interval(Duration::from_secs(args.interval));
    let ended = loop {
        if let Err(error) = terminal.draw(|frame| draw(frame, &screen)) {
            break Err(error);
        }
        tokio::select! {
            key = typed.recv() => match key {
                Some(Typed::Resized) => {}
                Some(Typed::Quit) | None => break Ok(()),
            },
            _ = ticks.tick() => look(&client, &mut screen).await,
        }
    };
    ratatui::restore();
    match ended {
        Ok(()) => exit::OK,
        Err(error) => complain(&format!("top: can't draw ({error})"), exit::FAILED),
    }
}

async fn look(client: &Client, screen: &mut Screen) {
    let (status, history) = tokio::join!(client.status(false), client.history());
    screen.see(status.map_err(|error| error.to_string()), history.ok());
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
