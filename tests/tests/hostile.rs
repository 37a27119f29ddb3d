//! Bar 7: hostile input is refused with one clear sentence and changes nothing. What each item is shown by:
//!
//! | item | rule (protocol, node) | here, against running peers |
//! |---|---|---|
//! | wrong signature | `record::a_wrong_signature_is_refused`, `no_flipped_bit_anywhere_is_accepted` | `records_...` |
//! | not in the roster | `record::a_member_outside_the_roster_is_refused` | `records_...` |
//! | wrong round | `record::another_round_is_refused`, `machine::a_peer_of_another_round_is_told_so` | `records_...` |
//! | wrong base digest | `record::another_base_is_refused` | `records_...`, and `command_line` for a member's own base |
//! | missing or extra tensor | `adapter::every_hostile_file_is_refused_with_its_facts` | `adapters_...` |
//! | wrong shape or dtype | `adapter::every_hostile_file_is_refused_with_its_facts` | `adapters_...` |
//! | NaN, Inf, beyond 16 | `adapter::every_unfit_value_is_refused_with_its_place` | `adapters_...`, `command_line` |
//! | header beyond its bound | `adapter::every_hostile_file_is_refused_with_its_facts` | `adapters_...` |
//! | truncated blob | `adapter::every_hostile_file_is_refused_with_its_facts`, `network::hostile` (stream) | `adapters_...` |
//! | wrong hash | `network::hostile::every_lie_is_refused_by_name_and_costs_no_honest_byte`, `store` | `verify` |
//! | oversized CBOR | `encoding::an_oversized_message_is_refused_before_it_is_read`, `network::loud` | `records_...` |
//! | deep CBOR | `encoding::deep_nesting_is_refused_without_recursion` | `records_...`, `questions_...` |
//! | trailing bytes | `encoding::trailing_bytes_are_refused` | `records_...` |
//! | weight 0 or above the cap | `record::weights_outside_the_rule_are_refused` | `records_...` |
//! | broken records without end | `machine::blame_tests` | `answers::...` |
//! | replayed older sequence | `ledger::a_higher_sequence_supersedes_and_an_older_one_changes_nothing` | `records_...` |
//!
//! The hostile side is a real network in this process that speaks the real protocols with keys of its own, some of them
//! in the roster; the honest side are real processes.

#[path = "hostile/answers.rs"]
mod answers;

use std::time::Duration;

use mingle::network::{Limits, Network, NetworkConfig, NetworkEvent, NetworkHandle, PeerId, ReachConfig};
use mingle::store::Store;
use mingle_protocol::adapter::{Dtype, canonical_header};
use mingle_protocol::encoding::to_cbor;
use mingle_protocol::hash::ContentHash;
use mingle_protocol::identity::SecretKey;
use mingle_protocol::record::{Announcement, Record, Withdrawal};
use mingle_protocol::round::{Round, RoundId};
use mingle_protocol::sync::{RawRecord, Request};
use mingle_tests::adapters::{WEIGHT_CAP, adapter_file, file_of, round, write_peft};
use mingle_tests::peer::{Transport, address, bytes_of};
use mingle_tests::{Peer, agree, wait};
use tempfile::TempDir;
use tokio::runtime::Runtime;

const PROGRAM: &str = env!("CARGO_BIN_EXE_mingle-peer");
/// Members 1 and 2 are honest; those up to here are in the roster.
const ROSTER: u8 = 16;

fn key(number: u8) -> SecretKey {
    SecretKey::from_bytes(&[number; 32])
}

/// Two honest members that have merged each other's adapter.
struct Scene {
    folder: TempDir,
    round: Round,
    honest: Vec<Peer>,
    merged: ContentHash,
    runtime: Runtime,
}

impl Scene {
    fn new(name: &str) -> Self {
        let folder = TempDir::new().expect("a temporary folder");
        let round = round(name, 2, 24, (1..=ROSTER).map(|number| key(number).member()));
        std::fs::write(folder.path().join("round.json"), round.to_json()).expect("a round file");
        let addresses = [Transport::Tcp, Transport::Quic].map(address);
        let mut honest: Vec<Peer> = (1..=2u8)
            .map(|number| {
                let directory = folder.path().join(format!("adapter-{number}"));
                write_peft(&directory, &round, &adapter_file(&round, u64::from(number)));
                let mut peer = Peer::new(PROGRAM, folder.path(), &format!("honest-{number}"), round.id(), ["publish"]);
                std::fs::create_dir_all(peer.home().folder()).expect("a home");
                let secret: String = key(number).to_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
                std::fs::write(peer.home().key_path(), secret).expect("a key");
                peer.argue([directory, "--round".into(), folder.path().join("round.json")]);
                let (own, other) = (&addresses[usize::from(number) - 1], &addresses[2 - usize::from(number)]);
                peer.argue(["--examples", "100", "--listen", own, "--peer", other]);
                peer.start();
                peer
            })
            .collect();
        let merged = agree(&mut honest, 2).merged_hash;
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
        Self { folder, round, honest, merged, runtime }
    }

