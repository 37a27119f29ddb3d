//! Whether others can dial this peer, and through whom they reach it when they cannot. Reads no clock, opens nothing.
//!
//! Verdicts come from AutoNAT: a public peer was asked to dial an address back, and did or did not. A peer that cannot
//! be dialled keeps a reservation with up to two relays. The relay client tells only of successes, so whatever ends
//! without one (a listener that closes) is tried again here, with growing pauses and elsewhere first.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use libp2p::core::transport::ListenerId;
use libp2p::multiaddr::Protocol;
use libp2p::{Multiaddr, PeerId};
use tokio::time::Instant;

use super::limits::{RELAY_BACKOFF_FIRST, RELAY_BACKOFF_LONGEST, RELAYS_AT_ONCE, RELAYS_KNOWN_MAX};
use super::paths::is_relayed;
use super::web::Web;

/// What is assumed about being dialled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Role {
    /// AutoNAT decides.
    #[default]
    Auto,
    /// A seed: everybody can dial it, and it relays and dials back for others.
    Public,
    /// Nobody can dial it: it reserves with relays at once.
    Private,
}

/// How a peer is to be reached.
#[derive(Clone, Debug, Default)]
pub struct ReachConfig {
    pub role: Role,
    /// Addresses that are known to lead here from outside, such as those of a forwarded port.
    pub external: Vec<Multiaddr>,
    /// Whether to ask the router for a port by UPnP.
    pub upnp: bool,
    /// No new connection while this process holds more memory; without it, nine tenths of what the machine or its
    /// container has.
    pub memory_max: Option<usize>,
    /// Certificates of `/wss`.
    pub web: Web,
}

/// Whether this peer can be dialled.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Reachability {
    #[default]
    Unknown,
    /// At these addresses.
    Public { addresses: Vec<Multiaddr> },
    /// Only through relays, at these addresses.
    Private { relays: Vec<Multiaddr> },
}

impl Reachability {
    /// `unknown`, `public` or `private`.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Public { .. } => "public",
            Self::Private { .. } => "private",
        }
    }

    /// The addresses that others can use.
    pub fn addresses(&self) -> &[Multiaddr] {
        match self {
            Self::Unknown => &[],
            Self::Public { addresses } | Self::Private { relays: addresses } => addresses,
        }
    }
}

/// What is to be done about relays.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    /// Listen through this relay, and tell with `listening` or `lost`.
    Reserve {
        relay: PeerId,
        address: Multiaddr,
    },
    Release(ListenerId),
}

struct Relay {
    address: Multiaddr,
    listener: Option<ListenerId>,
    attempts: u32,
    not_before: Instant,
}

pub struct Reach {
    role: Role,
    /// How long after a first failed test others may still succeed, and how long no test at all is waited for.
    settle: Duration,
    /// Direct addresses that were confirmed.
    confirmed: BTreeSet<Multiaddr>,
    /// Addresses through relays that accepted a reservation.
    circuits: BTreeSet<Multiaddr>,
    failed_global: bool,
    failed_since: Option<Instant>,
    /// Since when a relay, which dials back too, is known.
    asked_since: Option<Instant>,
    relays: HashMap<PeerId, Relay>,
}

impl Reach {
    pub fn new(role: Role, settle: Duration) -> Self {
        Self {
            role,
            settle,
            confirmed: BTreeSet::new(),
            circuits: BTreeSet::new(),
            failed_global: false,
            failed_since: None,
            asked_since: None,
            relays: HashMap::new(),
        }
    }

    /// An address leads here: somebody dialled it, or a relay took our reservation.
    pub fn confirmed(&mut self, address: Multiaddr) {
        match is_relayed(&address) {
            true => self.circuits.insert(address),
            false => self.confirmed.insert(address),
        };
    }

    pub fn expired(&mut self, address: &Multiaddr) {
        self.confirmed.remove(address);
        self.circuits.remove(address);
    }

    /// Somebody could not dial this address.
    pub fn undialable(&mut self, address: &Multiaddr, now: Instant) {
        // What is said about a relayed connection names no address at all.
        if is_relayed(address) || !has_host(address) {
            return;
        }
        self.failed_global |= is_global(address);
        self.failed_since.get_or_insert(now);
    }

    /// A neighbour relays for others; `address` is where we reached it.
    pub fn relay(&mut self, relay: PeerId, address: Multiaddr, now: Instant) {
        self.asked_since.get_or_insert(now);
        if let Some(known) = self.relays.get_mut(&relay) {
            known.address = address;
        } else if self.relays.len() < RELAYS_KNOWN_MAX {
            self.relays.insert(relay, Relay { address, listener: None, attempts: 0, not_before: now });
        }
    }

