//! The terminal: taken for as long as somebody watches, and given back as it was, however that ends.

use std::io::Stdout;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use ratatui::Terminal;
use ratatui::backend::CrosstermBackend;
use ratatui::crossterm::cursor::Show;
use ratatui::crossterm::event::{self, Event};
use ratatui::crossterm::execute;

use super::LOOK_EVERY;
use super::draw::draw;
use super::ink::Ink;
use super::keys::{Extents, Place, Wish};
use super::seen::Seen;
use crate::cli::interrupt::Interrupt;
use crate::driver::unix_ms;

/// A signal is noticed after this at the latest.
const WAIT_MAX: Duration = Duration::from_millis(100);

/// Shows what a peer does until somebody has seen enough.
///
/// # Errors
/// No status at first, or a terminal that does not do what it is told.
pub fn watch(path: &Path) -> Result<ExitCode> {
    // What cannot be read at first is an error; later it is between two writings.
    let mut seen = Seen::look(path)?;
    let interrupt = Interrupt::with_last_act(give_back)?;
    let mut screen = Screen::take().context("cannot draw on this terminal; `mingle watch | cat` writes lines")?;
    let ink = Ink::from_environment();
    let mut place = Place::default();
    let mut looked = Instant::now();
    loop {
        let mut extents = Extents::default();
        screen.0.draw(|frame| extents = draw(frame, &seen, &place, ink))?;
        place.keep_within(&extents);
        loop {
            if interrupt.asked() {
                return Ok(ExitCode::SUCCESS);
            }
            let left = LOOK_EVERY.saturating_sub(looked.elapsed());
            if left.is_zero() {
                looked = Instant::now();
                match Seen::look(path) {
                    Ok(now) => seen = now,
                    // The peer is as it was seen last, and that gets older.
                    Err(_) => seen.now = unix_ms(),
                }
                break;
            }
            if !event::poll(left.min(WAIT_MAX))? {
                continue;
            }
            // Anything else is another size, for which it is drawn anew.
            if let Event::Key(key) = event::read()? {
                match place.press(key, &extents) {
                    Wish::Stay => {}
                    Wish::Anew => screen.0.clear()?,
                    Wish::Quit => return Ok(ExitCode::SUCCESS),
                }
            }
            break;
        }
    }
}

/// The alternate screen, without the mouse: people select text with it.
struct Screen(Terminal<CrosstermBackend<Stdout>>);

impl Screen {
    /// Also has a panic give the terminal back before it says what happened.
    fn take() -> std::io::Result<Self> {
        ratatui::try_init().map(Self).inspect_err(|_| give_back())
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // It is given back already; twice would put the cursor over what the panic says.
            let _ = execute!(std::io::stdout(), Show);
            return;
        }
        // tmux, when its size was changed meanwhile, would bring lines of this screen back among those of before.
        let _ = self.0.clear();
        give_back();
    }
}

/// The terminal as it was before.
fn give_back() {
    // Nobody is left to tell if the terminal is gone.
    let _ = ratatui::try_restore();
    let _ = execute!(std::io::stdout(), Show);
}
