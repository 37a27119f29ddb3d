//! The peers that may have a blob: who is talked to, who is tried when, who is out and why. Reads no clock.

use std::time::Duration;

use libp2p::PeerId;
use libp2p::swarm::ConnectionId;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use crate::guard::Offence;
use crate::limits::{BUSY_DOUBLINGS, BUSY_MAX, BUSY_PAUSE, PROVIDERS_MAX};
use crate::link::{LinkError, Order};
use crate::pieces::Holds;
use crate::transfers::{ProviderState, ProviderStatus};

/// How often a provider whose connection or stream failed, or who brought nothing, is tried again in one download.
const FAILURES_MAX: u32 = 4;
/// The pause after a provider's first failure; it doubles.
const FAILURE_PAUSE: Duration = Duration::from_millis(500);
/// The pause before a peer that did not have the blob is asked again: it may be fetching it too by then. It doubles.
const ABSENT_PAUSE: Duration = Duration::from_secs(3);
const ABSENT_DOUBLINGS: u32 = 4;
/// Peers that nobody named are asked about a large blob at once, about a small one only after this: it is here by then.
const SPREAD_AFTER: Duration = Duration::from_secs(1);
const SPREAD_BYTES: u64 = 16 << 20;

struct Provider {
    peer: PeerId,
    /// Named by the driver; others are asked only as far as `spread` says.
    named: bool,
    /// The conversation under way.
    orders: Option<mpsc::UnboundedSender<Order>>,
    /// Whether it is known to hold something.
    offers: bool,
    bytes: u64,
    /// Bytes that its conversation under way has brought.
    brought: u64,
    failures: u32,
    busy: u32,
    /// How often it did not have the blob.
    absent: u32,
    not_before: Instant,
    /// Why it is not asked again.
    out: Option<String>,
    /// Why it was not of use last.
    why: Option<String>,
}

/// What is to be said about a provider's end, beyond the download.
pub struct Verdict {
    pub offence: Option<Offence>,
    pub close: Option<ConnectionId>,
}

#[derive(Default)]
pub struct Providers(Vec<Provider>);

impl Providers {
    pub fn add(&mut self, peer: PeerId, named: bool, now: Instant) {
        if let Some(known) = self.find(peer) {
            known.named |= named;
            if known.absent > 0 {
                // Whoever speaks of it now may have it by now.
                known.not_before = now;
            }
        } else if self.0.len() < PROVIDERS_MAX {
            self.0.push(Provider {
                peer,
                named,
                orders: None,
                offers: false,
                bytes: 0,
                brought: 0,
                failures: 0,
                busy: 0,
                absent: 0,
                not_before: now,
                out: None,
                why: None,
            });
        }
    }

    fn find(&mut self, peer: PeerId) -> Option<&mut Provider> {
        self.0.iter_mut().find(|provider| provider.peer == peer)
    }

    /// Whom to talk to next. Peers that nobody named may hold the blob as well: they are asked when it is large, takes
    /// long, or nobody named is left.
    pub fn choose(&mut self, connected: &watch::Receiver<Vec<PeerId>>, size: u64, began: Instant, now: Instant) -> Option<PeerId> {
        let named =
            self.0.iter().any(|provider| provider.named && provider.out.is_none() && provider.absent == 0 && provider.failures == 0);
        let spread = !named || size >= SPREAD_BYTES || now.saturating_duration_since(began) >= SPREAD_AFTER;
        if spread {
            let connected = connected.borrow().clone();
            connected
                .into_iter()
                .filter(|peer| self.0.iter().all(|known| known.peer != *peer))
                .collect::<Vec<_>>()
                .into_iter()
                .for_each(|peer| self.add(peer, false, now));
        }
        let ready = self.0.iter().filter(|provider| provider.orders.is_none() && provider.out.is_none() && provider.not_before <= now);
        ready.min_by_key(|provider| (!provider.named, provider.absent, provider.failures, provider.busy)).map(|provider| provider.peer)
    }

    pub fn talk(&mut self, peer: PeerId, orders: mpsc::UnboundedSender<Order>) {
        if let Some(provider) = self.find(peer) {
            provider.orders = Some(orders);
            (provider.brought, provider.offers) = (0, true);
        }
    }

    pub fn is_talking(&self, peer: PeerId) -> bool {
        self.0.iter().any(|provider| provider.peer == peer && provider.orders.is_some())
    }

    pub fn talking(&self) -> impl Iterator<Item = PeerId> {
        self.0.iter().filter(|provider| provider.orders.is_some()).map(|provider| provider.peer)
    }

    /// Conversations that promise something.
    pub fn useful(&self) -> usize {
        self.0.iter().filter(|provider| provider.orders.is_some() && provider.offers).count()
    }

