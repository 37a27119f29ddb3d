//! How a blob comes: providers are asked one after another, some are busy, slow, gone or liars, and what came stays.

use std::collections::BTreeMap;

use mingle_protocol::hash::ContentHash;
use mingle_protocol::machine::Input;

use crate::Name;
use crate::figures::{BUSY_DOUBLINGS, BUSY_MAX, BUSY_PAUSE, FAILURE_PAUSE, FAILURES_MAX, OPEN_MAX, PATIENCE, SERVED_MAX, STALL};
use crate::peer::Presence;
use crate::wire::pair;
use crate::world::{Event, World};

pub struct Transfer {
    ticket: u64,
    size: u64,
    begun: u64,
    providers: BTreeMap<Name, Provider>,
    step: Step,
}

struct Provider {
    /// The announcer itself; others are asked when no announcer can be.
    named: bool,
    failures: u32,
    busy: u32,
    not_before: u64,
    /// Nothing comes from it; the watchdog gives it up at `not_before`, and others are asked meanwhile.
    stalled: bool,
    out: bool,
}

#[derive(Clone, Copy)]
enum Step {
    Choosing,
    Asking(Name),
    Receiving { from: Name, life: u32 },
}

impl Provider {
    fn new(named: bool) -> Self {
        Self { named, failures: 0, busy: 0, not_before: 0, stalled: false, out: false }
    }
}

impl World {
    pub fn begin_fetch(&mut self, at: Name, adapter: ContentHash, size: u64) {
        self.note(at, "fetches", u64::from(adapter.0[0]));
        let peer = &self.peers[at];
        if peer.transfers.contains_key(&adapter) {
            return;
        }
        let announcers = peer.machine.ledger().admitted().filter(|entry| (entry.adapter, entry.size) == (adapter, size));
        let named: Vec<Name> = announcers.filter_map(|entry| self.voices.get(&entry.member).copied()).filter(|name| *name != at).collect();
        let providers = named.into_iter().map(|name| (name, Provider::new(true))).collect();
        self.tickets += 1;
        let transfer = Transfer { ticket: self.tickets, size, begun: self.agenda.now(), providers, step: Step::Choosing };
        let ticket = transfer.ticket;
        self.peers[at].transfers.insert(adapter, transfer);
        self.transfer_later(at, adapter, ticket, 0);
    }

    fn transfer_later(&mut self, at: Name, adapter: ContentHash, ticket: u64, wait: u64) {
        let visit = self.visit(at);
        self.agenda.after(wait, Event::Transfer { at: visit, adapter, ticket });
    }

    /// Cancelled, done or failed: the provider's place is free again.
    pub fn end_transfer(&mut self, at: Name, adapter: &ContentHash) {
        if let Some(transfer) = self.peers[at].transfers.remove(adapter) {
            self.free(transfer.step);
        }
    }

    fn free(&mut self, step: Step) {
        if let Step::Receiving { from, life } = step
            && self.peers[from].life == life
        {
            self.peers[from].serving = self.peers[from].serving.saturating_sub(1);
        }
    }

    /// All transfers of a process that is gone.
    pub fn end_transfers(&mut self, at: Name) {
        for (_, transfer) in std::mem::take(&mut self.peers[at].transfers) {
            self.free(transfer.step);
        }
    }

    pub fn transfer(&mut self, at: Name, adapter: ContentHash, ticket: u64) {
        let Some(transfer) = self.peers[at].transfers.get(&adapter).filter(|transfer| transfer.ticket == ticket) else { return };
        match transfer.step {
            Step::Choosing => self.choose_provider(at, adapter),
            Step::Asking(provider) => self.ask_provider(at, adapter, provider),
            Step::Receiving { from, life } => self.received(at, adapter, from, life),
        }
    }

    fn step(&mut self, at: Name, adapter: ContentHash, step: Step, wait: u64) {
        if let Some(transfer) = self.peers[at].transfers.get_mut(&adapter) {
            transfer.step = step;
            let ticket = transfer.ticket;
            self.transfer_later(at, adapter, ticket, wait);
        }
    }

    fn choose_provider(&mut self, at: Name, adapter: ContentHash) {
        let now = self.agenda.now();
        let salt = self.dice.number();
        let peer = &mut self.peers[at];
        let Some(transfer) = peer.transfers.get_mut(&adapter) else { return };
        if let Some(right) = peer.disk.blobs.get(&adapter) {
            // Stored by other means meanwhile, perhaps with another size than was asked for.
            let size = self.ground.file(&adapter).map(|file| file.bytes.len() as u64);
            let input = match size {
                Some(size) if *right && size == transfer.size => Input::BlobStored { adapter, size },
                _ => Input::BlobFailed { adapter },
            };
            self.end_transfer(at, &adapter);
            return self.input(at, input);
        }
        let given_up: Vec<Name> = transfer
            .providers
            .iter()
            .filter(|(_, provider)| provider.stalled && provider.not_before <= now)
            .map(|(name, _)| *name)
            .collect();
        for provider in transfer.providers.values_mut().filter(|provider| provider.stalled && provider.not_before <= now) {
            (provider.stalled, provider.out) = (false, true);
        }
        let ready = |provider: &Provider| !provider.out && provider.not_before <= now;
        if !transfer.providers.values().any(|provider| provider.named && ready(provider)) {
            for neighbour in &peer.neighbours {
                transfer.providers.entry(*neighbour).or_insert_with(|| Provider::new(false));
            }
        }
        // Equals are taken in an order that differs each time.
        let order = |name: &Name| salt.wrapping_mul(*name as u64 + 1).rotate_left(17);
        let chosen = transfer.providers.iter().filter(|(_, provider)| ready(provider));
        let chosen = chosen.min_by_key(|(name, provider)| (!provider.named, provider.failures, order(name))).map(|(name, _)| *name);
        // While nothing comes, more and more are asked beside each other.
        let beside = 1 + (now - transfer.begun) / PATIENCE;
        let later = transfer.providers.values().filter(|provider| !provider.out).map(|provider| provider.not_before).min();
        for provider in given_up {
            // The watchdog's second half: a connection that carries nothing blocks whoever shares it.
            self.sever(at, provider, 0, 100);
        }
        match (chosen, later) {
            (Some(provider), _) => {
                let wait = (self.way(at, provider) + self.way(provider, at)) / beside;
                self.step(at, adapter, Step::Asking(provider), wait);
            }
            (None, Some(until)) => self.step(at, adapter, Step::Choosing, until - now),
            (None, None) => {
                self.note(at, "fails to fetch", u64::from(adapter.0[0]));
                self.end_transfer(at, &adapter);
                self.input(at, Input::BlobFailed { adapter });
            }
        }
    }

