//! Bar 6: a member that joins when all others have finished, one that was cut off while they announced, and two groups
//! that never heard of each other all end with the same merged adapter. Real processes over TCP and QUIC.

use std::path::{Path, PathBuf};

use mingle_protocol::hash::ContentHash;
use mingle_protocol::merge::Accumulator;
use mingle_protocol::round::Round;
use mingle_tests::peer::{Transport, address, bytes_of};
use mingle_tests::{Peer, adapters, agree};
use tempfile::TempDir;

const PROGRAM: &str = env!("CARGO_BIN_EXE_mingle-peer");

/// A round of published adapters, 40 KB each.
struct Scene {
    folder: TempDir,
    round: Round,
    file: PathBuf,
}

impl Scene {
    fn new(name: &str) -> Self {
        let folder = TempDir::new().expect("a temporary folder");
        let round = adapters::round(name, 4, 320, []);
        let file = folder.path().join("round.json");
        std::fs::write(&file, round.to_json()).expect("a round file");
        Self { folder, round, file }
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    /// A member that publishes adapter `number` with `100 * number` examples, listening where it is told.
    fn member(&self, number: u64, listen: &str, dials: &[&str]) -> Peer {
        let directory = self.path().join(format!("adapter-{number}"));
        adapters::write_peft(&directory, &self.round, &adapters::adapter_file(&self.round, number));
        let mut peer = Peer::new(PROGRAM, self.path(), &format!("member-{number}"), self.round.id(), ["publish"]);
        peer.argue([directory.into_os_string(), "--round".into(), self.file.clone().into()]);
        peer.argue(["--examples", &(100 * number).to_string(), "--listen", listen]);
        dials.iter().for_each(|address| peer.argue(["--peer", address]));
        peer.start();
        peer
    }

    /// The merged hash of these members' adapters, folded here.
    fn expected(&self, numbers: &[u64]) -> ContentHash {
        let mut average = Accumulator::new(self.round.tensors());
        for number in numbers {
            average.add(&adapters::adapter_file(&self.round, *number), 100 * number).expect("a whole adapter");
        }
        ContentHash::of(&average.finalise().expect("a merge"))
    }

    /// A reader fetches from these addresses; its merged file.
    fn read(&self, name: &str, adapters: usize, dials: &[&str]) -> Vec<u8> {
        let out = self.path().join(format!("{name}-merged"));
        let mut reader = Peer::new(PROGRAM, self.path(), name, self.round.id(), ["fetch", "--round"]);
        reader.argue([self.file.clone().into_os_string(), "--out".into(), out.clone().into()]);
        reader.argue(["--adapters", &adapters.to_string(), "--timeout", "60", "--listen", "/ip4/127.0.0.1/tcp/0"]);
        dials.iter().for_each(|address| reader.argue(["--peer", address]));
        reader.start();
        let ended = reader.wait("the reader to end", Peer::ended);
        assert!(ended.success(), "{}", reader.told());
        bytes_of(&out.join("adapter_model.safetensors"))
    }
}

#[test]
fn a_member_that_joins_after_all_others_have_finished_ends_with_the_same_hash() {
    let scene = Scene::new("late");
    let [first, second, third, last] = [Transport::Tcp, Transport::Quic, Transport::Tcp, Transport::Quic].map(address);
    let mut peers = vec![scene.member(1, &first, &[]), scene.member(2, &second, &[&first]), scene.member(3, &third, &[&first, &second])];
    assert_eq!(agree(&mut peers, 3).merged_hash, scene.expected(&[1, 2, 3]));
    // Two of them are gone for good: the third alone has to hand over what they said and made.
    peers.drain(1..);
    peers.push(scene.member(4, &last, &[&first]));
    let merged = agree(&mut peers, 4);
    assert_eq!(merged.merged_hash, scene.expected(&[1, 2, 3, 4]));
    assert_eq!(merged.weight, 1_000);
    // And a reader that knows only the one that came last.
    peers.remove(0);
    assert_eq!(ContentHash::of(&scene.read("reader", 4, &[&last])), merged.merged_hash);
    assert!(peers[0].slots().iter().all(|slot| slot.sequence == 1 && slot.state == "adapter"), "{}", peers[0].told());
}

#[test]
fn a_member_that_was_cut_off_while_the_others_announced_ends_with_the_same_hash() {
    let scene = Scene::new("cut off");
    let [first, second, alone] = [Transport::Quic, Transport::Tcp, Transport::Tcp].map(address);
    // Nobody knows the third, and it knows nobody.
    let mut cut_off = vec![scene.member(3, &alone, &[])];
    let mut peers = vec![scene.member(1, &first, &[&second]), scene.member(2, &second, &[&first])];
    assert_eq!(agree(&mut peers, 2).merged_hash, scene.expected(&[1, 2]));
    assert_eq!(agree(&mut cut_off, 1).merged_hash, scene.expected(&[3]));
    // Its line is mended: the same home, now with a neighbour.
    cut_off[0].kill();
    cut_off[0].argue(["--peer", &first]);
    cut_off[0].start();
    peers.append(&mut cut_off);
    assert_eq!(agree(&mut peers, 3).merged_hash, scene.expected(&[1, 2, 3]));
}

#[test]
fn two_groups_that_never_met_become_one_through_one_peer() {
    let scene = Scene::new("two groups");
    let addresses: Vec<String> = (0..5).map(|index| address(if index % 2 == 0 { Transport::Tcp } else { Transport::Quic })).collect();
    let mut left = vec![scene.member(1, &addresses[0], &[]), scene.member(2, &addresses[1], &[&addresses[0]])];
    let mut right = vec![scene.member(3, &addresses[2], &[]), scene.member(4, &addresses[3], &[&addresses[2]])];
    assert_eq!(agree(&mut left, 2).merged_hash, scene.expected(&[1, 2]));
    assert_eq!(agree(&mut right, 2).merged_hash, scene.expected(&[3, 4]));
    // One that knows a peer of each group announces, and nobody is told to do anything.
    let bridge = scene.member(5, &addresses[4], &[&addresses[1], &addresses[2]]);
    let mut all: Vec<Peer> = left.into_iter().chain(right).chain([bridge]).collect();
    assert_eq!(agree(&mut all, 5).merged_hash, scene.expected(&[1, 2, 3, 4, 5]));
}

#[test]
fn a_member_whose_disk_lost_its_adapter_stores_it_again() {
    let scene = Scene::new("lost");
    let mut peers = vec![scene.member(1, &address(Transport::Tcp), &[])];
    let merged = agree(&mut peers, 1);
    peers[0].kill();
    let adapter = ContentHash::of(&adapters::adapter_file(&scene.round, 1));
    let blob = peers[0].round_home().store().join("blobs").join(format!("{adapter}.blob"));
    std::fs::remove_file(&blob).expect("the blob was there");
    // Nobody else has it.
    peers[0].start();
    assert_eq!(agree(&mut peers, 1).merged_hash, merged.merged_hash);
    assert!(blob.exists() && peers[0].slots().iter().all(|slot| slot.sequence == 1));
}

#[test]
fn a_withdrawn_member_leaves_no_trace_and_a_reader_that_comes_again_learns_of_it() {
    let scene = Scene::new("withdrawn");
    let (first, second) = (address(Transport::Tcp), address(Transport::Quic));
    let mut peers =
        vec![scene.member(1, &first, &[]), scene.member(2, &second, &[&first]), scene.member(3, &address(Transport::Tcp), &[&first])];
    assert_eq!(agree(&mut peers, 3).merged_hash, scene.expected(&[1, 2, 3]));
    assert_eq!(ContentHash::of(&scene.read("reader", 3, &[&first])), scene.expected(&[1, 2, 3]));

    let mut gone = peers.pop().expect("the third");
    gone.kill();
    let mut withdrawing = Peer::new(PROGRAM, scene.path(), "member-3", scene.round.id(), ["withdraw", "--round"]);
    withdrawing.argue([scene.file.clone()]);
    withdrawing.argue(["--peer", &first]);
    withdrawing.start();
    assert_eq!(agree(&mut peers, 2).merged_hash, scene.expected(&[1, 2]), "as if it had never been in");
    for peer in &peers {
        let third = ContentHash::of(&adapters::adapter_file(&scene.round, 3));
        let blob = peer.round_home().store().join("blobs").join(format!("{third}.blob"));
        assert!(!blob.exists(), "what nobody needs is dropped");
    }
    // The same home as before: what it remembers is not enough.
    std::fs::rename(scene.path().join("reader-merged"), scene.path().join("older")).expect("moved");
    assert_eq!(ContentHash::of(&scene.read("reader", 2, &[&second])), scene.expected(&[1, 2]));
}
