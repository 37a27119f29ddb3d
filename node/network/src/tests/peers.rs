//! Connections, gossip and sync between honest peers.

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn gossip_is_passed_on_only_after_a_verdict() {
    // A line: the ends refuse each other, so all passes through the middle.
    let mut middle = start(config(2, TCP, &[])).await;
    let ends = [1, 3].map(|secret| NetworkConfig { allowed: Some([member(2)].into()), ..config(secret, TCP, &[&middle.address]) });
    let [first, last] = ends;
    let (mut first, mut last) = (start(first).await, start(last).await);
    first.handle.publish(b"ignored".to_vec()).unwrap(); // Before anybody listens: it waits.
    let (id, from, bytes) = middle.gossip().await;
    assert_eq!((from, bytes.as_slice()), (first.id(), b"ignored".as_slice()));
    middle.connected_to(last.id()).await;
    first.connected_to(middle.id()).await;
    last.connected_to(middle.id()).await;
    middle.handle.report(id, from, Verdict::Ignore).unwrap();
    // The middle passes on what it accepts as soon as it knows that the last listens, and nothing else ever.
    let mut number = 0_u8;
    let passed = loop {
        number += 1;
        first.handle.publish(vec![number]).unwrap();
        let (id, from, _) = middle.gossip().await;
        middle.handle.report(id, from, Verdict::Accept).unwrap();
        if let Ok(passed) = timeout(Duration::from_millis(500), last.gossip()).await {
            break passed;
        }
    };
    assert_eq!(passed.1, middle.id());
    assert!((1..=number).contains(&passed.2[0]) && passed.2.len() == 1, "{passed:?}");
    assert_eq!(first.handle.connected_peers(), [middle.id()]);
    assert!(matches!(first.handle.publish(vec![0; GOSSIP_BYTES_MAX + 1]), Err(NetworkError::TooLarge { .. })));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_question_is_answered_over_tcp_and_quic() {
    for transport in [TCP, QUIC] {
        let mut one = start(config(1, transport, &[])).await;
        let mut two = start(config(2, transport, &[&one.address])).await;
        two.connected_to(one.id()).await;
        let question = content(SYNC_REQUEST_BYTES_MAX);
        two.handle.sync_request(one.id(), question.clone()).unwrap();
        let token = one
            .expect("a question", |event| match event {
                NetworkEvent::SyncRequest { from, token, bytes } => {
                    assert_eq!((from, &bytes), (two.id(), &question));
                    Some(token)
                }
                _ => None,
            })
            .await;
        let answer = content(SYNC_RESPONSE_BYTES_MAX);
        one.handle.sync_respond(token, answer.clone()).unwrap();
        let got = two.expect("an answer", |event| if let NetworkEvent::SyncResponse { bytes, .. } = event { Some(bytes) } else { None });
        assert_eq!(got.await, answer);

        let too_large = two.handle.sync_request(one.id(), content(SYNC_REQUEST_BYTES_MAX + 1));
        assert!(matches!(too_large, Err(NetworkError::TooLarge { .. })));
        one.handle.shutdown().await;
        two.expect("the news", |event| matches!(event, NetworkEvent::PeerDisconnected(_)).then_some(())).await;
        assert!(two.handle.connected_peers().is_empty());
        two.handle.sync_request(one.id(), Vec::new()).unwrap();
        two.expect("a failure", |event| matches!(event, NetworkEvent::SyncFailed { .. }).then_some(())).await;
        assert!(matches!(one.handle.publish(Vec::new()), Err(NetworkError::Stopped)));
        let Peer { store, folder, .. } = one;
        drop(store);
        Store::open(folder.path()).expect("shutdown lets go of the store");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_network_forms_from_one_address() {
    let first = start(config(1, QUIC, &[])).await;
    let mut others = Vec::new();
    for secret in 2..5 {
        // Every second one listens on TCP only, and the address has no peer in it.
        let mut bare = first.address.clone();
        bare.pop();
        others.push(
            start(NetworkConfig { listen: vec![TCP.parse().unwrap(), QUIC.parse().unwrap()], ..config(secret, TCP, &[&bare]) }).await,
        );
    }
    let ids: Vec<PeerId> = others.iter().map(Peer::id).chain([first.id()]).collect();
    for peer in &mut others {
        let me = peer.id();
        for other in ids.iter().filter(|other| **other != me) {
            peer.connected_to(*other).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bootstrap_peer_that_went_away_is_found_again() {
    let seed = start(config(1, TCP, &[])).await;
    let mut bare = seed.address.clone();
    bare.pop();
    let mut peer = start(config(2, TCP, &[&bare])).await;
    peer.connected_to(seed.id()).await;
    seed.handle.shutdown().await;
    peer.expect("the news", |event| matches!(event, NetworkEvent::PeerDisconnected(_)).then_some(())).await;
    let seed = start(NetworkConfig { listen: vec![bare], ..config(1, TCP, &[]) }).await;
    peer.connected_to(seed.id()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_are_refused_when_the_roster_is_closed() {
    let mut closed = start(NetworkConfig { allowed: Some([member(2)].into()), ..config(1, QUIC, &[]) }).await;
    let stranger = start(config(3, QUIC, &[&closed.address])).await;
    let mut friend = start(config(2, QUIC, &[&closed.address])).await;
    friend.connected_to(closed.id()).await;
    closed.connected_to(friend.id()).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(closed.handle.connected_peers(), [friend.id()]);
    assert!(!stranger.handle.connected_peers().contains(&closed.id()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_driver_that_takes_no_events_still_has_its_commands_heard() {
    let one = start(config(1, TCP, &[])).await;
    let mut two = start(config(2, TCP, &[&one.address])).await;
    two.connected_to(one.id()).await;
    // Each question fails at once: far more events than fit into the queue.
    for _ in 0..EVENTS_MAX * 3 {
        while matches!(two.handle.sync_request(PeerId::random(), Vec::new()), Err(NetworkError::Busy)) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
    timeout(PATIENCE, two.handle.shutdown()).await.unwrap();
}
