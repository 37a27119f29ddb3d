//! A member that trains with differential privacy says so in what it signs, and whoever has the merge reads it.

use std::path::PathBuf;

use mingle::driver::PrivacyStatus;
use mingle::merged::Proof;
use mingle_protocol::hash::{decode_hex, encode_hex};
use mingle_protocol::record::UnverifiedRecord;
use mingle_protocol::round::Round;
use mingle_tests::adapters::key;
use mingle_tests::base::{write_base, write_data};
use mingle_tests::peer::{Transport, address, bytes_of};
use mingle_tests::{Desk, Peer, agree};

const PROGRAM: &str = env!("CARGO_BIN_EXE_mingle-peer");

/// A member that trains, with these settings besides.
fn member(desk: &Desk, round: &Round, number: u8, listen: &str, first: &str, settings: &str) -> Peer {
    let data = desk.path(&format!("data-{number}.jsonl"));
    write_data(&data, 24, u64::from(number));
    let mut peer = Peer::new(PROGRAM, &desk.path(""), &format!("member-{number}"), round.id(), ["run", "--round"]);
    std::fs::create_dir_all(peer.home().folder()).expect("a home");
    std::fs::write(peer.home().key_path(), encode_hex(&key(number).to_bytes())).expect("a key");
    peer.argue([desk.path("round.json"), "--base".into(), desk.path("base"), "--data".into(), data]);
    peer.argue(["--epochs", "1", "--batch-size", "8", "--threads", "1", "--listen", listen]);
    if listen != first {
        peer.argue(["--peer", first]);
    }
    peer.argue(settings.split_whitespace());
    peer.start();
    peer
}

fn promise_of(peer: &Peer, number: u8) -> Option<PrivacyStatus> {
    peer.slots().into_iter().find(|slot| slot.member == key(number).member()).expect("a slot").privacy
}

#[test]
fn a_promise_of_privacy_goes_with_the_announcement_into_every_merge() {
    let desk = Desk::new(PROGRAM);
    write_base(&desk.path("base"), 3);
    desk.run("round new --base DIR/base --rank 2 --no-founders --out DIR/round.json").right();
    let round = Round::from_json(&bytes_of(&desk.path("round.json"))).expect("a round");
    let addresses = [Transport::Tcp, Transport::Quic].map(address);
    let promised = "--privacy-epsilon 8 --privacy-delta 1e-4 --privacy-clip 0.5 --held-out 0.25";
    let mut peers = vec![
        member(&desk, &round, 1, &addresses[0], &addresses[0], promised),
        member(&desk, &round, 2, &addresses[1], &addresses[0], "--held-out 0.25"),
    ];
    agree(&mut peers, 2);
    // Both know of both; the other's word is as its author signed it.
    for peer in &peers {
        let promise = promise_of(peer, 1).expect("a promise");
        assert!(promise.epsilon > 0.0 && promise.epsilon <= 8.0 && promise.noise > 0.0, "{promise:?}");
        assert_eq!((promise.delta, promise.clip), (1e-4, 0.5), "{promise:?}");
        assert_eq!(promise_of(peer, 2), None);
    }
    let merged: PathBuf = peers[1].merged().expect("a merge").folder;
    // Losses measured on examples that nothing protects would tell of them: who promises privacy gives none.
    for text in &Proof::read(&merged).expect("a receipt").records {
        let record = UnverifiedRecord(&decode_hex(text).expect("hex")).verify(&round).expect("a record");
        let said = record.announcement().expect("an announcement");
        assert_eq!(said.losses.is_none(), said.member == key(1).member(), "{said:?}");
    }
    let sentence = format!("`{}` promises each of its examples (", key(1).member());
    let card = String::from_utf8(bytes_of(&merged.join("README.md"))).expect("text");
    let said = desk.run(&format!("verify {} --home DIR/member-2/home", merged.display())).right();
    for text in [card, said] {
        assert!(text.contains(&sentence) && text.contains(", 1e-4)-differential privacy."), "{text}");
        assert!(!text.contains(&format!("`{}` promises", key(2).member())), "{text}");
    }
    let status = desk.run("status --round DIR/round.json --home DIR/member-2/home").right();
    assert_eq!(status.matches("promises its examples (").count(), 1, "{status}");
}
