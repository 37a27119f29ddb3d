//! Serving as people meet it: the program, the embedded base, and clients that speak OpenAI's API; at last eight of them at
//! once, while a real round's merge advances underneath.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use mingle_protocol::round::{Round, RoundFile};
use mingle_tests::peer::{Transport, address};
use mingle_tests::served::{Served, address_of, post};
use mingle_tests::{Desk, Dice, Peer, adapters};
use serde_json::{Value, json};

const PROGRAM: &str = env!("CARGO_BIN_EXE_mingle-peer");
const CHAT: &str = "/v1/chat/completions";
const TEXT: &str = "/v1/completions";

/// A desk with the embedded base.
fn desk() -> Desk {
    let desk = Desk::new(PROGRAM);
    mingle_testnet::base::write_to(&desk.path("base")).expect("a base");
    desk
}

fn serve(desk: &Desk, more: &[&str]) -> Served {
    let base = desk.path("base").to_string_lossy().into_owned();
    Served::start(PROGRAM, &desk.path("home"), ["--base", &base].into_iter().chain(more.iter().copied()))
}

fn chat(text: &str, more: &Value) -> Value {
    with(json!({ "messages": [{ "role": "user", "content": text }] }), more)
}

fn with(mut asked: Value, more: &Value) -> Value {
    for (name, value) in more.as_object().expect("an object") {
        asked[name] = value.clone();
    }
    asked
}

fn text_of(answer: &Value) -> &str {
    let choice = &answer["choices"][0];
    choice["text"].as_str().or(choice["message"]["content"].as_str()).expect("a text")
}

#[test]
fn completions_and_chats_are_answered_whole_and_in_pieces() {
    let desk = desk();
    let server = serve(&desk, &[]);
    assert_eq!(server.get("/health").right()["status"], "ok");
    assert_eq!(server.get("/v1/models").right()["data"][0]["id"], "base");
    let greedy = json!({ "prompt": "The harbour", "max_tokens": 20, "temperature": 0, "model": "base", "ignore_eos": true });
    let answer = server.post(TEXT, &greedy).right();
    assert_eq!(answer["usage"]["completion_tokens"], 20);
    assert!(text_of(&answer).split_whitespace().count() > 3, "the base knows words: {answer}");
    assert_eq!(answer["system_fingerprint"], "base");
    // The same, streamed.
    let chunks = server.post(TEXT, &with(greedy.clone(), &json!({ "stream": true }))).chunks();
    let streamed: String = chunks.iter().map(text_of).collect();
    assert_eq!(streamed, text_of(&answer));
    assert!(chunks.len() > 10, "it came in pieces");
    // A text from the midst of the answer, across the borders of tokens, ends it; nothing of it is shown, streamed or not.
    let stop: String = text_of(&answer).chars().skip(text_of(&answer).chars().count() / 2).take(7).collect();
    let before = text_of(&answer).split(&stop).next().expect("a part");
    assert!(!before.is_empty());
    let stopped = server.post(TEXT, &with(greedy.clone(), &json!({ "stop": [stop, "never said"] }))).right();
    assert_eq!((text_of(&stopped), stopped["choices"][0]["finish_reason"].as_str()), (before, Some("stop")));
    let chunks = server.post(TEXT, &with(greedy, &json!({ "stop": stop, "stream": true }))).chunks();
    assert_eq!(chunks.iter().map(text_of).collect::<String>(), before);
    // The base has no chat template: a chat is laid out as training lays out questions.
    let asked = json!({ "temperature": 0, "max_tokens": 12 });
    let talked = server.post(CHAT, &chat("Give the triage code.", &asked)).right();
    let laid_out = with(json!({ "prompt": "Give the triage code.\n" }), &asked);
    assert_eq!(text_of(&talked), text_of(&server.post(TEXT, &laid_out).right()).trim_start_matches(' '));
    assert_eq!(talked["object"], "chat.completion");
    // Text beyond ASCII goes in and comes back whole.
    let strange =
        server.post(CHAT, &chat("naïve — 漢字 🦀", &json!({ "max_tokens": 30, "seed": 3, "temperature": 2.0, "ignore_eos": true })));
    assert!(text_of(&strange.right()).chars().count() > 5);
}

