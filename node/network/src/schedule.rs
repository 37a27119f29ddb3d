//! Which piece is asked of whom. Pure: no socket, no clock (time is handed in), dice from a seed.
//!
//! Random pieces until a few are complete, so that peers soon have something to offer each other; then the rarest first,
//! ties by lot. Everybody has one to a few pieces outstanding, by speed. Who has nothing left to ask for takes pieces
//! over from peers that are much slower, or asks a second time for the last ones; whoever comes second is told to stop.
//! What may be asked twice is bounded, except of peers that have gone silent or would take very long.

mod take_over;

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use crate::pieces::{Bits, Holds};
use crate::rate::Rate;

/// So many pieces are chosen by lot before rarity counts.
const BY_LOT: u32 = 4;
/// Pieces outstanding at a peer who is the only one: one on its way, one behind it.
const DEPTH_ALONE: usize = 2;
/// Pieces outstanding at a fast peer.
const DEPTH_MAX: usize = 4;
/// The same for blobs of small pieces, where four would be too little to fill a long link.
const DEPTH_MAX_SMALL: usize = 8;
const SMALL_PIECE_BYTES: u64 = 2 << 20;
/// Work for so long is outstanding at a peer.
const DEPTH_SECONDS: f64 = 0.5;
/// A peer of which something is outstanding and from which nothing has come for so long is silent, or for so many times as long
/// as peers take to answer here: where all wait long, whoever is asked a second time only adds to it.
const SILENT: Duration = Duration::from_secs(3);
const SILENT_ANSWERS: u32 = 3;
/// Whoever is silent for longer is silent however slow the others are.
const SILENT_MAX: Duration = Duration::from_secs(10);
/// Of a blob, at most this part is asked for twice, other than from peers that have fallen silent.
const REPEATED_PART: u64 = 64;

/// Of what is outstanding at one peer, no more than this is on its way: a block being sent, and the next one ready.
const ON_ITS_WAY_MAX: u64 = 1 << 20;

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
    /// When it was asked after a pause, until it has answered.
    asked: Option<Duration>,
}

pub struct Schedule<P> {
    pieces: Vec<Piece<P>>,
    peers: BTreeMap<P, Peer>,
    piece_bytes: u64,
    dice: Dice,
    complete: u32,
    repeated: u64,
    repeated_max: u64,
    /// How long peers took to answer, the last ones counting most.
    answers: Duration,
}

impl<P: Copy + Ord> Schedule<P> {
    /// `pieces` are the bytes of each piece, and how many of them are missing.
    pub fn new(pieces: impl IntoIterator<Item = (u64, u64)>, seed: u64) -> Self {
        let piece = |(bytes, left)| Piece { left, bytes, holders: 0, askers: Vec::new() };
        let pieces: Vec<Piece<P>> = pieces.into_iter().map(piece).collect();
        let (piece_bytes, repeated_max) = bounds(&pieces);
        Self {
            pieces,
            peers: BTreeMap::new(),
            piece_bytes,
            dice: Dice(seed),
            complete: 0,
            repeated: 0,
            repeated_max,
            answers: Duration::ZERO,
        }
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
        self.peers.insert(peer, Peer { holds, queue: VecDeque::new(), rate: Rate::default(), heard: now, waiting: false, asked: None });
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
        self.heard(peer, bytes, now);
        if let Some(peer) = self.peers.get_mut(&peer) {
            peer.waiting = false;
        }
        if let Some(piece) = self.pieces.get_mut(piece as usize) {
            piece.left = piece.left.saturating_sub(new);
        }
    }

    /// A peer is at work on what was asked of it, and so many bytes of it came: slow as it may be, to ask others for the same
    /// would load the line that all of them share. Without a byte, it serves others first and has not begun.
    pub fn alive(&mut self, peer: P, bytes: u64, now: Duration) {
        self.heard(peer, bytes, now);
    }

    fn heard(&mut self, peer: P, bytes: u64, now: Duration) {
        let Some(peer) = self.peers.get_mut(&peer) else { return };
        peer.rate.moved(bytes, now);
        (peer.heard, peer.waiting) = (now, bytes == 0);
        if let Some(asked) = peer.asked.take() {
            self.answers = (self.answers * 7 + now.saturating_sub(asked)) / 8;
        }
    }

    fn is_silent(&self, peer: &Peer, now: Duration) -> bool {
        !peer.queue.is_empty() && now.saturating_sub(peer.heard) >= self.long_silence()
    }

    fn long_silence(&self) -> Duration {
        (self.answers * SILENT_ANSWERS).clamp(SILENT, SILENT_MAX)
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

    /// Bytes that may be on their way here, from peers that are not silent.
    pub fn on_its_way(&self, now: Duration) -> u64 {
        self.peers.values().filter(|peer| !self.is_silent(peer, now)).map(|peer| self.on_its_way_from(peer)).sum()
    }

    fn on_its_way_from(&self, peer: &Peer) -> u64 {
        let left = |piece: &u32| self.pieces.get(*piece as usize).map_or(0, |piece| piece.left);
        peer.queue.iter().map(left).sum::<u64>().min(ON_ITS_WAY_MAX)
    }

    /// What is to be asked now, where so many bytes more may be on their way; one piece may be in any case.
    pub fn plan(&mut self, now: Duration, room: u64) -> Vec<Step<P>> {
        let mut steps = Vec::new();
        let bound = self.on_its_way(now).saturating_add(room).max(1);
        let mut peers: Vec<P> = self.peers.keys().copied().collect();
        self.dice.shuffle(&mut peers);
        // One piece each in turn: nobody takes everything because it comes first.
        let mut open = peers.clone();
        while !open.is_empty() {
            open.retain(|peer| {
                let place = self.on_its_way(now) < bound
                    && self.peers.get(peer).is_some_and(|entry| entry.queue.len() < self.depth(entry, now) && !self.is_silent(entry, now));
                let piece = if place { self.free(*peer) } else { None };
                piece.is_some_and(|piece| {
                    self.ask(*peer, piece, now);
                    steps.push(Step::Ask { peer: *peer, piece });
                    true
                })
            });
        }
        // Who could be asked for something new only waits for room.
        for peer in peers {
            if self.peers.get(&peer).is_some_and(|entry| entry.queue.is_empty()) && self.free(peer).is_none() {
                self.take_over(peer, now, &mut steps);
            }
        }
        steps
    }

    /// A second piece waits at a slow peer only where nobody else keeps the line busy meanwhile: what has to be taken from it
    /// again may be on its way already.
    fn depth(&self, peer: &Peer, now: Duration) -> usize {
        let max = if self.piece_bytes <= SMALL_PIECE_BYTES { DEPTH_MAX_SMALL } else { DEPTH_MAX };
        let least = if self.peers.len() > 1 { 1 } else { DEPTH_ALONE };
        let wanted = peer.rate.per_second(now).map_or(0.0, |rate| rate * DEPTH_SECONDS / self.piece_bytes as f64);
        let behind = if wanted < 0.5 { 0 } else { 1 };
        (wanted.ceil() as usize + behind).clamp(least, max)
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

    fn ask(&mut self, peer: P, piece: u32, now: Duration) {
        if let (Some(entry), Some(asked)) = (self.peers.get_mut(&peer), self.pieces.get_mut(piece as usize)) {
            if entry.queue.is_empty() {
                entry.rate.work(now);
                entry.heard = now;
                entry.asked = Some(now);
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
                entry.asked = None;
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
