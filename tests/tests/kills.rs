//! Bar 5: `kill -9` of any peer during training, download and merge, then restart: it resumes, nothing acknowledged is
//! lost, and in the end all hold the same merged hash. Real processes, at least 20 kills in all, moments drawn from a
//! seed that a failure prints (`MINGLE_TEST_SEED` runs it again).
//!
//! A kill is aimed: the test watches the disk until a peer trains, downloads or merges, waits a drawn moment, and kills.
//! Acknowledged is what a peer's status listed before: a record in a slot, an adapter that was merged.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use mingle::driver::{Phase, SlotStatus};
use mingle::store::Store;
use mingle_protocol::hash::ContentHash;
use mingle_protocol::identity::MemberKey;
use mingle_protocol::merge::Accumulator;
use mingle_protocol::record::UnverifiedRecord;
use mingle_protocol::round::Round;
use mingle_tests::peer::{PATIENCE, Transport, address, bytes_of};
use mingle_tests::{Dice, Peer, adapters, agree, base, dice, run};
use tempfile::TempDir;

const PROGRAM: &str = env!("CARGO_BIN_EXE_mingle-peer");
const MEMBERS: usize = 4;

/// What a peer was at when it was killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Moment {
    Any,
    Training,
    Download,
    Merge,
}

/// Kills peers of one round, and remembers what each had acknowledged.
struct Reaper {
    dice: Dice,
    seed: u64,
    round: Round,
    kills: BTreeMap<Moment, usize>,
}

impl Drop for Reaper {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("seed {}, kills {:?}; run it again with MINGLE_TEST_SEED={}", self.seed, self.kills, self.seed);
        }
    }
}

impl Reaper {
    fn new(round: Round, purpose: &str) -> Self {
        let seed = dice::seed();
        Self { dice: Dice::new(seed, purpose), seed, round, kills: BTreeMap::new() }
    }

    fn killed(&self, moment: Moment) -> usize {
        self.kills.get(&moment).copied().unwrap_or(0)
    }

    fn all(&self) -> usize {
        self.kills.values().sum()
    }

    /// Kills a running peer, checks its disk or its next status against what it had acknowledged, and starts it again.
    fn strike(&mut self, peer: &mut Peer, moment: Moment) {
        let acknowledged = peer.slots();
        peer.kill();
        *self.kills.entry(moment).or_default() += 1;
        if self.dice.once_in(2) {
            self.check_disk(peer, &acknowledged);
            peer.start();
        } else {
            peer.start();
            let slots = peer.wait("its first status", |peer| {
                // A reader may be done before it has written one.
                (peer.status().is_some() || !peer.runs()).then(|| peer.slots())
            });
            let lost = |slot: &&SlotStatus| !slots.iter().any(|kept| said(kept) == said(slot));
            let lost = acknowledged.iter().find(lost);
            assert!(slots.is_empty() && !peer.runs() || lost.is_none(), "lost {lost:?} of {}", peer.told());
        }
    }

    /// Reads the store of a dead peer.
    fn check_disk(&self, peer: &Peer, acknowledged: &[SlotStatus]) {
        let store = Store::open(peer.round_home().store()).expect("the store of a killed peer opens");
        let records = store.records().expect("the records of a killed peer can be read");
        let kept: Vec<_> =
            records.iter().map(|(_, bytes)| UnverifiedRecord(bytes).verify(&self.round).expect("it was verified before")).collect();
        for slot in acknowledged {
            let stands = |member: MemberKey| {
                kept.iter().any(|record| record.record().member() == member && record.record().sequence() == slot.sequence)
            };
            assert!(stands(slot.member), "the record of {} is lost at {}", slot.member, peer.told());
            if let Some(adapter) = slot.adapter.filter(|_| slot.merged) {
                assert!(store.has_blob(adapter).expect("the index can be read"), "adapter {adapter} is lost at {}", peer.told());
            }
        }
    }

    /// Waits until the peer is at `moment`, then a drawn while, then strikes. `false` if the peer ended or is past it.
    fn aim(&mut self, peer: &mut Peer, moment: Moment, later: Duration, past: impl Fn(&mut Peer) -> bool) -> bool {
        let began = Instant::now();
        while !at(peer, moment) {
            if !peer.runs() || past(peer) {
                return false;
            }
            assert!(began.elapsed() < PATIENCE, "waited in vain for {moment:?} of {}", peer.told());
            std::thread::sleep(Duration::from_micros(500));
        }
        std::thread::sleep(self.dice.milliseconds(later.as_millis() as usize));
        if !peer.runs() {
            return false;
        }
        self.strike(peer, moment);
        true
    }

    fn tell(&self, what: &str, began: Instant) {
        println!("{what}: {} kills {:?} in {:.1} s, seed {}", self.all(), self.kills, began.elapsed().as_secs_f64(), self.seed);
    }
}