    /// A network with this key, connected to the first honest peer. It answers nothing: that is for the honest side to bear.
    fn hostile(&self, number: u8) -> Hostile {
        self.hostile_that(number, |_, _| {})
    }

    /// One that does something about what it hears.
    fn hostile_that(&self, number: u8, mut reacts: impl FnMut(&NetworkHandle, NetworkEvent) + Send + 'static) -> Hostile {
        let status = self.honest[0].status().expect("a status");
        let store = Store::open(self.folder.path().join(format!("hostile-{number}"))).expect("a store");
        let config = NetworkConfig {
            secret: key(number).to_bytes(),
            listen: vec!["/ip4/127.0.0.1/tcp/0".parse().expect("an address")],
            bootstrap: status.listening.iter().map(|address| address.parse().expect("an address")).collect(),
            mdns: false,
            reach: ReachConfig::default(),
            topic: format!("/mingle/records/1/{}", self.round.id()),
            allowed: None,
            limits: Limits::default(),
        };
        let _inside = self.runtime.enter();
        let (handle, mut events) = Network::start(config, store.clone()).expect("a network");
        let own = handle.clone();
        self.runtime.spawn(async move {
            while let Some(event) = events.recv().await {
                reacts(&own, event);
            }
        });
        let target: PeerId = status.peer.parse().expect("a peer");
        wait("a connection to the honest peer", || handle.connected_peers().contains(&target).then_some(()));
        Hostile { handle, target, store }
    }

    /// A right announcement of a blob, to be bent.
    fn announcement(&self, number: u8, blob: &[u8]) -> Announcement {
        Announcement {
            round: self.round.id(),
            member: key(number).member(),
            sequence: 1,
            adapter: ContentHash::of(blob),
            size: blob.len() as u64,
            weight: 100,
            base: self.round.manifest().base.digest,
            examples: 100,
            losses: None,
            privacy: None,
        }
    }

    /// Waits for the event with this reason at the first honest peer.
    #[track_caller]
    fn refused(&mut self, kind: &str, why: &str) {
        let sentence = |peer: &mut Peer| peer.events_named(kind).iter().any(|event| event["why"] == why).then_some(());
        self.honest[0].wait(&format!("the sentence {why:?}"), sentence);
    }

    /// Both honest peers run, and hold what they held.
    #[track_caller]
    fn nothing_changed(&mut self) {
        assert!(self.honest.iter_mut().all(Peer::runs), "a peer was brought down");
        let merged = agree(&mut self.honest, 2);
        assert_eq!(merged.merged_hash, self.merged);
    }

    /// A reader that knows the first honest peer ends with the honest merge.
    fn reader_is_served(&self) {
        let out = self.folder.path().join("read");
        let mut reader = Peer::new(PROGRAM, self.folder.path(), "reader", self.round.id(), ["fetch", "--adapters", "2", "--timeout", "60"]);
        reader.argue(["--round".into(), self.folder.path().join("round.json"), "--out".into(), out.clone()]);
        let status = self.honest[0].status().expect("a status");
        reader.argue(["--listen", "/ip4/127.0.0.1/tcp/0", "--peer", &status.listening[0]]);
        reader.start();
        let ended = reader.wait("the reader to end", Peer::ended);
        assert!(ended.success(), "{}", reader.told());
        assert_eq!(ContentHash::of(&bytes_of(&out.join("adapter_model.safetensors"))), self.merged);
    }
}

struct Hostile {
    handle: NetworkHandle,
    target: PeerId,
    store: Store,
}

impl Hostile {
    /// Hands records over as a reconciliation does.
    fn hand_over(&self, round: RoundId, records: Vec<Vec<u8>>) {
        let records = records.into_iter().map(RawRecord).collect();
        let request = Request::Exchange { round, wanted: Default::default(), records };
        self.ask(request.to_bytes().expect("a request"));
    }

    fn ask(&self, bytes: Vec<u8>) {
        self.handle.sync_request(self.target, bytes).expect("the network takes it");
    }

    fn gossip(&self, bytes: Vec<u8>) {
        self.handle.publish(bytes).expect("the network takes it");
    }
}

