//! Which marks and colours there are. Words keep the terminal's own colour, so that they can be read on any ground; colour
//! is on marks and curves alone, and says nothing that the mark's shape does not.

use ratatui::style::{Color, Modifier, Style};
use ratatui::text::Span;

use crate::cli::words::Tone;

#[derive(Clone, Copy, Debug)]
pub struct Ink {
    colour: bool,
}

impl Ink {
    pub const fn new(colour: bool) -> Self {
        Self { colour }
    }

    /// Colours unless `NO_COLOR` holds something (no-color.org).
    pub fn from_environment() -> Self {
        Self::new(std::env::var_os("NO_COLOR").is_none_or(|set| set.is_empty()))
    }

    fn of(self, colour: Color) -> Style {
        if self.colour { Style::new().fg(colour) } else { Style::new() }
    }

    pub fn tone(self, tone: Tone) -> Style {
        match tone {
            Tone::Good => self.of(Color::Green),
            Tone::Busy => self.of(Color::Cyan),
            Tone::Warn => self.of(Color::Yellow),
            Tone::Bad => self.of(Color::Red).add_modifier(Modifier::BOLD),
            Tone::Idle => self.faint(),
        }
    }

    /// A mark that stands before the word it goes with.
    pub fn mark(self, tone: Tone) -> Span<'static> {
        let mark = match tone {
            Tone::Good => "● ",
            Tone::Busy => "◐ ",
            Tone::Warn => "! ",
            Tone::Bad => "✗ ",
            Tone::Idle => "○ ",
        };
        Span::styled(mark, self.tone(tone))
    }

    /// What is to be seen first.
    pub fn strong(self) -> Style {
        Style::new().add_modifier(Modifier::BOLD)
    }

    /// What is to be seen last: frames, labels, times.
    pub fn faint(self) -> Style {
        Style::new().add_modifier(Modifier::DIM)
    }

    pub fn curve(self) -> Style {
        self.of(Color::Green)
    }

    /// A second curve beside the first.
    pub fn second(self) -> Style {
        self.of(Color::Magenta)
    }
}
