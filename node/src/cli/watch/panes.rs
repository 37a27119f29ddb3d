//! What both layouts have: who this is, what is wrong, what happened, and which keys there are.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Paragraph};

use super::ink::Ink;
use super::keys::{Extent, Pane, Place};
use super::seen::Seen;
use super::text::{bar, fit, labelled, rows, share, width, wrap};
use crate::cli::words::{Tone, duration, plural};
use crate::driver::{Phase, Status};
use crate::train::estimate::size;

/// Columns of a time before what happened.
const TIME: usize = 8;
/// With fewer columns a bar tells nothing, nor does a sentence.
const BAR_MIN: usize = 8;

pub fn frame_of<'a>(title: &'a str, ink: Ink) -> Block<'a> {
    Block::bordered().border_style(ink.faint()).title(Span::styled(format!(" {title} "), ink.strong()))
}

/// The frame of a pane that can be moved: what of it is seen, and whether keys move it.
pub fn moving_frame<'a>(title: &'a str, at: usize, extent: Extent, focused: bool, ink: Ink) -> Block<'a> {
    let block = frame_of(title, ink);
    let block = if focused { block.border_style(ink.strong()) } else { block };
    if extent.all <= extent.seen {
        return block;
    }
    let last = (at + extent.seen).min(extent.all);
    let seen = format!(" {}-{last} of {}{} ", at + 1, extent.all, if focused { " ↑↓" } else { "" });
    block.title_bottom(Line::styled(seen, ink.faint()).right_aligned())
}

/// Name, round and member on the left; what the peer is at on the right.
pub fn header(frame: &mut Frame, area: Rect, seen: &Seen, ink: Ink) {
    let status = &seen.status;
    let said = seen.doing();
    let word = if seen.live() { said.word.to_owned() } else { format!("{}, {}", said.word, said.note) };
    let now = Line::from(vec![ink.mark(said.tone), Span::styled(format!("{word} "), ink.strong())]);
    let round = status.round.get(..8).unwrap_or(&status.round);
    let facts = format!("  round {round}  {} {}", status.role, status.member.short());
    let [left, right] = Layout::horizontal([Constraint::Fill(1), Constraint::Length(now.width() as u16)]).areas(area);
    let free = usize::from(left.width).saturating_sub(width(&facts) + 2);
    let name = Span::styled(format!(" {}", fit(&status.name, free.max(12))), ink.strong());
    frame.render_widget(Line::from(vec![name, Span::styled(facts, ink.faint())]), left);
    frame.render_widget(now, right);
}

/// What is wrong, in no more rows than there are.
pub fn warnings(frame: &mut Frame, area: Rect, seen: &Seen, ink: Ink) {
    let found = seen.warnings();
    let room = usize::from(area.height);
    let told = if found.len() > room { room.saturating_sub(1) } else { found.len() };
    let columns = usize::from(area.width).saturating_sub(4);
    let mut lines: Vec<Line> = found
        .iter()
        .take(told)
        .map(|(tone, text)| Line::from(vec![Span::raw(" "), ink.mark(*tone), Span::raw(fit(text, columns))]))
        .collect();
    if found.len() > told {
        let more = plural((found.len() - told) as u64, "more warning");
        lines.push(Line::from(vec![Span::raw(" "), ink.mark(found.get(told).map_or(Tone::Warn, |more| more.0)), Span::raw(more)]));
    }
    frame.render_widget(Paragraph::new(lines), area);
}

/// What the peer is at, in the first line of an area; a training with a bar as long as there is room.
pub fn doing(frame: &mut Frame, area: Rect, seen: &Seen, ink: Ink) {
    let Some(area) = rows(area).next() else { return };
    let (Phase::Training, Some(training), true) = (seen.status.phase, &seen.status.training, seen.live()) else {
        return frame.render_widget(labelled(" state", &seen.doing().sentence(), area.width.into(), ink), area);
    };
    let part = share(training.step, training.steps);
    let mut text = format!("{:>4.0} %  epoch {}/{}, ", (part * 100.0).floor(), training.epoch, training.epochs);
    text += &format!("step {}/{}, {:.0} tokens/s, ", training.step, training.steps, training.tokens_per_second);
    text += &format!("{} left", duration(training.seconds_left));
    let mut line = labelled(" training", "", 0, ink);
    let room = usize::from(area.width).saturating_sub(line.width() + 1);
    line.extend(bar(part, room.saturating_sub(width(&text)).max(BAR_MIN), ink));
    line.push_span(fit(&text, room.saturating_sub(BAR_MIN)));
    frame.render_widget(line, area);
}