/// A record with the signature of any key over anything: the checks of `SignedRecord::sign` are not for the hostile.
fn forged(record: &Record, signer: u8) -> Vec<u8> {
    let payload = to_cbor(record).expect("a record");
    [key(signer).sign("record/1", &payload).as_slice(), &payload].concat()
}

#[test]
fn records_that_break_a_rule_are_refused_by_name_over_sync_and_gossip() {
    let mut scene = Scene::new("hostile records");
    let hostile = scene.hostile(3);
    let right = scene.announcement(3, b"an adapter");
    let say = |change: &dyn Fn(&mut Announcement)| {
        let mut said = right.clone();
        change(&mut said);
        forged(&Record::Announcement(said), 3)
    };
    let (member, id, base) = (right.member, scene.round.id(), right.base);
    let (stranger, elsewhere) = (key(ROSTER + 1).member(), ContentHash::of(b"elsewhere"));
    let max = scene.round.adapter_bytes_max();
    let trailing = [say(&|_| {}), vec![0]].concat();
    let deep = [vec![0; 64], vec![0x81; 100], vec![0]].concat();
    let cases: Vec<(Vec<u8>, String)> = vec![
        (vec![7; 10], "record is malformed: message ends in the middle of a value".into()),
        (vec![7; 4_097], "record is malformed: message of 4097 bytes is larger than the 4096 allowed".into()),
        (deep, "record is malformed: message nests deeper than 8 levels".into()),
        (trailing, "record is malformed: message is followed by 1 bytes that do not belong to it".into()),
        (forged(&Record::Announcement(right.clone()), 4), format!("signature does not belong to member {member}")),
        (
            forged(&Record::Announcement(Announcement { member: stranger, ..right.clone() }), ROSTER + 1),
            format!("member {stranger} is not in the round's roster"),
        ),
        (say(&|said| said.round = RoundId(elsewhere)), format!("record is for round {elsewhere}, this is round {id}")),
        (say(&|said| said.base = elsewhere), format!("adapter was trained on base {elsewhere}, this round needs {base}")),
        (say(&|said| said.sequence = 0), "sequence is 0, but starts at 1".into()),
        (say(&|said| (said.weight, said.examples) = (0, 0)), "weight is 0, but an adapter counts at least 1".into()),
        (
            say(&|said| (said.weight, said.examples) = (WEIGHT_CAP + 1, WEIGHT_CAP + 1)),
            format!("weight {} is above the round's cap of {WEIGHT_CAP}", WEIGHT_CAP + 1),
        ),
        (say(&|said| said.weight = 101), "weight 101 does not follow from 100 examples; the round's rule gives 100".into()),
        (say(&|said| said.size = max + 1), format!("adapter of {} bytes is larger than the {max} this round allows", max + 1)),
    ];
    hostile.hand_over(id, cases.iter().map(|(bytes, _)| bytes.clone()).collect());
    for (_, why) in &cases {
        scene.refused("record_refused", why);
    }
    // By gossip they are refused with the same words; a few only, since whoever sends many is not heard any more.
    let before = scene.honest[0].events_named("record_refused").len();
    for (bytes, _) in &cases[3..6] {
        hostile.gossip(bytes.clone());
    }
    scene.honest[0].wait("three more refusals", |peer| (peer.events_named("record_refused").len() >= before + 3).then_some(()));
    scene.nothing_changed();

    // What this member takes back stays taken back, however often its announcement is said again.
    let withdrawal = Record::Withdrawal(Withdrawal { round: id, member, sequence: 2 });
    hostile.hand_over(id, vec![say(&|_| {}), forged(&withdrawal, 3), say(&|_| {})]);
    let withdrawn = |peer: &mut Peer| peer.slots().iter().find(|slot| slot.member == member).map(|slot| slot.state.clone());
    assert_eq!(scene.honest[1].wait("the withdrawal", withdrawn), "withdrawn");
    hostile.hand_over(id, vec![say(&|_| {})]);
    hostile.gossip(say(&|_| {}));
    std::thread::sleep(Duration::from_millis(700));
    assert_eq!(withdrawn(&mut scene.honest[0]).as_deref(), Some("withdrawn"));
    // Two adapters at one sequence count for nothing, at both peers.
    let other = forged(&Record::Announcement(scene.announcement(4, b"one")), 4);
    let again = forged(&Record::Announcement(scene.announcement(4, b"two")), 4);
    hostile.hand_over(id, vec![other, again]);
    let conflict =
        |peer: &mut Peer| peer.slots().iter().any(|slot| slot.member == key(4).member() && slot.state == "conflict").then_some(());
    scene.honest.iter_mut().for_each(|peer| peer.wait("the conflict", conflict));
    scene.nothing_changed();
    scene.reader_is_served();
}