fn said(slot: &SlotStatus) -> (MemberKey, u64, Option<ContentHash>) {
    (slot.member, slot.sequence, slot.adapter)
}

/// Whether the disk shows the peer at this moment of its life.
fn at(peer: &Peer, moment: Moment) -> bool {
    match moment {
        Moment::Any => true,
        Moment::Training => peer.status().is_some_and(|status| status.phase == Phase::Training && status.training.is_some()),
        Moment::Download => peer.writes(&peer.round_home().store().join("blobs"), ".part"),
        Moment::Merge => peer.writes(&peer.round_home().merged(), ".unfinished"),
    }
}

/// Every member has said one thing, once, and nobody is in conflict.
fn each_said_one_thing(peers: &[Peer]) {
    for peer in peers {
        let slots = peer.slots();
        assert_eq!(slots.len(), MEMBERS, "{}", peer.told());
        assert!(slots.iter().all(|slot| slot.sequence == 1 && slot.state == "adapter" && slot.merged), "{}", peer.told());
    }
}

/// The hash of the merge of these adapters, read from a peer's store and folded anew.
fn fresh_merge(round: &Round, peer: &Peer) -> ContentHash {
    let mut average = Accumulator::new(round.tensors());
    for slot in peer.slots() {
        let path = peer.round_home().store().join("blobs").join(format!("{}.blob", slot.adapter.expect("an adapter")));
        average.add(&bytes_of(&path), slot.weight).expect("a whole adapter");
    }
    ContentHash::of(&average.finalise().expect("a merge"))
}

struct Readers<'a> {
    folder: &'a Path,
    round_file: &'a Path,
    round: &'a Round,
    dials: &'a [String],
}

impl Readers<'_> {
    fn reader(&self, name: &str) -> (Peer, PathBuf) {
        let out = self.folder.join(format!("{name}-merged"));
        let mut reader = Peer::new(PROGRAM, self.folder, name, self.round.id(), ["fetch", "--timeout", "120", "--adapters"]);
        reader.argue([MEMBERS.to_string(), "--listen".into(), "/ip4/127.0.0.1/tcp/0".into(), "--round".into()]);
        reader.argue([self.round_file, Path::new("--out"), &out]);
        self.dials.iter().for_each(|address| reader.argue(["--peer", address]));
        reader.start();
        (reader, out)
    }
}

/// The reader ends by itself with this merge, or it did already.
fn ends_with(reader: &mut Peer, out: &Path, merged: ContentHash) {
    let written = reader.wait("the reader to end", |reader| (!reader.runs()).then(|| out.exists()));
    assert!(written, "{}", reader.told());
    assert_eq!(ContentHash::of(&bytes_of(&out.join("adapter_model.safetensors"))), merged, "{}", reader.told());
}

#[test]
fn members_killed_while_they_train_resume_and_announce_once() {
    let began = Instant::now();
    let folder = TempDir::new().expect("a temporary folder");
    let path = |name: &str| folder.path().join(name);
    base::write_base(&path("base"), 1);
    let new = ["round", "new", "--rank", "4", "--base"].map(String::from).into_iter();
    let new = new.chain([path("base").display().to_string(), "--out".into(), path("round.json").display().to_string()]);
    run(PROGRAM, &path("home"), new).right();
    let round = Round::from_json(&bytes_of(&path("round.json"))).expect("a round file");
    let mut reaper = Reaper::new(round.clone(), "training");

    let addresses: Vec<String> = (0..MEMBERS).map(|index| address(if index % 2 == 0 { Transport::Tcp } else { Transport::Quic })).collect();
    let mut peers = Vec::new();
    for (index, own) in addresses.iter().enumerate() {
        let data = path(&format!("data-{index}.jsonl"));
        base::write_data(&data, 40, index as u64);
        let mut peer =
            Peer::new(PROGRAM, folder.path(), &format!("member-{index}"), round.id(), ["run", "--threads", "1", "--batch-size", "4"]);
        peer.argue(["--epochs", "60", "--checkpoint-every", "10", "--listen", own, "--base"]);
        peer.argue([path("base"), "--data".into(), data, "--round".into(), path("round.json")]);
        addresses.iter().filter(|other| *other != own).for_each(|other| peer.argue(["--peer", other]));
        peer.start();
        peers.push(peer);
    }
    // Each is killed twice while it trains, in turns, and once more at a moment when it may be done.
    for _ in 0..2 {
        for peer in &mut peers {
            let done = |peer: &mut Peer| peer.status().is_some_and(|status| status.phase == Phase::Announced);
            reaper.aim(peer, Moment::Training, Duration::from_millis(400), done);
        }
    }
    for _ in 0..MEMBERS {
        std::thread::sleep(reaper.dice.milliseconds(1_500));
        let peer = reaper.dice.below(MEMBERS);
        reaper.strike(&mut peers[peer], Moment::Any);
    }
    let merged = agree(&mut peers, MEMBERS);
    each_said_one_thing(&peers);
    assert_eq!(merged.merged_hash, fresh_merge(&round, &peers[0]));
    let resumed = peers.iter().filter(|peer| resumed(peer)).count();
    assert!(resumed > 0, "no training went on from a checkpoint");
    let readers = Readers { folder: folder.path(), round_file: &path("round.json"), round: &round, dials: &addresses };
    let (mut reader, out) = readers.reader("reader");
    ends_with(&mut reader, &out, merged.merged_hash);
    reaper.tell("training", began);
    assert!(reaper.all() >= 8, "{:?}", reaper.kills);
    assert!(reaper.killed(Moment::Training) >= 4, "{:?}", reaper.kills);
}

