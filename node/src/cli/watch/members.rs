//! The members and what stands in their slots.

use ratatui::Frame;
use ratatui::layout::{Constraint, Rect};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Cell, Row, Table};

use super::ink::Ink;
use super::keys::{Extent, Pane, Place};
use super::panes::moving_frame;
use super::seen::{self, Seen};
use super::text::{bar, fit, share};
use crate::driver::{PrivacyStatus, SlotStatus};
use crate::merged::promised;
use crate::train::estimate::size;

const MEMBER: u16 = 15;
const WEIGHT: u16 = 8;
const EXAMPLES: u16 = 9;
const SIZE: u16 = 9;
/// Examples and sizes are shown from this width on.
const SPARE_FROM: u16 = 90;
/// Columns of the bar of a file on its way.
const BAR: usize = 12;
/// Verdicts that are told, each with the held-out loss that its judge found.
const JUDGES_MAX: usize = 3;

pub fn members(frame: &mut Frame, area: Rect, seen: &Seen, place: &Place, ink: Ink) -> Extent {
    let all = seen.rows();
    // A line each for the frame above and below, and for the names of the columns.
    let extent = Extent { all: all.len(), seen: usize::from(area.height.saturating_sub(3)) };
    let at = place.members.min(extent.last());
    let spare = area.width >= SPARE_FROM;
    let fixed = MEMBER + WEIGHT + if spare { EXAMPLES + SIZE + 2 } else { 0 } + 2;
    let columns = usize::from(area.width.saturating_sub(2 + fixed));
    let rows = all.iter().skip(at).take(extent.seen).map(|row| line(row, seen, columns, spare, ink));
    let mut widths = vec![Constraint::Length(MEMBER), Constraint::Fill(1), Constraint::Length(WEIGHT)];
    let mut names = vec![Cell::from(" Member"), Cell::from("State"), number("Weight".into())];
    if spare {
        widths.extend([Constraint::Length(EXAMPLES), Constraint::Length(SIZE)]);
        names.extend([number("Examples".into()), number("Size".into())]);
    }
    let merged = seen.status.slots.iter().filter(|slot| slot.merged).count();
    let note = match all.len() {
        0 => "nobody has said anything yet".to_owned(),
        all => format!("{merged} merged of {all}"),
    };
    let frame_around = moving_frame("Members", at, extent, place.focus == Pane::Members, ink);
    let frame_around = frame_around.title_top(Line::styled(format!(" {note} "), ink.faint()).right_aligned());
    let table = Table::new(rows, widths).header(Row::new(names).style(ink.faint())).column_spacing(1).block(frame_around);
    frame.render_widget(table, area);
    extent
}

fn line<'a>(row: &seen::Row<'a>, seen: &Seen, columns: usize, spare: bool, ink: Ink) -> Row<'a> {
    let own = row.member == seen.status.member;
    let mut name = vec![Span::raw(format!(" {}", row.member.short()))];
    if own {
        name.push(Span::styled(" (you)", ink.faint()));
    }
    let said = &row.said;
    let mut state = vec![ink.mark(said.tone), Span::raw(said.word)];
    if let Some(slot) = row.slot.filter(|_| said.word == "fetching") {
        state.push(Span::raw(" "));
        state.extend(bar(share(slot.have, slot.size), BAR, ink));
    }
    let more = row.slot.map(more).unwrap_or_default();
    let notes: Vec<&str> =
        std::iter::once(said.note.as_str()).chain(more.iter().map(String::as_str)).filter(|note| !note.is_empty()).collect();
    if !notes.is_empty() {
        let used: usize = state.iter().map(Span::width).sum();
        state.push(Span::styled(format!("  {}", fit(&notes.join("; "), columns.saturating_sub(used + 2))), ink.faint()));
    }
    let told = |number: u64, text: String| self::number(if number == 0 { "-".into() } else { text });
    let slot = |field: fn(&SlotStatus) -> u64| row.slot.map_or(0, field);
    let (weight, examples, bytes) = (slot(|slot| slot.weight), slot(|slot| slot.examples), slot(|slot| slot.size));
    let mut cells = vec![Cell::from(Line::from(name)), Cell::from(Line::from(state)), told(weight, weight.to_string())];
    if spare {
        cells.extend([told(examples, examples.to_string()), told(bytes, size(bytes))]);
    }
    Row::new(cells)
}

/// What others say of an adapter, and what its member promises.
fn more(slot: &SlotStatus) -> Vec<String> {
    let mut told = Vec::new();
    if !slot.verdicts.is_empty() {
        let said = slot.verdicts.iter().take(JUDGES_MAX).map(|verdict| {
            let loss = verdict.with_loss.map_or_else(|| "no loss".to_owned(), |loss| format!("{loss:.3}"));
            format!("{} {} {loss}", verdict.judge.short(), if verdict.approves { "yes" } else { "no" })
        });
        let all = if slot.verdicts.len() > JUDGES_MAX { ", …" } else { "" };
        told.push(format!("judged by {}{all}", said.collect::<Vec<_>>().join(", ")));
    }
    if let Some(PrivacyStatus { epsilon, delta, .. }) = slot.privacy {
        told.push(format!("promises {}", promised(epsilon, delta)));
    }
    told
}

fn number(text: String) -> Cell<'static> {
    Cell::from(Line::from(format!("{text} ")).right_aligned())
}
