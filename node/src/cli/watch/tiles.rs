//! What only a large terminal has room for: figures in tiles, neighbours, and what is on its way.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Cell, Padding, Paragraph, Row, Table, Wrap};

use super::ink::Ink;
use super::panes::{frame_of, reached};
use super::seen::Seen;
use super::text::{bar, fit, share, width};
use crate::cli::words::{Tone, duration, plural};
use crate::driver::{LinkStatus, Phase};
use crate::network::{PeerId, member_of};
use crate::train::estimate::size;

/// Marks for members that vouch; more are told as a number alone.
const VOICES_MAX: usize = 12;
/// Columns of the bar of a file on its way.
const BAR: usize = 10;

/// Four figures: the merge, this peer, the score, the traffic.
pub fn tiles(frame: &mut Frame, area: Rect, seen: &Seen, ink: Ink) {
    let [merged, own, scored, traffic] = Layout::horizontal([Constraint::Fill(1); 4]).areas(area);
    tile(frame, merged, "Merged", self::merged(seen, ink), ink);
    let columns = usize::from(own.width.saturating_sub(4));
    tile(frame, own, "This peer", self::own(seen, columns, ink), ink);
    tile(frame, scored, "Score", score(seen, ink), ink);
    tile(frame, traffic, "Traffic", self::traffic(seen, ink), ink);
}

fn tile(frame: &mut Frame, area: Rect, title: &str, lines: Vec<Line>, ink: Ink) {
    let inner = frame_of(title, ink).padding(Padding::horizontal(1));
    frame.render_widget(Paragraph::new(lines).wrap(Wrap { trim: false }).block(inner), area);
}

fn merged(seen: &Seen, ink: Ink) -> Vec<Line<'static>> {
    let of = format!(" of {}", plural(seen.adapters_expected() as u64, "adapter"));
    let Some(merged) = &seen.status.merged else {
        return vec![Line::from(vec![Span::styled("0", ink.strong()), Span::raw(of)]), Line::styled("nothing is merged yet", ink.faint())];
    };
    let hash: String = merged.merged_hash.to_string().chars().take(16).collect();
    let vouching = seen.status.vouching;
    let voices = merged.adapters.max(vouching).min(VOICES_MAX);
    let on = vouching.min(voices);
    vec![
        Line::from(vec![Span::styled(merged.adapters.to_string(), ink.strong()), Span::raw(of)]),
        Line::from(vec![Span::styled("hash ", ink.faint()), Span::raw(hash)]),
        Line::from(vec![
            Span::styled("●".repeat(on), ink.curve()),
            Span::styled("○".repeat(voices - on), ink.faint()),
            Span::raw(format!(" {} vouch{}", plural(vouching as u64, "member"), if vouching == 1 { "es" } else { "" })),
        ]),
    ]
}

fn own(seen: &Seen, columns: usize, ink: Ink) -> Vec<Line<'static>> {
    let said = seen.doing();
    let word = Line::from(vec![ink.mark(said.tone), Span::styled(said.word, ink.strong())]);
    if let (Phase::Training, Some(training), true) = (seen.status.phase, &seen.status.training, seen.live()) {
        let part = share(training.step, training.steps);
        let percent = format!(" {:.0} %", (part * 100.0).floor());
        let [done, left] = bar(part, columns.saturating_sub(percent.len()), ink);
        let speed = format!("{:.0} tokens/s, {} left", training.tokens_per_second, duration(training.seconds_left));
        let memory = training.resident_bytes.map(|bytes| format!("{speed}, {}", size(bytes)));
        let speed = memory.filter(|both| width(both) <= columns).unwrap_or(speed);
        return vec![
            Line::from(vec![
                ink.mark(said.tone),
                Span::styled(
                    format!("epoch {}/{}, step {}/{}", training.epoch, training.epochs, training.step, training.steps),
                    ink.strong(),
                ),
            ]),
            Line::from(vec![done, left, Span::raw(percent)]),
            Line::raw(speed),
        ];
    }
    let note = match &seen.history.trained {
        Some(trained) if seen.live() && seen.status.phase == Phase::Announced => {
            format!("trained on {} in {}", plural(trained.examples, "example"), duration(trained.seconds))
        }
        _ => said.note,
    };
    vec![word, Line::raw(note)]
}

fn score(seen: &Seen, ink: Ink) -> Vec<Line<'static>> {
    let Some((adapters, loss)) = seen.scored() else {
        return vec![Line::raw("-"), Line::styled("no merge is scored yet", ink.faint())];
    };
    let with = format!(" with {}", plural(adapters as u64, "adapter"));
    let mut lines = vec![Line::from(vec![Span::styled(format!("{loss:.3}"), ink.strong()), Span::raw(with)])];
    lines.extend(seen.gain(loss).map(Line::raw));
    let own = seen.history.trained.as_ref().and_then(|trained| trained.loss_after);
    lines.extend(own.map(|own| Line::from(vec![Span::styled("own adapter alone ", ink.faint()), Span::raw(format!("{own:.3}"))])));
    lines
}

