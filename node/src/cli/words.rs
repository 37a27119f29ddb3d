//! What a peer is at and what stands in a member's slot, in words: `mingle status` and `mingle watch` say the same.
//!
//! The page says it in the same words, in `http/assets/panels.js`.

use mingle_protocol::identity::MemberKey;

use crate::driver::{Phase, SlotStatus, Status};
use crate::train::estimate::size;

/// How something stands, for those who read marks before words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tone {
    Good,
    Busy,
    /// Somebody may want to do something.
    Warn,
    /// Something is wrong.
    Bad,
    /// Nothing is to be expected.
    Idle,
}

/// A word, how it stands, and what more is to say, which may be nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Said {
    pub word: &'static str,
    pub tone: Tone,
    pub note: String,
}

impl Said {
    fn new(word: &'static str, tone: Tone, note: impl Into<String>) -> Self {
        Self { word, tone, note: note.into() }
    }

    /// Word and note as one.
    pub fn sentence(&self) -> String {
        if self.note.is_empty() { self.word.to_owned() } else { format!("{}: {}", self.word, self.note) }
    }
}

/// What a peer is at. `live` is whether it still runs, which its file alone does not say.
pub fn doing(status: &Status, live: bool) -> Said {
    match (live, status.phase, &status.training) {
        (false, ..) => Said::new("not running", Tone::Idle, ""),
        (true, Phase::Training, Some(training)) => Said::new(
            "training",
            Tone::Busy,
            format!(
                "epoch {}/{}, step {}/{}, loss {:.4}, {:.0} tokens/s, {} left",
                training.epoch,
                training.epochs,
                training.step,
                training.steps,
                training.loss,
                training.tokens_per_second,
                duration(training.seconds_left)
            ),
        ),
        (true, Phase::Training, None) => Said::new("loading", Tone::Busy, "the base and the data are being read"),
        (true, Phase::Announced, _) => Said::new("serving", Tone::Good, "its adapter is announced"),
        (true, Phase::Waiting, _) => Said::new("waiting", Tone::Warn, "has an adapter, and waits until founders admit its key"),
        (true, Phase::Following, _) if status.role == "seed" => Said::new("following", Tone::Good, "keeps and serves what others announce"),
        (true, Phase::Following, _) => Said::new("following", Tone::Good, "fetches, verifies and merges; announces nothing"),
        (true, Phase::Failed, _) => Said::new("failed", Tone::Bad, "its training ended with an error"),
    }
}

/// What stands in a member's slot.
pub fn standing(slot: &SlotStatus, status: &Status) -> Said {
    let among = |members: &[MemberKey]| members.contains(&slot.member);
    match slot.state.as_str() {
        "conflict" => return Said::new("conflict", Tone::Bad, "signed two records at one sequence: counts for nothing"),
        "withdrawn" => return Said::new("withdrawn", Tone::Idle, "took its adapter back"),
        "reader" => return Said::new("reader now", Tone::Idle, "counts for nothing since founders decided so"),
        "out" => return Said::new("put out", Tone::Idle, "counts for nothing since founders decided so"),
        _ => {}
    }
    if let Some(why) = &slot.refused {
        return Said::new("refused", Tone::Bad, why);
    }
    match &status.merged {
        Some(merged) if slot.merged && among(&merged.left_out) => {
            return Said::new("left out", Tone::Warn, "the rule leaves it out of this merge");
        }
        Some(merged) if slot.merged && among(&merged.clipped) => {
            return Said::new("merged, clipped", Tone::Warn, "scaled down to the round's largest norm");
        }
        _ if slot.merged => return Said::new("merged", Tone::Good, ""),
        _ => {}
    }
    if slot.have < slot.size {
        let on_its_way = status.transfers.iter().any(|transfer| Some(transfer.adapter) == slot.adapter);
        return match on_its_way || slot.have > 0 {
            true => Said::new("fetching", Tone::Busy, format!("{} of {}", size(slot.have), size(slot.size))),
            false => Said::new("announced", Tone::Idle, "to be fetched"),
        };
    }
    if slot.approvals() < slot.approvals_needed {
        let needed = plural(slot.approvals_needed as u64, "approval");
        return Said::new("candidate", Tone::Warn, format!("{} of {needed}", slot.approvals()));
    }
    Said::new("here", Tone::Busy, "to be merged")
}

/// What stands for a member that nothing has been heard of.
pub fn unheard(member_is_this_peer: bool, status: &Status) -> Said {
    match status.phase {
        Phase::Training if member_is_this_peer => Said::new("training", Tone::Busy, ""),
        Phase::Waiting if member_is_this_peer => Said::new("not admitted", Tone::Warn, "waits for the founders"),
        _ => Said::new("not heard of", Tone::Idle, ""),
    }
}

pub fn plural(number: u64, one: &str) -> String {
    format!("{number} {one}{}", if number == 1 { "" } else { "s" })
}

/// A time as people say it, from seconds.
pub fn duration(seconds: f64) -> String {
    match seconds.max(0.0) {
        seconds if !seconds.is_finite() => "unknown time".to_owned(),
        seconds if seconds < 90.0 => format!("{seconds:.0} s"),
        seconds if seconds < 5_400.0 => format!("{:.0} min", seconds / 60.0),
        seconds if seconds < 172_800.0 => format!("{:.1} h", seconds / 3_600.0),
        seconds => format!("{:.0} days", seconds / 86_400.0),
    }
}

/// A text of somebody else, for a terminal: what would move the cursor, or turn the direction of writing, is a space.
pub fn plain(text: &str) -> String {
    let turns = |letter| matches!(letter, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    text.chars().map(|letter| if letter.is_control() || turns(letter) { ' ' } else { letter }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::watch::sample;

    #[test]
    fn a_peer_that_is_gone_says_so_whatever_it_was_at() {
        let mut status = sample::status();
        for phase in [Phase::Training, Phase::Announced, Phase::Waiting, Phase::Following, Phase::Failed] {
            status.phase = phase;
            assert_eq!(doing(&status, false).word, "not running");
            assert_ne!(doing(&status, true).word, "not running");
        }
        status.phase = Phase::Training;
        assert!(doing(&status, true).sentence().starts_with("training: epoch 1/3, step 45/100, loss 1.2500"), "{status:?}");
        status.training = None;
        assert_eq!(doing(&status, true).word, "loading");
    }

    #[test]
    fn each_slot_has_its_word() {
        let status = sample::status();
        let words: Vec<_> = status.slots.iter().map(|slot| standing(slot, &status).word).collect();
        assert_eq!(words, ["merged", "merged, clipped", "fetching", "refused", "candidate", "conflict", "announced", "here", "withdrawn"]);
        let notes: Vec<_> = status.slots.iter().map(|slot| standing(slot, &status).sentence()).collect();
        assert_eq!(notes[2], "fetching: 1 KiB of 2 KiB");
        assert_eq!(notes[4], "candidate: 1 of 2 approvals");
    }

    #[test]
    fn times_are_told_in_the_unit_people_use() {
        let told: Vec<_> = [-1.0, 0.4, 89.0, 91.0, 7_200.0, 864_000.0, f64::INFINITY].into_iter().map(duration).collect();
        assert_eq!(told, ["0 s", "0 s", "89 s", "2 min", "2.0 h", "10 days", "unknown time"]);
    }

    #[test]
    fn texts_of_others_cannot_move_the_cursor_or_turn_the_line() {
        assert_eq!(plain("a\u{1b}[2J\nb\u{9b}1A\u{7f}\u{202e}c"), "a [2J b 1A  c");
        assert_eq!(plain("größe 東京 🦀"), "größe 東京 🦀");
    }
}
