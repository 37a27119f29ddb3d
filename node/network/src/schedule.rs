//! Which piece is asked of whom. Pure: no socket, no clock (time is handed in), dice from a seed.
//!
//! Random pieces until a few are complete, so that peers soon have something to offer each other; then the rarest first,
//! ties by lot. Everybody has two to a few pieces outstanding, by speed. Who has nothing left to ask for takes pieces
//! over from peers that are much slower, or asks a second time for the last ones; whoever comes second is told to stop.
//! What may be asked twice is bounded, except of peers that have gone silent or would take very long.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use crate::pieces::{Bits, Holds};
use crate::rate::Rate;

/// So many pieces are chosen by lot before rarity counts.
const BY_LOT: u32 = 4;
/// Pieces outstanding at a peer of which nothing is known yet, and at slow ones: one on its way, one behind it.
const DEPTH_MIN: usize = 2;
/// Pieces outstanding at a fast peer.
const DEPTH_MAX: usize = 4;
/// The same for blobs of small pieces, where four would be too little to fill a long link.
const DEPTH_MAX_SMALL: usize = 8;
const SMALL_PIECE_BYTES: u64 = 2 << 20;
/// Work for so long is outstanding at a peer.
const DEPTH_SECONDS: f64 = 0.5;
/// A piece that a peer has not begun to send is taken over when it would be here so many times sooner.
const TAKE_OVER: f64 = 1.5;
/// A piece that is on its way is asked for once more when it would be here so many times sooner.
const REPEAT: f64 = 3.0;
/// Seconds: less gain is not worth that it may come twice. What is asked for may be in the buffers between already, and what
/// is dropped then comes all the same.
const GAIN_MIN: f64 = 1.0;
/// A peer of which something is outstanding and from which nothing has come for so long is silent.
const SILENT: Duration = Duration::from_secs(3);
/// A piece that would come later than this, and much sooner from somebody else, may be asked for twice whatever the bound.
const LATE_SECONDS: f64 = 15.0;
/// A peer that was asked and has shown no speed is given so long before it counts as slow.
const FIRST_BYTES: Duration = Duration::from_secs(1);
/// Of a blob, at most this part is asked for twice, other than from peers that have fallen silent.
const REPEATED_PART: u64 = 32;

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step<P> {
    Ask { peer: P, piece: u32 },
    Drop { peer: P, piece: u32 },
}

struct Piece<P> {
    /// Missing bytes; nothing is left of a complete piece.
    left: u64,
    bytes: u64,
    /// How many peers with a part of the blob hold it; those that hold all make no difference.
    holders: u32,
    askers: Vec<P>,
}

struct Peer {
    holds: Holds,
    /// In the order in which they were asked.
    queue: VecDeque<u32>,
    rate: Rate,
    /// When it last showed that it is at work, or was first asked after a pause.
    heard: Duration,
    /// It has said that others are served first.
    waiting: bool,
}

impl Peer {
    fn is_silent(&self, now: Duration) -> bool {
        !self.queue.is_empty() && now.saturating_sub(self.heard) >= SILENT
    }
}

pub struct Schedule<P> {
    pieces: Vec<Piece<P>>,
    peers: BTreeMap<P, Peer>,
    piece_bytes: u64,
    dice: Dice,
    complete: u32,
    repeated: u64,
    repeated_max: u64,
}

impl<P: Copy + Ord> Schedule<P> {
    /// `pieces` are the bytes of each piece, and how many of them are missing.
    pub fn new(pieces: impl IntoIterator<Item = (u64, u64)>, seed: u64) -> Self {
        let piece = |(bytes, left)| Piece { left, bytes, holders: 0, askers: Vec::new() };
        let pieces: Vec<Piece<P>> = pieces.into_iter().map(piece).collect();
        let (piece_bytes, repeated_max) = bounds(&pieces);
        Self { pieces, peers: BTreeMap::new(), piece_bytes, dice: Dice(seed), complete: 0, repeated: 0, repeated_max }
    }

    pub fn is_complete(&self) -> bool {
        self.missing() == 0
    }

    /// Pieces that are not complete.
    pub fn missing(&self) -> usize {
        self.pieces.iter().filter(|piece| piece.left > 0).count()
    }

    /// A peer says what it holds; it may be asked from now on.
    pub fn holds(&mut self, peer: P, holds: Holds, now: Duration) {
        self.gone(peer);
        if let Holds::Some(bits) = &holds {
            bits.ones().for_each(|piece| self.count(piece, 1));
        }
        self.peers.insert(peer, Peer { holds, queue: VecDeque::new(), rate: Rate::default(), heard: now, waiting: false });
    }

    /// A peer has come to hold another piece.
    pub fn has(&mut self, peer: P, piece: u32) {
        if let Some(Peer { holds: Holds::Some(bits), .. }) = self.peers.get_mut(&peer)
            && bits.set(piece)
        {
            self.count(piece, 1);
        }
    }

