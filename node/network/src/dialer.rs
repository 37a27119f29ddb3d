//! Whom to dial and when: bootstrap peers for ever, known peers while neighbours are missing. Reads no clock.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use libp2p::multiaddr::Protocol;
use libp2p::swarm::ConnectionId;
use libp2p::swarm::dial_opts::{DialOpts, PeerCondition};
use libp2p::{Multiaddr, PeerId};
use tokio::time::Instant;

use super::limits::{ADDRESS_BOOK_MAX, ADDRESSES_PER_PEER_MAX, BACKOFF_FIRST, BACKOFF_LONGEST, DIALS_AT_ONCE_MAX, REDIAL_PAUSE};
use super::paths::is_relayed;
use super::reach::is_global;

struct Bootstrap {
    /// Known from a `/p2p/` ending, or since the first connection.
    peer: Option<PeerId>,
    /// Whether the address named the peer; otherwise whoever answers there is the one meant.
    pinned: bool,
    addresses: Vec<Multiaddr>,
    attempts: u32,
    not_before: Instant,
    dialing: Option<ConnectionId>,
}

struct Known {
    addresses: Vec<Multiaddr>,
    not_before: Instant,
}

pub struct Dialer {
    local: PeerId,
    bootstrap: Vec<Bootstrap>,
    book: HashMap<PeerId, Known>,
    /// In order of arrival, so that the oldest can be forgotten.
    order: VecDeque<PeerId>,
}

impl Dialer {
    pub fn new(local: PeerId, addresses: Vec<Multiaddr>, now: Instant) -> Self {
        let mut bootstrap: Vec<Bootstrap> = Vec::new();
        for address in addresses {
            let peer = peer_in(&address);
            if peer == Some(local) {
                continue; // One list may serve every peer of a network.
            }
            match bootstrap.iter_mut().find(|entry| peer.is_some() && entry.peer == peer) {
                Some(entry) => entry.addresses.push(address),
                None => bootstrap.push(Bootstrap {
                    peer,
                    pinned: peer.is_some(),
                    addresses: vec![address],
                    attempts: 0,
                    not_before: now,
                    dialing: None,
                }),
            }
        }
        Self { local, bootstrap, book: HashMap::new(), order: VecDeque::new() }
    }

