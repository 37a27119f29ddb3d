//! Whole screens: compared with those kept in `tests/snapshots/watch.txt`, which
//! `MINGLE_WRITE_SNAPSHOTS=1 cargo test -p mingle --lib watch` writes anew, and asked for what must never fail.

use std::path::Path;

use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::buffer::Buffer;
use ratatui::style::Color;

use super::draw::draw;
use super::ink::Ink;
use super::keys::{Extents, Pane, Place};
use super::lines::{object, sentence};
use super::sample::{self, NOW};
use super::seen::Seen;
use crate::driver::{History, Phase};

const SIZES: [(u16, u16); 4] = [(80, 24), (120, 40), (160, 50), (44, 12)];

fn screen(seen: &Seen, (width, height): (u16, u16), place: &Place, ink: Ink) -> (Buffer, Extents) {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).expect("a terminal");
    let mut extents = Extents::default();
    terminal.draw(|frame| extents = draw(frame, seen, place, ink)).expect("a screen");
    (terminal.backend().buffer().clone(), extents)
}

/// What a person reads, a line for each row.
fn text(buffer: &Buffer) -> String {
    let row = |y| {
        let (mut line, mut x) = (String::new(), 0);
        while x < buffer.area.width {
            let symbol = buffer[(x, y)].symbol();
            line.push_str(symbol);
            // A sign of two columns hides the cell after it.
            x += super::text::width(symbol).max(1) as u16;
        }
        line.trim_end().to_owned()
    };
    (0..buffer.area.height).map(row).collect::<Vec<_>>().join("\n")
}

fn shown(seen: &Seen, size: (u16, u16)) -> String {
    text(&screen(seen, size, &Place::default(), Ink::new(true)).0)
}

fn check(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "{part:?} is missing in\n{text}");
    }
}

#[test]
fn screens_are_those_that_are_kept() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/snapshots/watch.txt");
    let mut found = String::new();
    for (width, height) in SIZES {
        found += &format!("== {width}x{height}\n{}\n", shown(&sample::seen(), (width, height)));
    }
    let help = Place { help: true, ..Place::default() };
    found += &format!("== keys, 80x24\n{}\n", text(&screen(&sample::seen(), (80, 24), &help, Ink::new(true)).0));
    if std::env::var_os("MINGLE_WRITE_SNAPSHOTS").is_some() {
        std::fs::write(&path, &found).expect("the snapshot");
    }
    let kept = std::fs::read_to_string(&path).expect("the snapshot");
    for (found, kept) in found.split("== ").zip(kept.split("== ")) {
        assert!(found == kept, "found\n{found}\nbut kept is\n{kept}");
    }
    assert_eq!(found.len(), kept.len());
}

#[test]
fn every_size_tells_what_matters_most() {
    for size in SIZES {
        let text = shown(&sample::seen(), size);
        check(&text, &["one  [2J round", "epoch 1/3, step 45/100", "Contradiction", "0.998", "2 of 10 adapters"]);
    }
    for size in [(80, 24), (160, 50)] {
        let text = shown(&sample::seen(), size);
        check(&text, &["round e8e8e8e8", "3 neighbours, 1 relayed", "merged, clipped", "(you)", "base 4.968", "held out 1.100", "━", "⠤"]);
    }
    check(&shown(&sample::seen(), (80, 24)), &["1 member vouches", "more warnings", " of 10"]);
    let large = shown(&sample::seen(), (160, 50));
    let parts = [
        "●○ 1 member vouches",
        "hash 0101010101010101",
        "rule     mean, weighted",
        "refused  東京: rank 9",
        "candidate  1 of 2 approvals; judged by 8a88e3dd yes 1.020",
        "conflict  signed two records",
        "fetching ━━━━━━──────  1 KiB of 2 KiB",
        "not heard of",
        "48.0 ms",
        "390 KiB sent",
        "1 KiB of 2 KiB from 1 peer",
        "no answer (3 times)",
        "45 %",
    ];
    check(&large, &parts);
}

#[test]
fn texts_of_others_move_no_cursor() {
    // ratatui leaves control characters out by itself; that they are spaces here shows that nothing depends on it.
    for size in SIZES {
        let (buffer, _) = screen(&sample::seen(), size, &Place::default(), Ink::new(true));
        assert!(buffer.content().iter().all(|cell| !cell.symbol().contains(char::is_control)));
        check(&text(&buffer), &["one  [2J round"]);
    }
    check(&shown(&sample::seen(), (160, 50)), &["rank 9  ]0;title  is not"]);
    let seen = sample::seen();
    assert_eq!(seen.status.name, "one  [2J round ");
    assert!(!sentence(&seen).contains(char::is_control));
    let raw = object(&sample::status(), true, &sample::history()).expect("JSON");
    assert!(!raw.contains(char::is_control), "JSON writes control characters as \\u");
}

