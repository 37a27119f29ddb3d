//! Members with data of their own judge what arrives: an honest adapter counts once two others approve it, one that
//! destroys the model is fetched, tried, disapproved and never merged, and every peer comes to the same merge. Real
//! processes that train, judge and merge.

use std::path::PathBuf;

use mingle::driver::SlotStatus;
use mingle::home::Home;
use mingle::merged::{Proof, RECEIPT_FILE};
use mingle::merger::Source;
use mingle_protocol::hash::{ContentHash, encode_hex};
use mingle_protocol::identity::MemberKey;
use mingle_protocol::merge::Plan;
use mingle_protocol::round::Round;
use mingle_testnet::tasks::{Split, make_tasks, write_jsonl};
use mingle_tests::adapters::key;
use mingle_tests::peer::{Transport, address, bytes_of};
use mingle_tests::{Dice, Peer, Said, adapters, agree, run};
use tempfile::TempDir;

const PROGRAM: &str = env!("CARGO_BIN_EXE_mingle-peer");
/// Members that train and judge; one more announces what would destroy the model.
const HONEST: u8 = 3;
const NEEDED: usize = 2;
/// Of each of them; a fifth is held out.
const EXAMPLES: usize = 60;

fn member(number: u8) -> MemberKey {
    key(number).member()
}

struct Scene {
    folder: TempDir,
    round: Round,
}