    /// Remembers where a peer says it listens; `true` when that was not known.
    pub fn learn(&mut self, peer: PeerId, addresses: impl IntoIterator<Item = Multiaddr>, now: Instant) -> bool {
        if peer == self.local {
            return false;
        }
        let addresses: Vec<_> = addresses.into_iter().take(ADDRESSES_PER_PEER_MAX).collect();
        if addresses.is_empty() {
            return false;
        }
        if let Some(known) = self.book.get_mut(&peer) {
            let news = known.addresses != addresses;
            known.addresses = addresses;
            return news;
        }
        if self.book.len() >= ADDRESS_BOOK_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.book.remove(&oldest);
        }
        self.book.insert(peer, Known { addresses, not_before: now });
        self.order.push_back(peer);
        true
    }

    /// Remembers where others say a peer listens. What is known already gives way only as far as there is no room: a peer
    /// that found itself behind a router is reached by the relay it has reserved with since.
    pub fn hear_of(&mut self, peer: PeerId, mut addresses: Vec<Multiaddr>, now: Instant) {
        if let Some(known) = self.book.get(&peer) {
            let old: Vec<_> = known.addresses.iter().filter(|address| !addresses.contains(address)).cloned().collect();
            addresses.extend(old);
        }
        self.learn(peer, addresses, now);
    }

    /// The dials of bootstrap peers that are due; each is to be reported with `established` or `failed`.
    pub fn due(&mut self, now: Instant, connected: impl Fn(&PeerId) -> bool) -> Vec<DialOpts> {
        let local = self.local;
        let mut dials = Vec::new();
        for entry in &mut self.bootstrap {
            let satisfied = entry.peer.as_ref().is_some_and(&connected);
            if satisfied || entry.dialing.is_some() || now < entry.not_before {
                continue;
            }
            let dial = match (entry.peer, entry.addresses.as_slice()) {
                (None, [address, ..]) => DialOpts::unknown_peer_id().address(address.clone()).build(),
                (Some(peer), addresses) => dial(peer, addresses),
                (None, []) => continue,
            };
            entry.dialing = Some(dial.connection_id());
            entry.attempts = entry.attempts.saturating_add(1);
            entry.not_before = now + backoff(&local, entry.attempts);
            dials.push(dial);
        }
        dials
    }

    /// Dials of known peers, at most `missing`, while neighbours are missing.
    pub fn neighbours(&mut self, now: Instant, missing: usize, connected: impl Fn(&PeerId) -> bool) -> Vec<DialOpts> {
        let free = self.book.iter_mut().filter(|(peer, known)| !connected(peer) && known.not_before <= now);
        let dials = free.take(missing.min(DIALS_AT_ONCE_MAX)).map(|(peer, known)| {
            known.not_before = now + REDIAL_PAUSE;
            dial(*peer, &known.addresses)
        });
        dials.collect()
    }

    /// A dial of one peer that is needed now, wherever it is known from. Of one that is `connected`, though only through
    /// a relay, the direct addresses; `None` when there are none.
    pub fn wanted(&self, peer: PeerId, connected: bool) -> Option<DialOpts> {
        let of_book = self.book.get(&peer).map(|known| known.addresses.as_slice()).unwrap_or_default();
        let of_bootstrap = self.bootstrap.iter().filter(|entry| entry.peer == Some(peer)).flat_map(|entry| &entry.addresses);
        let addresses: Vec<_> = of_book.iter().chain(of_bootstrap).filter(|address| !(connected && is_relayed(address))).cloned().collect();
        match connected {
            false => Some(dial(peer, &addresses)),
            true if addresses.is_empty() => None,
            true => Some(DialOpts::peer_id(peer).condition(PeerCondition::NotDialing).addresses(addresses).build()),
        }
    }

    /// Where a known peer listens.
    pub fn addresses(&self, peer: &PeerId) -> Option<&[Multiaddr]> {
        self.book.get(peer).map(|known| known.addresses.as_slice())
    }

    /// Forgets who is not to be known any more; bootstrap peers are an operator's choice and stay.
    pub fn retain(&mut self, wanted: impl Fn(&PeerId) -> bool) {
        self.book.retain(|peer, _| wanted(peer));
        self.order.retain(wanted);
    }

    /// The bootstrap peers whose names are known.
    pub fn bootstrap_peers(&self) -> impl Iterator<Item = &PeerId> {
        self.bootstrap.iter().filter_map(|entry| entry.peer.as_ref())
    }

    pub fn established(&mut self, connection: ConnectionId, peer: PeerId) {
        for entry in &mut self.bootstrap {
            if entry.dialing == Some(connection) {
                entry.dialing = None;
                entry.peer = Some(peer);
            }
            if entry.peer == Some(peer) {
                entry.attempts = 0;
            }
        }
        // Two addresses of one peer turn out to be one entry; our own addresses to be none.
        let local = self.local;
        let mut seen = Vec::new();
        self.bootstrap.retain_mut(|entry| match entry.peer {
            Some(peer) if peer == local || seen.contains(&peer) => false,
            Some(peer) => {
                seen.push(peer);
                true
            }
            None => true,
        });
    }

    /// Whether this is a dial of a bootstrap address.
    pub fn is_bootstrap(&self, connection: ConnectionId) -> bool {
        self.bootstrap.iter().any(|entry| entry.dialing == Some(connection))
    }

    /// `ourselves`: the dial ended at our own door and is not tried again.
    pub fn failed(&mut self, connection: ConnectionId, ourselves: bool) {
        self.bootstrap.retain(|entry| !(ourselves && entry.dialing == Some(connection)));
        for entry in self.bootstrap.iter_mut().filter(|entry| entry.dialing == Some(connection)) {
            entry.dialing = None;
            if !entry.pinned {
                entry.peer = None;
            }
        }
    }

    /// The last connection to `peer` is gone.
    pub fn disconnected(&mut self, peer: &PeerId, now: Instant) {
        let pause = backoff(&self.local, 1);
        for entry in self.bootstrap.iter_mut().filter(|entry| entry.peer.as_ref() == Some(peer)) {
            entry.not_before = now + pause;
        }
        if let Some(known) = self.book.get_mut(peer) {
            known.not_before = now + REDIAL_PAUSE;
        }
    }
}

fn dial(peer: PeerId, addresses: &[Multiaddr]) -> DialOpts {
    DialOpts::peer_id(peer)
        .condition(PeerCondition::DisconnectedAndNotDialing)
        .addresses(addresses.to_vec())
        .extend_addresses_through_behaviour()
        .build()
}

/// The peer that an address ends in, if it names one.
pub fn peer_in(address: &Multiaddr) -> Option<PeerId> {
    match address.iter().last() {
        Some(Protocol::P2p(peer)) => Some(peer),
        _ => None,
    }
}

/// Doubles from `BACKOFF_FIRST` to `BACKOFF_LONGEST`, less up to a quarter that differs from peer to peer, so that a
/// restarted seed is not met by everybody at once.
fn backoff(local: &PeerId, attempts: u32) -> Duration {
    let whole = BACKOFF_FIRST.saturating_mul(1 << attempts.saturating_sub(1).min(16)).min(BACKOFF_LONGEST);
    let mut hasher = blake3::Hasher::new();
    hasher.update(&local.to_bytes()).update(&attempts.to_le_bytes());
    let part = u32::from(hasher.finalize().as_bytes().first().copied().unwrap_or_default());
    whole - whole / 4 * part / 256
}

