//! Seeds and probes as people use them: a member that is gone is still served, one that cannot be dialled has an address
//! through the seed, and a probe tells what is wrong before joining.

use std::path::PathBuf;

use mingle_protocol::round::Round;
use mingle_tests::peer::{Transport, address};
use mingle_tests::{Peer, Said, adapters, base, run};
use serde_json::Value;
use tempfile::TempDir;

const PROGRAM: &str = env!("CARGO_BIN_EXE_mingle-peer");

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

    fn peer(&self, name: &str, verb: &[&str], options: &[&str]) -> Peer {
        let mut peer = Peer::new(PROGRAM, self.folder.path(), name, self.round.id(), verb.iter().copied());
        peer.argue([std::ffi::OsString::from("--round"), self.file.clone().into()]);
        peer.argue(options.iter().copied());
        peer.start();
        peer
    }

    fn seed(&self, listen: &str) -> Peer {
        let mut seed = self.peer("seed", &["seed"], &["--listen", listen]);
        seed.wait("the seed's address", |seed| (!seed.events_named("listening").is_empty()).then_some(()));
        seed
    }

    fn member(&self, number: u64, options: &[&str]) -> Peer {
        let directory = self.folder.path().join(format!("adapter-{number}"));
        adapters::write_peft(&directory, &self.round, &adapters::adapter_file(&self.round, number));
        let directory = directory.to_string_lossy().into_owned();
        self.peer(&format!("member-{number}"), &["publish", &directory], &[&["--examples", "100"], options].concat())
    }
}

#[test]
fn a_seed_serves_what_a_member_left_behind_and_relays_for_one_that_cannot_be_dialled() {
    let scene = Scene::new("a round with a seed");
    let listen = address(Transport::Tcp);
    let mut seed = scene.seed(&listen);
    let mut member = scene.member(1, &["--listen", "/ip4/127.0.0.1/tcp/0", "--reach", "private", "--peer", &listen]);
    member.wait("an address through the seed", |member| {
        let said = member.events_named("reachability");
        let through = |event: &Value| event["addresses"][0].as_str().is_some_and(|address| address.contains("/p2p-circuit"));
        said.iter().any(|event| event["state"] == "private" && through(event)).then_some(())
    });
    assert!(!member.events_named("direct").is_empty(), "the seed itself is reached directly");
    seed.wait("the adapter", |seed| (!seed.events_named("fetched").is_empty()).then_some(()));
    let status = seed.status().expect("a status");
    assert_eq!((status.role.as_str(), status.reachability.as_str()), ("seed", "public"));
    member.kill();

    let out = scene.folder.path().join("merged").to_string_lossy().into_owned();
    let reader = ["fetch", "--round", &scene.file.to_string_lossy(), "--out", &out, "--peer", &listen, "--timeout", "60"];
    run(PROGRAM, &scene.folder.path().join("reader"), reader).right();
    assert!(seed.merged().is_none(), "a seed merges nothing");
}

/// Each check's level, by name.
fn levels(said: &Said) -> Vec<(String, String)> {
    let parse = |line: &str| -> Value { serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}")) };
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    said.out.lines().map(parse).map(|check| (text(&check["check"]), text(&check["level"]))).collect()
}

#[test]
fn a_probe_tells_what_is_wrong_before_joining() {
    let folder = TempDir::new().expect("a temporary folder");
    let home = folder.path().join("home");
    let at = |name: &str| folder.path().join(name).to_string_lossy().into_owned();
    base::write_base(&folder.path().join("base"), 1);
    base::write_base(&folder.path().join("other"), 2);
    run(PROGRAM, &home, ["round", "new", "--base", &at("base"), "--rank", "2", "--out", &at("round.json")]).right();
    std::fs::write(at("data.jsonl"), "{\"text\": \"one two three\"}\n{\"text\": \"four five six\"}\n").expect("data");
    let listen = address(Transport::Tcp);
    let round = Round::from_json(&std::fs::read(at("round.json")).expect("a round")).expect("a round");
    let mut seed = Peer::new(PROGRAM, folder.path(), "seed", round.id(), ["seed", "--round", &at("round.json"), "--listen", &listen]);
    seed.start();
    seed.wait("the seed's address", |seed| (!seed.events_named("listening").is_empty()).then_some(()));

    let probe = |base: &str, data: &str| {
        let (round, base, data) = (at("round.json"), at(base), at(data));
        let options = ["probe", "--json", "--round", &round, "--base", &base, "--data", &data, "--peer", &listen];
        run(PROGRAM, &home, options.into_iter().chain(["--listen", "/ip4/127.0.0.1/tcp/0"]))
    };
    let fine = probe("base", "data.jsonl");
    let names = ["round", "key", "data", "base", "memory", "disk", "gpu", "udp", "listen", "peers", "dialable", "router"];
    let found = levels(&fine);
    assert_eq!(found.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), names, "{fine:?}");
    // How large the system's UDP buffers are is not this test's to say.
    assert!(found.iter().all(|(name, level)| level == "ok" || name == "udp"), "{fine:?}");
    assert_eq!(fine.code, 0);

    let wrong = probe("other", "missing.jsonl");
    let failed: Vec<_> = levels(&wrong).into_iter().filter(|(_, level)| level == "fail").map(|(name, _)| name).collect();
    assert_eq!((wrong.code, failed), (1, vec!["data".to_owned(), "base".to_owned()]), "{wrong:?}");
    assert!(wrong.out.lines().filter(|line| line.contains("\"fail\"")).all(|line| line.contains("\"remedy\"")), "{wrong:?}");
    // Nobody answers: the port is free again.
    drop(seed);
    let alone = run(PROGRAM, &home, ["probe", "--round", &at("round.json"), "--peer", &listen, "--timeout", "2"]);
    assert!(alone.out.contains("fail  peers      none of 1 addresses was reached"), "{alone:?}");
    assert_eq!(alone.code, 1);
}

