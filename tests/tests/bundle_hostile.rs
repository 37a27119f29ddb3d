//! Bundles that were damaged or made to harm: whatever is in them, nothing panics, no wrong byte is kept, and nothing is
//! kept that no member of the round asked for. Bundles are built here by the words of docs/protocol.md.

use std::io::Write;
use std::path::Path;

use mingle::bundle::{self, Bundle, BundleError, Imported, Index, MergedParts, Part, Selection};
use mingle::home::{Home, RoundHome};
use mingle::store::{Store, all_chunks, tree_of};
use mingle_protocol::encoding::to_cbor;
use mingle_protocol::hash::ContentHash;
use mingle_protocol::identity::SecretKey;
use mingle_protocol::ledger::Ledger;
use mingle_protocol::record::{Announcement, Record, SignedRecord};
use mingle_protocol::round::Round;
use mingle_tests::adapters;
use tempfile::TempDir;

fn announce(round: &Round, secret: u8, sequence: u64, file: &[u8]) -> SignedRecord {
    let key = SecretKey::from_bytes(&[secret; 32]);
    let (examples, base) = (100, round.manifest().base.digest);
    let said = Announcement {
        round: round.id(),
        member: key.member(),
        sequence,
        adapter: ContentHash::of(file),
        size: file.len() as u64,
        weight: examples,
        base,
        examples,
        losses: None,
        privacy: None,
    };
    SignedRecord::sign(&Record::Announcement(said), &key, round).expect("a record within the rules")
}

/// A round with two adapters, each of several groups, and their bundle.
struct Scene {
    folder: TempDir,
    round: Round,
    files: [Vec<u8>; 2],
    records: [SignedRecord; 2],
    bundle: Vec<u8>,
    /// Where the adapters begin.
    head: usize,
}

impl Scene {
    fn new() -> Self {
        let folder = TempDir::new().expect("a temporary folder");
        let round = adapters::round("hostile", 2, 1024, []);
        let mut files = [1, 2].map(|seed| adapters::adapter_file(&round, seed));
        files.sort_by_key(|file| ContentHash::of(file));
        let records = [announce(&round, 1, 1, &files[0]), announce(&round, 2, 1, &files[1])];
        let store = Store::open(folder.path().join("maker")).expect("a store");
        let mut ledger = Ledger::new(&round);
        for (file, record) in files.iter().zip(&records) {
            store.put_blob(file).expect("a blob");
            ledger.insert(record.clone());
        }
        let out = folder.path().join("bundle");
        let text = round.to_json();
        let parts = ((&round, text.as_bytes()), (&store, &ledger));
        bundle::export(&out, parts.0, parts.1, Selection::All, None, |_, _| {}).expect("an export");
        let bundle = std::fs::read(out).expect("a bundle");
        let adapters: usize = files.iter().map(|file| encoded(file.len() as u64)).sum();
        let head = bundle.len() - adapters;
        Self { folder, round, files, records, bundle, head }
    }

    fn open(&self, bytes: &[u8]) -> Result<Bundle, BundleError> {
        let mut file = tempfile::tempfile_in(self.folder.path()).expect("a file");
        file.write_all(bytes).expect("written");
        std::io::Seek::rewind(&mut file).expect("rewound");
        Bundle::open(file)
    }

    fn home(&self, name: &str) -> RoundHome {
        Home::new(self.folder.path().join(name)).round(self.round.id())
    }

    fn import(&self, bytes: &[u8], home: &RoundHome) -> anyhow::Result<Imported> {
        bundle::import(&self.open(bytes)?, &self.round, home, |_, _| {})
    }

    /// Every complete blob of a home is one of the two adapters, byte for byte.
    fn kept(&self, home: &RoundHome) -> Vec<usize> {
        let store = Store::open(home.store()).expect("a store");
        let known = |(hash, _): (ContentHash, u64)| {
            let bytes = std::fs::read(store.blob_path(hash)).expect("a blob");
            self.files.iter().position(|file| *file == bytes).expect("only what was made")
        };
        let mut kept: Vec<usize> = store.blobs().expect("the blobs").into_iter().map(known).collect();
        kept.sort_unstable();
        kept
    }
}