/// How others get to this peer, where that is known.
pub fn reached(status: &Status) -> Option<&'static str> {
    match status.reachability.as_str() {
        "public" => Some("others can dial it"),
        "private" => Some("reached through relays"),
        _ => None,
    }
}

pub fn network_line(seen: &Seen) -> String {
    let status = &seen.status;
    let relayed = status.links.iter().filter(|link| link.relayed).count();
    let mut line = plural(status.neighbours as u64, "neighbour");
    if relayed > 0 {
        line += &format!(", {relayed} relayed");
    }
    if let Some(reached) = reached(status) {
        line += &format!(", {reached}");
    }
    let traffic = &status.traffic;
    let (got, sent) = (traffic.control_in.saturating_add(traffic.blob_in), traffic.control_out.saturating_add(traffic.blob_out));
    format!("{line}; {} in, {} out", size(got), size(sent))
}

/// What happened, the newest first, each in as many lines as it needs.
pub fn happened(frame: &mut Frame, area: Rect, seen: &Seen, place: &Place, ink: Ink) -> Extent {
    let columns = usize::from(area.width.saturating_sub(4)).saturating_sub(TIME + 2);
    let mut lines = Vec::new();
    for happening in seen.history.happened.iter().rev() {
        let times = if happening.times > 1 { format!(" ({} times)", happening.times) } else { String::new() };
        let mut time = format!("{:>TIME$} ", seen.ago(happening.unix_ms.into()));
        for part in wrap(&format!("{}{times}", happening.text), columns.max(BAR_MIN)) {
            let mark = if happening.warning && !time.trim().is_empty() { ink.mark(Tone::Bad) } else { Span::raw("  ") };
            lines.push(Line::from(vec![Span::styled(time, ink.faint()), mark, Span::raw(part)]));
            time = " ".repeat(TIME + 1);
        }
    }
    let extent = Extent { all: lines.len(), seen: usize::from(area.height.saturating_sub(2)) };
    let at = place.happened.min(extent.last());
    let frame_around = moving_frame("What happened", at, extent, place.focus == Pane::Happened, ink);
    if lines.is_empty() {
        lines.push(Line::styled(" Nothing yet.", ink.faint()));
    }
    let shown: Vec<Line> = lines.into_iter().skip(at).collect();
    frame.render_widget(Paragraph::new(shown).block(frame_around), area);
    extent
}

/// The keys that are asked for most.
pub fn footer(frame: &mut Frame, area: Rect, place: &Place, ink: Ink) {
    let other = match place.focus {
        Pane::Members => "what happened",
        Pane::Happened => "members",
    };
    let key = |key: &'static str, does: String| [Span::styled(key, ink.strong()), Span::styled(format!(" {does}   "), ink.faint())];
    let keys = [key(" q", "quit".into()), key("↑↓ PgUp PgDn", "scroll".into()), key("Tab", other.into()), key("?", "keys".into())];
    frame.render_widget(Line::from(keys.concat()), area);
}

/// All there is room for where there is little: lines, without frames.
pub fn short(frame: &mut Frame, area: Rect, seen: &Seen, place: &Place, ink: Ink) -> Extent {
    let columns = usize::from(area.width);
    let said = seen.doing();
    let mut lines = vec![
        Line::from(vec![ink.mark(said.tone), Span::styled(fit(&seen.status.name, columns.saturating_sub(2)), ink.strong())]),
        labelled("state", &said.sentence(), columns, ink),
        labelled("merged", &seen.merged(), columns, ink),
        labelled("score", &seen.score(), columns, ink),
        labelled("network", &network_line(seen), columns, ink),
    ];
    for (tone, text) in seen.warnings().into_iter().take(2) {
        lines.push(Line::from(vec![ink.mark(tone), Span::raw(fit(&text, columns.saturating_sub(2)))]));
    }
    let members = seen.rows();
    let extent = Extent { all: members.len(), seen: usize::from(area.height).saturating_sub(lines.len()) };
    for row in members.iter().skip(place.members.min(extent.last())) {
        let text = format!("{} {}", row.member.short(), row.said.sentence());
        lines.push(Line::from(vec![ink.mark(row.said.tone), Span::raw(fit(&text, columns.saturating_sub(2)))]));
    }
    for (line, area) in lines.into_iter().zip(rows(area)) {
        frame.render_widget(line, area);
    }
    extent
}
