//! What the network allows: listening, reaching a peer, being dialled, and what kind of router is in between.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use mingle_protocol::identity::SecretKey;
use mingle_protocol::round::Round;

use super::super::args::NetworkArgs;
use super::Check;
use crate::network::{self, Limits, Multiaddr, Network, NetworkConfig, NetworkEvent, Observed, PeerId, ReachStatus, Reachability};
use crate::store::Store;

/// A probe has no time for the pauses of a peer that runs for weeks.
const PROBE_INTERVAL: Duration = Duration::from_secs(1);
const SETTLE: Duration = Duration::from_secs(3);
/// With a verdict at hand, slower peers are waited for so much longer, to hear where they see us.
const AFTERMATH: Duration = Duration::from_secs(3);

const PORTS: &str = "let connections out to TCP and UDP 4001 of the seed, or to TCP 443 and give its /ws or /wss address";
const AUTHORITY: &str = "give the certificate of the authority that signed it with --tls-ca, or the name that it is for";
const FORWARD: &str = "forward a TCP and a UDP port to this machine and name them with --listen and --external, or try --upnp";

/// What was heard while it listened.
#[derive(Default)]
struct Heard {
    listening: Vec<Multiaddr>,
    connected: BTreeMap<PeerId, Duration>,
    status: ReachStatus,
    /// Addresses of hosts whose certificates are not believed, and why.
    distrusted: Vec<String>,
}

/// Runs a peer for a moment and says what came of it.
///
/// # Errors
/// No folder for its store can be made, or a certificate cannot be used.
pub async fn checks(round: &Round, key: &SecretKey, args: &NetworkArgs, patience: Duration) -> Result<Vec<Check>> {
    if args.offline {
        return Ok(vec![Check::skip("listen", "--offline was given")]);
    }
    let folder = std::env::temp_dir().join(format!("mingle-probe-{}", std::process::id()));
    let store = Store::open(&folder).context("cannot make a folder for the probe")?;
    let config = NetworkConfig {
        secret: key.to_bytes(),
        listen: args.listen(),
        bootstrap: args.peers.clone(),
        mdns: args.mdns,
        topic: format!("/mingle/probe/1/{}", round.id()),
        allowed: None,
        reach: args.reach()?,
        limits: Limits { probe_interval: PROBE_INTERVAL, settle: SETTLE, ..Limits::default() },
    };
    let asked = !args.peers.is_empty() || args.mdns;
    let found = match Network::start(config, store) {
        Ok((network, events)) => {
            let heard = listen(&network, events, asked, patience).await;
            network.shutdown().await;
            said(&heard, args, asked)
        }
        Err(error) => vec![Check::error("listen", &error.into(), "give another --listen address")],
    };
    // A folder that stays behind does no harm.
    let _ = std::fs::remove_dir_all(&folder);
    Ok(found)
}

async fn listen(
    network: &network::NetworkHandle,
    mut events: tokio::sync::mpsc::Receiver<NetworkEvent>,
    asked: bool,
    patience: Duration,
) -> Heard {
    let began = Instant::now();
    let patience = if asked { patience } else { PROBE_INTERVAL };
    let mut heard = Heard::default();
    let mut known_since: Option<Instant> = None;
    let mut look = tokio::time::interval(Duration::from_millis(100));
    let mut reach = network.reachability();
    while began.elapsed() < patience && known_since.is_none_or(|since| since.elapsed() < AFTERMATH) {
        tokio::select! {
            event = events.recv() => match event {
                Some(NetworkEvent::Listening(address)) => heard.listening.push(address),
                Some(NetworkEvent::Distrusted { address, why }) => heard.distrusted.push(format!("{address}: {why}")),
                Some(NetworkEvent::PeerConnected(peer)) => _ = heard.connected.insert(peer, began.elapsed()),
                Some(_) => {}
                None => break,
            },
            _ = look.tick() => {
                heard.status = reach.borrow_and_update().clone();
                let known = match &heard.status.reachability {
                    Reachability::Unknown => false,
                    Reachability::Public { .. } => true,
                    Reachability::Private { relays } => !relays.is_empty(),
                };
                known_since = known_since.or(known.then(Instant::now));
            }
        }
    }
    heard
}

fn said(heard: &Heard, args: &NetworkArgs, asked: bool) -> Vec<Check> {
    let mut checks = vec![listening(heard)];
    if !asked {
        let nobody = || Check::skip("peers", "no --peer to ask was given");
        return checks.into_iter().chain([nobody()]).collect();
    }
    checks.push(peers(heard, args));
    if !heard.connected.is_empty() {
        checks.push(dialable(&heard.status.reachability));
        checks.push(router(&heard.status.observed, &heard.listening));
    }
    checks
}

fn listening(heard: &Heard) -> Check {
    let own = heard.listening.iter().filter(|address| !address.to_string().contains("/p2p-circuit"));
    match own.clone().count() {
        0 => Check::fail("listen", "nothing is listened on", "give a --listen address of this machine"),
        _ => {
            let ports: BTreeSet<String> = own.filter_map(|address| Some(seen(address)?.1)).collect();
            Check::ok("listen", format!("listening on {}", ports.into_iter().collect::<Vec<_>>().join(", ")))
        }
    }
}