fn encoded(size: u64) -> usize {
    (size + tree_of(size).outboard_size()) as usize
}

/// Reads the head, as an import does before it opens the store.
fn read_head(bundle: Result<Bundle, BundleError>) -> Result<u64, BundleError> {
    let bundle = bundle?;
    bundle.round_file()?;
    let mut records = 0;
    bundle.records::<BundleError>(|_| {
        records += 1;
        Ok(())
    })?;
    Ok(records)
}

/// A bundle by the words of the protocol.
fn craft(index: &Index, parts: &[&[u8]]) -> Vec<u8> {
    let index = to_cbor(index).expect("an index");
    let head = [b"mingle bundle 1\n".as_slice(), &(index.len() as u64).to_le_bytes(), &ContentHash::of(&index).0, &index].concat();
    [head, parts.concat()].concat()
}

fn framed(records: &[&[u8]]) -> Vec<u8> {
    records.iter().flat_map(|record| [&(record.len() as u16).to_le_bytes(), *record].concat()).collect()
}

#[test]
fn a_bundle_is_what_the_protocol_says() {
    let scene = Scene::new();
    let store = Store::open(scene.folder.path().join("maker")).expect("a store");
    let encode = |file: &Vec<u8>| {
        let blob = store.open_blob(ContentHash::of(file)).expect("a blob");
        let mut bytes = Vec::new();
        blob.encode(&all_chunks(blob.size), &mut bytes).expect("encoded");
        bytes
    };
    let [first, second] = scene.files.each_ref().map(encode);
    let mut records = scene.records.clone();
    records.sort_by_key(|record| record.record().member());
    let (round_file, records) = (scene.round.to_json(), framed(&records.each_ref().map(SignedRecord::bytes)));
    let index = Index {
        round: scene.round.id(),
        round_file: Part::of(round_file.as_bytes()),
        records: Part::of(&records),
        adapters: scene.files.iter().map(|file| Part::of(file)).collect(),
        merged: None,
    };
    let crafted = craft(&index, &[round_file.as_bytes(), &records, &first, &second]);
    assert!(crafted == scene.bundle);
    let home = scene.home("reader");
    let imported = scene.import(&crafted, &home).expect("an import");
    assert!(imported.is_clean() && imported.missing.is_empty());
    assert_eq!((imported.records.new, imported.adapters.new, scene.kept(&home)), (2, 2, vec![0, 1]));
}

#[test]
fn no_bit_of_the_head_can_be_changed_or_cut_off() {
    let scene = Scene::new();
    assert_eq!(read_head(scene.open(&scene.bundle)).expect("a head"), 2);
    for place in 0..scene.head {
        let mut bent = scene.bundle.clone();
        bent[place] ^= 1 << (place % 8);
        assert!(read_head(scene.open(&bent)).is_err(), "byte {place}");
    }
    for length in 0..scene.head {
        assert!(read_head(scene.open(&scene.bundle[..length])).is_err(), "cut at {length}");
    }
    let longer = [scene.bundle.as_slice(), &[0]].concat();
    assert!(matches!(scene.open(&longer), Err(BundleError::Extra { extra: 1 })));
    // Nothing is taken from such a bundle.
    let mut bent = scene.bundle.clone();
    bent[scene.head - 1] ^= 1;
    let home = scene.home("reader");
    scene.import(&bent, &home).expect_err("a damaged list of records");
    assert!(scene.kept(&home).is_empty() && Store::open(home.store()).expect("a store").records().expect("the records").is_empty());
}

