//! A whole screen, by how large it is: that of the page, that of a terminal of 80 by 24, or a few lines.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};

use super::ink::Ink;
use super::keys::{Extents, Place};
use super::seen::Seen;
use super::text::{labelled, rows};
use super::{charts, help, members, panes, tiles};

/// Columns and rows from which on there is room for frames.
const FRAMES_FROM: (u16, u16) = (60, 14);
/// And from which on there is room for all the page has.
const ALL_FROM: (u16, u16) = (110, 36);
/// Columns that neighbours need; members have more to say.
const NETWORK: u16 = 46;
/// Rows from which on the narrow screen has curves.
const CURVES_FROM: u16 = 22;

/// Draws what was seen, and says how far its panes can be moved. It reads no clock and no environment.
pub fn draw(frame: &mut Frame, seen: &Seen, place: &Place, ink: Ink) -> Extents {
    let area = frame.area();
    let at_least = |(width, height)| area.width >= width && area.height >= height;
    let extents = if at_least(ALL_FROM) {
        wide(frame, area, seen, place, ink)
    } else if at_least(FRAMES_FROM) {
        narrow(frame, area, seen, place, ink)
    } else {
        Extents { members: panes::short(frame, area, seen, place, ink), ..Extents::default() }
    };
    if place.help {
        help::help(frame, ink);
    }
    extents
}

fn narrow(frame: &mut Frame, area: Rect, seen: &Seen, place: &Place, ink: Ink) -> Extents {
    let curves = area.height >= CURVES_FROM;
    let [header, facts, warnings, charts, members, happened, footer] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Length(if curves { 3 } else { 4 }),
        Constraint::Length(warning_rows(seen, 2)),
        if curves { Constraint::Fill(3) } else { Constraint::Length(0) },
        Constraint::Fill(3),
        Constraint::Fill(2),
        Constraint::Length(1),
    ])
    .areas(area);
    let columns = usize::from(area.width);
    panes::header(frame, header, seen, ink);
    panes::doing(frame, facts, seen, ink);
    let mut lines = vec![labelled(" merged", &seen.merged(), columns, ink), labelled(" network", &panes::network_line(seen), columns, ink)];
    if curves {
        let [training, score] = Layout::horizontal([Constraint::Fill(1); 2]).areas(charts);
        charts::training(frame, training, seen, ink);
        charts::score(frame, score, seen, ink);
    } else {
        lines.push(labelled(" score", &seen.score(), columns, ink));
    }
    for (line, area) in lines.into_iter().zip(rows(facts).skip(1)) {
        frame.render_widget(line, area);
    }
    panes::warnings(frame, warnings, seen, ink);
    let extents = Extents {
        members: members::members(frame, members, seen, place, ink),
        happened: panes::happened(frame, happened, seen, place, ink),
    };
    panes::footer(frame, footer, place, ink);
    extents
}

fn wide(frame: &mut Frame, area: Rect, seen: &Seen, place: &Place, ink: Ink) -> Extents {
    let [header, rule, warnings, figures, charts, middle, below, footer] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Length(if seen.status.rule.is_empty() { 0 } else { 1 }),
        Constraint::Length(warning_rows(seen, 4)),
        Constraint::Length(5),
        Constraint::Fill(4),
        Constraint::Fill(4),
        Constraint::Fill(3),
        Constraint::Length(1),
    ])
    .areas(area);
    let columns = usize::from(area.width);
    panes::header(frame, header, seen, ink);
    frame.render_widget(labelled(" rule", &seen.status.rule, columns, ink), rule);
    panes::warnings(frame, warnings, seen, ink);
    tiles::tiles(frame, figures, seen, ink);
    let [training, score] = Layout::horizontal([Constraint::Fill(1); 2]).areas(charts);
    charts::training(frame, training, seen, ink);
    charts::score(frame, score, seen, ink);
    let [members, network] = Layout::horizontal([Constraint::Fill(1), Constraint::Length(NETWORK)]).areas(middle);
    let [transfers, happened] = Layout::horizontal([Constraint::Fill(2), Constraint::Fill(3)]).areas(below);
    tiles::network(frame, network, seen, ink);
    tiles::transfers(frame, transfers, seen, ink);
    let extents = Extents {
        members: members::members(frame, members, seen, place, ink),
        happened: panes::happened(frame, happened, seen, place, ink),
    };
    panes::footer(frame, footer, place, ink);
    extents
}

fn warning_rows(seen: &Seen, most: usize) -> u16 {
    seen.warnings().len().min(most) as u16
}