fn traffic(seen: &Seen, ink: Ink) -> Vec<Line<'static>> {
    let traffic = &seen.status.traffic;
    let both = |name, got: String, sent: String| format!("{name:8} {got:>8} {sent:>8}");
    vec![
        Line::styled(both("", "in".into(), "out".into()), ink.faint()),
        Line::raw(both("adapters", size(traffic.blob_in), size(traffic.blob_out))),
        Line::raw(both("all else", size(traffic.control_in), size(traffic.control_out))),
    ]
}

/// Neighbours and how they are connected, as many as there is room for.
pub fn network(frame: &mut Frame, area: Rect, seen: &Seen, ink: Ink) {
    let status = &seen.status;
    let mut links: Vec<&LinkStatus> = status.links.iter().collect();
    links.sort_by(|one, other| one.peer.cmp(&other.peer));
    let relayed = links.iter().filter(|link| link.relayed).count();
    let mut note = plural(status.neighbours as u64, "neighbour");
    if relayed > 0 {
        note += &format!(", {relayed} relayed");
    }
    let room = usize::from(area.height.saturating_sub(3));
    let shown = if links.len() > room { room.saturating_sub(1) } else { links.len() };
    let number = |text: String| Cell::from(Line::from(format!("{text} ")).right_aligned());
    let mut rows: Vec<Row> = links
        .iter()
        .take(shown)
        .map(|link| {
            let tone = if link.relayed { Tone::Warn } else { Tone::Good };
            let path = Line::from(vec![ink.mark(tone), Span::raw(if link.relayed { "relayed" } else { "direct" })]);
            let trip = link.round_trip_ms.map_or_else(|| "-".to_owned(), |trip| format!("{trip:.1} ms"));
            let sent = status.uploads.iter().find(|upload| upload.peer == link.peer).map_or(0, |upload| upload.bytes);
            Row::new([Cell::from(format!(" {}", name_of(&link.peer))), Cell::from(path), number(trip), number(size(sent))])
        })
        .collect();
    if links.len() > shown {
        rows.push(Row::new([format!(" {} more", links.len() - shown)]));
    }
    let widths = [Constraint::Fill(1), Constraint::Length(9), Constraint::Length(11), Constraint::Length(9)];
    let names =
        Row::new([Cell::from(" Neighbour"), Cell::from("Path"), number("Round trip".into()), number("Sent".into())]).style(ink.faint());
    let mut around = frame_of("Network", ink).title_top(Line::styled(format!(" {note} "), ink.faint()).right_aligned());
    if let Some(reached) = reached(status) {
        around = around.title_bottom(Line::styled(format!(" {reached} "), ink.faint()));
    }
    if links.is_empty() {
        let none = Paragraph::new(" No neighbour yet. It keeps dialling.").style(ink.faint());
        return frame.render_widget(none.block(around), area);
    }
    frame.render_widget(Table::new(rows, widths).header(names).column_spacing(1).block(around), area);
}

/// Files on their way here, and what was sent to whom.
pub fn transfers(frame: &mut Frame, area: Rect, seen: &Seen, ink: Ink) {
    let status = &seen.status;
    let columns = usize::from(area.width.saturating_sub(3));
    let mut lines: Vec<Line> = Vec::new();
    for transfer in &status.transfers {
        let owner = status.slots.iter().find(|slot| slot.adapter == Some(transfer.adapter));
        let what = owner.map_or_else(|| format!("file {}", transfer.adapter.short()), |slot| format!("of {}", slot.member.short()));
        let from = transfer.providers.iter().filter(|provider| provider.state == "sending").count();
        let text = format!(
            "  {} of {} from {}, {}/s",
            size(transfer.have),
            size(transfer.size),
            plural(from as u64, "peer"),
            size(transfer.bytes_per_second())
        );
        let [done, left] = bar(share(transfer.have, transfer.size), BAR, ink);
        let room = columns.saturating_sub(what.len() + 2 + BAR);
        lines.push(Line::from(vec![Span::raw(format!(" {what} ")), done, left, Span::raw(fit(&text, room))]));
    }
    for upload in status.uploads.iter().filter(|upload| upload.bytes > 0) {
        let rate = if upload.bytes_per_second > 0 { format!(", {}/s", size(upload.bytes_per_second)) } else { String::new() };
        lines.push(Line::raw(fit(&format!(" to {}  {} sent{rate}", name_of(&upload.peer), size(upload.bytes)), columns)));
    }
    if lines.is_empty() {
        lines.push(Line::styled(" Nothing is on its way.", ink.faint()));
    }
    let room = usize::from(area.height.saturating_sub(2));
    if lines.len() > room {
        let more = lines.len() - room.saturating_sub(1);
        lines.truncate(room.saturating_sub(1));
        lines.push(Line::raw(format!(" and {more} more")));
    }
    frame.render_widget(Paragraph::new(lines).block(frame_of("Transfers", ink)), area);
}

/// Peers go by the short keys of their members; others by the end of their names, where names differ.
fn name_of(peer: &str) -> String {
    let member = peer.parse::<PeerId>().ok().and_then(|peer| member_of(&peer));
    member.map_or_else(
        || format!("…{}", peer.chars().skip(peer.chars().count().saturating_sub(6)).collect::<String>()),
        |member| member.short(),
    )
}