    fn ask_provider(&mut self, at: Name, adapter: ContentHash, from: Name) {
        if !self.links.contains_key(&pair(at, from)) {
            // "Not connected" is said at once, and the connection opened meanwhile.
            self.reach(at, from);
            return self.provider_failed(at, adapter, from);
        }
        if self.is_blocked(at, from) || self.is_blocked(from, at) || self.peers[from].paused_until > self.agenda.now() {
            return self.provider_stalls(at, adapter, from, OPEN_MAX);
        }
        if self.peers[from].hostile {
            return match self.dice.below(4) {
                0 => self.provider_stalls(at, adapter, from, STALL),
                _ => self.provider_out(at, adapter, from),
            };
        }
        let Some(size) = self.peers[at].transfers.get(&adapter).map(|transfer| transfer.size) else { return };
        match self.peers[from].disk.blobs.get(&adapter) {
            Some(true) if self.ground.file(&adapter).is_none_or(|file| file.bytes.len() as u64 != size) => {
                self.provider_out(at, adapter, from);
            }
            Some(true) if self.peers[from].serving >= SERVED_MAX => self.provider_busy(at, adapter, from),
            Some(true) => {
                self.peers[from].serving += 1;
                let life = self.peers[from].life;
                let slow = if self.peers[from].slow || self.peers[at].slow { 4 } else { 1 };
                let there = self.peers[at].disk.parts.get(&adapter).copied().unwrap_or_default();
                let takes = self.setting.blob.draw(&mut self.dice) * slow * (1_000 - there.min(999)) / 1_000;
                self.step(at, adapter, Step::Receiving { from, life }, 1 + takes);
            }
            Some(false) => {
                // Its owner finds out while it reads.
                self.peers[from].disk.blobs.remove(&adapter);
                self.input(from, Input::BlobLost { adapter });
                self.provider_failed(at, adapter, from);
            }
            None => self.provider_out(at, adapter, from),
        }
    }

    fn received(&mut self, at: Name, adapter: ContentHash, from: Name, life: u32) {
        self.free(Step::Receiving { from, life });
        let there = self.links.contains_key(&pair(at, from)) && !self.is_blocked(from, at);
        let provider = &self.peers[from];
        if there && provider.life == life && provider.presence == Presence::Up && !self.by_chance(self.setting.loss / 4) {
            let peer = &mut self.peers[at];
            peer.transfers.remove(&adapter);
            peer.disk.parts.remove(&adapter);
            peer.disk.blobs.insert(adapter, true);
            let size = self.ground.file(&adapter).map_or(0, |file| file.bytes.len() as u64);
            self.input(at, Input::BlobStored { adapter, size });
        } else {
            let more = self.dice.below(1_000) as u64;
            let part = self.peers[at].disk.parts.entry(adapter).or_default();
            *part += (1_000 - *part) * more / 1_000;
            self.provider_failed(at, adapter, from);
        }
    }

    /// Then chooses again after `wait`.
    fn with_provider(&mut self, at: Name, adapter: ContentHash, from: Name, wait: u64, change: impl FnOnce(&mut Provider, u64)) {
        let now = self.agenda.now();
        if let Some(transfer) = self.peers[at].transfers.get_mut(&adapter)
            && let Some(provider) = transfer.providers.get_mut(&from)
        {
            change(provider, now);
        }
        self.step(at, adapter, Step::Choosing, wait);
    }

    fn provider_failed(&mut self, at: Name, adapter: ContentHash, from: Name) {
        self.with_provider(at, adapter, from, 0, |provider, now| {
            provider.not_before = now + (FAILURE_PAUSE << provider.failures.min(FAILURES_MAX));
            provider.failures += 1;
            provider.out |= provider.failures >= FAILURES_MAX;
        });
    }

    fn provider_stalls(&mut self, at: Name, adapter: ContentHash, from: Name, window: u64) {
        self.with_provider(at, adapter, from, PATIENCE, |provider, now| {
            (provider.stalled, provider.not_before) = (true, now + window);
        });
    }

    fn provider_busy(&mut self, at: Name, adapter: ContentHash, from: Name) {
        self.with_provider(at, adapter, from, 0, |provider, now| {
            provider.not_before = now + (BUSY_PAUSE << provider.busy.min(BUSY_DOUBLINGS));
            provider.busy += 1;
            provider.out |= provider.busy > BUSY_MAX;
        });
    }

    /// It does not have it, or lied: it is not asked again.
    fn provider_out(&mut self, at: Name, adapter: ContentHash, from: Name) {
        self.with_provider(at, adapter, from, 0, |provider, _| provider.out = true);
    }
}