    /// A peer cannot be asked any more; what was asked of it is free again.
    pub fn gone(&mut self, peer: P) {
        let Some(Peer { holds, queue, .. }) = self.peers.remove(&peer) else { return };
        if let Holds::Some(bits) = holds {
            bits.ones().for_each(|piece| self.count(piece, -1));
        }
        queue.into_iter().for_each(|piece| self.unask(peer, piece));
    }

    /// A peer sent `bytes` of `piece`, of which `new` were missing before.
    pub fn moved(&mut self, peer: P, piece: u32, bytes: u64, new: u64, now: Duration) {
        if let Some(peer) = self.peers.get_mut(&peer) {
            peer.rate.moved(bytes, now);
            (peer.heard, peer.waiting) = (now, false);
        }
        if let Some(piece) = self.pieces.get_mut(piece as usize) {
            piece.left = piece.left.saturating_sub(new);
        }
    }

    /// A peer is at work on what was asked of it, and so many bytes of it came: slow as it may be, to ask others for the same
    /// would load the line that all of them share. Without a byte, it serves others first and has not begun.
    pub fn alive(&mut self, peer: P, bytes: u64, now: Duration) {
        if let Some(peer) = self.peers.get_mut(&peer) {
            peer.rate.moved(bytes, now);
            (peer.heard, peer.waiting) = (now, bytes == 0);
        }
    }

    /// The piece is complete; whoever else was asked for it is to stop.
    pub fn finished(&mut self, piece: u32, by: P, now: Duration) -> Vec<Step<P>> {
        let Some(entry) = self.pieces.get_mut(piece as usize) else { return Vec::new() };
        entry.left = 0;
        self.complete += 1;
        let askers = std::mem::take(&mut entry.askers);
        askers.iter().for_each(|peer| self.unqueue(*peer, piece, now));
        askers.into_iter().filter(|peer| *peer != by).map(|peer| Step::Drop { peer, piece }).collect()
    }

    /// What was asked of the peer has ended, but `left` bytes of the piece are missing still.
    pub fn released(&mut self, peer: P, piece: u32, left: u64, now: Duration) {
        self.unqueue(peer, piece, now);
        self.unask(peer, piece);
        if let Some(piece) = self.pieces.get_mut(piece as usize) {
            piece.left = left;
        }
    }

    /// Other bytes are wanted of each piece, or missing of it, than was said; nobody has been asked for one yet.
    pub fn resize(&mut self, pieces: impl IntoIterator<Item = (u64, u64)>) {
        for (piece, (bytes, left)) in self.pieces.iter_mut().zip(pieces) {
            (piece.bytes, piece.left) = (bytes, left);
        }
        (self.piece_bytes, self.repeated_max) = bounds(&self.pieces);
    }

    /// Who holds all of these.
    pub fn holders(&self, pieces: &[u32]) -> Vec<P> {
        let holds = |(peer, entry): (&P, &Peer)| pieces.iter().all(|piece| entry.holds.has(*piece)).then_some(*peer);
        self.peers.iter().filter_map(holds).collect()
    }

    /// The peer does not hold the piece after all.
    pub fn lacks(&mut self, peer: P, piece: u32, now: Duration) {
        self.unqueue(peer, piece, now);
        self.unask(peer, piece);
        let Some(entry) = self.peers.get_mut(&peer) else { return };
        let mut without = Bits::none(u32::try_from(self.pieces.len()).unwrap_or(u32::MAX));
        let kept: Vec<u32> = (0..self.pieces.len() as u32).filter(|other| *other != piece && entry.holds.has(*other)).collect();
        kept.into_iter().for_each(|other| _ = without.set(other));
        let Peer { queue, rate, .. } = entry;
        let (queue, rate) = (std::mem::take(queue), *rate);
        let counted = matches!(entry.holds, Holds::Some(_));
        let held = entry.holds.has(piece);
        entry.holds = Holds::Some(without.clone());
        (entry.queue, entry.rate) = (queue, rate);
        match counted {
            true if held => self.count(piece, -1),
            true => {}
            false => without.ones().for_each(|other| self.count(other, 1)),
        }
    }

    /// Whether something is outstanding anywhere.
    pub fn is_waiting(&self) -> bool {
        self.peers.values().any(|peer| !peer.queue.is_empty())
    }

    /// Bytes a second of a peer, and whether something is outstanding at it.
    pub fn rate(&self, peer: P, now: Duration) -> (f64, bool) {
        self.peers.get(&peer).map_or((0.0, false), |peer| (peer.rate.per_second(now).unwrap_or(0.0), !peer.queue.is_empty()))
    }