/// The files of a host, and of the authority that vouches for it.
fn certificate_of(host: &str, folder: &std::path::Path) {
    let (authority_key, key) = (rcgen::KeyPair::generate().expect("a key"), rcgen::KeyPair::generate().expect("a key"));
    let mut authority = rcgen::CertificateParams::new(Vec::new()).expect("an authority");
    authority.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let authority = authority.self_signed(&authority_key).expect("an authority");
    let shown = rcgen::CertificateParams::new(vec![host.to_owned()]).expect("a certificate");
    let shown = shown.signed_by(&key, &authority, &authority_key).expect("a certificate");
    let files = [("ca.pem", authority.pem()), ("host.pem", shown.pem()), ("host.key", key.serialize_pem())];
    for (name, text) in files.into_iter().chain([("other.key", authority_key.serialize_pem())]) {
        std::fs::write(folder.join(name), text).expect("a file");
    }
}

#[test]
fn a_seed_that_looks_like_a_web_server_is_reached_by_who_trusts_its_authority() {
    let scene = Scene::new("a round on the web's port");
    certificate_of("localhost", scene.folder.path());
    let at = |name: &str| scene.folder.path().join(name).to_string_lossy().into_owned();
    let (round, certificate, key, authority) = (at("round.json"), at("host.pem"), at("host.key"), at("ca.pem"));
    let listen = address(Transport::Tcp);
    let port = address(Transport::Tcp).rsplit('/').next().expect("a port").to_owned();

    let home = scene.folder.path().join("home");
    let other = at("other.key");
    let wrong = run(PROGRAM, &home, ["seed", "--round", &round, "--wss", &port, "--tls-cert", &certificate, "--tls-key", &other]);
    assert!(wrong.err.contains(&format!("the key in {other} does not belong to the certificate in {certificate}")), "{wrong:?}");
    assert!(wrong.err.contains("hint: give the key that the certificate was made with") && wrong.code != 0, "{wrong:?}");
    let half = run(PROGRAM, &home, ["seed", "--round", &round, "--wss", &port]);
    assert!(half.err.contains("--tls-cert") && half.code != 0, "{half:?}");

    let shows = ["--listen", &listen, "--wss", &port, "--tls-cert", &certificate, "--tls-key", &key];
    let mut seed = scene.peer("seed", &["seed"], &shows);
    seed.wait("both addresses", |seed| {
        let heard = seed.events_named("listening");
        heard.iter().any(|event| event["address"].as_str().is_some_and(|address| address.contains("/wss"))).then_some(())
    });
    let by_name = format!("/dns4/localhost/tcp/{port}/wss");
    let probe = |more: &[&str]| {
        let options = ["probe", "--json", "--round", &round, "--peer", &by_name, "--listen", "/ip4/127.0.0.1/tcp/0", "--timeout", "10"];
        run(PROGRAM, &home, options.iter().chain(more).copied())
    };
    let peers = |said: &Said| -> Value {
        let lines = said.out.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        lines.into_iter().find(|check| check["check"] == "peers").unwrap_or_else(|| panic!("{said:?}"))
    };
    let doubted = probe(&[]);
    let check = peers(&doubted);
    assert_eq!((doubted.code, check["level"].as_str()), (1, Some("fail")), "{doubted:?}");
    let fact = check["fact"].as_str().unwrap_or_default();
    assert!(fact.contains(&by_name) && fact.contains("is not from an authority that is trusted here"), "{fact}");
    assert!(check["remedy"].as_str().is_some_and(|remedy| remedy.contains("--tls-ca")), "{check}");
    let trusted = probe(&["--tls-ca", &authority]);
    assert_eq!(peers(&trusted)["level"], "ok", "{trusted:?}");

    let mut stranger = scene.member(2, &["--listen", "/ip4/127.0.0.1/tcp/0", "--peer", &by_name]);
    stranger.wait("the doubt", |peer| {
        let doubts = |event: &Value| event["why"].as_str().is_some_and(|why| why.contains(&by_name) && why.contains("--tls-ca"));
        peer.events_named("trouble").iter().any(doubts).then_some(())
    });
    assert!(stranger.events_named("connected").is_empty(), "{}", stranger.told());
    let _member = scene.member(1, &["--listen", "/ip4/127.0.0.1/tcp/0", "--peer", &by_name, "--tls-ca", &authority]);
    seed.wait("the adapter", |seed| (!seed.events_named("fetched").is_empty()).then_some(()));
}