    pub fn order(&mut self, peer: PeerId, order: Order) {
        // A conversation that no longer listens has ended, which is heard of next.
        let _ = self.find(peer).and_then(|provider| provider.orders.as_ref()).map(|orders| orders.send(order));
    }

    pub fn holds(&mut self, peer: PeerId, holds: &Holds) {
        if let Some(provider) = self.find(peer) {
            provider.absent = 0;
            provider.offers = match holds {
                Holds::All => true,
                Holds::Some(bits) => bits.ones().next().is_some(),
            };
        }
    }

    pub fn offers(&mut self, peer: PeerId) {
        if let Some(provider) = self.find(peer) {
            provider.offers = true;
        }
    }

    pub fn brought(&mut self, peer: PeerId, bytes: u64) {
        if let Some(provider) = self.find(peer) {
            provider.bytes += bytes;
            provider.brought += bytes;
            (provider.failures, provider.busy) = (0, 0);
        }
    }

    /// Ends every conversation from our side.
    pub fn hang_up(&mut self) {
        self.0.iter_mut().for_each(|provider| provider.orders = None);
    }

    /// A conversation is over: when its provider is tried again, and what it did.
    pub fn ended(&mut self, peer: PeerId, outcome: Result<(), LinkError>, now: Instant) -> Option<Verdict> {
        let provider = self.find(peer)?;
        provider.orders = None;
        let fruitless = provider.brought == 0;
        let Err(error) = outcome else {
            // It had nothing more to say; with news it is worth another try.
            provider.not_before = now + ABSENT_PAUSE;
            provider.failures += u32::from(fruitless);
            if provider.failures >= FAILURES_MAX {
                provider.out = Some(format!("peer {peer} has nothing more of it"));
            }
            return None;
        };
        let why = error.to_string();
        provider.why = Some(why.clone());
        match error {
            LinkError::Busy { .. } => {
                provider.not_before = now + BUSY_PAUSE * (1 << provider.busy.min(BUSY_DOUBLINGS));
                provider.busy += 1;
                if provider.busy > BUSY_MAX {
                    provider.out = Some(why);
                }
                None
            }
            LinkError::NotFound { .. } => {
                provider.not_before = now + ABSENT_PAUSE * (1 << provider.absent.min(ABSENT_DOUBLINGS));
                provider.absent += 1;
                None
            }
            LinkError::SizeMismatch { .. } => {
                provider.out = Some(why);
                Some(Verdict { offence: Some(Offence::Malformed), close: None })
            }
            LinkError::Mismatch { .. } => {
                provider.out = Some(why);
                Some(Verdict { offence: Some(Offence::BadProof), close: None })
            }
            LinkError::Connection { .. } | LinkError::Truncated { .. } | LinkError::Stalled { .. } | LinkError::Store(_) => {
                provider.not_before = now + FAILURE_PAUSE * (1 << provider.failures.min(FAILURES_MAX));
                provider.failures += 1;
                if provider.failures >= FAILURES_MAX {
                    provider.out = Some(why);
                }
                match error {
                    // A bad line looks the same: it is cut, and nothing is held against it.
                    LinkError::Stalled { connection, .. } => Some(Verdict { offence: None, close: Some(connection) }),
                    _ => None,
                }
            }
        }
    }

    /// Whether nobody is left to be tried but peers that did not have it.
    pub fn all_failed(&self) -> bool {
        self.0.iter().all(|provider| provider.out.is_some() || provider.absent > 0)
    }

    pub fn next_try(&self) -> Option<Instant> {
        self.0.iter().filter(|provider| provider.out.is_none() && provider.orders.is_none()).map(|provider| provider.not_before).min()
    }

    pub fn status(&self, rate: impl Fn(PeerId) -> (f64, bool)) -> Vec<ProviderStatus> {
        let row = |provider: &Provider| {
            let (per_second, active) = rate(provider.peer);
            let state = match (&provider.out, &provider.orders) {
                (Some(_), _) => ProviderState::Out,
                (None, None) => ProviderState::Waiting,
                (None, Some(_)) if active => ProviderState::Sending,
                (None, Some(_)) => ProviderState::Idle,
            };
            let bytes_per_second = if active { per_second as u64 } else { 0 };
            ProviderStatus { peer: provider.peer, bytes: provider.bytes, bytes_per_second, state }
        };
        self.0.iter().map(row).collect()
    }

    pub fn why_failed(&self) -> String {
        /// A sentence, not a log.
        const NAMED_MAX: usize = 4;
        let whys: Vec<&str> = self.0.iter().filter_map(|provider| provider.out.as_deref().or(provider.why.as_deref())).collect();
        match whys.len() {
            0 => "no peer that could have it is connected".to_owned(),
            count if count <= NAMED_MAX => whys.join("; "),
            count => format!("{}; and {} more", whys.get(..NAMED_MAX).unwrap_or_default().join("; "), count - NAMED_MAX),
        }
    }
}