impl Scene {
    /// Of a round by the rule that these arguments ask for.
    fn new(rule: &str) -> Self {
        let folder = TempDir::new().expect("a temporary folder");
        // One that has learned something: of a model that knows nothing, nonsense makes no worse one.
        mingle_testnet::base::write_to(&folder.path().join("base")).expect("a base");
        let members: Vec<String> = (1..=HONEST + 1).map(|number| format!("--member {}", member(number))).collect();
        let line = format!(
            "round new --name verdicts --base DIR/base --rank 4 --no-founders --verdicts {NEEDED} {rule} {} --out DIR/round.json",
            members.join(" ")
        );
        call(&folder, 1, &line).right();
        let round = Round::from_json(&bytes_of(&folder.path().join("round.json"))).expect("a round");
        assert_eq!(round.manifest().verdicts.map(|rule| rule.approvals as usize), Some(NEEDED));
        Self { folder, round }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn peer(&self, number: u8, verb: &str, own: &str, first: &str) -> Peer {
        let mut peer = Peer::new(PROGRAM, self.folder.path(), &format!("peer-{number}"), self.round.id(), [verb, "--round"]);
        std::fs::create_dir_all(peer.home().folder()).expect("a home");
        std::fs::write(peer.home().key_path(), encode_hex(&key(number).to_bytes())).expect("a key");
        peer.argue([self.path("round.json")]);
        peer.argue(["--listen", own]);
        if own != first {
            peer.argue(["--peer", first]);
        }
        peer
    }

    /// A member that trains on its own examples and judges by those it holds out.
    fn honest(&self, number: u8, own: &str, first: &str) -> Peer {
        let data = self.path(&format!("data-{number}.jsonl"));
        let shards = make_tasks(7, usize::from(HONEST), EXAMPLES, 1, Split::Iid).shards;
        write_jsonl(&data, &shards[usize::from(number) - 1]).expect("a data file");
        let mut peer = self.peer(number, "run", own, first);
        peer.argue(["--base".into(), self.path("base").into_os_string(), "--data".into(), data.into()]);
        let settings = "--held-out 0.2 --epochs 2 --batch-size 8 --learning-rate 2e-3 --max-length 128 --threads 1";
        peer.argue(settings.split(' '));
        peer.start();
        peer
    }

    /// A member whose adapter fits the round and makes nonsense of the model.
    fn destroyer(&self, number: u8, own: &str, first: &str) -> Peer {
        let (directory, mut dice) = (self.path("destroyer"), Dice::new(9, "destroyer"));
        adapters::write_peft(&directory, &self.round, &adapters::file_of(&self.round, |_| 12.0 * dice.value()));
        let mut peer = self.peer(number, "publish", own, first);
        peer.argue([directory]);
        peer.argue(["--examples", "1000"]);
        peer.start();
        peer
    }
}

fn call(folder: &TempDir, number: u8, line: &str) -> Said {
    let home = folder.path().join(format!("peer-{number}/home"));
    let folder = folder.path().to_string_lossy().into_owned();
    run(PROGRAM, &home, line.split(' ').map(|word| word.replace("DIR", &folder)))
}

fn slot(peer: &Peer, number: u8) -> Option<SlotStatus> {
    peer.slots().into_iter().find(|slot| slot.member == member(number))
}

/// How many verdicts this peer has told of that are its own.
fn own_verdicts(peer: &Peer, number: u8) -> usize {
    peer.events_named("verdict").iter().filter(|event| event["judge"] == member(number).to_string()).count()
}

/// What the round's rule makes of the honest members' adapters and of nothing else, the last first.
fn expected(scene: &Scene, peers: &[Peer]) -> ContentHash {
    let plan = Plan::of(&scene.round);
    let source = |number: u8| {
        let weight = slot(&peers[0], number).expect("a slot").weight;
        let file = peers[usize::from(number)].round_home().adapter().join("adapter_model.safetensors");
        Source::read(&plan, member(number), weight, &file).expect("a whole adapter")
    };
    let sources: Vec<Source> = (1..=HONEST).rev().map(source).collect();
    adapters::merged_hash(&plan, &sources)
}

#[test]
fn an_adapter_counts_once_enough_members_approve_it_and_what_destroys_the_model_never_does() {
    let scene = Scene::new("--rule mean");
    let (peers, bare_loss) = judged(&scene);
    verified(&scene, &peers[1]);
    drop(peers);
    chained(&scene, bare_loss);
}

/// A trimmed mean of these needs three: each adapter is tried before that many count.
#[test]
fn members_judge_where_the_rule_merges_nothing_before_many_count() {
    judged(&Scene::new("--rule trimmed-mean --trim 1"));
}

/// Runs the round until every member judged all others; gives the peers, and the first member's loss with the base alone.
fn judged(scene: &Scene) -> (Vec<Peer>, f64) {
    let addresses = [Transport::Tcp, Transport::Quic, Transport::Tcp, Transport::Quic].map(address);
    let bad = HONEST + 1;
    // It is there before all others, so that each of them could merge it first.
    let mut peers = vec![scene.destroyer(bad, &addresses[0], &addresses[0])];
    for number in 1..=HONEST {
        peers.push(scene.honest(number, &addresses[usize::from(number)], &addresses[0]));
    }
    let merged = agree(&mut peers, usize::from(HONEST));
    for peer in &mut peers {
        let judged = peer.wait("every verdict", |peer| {
            let all = (1..=bad).map(|number| slot(peer, number)).collect::<Option<Vec<_>>>()?;
            let given: usize = all.iter().map(|slot| slot.verdicts.len()).sum();
            // Each honest member on all others.
            (given == usize::from(HONEST * HONEST)).then_some(all)
        });
        let (destroyer, honest) = judged.split_last().expect("slots");
        assert!(honest.iter().all(|slot| slot.merged && slot.approvals() == NEEDED && slot.approvals_needed == NEEDED), "{honest:#?}");
        assert!(!destroyer.merged && destroyer.approvals() == 0 && destroyer.have == destroyer.size, "{destroyer:#?}");
        for verdict in &destroyer.verdicts {
            assert!(
                verdict.with_loss.is_none_or(|loss| loss > verdict.base_loss + 0.5) && verdict.examples == EXAMPLES as u64 / 5,
                "{verdict:?}"
            );
        }
    }
    assert_eq!(expected(scene, &peers), merged.merged_hash);
    assert_eq!(agree(&mut peers, usize::from(HONEST)).merged_hash, merged.merged_hash);

    // What was judged is not judged again by a process that begins anew.
    let before = own_verdicts(&peers[1], 1);
    assert_eq!(before, usize::from(HONEST));
    peers[1].kill();
    peers[1].start();
    peers[1].wait("the merge", |peer| peer.merged().filter(|again| again.merged_hash == merged.merged_hash));
    peers[1].wait("a neighbour", |peer| peer.status().filter(|status| status.neighbours > 0));
    std::thread::sleep(std::time::Duration::from_secs(1));
    assert_eq!(own_verdicts(&peers[1], 1), before);
    let shown = call(&scene.folder, 1, "status --round DIR/round.json").right();
    assert!(shown.contains(&format!("{NEEDED} of {NEEDED} approvals")) && shown.contains(&format!("0 of {NEEDED} approvals")), "{shown}");
    let verdict = slot(&peers[0], bad).expect("a slot").verdicts.into_iter().find(|verdict| verdict.judge == member(1));
    (peers, verdict.expect("a verdict").base_loss)
}

/// In a round that goes on from the merge, adapters are measured against that, not against the bare base.
fn chained(scene: &Scene, bare_loss: f64) {
    let parent = |number: u8| Home::new(scene.path(&format!("peer-{number}/home"))).round(scene.round.id()).merged_current();
    let line = format!("round next {} --out DIR/next.json", parent(1).display());
    call(&scene.folder, 1, &line).right();
    let next = Round::from_json(&bytes_of(&scene.path("next.json"))).expect("a round");
    let (first, second) = (address(Transport::Tcp), address(Transport::Tcp));
    let peer = |number: u8, verb: &str| {
        let mut peer = Peer::new(PROGRAM, scene.folder.path(), &format!("peer-{number}"), next.id(), [verb, "--round"]);
        peer.argue([scene.path("next.json")]);
        peer
    };
    // It gives back what the round starts from.
    let mut author = peer(2, "publish");
    author.argue([parent(2)]);
    author.argue(["--examples", "10", "--listen", &first]);
    author.start();
    let mut judge = peer(1, "run");
    judge.argue(["--judge-with".into(), scene.path("data-1.jsonl"), "--base".into(), scene.path("base")]);
    judge.argue(["--max-length", "128", "--threads", "1", "--listen", &second, "--peer", &first]);
    judge.start();
    let said = judge.wait("a verdict", |peer| slot(peer, 2)?.verdicts.pop());
    assert!(said.approves && said.base_loss < bare_loss - 0.5, "{said:?}, the base alone {bare_loss}");
    assert!(said.with_loss.is_some_and(|with| (with - said.base_loss).abs() < 1e-3), "{said:?}");
}

/// The directory proves its approvals, and not with one fewer.
fn verified(scene: &Scene, peer: &Peer) {
    let merged = peer.round_home().merged_current();
    let verify = || call(&scene.folder, 1, &format!("verify {}", merged.display()));
    let said = verify().right();
    assert!(said.contains(&format!("approved by at least {NEEDED} other members")) && said.contains("the same bytes"), "{said}");
    let proof = Proof::read(&merged).expect("a receipt");
    assert_eq!(proof.approvals.len(), usize::from(HONEST) * NEEDED);
    let lies: [fn(&mut Proof); 3] = [
        |proof| drop(proof.approvals.pop()),
        // One judge's word twice, and the word of a judge on another.
        |proof| proof.approvals[5] = proof.approvals[4].clone(),
        |proof| proof.approvals[5] = proof.approvals[0].clone(),
    ];
    let last = proof.receipt.admitted.last().expect("an adapter").member;
    for lie in lies {
        let mut changed = proof.clone();
        lie(&mut changed);
        std::fs::write(merged.join(RECEIPT_FILE), serde_json::to_vec(&changed).expect("JSON")).expect("a receipt");
        let said = verify();
        assert_eq!(said.code, 4, "{said:?}");
        let expected = format!("error: the adapter of member {last} has {} of the {NEEDED} approvals that the round asks for", NEEDED - 1);
        assert!(said.err.starts_with(&expected), "{said:?}");
    }
    std::fs::write(merged.join(RECEIPT_FILE), serde_json::to_vec(&proof).expect("JSON")).expect("a receipt");
}
