//! A reader that fetches one merged file: what it costs, what it proves, whom it believes, and what comes of a member that
//! lies. Real processes; the liar is a network of this process that has a member's key.

use std::path::{Path, PathBuf};

use mingle::driver::Status;
use mingle::network::{Limits, Network, NetworkConfig, NetworkEvent, NetworkHandle, PeerId};
use mingle::store::Store;
use mingle_protocol::attestation::{Attestation, SignedAttestation};
use mingle_protocol::hash::{ContentHash, encode_hex};
use mingle_protocol::round::Round;
use mingle_protocol::sync::Request;
use mingle_tests::adapters::key;
use mingle_tests::peer::{Transport, address, bytes_of};
use mingle_tests::program::run;
use mingle_tests::{Peer, adapters, agree, wait};
use serde_json::Value;
use tempfile::TempDir;

const PROGRAM: &str = env!("CARGO_BIN_EXE_mingle-peer");

/// A round with a roster, and its members as processes.
struct Scene {
    folder: TempDir,
    round: Round,
    file: PathBuf,
}

impl Scene {
    /// `width` sets how large adapters are: 128 bytes of each of its four modules a unit.
    fn new(name: &str, width: u64, members: u8) -> Self {
        let folder = TempDir::new().expect("a temporary folder");
        let round = adapters::round(name, 4, width, (1..=members).map(|number| key(number).member()));
        let file = folder.path().join("round.json");
        std::fs::write(&file, round.to_json()).expect("a round file");
        Self { folder, round, file }
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    fn member(&self, number: u8, listen: &str, dials: &[&str]) -> Peer {
        let directory = self.path().join(format!("adapter-{number}"));
        adapters::write_peft(&directory, &self.round, &adapters::adapter_file(&self.round, u64::from(number)));
        let mut peer = Peer::new(PROGRAM, self.path(), &format!("member-{number}"), self.round.id(), ["publish"]);
        std::fs::create_dir_all(peer.home().folder()).expect("a home");
        std::fs::write(peer.home().key_path(), encode_hex(&[number; 32])).expect("a key");
        peer.argue([directory.into_os_string(), "--round".into(), self.file.clone().into()]);
        peer.argue(["--examples", "100", "--listen", listen]);
        dials.iter().for_each(|address| peer.argue(["--peer", address]));
        peer.start();
        peer
    }

    /// As many members as there are in the roster, agreed.
    fn members(&self, count: u8) -> (Vec<Peer>, String) {
        let addresses: Vec<String> = (0..count).map(|_| address(Transport::Tcp)).collect();
        let first = addresses[0].clone();
        let dials = |number: u8| if number == 1 { vec![] } else { vec![first.as_str()] };
        let mut peers: Vec<Peer> =
            (1..=count).map(|number| self.member(number, &addresses[usize::from(number) - 1], &dials(number))).collect();
        agree(&mut peers, usize::from(count));
        (peers, first)
    }

    /// Runs `mingle fetch --merged` to its end.
    fn reader(&self, name: &str, dial: &str, options: &[&str]) -> (Peer, PathBuf) {
        let out = self.path().join(format!("{name}-merged"));
        let mut reader = Peer::new(PROGRAM, self.path(), name, self.round.id(), ["fetch", "--merged", "--round"]);
        reader.argue([self.file.clone().into_os_string(), "--out".into(), out.clone().into()]);
        reader.argue(["--timeout", "50", "--listen", "/ip4/127.0.0.1/tcp/0", "--peer", dial]);
        reader.argue(options.iter().copied());
        reader.start();
        (reader, out)
    }

    /// What lies in a peer's store.
    fn blobs(&self, peer: &Peer) -> Vec<(String, u64)> {
        let entries = std::fs::read_dir(peer.round_home().store().join("blobs")).into_iter().flatten().flatten();
        let named = entries.map(|entry| (entry.file_name().to_string_lossy().into_owned(), entry.metadata().expect("a file").len()));
        named.filter(|(name, _)| name.ends_with(".blob")).collect()
    }
}

fn receipt(folder: &Path) -> Value {
    serde_json::from_slice(&bytes_of(&folder.join("receipt.json"))).expect("a receipt")
}

#[test]
fn a_readers_bytes_are_those_of_one_merged_file_whatever_the_number_of_members() {
    for members in [2u8, 6] {
        // 2 MiB an adapter.
        let scene = Scene::new("reader", 16_384, members);
        let (peers, first) = scene.members(members);
        let merged = peers[0].merged().expect("a merge");
        let (mut reader, out) = scene.reader("reader", &first, &["--adapters", &members.to_string()]);
        let ended = reader.wait("the reader to end", Peer::ended);
        assert!(ended.success(), "{}", reader.told());

        let file = bytes_of(&out.join("adapter_model.safetensors"));
        assert_eq!(ContentHash::of(&file), merged.merged_hash);
        let size = file.len() as u64;
        assert_eq!(scene.blobs(&reader), [(format!("{}.blob", merged.merged_hash), size)], "no member's adapter was fetched");
        let traffic = reader.status().expect("a status").traffic;
        let received = traffic.control_in + traffic.blob_in;
        println!(
            "{members} members: {received} bytes received ({} of blobs) and {} sent for a merged file of {size}: {:.4}",
            traffic.blob_in,
            traffic.control_out + traffic.blob_out,
            received as f64 / size as f64
        );
        assert!(received as f64 <= 1.05 * size as f64, "{received} bytes for {size}");

        let receipt = receipt(&out);
        assert!(receipt["attestations"].as_array().is_some_and(|list| list.len() >= 2), "{receipt}");
        let said = run(PROGRAM, &scene.path().join("elsewhere"), ["verify".as_ref(), out.as_os_str()]).right();
        assert!(said.contains("signed that merging that set gave them this hash"), "{said}");
        assert!(said.contains("Not shown: that these bytes are the merge of that set"), "{said}");
    }
}

#[test]
fn a_forged_word_in_a_receipt_is_found() {
    let scene = Scene::new("forged", 64, 2);
    let (_peers, first) = scene.members(2);
    let (mut reader, out) = scene.reader("reader", &first, &["--adapters", "2"]);
    assert!(reader.wait("the reader to end", Peer::ended).success(), "{}", reader.told());
    let honest = receipt(&out);
    let verify = |proof: &Value| {
        std::fs::write(out.join("receipt.json"), proof.to_string()).expect("a receipt");
        run(PROGRAM, &scene.path().join("elsewhere"), ["verify".as_ref(), out.as_os_str()])
    };
    let mut twice = honest.clone();
    twice["attestations"][1] = twice["attestations"][0].clone();
    let said = verify(&twice);
    assert!(said.code == 4 && said.err.contains("vouches twice"), "{said:?}");
    // A stranger's word for the right merge.
    let text = honest["receipt"]["merged"].as_str().expect("a hash");
    let stranger = Attestation {
        round: scene.round.id(),
        member: key(9).member(),
        set_root: honest["receipt"]["set_root"].as_str().and_then(|text| text.parse().ok()).expect("a hash"),
        merged: text.parse().expect("a hash"),
        size: 1_000,
        excluded: vec![],
    };
    let stranger = SignedAttestation::sign(&stranger, &key(9), &scene.round).expect("an attestation");
    let mut forged = honest.clone();
    forged["attestations"][1] = encode_hex(&stranger.raw().0).into();
    let said = verify(&forged);
    assert!(said.code == 4 && said.err.contains("is no member whose word counts"), "{said:?}");
    assert_eq!(verify(&honest).code, 0);
}

#[test]
fn one_word_is_not_enough_where_two_are_asked_for() {
    let scene = Scene::new("alone", 64, 3);
    let (first, second) = (address(Transport::Tcp), address(Transport::Tcp));
    let mut peers = vec![scene.member(1, &first, &[])];
    agree(&mut peers, 1);
    let (mut reader, out) = scene.reader("reader", &first, &["--adapters", "2"]);
    let (mut trusting, taken) = scene.reader("trusting", &first, &["--attestations", "1"]);
    assert!(trusting.wait("the reader that believes one", Peer::ended).success(), "{}", trusting.told());
    assert_eq!(receipt(&taken)["attestations"].as_array().map(Vec::len), Some(1));
    assert!(reader.runs() && !out.exists());
    // The second member comes: now there are two adapters, and two that vouch.
    peers.push(scene.member(2, &second, &[&first]));
    let merged = agree(&mut peers, 2);
    assert!(reader.wait("the reader to end", Peer::ended).success(), "{}", reader.told());
    assert_eq!(ContentHash::of(&bytes_of(&out.join("adapter_model.safetensors"))), merged.merged_hash);
}

/// A network with a member's key that answers no question and serves what it has.
struct Liar {
    handle: NetworkHandle,
    target: PeerId,
}

fn liar(scene: &Scene, number: u8, target: &Status, blob: &[u8]) -> Liar {
    let store = Store::open(scene.path().join("liar")).expect("a store");
    store.put_blob(blob).expect("a stored blob");
    let config = NetworkConfig {
        secret: [number; 32],
        listen: vec!["/ip4/127.0.0.1/tcp/0".parse().expect("an address")],
        bootstrap: vec![target.listening[0].parse().expect("an address")],
        mdns: false,
        reach: Default::default(),
        topic: format!("/mingle/records/1/{}", scene.round.id()),
        allowed: None,
        limits: Limits::default(),
    };
    let (handle, mut events) = Network::start(config, store).expect("a network");
    tokio::spawn(async move {
        while let Some(event) = events.recv().await {
            drop::<NetworkEvent>(event);
        }
    });
    let target: PeerId = target.peer.parse().expect("a peer");
    wait("a connection to the honest peer", || handle.connected_peers().contains(&target).then_some(()));
    Liar { handle, target }
}

#[test]
fn a_member_that_lies_about_its_merge_is_found_out_and_the_evidence_is_kept() {
    let scene = Scene::new("liar", 64, 3);
    let (mut peers, _) = scene.members(2);
    let merged = peers[0].merged().expect("a merge");
    peers[0].wait("both members to vouch", |peer| peer.status().filter(|status| status.vouching == 2));
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let _inside = runtime.enter();
    let status = peers[0].status().expect("a status");
    let liar = liar(&scene, 3, &status, b"nothing");
    let lie = Attestation {
        round: scene.round.id(),
        member: key(3).member(),
        set_root: merged.set_root,
        merged: ContentHash::of(b"a lie"),
        size: 1_000,
        excluded: vec![],
    };
    let lie = SignedAttestation::sign(&lie, &key(3), &scene.round).expect("an attestation");
    let compare = Request::Compare {
        round: scene.round.id(),
        count: 0,
        fingerprint: ContentHash::default(),
        attestation: Some(lie.raw().clone()),
        attestations: 0,
    };
    liar.handle.sync_request(liar.target, compare.to_bytes().expect("a request")).expect("the network takes it");
    let fault = peers[0].wait("the contradiction to be seen", |peer| peer.status().and_then(|status| status.faults.first().cloned()));
    assert!(fault.members.contains(&key(3).member()) && fault.merged.contains(&merged.merged_hash), "{fault:?}");
    assert_eq!(peers[0].events_named("fault").len(), 1);
    let kept = std::fs::read_dir(peers[0].round_home().evidence()).expect("a folder of evidence").count();
    assert_eq!(kept, 1);
    // It is remembered, and the merge stands.
    peers[0].kill();
    peers[0].start();
    // It merges its adapters one after the other, as they are read.
    let whole = |status: &Status| status.merged.as_ref().is_some_and(|again| again.merged_hash == merged.merged_hash);
    let again = peers[0].wait("the whole merge again", |peer| peer.status().filter(whole));
    assert_eq!(again.faults, vec![fault]);
}

#[test]
fn an_unfit_adapter_is_fetched_once_and_remembered_over_a_restart() {
    let scene = Scene::new("unfit", 64, 2);
    let mut peers = vec![scene.member(1, &address(Transport::Tcp), &[])];
    agree(&mut peers, 1);
    // A member whose adapter was bent after it was checked: it announces bytes that no peer can use.
    let mut unfit = adapters::adapter_file(&scene.round, 2);
    let end = unfit.len();
    unfit[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    let adapter = ContentHash::of(&unfit);
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let _inside = runtime.enter();
    let status = peers[0].status().expect("a status");
    let liar = hand_over(&scene, 2, &status, &unfit);
    let refused = |peer: &mut Peer| peer.events_named("adapter_refused").len();
    peers[0].wait("the adapter to be refused", |peer| (refused(peer) == 1).then_some(()));
    let fetched = peers[0].events_named("fetched").len();
    peers[0].kill();
    peers[0].start();
    let slot = |peer: &mut Peer| peer.slots().into_iter().find(|slot| slot.adapter == Some(adapter));
    let seen = peers[0].wait("the peer to come back", |peer| slot(peer).filter(|slot| slot.refused.is_some()));
    assert!(seen.refused.is_some_and(|why| !why.is_empty()));
    peers[0].wait("the unfit adapter's owner to be there again", |peer| {
        peer.status().filter(|status| status.neighbours > 0 && status.merged.is_some())
    });
    std::thread::sleep(std::time::Duration::from_secs(2));
    assert_eq!((peers[0].events_named("fetched").len(), refused(&mut peers[0])), (fetched, 1), "{}", peers[0].told());
    drop(liar);
}

/// A member of this process that serves these bytes and announces them.
fn hand_over(scene: &Scene, number: u8, target: &Status, blob: &[u8]) -> Liar {
    use mingle_protocol::record::{Announcement, Record, SignedRecord};
    let liar = liar(scene, number, target, blob);
    let announcement = Announcement {
        round: scene.round.id(),
        member: key(number).member(),
        sequence: 1,
        adapter: ContentHash::of(blob),
        size: blob.len() as u64,
        weight: 100,
        base: scene.round.manifest().base.digest,
        examples: 100,
        losses: None,
        privacy: None,
    };
    let record = SignedRecord::sign(&Record::Announcement(announcement), &key(number), &scene.round).expect("a record");
    let records = vec![mingle_protocol::sync::RawRecord(record.bytes().to_vec())];
    let exchange = Request::Exchange { round: scene.round.id(), wanted: Default::default(), records };
    liar.handle.sync_request(liar.target, exchange.to_bytes().expect("a request")).expect("the network takes it");
    liar
}

#[test]
fn a_reader_learns_that_a_merge_it_has_is_superseded() {
    let scene = Scene::new("superseded", 64, 2);
    let (mut peers, first) = scene.members(2);
    let (mut reader, out) = scene.reader("reader", &first, &["--adapters", "2"]);
    assert!(reader.wait("the reader to end", Peer::ended).success(), "{}", reader.told());
    let current = |options: &[&str]| {
        let (out, round) = (out.to_string_lossy().into_owned(), scene.file.to_string_lossy().into_owned());
        let ask = ["current", &out, "--round", &round, "--listen", "/ip4/127.0.0.1/tcp/0", "--peer", &first, "--timeout", "30", "--quiet"];
        run(PROGRAM, &scene.path().join("asker"), ask.iter().chain(options))
    };
    assert_eq!(current(&[]).right(), "This is the merge of all 2 adapters that count now.\n");

    let mut second = peers.pop().expect("the second member");
    second.kill();
    let file = scene.file.to_string_lossy().into_owned();
    let mut withdrawing = Peer::new(PROGRAM, scene.path(), "member-2", scene.round.id(), ["withdraw", "--round", &file]);
    withdrawing.argue(["--listen", "/ip4/127.0.0.1/tcp/0", "--peer", &first]);
    withdrawing.start();
    agree(&mut peers, 1);
    let (said, member) = (current(&[]), key(2).member());
    assert!(said.code == 4 && said.out.starts_with(&format!("SUPERSEDED: member {member} has taken its adapter back.\n")), "{said:?}");
    let json: Value = serde_json::from_str(current(&["--json"]).out.lines().last().expect("a line")).expect("JSON");
    assert_eq!((&json["superseded"], &json["gone"][0]["member"]), (&true.into(), &member.to_string().into()), "{json}");

    // Nobody answers: nothing is known.
    peers[0].kill();
    let nobody = address(Transport::Tcp);
    let (out, round) = (out.to_string_lossy().into_owned(), scene.file.to_string_lossy().into_owned());
    let ask = ["current", &out, "--round", &round, "--listen", "/ip4/127.0.0.1/tcp/0", "--peer", &nobody, "--timeout", "1", "--quiet"];
    let said = run(PROGRAM, &scene.path().join("lonely"), ask);
    assert!(said.code == 3 && said.err.contains("no peer of the round answered"), "{said:?}");
}