    pub fn listening(&mut self, relay: &PeerId, listener: ListenerId) {
        if let Some(relay) = self.relays.get_mut(relay) {
            relay.listener = Some(listener);
        }
    }

    /// A relay has accepted, for the first time or again.
    pub fn accepted(&mut self, relay: &PeerId) {
        if let Some(relay) = self.relays.get_mut(relay) {
            relay.attempts = 0;
        }
    }

    /// Whether the listener was one of a relay; it is asked again after a pause.
    pub fn closed(&mut self, listener: ListenerId, now: Instant) -> bool {
        let found = self.relays.iter_mut().find(|(_, relay)| relay.listener == Some(listener));
        let Some((_, relay)) = found else { return false };
        relay.lost(now);
        true
    }

    /// Listening could not even begin.
    pub fn refused(&mut self, relay: &PeerId, now: Instant) {
        if let Some(relay) = self.relays.get_mut(relay) {
            relay.lost(now);
        }
    }

    pub fn reachability(&self, now: Instant) -> Reachability {
        let settled = |since: Option<Instant>, times| since.is_some_and(|since| now.duration_since(since) >= self.settle * times);
        let private = match self.role {
            Role::Public => false,
            Role::Private => true,
            // A neighbour in our own network can dial us there; that says nothing about the world.
            Role::Auto if self.confirmed.iter().any(is_global) => false,
            Role::Auto if self.failed_global => settled(self.failed_since, 1),
            Role::Auto if !self.confirmed.is_empty() => false,
            // A router that swallows the dial-back may leave even the one who asked for it without an answer.
            Role::Auto => settled(self.failed_since, 1) || settled(self.asked_since, 6),
        };
        match private {
            true => Reachability::Private { relays: self.circuits.iter().cloned().collect() },
            false if self.confirmed.is_empty() => Reachability::Unknown,
            false => Reachability::Public { addresses: self.confirmed.iter().cloned().collect() },
        }
    }

    /// What to do now, so that a peer that cannot be dialled has its relays and one that can has none.
    pub fn steps(&mut self, now: Instant) -> Vec<Step> {
        let held = self.relays.values().filter_map(|relay| relay.listener);
        match self.reachability(now) {
            Reachability::Public { .. } => held.map(Step::Release).collect(),
            Reachability::Unknown => Vec::new(),
            Reachability::Private { .. } => {
                let missing = RELAYS_AT_ONCE.saturating_sub(held.count());
                let mut free: Vec<(&PeerId, &mut Relay)> =
                    self.relays.iter_mut().filter(|(_, relay)| relay.listener.is_none() && relay.not_before <= now).collect();
                // Those that never failed first; among equals the order is as good as random.
                free.sort_by_key(|(_, relay)| relay.attempts);
                let chosen = free.into_iter().take(missing);
                chosen.map(|(peer, relay)| Step::Reserve { relay: *peer, address: relay.address.clone() }).collect()
            }
        }
    }
}

impl Relay {
    fn lost(&mut self, now: Instant) {
        self.listener = None;
        let pause = RELAY_BACKOFF_FIRST.saturating_mul(1 << self.attempts.min(16)).min(RELAY_BACKOFF_LONGEST);
        self.attempts = self.attempts.saturating_add(1);
        self.not_before = now + pause;
    }
}

fn has_host(address: &Multiaddr) -> bool {
    use Protocol::{Dns, Dns4, Dns6, Ip4, Ip6};
    address.iter().next().is_some_and(|part| matches!(part, Ip4(_) | Ip6(_) | Dns(_) | Dns4(_) | Dns6(_)))
}

