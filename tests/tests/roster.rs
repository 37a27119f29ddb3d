//! Who belongs to a round, and how that changes while real peers run: strangers stay out of a private round, founders admit
//! and revoke, and every peer's merge is at any time as if only those who belong had ever been in.

use std::path::{Path, PathBuf};

use mingle::driver::Phase;
use mingle::merged::{Proof, RECEIPT_FILE};
use mingle_protocol::hash::{ContentHash, encode_hex};
use mingle_protocol::identity::MemberKey;
use mingle_protocol::merge::Accumulator;
use mingle_protocol::round::{Manifest, Round, RoundFile};
use mingle_protocol::standing::{Founders, Readers, Standing};
use mingle_tests::adapters::key;
use mingle_tests::peer::{Transport, address, bytes_of};
use mingle_tests::{Peer, Said, adapters, agree, run};
use serde_json::Value;
use tempfile::TempDir;

const PROGRAM: &str = env!("CARGO_BIN_EXE_mingle-peer");

fn member(number: u8) -> MemberKey {
    key(number).member()
}

/// A private round, and homes with known keys: `home(n)` is that of key `n`.
struct Scene {
    folder: TempDir,
    round: Round,
    file: PathBuf,
}

impl Scene {
    fn new(name: &str, members: &[u8], founders: &[u8], threshold: u32) -> Self {
        let folder = TempDir::new().expect("a temporary folder");
        let round = adapters::round(name, 2, 64, members.iter().map(|number| member(*number)));
        let founders = Some(Founders { keys: founders.iter().map(|number| member(*number)).collect(), threshold });
        let readers = Some(Readers::Listed([].into()));
        let round = Round::new(Manifest { founders, readers, ..round.manifest().clone() }).expect("a round within its bounds");
        let file = folder.path().join("round.json");
        Self { folder, round, file }
    }

