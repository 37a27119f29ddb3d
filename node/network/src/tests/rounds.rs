//! A round's file from a peer that has it: believed for its identity alone.

use std::sync::Arc;

use mingle_protocol::hash::ContentHash;
use mingle_protocol::round::{MANIFEST_BYTES_MAX, RoundId};

use super::*;
use crate::rounds::{GetRoundError, get_round};
use crate::web::Web;

fn id(text: &str) -> RoundId {
    RoundId(ContentHash::of(text.as_bytes()))
}

/// What a round file is here: any bytes that hash to the identity.
fn check(round: RoundId) -> impl Fn(&[u8]) -> Result<usize, String> {
    move |bytes| if ContentHash::of(bytes) == round.0 { Ok(bytes.len()) } else { Err("it gave another file".into()) }
}

async fn get(round: RoundId, peers: &[&Multiaddr]) -> Result<usize, String> {
    let peers = peers.iter().map(|address| (*address).clone()).collect();
    match get_round([99; 32], round, peers, &Web::default(), PATIENCE, check(round)).await {
        Ok(length) => Ok(length),
        Err(GetRoundError::Unreached(error)) => Err(error.to_string()),
        Err(other) => panic!("{other}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_round_file_comes_from_whoever_has_it() {
    let (tcp, quic, liar) = (start(config(1, TCP, &[])).await, start(config(2, QUIC, &[])).await, start(config(3, TCP, &[])).await);
    let file: Arc<[u8]> = vec![b'x'; MANIFEST_BYTES_MAX].into();
    let round = RoundId(ContentHash::of(&file));
    tcp.handle.offer_round(round, file.clone()).unwrap();
    quic.handle.offer_round(round, file.clone()).unwrap();
    liar.handle.offer_round(round, b"other".as_slice().into()).unwrap();
    let bare: Multiaddr = tcp.address.iter().take(2).collect();
    for peers in [vec![&tcp.address], vec![&bare], vec![&quic.address], vec![&liar.address, &tcp.address]] {
        assert_eq!(get(round, &peers).await, Ok(MANIFEST_BYTES_MAX));
    }
    // Nobody has it, and each is heard.
    let refused = get(round, &[&liar.address]).await.unwrap_err();
    assert!(refused.contains("it gave another file") && refused.contains(&round.to_string()), "{refused}");
    let refused = get(id("another"), &[&tcp.address, &quic.address]).await.unwrap_err();
    assert_eq!(refused.matches("it does not know this round").count(), 2, "{refused}");
    let nobody: Multiaddr = "/ip4/127.0.0.1/tcp/1".parse().unwrap();
    let refused = get(round, &[&nobody]).await.unwrap_err();
    assert!(refused.contains("/ip4/127.0.0.1/tcp/1: Connection refused"), "{refused}");
    assert!(get(round, &[]).await.is_err());
    // Who asks without end is not answered.
    let mut answered = 0;
    while get(round, &[&quic.address]).await.is_ok() {
        answered += 1;
        assert!(answered < 100);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_may_not_connect_gets_no_round_file() {
    let closed = start(NetworkConfig { allowed: Some([member(2)].into()), ..config(1, TCP, &[]) }).await;
    let round = id("file");
    closed.handle.offer_round(round, b"file".as_slice().into()).unwrap();
    let refused = get(round, &[&closed.address]).await.unwrap_err();
    assert!(refused.contains("it may admit only keys of its round"), "{refused}");
    let peers = vec![closed.address.clone()];
    assert_eq!(get_round([2; 32], round, peers, &Web::default(), PATIENCE, check(round)).await.unwrap(), 4);
}