#[test]
fn a_damaged_adapter_is_refused_and_the_others_are_kept() {
    let scene = Scene::new();
    let middle = scene.head + encoded(scene.files[0].len() as u64);
    let places = (scene.head..scene.bundle.len()).step_by(2_999).chain([scene.head, middle - 1, middle, scene.bundle.len() - 1]);
    for (number, place) in places.enumerate() {
        let mut bent = scene.bundle.clone();
        bent[place] ^= 0x80;
        let home = scene.home(&format!("reader-{number}"));
        let imported = scene.import(&bent, &home).expect("an import");
        let spared = if place < middle { 1 } else { 0 };
        assert_eq!((imported.adapters.new, imported.adapters.refused.count, scene.kept(&home)), (1, 1, vec![spared]), "byte {place}");
        assert_eq!((imported.records.new, imported.missing.len(), imported.is_clean()), (2, 1, false), "byte {place}");
        assert_eq!(imported.merged.expect("a merge of one").0.admitted.len(), 1);
    }
}

#[test]
fn a_bundle_that_ends_early_gives_what_it_has_and_a_whole_one_completes_it() {
    let scene = Scene::new();
    let middle = scene.head + encoded(scene.files[0].len() as u64);
    for (number, length) in (scene.head..scene.bundle.len()).step_by(7_919).chain([middle - 1, middle, scene.bundle.len() - 1]).enumerate()
    {
        let home = scene.home(&format!("reader-{number}"));
        let imported = scene.import(&scene.bundle[..length], &home).expect("an import");
        let whole = if length < middle { vec![] } else { vec![0] };
        assert_eq!((imported.adapters.refused.count, scene.kept(&home)), (2 - whole.len() as u64, whole), "cut at {length}");
        let imported = scene.import(&scene.bundle, &home).expect("an import");
        assert!(imported.is_clean() && imported.missing.is_empty());
        assert_eq!((imported.records.known, scene.kept(&home)), (2, vec![0, 1]), "cut at {length}");
    }
}

#[test]
fn what_is_made_to_harm_is_refused_with_its_reason() {
    let scene = Scene::new();
    let text = scene.round.to_json();
    let index = |records: &[u8], adapters: Vec<Part>| Index {
        round: scene.round.id(),
        round_file: Part::of(text.as_bytes()),
        records: Part::of(records),
        adapters,
        merged: None,
    };
    // Records: forged, of another round, cut, empty. The good one among them is kept.
    let forged = {
        let mut bytes = scene.records[0].bytes().to_vec();
        bytes[0] ^= 1;
        bytes
    };
    let foreign = announce(&adapters::round("another", 2, 1024, []), 1, 9, &scene.files[0]);
    let cut = &scene.records[1].bytes()[..70];
    let records = framed(&[&forged, foreign.bytes(), cut, &[], scene.records[1].bytes()]);
    // Adapters: one that nobody announced, one with another size, and the bytes of one under the name of the other.
    let stray = vec![7; 40_000];
    let named = Part::of(&scene.files[1]);
    let adapters = vec![Part::of(&stray), Part { size: 16, ..named }, named];
    let first = &scene.bundle[scene.head..][..encoded(scene.files[0].len() as u64)];
    let wrong = [vec![0; encoded(40_000)], vec![0; 16], first.to_vec()].concat();
    let home = scene.home("reader");
    let imported = scene.import(&craft(&index(&records, adapters), &[text.as_bytes(), &records, &wrong]), &home).expect("an import");
    assert_eq!((imported.records.new, imported.records.refused.count), (1, 4));
    let reasons = imported.records.refused.reasons.join("\n");
    assert!(reasons.contains("signature does not belong") && reasons.contains("record is for round"), "{reasons}");
    assert_eq!((imported.adapters.new, imported.adapters.refused.count, scene.kept(&home)), (0, 3, vec![]));
    let reasons = imported.adapters.refused.reasons.join("\n");
    assert!(reasons.contains("no record names it with 40000 bytes") && reasons.contains("do not belong to the blob"), "{reasons}");
    assert!(!partial(&home, &stray), "nothing that nobody announced touches the disk");

    // Sizes that promise more than anything may be.
    let huge = |size| Part { hash: ContentHash::default(), size };
    let none = index(&[], vec![]);
    let cases = [
        Index { adapters: vec![huge(u64::MAX)], ..none.clone() },
        Index { records: huge(1 << 40), ..none.clone() },
        Index { round_file: huge(1 << 30), ..none.clone() },
        Index { merged: Some(MergedParts { receipt: huge(u64::MAX), file: huge(1) }), ..none.clone() },
    ];
    for case in cases {
        assert!(matches!(scene.open(&craft(&case, &[])), Err(BundleError::TooLarge { .. })), "{case:?}");
    }
    let promised = [b"mingle bundle 1\n".as_slice(), &u64::MAX.to_le_bytes(), &[0; 32]].concat();
    assert!(matches!(scene.open(&promised), Err(BundleError::TooLarge { .. })));
    let later = [b"mingle bundle 2\n".as_slice(), &[0; 64]].concat();
    assert!(matches!(scene.open(&later), Err(BundleError::Version)));
    // A list of records whose last length reaches beyond it.
    for list in [vec![5], [framed(&[cut]), vec![9, 0, 1]].concat(), vec![255, 255]] {
        let crafted = craft(&index(&list, vec![]), &[text.as_bytes(), &list]);
        assert!(matches!(read_head(scene.open(&crafted)), Err(BundleError::Malformed { .. })), "{list:?}");
    }
}

