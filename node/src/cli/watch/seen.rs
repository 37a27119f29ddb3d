//! What was read of a peer at one moment, and what follows from it for people.
//!
//! A [`Seen`] holds no text that could move a cursor: there is no other way to make one than [`Seen::new`].

use std::path::Path;

use anyhow::Result;
use mingle_protocol::identity::MemberKey;
use serde_json::Value;

use crate::cli::words::{Said, Tone, doing, duration, plain, plural, standing, unheard};
use crate::driver::{History, SlotStatus, Status, unix_ms};

/// What a peer left in its home, as it is in the files.
///
/// # Errors
/// No status there, or one of another version. A history that cannot be read is empty: one may be written just now.
pub fn read(path: &Path) -> Result<(Status, History)> {
    let status = Status::read(path)?;
    let history = std::fs::read(path.with_file_name("history.json")).ok().and_then(|text| serde_json::from_slice(&text).ok());
    Ok((status, history.unwrap_or_default()))
}

/// A status and a history whose texts are plain, and when they were looked at.
#[derive(Clone, Debug)]
pub struct Seen {
    pub status: Status,
    pub history: History,
    /// Milliseconds since 1970.
    pub now: u128,
}

/// A member's line: what its slot holds, or what stands for one that was not heard of.
pub struct Row<'a> {
    pub member: MemberKey,
    pub said: Said,
    pub slot: Option<&'a SlotStatus>,
}

impl Seen {
    /// # Errors
    /// None that what was read from JSON could give.
    pub fn new((status, history): (Status, History), now: u128) -> Result<Self> {
        // Every text, whichever field a later version adds.
        let [mut status, mut history] = [serde_json::to_value(status)?, serde_json::to_value(history)?];
        make_plain(&mut status);
        make_plain(&mut history);
        Ok(Self { status: serde_json::from_value(status)?, history: serde_json::from_value(history)?, now })
    }

    /// # Errors
    /// As [`read`].
    pub fn look(path: &Path) -> Result<Self> {
        Self::new(read(path)?, unix_ms())
    }

    pub fn live(&self) -> bool {
        self.status.is_live_at(self.now)
    }

    /// How long ago something was, from milliseconds since 1970.
    pub fn ago(&self, unix_ms: u128) -> String {
        duration(self.now.saturating_sub(unix_ms) as f64 / 1000.0)
    }

    /// What the peer is at; since when it is gone, where it is.
    pub fn doing(&self) -> Said {
        let said = doing(&self.status, self.live());
        match self.live() {
            true => said,
            false => Said { note: format!("last heard {} ago", self.ago(self.status.updated_unix_ms)), ..said },
        }
    }

    /// Adapters that could be in the merge: those heard of, or as many as there are members.
    pub fn adapters_expected(&self) -> usize {
        let heard = self.status.slots.iter().filter(|slot| slot.adapter.is_some()).count();
        heard.max(self.status.roster.len()).max(self.status.merged.as_ref().map_or(0, |merged| merged.adapters))
    }

    pub fn merged(&self) -> String {
        let Some(merged) = &self.status.merged else { return "nothing yet".to_owned() };
        let of = plural(self.adapters_expected() as u64, "adapter");
        format!("{} of {of}, hash {}; {}", merged.adapters, merged.merged_hash.short(), self.vouching())
    }

    pub fn vouching(&self) -> String {
        let voices = self.status.vouching;
        format!("{} {} for these bytes", plural(voices as u64, "member"), if voices == 1 { "vouches" } else { "vouch" })
    }

    /// The newest merge that was scored: adapters in it, and the held-out loss.
    pub fn scored(&self) -> Option<(usize, f64)> {
        self.history.merges.iter().rev().find_map(|merge| Some((merge.adapters, merge.loss?)))
    }

    /// How far a loss is from the base alone, in words.
    pub fn gain(&self, loss: f64) -> Option<String> {
        let base = self.history.base_loss?;
        Some(format!("{:.3} {} the base", (loss - base).abs(), if loss <= base { "below" } else { "above" }))
    }

    pub fn score(&self) -> String {
        let Some((adapters, loss)) = self.scored() else { return "none yet".to_owned() };
        let gain = self.gain(loss).map(|gain| format!(", {gain}")).unwrap_or_default();
        format!("{loss:.3} with {}{gain}", plural(adapters as u64, "adapter"))
    }

    /// What somebody should look at, what is wrong first.
    pub fn warnings(&self) -> Vec<(Tone, String)> {
        let status = &self.status;
        let mut found = Vec::new();
        for fault in &status.faults {
            let [one, other] = fault.members.map(|member| member.short());
            let set = fault.set_root.short();
            found.push((
                Tone::Bad,
                format!("Contradiction: members {one} and {other} signed different merges of one set ({set}); evidence is kept"),
            ));
        }
        for slot in status.slots.iter().filter(|slot| slot.state == "conflict") {
            found.push((Tone::Bad, format!("Conflict: member {} signed two records at sequence {}", slot.member.short(), slot.sequence)));
        }
        for slot in &status.slots {
            if let Some(why) = &slot.refused {
                found.push((Tone::Bad, format!("Refused: the adapter of {}: {why}", slot.member.short())));
            }
        }
        if self.doing().tone == Tone::Bad {
            found.push((Tone::Bad, format!("Failed: {}", self.doing().note)));
        }
        if let Some(merged) = &status.merged {
            let named = |members: &[MemberKey]| members.iter().map(MemberKey::short).collect::<Vec<_>>().join(", ");
            if !merged.left_out.is_empty() {
                found.push((Tone::Warn, format!("Left out: the rule leaves out {}", named(&merged.left_out))));
            }
            if !merged.clipped.is_empty() {
                found.push((Tone::Warn, format!("Clipped: scaled down to the round's largest norm: {}", named(&merged.clipped))));
            }
        }
        found
    }

    /// All members that are known, this peer's own first.
    pub fn rows(&self) -> Vec<Row<'_>> {
        let status = &self.status;
        let mut rows: Vec<Row> =
            status.slots.iter().map(|slot| Row { member: slot.member, said: standing(slot, status), slot: Some(slot) }).collect();
        let own = (status.role == "member").then_some(status.member);
        for member in status.roster.iter().copied().chain(own) {
            if !rows.iter().any(|row| row.member == member) {
                rows.push(Row { member, said: unheard(member == status.member, status), slot: None });
            }
        }
        rows.sort_by_key(|row| row.member != status.member);
        rows
    }
}

fn make_plain(value: &mut Value) {
    match value {
        Value::String(text) => *text = plain(text),
        Value::Array(values) => values.iter_mut().for_each(make_plain),
        Value::Object(fields) => fields.values_mut().for_each(make_plain),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}
