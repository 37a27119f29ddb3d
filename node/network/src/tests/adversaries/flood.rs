//! Ten thousand invalid records a second.

use futures::StreamExt;
use libp2p::swarm::SwarmEvent;

use super::super::super::gossip::short_name;
use super::super::hostile::bare_swarm_at;
use super::*;

/// Floods from when it is connected; after it was cut, comes back under another name. How long each was suffered.
async fn flood(victim: Target, first: u8, until: Instant) -> Vec<Duration> {
    let mut suffered = Vec::new();
    let mut number = 0_u64;
    for secret in first..=255 {
        let mut swarm = bare_swarm_at(secret, "/ip4/127.0.0.2/tcp/0").await;
        swarm.dial(victim.address.clone()).unwrap();
        let topic = libp2p::gossipsub::IdentTopic::new(short_name(super::super::TOPIC));
        let mut pace = tokio::time::interval(Duration::from_millis(10));
        let mut since = None;
        loop {
            tokio::select! {
                event = swarm.select_next_some() => match event {
                    SwarmEvent::ConnectionEstablished { .. } => since = Some(Instant::now()),
                    SwarmEvent::ConnectionClosed { .. } => break suffered.extend(since.map(|since: Instant| since.elapsed())),
                    SwarmEvent::OutgoingConnectionError { .. } => break,
                    _ => {}
                },
                _ = pace.tick() => {
                    if Instant::now() > until {
                        return suffered;
                    }
                    for _ in 0..if since.is_some() { 100 } else { 0 } {
                        number += 1;
                        let junk = [&number.to_le_bytes()[..], &[secret; 392]].concat();
                        let _ = swarm.behaviour_mut().gossip.publish(topic.clone(), junk);
                    }
                }
            }
        }
    }
    suffered
}

/// What an adversary knows of its victim.
#[derive(Clone)]
struct Target {
    address: Multiaddr,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_invalid_records_is_cut_and_nobody_else_notices() {
    let victim = Victim::start().await;
    let honest = Honest::around(&victim, 4).await;
    let before = (victim.moment(), victim.now());
    let known = Target { address: victim.address.clone() };
    let flooding = tokio::spawn(flood(known, 100, Instant::now() + Duration::from_secs(10)));
    let delivered = honest.talk().await;
    let suffered = flooding.await.unwrap();
    assert!(suffered.len() >= 2, "the flood was cut {} times", suffered.len());
    judge("flood", &victim, before, delivered, suffered.iter().max().copied());
}