fn partial(home: &RoundHome, bytes: &[u8]) -> bool {
    let name = ContentHash::of(bytes).to_string();
    let entries = std::fs::read_dir(home.store().join("blobs")).into_iter().flatten().flatten();
    entries.into_iter().any(|entry| entry.file_name().to_string_lossy().starts_with(&name))
}

#[test]
fn an_adapter_that_does_not_fit_the_round_is_refused_when_it_is_merged() {
    let scene = Scene::new();
    let bad = adapters::file_of(&scene.round, |index| if index == 9 { f32::NAN } else { 0.5 });
    let store = Store::open(scene.folder.path().join("bad")).expect("a store");
    let mut ledger = Ledger::new(&scene.round);
    for (file, record) in [(&bad, announce(&scene.round, 3, 1, &bad)), (&scene.files[0], scene.records[0].clone())] {
        store.put_blob(file).expect("a blob");
        ledger.insert(record);
    }
    let (out, text) = (scene.folder.path().join("bad.bundle"), scene.round.to_json());
    bundle::export(&out, (&scene.round, text.as_bytes()), (&store, &ledger), Selection::All, None, |_, _| {}).expect("an export");
    let home = scene.home("reader");
    let imported = scene.import(&read(&out), &home).expect("an import");
    assert!(imported.adapters.refused.reasons[0].contains("element 9"), "{:?}", imported.adapters);
    assert_eq!((imported.merged.expect("a merge").0.admitted.len(), scene.kept(&home)), (1, vec![0]));
}

fn read(path: &Path) -> Vec<u8> {
    std::fs::read(path).expect("a file")
}

#[test]
fn what_was_superseded_is_not_called_false() {
    let scene = Scene::new();
    let home = scene.home("reader");
    let store = Store::open(home.store()).expect("a store");
    let newer = announce(&scene.round, 1, 2, &scene.files[1]);
    store.put_record(newer.id().0.0, newer.bytes()).expect("a record");
    drop(store);
    let imported = scene.import(&scene.bundle, &home).expect("an import");
    assert!(imported.is_clean(), "{imported:?}");
    assert_eq!((imported.records.new, imported.records.known, imported.adapters.new, imported.adapters.known), (1, 1, 1, 1));
    assert_eq!(scene.kept(&home), [1], "what counts no more is not stored");
}
