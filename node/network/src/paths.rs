//! The connections there are, as paths: direct or through a relay, and which of them are too many. Reads no clock.
//!
//! Only connections that the swarm has established are known here, never ones that some behaviour denied.

use std::collections::HashMap;
use std::time::Duration;

use libp2p::core::ConnectedPoint;
use libp2p::multiaddr::Protocol;
use libp2p::swarm::ConnectionId;
use libp2p::{Multiaddr, PeerId};
use tokio::time::Instant;

/// A relayed connection outlives the direct one that replaces it by so long, so that answers under way still arrive.
const RELAYED_GRACE: Duration = Duration::from_secs(2);
/// A second connection that we opened ourselves is closed after so long: a dial-back of AutoNAT needs it for a moment.
const SURPLUS_GRACE: Duration = Duration::from_secs(10);

/// How one neighbour is connected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    pub peer: PeerId,
    /// The other end, as this peer sees it.
    pub address: Multiaddr,
    /// Whether another peer carries the bytes.
    pub relayed: bool,
    /// That peer, where the address names it.
    pub relay: Option<PeerId>,
    /// Of the last ping.
    pub round_trip: Option<Duration>,
}

struct Path {
    link: Link,
    dialled: bool,
    since: Instant,
}

#[derive(Default)]
pub struct Paths {
    paths: HashMap<ConnectionId, Path>,
}

impl Paths {
    /// The new path, when it is the first of its peer or the first direct one.
    pub fn opened(&mut self, connection: ConnectionId, peer: PeerId, point: &ConnectedPoint, now: Instant) -> Option<Link> {
        let address = far_end(point);
        let link = Link { peer, relayed: is_relayed(&address), relay: relay_in(&address), address, round_trip: None };
        let (known, direct) = (self.is_connected(&peer), self.is_direct(&peer));
        self.paths.insert(connection, Path { link: link.clone(), dialled: point.is_dialer(), since: now });
        (!known || (!direct && !link.relayed)).then_some(link)
    }

    /// The path that is left, when the last direct one is gone and a relayed one remains.
    pub fn closed(&mut self, connection: ConnectionId) -> Option<Link> {
        let gone = self.paths.remove(&connection)?;
        if gone.link.relayed || self.is_direct(&gone.link.peer) {
            return None;
        }
        self.paths.values().find(|path| path.link.peer == gone.link.peer).map(|path| path.link.clone())
    }

    pub fn pinged(&mut self, connection: ConnectionId, round_trip: Duration) {
        if let Some(path) = self.paths.get_mut(&connection) {
            path.link.round_trip = Some(round_trip);
        }
    }

    pub fn is_connected(&self, peer: &PeerId) -> bool {
        self.paths.values().any(|path| path.link.peer == *peer)
    }

    /// Whether the peer is connected without a relay between.
    pub fn is_direct(&self, peer: &PeerId) -> bool {
        self.paths.values().any(|path| path.link.peer == *peer && !path.link.relayed)
    }

    /// A direct connection, whether we opened it, and the address at its other end.
    pub fn direct(&self, connection: ConnectionId) -> Option<(&Multiaddr, bool)> {
        let path = self.paths.get(&connection)?;
        (!path.link.relayed).then_some((&path.link.address, path.dialled))
    }

    /// One link a neighbour: the direct one where there is one, else the relayed one.
    pub fn links(&self) -> Vec<Link> {
        let mut links: Vec<Link> = self.best().into_values().map(|(_, path)| path.link.clone()).collect();
        links.sort_by_key(|link| link.peer);
        links
    }

    /// Connections to be closed now: relayed ones beside a direct one, and second ones that we opened ourselves. Only
    /// the side that opened a direct one closes it, so that two peers never close one each and lose both.
    pub fn surplus(&self, now: Instant) -> Vec<ConnectionId> {
        let old = |path: &Path, grace| now.duration_since(path.since) >= grace;
        let best = self.best();
        let is_surplus = |id: &ConnectionId, path: &Path| {
            let Some((kept, keeper)) = best.get(&path.link.peer) else { return false };
            match path.link.relayed {
                true => !keeper.link.relayed && old(keeper, RELAYED_GRACE),
                false => *kept != id && path.dialled && old(path, SURPLUS_GRACE) && old(keeper, SURPLUS_GRACE),
            }
        };
        self.paths.iter().filter(|(id, path)| is_surplus(id, path)).map(|(id, _)| *id).collect()
    }

    /// Of each peer the path that ranks first.
    fn best(&self) -> HashMap<PeerId, (&ConnectionId, &Path)> {
        let mut best: HashMap<PeerId, (&ConnectionId, &Path)> = HashMap::new();
        for (id, path) in &self.paths {
            let known = best.entry(path.link.peer).or_insert((id, path));
            if rank(id, path) < rank(known.0, known.1) {
                *known = (id, path);
            }
        }
        best
    }
}