fn peers(heard: &Heard, args: &NetworkArgs) -> Check {
    let Some((first, after)) = heard.connected.iter().min_by_key(|(_, after)| **after) else {
        let none = format!("none of {} addresses was reached", args.peers.len());
        return match heard.distrusted.as_slice() {
            [] => Check::fail("peers", none, PORTS),
            distrusted => Check::fail("peers", format!("{none}; {}", distrusted.join("; ")), AUTHORITY),
        };
    };
    let link = heard.status.links.iter().find(|link| link.peer == *first);
    let round_trip = match link.and_then(|link| link.round_trip) {
        Some(time) => format!(", round trip {:.0} ms", time.as_secs_f64() * 1000.0),
        None => String::new(),
    };
    let others = heard.connected.len() - 1;
    let fact = format!("reached {first} after {:.0} ms{round_trip}; {others} other peers", after.as_secs_f64() * 1000.0);
    match link.is_some_and(|link| link.relayed) {
        true => Check::warn("peers", format!("{fact}; only through a relay"), PORTS),
        false => Check::ok("peers", fact),
    }
}

fn dialable(reachability: &Reachability) -> Check {
    let listed = |addresses: &[Multiaddr]| addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    match reachability {
        Reachability::Public { addresses } => Check::ok("dialable", format!("dialled back at {}", listed(addresses))),
        Reachability::Private { relays } if relays.is_empty() => Check::fail(
            "dialable",
            "others cannot dial this machine, and no peer relays for it",
            format!("give a seed as --peer, or {FORWARD}"),
        ),
        Reachability::Private { relays } => {
            let relays = relays.len();
            let fact = format!("others cannot dial this machine; they reach it at {relays} addresses of relays");
            Check::warn("dialable", fact, format!("it works, and adapters travel once two peers meet directly; better: {FORWARD}"))
        }
        Reachability::Unknown => Check::warn("dialable", "none of the peers reached dials back", "give a seed as --peer"),
    }
}

/// What kind of router is in between, from where several peers see one and the same port of ours.
fn router(observed: &[Observed], listening: &[Multiaddr]) -> Check {
    let own: BTreeSet<String> = listening.iter().filter_map(seen).map(|(host, _)| host).collect();
    // By protocol: each peer and where it sees us.
    let mut views: BTreeMap<String, BTreeMap<PeerId, (String, String)>> = BTreeMap::new();
    for (by, (host, port)) in observed.iter().filter_map(|observed| Some((observed.by, seen(&observed.address)?))) {
        let protocol = port.split(' ').next().unwrap_or_default().to_owned();
        views.entry(protocol).or_default().insert(by, (host, port));
    }
    let Some((_, view)) = views.iter().max_by_key(|(_, view)| view.len()) else {
        return Check::skip("router", "no peer told where it sees this machine");
    };
    let places: BTreeSet<&(String, String)> = view.values().collect();
    let (peers, first) = (view.len(), places.first().map(|(host, port)| format!("{host}, {port}")).unwrap_or_default());
    if places.iter().all(|(host, _)| own.contains(host)) {
        return Check::ok("router", format!("none in between: {peers} peers see this machine at {first}"));
    }
    match (peers, places.len()) {
        (1, _) => Check::ok("router", format!("one in between: seen at {first}; whether others see another port needs a second --peer")),
        (_, 1) => Check::ok("router", format!("one in between that keeps the port: {peers} peers see {first}, so peers can meet directly")),
        (_, places) => Check::warn(
            "router",
            format!("one in between that gives every peer another port: {peers} peers see {places}"),
            format!("only peers that can be dialled are met directly; {FORWARD}"),
        ),
    }
}

/// Host and port of an address.
fn seen(address: &Multiaddr) -> Option<(String, String)> {
    let text = address.to_string();
    let mut parts = text.split('/').skip(1);
    let (_, host, protocol, port) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    matches!(protocol, "tcp" | "udp").then(|| (host.to_owned(), format!("{} {port}", protocol.to_uppercase())))
}

#[cfg(test)]
mod tests {
    use super::super::Level;
    use super::*;

    fn views(ports: &[u16]) -> Vec<Observed> {
        let at = |port: &u16| Observed { by: PeerId::random(), address: format!("/ip4/203.0.113.9/tcp/{port}").parse().unwrap() };
        ports.iter().map(at).collect()
    }

    #[test]
    fn a_router_is_known_by_the_ports_it_gives() {
        let own = ["/ip4/192.168.1.5/tcp/4001".parse().unwrap()];
        assert!(router(&views(&[4001, 4001]), &own).fact.contains("keeps the port"));
        assert_eq!(router(&views(&[4001, 4002]), &own).level, Level::Warn);
        assert!(router(&views(&[4001]), &own).fact.contains("a second --peer"));
        assert!(router(&views(&[4001]), &["/ip4/203.0.113.9/tcp/4001".parse().unwrap()]).fact.contains("none in between"));
        assert_eq!(router(&[], &own).level, Level::Skip);
    }

    #[test]
    fn every_verdict_has_its_remedy() {
        let relay: Multiaddr = "/ip4/203.0.113.1/tcp/4001/p2p-circuit".parse().unwrap();
        let cases = [
            (Reachability::Unknown, Level::Warn),
            (Reachability::Public { addresses: vec![relay.clone()] }, Level::Ok),
            (Reachability::Private { relays: vec![relay] }, Level::Warn),
            (Reachability::Private { relays: Vec::new() }, Level::Fail),
        ];
        for (reachability, level) in cases {
            let check = dialable(&reachability);
            assert_eq!((check.level, check.remedy.is_some()), (level, level != Level::Ok), "{check:?}");
        }
    }
}
