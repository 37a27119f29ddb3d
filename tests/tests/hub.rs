//! A base that is named and nowhere here is fetched from a hub: once, into the cache that others use too, going on where a
//! connection broke, and only what the hub promised counts.

use mingle_tests::hub::{COMMIT, TestHub, cache, tag};
use mingle_tests::{Desk, Said, base};

const PROGRAM: &str = env!("CARGO_BIN_EXE_mingle-peer");

/// A hub that has a model in files of weights of some 16 KiB, beside things that no base needs; and a desk that asks it.
fn scene() -> (TestHub, Desk) {
    let mut desk = Desk::new(PROGRAM);
    base::write_base(&desk.path("whole"), 1);
    base::write_data(&desk.path("data.jsonl"), 2, 1);
    // The program itself cuts it into shards, with an adapter in it.
    let train = "train --base DIR/whole --data DIR/data.jsonl --rank 1 --epochs 1 --out DIR/adapter --quiet";
    desk.run(train).right();
    desk.run("export --base DIR/whole --adapter DIR/adapter --shard-size 16KiB --out DIR/served").right();
    for name in ["pytorch_model.bin", "modeling.py", "README.md"] {
        desk.write(&format!("served/{name}"), "of no use here");
    }
    let hub = TestHub::of(&desk.path("served"));
    desk.environment = vec![("HF_HUB_OFFLINE".into(), "0".into()), ("HF_ENDPOINT".into(), hub.url())];
    (hub, desk)
}

/// A model in one file.
fn whole(desk: &Desk) -> std::path::PathBuf {
    base::write_base(&desk.path("whole"), 1);
    base::write_data(&desk.path("data.jsonl"), 2, 1);
    desk.path("whole")
}

fn preview(desk: &Desk) -> Said {
    desk.run("preview --base org/tiny --data DIR/data.jsonl --count 1")
}

/// The parts of files that the store was asked for.
fn ranges(hub: &TestHub) -> Vec<String> {
    let parts = hub.asked().into_iter().filter(|asked| asked.line.starts_with("GET /store/") && !asked.range.is_empty());
    parts.map(|asked| asked.range).collect()
}

#[test]
fn a_base_is_fetched_once_into_the_cache_that_others_use_too() {
    let (hub, mut desk) = scene();
    let said = preview(&desk);
    assert!(said.err.starts_with("fetching org/tiny from the hub: "), "{said:?}");
    assert!(said.err.ends_with("org/tiny is in the Hugging Face cache\n"), "{said:?}");
    said.right();
    let asked = hub.asked();
    assert!(asked.iter().filter(|asked| asked.line.starts_with("GET /store/model-")).count() > 1, "{asked:?}");
    // As `huggingface_hub` lays it out, and nothing of what a base does not consist of.
    let found = cache(&desk.path("home/hub"));
    let names: Vec<&str> = found.keys().filter_map(|path| path.strip_prefix(&format!("models--org--tiny/snapshots/{COMMIT}/"))).collect();
    let served = std::fs::read_dir(desk.path("served")).expect("the model").flatten();
    let mut expected: Vec<String> = served.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    expected.retain(|name| name.ends_with(".safetensors") || name.ends_with(".json"));
    expected.sort();
    assert_eq!(names, expected);
    for name in names {
        let bytes = std::fs::read(desk.path("served").join(name)).expect("a file");
        assert_eq!(found[&format!("models--org--tiny/snapshots/{COMMIT}/{name}")], format!("../../blobs/{}", tag(&bytes)), "{name}");
        assert_eq!(found[&format!("models--org--tiny/blobs/{}", tag(&bytes))], bytes.len().to_string(), "{name}");
    }
    assert_eq!(std::fs::read_to_string(desk.path("home/hub/models--org--tiny/refs/main")).expect("a ref"), COMMIT);
    assert!(!found.keys().any(|path| path.ends_with(".incomplete")), "{found:?}");

    // From then on nobody is asked.
    desk.environment = vec![("HF_ENDPOINT".into(), hub.url())];
    assert_eq!(preview(&desk).right(), desk.run("preview --base DIR/whole --data DIR/data.jsonl --count 1").right());
    assert_eq!(hub.asked(), []);
}

