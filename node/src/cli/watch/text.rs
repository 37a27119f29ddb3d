//! Texts and bars that fit into so many columns, counted as a terminal counts them.

use ratatui::layout::Rect;
use ratatui::style::Style;
use ratatui::text::{Line, Span};

use super::ink::Ink;

pub fn width(text: &str) -> usize {
    Span::raw(text).width()
}

/// As much of a text as fits, and a sign where that is not all.
pub fn fit(text: &str, columns: usize) -> String {
    if width(text) <= columns {
        return text.to_owned();
    }
    let (mut kept, _) = split(text, columns.saturating_sub(1));
    if columns > 0 {
        kept.push('…');
    }
    kept
}

/// A text in lines, broken between words where it can be.
pub fn wrap(text: &str, columns: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let mut word = word.to_owned();
        let line = lines.last_mut().map_or(0, |line| width(line));
        let joins = if line == 0 { 0 } else { 1 };
        if line > 0 && line + joins + width(&word) > columns {
            lines.push(String::new());
        } else if let Some(line) = lines.last_mut().filter(|line| !line.is_empty()) {
            line.push(' ');
        }
        // A word longer than a line: an address, or a stranger's idea.
        while width(&word) > columns.max(2) {
            let (kept, rest) = split(&word, columns.max(2));
            if let Some(line) = lines.last_mut() {
                line.push_str(&kept);
            }
            lines.push(String::new());
            word = rest;
        }
        if let Some(line) = lines.last_mut() {
            line.push_str(&word);
        }
    }
    lines
}

/// What fits into the columns, and the rest; never within a sign that is made of several letters.
fn split(text: &str, columns: usize) -> (String, String) {
    let (mut kept, mut rest, mut used) = (String::new(), String::new(), 0);
    for sign in Span::raw(text).styled_graphemes(Style::new()) {
        used += width(sign.symbol);
        if used <= columns { kept.push_str(sign.symbol) } else { rest.push_str(sign.symbol) }
    }
    (kept, rest)
}

/// Part of a whole, from 0 to 1.
pub fn share(done: u64, all: u64) -> f64 {
    if all == 0 { 0.0 } else { done.min(all) as f64 / all as f64 }
}

/// A bar with its part filled.
pub fn bar(share: f64, columns: usize, ink: Ink) -> [Span<'static>; 2] {
    let full = ((columns as f64 * share.clamp(0.0, 1.0)).floor() as usize).min(columns);
    [Span::styled("━".repeat(full), ink.curve()), Span::styled("─".repeat(columns - full), ink.faint())]
}

/// A label and what it is the label of, as much of it as fits.
pub fn labelled(label: &str, text: &str, columns: usize, ink: Ink) -> Line<'static> {
    let label = format!("{label:9} ");
    let text = fit(text, columns.saturating_sub(width(&label)));
    Line::from(vec![Span::styled(label, ink.faint()), Span::raw(text)])
}

/// The rows of an area from the top, each as high as a line.
pub fn rows(area: Rect) -> impl Iterator<Item = Rect> {
    (area.top()..area.bottom()).map(move |y| Rect { y, height: 1, ..area })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_counted_as_terminals_count_them() {
        assert_eq!(fit("adapter", 7), "adapter");
        assert_eq!(fit("adapters", 7), "adapte…");
        assert_eq!(fit("東京大学", 8), "東京大学");
        assert_eq!(fit("東京大学病院", 8), "東京大…");
        assert_eq!(fit("e\u{301}e\u{301}e\u{301}", 2), "e\u{301}…");
        assert_eq!((fit("ab", 1), fit("ab", 0)), ("…".to_owned(), String::new()));
    }

    #[test]
    fn lines_are_no_longer_than_their_columns_and_lose_nothing() {
        let text = "member 19fb3b80 announced adapter 6c21bc33 /ip4/192.168.100.200/tcp/46083/p2p/12D3KooW 東京 (sequence 1)";
        for columns in 2..40 {
            let lines = wrap(text, columns);
            assert!(lines.iter().all(|line| width(line) <= columns), "{columns}: {lines:?}");
            assert_eq!(lines.concat().replace(' ', ""), text.replace(' ', ""));
        }
        assert_eq!(wrap("one two three", 8), ["one two", "three"]);
        assert_eq!(wrap("", 8), [""]);
    }

    #[test]
    fn a_bar_is_as_wide_as_it_should_be_whatever_its_part() {
        for part in [share(0, 0), share(1, 2), share(9, 3), f64::NAN, -1.0, 7.0] {
            let bar = bar(part, 10, Ink::new(true));
            assert_eq!(bar.iter().map(Span::width).sum::<usize>(), 10, "{part}");
        }
        assert_eq!(bar(share(1, 2), 10, Ink::new(true))[0].content, "━━━━━");
    }
}