/// Whether a process of this peer began its training later than at step 1.
fn resumed(peer: &Peer) -> bool {
    let mut fresh = false;
    let mut resumed = false;
    for event in peer.events() {
        match event["event"].as_str() {
            Some("started") => fresh = true,
            Some("training") => {
                resumed |= fresh && event["step"].as_u64().is_some_and(|step| step > 1);
                fresh = false;
            }
            _ => {}
        }
    }
    resumed
}

#[test]
fn peers_killed_while_they_download_and_merge_lose_nothing() {
    let began = Instant::now();
    let folder = TempDir::new().expect("a temporary folder");
    let path = |name: &str| folder.path().join(name);
    // 12 MiB an adapter, in a file of 6 modules.
    let round = adapters::round("wide", 6, 64 << 10, []);
    std::fs::write(path("round.json"), round.to_json()).expect("a round file");
    let mut reaper = Reaper::new(round.clone(), "download");

    let addresses: Vec<String> = (0..MEMBERS).map(|index| address(if index % 2 == 0 { Transport::Tcp } else { Transport::Quic })).collect();
    let mut peers = Vec::new();
    for (index, own) in addresses.iter().enumerate() {
        let directory = path(&format!("adapter-{index}"));
        adapters::write_peft(&directory, &round, &adapters::adapter_file(&round, index as u64));
        let mut peer = Peer::new(PROGRAM, folder.path(), &format!("member-{index}"), round.id(), ["publish"]);
        peer.argue([directory, "--round".into(), path("round.json")]);
        peer.argue(["--examples", &(10 + index).to_string(), "--listen", own]);
        addresses.iter().filter(|other| *other != own).for_each(|other| peer.argue(["--peer", other]));
        peer.start();
        peers.push(peer);
    }
    // While it hashes and stores its own adapter, or announces it, or fetches the first.
    for peer in &mut peers {
        std::thread::sleep(reaper.dice.milliseconds(500));
        reaper.strike(peer, Moment::Any);
    }
    let complete = |peer: &mut Peer| peer.merged().is_some_and(|merged| merged.adapters == MEMBERS);
    for moment in [Moment::Download, Moment::Merge] {
        for peer in &mut peers {
            reaper.aim(peer, moment, Duration::from_millis(60), complete);
        }
    }
    let merged = agree(&mut peers, MEMBERS);
    assert_eq!(merged.merged_hash, fresh_merge(&round, &peers[0]));

    // Readers begin with nothing: each is killed in its downloads, then in its merges, and must end all the same.
    let readers = Readers { folder: folder.path(), round_file: &path("round.json"), round: &round, dials: &addresses };
    for number in 0..8 {
        let (mut reader, out) = readers.reader(&format!("reader-{number}"));
        for (moment, times) in [(Moment::Download, 3), (Moment::Merge, 2)] {
            for _ in 0..times {
                reaper.aim(&mut reader, moment, Duration::from_millis(30), |_| false);
            }
        }
        ends_with(&mut reader, &out, merged.merged_hash);
        if reaper.killed(Moment::Download) >= 4 && reaper.killed(Moment::Merge) >= 4 && reaper.all() >= 14 {
            break;
        }
    }
    // Whoever has everything merges anew when it starts: the members too are struck in the middle of it.
    for peer in &mut peers {
        reaper.strike(peer, Moment::Any);
        reaper.aim(peer, Moment::Merge, Duration::from_millis(40), complete);
    }
    assert_eq!(agree(&mut peers, MEMBERS).merged_hash, merged.merged_hash);
    each_said_one_thing(&peers);
    reaper.tell("download and merge", began);
    assert!(reaper.all() >= 14, "{:?}", reaper.kills);
    assert!(reaper.killed(Moment::Download) >= 2 && reaper.killed(Moment::Merge) >= 2, "{:?}", reaper.kills);
}