/// Direct before relayed, QUIC before TCP (two who send much both ways over one yamux connection can wait for each
/// other), older before younger.
fn rank<'a>(id: &'a ConnectionId, path: &Path) -> (bool, bool, &'a ConnectionId) {
    (path.link.relayed, !is_quic(&path.link.address), id)
}

pub fn is_quic(address: &Multiaddr) -> bool {
    address.iter().any(|part| matches!(part, Protocol::QuicV1))
}

pub fn is_relayed(address: &Multiaddr) -> bool {
    address.iter().any(|part| matches!(part, Protocol::P2pCircuit))
}

/// The relay that an address goes through.
pub fn relay_in(address: &Multiaddr) -> Option<PeerId> {
    let before = address.iter().take_while(|part| !matches!(part, Protocol::P2pCircuit));
    let named = before.filter_map(|part| if let Protocol::P2p(peer) = part { Some(peer) } else { None }).last();
    is_relayed(address).then_some(named).flatten()
}

/// The other end of a connection. Whoever is called through a relay sees only the caller's name there: the way it came
/// is in the address of our own end.
pub fn far_end(point: &ConnectedPoint) -> Multiaddr {
    match point {
        ConnectedPoint::Dialer { address, .. } => address.clone(),
        ConnectedPoint::Listener { local_addr, send_back_addr } => far_end_of(local_addr, send_back_addr),
    }
}

/// The same for a connection that others opened.
pub fn far_end_of(local: &Multiaddr, remote: &Multiaddr) -> Multiaddr {
    match is_relayed(local) {
        true => remote.iter().fold(local.clone(), Multiaddr::with),
        false => remote.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dialled(address: &str) -> ConnectedPoint {
        ConnectedPoint::Dialer {
            address: address.parse().unwrap(),
            role_override: libp2p::core::Endpoint::Dialer,
            port_use: libp2p::core::transport::PortUse::Reuse,
        }
    }

    fn accepted(local: &str, remote: &str) -> ConnectedPoint {
        ConnectedPoint::Listener { local_addr: local.parse().unwrap(), send_back_addr: remote.parse().unwrap() }
    }

    #[test]
    fn a_relayed_path_ends_when_a_direct_one_has_stood_for_a_moment() {
        let (peer, relay, now) = (PeerId::random(), PeerId::random(), Instant::now());
        let id = ConnectionId::new_unchecked;
        let mut paths = Paths::default();
        let local = format!("/ip4/203.0.113.1/tcp/4001/p2p/{relay}/p2p-circuit");
        let through = paths.opened(id(1), peer, &accepted(&local, &format!("/p2p/{peer}")), now).unwrap();
        assert_eq!(through.relay, Some(relay));
        assert!(!paths.is_direct(&peer) && paths.is_connected(&peer));
        assert!(paths.surplus(now + SURPLUS_GRACE).is_empty(), "the only path stays");
        let direct = paths.opened(id(2), peer, &dialled("/ip4/198.51.100.2/tcp/4001"), now).unwrap();
        assert_eq!((direct.relayed, paths.is_direct(&peer)), (false, true));
        assert!(paths.surplus(now).is_empty());
        assert_eq!(paths.surplus(now + RELAYED_GRACE), [id(1)]);
        assert_eq!(paths.links(), [direct]);
        assert_eq!(paths.closed(id(2)).map(|left| left.relay), Some(Some(relay)));
    }

    #[test]
    fn two_who_dialled_each_other_keep_at_least_one_connection() {
        let (a, b, now) = (PeerId::random(), PeerId::random(), Instant::now());
        let id = ConnectionId::new_unchecked;
        // Each sees its own first; one of them is QUIC.
        for (one, other) in [("tcp/1", "tcp/2"), ("udp/1/quic-v1", "tcp/2"), ("tcp/1", "udp/2/quic-v1")] {
            let (mut of_a, mut of_b) = (Paths::default(), Paths::default());
            let (by_a, by_b) = (format!("/ip4/10.0.0.2/{one}"), format!("/ip4/10.0.0.1/{other}"));
            of_a.opened(id(1), b, &dialled(&by_a), now);
            of_a.opened(id(2), b, &accepted("/ip4/10.0.0.1/tcp/9", &by_b.replace("0.1", "0.2")), now);
            of_b.opened(id(2), a, &dialled(&by_b), now);
            of_b.opened(id(3), a, &accepted("/ip4/10.0.0.2/tcp/9", &by_a.replace("0.2", "0.1")), now);
            let later = now + SURPLUS_GRACE;
            assert!(of_a.surplus(later).len() + of_b.surplus(later).len() < 2, "{one} and {other}");
        }
        // A dial-back that the dialler no longer needs.
        let mut paths = Paths::default();
        paths.opened(id(5), a, &accepted("/ip4/10.0.0.2/tcp/9", "/ip4/10.0.0.1/tcp/9"), now);
        paths.opened(id(6), a, &dialled("/ip4/10.0.0.1/tcp/4001"), now);
        assert!(paths.surplus(now).is_empty());
        assert_eq!(paths.surplus(now + SURPLUS_GRACE), [id(6)]);
    }
}