    /// What is to be asked now.
    pub fn plan(&mut self, now: Duration) -> Vec<Step<P>> {
        let mut steps = Vec::new();
        let mut peers: Vec<P> = self.peers.keys().copied().collect();
        self.dice.shuffle(&mut peers);
        // One piece each in turn: nobody takes everything because it comes first.
        let mut open = peers.clone();
        while !open.is_empty() {
            open.retain(|peer| {
                let place = self.peers.get(peer).is_some_and(|entry| entry.queue.len() < self.depth(entry, now) && !entry.is_silent(now));
                let piece = if place { self.free(*peer) } else { None };
                piece.is_some_and(|piece| {
                    self.ask(*peer, piece, now);
                    steps.push(Step::Ask { peer: *peer, piece });
                    true
                })
            });
        }
        for peer in peers {
            if self.peers.get(&peer).is_some_and(|entry| entry.queue.is_empty()) {
                self.take_over(peer, now, &mut steps);
            }
        }
        steps
    }

    fn depth(&self, peer: &Peer, now: Duration) -> usize {
        let max = if self.piece_bytes <= SMALL_PIECE_BYTES { DEPTH_MAX_SMALL } else { DEPTH_MAX };
        let wanted = peer.rate.per_second(now).map_or(0.0, |rate| rate * DEPTH_SECONDS / self.piece_bytes as f64);
        (wanted.ceil() as usize + 1).clamp(DEPTH_MIN, max)
    }

    /// The piece to ask of `peer`: one that was begun, then by lot, then the rarest.
    fn free(&mut self, peer: P) -> Option<u32> {
        let holds = &self.peers.get(&peer)?.holds;
        let by_lot = self.complete < BY_LOT;
        let mut best: Option<(u32, u32)> = None;
        let mut ties = 0;
        for (piece, entry) in (0..).zip(&self.pieces) {
            if entry.left == 0 || !entry.askers.is_empty() || !holds.has(piece) {
                continue;
            }
            let key = match (entry.left < entry.bytes, by_lot) {
                (true, _) => 0,
                (false, true) => 1,
                (false, false) => 1 + entry.holders,
            };
            match best {
                Some((found, _)) if found < key => {}
                Some((found, _)) if found == key => {
                    ties += 1;
                    if self.dice.below(ties) == 0 {
                        best = Some((key, piece));
                    }
                }
                _ => {
                    ties = 1;
                    best = Some((key, piece));
                }
            }
        }
        best.map(|(_, piece)| piece)
    }

    /// An idle peer helps where it is slowest: the piece that would come last and that it brings much sooner.
    fn take_over(&mut self, helper: P, now: Duration, steps: &mut Vec<Step<P>>) {
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
            if entry.askers.len() > 1 && !slow.is_silent(now) {
                continue;
            }
            let waited = now.saturating_sub(slow.heard);
            let place = slow.queue.iter().position(|queued| *queued == piece).unwrap_or(0);
            let ahead: u64 =
                slow.queue.iter().take(place + 1).filter_map(|queued| self.pieces.get(*queued as usize)).map(|piece| piece.left).sum();
            let silent = slow.is_silent(now);
            let there = match slow.rate.per_second(now) {
                _ if silent || slow.waiting => f64::INFINITY,
                Some(rate) if rate > 0.0 => ahead as f64 / rate,
                _ if waited >= FIRST_BYTES => f64::INFINITY,
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

    fn ask(&mut self, peer: P, piece: u32, now: Duration) {
        if let (Some(entry), Some(asked)) = (self.peers.get_mut(&peer), self.pieces.get_mut(piece as usize)) {
            if entry.queue.is_empty() {
                entry.rate.work(now);
                entry.heard = now;
            }
            entry.queue.push_back(piece);
            asked.askers.push(peer);
        }
    }

    fn unask(&mut self, peer: P, piece: u32) {
        if let Some(entry) = self.pieces.get_mut(piece as usize) {
            entry.askers.retain(|asker| *asker != peer);
        }
    }

    fn unqueue(&mut self, peer: P, piece: u32, now: Duration) {
        if let Some(entry) = self.peers.get_mut(&peer) {
            entry.queue.retain(|queued| *queued != piece);
            if entry.queue.is_empty() {
                entry.rate.rest(now);
            }
        }
    }

    fn count(&mut self, piece: u32, by: i32) {
        if let Some(piece) = self.pieces.get_mut(piece as usize) {
            piece.holders = piece.holders.saturating_add_signed(by);
        }
    }
}

/// The bytes of the largest piece, and how many may be asked for twice.
fn bounds<P>(pieces: &[Piece<P>]) -> (u64, u64) {
    let piece_bytes = pieces.iter().map(|piece| piece.bytes).max().unwrap_or(1).max(1);
    (piece_bytes, pieces.iter().map(|piece| piece.bytes).sum::<u64>() / REPEATED_PART)
}

/// SplitMix64: good enough to break ties.
pub(crate) struct Dice(pub u64);

impl Dice {
    pub fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        self.roll() % bound.max(1)
    }

    fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.below(last as u64 + 1) as usize);
        }
    }
}

#[cfg(test)]
mod tests;
