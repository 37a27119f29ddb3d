//! The two curves: the loss of this peer's training, and the score as adapters arrive.

use ratatui::Frame;
use ratatui::layout::Rect;
use ratatui::style::Style;
use ratatui::symbols::Marker;
use ratatui::text::{Line, Span};
use ratatui::widgets::{Axis, Chart, Dataset, GraphType, Paragraph, Wrap};

use super::ink::Ink;
use super::panes::frame_of;
use super::seen::Seen;
use super::text::fit;
use crate::cli::words::plural;
use crate::driver::Phase;

/// Below this height the axis under a curve would take more than it tells.
const AXIS_FROM: u16 = 9;
/// A reference line is drawn where the curve keeps at least this part of the height; else it is only told.
const CURVE_PART: f64 = 0.35;
/// Losses beyond this are no losses, and would only bend the axis.
const LOSS_MAX: f64 = 1e9;

type Point = (f64, f64);

/// One curve with what is said below and under it.
struct Curve<'a> {
    title: &'a str,
    note: String,
    /// Lines, then single points, each drawn over those before.
    lines: Vec<(Vec<Point>, Style)>,
    dots: Vec<(Vec<Point>, Style)>,
    /// Heights that are drawn across.
    marks: Vec<(f64, Style)>,
    ends: [String; 2],
}

/// Loss by step, its drift rather than its noise, with what was held out.
pub fn training(frame: &mut Frame, area: Rect, seen: &Seen, ink: Ink) {
    let (status, history) = (&seen.status, &seen.history);
    let mut points = points(history.training.iter().map(|point| (point.step as f64, point.loss)));
    if let (Phase::Training, Some(now)) = (status.phase, &status.training)
        && points.last().is_none_or(|(step, _)| (now.step as f64) > *step)
        && is_loss(now.loss)
    {
        points.push((now.step as f64, now.loss));
    }
    let held_out = self::points(history.held_out.iter().map(|point| (point.step as f64, point.loss)));
    let Some((step, loss)) = points.last().copied() else {
        let why = match (status.role.as_str(), status.phase) {
            ("reader", _) => "A reader trains nothing.",
            ("seed", _) => "A seed trains nothing.",
            ("founder", _) => "This peer trains nothing.",
            (_, Phase::Training) => "The first step is under way.",
            _ => "This peer has trained nothing here.",
        };
        return empty(frame, area, "Training", why, ink);
    };
    let held = held_out.last().map(|(_, loss)| format!(", held out {loss:.3}")).unwrap_or_default();
    let first = points.first().map_or(0.0, |(step, _)| *step);
    let curve = Curve {
        title: "Training",
        note: format!("step {step}: loss {loss:.3}{held}"),
        lines: vec![(smooth(&points), ink.curve())],
        dots: vec![(held_out, ink.second())],
        marks: Vec::new(),
        ends: [format!("step {first}"), format!("step {step}")],
    };
    draw(frame, area, curve, ink);
}

/// Held-out loss of each merge that was scored, with the base and this peer's own adapter beside it.
pub fn score(frame: &mut Frame, area: Rect, seen: &Seen, ink: Ink) {
    const TITLE: &str = "Score as adapters arrive";
    let history = &seen.history;
    let mut scored: Vec<(usize, f64)> =
        history.merges.iter().filter_map(|merge| Some((merge.adapters, merge.loss.filter(|loss| is_loss(*loss))?))).collect();
    let Some((_, loss)) = scored.last().copied() else {
        let why = match history.merges.len() {
            0 => "Nothing is merged yet.".to_owned(),
            merges => format!("{} so far. A member with held-out data scores each of them.", plural(merges as u64, "merge")),
        };
        return empty(frame, area, TITLE, &why, ink);
    };
    let base = history.base_loss.filter(|loss| is_loss(*loss));
    // What one adapter gains over the base would hide what the next ones do.
    if let (Some(base), 1) = (base, scored.len()) {
        scored.insert(0, (0, base));
    }
    let own = history.trained.and_then(|trained| trained.loss_after).filter(|loss| is_loss(*loss));
    let mut note = format!("{loss:.3}");
    if let Some(base) = base {
        note += &format!(", base {base:.3}");
    }
    if let Some(own) = own {
        note += &format!(", own alone {own:.3}");
    }
    let steps: Vec<Point> = scored.iter().enumerate().map(|(index, (_, loss))| (index as f64, *loss)).collect();
    let (least, most) = span(steps.iter().map(|(_, loss)| *loss));
    let tells = |mark: &f64| (most - least) >= CURVE_PART * (most.max(*mark) - least.min(*mark));
    let marks = [(own, ink.second()), (base.filter(|_| scored.first().is_some_and(|(adapters, _)| *adapters > 0)), ink.faint())];
    let end = |place: Option<&(usize, f64)>| match place.map_or(0, |(adapters, _)| *adapters) {
        0 => "base".to_owned(),
        adapters => plural(adapters as u64, "adapter"),
    };
    let curve = Curve {
        title: TITLE,
        note,
        ends: [end(scored.first()), end(scored.last())],
        lines: vec![(steps.clone(), ink.curve())],
        dots: vec![(steps, ink.curve())],
        marks: marks.into_iter().filter_map(|(mark, style)| Some((mark.filter(tells)?, style))).collect(),
    };
    draw(frame, area, curve, ink);
}

