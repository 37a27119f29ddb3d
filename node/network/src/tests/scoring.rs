//! What scores do while they are only observed, and once they are on.

use super::*;

/// Beyond what gossip forgives, and within what the guard does.
const INVALID: u8 = 8;

/// A victim that rejects what is bad, and a neighbour that says such things until it is cut or has said them all.
async fn suffers(scoring: Scoring) -> (Peer, Peer) {
    let mut config = config(1, TCP, &[]);
    config.limits.scoring = scoring;
    let mut victim = start(config).await;
    let mut neighbour = start(super::config(2, TCP, &[&victim.address])).await;
    neighbour.connected_to(victim.id()).await;
    victim.connected_to(neighbour.id()).await;
    // Where scores are on, gossip does not hear the last of them any more.
    let patience = if scoring == Scoring::On { Duration::from_secs(3) } else { PATIENCE };
    for number in 0..INVALID {
        neighbour.handle.publish(vec![b'b', number]).unwrap();
        let heard = async {
            while let Some(event) = victim.events.recv().await {
                if let NetworkEvent::Gossip { message_id, from, .. } = event {
                    return victim.handle.report(message_id, from, Verdict::Reject).unwrap();
                }
            }
        };
        let _ = timeout(patience, heard).await;
    }
    (victim, neighbour)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_observed_score_is_shown_and_costs_nothing() {
    let (mut victim, mut neighbour) = suffers(Scoring::Observe).await;
    let id = neighbour.id();
    let score = |victim: &Peer| victim.handle.peers().iter().find(|peer| peer.peer == id).map(|peer| peer.score);
    let until = tokio::time::Instant::now() + PATIENCE;
    while score(&victim).is_none_or(|score| score >= crate::gossip::GRAYLIST) {
        assert!(tokio::time::Instant::now() < until, "{:?}", victim.handle.peers());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(victim.handle.peers()[0].counts.offences, u64::from(INVALID), "every one was heard");
    // It stays connected over several looks at its score, and is heard both ways.
    tokio::time::sleep(limits::WATCH_TICK * 4).await;
    assert!(victim.handle.connected_peers().contains(&id));
    neighbour.handle.publish(b"good".to_vec()).unwrap();
    let (message, from, bytes) = victim.gossip().await;
    assert_eq!((from, bytes.as_slice()), (id, b"good".as_slice()));
    victim.handle.report(message, from, Verdict::Accept).unwrap();
    victim.handle.publish(b"answer".to_vec()).unwrap();
    assert_eq!(neighbour.gossip().await.2, b"answer");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_score_that_is_on_ends_the_connection() {
    let (victim, neighbour) = suffers(Scoring::On).await;
    let cut_by = tokio::time::Instant::now() + Duration::from_secs(15);
    while victim.handle.connected_peers().contains(&neighbour.id()) {
        assert!(tokio::time::Instant::now() < cut_by, "{:?}", victim.handle.peers());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // It dials again within a second or two, and is kept out.
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert!(victim.handle.connected_peers().is_empty());
}
