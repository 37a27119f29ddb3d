//! Which keys there are and what the marks mean, over everything else until it is closed.

use ratatui::Frame;
use ratatui::layout::{Constraint, Flex, Layout};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Clear, Paragraph};

use super::ink::Ink;
use super::panes::frame_of;
use crate::cli::words::Tone;

const KEYS: [(&str, &str); 8] = [
    ("q, Esc, Ctrl-C", "quit"),
    ("Tab", "the other pane that can be scrolled"),
    ("↑ ↓, k j", "a line"),
    ("PgUp PgDn, space", "a page"),
    ("Home End, g G", "the first and the last"),
    ("Ctrl-L", "draw anew"),
    ("?", "open and close this"),
    ("mouse", "selects text, as everywhere in this terminal"),
];

const MARKS: [(Tone, &str); 5] = [
    (Tone::Good, "as it should be: merged, serving, connected directly"),
    (Tone::Busy, "under way: training, fetching, to be merged"),
    (Tone::Warn, "may want somebody: waiting for founders, approvals, relays"),
    (Tone::Bad, "wrong: refused, conflict, contradiction, failed"),
    (Tone::Idle, "nothing is to be expected: withdrawn, not heard of"),
];

/// Columns of the longest line with its frame.
const WIDTH: u16 = 66;

pub fn help(frame: &mut Frame, ink: Ink) {
    let mut lines: Vec<Line> =
        KEYS.iter().map(|(key, does)| Line::from(vec![Span::styled(format!(" {key:17} "), ink.strong()), Span::raw(*does)])).collect();
    lines.push(Line::default());
    lines.extend(MARKS.iter().map(|(tone, means)| Line::from(vec![Span::raw(" "), ink.mark(*tone), Span::raw(*means)])));
    let height = lines.len() as u16 + 2;
    let [middle] = Layout::vertical([Constraint::Length(height)]).flex(Flex::Center).areas(frame.area());
    let [middle] = Layout::horizontal([Constraint::Length(WIDTH)]).flex(Flex::Center).areas(middle);
    frame.render_widget(Clear, middle);
    frame.render_widget(Paragraph::new(lines).block(frame_of("Keys and marks", ink).border_style(ink.strong())), middle);
}