fn draw(frame: &mut Frame, area: Rect, curve: Curve, ink: Ink) {
    let columns = usize::from(area.width.saturating_sub(4));
    let note = Line::styled(format!(" {} ", fit(&curve.note, columns)), ink.faint());
    let heights = curve.lines.iter().chain(&curve.dots).flat_map(|(points, _)| points.iter().map(|(_, y)| *y));
    let (least, most) = span(heights.chain(curve.marks.iter().map(|(mark, _)| *mark)));
    let air = if most > least { (most - least) * 0.08 } else { most.abs().max(1.0) * 0.08 };
    let (low, high) = (least - air, most + air);
    let (left, right) = span(curve.lines.iter().flat_map(|(points, _)| points.iter().map(|(x, _)| *x)));
    // A curve of one point lies in the middle.
    let (left, right) = if right > left { (left, right) } else { (left - 1.0, left + 1.0) };
    let across = curve.marks.iter().map(|(mark, style)| {
        // Every third dot: a line that is not the curve, with and without colours.
        let dots = usize::from(area.width) * 2 / 3;
        let line = (0..=dots).map(|dot| (left + (right - left) * dot as f64 / dots.max(1) as f64, *mark)).collect();
        (Marker::Braille, GraphType::Scatter, line, *style)
    });
    let lines = curve.lines.into_iter().map(|(points, style)| (Marker::Braille, GraphType::Line, points, style));
    let dots = curve.dots.into_iter().map(|(points, style)| (Marker::Dot, GraphType::Scatter, points, style));
    let sets: Vec<(Marker, GraphType, Vec<Point>, Style)> = across.chain(lines).chain(dots).collect();
    let datasets = sets
        .iter()
        .map(|(marker, kind, points, style)| Dataset::default().marker(*marker).graph_type(*kind).style(*style).data(points))
        .collect();
    let places = if high - low < 0.1 { 3 } else { 2 };
    let tick = |value: f64| Span::styled(format!("{value:.places$}"), ink.faint());
    let heights = match area.height {
        ..7 => vec![tick(low), tick(high)],
        _ => vec![tick(low), tick((low + high) / 2.0), tick(high)],
    };
    let mut under = Axis::default().bounds([left, right]).style(ink.faint());
    if area.height >= AXIS_FROM {
        under = under.labels(curve.ends.map(|end| Span::styled(end, ink.faint())));
    }
    let beside = Axis::default().bounds([low, high]).labels(heights).style(ink.faint());
    let chart = Chart::new(datasets).block(frame_of(curve.title, ink).title_bottom(note)).x_axis(under).y_axis(beside);
    frame.render_widget(chart, area);
}

fn empty(frame: &mut Frame, area: Rect, title: &str, why: &str, ink: Ink) {
    let words = Paragraph::new(why).style(ink.faint()).centered().wrap(Wrap { trim: true });
    frame.render_widget(words.block(frame_of(title, ink)), area);
}

fn is_loss(loss: f64) -> bool {
    loss.abs() <= LOSS_MAX
}

fn points(all: impl Iterator<Item = Point>) -> Vec<Point> {
    all.filter(|(_, loss)| is_loss(*loss)).collect()
}

fn span(values: impl Iterator<Item = f64>) -> (f64, f64) {
    let (least, most) = values.fold((f64::INFINITY, f64::NEG_INFINITY), |(least, most), value| (least.min(value), most.max(value)));
    if least <= most { (least, most) } else { (0.0, 1.0) }
}

/// The drift of a noisy curve: each value with a share of those before it.
fn smooth(points: &[Point]) -> Vec<Point> {
    let keep = match points.len() {
        0..8 => 0.0,
        8..=12 => 0.6,
        many => (1.0 - 12.0 / many as f64).clamp(0.0, 0.92),
    };
    let (mut held, mut weight) = (0.0, 0.0);
    points
        .iter()
        .map(|(x, y)| {
            held = held * keep + y * (1.0 - keep);
            weight = weight * keep + (1.0 - keep);
            (*x, held / weight)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn smoothing_keeps_the_drift_and_the_length() {
        let noisy: Vec<Point> = (0..200).map(|x| (f64::from(x), 4.0 - f64::from(x) / 100.0 + f64::from(x % 2))).collect();
        let drift = smooth(&noisy);
        assert_eq!(drift.len(), noisy.len());
        let rough = |points: &[Point]| points.windows(2).map(|pair| (pair[1].1 - pair[0].1).abs()).sum::<f64>();
        assert!(rough(&drift) < rough(&noisy) / 5.0);
        assert!(drift[199].1 < drift[20].1 - 1.0);
        assert_eq!(smooth(&[(1.0, 2.0)]), [(1.0, 2.0)]);
    }

    #[test]
    fn what_is_no_loss_bends_no_axis() {
        assert_eq!(points([(1.0, f64::NAN), (2.0, 3.0), (3.0, 1e300)].into_iter()), [(2.0, 3.0)]);
        assert_eq!(span([2.0, -1.0].into_iter()), (-1.0, 2.0));
        assert_eq!(span(std::iter::empty()), (0.0, 1.0));
    }
}