#[test]
fn seeds_repeat_and_probabilities_are_told() {
    let desk = desk();
    let server = serve(&desk, &[]);
    let asked = |seed: u64| json!({ "prompt": "On Monday", "max_tokens": 24, "seed": seed, "ignore_eos": true, "logprobs": 3 });
    let first = server.post(TEXT, &asked(7)).right();
    assert_eq!(first["choices"], server.post(TEXT, &asked(7)).right()["choices"]);
    assert_ne!(text_of(&first), text_of(&server.post(TEXT, &asked(8)).right()));
    let told = &first["choices"][0]["logprobs"];
    assert_eq!((told["tokens"].as_array().unwrap().len(), told["top_logprobs"][0].as_object().unwrap().len() >= 3), (24, true));
    let joined: String = told["tokens"].as_array().unwrap().iter().map(|token| token.as_str().unwrap()).collect();
    assert_eq!(joined, text_of(&first));
    let several = server.post(TEXT, &with(asked(7), &json!({ "n": 3, "prompt": ["On Monday", "The ward"] }))).right();
    let all = several["choices"].as_array().unwrap();
    assert_eq!((all.len(), &all[0]["text"]), (6, &first["choices"][0]["text"]), "three answers to each of two prompts");
}

#[test]
fn what_cannot_be_is_said_in_the_shape_that_clients_know() {
    let desk = desk();
    let mut server = serve(&desk, &[]);
    let error = server.post(CHAT, &chat("Hi", &json!({ "model": "gpt-4o" }))).wrong(404);
    assert_eq!((error["code"].as_str(), error["param"].as_str()), (Some("model_not_found"), Some("model")));
    assert_eq!(error["message"], "there is no model \"gpt-4o\"; there is base");
    let error = server.post(TEXT, &json!({ "prompt": "x", "max_tokens": 600 })).wrong(400);
    assert_eq!(error["code"], "context_length_exceeded");
    assert_eq!(server.post(TEXT, &json!({ "prompt": 5 })).wrong(400)["param"], "prompt");
    // It ends when it is told to.
    let signalled = std::process::Command::new("kill").arg(server.id().to_string()).status().expect("kill");
    assert!(signalled.success());
    assert_eq!(server.ended(), Some(0));

    let base = "serve --base DIR/base";
    desk.run(&format!("{base} --listen 0.0.0.0:0")).wrong(
        1,
        &[
            "error: other machines can reach 0.0.0.0:0, so a token is needed there",
            "hint: make one, such as by `openssl rand -hex 24 > token`, and give it with --token-file token, or in $MINGLE_TOKEN",
        ],
    );
    desk.write("short", "secret\n");
    let short = desk.run(&format!("{base} --token-file DIR/short"));
    assert!(short.code == 1 && short.err.contains("DIR/short has 6 characters; it must have 16 to 512"), "{short:?}");
    let other = desk.run("serve");
    assert!(other.code == 2 && other.err.contains("--base"), "{other:?}");
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let taken = desk.run(&format!("{base} --listen {}", taken.local_addr().unwrap()));
    assert!(taken.code == 1 && taken.err.contains("cannot answer at 127.0.0.1:"), "{taken:?}");
}

/// Members of one round, whose adapters are drawn: each says something else.
struct Scene {
    desk: Desk,
    round: Round,
}

impl Scene {
    fn new() -> Self {
        let desk = desk();
        desk.run("round new --base DIR/base --rank 4 --alpha 8 --name served --out DIR/round.json").right();
        let file = RoundFile::from_json(&std::fs::read(desk.path("round.json")).expect("a round file")).expect("a round");
        Self { desk, round: file.round }
    }

