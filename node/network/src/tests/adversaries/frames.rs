//! Frames that promise more than any may hold, in every protocol that reads them.

use futures::StreamExt;
use libp2p::request_response::{self, ProtocolSupport};
use libp2p::swarm::{NetworkBehaviour, SwarmEvent};
use libp2p::{StreamProtocol, SwarmBuilder, identify, noise, tcp, yamux};

use super::super::loud::Raw;
use super::*;
use crate::sync_codec::SYNC_PROTOCOL;

#[derive(NetworkBehaviour)]
struct Loud {
    identify: identify::Behaviour,
    raw: request_response::Behaviour<Raw>,
    /// So that it looks like one of ours.
    sync: request_response::Behaviour<Raw>,
}

/// Sends `frame` on streams of `protocol` again and again; how long it was suffered, if it was cut.
async fn shout(to: Multiaddr, protocol: StreamProtocol, frame: Vec<u8>, until: Instant) -> Option<Duration> {
    let mut swarm = SwarmBuilder::with_new_identity()
        .with_tokio()
        .with_tcp(tcp::Config::default(), noise::Config::new, yamux::Config::default)
        .unwrap()
        .with_behaviour(|key| Loud {
            identify: identify::Behaviour::new(identify::Config::new("/mingle/1".to_owned(), key.public())),
            raw: request_response::Behaviour::with_codec(Raw, [(protocol, ProtocolSupport::Full)], Default::default()),
            sync: request_response::Behaviour::with_codec(Raw, [(SYNC_PROTOCOL, ProtocolSupport::Full)], Default::default()),
        })
        .unwrap()
        .build();
    let victim = crate::dialer::peer_in(&to).unwrap();
    swarm.listen_on("/ip4/127.0.0.2/tcp/0".parse().unwrap()).unwrap();
    let mut pace = tokio::time::interval(Duration::from_millis(20));
    let mut since: Option<Instant> = None;
    loop {
        tokio::select! {
            event = swarm.select_next_some() => match event {
                SwarmEvent::NewListenAddr { .. } => swarm.dial(to.clone()).unwrap(),
                SwarmEvent::ConnectionEstablished { .. } => since = Some(Instant::now()),
                SwarmEvent::ConnectionClosed { .. } => return since.map(|since| since.elapsed()),
                SwarmEvent::OutgoingConnectionError { error, .. } => panic!("{error}"),
                _ => {}
            },
            _ = pace.tick(), if since.is_some() => {
                if Instant::now() > until {
                    return None;
                }
                swarm.behaviour_mut().raw.send_request(&victim, frame.clone());
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn oversized_frames_are_not_read_and_their_sender_is_cut() {
    let victim = Victim::start().await;
    let honest = Honest::around(&victim, 3).await;
    let before = (victim.moment(), victim.now());
    let until = Instant::now() + CUT_WITHIN;
    // A promise of 4 GiB as each protocol writes lengths, and a megabyte of it.
    let varint = [vec![0xff, 0xff, 0xff, 0xff, 0x0f], vec![7; 1 << 20]].concat();
    let fixed = vec![255; 1 << 20];
    let protocols = [
        ("gossip", StreamProtocol::new("/meshsub/1.1.0"), varint.clone()),
        ("sync", SYNC_PROTOCOL, fixed),
        ("introduction", StreamProtocol::new("/ipfs/id/push/1.0.0"), varint),
    ];
    let mut shouting = tokio::task::JoinSet::new();
    for (name, protocol, frame) in protocols {
        let to = victim.address.clone();
        shouting.spawn(async move { (name, shout(to, protocol, frame, until).await) });
    }
    let delivered = honest.talk().await;
    let mut longest = Duration::ZERO;
    for (name, suffered) in shouting.join_all().await {
        println!("{name}: cut after {suffered:?}");
        longest = longest.max(suffered.unwrap_or_else(|| panic!("who shouts in {name} was not cut")));
    }
    judge("frames", &victim, before, delivered, Some(longest));
}
