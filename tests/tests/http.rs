//! The HTTP port of real processes, asked by hand over a socket: what it tells and when, whom it refuses, and that its
//! description is the one in docs/.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Parser;
use mingle_protocol::hash::encode_hex;
use mingle_protocol::round::Round;
use mingle_testnet::live::LiveView;
use mingle_testnet::options::Options;
use mingle_testnet::page::Page;
use mingle_testnet::peer::Program;
use mingle_tests::adapters::{self, key};
use mingle_tests::http::{Answer, Stream, ask, ask_with, send};
use mingle_tests::peer::{Transport, address, bytes_of};
use mingle_tests::{Desk, Peer, agree, run};
use serde_json::Value;
use tempfile::TempDir;

const PROGRAM: &str = env!("CARGO_BIN_EXE_mingle-peer");
const TOKEN: &str = "a-token-of-some-length";
/// Regenerates docs/openapi.json.
const WRITE: &str = "MINGLE_WRITE_SNAPSHOTS";

struct Scene {
    folder: TempDir,
    round: Round,
    file: PathBuf,
}

impl Scene {
    fn new() -> Self {
        let folder = TempDir::new().expect("a temporary folder");
        let round = adapters::round("<b>\"http\"</b>", 4, 64, (1..=3).map(|number| key(number).member()));
        let file = folder.path().join("round.json");
        std::fs::write(&file, round.to_json()).expect("a round file");
        Self { folder, round, file }
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    fn peer(&self, number: u8, listen: &str, options: &[&str]) -> Peer {
        let directory = self.path().join(format!("adapter-{number}"));
        adapters::write_peft(&directory, &self.round, &adapters::adapter_file(&self.round, u64::from(number)));
        let mut peer = Peer::new(PROGRAM, self.path(), &format!("member-{number}"), self.round.id(), ["publish"]);
        std::fs::create_dir_all(peer.home().folder()).expect("a home");
        std::fs::write(peer.home().key_path(), encode_hex(&key(number).to_bytes())).expect("a key");
        peer.argue([directory.into_os_string(), "--round".into(), self.file.clone().into()]);
        peer.argue(["--examples", "100", "--listen", listen]);
        peer.argue(options.iter().copied());
        peer.start();
        peer
    }
}

/// The port that a peer says it has opened.
fn port(peer: &mut Peer) -> u16 {
    let url = peer.wait("the port to be open", |peer| Some(peer.events_named("shown").last()?["url"].as_str()?.to_owned()));
    let address = url.trim_start_matches("http://").split('/').next().unwrap_or_default();
    address.rsplit(':').next().and_then(|port| port.parse().ok()).unwrap_or_else(|| panic!("{url} has no port"))
}

fn docs(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace").join("docs").join(name)
}

#[test]
fn the_port_tells_what_the_peer_is_doing_as_it_changes() {
    let scene = Scene::new();
    let first = address(Transport::Tcp);
    let mut one = scene.peer(1, &first, &["--http", "127.0.0.1:0"]);
    let port = port(&mut one);
    one.wait("its own merge", |peer| peer.merged().filter(|merged| merged.adapters == 1));

    let mut stream = Stream::open(port, "/api/events");
    let peers = stream.until("peers", |_| true);
    assert_eq!((peers[0]["member"].as_str(), &peers[0]["live"]), (Some(key(1).member().to_string().as_str()), &Value::Bool(true)));
    let status = stream.until("status", |status| status["merged"]["adapters"] == 1);
    assert_eq!(status["roster"].as_array().map(Vec::len), Some(3), "who was not heard of is known");
    assert_eq!(status["slots"].as_array().map(Vec::len), Some(1));

    let two = scene.peer(2, &address(Transport::Tcp), &["--peer", &first]);
    // In this order: of what is new at once, the peers come first.
    stream.until("peers", |peers| peers[0]["merged"] == 2);
    let status = stream.until("status", |status| status["merged"]["adapters"] == 2);
    let mut peers = [one, two];
    let agreed = agree(&mut peers, 2);
    assert_eq!(status["merged"]["merged_hash"], agreed.merged_hash.to_string());
    stream.until("history", |history| history["merges"].as_array().is_some_and(|merges| merges.len() == 2));

    // All of what `mingle status --json` tells, under the same names.
    let asked = ask(port, "/api/status").json();
    let home = peers[0].home().folder().to_owned();
    let said: Value = serde_json::from_str(&run(PROGRAM, &home, ["status", "--json"]).right()).expect("JSON");
    let names = |value: &Value| value.as_object().map(|object| object.keys().cloned().collect::<Vec<_>>());
    assert_eq!(names(&asked), names(&said));
    assert_eq!((&asked["live"], &asked["name"], &asked["slots"]), (&Value::Bool(true), &said["name"], &said["slots"]));
    assert_eq!(ask(port, "/api/status?peer=nobody").code, 404);
    let id = ask(port, "/api/peers").json()[0]["id"].as_str().map(str::to_owned).expect("an id");
    assert_eq!(ask(port, &format!("/api/status?peer={id}")).json()["member"], asked["member"]);

    let history = ask(port, "/api/history").json();
    assert_eq!(history["merges"][1]["merged_hash"], agreed.merged_hash.to_string());
    assert!(history["happened"].as_array().is_some_and(|happened| happened.len() > 2), "{history:#}");
    let kept = std::fs::read(peers[0].round_home().history_path());
    assert!(kept.is_ok(), "it is on disk for the next start");
    metrics(&ask(port, "/metrics"));

    // Clients that take nothing hold up nobody.
    let _deaf: Vec<Stream> = (0..30).map(|_| Stream::open(port, "/api/events")).collect();
    assert_eq!(ask(port, "/api/status").code, 200);
}

/// Every line of a scrape has its form, and numbers are where they belong.
fn metrics(answer: &Answer) {
    assert_eq!(answer.header("content-type"), "application/openmetrics-text; version=1.0.0; charset=utf-8");
    assert!(answer.body.ends_with("# EOF\n"), "{}", answer.body);
    let mut samples = Vec::new();
    for line in answer.body.lines().filter(|line| !line.starts_with('#')) {
        let (name, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("{line:?} has no value"));
        let (name, labels) = name.split_once('{').unwrap_or_else(|| panic!("{line:?} has no labels"));
        assert!(name.starts_with("mingle_") && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_'), "{line:?}");
        assert!(labels.starts_with("round=\"") && labels.contains("member=\"") && labels.ends_with('}'), "{line:?}");
        samples.push((name.to_owned(), labels.to_owned(), value.parse::<f64>().expect("a number")));
    }
    let value =
        |name: &str, label: &str| samples.iter().find(|(of, labels, _)| of == name && labels.contains(label)).map(|(.., value)| *value);
    assert_eq!(value("mingle_merged_adapters", ""), Some(2.0));
    assert_eq!(value("mingle_slots", "state=\"adapter\""), Some(2.0));
    assert_eq!(value("mingle_neighbours", "path=\"direct\""), Some(1.0));
    assert_eq!(value("mingle_faults", ""), Some(0.0));
    assert_eq!(value("mingle_live", ""), Some(1.0));
    // What the board asks for is there; not all of it at this peer, which has not trained.
    let board = String::from_utf8(bytes_of(&docs("grafana.json"))).expect("text");
    let word = |rest: &str| rest.chars().take_while(|letter| letter.is_ascii_lowercase() || *letter == '_').collect::<String>();
    let made = String::from_utf8(bytes_of(&docs("../node/src/http/metrics.rs"))).expect("text");
    let asked: BTreeSet<String> = board.split("mingle_").skip(1).map(word).collect();
    assert!(asked.len() > 15, "{asked:?}");
    for name in asked {
        let named = format!("\"{}\",", name.trim_end_matches("_total"));
        assert!(made.contains(&named), "there is no {named}");
    }
    assert!(value("mingle_traffic_bytes_total", "kind=\"blob\",direction=\"in\"").is_some_and(|bytes| bytes > 0.0), "{}", answer.body);
}

#[test]
fn every_part_of_the_page_comes_from_the_port_and_may_do_nothing_else() {
    let scene = Scene::new();
    let mut peer = scene.peer(1, &address(Transport::Tcp), &["--http", "127.0.0.1:0"]);
    let port = port(&mut peer);
    let page = ask(port, "/");
    assert_eq!((page.code, page.header("content-type")), (200, "text/html; charset=utf-8"));
    let mut parts: Vec<String> = vec!["/style.css".into(), "/dashboard.js".into()];
    assert!(page.body.contains("href=\"style.css\"") && page.body.contains("src=\"dashboard.js\""));
    let mut read = 0;
    while let Some(path) = parts.get(read).cloned() {
        read += 1;
        let part = ask(port, &path);
        let kind = if path.ends_with(".css") { "text/css; charset=utf-8" } else { "text/javascript; charset=utf-8" };
        assert_eq!((part.code, part.header("content-type")), (200, kind), "{path}");
        for line in part.body.lines().filter(|line| line.starts_with("import ")) {
            let name = line.split('"').nth(1).expect("a module").trim_start_matches('.').to_owned();
            if !parts.contains(&name) {
                parts.push(name);
            }
        }
        for hostile in ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("] {
            assert!(!part.body.contains(hostile), "{path} makes markup of texts: {hostile}");
        }
    }
    assert_eq!(read, 6, "{parts:?}");
    for path in ["/", "/style.css", "/api/status", "/api/events", "/metrics", "/nothing"] {
        let answer = match path {
            "/api/events" => send(port, &format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n")).2,
            _ => ask(port, path).headers,
        };
        let header = |name: &str| answer.iter().find(|(header, _)| header == name).map_or("", |(_, value)| value.as_str());
        let policy = header("content-security-policy");
        for part in ["default-src 'none'", "script-src 'self'", "connect-src 'self'", "frame-ancestors 'none'"] {
            assert!(policy.contains(part), "{path}: {policy:?}");
        }
        assert!(!policy.contains("unsafe") && !policy.contains('*'), "{policy}");
        assert_eq!((header("x-content-type-options"), header("referrer-policy")), ("nosniff", "no-referrer"), "{path}");
        assert_eq!(header("access-control-allow-origin"), "", "{path}");
    }
}

#[test]
fn a_foreign_name_another_site_and_anything_but_a_question_are_refused() {
    let scene = Scene::new();
    let mut peer = scene.peer(1, &address(Transport::Tcp), &["--http", "127.0.0.1:0"]);
    let port = port(&mut peer);
    for host in ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "10.0.0.1"] {
        for path in ["/", "/api/status", "/metrics"] {
            let answer = ask_with(port, "GET", path, &format!("Host: {host}:{port}\r\n"));
            assert_eq!((answer.code, answer.json()["error"].is_string()), (421, true), "{host}{path}");
        }
    }
    for host in [format!("127.0.0.1:{port}"), "localhost".into(), "[::1]:8080".into()] {
        assert_eq!(ask_with(port, "GET", "/api/peers", &format!("Host: {host}\r\n")).code, 200, "{host}");
    }
    let with = |headers: &str| ask_with(port, "GET", "/api/peers", &format!("Host: localhost:{port}\r\n{headers}\r\n"));
    assert_eq!(with("Origin: https://evil.example").code, 403);
    assert_eq!(with("Origin: null").code, 403);
    assert_eq!(with(&format!("Origin: http://localhost:{port}")).code, 200);
    assert_eq!(with("Content-Length: 5").code, 413);
    for method in ["POST", "PUT", "DELETE", "OPTIONS"] {
        let answer = ask_with(port, method, "/api/status", "Host: localhost\r\nContent-Length: 0\r\n");
        assert_eq!((answer.code, answer.header("allow")), (405, "GET, HEAD"), "{method}");
    }
    assert_eq!(ask(port, "/api/nothing").code, 404);
    assert_eq!(ask(port, "/../Cargo.toml").code, 404);
}

#[test]
fn where_other_machines_can_ask_a_token_is_needed() {
    let scene = Scene::new();
    let desk = Desk::new(PROGRAM);
    std::fs::copy(&scene.file, desk.path("round.json")).expect("a round file");
    let refused = desk.run("run --round DIR/round.json --http 0.0.0.0:0");
    refused.wrong(
        1,
        &[
            "error: 0.0.0.0:0 can be reached from other machines, and there is no token to ask for",
            "hint: make a token (`openssl rand -hex 32 > http-token`) and give it with --http-token-file or $MINGLE_HTTP_TOKEN; or stay \
             at 127.0.0.1",
        ],
    );
    desk.write("token", "short\n");
    desk.run("run --round DIR/round.json --http --http-token-file DIR/token").wrong(
        1,
        &[
            "error: the token in DIR/token has 5 characters; it must have 16 to 512, all of them visible ASCII",
            "hint: `openssl rand -hex 32` makes a good one",
        ],
    );

    desk.write("token", &format!("{TOKEN}\n"));
    let file = desk.path("token").to_string_lossy().into_owned();
    let mut peer = scene.peer(1, &address(Transport::Tcp), &["--http", "0.0.0.0:0", "--http-token-file", &file]);
    let port = port(&mut peer);
    let with = |token: &str, path: &str| {
        let line = if token.is_empty() { String::new() } else { format!("Authorization: Bearer {token}\r\n") };
        ask_with(port, "GET", path, &format!("Host: peer.example\r\n{line}"))
    };
    peer.wait("the first status", |peer| peer.status());
    for path in ["/api/status", "/api/events", "/api/history", "/api/openapi.json", "/metrics"] {
        for wrong in ["", "a-token-of-some-lengtH", "a-token-of-some-length-", "a-token-of-some-lengt"] {
            let answer = with(wrong, path);
            assert_eq!((answer.code, answer.header("www-authenticate")), (401, "Bearer realm=\"mingle\""), "{path} {wrong}");
            assert!(!answer.body.contains(&key(1).member().to_string()));
        }
    }
    let told = with(TOKEN, "/api/status");
    assert_eq!((told.code, told.json()["member"].as_str()), (200, Some(key(1).member().to_string().as_str())));
    assert_eq!(with("", "/").code, 200, "the page itself asks for the token");
    assert_eq!(with(TOKEN, &format!("/api/status?token={TOKEN}")).code, 200);
    assert_eq!(with("", &format!("/api/status?token={TOKEN}")).code, 401, "in an address it would be written down everywhere");
}

#[test]
fn the_description_is_the_one_in_docs() {
    let scene = Scene::new();
    let mut peer = scene.peer(1, &address(Transport::Tcp), &["--http", "127.0.0.1:0"]);
    let served = ask(port(&mut peer), "/api/openapi.json");
    let path = docs("openapi.json");
    if std::env::var_os(WRITE).is_some() {
        std::fs::write(&path, &served.body).expect("written");
    }
    let committed = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(committed == served.body, "docs/openapi.json is old; `{WRITE}=1 cargo test -p mingle-tests --test http description` writes it");
    let described = served.json();
    let paths: Vec<&String> = described["paths"].as_object().expect("paths").keys().collect();
    assert_eq!(paths, ["/api/events", "/api/history", "/api/openapi.json", "/api/peers", "/api/status", "/metrics"]);
    // What is told is what is described.
    let port = port(&mut peer);
    let status = peer.wait("a status", |_| Some(ask(port, "/api/status")).filter(|answer| answer.code == 200)).json();
    let schemas = &described["components"]["schemas"];
    let parts = schemas["PeerStatus"]["allOf"].as_array().expect("a status and whether it runs");
    assert_eq!(parts.len(), 2, "{parts:?}");
    for name in status.as_object().expect("a status").keys().filter(|name| *name != "live") {
        assert!(schemas["Status"]["properties"].get(name).is_some(), "{name} is not described");
    }
}

#[test]
fn all_peers_of_a_testnet_are_on_one_page_with_their_scores() {
    let arguments = "mingle-testnet --members 2 --readers 1 --examples 24 --epochs 2 --rounds 0 --no-centralised --eval-examples 8 \
                     --seed 5 --http 127.0.0.1:0";
    let options = Options::parse_from(arguments.split_whitespace());
    let program = Program { executable: PROGRAM.into(), prefix: Vec::new() };
    let folder = tempfile::tempdir().expect("a folder");
    let page = Page::open(options.http.expect("an address")).expect("a page");
    let port = page.url().trim_end_matches('/').rsplit(':').next().and_then(|port| port.parse().ok()).expect("a port");
    assert_eq!(ask(port, "/api/status").code, 503, "nobody has said anything");
    let mut stream = Stream::open(port, "/api/events");
    let watched = std::thread::spawn(move || stream.until("peers", |peers| peers.as_array().is_some_and(|all| all.len() == 3)));
    let mut live = LiveView::with_page(Some(page));
    let report = mingle_testnet::run::run_shown(&options, &program, folder.path(), &mut live).expect("a run");
    assert!(watched.join().expect("it was watched").is_array());
    let peers = ask(port, "/api/peers").json();
    let names: Vec<&str> = peers.as_array().expect("peers").iter().filter_map(|peer| peer["name"].as_str()).collect();
    assert_eq!(names, ["member 1", "member 2", "reader 1"]);
    for peer in peers.as_array().expect("peers") {
        assert_eq!((&peer["merged"], &peer["merged_hash"]), (&2.into(), &report.peers[0].merged_hash.clone().into()), "{peer:#}");
        assert_eq!(peer["score"].is_number(), peer["role"] == "member", "who holds data out scores its merge: {peer:#}");
    }
    let history = ask(port, "/api/history?peer=one-round.member-2").json();
    let (base, last) = (&history["base_loss"], history["merges"].as_array().and_then(|merges| merges.last()).expect("a merge"));
    let below = last["loss"].as_f64().zip(base.as_f64()).is_some_and(|(loss, base)| loss > 0.0 && loss < base);
    assert!(below, "training lowers the loss: {history:#}");
    assert!(history["training"].as_array().is_some_and(|points| points.len() > 1), "{history:#}");
    // Who has ended is said to have.
    std::thread::sleep(Duration::from_millis(5_500));
    assert!(ask(port, "/api/peers").json().as_array().is_some_and(|all| all.iter().all(|peer| peer["live"] == false)));
}