#[test]
fn a_broken_connection_goes_on_where_it_was_and_so_does_the_next_run() {
    let (hub, desk) = scene();
    hub.manners.lock().expect("no panic").break_after = Some(9000);
    let said = preview(&desk);
    assert!(said.err.contains("going on where it was"), "{said:?}");
    said.right();
    let parts = ranges(&hub);
    assert!(!parts.is_empty() && parts.iter().all(|range| range == "bytes=9000-"), "{parts:?}");

    // What a killed process left: the first bytes of one file.
    let model = desk.path("home/hub/models--org--tiny");
    let shard = std::fs::read_dir(desk.path("served")).expect("the model").flatten().map(|entry| entry.path());
    let shard = shard.filter(|path| path.to_string_lossy().contains("model-0")).min().expect("a shard");
    let bytes = std::fs::read(&shard).expect("the shard");
    std::fs::remove_dir_all(&model).expect("removed");
    std::fs::create_dir_all(model.join("blobs")).expect("a folder");
    std::fs::write(model.join("blobs").join(format!("{}.incomplete", tag(&bytes))), &bytes[..9500]).expect("a part");
    hub.manners.lock().expect("no panic").break_after = None;
    preview(&desk).right();
    assert_eq!(ranges(&hub), ["bytes=9500-"]);
}

#[test]
fn what_the_hub_did_not_promise_is_refused_and_forgotten() {
    let (hub, desk) = scene();
    hub.manners.lock().expect("no panic").wrong = true;
    let said = preview(&desk);
    assert_eq!(said.code, 1);
    assert!(said.err.contains("is not what the hub promised: its SHA-256 is "), "{said:?}");
    assert!(said.err.ends_with("hint: the same command fetches that file anew\n"), "{said:?}");
    let found = cache(&desk.path("home/hub"));
    assert!(
        !found.keys().any(|path| path.contains("model-0") || path.ends_with(".incomplete") || path.ends_with("/config.json")),
        "{found:?}"
    );
    hub.manners.lock().expect("no panic").wrong = false;
    preview(&desk).right();
}

#[test]
fn a_token_is_shown_to_the_hub_alone_and_who_has_none_is_told() {
    let (hub, mut desk) = scene();
    hub.manners.lock().expect("no panic").token = Some("hf_secret".into());
    let url = hub.url();
    preview(&desk).wrong(
        1,
        &[
            &format!(
                "error: --base org/tiny is no directory here and no model in the Hugging Face cache: {url} has no model \"org/tiny\", or \
                 shows it only to some"
            ),
            "hint: see how the name is spelled (org/model); a private model needs $HF_TOKEN of an account that may read it",
        ],
    );
    hub.asked();
    desk.environment.push(("HF_TOKEN".into(), "hf_secret".into()));
    preview(&desk).right();
    let asked = hub.asked();
    let (store, others): (Vec<_>, Vec<_>) = asked.iter().partition(|asked| asked.line.contains("/store/"));
    assert!(!store.is_empty() && store.iter().all(|asked| asked.token.is_empty()), "{store:?}");
    assert!(others.iter().all(|asked| asked.token == "Bearer hf_secret"), "{others:?}");
}

#[test]
fn a_hub_behind_tls_is_believed_by_the_systems_certificates_and_those_of_an_institution() {
    let mut desk = Desk::new(PROGRAM);
    let folder = whole(&desk);
    let own = rcgen::generate_simple_self_signed(["localhost".into(), "127.0.0.1".into()]).expect("a certificate");
    let key = own.key_pair.serialize_der().try_into().expect("a key");
    let hub = TestHub::with_tls(&folder, own.cert.der().clone(), key);
    desk.write("ca.pem", &own.cert.pem());
    desk.environment = vec![("HF_HUB_OFFLINE".into(), "0".into()), ("HF_ENDPOINT".into(), hub.url())];
    let said = preview(&desk);
    assert!(said.code == 1 && said.err.contains("UnknownIssuer"), "{said:?}");
    desk.environment.push(("SSL_CERT_FILE".into(), desk.path("ca.pem").display().to_string()));
    preview(&desk).right();
    assert!(hub.asked().iter().any(|asked| asked.line == "GET /store/model.safetensors"));
}

#[test]
fn a_rounds_base_is_fetched_by_its_name_and_believed_by_its_digest() {
    let (hub, desk) = scene();
    hub.manners.lock().expect("no panic").renamed = true;
    desk.run("round new --base DIR/served --base-name org/tiny --rank 2 --out DIR/right.json").right();
    base::write_base(&desk.path("other"), 2);
    desk.run("round new --base DIR/other --base-name org/tiny --rank 2 --out DIR/wrong.json").right();
    let train = "run --round DIR/right.json --data DIR/data.jsonl --epochs 1 --offline --quiet";
    let said = desk.run(train);
    assert!(said.code == 1 && said.err.contains("was not found"), "{said:?}");
    assert_eq!(hub.asked(), [], "offline is offline");

    let said = desk.run("serve --round DIR/wrong.json --listen 127.0.0.1:0");
    assert!(said.code == 1 && said.err.contains("another base, of digest"), "{said:?}");
    desk.run(train).right();
}
