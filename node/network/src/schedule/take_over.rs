//! The end of a download, and its slow spots: pieces that one peer was asked for are asked of another.

use std::time::Duration;

use super::{Schedule, Step};

/// A piece that a peer has not begun to send is taken over when it would be here so many times sooner.
const TAKE_OVER: f64 = 1.5;
/// A piece that is on its way is asked for once more when it would be here so many times sooner.
const REPEAT: f64 = 3.0;
/// Seconds: less gain is not worth that it may come twice. What is asked for may be in the buffers between already, and what
/// is dropped then comes all the same.
const GAIN_MIN: f64 = 2.0;
/// A piece that would come later than this, and much sooner from somebody else, may be asked for twice whatever the bound.
const LATE_SECONDS: f64 = 15.0;
/// A peer that was asked and has shown no speed is given so long before it counts as slow.
const FIRST_BYTES: Duration = Duration::from_secs(1);

impl<P: Copy + Ord> Schedule<P> {
    /// An idle peer helps where it is slowest: the piece that would come last and that it brings much sooner.
    pub(super) fn take_over(&mut self, helper: P, now: Duration, steps: &mut Vec<Step<P>>) {
        let fastest = self.peers.values().filter_map(|peer| peer.rate.per_second(now)).fold(0.0, f64::max);
        let Some(idle) = self.peers.get(&helper) else { return };
        // Nothing is known of a newcomer: it deserves one try.
        let speed = idle.rate.per_second(now).unwrap_or(fastest);
        let mut best: Option<(f64, P, u32, bool)> = None;
        for (piece, entry) in (0..).zip(&self.pieces) {
            // The last to be asked; those before it have shown to be slow.
            let Some(owner) = entry.askers.last().copied() else { continue };
            if entry.left == 0 || entry.askers.contains(&helper) || !idle.holds.has(piece) {
                continue;
            }
            let Some(slow) = self.peers.get(&owner) else { continue };
            if entry.askers.len() > 1 && !self.is_silent(slow, now) {
                continue;
            }
            let waited = now.saturating_sub(slow.heard);
            let place = slow.queue.iter().position(|queued| *queued == piece).unwrap_or(0);
            let ahead: u64 =
                slow.queue.iter().take(place + 1).filter_map(|queued| self.pieces.get(*queued as usize)).map(|piece| piece.left).sum();
            let silent = self.is_silent(slow, now);
            let there = match slow.rate.per_second(now) {
                _ if silent || slow.waiting => f64::INFINITY,
                Some(rate) if rate > 0.0 => ahead as f64 / rate,
                _ if waited >= FIRST_BYTES.max(self.long_silence() / 2) => f64::INFINITY,
                _ => continue,
            };
            let here = if speed > 0.0 { entry.left as f64 / speed } else { f64::INFINITY };
            let begun = place == 0 && !slow.waiting;
            let factor = if begun { REPEAT } else { TAKE_OVER };
            let better = silent || slow.waiting || (there > here * factor && there - here > GAIN_MIN);
            let late = there.is_finite() && there > LATE_SECONDS;
            let allowed = !begun || silent || late || self.repeated + entry.left <= self.repeated_max;
            if better && allowed && best.as_ref().is_none_or(|(worst, ..)| there > *worst) {
                best = Some((there, owner, piece, begun));
            }
        }
        let Some((_, owner, piece, begun)) = best else { return };
        if begun {
            self.repeated += self.pieces.get(piece as usize).map_or(0, |piece| piece.left);
        } else {
            self.unqueue(owner, piece, now);
            self.unask(owner, piece);
            steps.push(Step::Drop { peer: owner, piece });
        }
        self.ask(helper, piece, now);
        steps.push(Step::Ask { peer: helper, piece });
    }
}