    fn peer(&self, name: &str, arguments: &[&str]) -> Peer {
        let mut peer = Peer::new(PROGRAM, &self.desk.path(""), name, self.round.id(), arguments.iter().copied());
        peer.argue([std::ffi::OsString::from("--round"), self.desk.path("round.json").into()]);
        peer.start();
        peer
    }

    /// A member that announces adapter `number` to the peer at `to`.
    fn member(&self, number: u64, to: &str) -> Peer {
        let folder = self.desk.path(&format!("adapter-{number}"));
        let mut dice = Dice::new(number, "served");
        adapters::write_peft(&folder, &self.round, &adapters::file_of(&self.round, |_| dice.value() * 0.25));
        let (folder, examples) = (folder.to_string_lossy().into_owned(), (100 * number).to_string());
        let listen = "/ip4/127.0.0.1/tcp/0";
        self.peer(&format!("member-{number}"), &["publish", &folder, "--examples", &examples, "--listen", listen, "--peer", to])
    }
}

/// Questions that clients ask, each over and over.
fn questions() -> Vec<Value> {
    let asked = |index: usize| {
        let sampling = json!({ "temperature": if index.is_multiple_of(2) { 0.0 } else { 0.8 }, "seed": index, "max_tokens": 16 + 2 * index, "ignore_eos": true });
        chat(["Give the triage code.", "Where is the ship?", "What is for dinner?", "Who wrote it?"][index % 4], &sampling)
    };
    (0..8).map(asked).collect()
}

/// An answer, and which model it says gave it.
type Heard = Mutex<Vec<(usize, String, String)>>;

/// Asks one question until told to stop.
fn ask(address: &str, index: usize, question: &Value, stop: &AtomicBool, heard: &Heard) {
    let mut turn = 0;
    while !stop.load(Ordering::Relaxed) {
        turn += 1;
        let (text, fingerprint) = match turn % 2 {
            0 => {
                let answer = post(address, CHAT, question).right();
                (text_of(&answer).to_owned(), answer["system_fingerprint"].clone())
            }
            _ => {
                let chunks = post(address, CHAT, &with(question.clone(), &json!({ "stream": true }))).chunks();
                let fingerprint = chunks[0]["system_fingerprint"].clone();
                assert!(chunks.iter().all(|chunk| chunk["system_fingerprint"] == fingerprint), "one answer, one model");
                let text = chunks.iter().filter_map(|chunk| chunk["choices"][0]["delta"]["content"].as_str()).collect();
                (text, fingerprint)
            }
        };
        heard.lock().unwrap().push((index, fingerprint.as_str().expect("a fingerprint").to_owned(), text));
    }
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("a folder");
    for entry in std::fs::read_dir(from).expect("a merged directory").flatten() {
        std::fs::copy(entry.path(), to.join(entry.file_name())).expect("a copy");
    }
}

