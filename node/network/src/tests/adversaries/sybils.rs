//! Four readers that take all they can and give nothing, for every honest peer.

use futures::{AsyncWriteExt, StreamExt};
use libp2p::swarm::SwarmEvent;

use super::super::hostile::bare_swarm_at;
use super::*;
use crate::behaviour::NetEvent;
use crate::sync_codec::Question;

const HONEST: u8 = 4;
const SYBILS: u8 = 16;

/// Keeps as many questions and blob streams open as it may and more, reads gossip, and passes nothing on. Says how many
/// answers it got.
async fn sybil(secret: u8, to: Multiaddr, victim: PeerId, until: Instant) -> usize {
    let mut swarm = bare_swarm_at(secret, &format!("/ip4/127.0.0.{}/tcp/0", 2 + secret % 8)).await;
    swarm.dial(to).unwrap();
    let mut answers = 0;
    let mut hanging = Vec::new();
    let mut opening = tokio::task::JoinSet::<Result<crate::blob_streams::Opened, tokio::sync::oneshot::error::RecvError>>::new();
    let mut pace = tokio::time::interval(Duration::from_millis(20));
    while Instant::now() < until {
        tokio::select! {
            event = swarm.select_next_some() => {
                if let SwarmEvent::Behaviour(NetEvent::Sync(libp2p::request_response::Event::Message {
                    message: libp2p::request_response::Message::Response { .. }, ..
                })) = event {
                    answers += 1;
                }
            }
            Some(opened) = opening.join_next() => if let Ok(Ok(Ok((_, mut stream)))) = opened {
                // The first half of a question, and never the rest.
                let _ = stream.write_all(&[1; 20]).await;
                hanging.push(stream);
            },
            _ = pace.tick() => {
                let behaviour = swarm.behaviour_mut();
                for _ in 0..8 {
                    behaviour.sync.send_request(&victim, Question::Bytes(b"what do you have".to_vec()));
                }
                let (reply, answer) = tokio::sync::oneshot::channel();
                behaviour.blobs.open(victim, reply);
                opening.spawn(answer);
            }
        }
    }
    answers
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sybil_readers_four_to_one_leave_the_honest_their_share() {
    let victim = Victim::start().await;
    let honest = Honest::around(&victim, HONEST).await;
    let before = (victim.moment(), victim.now());
    let until = Instant::now() + Duration::from_secs(12);
    let mut sybils = tokio::task::JoinSet::new();
    for secret in 0..SYBILS {
        sybils.spawn(sybil(100 + secret, victim.address.clone(), victim.id, until));
    }
    let delivered = honest.talk().await;
    let answers: usize = sybils.join_all().await.into_iter().sum();
    println!("sybils got {answers} answers, {} a sybil", answers / usize::from(SYBILS));
    assert!(answers > 0, "there was an attack");
    judge("sybils", &victim, before, delivered, None);
}