    fn signed_by(self, founders: &[u8]) -> Self {
        let mut file = RoundFile::from(self.round.clone());
        founders.iter().for_each(|number| file.sign(&key(*number)));
        std::fs::write(&self.file, file.to_json()).expect("a round file");
        self
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn home(&self, number: u8) -> PathBuf {
        let home = self.path(&format!("peer-{number}")).join("home");
        std::fs::create_dir_all(&home).expect("a home");
        std::fs::write(home.join("key"), encode_hex(&key(number).to_bytes())).expect("a key");
        home
    }

    fn peer(&self, number: u8, verb: &str, dials: &[&str]) -> Peer {
        self.home(number);
        let mut peer = Peer::new(PROGRAM, self.folder.path(), &format!("peer-{number}"), self.round.id(), [verb]);
        peer.argue(["--round".into(), self.file.clone().into_os_string()]);
        dials.iter().for_each(|address| peer.argue(["--peer", address]));
        peer
    }

    /// A member that publishes adapter `number` with `100 * number` examples.
    fn member(&self, number: u8, listen: &str, dials: &[&str]) -> Peer {
        let directory = self.path(&format!("adapter-{number}"));
        adapters::write_peft(&directory, &self.round, &adapters::adapter_file(&self.round, number.into()));
        let mut peer = self.peer(number, "publish", dials);
        peer.argue([directory.into_os_string(), "--examples".into(), (100 * u64::from(number)).to_string().into()]);
        peer.argue(["--listen", listen]);
        peer.start();
        peer
    }

    /// A fetch to its end: its exit code, and the merged file where it wrote one.
    fn fetch(&self, number: u8, dial: &str, timeout: &str) -> (Option<i32>, Option<Vec<u8>>) {
        let out = self.path(&format!("merged-{number}"));
        let mut reader = self.peer(number, "fetch", &[dial]);
        reader.argue(["--listen", "/ip4/127.0.0.1/tcp/0", "--timeout", timeout, "--out"]);
        reader.argue([out.clone()]);
        reader.start();
        let ended = reader.wait("the reader to end", Peer::ended);
        (ended.code(), out.exists().then(|| bytes_of(&out.join("adapter_model.safetensors"))))
    }

    /// Runs a verb in the home of a key.
    fn call(&self, number: u8, line: &str) -> Said {
        let folder = self.folder.path().to_string_lossy().into_owned();
        let said = run(PROGRAM, &self.home(number), line.split(' ').map(|word| word.replace("DIR", &folder)));
        Said { out: said.out.replace(&folder, "DIR"), err: said.err.replace(&folder, "DIR"), ..said }
    }

    /// One founder's change, proposed and published; through the peer at `dial`, or the one that runs in the founder's home.
    fn change(&self, founder: u8, what: &str, dial: Option<&str>) {
        let file = self.path("change.json");
        let _ = std::fs::remove_file(&file);
        self.call(founder, &format!("roster propose --round DIR/round.json {what} --file DIR/change.json")).right();
        let dial = dial.map(|address| format!(" --peer {address} --listen /ip4/127.0.0.1/tcp/0")).unwrap_or_default();
        let said = self.call(founder, &format!("roster publish DIR/change.json --round DIR/round.json --json{dial}")).right();
        let last: Value = serde_json::from_str(said.lines().last().expect("a line")).expect("JSON");
        assert_eq!(last["told"], true, "{said}");
    }

    /// The merged hash of these members' adapters, folded here.
    fn expected(&self, numbers: &[u8]) -> ContentHash {
        let mut average = Accumulator::new(self.round.tensors());
        for number in numbers {
            let file = adapters::adapter_file(&self.round, (*number).into());
            average.add(&file, 100 * u64::from(*number)).expect("a whole adapter");
        }
        ContentHash::of(&average.finalise().expect("a merge"))
    }

    fn verify(&self, directory: &Path) -> Said {
        run(PROGRAM, &self.path("nobody"), [Path::new("verify"), directory])
    }
}

#[test]
fn a_stranger_cannot_fetch_from_a_private_round_until_a_founder_admits_it() {
    let scene = Scene::new("private", &[1], &[1], 1).signed_by(&[1]);
    let first = address(Transport::Tcp);
    let mut peers = vec![scene.member(1, &first, &[])];
    let merged = agree(&mut peers, 1);
    assert_eq!(scene.fetch(9, &first, "3"), (Some(3), None));
    assert!(peers[0].events_named("connected").is_empty(), "the stranger was connected: {}", peers[0].told());
    scene.change(1, &format!("--reader {}", member(9)), None);
    let (code, file) = scene.fetch(9, &first, "60");
    assert_eq!((code, file.map(|file| ContentHash::of(&file))), (Some(0), Some(merged.merged_hash)), "{}", peers[0].told());
    let standings = peers[0].status().expect("a status").standings;
    assert_eq!((standings.len(), standings[0].key, standings[0].standing), (1, member(9), Standing::Reader));
    assert!(std::fs::read_dir(peers[0].round_home().inbox()).expect("an inbox").next().is_none(), "what was taken is gone");
}

#[test]
fn members_are_added_and_revoked_while_peers_run() {
    let scene = Scene::new("changing", &[1, 2], &[11], 1).signed_by(&[11]);
    let [first, second, third] = [Transport::Tcp, Transport::Quic, Transport::Tcp].map(address);
    let mut peers = vec![scene.member(1, &first, &[]), scene.member(2, &second, &[&first])];
    assert_eq!(agree(&mut peers, 2).merged_hash, scene.expected(&[1, 2]));

    // The third is ready before it may: it waits, and nobody lets it in.
    let mut late = scene.member(3, &third, &[&first]);
    late.wait("the third to wait", |peer| peer.status().filter(|status| status.phase == Phase::Waiting));
    assert!(late.events_named("announced").is_empty());
    scene.change(11, &format!("--member {}", member(3)), Some(&first));
    peers.push(late);
    assert_eq!(agree(&mut peers, 3).merged_hash, scene.expected(&[1, 2, 3]));

    // Anybody can check offline that founders admitted it, and nobody can leave that out.
    let merged = peers[1].round_home().merged_current();
    let said = scene.verify(&merged);
    assert!(said.code == 0 && said.out.contains("admitted by founders"), "{said:?}");
    let mut proof = Proof::read(&merged).expect("a proof");
    assert_eq!(proof.standings.len(), 1);
    proof.standings.clear();
    std::fs::create_dir(scene.path("forged")).expect("a folder");
    std::fs::copy(merged.join("adapter_model.safetensors"), scene.path("forged/adapter_model.safetensors")).expect("copied");
    std::fs::write(scene.path("forged").join(RECEIPT_FILE), serde_json::to_string(&proof).expect("JSON")).expect("written");
    let said = scene.verify(&scene.path("forged"));
    let sentence = format!("error: member {} is not in the roster, and no change of it with the receipt admits it", member(3));
    assert!(said.code == 4 && said.err.starts_with(&sentence), "{said:?}");

    // The second is revoked: gone from the merge and from the network.
    scene.change(11, &format!("--out {}", member(2)), Some(&first));
    let mut revoked = peers.remove(1);
    assert_eq!(agree(&mut peers, 2).merged_hash, scene.expected(&[1, 3]), "as if it had never been in");
    for peer in &mut peers {
        peer.wait("the revoked to be disconnected", |peer| peer.status().filter(|status| status.neighbours == 1));
        let blob = ContentHash::of(&adapters::adapter_file(&scene.round, 2));
        assert!(!peer.round_home().store().join("blobs").join(format!("{blob}.blob")).exists());
        let slots = peer.slots();
        let slot = slots.iter().find(|slot| slot.member == member(2)).expect("its record is kept");
        assert!(slot.state == "out" && !slot.merged, "{slot:?}");
        assert_eq!(scene.verify(&peer.round_home().merged_current()).code, 0);
    }
    // So it stays, whoever is started again.
    revoked.kill();
    revoked.start();
    peers[0].kill();
    peers[0].start();
    revoked.wait("the revoked to knock", |peer| peer.status());
    assert_eq!(agree(&mut peers, 2).merged_hash, scene.expected(&[1, 3]));

    // Founders may change their minds.
    scene.change(11, &format!("--member {}", member(2)), Some(&first));
    peers.push(revoked);
    assert_eq!(agree(&mut peers, 3).merged_hash, scene.expected(&[1, 2, 3]));
    let shown: Value = serde_json::from_str(&scene.call(1, "roster show --round DIR/round.json --json").right()).expect("JSON");
    let of = |number| {
        let keys = shown["keys"].as_array().expect("keys");
        keys.iter().find(|row| row["key"] == member(number).to_string()).cloned().expect("a row")
    };
    assert_eq!((&of(1)["standing"], &of(1)["sequence"]), (&"member".into(), &0.into()));
    assert_eq!((&of(2)["standing"], &of(2)["sequence"]), (&"member".into(), &2.into()));
    assert_eq!(of(3)["approved_by"], serde_json::json!([member(11)]));
}

#[test]
fn of_three_founders_two_must_agree() {
    let scene = Scene::new("council", &[1], &[11, 12, 13], 2).signed_by(&[11]);
    let publish = "run --round DIR/round.json --listen /ip4/127.0.0.1/tcp/0";
    scene.call(1, publish).wrong(
        1,
        &[
            "error: DIR/round.json is not signed by its founders: 1 of 2 signatures are there and valid",
            "hint: each founder signs it with `mingle round sign FILE`",
        ],
    );
    scene.call(9, "round sign DIR/round.json").wrong(
        1,
        &[
            &format!("error: {} is not a founder of round \"council\"", member(9)),
            "hint: `mingle key show` prints the key of this home; another home may hold a founder's (--home)",
        ],
    );
    let shown = scene.call(13, "round sign DIR/round.json --json").right();
    assert_eq!(serde_json::from_str::<Value>(&shown).expect("JSON")["signed"], true);

    let first = address(Transport::Tcp);
    let mut peers = vec![scene.member(1, &first, &[])];
    agree(&mut peers, 1);
    let propose = format!("roster propose --round DIR/round.json --member {} --out {} --file DIR/change.json", member(2), member(1));
    assert!(scene.call(11, &propose).right().contains("approved by 1 of 2 founders"));
    let publish = format!("roster publish DIR/change.json --round DIR/round.json --peer {first} --listen /ip4/127.0.0.1/tcp/0");
    scene.call(11, &publish).wrong(
        1,
        &[
            &format!(
                "error: DIR/change.json cannot be published: the change for {} is refused: change of standing has 1 of the 2 approvals \
                 that the round asks for",
                member(2)
            ),
            "hint: hand the file to more founders, who each approve it with `mingle roster sign FILE`",
        ],
    );
    scene.call(12, &publish).wrong(
        1,
        &[
            &format!("error: {} has not approved the change for {} in DIR/change.json", member(12), member(2)),
            "hint: approve it with `mingle roster sign FILE`",
        ],
    );
    assert_eq!(scene.call(9, "roster sign DIR/change.json --round DIR/round.json").code, 1, "a stranger approves nothing");
    scene.call(12, "roster sign DIR/change.json --round DIR/round.json").right();
    scene.call(12, &publish).right();
    peers[0].wait("the change", |peer| peer.status().filter(|status| status.standings.len() == 2 && status.merged.is_none()));
    let approved = peers[0].status().expect("a status").standings[0].approved_by.clone();
    assert_eq!(approved, std::collections::BTreeSet::from([member(11), member(12)]).into_iter().collect::<Vec<_>>());
    // What was decided since then is not undone by an older file.
    let said = scene.call(12, &publish);
    assert_eq!(said.code, 0, "the same change again is no change: {said:?}");
    std::fs::rename(scene.path("change.json"), scene.path("older.json")).expect("moved");
    scene.call(12, &format!("roster propose --round DIR/round.json --reader {} --file DIR/change.json", member(1))).right();
    scene.call(13, "roster sign DIR/change.json --round DIR/round.json").right();
    scene.call(13, &publish).right();
    let said = scene.call(12, &publish.replace("change", "older"));
    let superseded = format!("error: the change for {} was superseded: it has sequence 1, but the round has 2 (reader)", member(1));
    assert!(said.code == 1 && said.err.contains(&superseded), "{said:?}");
}

#[test]
fn a_new_round_is_founded_and_signed_by_its_maker_and_private_with_members() {
    let scene = Scene::new("unused", &[1], &[1], 1);
    mingle_tests::base::write_base(&scene.path("base"), 1);
    let made = |options: &str| {
        let _ = std::fs::remove_file(scene.path("new.json"));
        let line = format!("round new --base DIR/base --rank 2 --out DIR/new.json --json {options}");
        serde_json::from_str::<Value>(&scene.call(1, line.trim_end()).right()).expect("JSON")
    };
    let plain = made("");
    assert_eq!((&plain["private"], &plain["signed"], &plain["signed_by"]), (&false.into(), &true.into(), &serde_json::json!([member(1)])));
    let seed = "/dns4/seed.example/tcp/443/p2p/12D3KooWCPG8S9yhyxKTiczaqGXyyKSGtDPMZcSHWRv3jcr9JQS6";
    let private = made(&format!("--member {} --founder {} --threshold 2 --peer {seed}", member(2), member(11)));
    assert_eq!((&private["private"], &private["signed"]), (&true.into(), &false.into()));
    assert_eq!(private["peers"], serde_json::json!([seed]));
    assert_eq!(private["manifest"]["readers"]["listed"].as_array().map(Vec::len), Some(1), "the seed may connect: {private}");
    assert_eq!(made(&format!("--member {} --readers-open", member(2)))["private"], false);
    let bare = made("--no-founders");
    assert_eq!((&bare["manifest"]["founders"], &bare["signed"]), (&Value::Null, &true.into()));
    // What is wrong with it is said before anything is written.
    std::fs::remove_file(scene.path("new.json")).expect("a round file");
    let said = scene.call(1, "round new --base DIR/base --threshold 2 --out DIR/new.json");
    said.wrong(1, &["error: the founders' threshold is 2, but must be 1 to 1, the number of founders"]);
    assert!(!scene.path("new.json").exists());
}
