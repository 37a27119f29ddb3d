//! A reader that fetches some layers of a merge: what that costs, what a wider request costs after it, what it proves
//! offline, and what is said of layers that there are not. Real processes.

use std::path::{Path, PathBuf};

use mingle_protocol::adapter::{Layers, Slice};
use mingle_protocol::hash::{ContentHash, encode_hex};
use mingle_protocol::identity::SecretKey;
use mingle_protocol::round::Round;
use mingle_tests::peer::{Transport, address, bytes_of};
use mingle_tests::program::{Said, run};
use mingle_tests::{Peer, adapters, agree};
use serde_json::Value;
use tempfile::TempDir;

const PROGRAM: &str = env!("CARGO_BIN_EXE_mingle-peer");
const MEMBERS: u8 = 2;
/// Twelve layers of half a MiB each.
const LAYERS: usize = 12;
const WIDTH: u64 = 16_384;

/// A round with a roster, whose members have agreed.
struct Scene {
    folder: TempDir,
    round: Round,
    file: PathBuf,
    members: Vec<Peer>,
    dials: Vec<String>,
}

impl Scene {
    fn new(width: u64) -> Self {
        let key = |number: u8| SecretKey::from_bytes(&[number; 32]);
        let folder = TempDir::new().expect("a temporary folder");
        let round = adapters::round("layers", LAYERS, width, (1..=MEMBERS).map(|number| key(number).member()));
        let file = folder.path().join("round.json");
        std::fs::write(&file, round.to_json()).expect("a round file");
        let dials: Vec<String> = (0..MEMBERS).map(|_| address(Transport::Tcp)).collect();
        let member = |number: u8| {
            let adapter = adapters::adapter_file(&round, u64::from(number));
            let directory = folder.path().join(format!("adapter-{number}"));
            adapters::write_peft(&directory, &round, &adapter);
            std::fs::create_dir_all(folder.path().join("adapters")).expect("a folder");
            std::fs::write(folder.path().join(format!("adapters/{number}.safetensors")), &adapter).expect("an adapter");
            let mut peer = Peer::new(PROGRAM, folder.path(), &format!("member-{number}"), round.id(), ["publish"]);
            std::fs::create_dir_all(peer.home().folder()).expect("a home");
            std::fs::write(peer.home().key_path(), encode_hex(&[number; 32])).expect("a key");
            peer.argue([directory.into_os_string(), "--round".into(), file.clone().into()]);
            peer.argue(["--examples", "100", "--listen", &dials[usize::from(number) - 1]]);
            dials.iter().for_each(|address| peer.argue(["--peer", address]));
            peer.start();
            peer
        };
        let mut members: Vec<Peer> = (1..=MEMBERS).map(member).collect();
        agree(&mut members, usize::from(MEMBERS));
        Self { folder, round, file, members, dials }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Runs `mingle fetch --merged` in the one reader's home to its end; bytes it has read, control and all.
    fn fetch(&self, name: &str, options: &[&str]) -> (Peer, PathBuf, u64) {
        let out = self.path(name);
        let mut reader = Peer::new(PROGRAM, self.folder.path(), "reader", self.round.id(), ["fetch", "--merged", "--adapters", "2"]);
        reader.argue(["--round".into(), self.file.clone().into_os_string(), "--out".into(), out.clone().into()]);
        reader.argue(["--timeout", "50", "--listen", "/ip4/127.0.0.1/tcp/0"]);
        self.dials.iter().for_each(|address| reader.argue(["--peer", address]));
        reader.argue(options.iter().copied());
        reader.start();
        let ended = reader.wait("the reader to end", Peer::ended);
        assert!(ended.success(), "{}", reader.told());
        let traffic = reader.status().expect("a status").traffic;
        (reader, out, traffic.control_in + traffic.blob_in)
    }

    fn slice(&self, layers: &str) -> Slice {
        self.round.merged().slice(&layers.parse::<Layers>().expect("layers")).expect("layers of the round")
    }

    fn verify(&self, directory: &Path, options: &[&str]) -> Said {
        let arguments = [["verify".into(), directory.as_os_str().to_owned()].to_vec(), options.iter().map(Into::into).collect()].concat();
        run(PROGRAM, &self.path("elsewhere"), arguments)
    }
}

fn bend(path: &Path, at: usize) {
    let mut bytes = bytes_of(path);
    bytes[at] ^= 1;
    std::fs::write(path, bytes).expect("a file");
}

#[test]
fn layers_cost_their_bytes_and_are_proved_offline() {
    let scene = Scene::new(WIDTH);
    let merged = scene.members[0].merged().expect("a merge").merged_hash;
    let slice = scene.slice("0-3,8");
    let (layers, header) = (slice.tensors().elements() * 4, slice.whole_header().len() as u64);
    let (reader, out, received) = scene.fetch("some", &["--layers", "0-3,8"]);
    println!(
        "layers 0-3,8 of {LAYERS}: {received} bytes received for {layers} of layers and a header of {header}, of a file of {}: {:.4}",
        slice.whole_size(),
        received as f64 / (layers + header) as f64
    );
    assert!(received as f64 <= 1.05 * (layers + header) as f64, "{received} bytes for {layers}");
    let told = reader.events_named("fetched_merge");
    assert_eq!(told.last().map(|told| told["layers"].clone()), Some("0-3,8".into()));
    assert_eq!(reader.events_named("believed").last().map(|told| told["layers"].clone()), Some("0-3,8".into()));
    let progress = reader.events_named("fetching");
    assert!(progress.iter().all(|told| told["size"].as_u64().is_some_and(|size| size < layers + header + (7 << 14))), "{progress:?}");

    // The tensors are those of the whole merge that a member holds.
    let weights = out.join("adapter_model.safetensors");
    let whole = bytes_of(&scene.members[0].merged().expect("a merge").folder.join("adapter_model.safetensors"));
    let held: Vec<u8> = slice.places().iter().flat_map(|place| whole[place.start as usize..place.end as usize].to_vec()).collect();
    assert_eq!(bytes_of(&weights), [slice.own_header(), held[header as usize..].to_vec()].concat());
    let config: Value = serde_json::from_slice(&bytes_of(&out.join("adapter_config.json"))).expect("JSON");
    assert_eq!(config["layers_to_transform"], serde_json::json!([0, 1, 2, 3, 8]));

    let said = scene.verify(&out, &[]).right();
    assert!(said.contains(&format!("Here are layers 0-3,8 of merge {merged}")) && said.contains("the whole merge is not here"), "{said}");
    assert!(said.contains("signed that merging that set gave them this hash") && said.contains("Not shown"), "{said}");
    let adapters = scene.path("adapters").to_string_lossy().into_owned();
    let said: Value = serde_json::from_str(&scene.verify(&out, &["--json", "--adapters", &adapters]).right()).expect("JSON");
    assert_eq!((&said["layers"], &said["recomputed"], &said["verified"]), (&"0-3,8".into(), &"same".into(), &true.into()));
    for (path, at) in [(&weights, 300_000), (&weights, 40), (&out.join("layers.proof"), 33)] {
        bend(path, at);
        let said = scene.verify(&out, &[]);
        assert!(said.code == 4 && said.err.starts_with("error: "), "byte {at} of {}: {said:?}", path.display());
        bend(path, at);
    }
    assert_eq!(scene.verify(&out, &[]).code, 0);

    // More of it costs the rest only, in another process; and so does the whole.
    let one = scene.slice("4").tensors().elements() * 4;
    let (_, wider, received) = scene.fetch("wider", &["--layers", "0-4,8"]);
    println!("layer 4 as well: {received} bytes received for {one}: {:.4}", received as f64 / one as f64);
    assert!(received < one + one / 5, "{received} bytes for {one}");
    assert_eq!(scene.verify(&wider, &[]).code, 0);
    let rest = slice.whole_size() - layers - one;
    let (_, all, received) = scene.fetch("all", &[]);
    println!("all of it: {received} bytes received for {rest}: {:.4}", received as f64 / rest as f64);
    assert!(received as f64 <= 1.05 * rest as f64, "{received} bytes for {rest}");
    assert_eq!(ContentHash::of(&bytes_of(&all.join("adapter_model.safetensors"))), merged);

    // What the disk has changed since is noticed and fetched again, as far as it is wanted.
    bend(&reader.round_home().store().join("blobs").join(format!("{merged}.blob")), header as usize + 100);
    let (_, again, received) = scene.fetch("again", &["--layers", "0"]);
    assert!((one..one + one / 5).contains(&received), "{received} bytes for {one}");
    assert_eq!(scene.verify(&again, &[]).code, 0);
    for name in ["whole", "mended"] {
        let (_, whole, _) = scene.fetch(name, &[]);
        assert_eq!(ContentHash::of(&bytes_of(&whole.join("adapter_model.safetensors"))), merged);
        bend(&reader.round_home().store().join("blobs").join(format!("{merged}.blob")), layers as usize);
    }
}

#[test]
fn layers_that_there_are_not_are_named_before_anybody_is_asked() {
    let folder = TempDir::new().expect("a temporary folder");
    let round = adapters::round("layers", LAYERS, 8, []);
    let file = folder.path().join("round.json");
    std::fs::write(&file, round.to_json()).expect("a round file");
    let fetch = |options: &[&str]| {
        let round = file.to_string_lossy().into_owned();
        let out = folder.path().join("out").to_string_lossy().into_owned();
        let arguments = ["fetch", "--round", &round, "--out", &out, "--peer", "/ip4/127.0.0.1/tcp/1", "--timeout", "1"];
        run(PROGRAM, &folder.path().join("home"), arguments.iter().chain(options))
    };
    fetch(&["--merged", "--layers", "3,10-14,rest"])
        .wrong(1, &["error: the round's merge has no layers 12-14,rest", "hint: the layers there are: 0-11"]);
    let said = fetch(&["--layers", "3"]);
    assert!(said.code == 2 && said.err.contains("required arguments were not provided") && said.err.contains("--merged"), "{said:?}");
    let said = fetch(&["--merged", "--layers", "3-1"]);
    assert!(said.code == 2 && said.err.contains("the range 3-1 runs backwards"), "{said:?}");
    let said = fetch(&["--merged", "--layers", "mlp"]);
    assert!(said.code == 2 && said.err.contains("\"mlp\" is no layer"), "{said:?}");
}
