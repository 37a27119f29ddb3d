//! Who may connect, changed while the network runs.

use super::*;

async fn gone(peer: &mut Peer, who: PeerId) {
    peer.expect("a farewell", |event| matches!(event, NetworkEvent::PeerDisconnected(left) if left == who).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_that_is_no_longer_allowed_is_disconnected_at_once_and_stays_out() {
    for transport in [TCP, QUIC] {
        let mut one = start(config(1, transport, &[])).await;
        let mut two = start(config(2, transport, &[&one.address])).await;
        let mut three = start(config(3, transport, &[&one.address])).await;
        for other in [&two, &three] {
            one.connected_to(other.id()).await;
        }
        one.handle.set_allowed(Some([member(1), member(2)].into())).unwrap();
        gone(&mut one, three.id()).await;
        assert_eq!(one.handle.connected_peers(), [two.id()]);
        // It knocks again, for it dials its bootstrap peer for ever, and people see it once.
        let knocked = one.expect("a knock", |event| if let NetworkEvent::Refused { peer, why } = event { Some((peer, why)) } else { None });
        let (who, why) = knocked.await;
        assert_eq!(who, three.id());
        assert!(why.contains("not among"), "{why}");
        tokio::time::sleep(Duration::from_secs(3)).await;
        assert!(!one.handle.connected_peers().contains(&three.id()));
        while let Ok(event) = one.events.try_recv() {
            assert!(!matches!(event, NetworkEvent::Refused { .. }), "told again within a minute");
        }
        // The friends of before are still friends, and the one that is let in again becomes one.
        two.connected_to(one.id()).await;
        one.handle.set_allowed(None).unwrap();
        one.connected_to(three.id()).await;
        three.connected_to(one.id()).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_does_not_dial_whom_it_may_not_know() {
    // The first would be dialled as a bootstrap peer for ever, and found through the second.
    let first = start(config(1, TCP, &[])).await;
    let mut second = start(config(2, TCP, &[&first.address])).await;
    second.connected_to(first.id()).await;
    let mut closed =
        start(NetworkConfig { allowed: Some([member(2), member(3)].into()), ..config(3, TCP, &[&first.address, &second.address]) }).await;
    closed.connected_to(second.id()).await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(closed.handle.connected_peers(), [second.id()]);
    assert_eq!(first.handle.connected_peers(), [second.id()]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn peers_are_shown_with_what_they_did() {
    let mut one = start(config(1, TCP, &[])).await;
    let two = start(config(2, TCP, &[&one.address])).await;
    two.handle.publish(vec![7; 300]).unwrap();
    let (id, from, _) = one.gossip().await;
    one.handle.report(id, from, Verdict::Accept).unwrap();
    let shown = timeout(PATIENCE, async {
        loop {
            match one.handle.peers().as_slice() {
                [peer] if peer.counts.accepted == 1 => break peer.clone(),
                _ => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    });
    let shown = shown.await.unwrap();
    assert_eq!((shown.peer, shown.direct), (two.id(), true));
    assert_eq!((shown.counts.messages, shown.counts.message_bytes, shown.counts.offences), (1, 300, 0));
    assert!(shown.score >= 0.0, "{}", shown.score);
}