/// Bar 2 of serving: no request fails, and each answer is the one that its adapter gives alone.
#[test]
fn eight_clients_are_answered_while_the_merge_advances() {
    let scene = Scene::new();
    let base = scene.desk.path("base").to_string_lossy().into_owned();
    let listen = address(Transport::Tcp);
    let mut serving = scene.peer("serving", &["run", "--serve", "127.0.0.1:0", "--base", &base, "--listen", &listen]);
    let address = serving.wait("the server to answer", |peer| peer.events_named("serving").first().map(address_of));
    let questions = questions();
    let (heard, stop) = (Heard::default(), AtomicBool::new(false));
    let mut merges: BTreeMap<String, Option<PathBuf>> = [("base".to_owned(), None)].into();
    std::thread::scope(|scope| {
        for (index, question) in questions.iter().enumerate() {
            let (address, stop, heard) = (&address, &stop, &heard);
            scope.spawn(move || ask(address, index, question, stop, heard));
        }
        let mut members = Vec::new();
        for number in 1..=4u64 {
            members.push(scene.member(number, &listen));
            let merged = serving.wait("the merge to advance", |peer| peer.merged().filter(|merged| merged.adapters as u64 == number));
            let hash = merged.merged_hash.to_string();
            let folder = scene.desk.path(&format!("merge-{number}"));
            copy(&serving.round_home().merged_current(), &folder);
            merges.insert(hash.clone(), Some(folder));
            // All of them have been answered by it before the next comes.
            let answered = |heard: &Heard| (0..8).all(|index| heard.lock().unwrap().iter().any(|(of, by, _)| *of == index && *by == hash));
            serving.wait("answers from this merge", |_| answered(&heard).then_some(()));
        }
        stop.store(true, Ordering::Relaxed);
    });
    let heard = heard.into_inner().unwrap();
    assert_eq!(merges.len(), 5);
    for (hash, folder) in &merges {
        let more = folder.as_ref().map(|folder| folder.to_string_lossy().into_owned());
        let alone = serve(&scene.desk, &more.as_ref().map_or(vec![], |folder| vec!["--adapter", folder.as_str()]));
        let expected: Vec<String> = questions.iter().map(|question| text_of(&alone.post(CHAT, question).right()).to_owned()).collect();
        let mine: Vec<_> = heard.iter().filter(|(_, by, _)| by == hash).collect();
        assert!(!mine.is_empty());
        for (index, _, text) in mine {
            assert_eq!(*text, expected[*index], "question {index} answered by {hash}");
        }
    }
    let answers = |by: &str| heard.iter().find(|(index, hash, _)| *index == 0 && hash == by).map(|(.., text)| text.clone());
    let different: std::collections::BTreeSet<_> = merges.keys().map(|hash| answers(hash)).collect();
    assert!(different.len() > 3, "the merges say different things: {different:?}");
    assert!(heard.iter().all(|(_, by, _)| merges.contains_key(by)));
}

/// A server beside a peer follows what that peer merges, and what is taken back answers no more.
#[test]
fn a_server_follows_the_peer_of_its_home() {
    let scene = Scene::new();
    let listen = address(Transport::Tcp);
    let mut peer = scene.peer("member", &["run", "--listen", &listen]);
    let home = peer.home().folder().to_owned();
    let (base, round) =
        (scene.desk.path("base").to_string_lossy().into_owned(), scene.desk.path("round.json").to_string_lossy().into_owned());
    let server = Served::start(PROGRAM, &home, ["--base", &base, "--round", &round]);
    let asked = json!({ "prompt": "The", "max_tokens": 8, "temperature": 0, "ignore_eos": true });
    let before = server.post(TEXT, &asked).right();
    assert_eq!(before["model"], "base", "nothing is merged yet");
    let mut member = scene.member(1, &listen);
    let fingerprint = server.next("serving_model")["fingerprint"].clone();
    let merged = peer.wait("a merge", |peer| peer.merged());
    assert_eq!(fingerprint, merged.merged_hash.to_string());
    let after = server.post(TEXT, &asked).right();
    assert_eq!((&after["model"], &after["system_fingerprint"]), (&json!("merged"), &fingerprint));
    assert_ne!(text_of(&before), text_of(&after));
    let same = server.post(TEXT, &with(asked.clone(), &json!({ "model": "base" }))).right();
    assert_eq!(text_of(&before), text_of(&same));
    // Withdrawn, it is in nobody's merge.
    member.kill();
    let _withdrawing = scene.peer("member-1", &["withdraw", "--listen", "/ip4/127.0.0.1/tcp/0", "--peer", &listen]);
    assert_eq!(server.next("serving_model_gone")["id"], "merged");
    assert_eq!(server.post(TEXT, &asked).right()["model"], "base");
    server.post(TEXT, &with(asked, &json!({ "model": "merged" }))).wrong(404);
}
