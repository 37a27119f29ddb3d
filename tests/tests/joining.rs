//! One file or one line of chat is all that a member needs: the base is found by its name, the first peers are in the
//! round file or in the link, and whoever runs hands the round file on. Real processes.

use std::path::{Path, PathBuf};

use mingle_protocol::link::RoundLink;
use mingle_protocol::round::{Round, RoundFile};
use mingle_tests::peer::{Transport, address};
use mingle_tests::{Peer, Said, adapters, agree, base, run};
use serde_json::Value;
use tempfile::TempDir;

const PROGRAM: &str = env!("CARGO_BIN_EXE_mingle-peer");

/// A folder, and a round over a real base or one of drawn adapters.
struct Scene {
    folder: TempDir,
    round: Round,
}

impl Scene {
    /// A round of published adapters, its file naming `peers`.
    fn published(name: &str, peers: &[&str]) -> Self {
        let folder = TempDir::new().expect("a temporary folder");
        let round = adapters::round(name, 2, 64, []);
        let file = RoundFile { peers: peers.iter().map(ToString::to_string).collect(), ..round.clone().into() };
        std::fs::write(folder.path().join("round.json"), file.to_json()).expect("a round file");
        Self { folder, round }
    }

    /// A round whose members train, with its base beside the round file.
    fn trained() -> Self {
        let folder = TempDir::new().expect("a temporary folder");
        base::write_base(&folder.path().join("base"), 1);
        base::write_data(&folder.path().join("data.jsonl"), 24, 1);
        let line = format!("round new --base {0}/base --rank 2 --out {0}/round.json", folder.path().display());
        run(PROGRAM, &folder.path().join("founder"), line.split(' ')).right();
        let text = std::fs::read(folder.path().join("round.json")).expect("a round file");
        Self { folder, round: Round::from_json(&text).expect("a round") }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A member that publishes adapter `number`; `round` is a file or a link.
    fn member(&self, number: u64, round: &str, listen: &str) -> Peer {
        let directory = self.path(&format!("adapter-{number}"));
        adapters::write_peft(&directory, &self.round, &adapters::adapter_file(&self.round, number));
        let mut peer = Peer::new(PROGRAM, self.folder.path(), &format!("member-{number}"), self.round.id(), ["publish"]);
        peer.argue([directory.into_os_string(), "--round".into(), round.into()]);
        peer.argue(["--examples", "100", "--listen", listen]);
        peer.start();
        peer
    }

    /// Runs a command line, split at spaces; `DIR` stands for the folder, in what is said too.
    fn run(&self, home: &str, line: &str) -> Said {
        let folder = self.folder.path().to_string_lossy().into_owned();
        let said = run(PROGRAM, &self.path(home), line.split(' ').map(|word| word.replace("DIR", &folder)));
        Said { out: said.out.replace(&folder, "DIR"), err: said.err.replace(&folder, "DIR"), ..said }
    }

    fn file(&self) -> String {
        self.path("round.json").to_string_lossy().into_owned()
    }
}

fn json(text: &str) -> Value {
    serde_json::from_str(text.trim()).unwrap_or_else(|error| panic!("{error}: {text}"))
}

const ANY: &str = "/ip4/127.0.0.1/tcp/0";

#[test]
fn a_round_file_that_names_a_peer_is_enough_to_join() {
    let listen = address(Transport::Tcp);
    let scene = Scene::published("named", &[&listen]);
    let mut peers = vec![scene.member(1, &scene.file(), &listen), scene.member(2, &scene.file(), ANY), scene.member(3, &scene.file(), ANY)];
    agree(&mut peers, 3);
}

#[test]
fn a_link_is_enough_to_join_and_the_round_file_goes_from_peer_to_peer() {
    let (first, second) = (address(Transport::Quic), address(Transport::Tcp));
    let scene = Scene::published("linked", &[&first]);
    let link = scene.run("anywhere", "round link DIR/round.json").right().trim().to_owned();
    assert!(link.len() < 140 && link.ends_with(&format!("?peer={first}")), "{link}");
    let mut peers = vec![scene.member(1, &scene.file(), &first)];
    agree(&mut peers, 1);
    std::fs::remove_file(scene.path("round.json")).expect("the file is not needed any more");
    peers.push(scene.member(2, &link, &second));
    agree(&mut peers, 2);
    // It was kept: the peer it came from is asked no more, and the newcomer hands it on.
    peers[1].kill();
    peers.remove(0);
    peers[0].start();
    agree(&mut peers, 2);
    let onward = RoundLink { round: scene.round.id(), peers: vec![second.clone()] }.to_string();
    peers.push(scene.member(3, &onward, ANY));
    agree(&mut peers, 3);

    // As a file again, from a link without any address.
    let bare = RoundLink { round: scene.round.id(), peers: vec![] }.to_string();
    let shown = json(&scene.run("reader", &format!("round get {bare} --peer {second} --out DIR/got.json --json")).right());
    assert_eq!(shown["id"], scene.round.id().to_string());
    let got = RoundFile::from_json(&std::fs::read(scene.path("got.json")).expect("a file")).expect("a round file");
    assert!(got.round == scene.round && got.peers.contains(&first), "{:?}", got.peers);
    // What the home has is found there, with nobody to ask.
    scene.run("reader", &format!("round get {bare} --out DIR/again.json")).right();
    scene.run("reader", &format!("status --round {bare}")).wrong(1, &[&status_missing(&scene)]);
}

fn status_missing(scene: &Scene) -> String {
    let short: String = scene.round.id().to_string().chars().take(16).collect();
    format!("error: cannot read DIR/reader/rounds/{short}/status.json: No such file or directory (os error 2)")
}

#[test]
fn what_is_wrong_with_a_link_or_its_peers_is_said_in_words() {
    let (listen, nobody) = (address(Transport::Tcp), "/ip4/127.0.0.1/tcp/1");
    let scene = Scene::published("words", &[]);
    let mut peers = vec![scene.member(1, &scene.file(), &listen)];
    agree(&mut peers, 1);
    let said = scene.run("a", "round link DIR/round.json");
    assert!(said.err.starts_with("hint: the link names no peer"), "{said:?}");
    let link = said.right().trim().to_owned();
    let get = |link: &str| scene.run("a", &format!("fetch --round {link} --out DIR/merged --timeout 20"));
    let copy = "hint: copy the whole line: a link may have been broken by the chat";
    get(&link[..50]).wrong(1, &["error: the link is incomplete: 43 of 58 characters follow \"mingle:\"", copy]);
    // One wrong character is pointed at.
    let (found, wrong) = (link.chars().nth(16).expect("a character"), if link.as_bytes()[16] == b'q' { 'p' } else { 'q' });
    let bent: String = link.chars().enumerate().map(|(index, c)| if index == 16 { wrong } else { c }).collect();
    get(&bent).wrong(
        1,
        &[
            &format!("error: the link was changed on the way: character 10 after \"mingle:\" is '{wrong}', but everything fits if it is '{found}'"),
            "hint: copy it again; if that is all there is, try it with that character changed",
        ],
    );
    let id = scene.round.id();
    let add = "hint: add the address of a peer that runs with --peer";
    get(&link).wrong(1, &[&format!("error: the link to round {id} names no peer to ask for its file"), add]);
    let ask = "hint: ask who sent the link whether that peer runs and can be dialled from here, or for the round file itself";
    get(&format!("{link}?peer={nobody}")).wrong(
        1,
        &[&format!("error: no peer has given the file of round {id}"), &format!("  {nobody}: Connection refused (os error 111)"), ask],
    );
    // A peer of another round.
    let other = RoundLink { round: adapters::round("other", 2, 64, []).id(), peers: vec![listen.clone()] };
    get(&other.to_string()).wrong(
        1,
        &[&format!("error: no peer has given the file of round {}", other.round), &format!("  {listen}: it does not know this round"), ask],
    );
    assert!(!scene.path("merged").exists() && !scene.path("a/rounds").exists(), "nothing is left of what failed");
    let said = scene.run("a", &format!("round get {} --out DIR/x.json", &link[..50]));
    assert!(said.code == 2 && said.err.contains("the link is incomplete"), "{said:?}");
}

#[test]
fn the_base_is_found_by_its_name() {
    let scene = Scene::trained();
    let trains = |home: &str| {
        let said = scene.run(home, "run --round DIR/round.json --data DIR/data.jsonl --epochs 1 --offline --json").right();
        assert!(said.contains("\"announced\""), "{said}");
    };
    trains("beside");
    // Elsewhere: as a hub's cache has it, beside another model of that name.
    let hub = scene.path("hub-home").join("hub");
    for (owner, seed) in [("another", 2), ("org", 1)] {
        base::write_base(&hub.join(format!("models--{owner}--base/snapshots/1a2b")), seed);
    }
    std::fs::rename(scene.path("base"), scene.path("moved")).expect("moved");
    trains("hub-home");
    // Nowhere: each place is named, with what is there instead.
    base::write_base(&scene.path("base"), 3);
    let said = scene.run("nowhere", "run --round DIR/round.json --data DIR/data.jsonl --offline");
    let digest = |folder: &Path| mingle::models::base_digest(folder).expect("a base").short();
    said.wrong(
        1,
        &[
            &format!("error: the base \"base\" (digest {}) was not found", digest(&scene.path("moved"))),
            &format!("  DIR/base: another base, of digest {}", digest(&scene.path("base"))),
            "  ./base: nothing there",
            "  DIR/nowhere/hub/models--*--base/snapshots: nothing there",
            "hint: give its directory with --base, put it into one of these places, or list the folder it is in in MINGLE_BASES",
        ],
    );
}