#[test]
fn frames_stay_straight_beside_wide_letters() {
    let mut status = sample::status();
    status.slots[0].refused = Some("東京大学".repeat(40));
    status.name = "🦀 名前".repeat(30);
    let seen = Seen::new((status, sample::history()), NOW.into()).expect("a moment");
    let (buffer, _) = screen(&seen, (80, 24), &Place::default(), Ink::new(true));
    let header = buffer.content().iter().take(80).map(|cell| cell.symbol()).collect::<String>();
    assert!(header.contains("training") && header.contains('…') && header.contains("e8e8e8e8"), "{header}");
    let edges: Vec<&str> = (10..23).map(|y| buffer[(79, y)].symbol()).collect();
    assert!(edges.iter().all(|edge| ["│", "┐", "┘"].contains(edge)), "{edges:?}");
}

#[test]
fn a_peer_that_stopped_says_so_and_since_when() {
    let seen = Seen { now: u128::from(NOW) + 12_000, ..sample::seen() };
    for size in SIZES {
        let text = shown(&seen, size);
        check(&text, &["not running", "last heard 12 s ago"]);
        assert!(!text.contains("tokens/s") && !text.contains("◐ training"), "{text}");
    }
    assert!(sentence(&seen).starts_with("not running; merged 2 of 10 adapters"), "{}", sentence(&seen));
}

#[test]
fn panes_scroll_and_say_where_they_are() {
    let mut status = sample::status();
    status.roster = (1..=60).map(sample::member).collect();
    let seen = Seen::new((status, sample::history()), NOW.into()).expect("a moment");
    let first = |place: &Place| {
        let (buffer, extents) = screen(&seen, (80, 24), place, Ink::new(false));
        (text(&buffer), extents)
    };
    let (top, extents) = first(&Place::default());
    assert_eq!(extents.members.all, 60);
    let row = |number: usize| format!(" {} ", seen.rows()[number].member.short());
    assert!(top.contains(&row(1)) && !top.contains(&row(30)));
    check(&top, &[&format!("1-{} of 60 ↑↓", extents.members.seen)]);
    let (middle, _) = first(&Place { members: 30, ..Place::default() });
    assert!(!middle.contains(&row(1)) && middle.contains(&row(30)));
    check(&middle, &[&format!("31-{} of 60 ↑↓", 30 + extents.members.seen)]);
    // What is beyond the end is the end.
    let (end, _) = first(&Place { members: usize::MAX, happened: usize::MAX, focus: Pane::Happened, ..Place::default() });
    assert!(end.contains(&row(59)) && end.contains("of 60 ") && !end.contains("of 60 ↑↓"));
    check(&end, &["2.0 h"]);
    assert!(!top.contains("2.0 h"));
}

#[test]
fn without_colours_there_are_none_and_with_them_words_have_none() {
    let coloured = |ink| {
        let (buffer, _) = screen(&sample::seen(), (160, 50), &Place::default(), ink);
        assert!(buffer.content().iter().all(|cell| cell.bg == Color::Reset));
        buffer.content().iter().filter(|cell| cell.fg != Color::Reset).map(|cell| cell.symbol().to_owned()).collect::<Vec<_>>()
    };
    assert!(coloured(Ink::new(false)).is_empty());
    let marks = coloured(Ink::new(true));
    assert!(marks.len() > 50 && marks.iter().all(|mark| !mark.contains(char::is_alphanumeric)), "{marks:?}");
}

#[test]
fn no_size_and_no_number_is_too_strange() {
    let mut status = sample::status();
    status.updated_unix_ms = u128::from(u64::MAX);
    status.traffic.blob_in = u64::MAX;
    status.slots[2].size = u64::MAX;
    status.vouching = usize::MAX;
    if let Some(training) = &mut status.training {
        (training.step, training.steps, training.seconds_left, training.loss) = (9, 0, 1e300, 1e300);
    }
    let mut history = sample::history();
    history.base_loss = Some(-1e308);
    history.merges[0].loss = Some(1e308);
    history.happened[0].text = "x".repeat(400);
    let strange = Seen::new((status.clone(), history), NOW.into()).expect("a moment");
    status.slots.clear();
    status.links.clear();
    (status.training, status.merged, status.phase) = (None, None, Phase::Following);
    let empty = Seen::new((status, History::default()), NOW.into()).expect("a moment");
    let help = Place { help: true, ..Place::default() };
    for seen in [&sample::seen(), &strange, &empty] {
        for width in (1..170).step_by(13) {
            for height in (1..56).step_by(5) {
                for place in [&Place::default(), &help] {
                    screen(seen, (width, height), place, Ink::new(true));
                }
            }
        }
        assert!(!sentence(seen).is_empty());
    }
    check(&shown(&empty, (80, 24)), &["nothing yet", "Nothing is merged yet."]);
}

#[test]
fn one_object_a_change_has_status_and_history() {
    let text = object(&sample::status(), true, &sample::history()).expect("JSON");
    assert!(!text.contains('\n'));
    let value: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(value["status"]["live"], true);
    assert_eq!(value["status"]["merged"]["adapters"], 2);
    assert_eq!(value["history"]["merges"][3]["loss"], 0.9976);
}