/// Which of a peer's addresses come first, where not all are kept: those that mean it everywhere, those through relays,
/// those of its site, those of its machine.
pub fn worth(address: &Multiaddr) -> u8 {
    let loopback = |part| match part {
        Protocol::Ip4(ip) => ip.is_loopback(),
        Protocol::Ip6(ip) => ip.is_loopback(),
        _ => false,
    };
    match address.iter().next() {
        _ if is_relayed(address) => 1,
        _ if is_global(address) => 0,
        Some(part) if loopback(part.clone()) => 3,
        _ => 2,
    }
}

/// Whether an address that a peer claims is worth dialling: our own machine only for peers of our own machine.
pub fn believable(claimed: &Multiaddr, remote: &Multiaddr) -> bool {
    let loopback = |address: &Multiaddr| {
        address.iter().any(|part| match part {
            Protocol::Ip4(ip) => ip.is_loopback(),
            Protocol::Ip6(ip) => ip.is_loopback(),
            _ => false,
        })
    };
    let unspecified = claimed.iter().any(|part| match part {
        Protocol::Ip4(ip) => ip.is_unspecified(),
        Protocol::Ip6(ip) => ip.is_unspecified(),
        _ => false,
    });
    !unspecified && (!loopback(claimed) || loopback(remote))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> Multiaddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_bootstrap_peer_is_dialled_for_ever_with_growing_pauses() {
        let (local, seed) = (PeerId::random(), PeerId::random());
        let mut now = Instant::now();
        let addresses = ["/ip4/10.0.0.1/tcp/1", "/ip4/10.0.0.1/udp/1/quic-v1"].map(|base| format!("{base}/p2p/{seed}").parse().unwrap());
        let mut dialer = Dialer::new(local, addresses.to_vec(), now);
        let mut pauses = Vec::new();
        for _ in 0..10 {
            let dials = dialer.due(now, |_| false);
            assert_eq!(dials.len(), 1, "both addresses belong to one peer");
            assert!(dialer.due(now + BACKOFF_LONGEST, |_| false).is_empty(), "one dial at a time");
            dialer.failed(dials[0].connection_id(), false);
            let began = now;
            while dialer.due(now, |_| true).is_empty() && now < dialer.bootstrap[0].not_before {
                now += Duration::from_millis(50);
            }
            pauses.push(now - began);
        }
        assert!(pauses[0] < Duration::from_secs(2) && pauses.windows(2).take(4).all(|pair| pair[0] < pair[1]));
        assert!(pauses[9] <= BACKOFF_LONGEST && pauses[9] > BACKOFF_LONGEST / 2);
        assert!(dialer.due(now, |peer| *peer == seed).is_empty(), "connected peers are left alone");
    }

    #[test]
    fn news_of_a_peer_adds_to_what_is_known_of_it() {
        let (peer, now) = (PeerId::random(), Instant::now());
        let mut dialer = Dialer::new(PeerId::random(), Vec::new(), now);
        let (first, later) = (address("/ip4/10.0.0.9/tcp/9"), address("/ip4/11.0.0.1/tcp/4001/p2p-circuit"));
        dialer.hear_of(peer, vec![first.clone()], now);
        dialer.hear_of(peer, vec![later.clone()], now);
        assert_eq!(dialer.addresses(&peer).unwrap(), [later.clone(), first.clone()]);
        dialer.hear_of(peer, vec![first.clone()], now);
        assert_eq!(dialer.addresses(&peer).unwrap(), [first, later]);
    }

    #[test]
    fn our_own_address_is_dialled_once() {
        let now = Instant::now();
        let mut dialer = Dialer::new(PeerId::random(), vec![address("/ip4/127.0.0.1/tcp/1")], now);
        let dials = dialer.due(now, |_| false);
        dialer.failed(dials[0].connection_id(), true);
        assert!(dialer.due(now + BACKOFF_LONGEST, |_| false).is_empty());
    }

    #[test]
    fn claims_to_listen_on_our_machine_are_believed_only_from_there() {
        let (near, far) = (address("/ip4/127.0.0.1/tcp/9"), address("/ip4/10.0.0.9/tcp/9"));
        assert!(believable(&near, &near) && believable(&far, &near) && believable(&far, &far));
        assert!(!believable(&near, &far) && !believable(&address("/ip4/0.0.0.0/tcp/9"), &near));
    }

    #[test]
    fn the_address_book_is_bounded() {
        let now = Instant::now();
        let mut dialer = Dialer::new(PeerId::random(), Vec::new(), now);
        for _ in 0..ADDRESS_BOOK_MAX + 10 {
            let many = std::iter::repeat_n(address("/ip4/10.0.0.9/tcp/9"), 100);
            dialer.learn(PeerId::random(), many, now);
        }
        assert_eq!((dialer.book.len(), dialer.order.len()), (ADDRESS_BOOK_MAX, ADDRESS_BOOK_MAX));
        assert!(dialer.book.values().all(|known| known.addresses.len() <= ADDRESSES_PER_PEER_MAX));
        assert_eq!(dialer.neighbours(now, 100, |_| false).len(), DIALS_AT_ONCE_MAX);
    }
}
