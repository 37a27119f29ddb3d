//! A round by each rule, of real processes: no merge before the rule has enough, then one for all, which `verify` makes again and
//! a reader can fetch alone; and it moves when a member leaves.

use std::path::{Path, PathBuf};

use mingle::merger::Source;
use mingle_protocol::hash::{ContentHash, encode_hex};
use mingle_protocol::merge::{MergeRule, Plan};
use mingle_protocol::round::{Manifest, Round, WeightRule};
use mingle_tests::adapters::key;
use mingle_tests::peer::{Transport, address, bytes_of};
use mingle_tests::program::run;
use mingle_tests::{Peer, adapters, agree};
use tempfile::TempDir;

const PROGRAM: &str = env!("CARGO_BIN_EXE_mingle-peer");

struct Scene {
    folder: TempDir,
    round: Round,
    file: PathBuf,
    first: String,
}

impl Scene {
    fn new(rule: MergeRule, clip_millionths: Option<u64>) -> Self {
        let folder = TempDir::new().expect("a temporary folder");
        let basis = adapters::round(rule.name(), 2, 96, (1..=5).map(|number| key(number).member())).manifest().clone();
        let weight = if rule.is_robust() { WeightRule::Equal } else { basis.weight };
        let round = Round::new(Manifest { rule, clip_millionths, weight, ..basis }).expect("a round within its bounds");
        let file = folder.path().join("round.json");
        std::fs::write(&file, round.to_json()).expect("a round file");
        Self { folder, round, file, first: address(Transport::Tcp) }
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    fn directory(&self, number: u8) -> PathBuf {
        self.path().join(format!("adapter-{number}"))
    }

    fn member(&self, number: u8) -> Peer {
        let file = adapters::adapter_file(&self.round, u64::from(number));
        adapters::write_peft(&self.directory(number), &self.round, &file);
        let mut peer = Peer::new(PROGRAM, self.path(), &format!("member-{number}"), self.round.id(), ["publish"]);
        std::fs::create_dir_all(peer.home().folder()).expect("a home");
        std::fs::write(peer.home().key_path(), encode_hex(&[number; 32])).expect("a key");
        peer.argue([self.directory(number).into_os_string(), "--round".into(), self.file.clone().into()]);
        let listen = if number == 1 { self.first.clone() } else { address(Transport::Tcp) };
        peer.argue(["--examples", &(100 * u64::from(number)).to_string(), "--listen", &listen]);
        if number != 1 {
            peer.argue(["--peer", &self.first]);
        }
        peer.start();
        peer
    }

    /// The hash of what the rule makes of these members' files, the last first.
    fn expected(&self, numbers: &[u8]) -> ContentHash {
        let plan = Plan::of(&self.round);
        let weight = |number: u8| self.round.manifest().weight.weight(100 * u64::from(number));
        let source = |number: &u8| {
            let file = self.directory(*number).join("adapter_model.safetensors");
            Source::read(&plan, key(*number).member(), weight(*number), &file).expect("a whole adapter")
        };
        let sources: Vec<Source> = numbers.iter().rev().map(source).collect();
        adapters::merged_hash(&plan, &sources)
    }
}

fn round_by(rule: MergeRule, clip_millionths: Option<u64>) {
    let scene = Scene::new(rule, clip_millionths);
    let needs = rule.needs() as u8;
    let mut peers: Vec<Peer> = (1..needs).map(|number| scene.member(number)).collect();
    if let Some(first) = peers.first_mut() {
        let all = |peer: &mut Peer| {
            let here = peer.slots().iter().filter(|slot| slot.state == "adapter" && slot.have == slot.size).count();
            (here == usize::from(needs) - 1).then_some(())
        };
        first.wait("all adapters but those that are missing", all);
        assert!(first.merged().is_none(), "{} members are too few for {rule:?}: {}", needs - 1, first.told());
    }
    peers.extend((needs..=5).map(|number| scene.member(number)));
    let merged = agree(&mut peers, 5);
    assert_eq!(merged.merged_hash, scene.expected(&[1, 2, 3, 4, 5]), "{rule:?}");
    let status = peers[0].status().expect("a status");
    assert!(status.rule.ends_with(&format!(
        "with 5 adapters it stands {} bad adapter{}",
        rule.stands(5),
        if rule.stands(5) == 1 { "" } else { "s" }
    )));
    let current = peers[0].merged().expect("a merge").folder;
    let home = peers[0].home().folder().to_owned();
    let said = run(PROGRAM, &home, ["verify".as_ref(), current.as_os_str()]).right();
    assert!(said.contains("Merging the members' adapters again gives the same bytes."), "{said}");

    // A reader takes the merged file alone.
    let out = scene.path().join("read");
    let mut reader = Peer::new(PROGRAM, scene.path(), "reader", scene.round.id(), ["fetch", "--merged", "--round"]);
    reader.argue([scene.file.clone().into_os_string(), "--out".into(), out.clone().into()]);
    reader.argue(["--adapters", "5", "--timeout", "50", "--listen", "/ip4/127.0.0.1/tcp/0", "--peer", &scene.first]);
    reader.start();
    let ended = reader.wait("the reader to end", Peer::ended);
    assert!(ended.success(), "{}", reader.told());
    assert_eq!(ContentHash::of(&bytes_of(&out.join("adapter_model.safetensors"))), merged.merged_hash);
    let (made, read) = (current.join("adapter_config.json"), out.join("adapter_config.json"));
    assert_eq!(bytes_of(&made), bytes_of(&read));
}

#[test]
fn a_round_by_multi_krum_with_clipped_updates() {
    round_by(MergeRule::MultiKrum { faulty: 1 }, Some(40_000_000));
}

#[test]
fn a_round_by_trimmed_mean() {
    round_by(MergeRule::TrimmedMean { trim: 1 }, None);
}

#[test]
fn a_round_by_median() {
    round_by(MergeRule::Median, None);
}

#[test]
fn a_stacked_round() {
    round_by(MergeRule::Stack, None);
}

/// Who leaves is taken out: what is left is what the rule makes of the others.
#[test]
fn a_member_that_leaves_a_trimmed_mean_leaves_no_trace() {
    let scene = Scene::new(MergeRule::TrimmedMean { trim: 1 }, Some(40_000_000));
    let mut peers: Vec<Peer> = (1..=5).map(|number| scene.member(number)).collect();
    assert_eq!(agree(&mut peers, 5).merged_hash, scene.expected(&[1, 2, 3, 4, 5]));
    let home = peers[4].home().folder().to_owned();
    peers.truncate(4);
    let round = scene.file.as_os_str();
    let words =
        ["withdraw".as_ref(), "--timeout".as_ref(), "5".as_ref(), "--round".as_ref(), round, "--peer".as_ref(), scene.first.as_ref()];
    run(PROGRAM, &home, words).right();
    assert_eq!(agree(&mut peers, 4).merged_hash, scene.expected(&[1, 2, 3, 4]));
}