#[test]
fn adapters_that_do_not_fit_the_round_are_fetched_once_and_never_merged() {
    let mut scene = Scene::new("hostile adapters");
    let right = adapter_file(&scene.round, 9);
    let data = scene.round.tensors().elements() as usize * 4;
    let header = right.len() - data;
    let of = |value: f32| file_of(&scene.round, |index| if index == 5 { value } else { 0.25 });
    let first = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight";
    let renamed = |from: &str, to: &str| {
        let text = String::from_utf8_lossy(&right[8..header]).replacen(from, to, 1);
        [&(text.len() as u64).to_le_bytes(), text.as_bytes(), &right[header..]].concat()
    };
    let mut long_header = right.clone();
    long_header[..8].copy_from_slice(&(2u64 << 20).to_le_bytes());
    let shape_of = |modules, width| {
        let other = round("other", modules, width, []);
        [canonical_header(other.tensors(), Dtype::F32), vec![0; other.tensors().elements() as usize * 4]].concat()
    };
    let cases: Vec<(Vec<u8>, String)> = vec![
        (of(f32::NAN), format!("element 5 of the tensor {first} is NaN")),
        (of(f32::NEG_INFINITY), format!("element 5 of the tensor {first} is infinite")),
        (of(-16.5), format!("element 5 of the tensor {first} is -16.5, but at most 16 either way is allowed")),
        (
            right[..right.len() - 1].to_vec(),
            format!("the file is {} bytes long, but its header describes {}", right.len() - 1, right.len()),
        ),
        (right[..100].to_vec(), format!("the header needs {header} bytes, but only 100 are there")),
        (shape_of(1, 24), "the tensor base_model.model.model.layers.1.self_attn.q_proj.lora_A.weight is missing".into()),
        (shape_of(3, 4), format!("the tensor {first} has shape [4, 4], but the round's adapter shape needs [4, 24]")),
        (
            renamed("layers.1.", "layers.7."),
            "the tensor \"base_model.model.model.layers.7.self_attn.q_proj.lora_A.weight\" is not part of the round's adapter shape".into(),
        ),
        (renamed("F32", "I32"), format!("the tensor {first} has dtype \"I32\", but F32, BF16 or F16 is needed")),
        (long_header, "the header is 2097152 bytes long, but at most 1048576 are allowed".into()),
        (b"not a tensor file at all".to_vec(), "the header is 7310503696657575790 bytes long, but at most 1048576 are allowed".into()),
    ];
    // Each from a member of its own, so that every one of them counts until it is looked at.
    let hostile = scene.hostile(3);
    for ((blob, _), number) in cases.iter().zip(3..) {
        hostile.store.put_blob(blob).expect("a blob");
        hostile.gossip(forged(&Record::Announcement(scene.announcement(number, blob)), number));
    }
    // And one that nobody has: readers must not wait for it for ever.
    hostile.gossip(forged(&Record::Announcement(scene.announcement(ROSTER, b"never made")), ROSTER));
    for (_, why) in &cases {
        scene.refused("adapter_refused", why);
    }
    for peer in &mut scene.honest {
        let all = |peer: &mut Peer| (peer.slots().iter().filter(|slot| slot.refused.is_some()).count() == cases.len()).then_some(());
        peer.wait("every bad adapter to be refused", all);
        assert_eq!(peer.events_named("adapter_refused").len(), cases.len(), "each is refused once: {}", peer.told());
    }
    scene.nothing_changed();
    scene.reader_is_served();
}

#[test]
fn questions_that_are_none_are_survived() {
    let mut scene = Scene::new("hostile questions");
    let hostile = scene.hostile(ROSTER + 1);
    let deep = [vec![0x81; 1_000], vec![0]].concat();
    for bytes in [Vec::new(), vec![0xff; 100], deep, vec![0x9a, 0xff, 0xff, 0xff, 0xff], vec![0; 200_000]] {
        hostile.ask(bytes);
    }
    scene.refused("trouble", "message nests deeper than 8 levels");
    scene.refused("trouble", "message ends in the middle of a value");
    scene.refused("trouble", "message uses a form of CBOR that is not allowed here (byte 0xff)");
    let many = Request::Exchange { round: scene.round.id(), wanted: Default::default(), records: vec![RawRecord(vec![1]); 257] };
    hostile.ask(many.to_bytes().expect("a request"));
    scene.refused("trouble", "message does not have the expected fields: a list of 257 where at most 256 are allowed");
    scene.nothing_changed();
    scene.reader_is_served();
}
