//! A peer that answers every question with records that break a rule, and one that gives them away unasked: each costs
//! the honest side a signature's check, so their sender is soon asked no more.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Instant;

use mingle_protocol::sync::{Answer, BATCH_MAX, Response};

use super::*;

/// What each of the two would say in all.
const BROKEN: usize = 10_000;
const CUT_WITHIN: Duration = Duration::from_secs(10);
/// Members that announce while it goes on.
const HONEST: std::ops::Range<u8> = 5..13;

/// Right in everything but its signature.
fn broken(scene: &Scene) -> Vec<u8> {
    let mut bytes = forged(&Record::Announcement(scene.announcement(3, b"an adapter")), 3);
    bytes[63] ^= 1;
    bytes
}

impl Hostile {
    /// How long the honest peer stays connected from now on.
    #[track_caller]
    fn suffered(&self, began: Instant) -> Duration {
        wait("the honest peer to cut it", || (!self.handle.connected_peers().contains(&self.target)).then(|| began.elapsed()))
    }
}

#[test]
fn who_answers_with_broken_records_is_cut_and_nobody_else_notices() {
    let mut scene = Scene::new("hostile answers");
    let batch: Vec<RawRecord> = vec![RawRecord(broken(&scene)); BATCH_MAX];
    let herald = scene.hostile(4);
    let (begun, said) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let (begins, count) = (begun.clone(), said.clone());
    let [nothing_new, lies] =
        [Answer::Same, Answer::Records(batch.clone())].map(|answer| Response::from(answer).to_bytes().expect("bytes"));
    let liar = scene.hostile_that(3, move |handle, event| {
        let NetworkEvent::SyncRequest { token, .. } = event else { return };
        let lie = begins.load(Ordering::Relaxed) && count.fetch_add(BATCH_MAX, Ordering::Relaxed) < BROKEN;
        handle.sync_respond(token, if lie { lies.clone() } else { nothing_new.clone() }).expect("the network takes it");
    });
    let mut began = Instant::now();
    begun.store(true, Ordering::Relaxed);
    for number in HONEST {
        herald.gossip(forged(&Record::Announcement(scene.announcement(number, &[number])), number));
    }
    let suffered = liar.suffered(began);
    let (answers, broken) = (said.load(Ordering::Relaxed), batch.len());
    println!("cut after {suffered:?} and {answers} broken records in answers");
    assert!(suffered < CUT_WITHIN && answers > 0, "{suffered:?}, {answers} records");

    began = Instant::now();
    let giver = scene.hostile(ROSTER + 2);
    for _ in 0..BROKEN / broken {
        giver.hand_over(scene.round.id(), batch.iter().map(|record| record.0.clone()).collect());
    }
    let suffered = giver.suffered(began);
    println!("cut after {suffered:?} of giving");
    assert!(suffered < CUT_WITHIN, "{suffered:?}");

    // Everything that is right has come, at the peer that was attacked and at the one behind it, and nobody else was cut.
    let announced = |peer: &mut Peer| {
        let slots = peer.slots();
        let adapter = |number: u8| slots.iter().any(|slot| slot.member == key(number).member() && slot.state == "adapter");
        HONEST.clone().all(adapter).then_some(())
    };
    scene.honest.iter_mut().for_each(|peer| peer.wait("every right record", announced));
    assert!(herald.handle.connected_peers().contains(&herald.target));
    std::thread::sleep(Duration::from_secs(2));
    for cut in [&liar, &giver] {
        assert!(!cut.handle.connected_peers().contains(&cut.target), "it is kept out");
    }
    scene.nothing_changed();
}