/// Whether the address may mean the same machine everywhere: not one of a site, a link or a carrier's shared range.
pub fn is_global(address: &Multiaddr) -> bool {
    match address.iter().next() {
        Some(Protocol::Ip4(ip)) => {
            let [first, second, ..] = ip.octets();
            let shared = first == 100 && (64..128).contains(&second);
            !(ip.is_private() || ip.is_loopback() || ip.is_link_local() || ip.is_unspecified() || shared)
        }
        Some(Protocol::Ip6(ip)) => !(ip.is_loopback() || ip.is_unspecified() || ip.is_unique_local() || ip.is_unicast_link_local()),
        Some(Protocol::Dns(_) | Protocol::Dns4(_) | Protocol::Dns6(_) | Protocol::Dnsaddr(_)) => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SETTLE: Duration = Duration::from_secs(5);

    fn address(text: &str) -> Multiaddr {
        text.parse().unwrap()
    }

    fn reach(role: Role) -> (Reach, Instant) {
        (Reach::new(role, SETTLE), Instant::now())
    }

    #[test]
    fn a_peer_that_cannot_be_dialled_reserves_with_two_and_releases_when_it_can() {
        let (mut reach, now) = reach(Role::Auto);
        let relays: Vec<PeerId> = (0..4).map(|_| PeerId::random()).collect();
        relays.iter().for_each(|relay| reach.relay(*relay, address("/ip4/203.0.113.1/tcp/4001"), now));
        assert_eq!(reach.reachability(now), Reachability::Unknown);
        assert!(reach.steps(now).is_empty(), "without a verdict nothing is reserved");
        reach.undialable(&address("/ip4/198.51.100.7/tcp/4001"), now);
        assert_eq!(reach.reachability(now), Reachability::Unknown, "another address may still be confirmed");
        let now = now + SETTLE;
        let steps = reach.steps(now);
        assert_eq!(steps.len(), RELAYS_AT_ONCE);
        let listeners: Vec<ListenerId> = steps.iter().map(|_| ListenerId::next()).collect();
        for (step, listener) in steps.iter().zip(&listeners) {
            let Step::Reserve { relay, .. } = step else { panic!("{step:?}") };
            reach.listening(relay, *listener);
        }
        assert!(reach.steps(now).is_empty());
        // A lost one is replaced at once by another relay, and asked again only after a pause.
        assert!(reach.closed(listeners[0], now) && !reach.closed(listeners[0], now));
        let Step::Reserve { relay: lost, .. } = &steps[0] else { panic!() };
        assert!(matches!(reach.steps(now).as_slice(), [Step::Reserve { relay, .. }] if relay != lost));

        reach.confirmed(address("/ip4/198.51.100.7/udp/4001/quic-v1"));
        assert!(matches!(reach.reachability(now), Reachability::Public { .. }));
        assert_eq!(reach.steps(now), [Step::Release(listeners[1])]);
    }

    #[test]
    fn pauses_grow_and_a_success_forgives() {
        let (mut reach, mut now) = reach(Role::Private);
        let relay = PeerId::random();
        reach.relay(relay, address("/ip4/203.0.113.1/tcp/4001"), now);
        let mut pauses = Vec::new();
        for _ in 0..12 {
            assert_eq!(reach.steps(now).len(), 1);
            reach.refused(&relay, now);
            let began = now;
            while reach.steps(now).is_empty() {
                now += Duration::from_millis(250);
            }
            pauses.push(now - began);
        }
        assert_eq!((pauses[0], pauses[11]), (RELAY_BACKOFF_FIRST, RELAY_BACKOFF_LONGEST));
        reach.accepted(&relay);
        reach.refused(&relay, now);
        assert_eq!(reach.steps(now + RELAY_BACKOFF_FIRST).len(), 1);
    }

    #[test]
    fn a_neighbour_in_our_own_network_proves_nothing_about_the_world() {
        let (mut auto, now) = reach(Role::Auto);
        auto.confirmed(address("/ip4/192.168.1.5/tcp/4001"));
        assert!(matches!(auto.reachability(now), Reachability::Public { .. }), "a network without routers");
        auto.undialable(&address("/ip4/198.51.100.7/tcp/4001"), now);
        assert!(matches!(auto.reachability(now + SETTLE), Reachability::Private { .. }));
        auto.expired(&address("/ip4/192.168.1.5/tcp/4001"));
        // Where nobody ever answers, a relay is as good a guess as any.
        let (mut silent, now) = reach(Role::Auto);
        silent.undialable(&address(&format!("/p2p/{}", PeerId::random())), now);
        silent.relay(PeerId::random(), address("/ip4/203.0.113.1/tcp/4001"), now);
        assert!(silent.steps(now + SETTLE * 5).is_empty());
        assert_eq!(silent.steps(now + SETTLE * 6).len(), 1);
        // A seed never reserves.
        let (mut seed, now) = reach(Role::Public);
        seed.undialable(&address("/ip4/198.51.100.7/tcp/4001"), now);
        seed.relay(PeerId::random(), address("/ip4/203.0.113.1/tcp/4001"), now);
        assert!(seed.steps(now + SETTLE * 10).is_empty());
    }

    #[test]
    fn which_addresses_mean_the_same_machine_everywhere() {
        for text in ["/ip4/198.51.100.7/tcp/1", "/ip6/2001:db8::1/tcp/1", "/dns4/seed.example/tcp/443/wss"] {
            assert!(is_global(&address(text)), "{text}");
        }
        for text in ["/ip4/10.0.0.1/tcp/1", "/ip4/127.0.0.1/tcp/1", "/ip4/100.64.0.1/tcp/1", "/ip6/fe80::1/tcp/1", "/ip6/fd00::1/tcp/1"] {
            assert!(!is_global(&address(text)), "{text}");
        }
    }
}
