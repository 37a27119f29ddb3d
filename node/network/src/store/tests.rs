//! The store through crashes, damage and resumption, on real files.

use std::fs::{self, OpenOptions};
use std::io::{Cursor, Write};
use std::path::{Path, PathBuf};

use bao_tree::ChunkNum;
use tempfile::TempDir;

use super::*;
use crate::pieces::Holds;

/// 16 chunks of 1 KiB.
const GROUP_BYTES: usize = 16 * 1024;

/// Bytes that differ from group to group.
fn bytes(size: usize) -> Vec<u8> {
    let mut bytes = vec![0; size];
    blake3::Hasher::new().finalize_xof().fill(&mut bytes);
    bytes
}

fn groups(start: u64, end: u64) -> ChunkRanges {
    ChunkRanges::from(ChunkNum(start * 16)..ChunkNum(end * 16))
}

/// What an honest provider sends for `ranges`.
fn encoded(bytes: &[u8], ranges: &ChunkRanges) -> Vec<u8> {
    let folder = TempDir::new().unwrap();
    let store = Store::open(folder.path()).unwrap();
    let (hash, _) = store.put_blob(bytes).unwrap();
    let mut encoded = Vec::new();
    store.open_blob(hash).unwrap().encode(ranges, &mut encoded).unwrap();
    encoded
}

fn flip(path: &Path, at: usize) {
    let mut content = fs::read(path).unwrap();
    content[at] ^= 1;
    fs::write(path, content).unwrap();
}

fn file(folder: &TempDir, hash: ContentHash, kind: &str) -> PathBuf {
    folder.path().join("blobs").join(format!("{hash}.{kind}"))
}

fn names(folder: &TempDir) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(folder.path().join("blobs")).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn blobs_records_and_values_survive_a_reopen() {
    let folder = TempDir::new().unwrap();
    let content = bytes(5 * GROUP_BYTES + 77);
    let source = folder.path().join("source");
    fs::write(&source, &content).unwrap();
    let store = Store::open(folder.path()).unwrap();
    let (hash, size) = store.put_blob(&content).unwrap();
    assert_eq!((hash, size), (ContentHash::of(&content), content.len() as u64));
    assert_eq!(store.put_blob_from_file(&source).unwrap(), (hash, size));
    store.put_records(&[([2; 32], b"two"), ([1; 32], b"one")]).unwrap();
    store.put_record([3; 32], b"three").unwrap();
    store.remove_records(&[[2; 32]]).unwrap();
    store.meta_put("sequence", &[7]).unwrap();
    drop(store);

    let store = Store::open(folder.path()).unwrap();
    assert_eq!(store.records().unwrap(), [([1; 32], b"one".to_vec()), ([3; 32], b"three".to_vec())]);
    assert_eq!(store.meta_get("sequence").unwrap(), Some(vec![7]));
    assert_eq!(store.meta_get("absent").unwrap(), None);
    assert_eq!(store.blobs().unwrap(), [(hash, size)]);
    assert_eq!(fs::read(store.blob_path(hash)).unwrap(), content);
    store.verify_blob(hash).unwrap();
    store.remove_blob(hash).unwrap();
    assert!(!store.has_blob(hash).unwrap() && names(&folder).is_empty());
    assert!(matches!(store.open_blob(hash), Err(StoreError::NotFound { .. })));
}

#[test]
fn a_second_opener_is_told_who_holds_it() {
    let folder = TempDir::new().unwrap();
    let store = Store::open(folder.path()).unwrap();
    assert!(matches!(Store::open(folder.path()), Err(StoreError::Held { .. })));
    drop(store);
    Store::open(folder.path()).unwrap();
}

#[test]
fn a_download_resumes_with_exactly_the_missing_ranges() {
    let content = bytes(8 * GROUP_BYTES + 5);
    let (hash, size) = (ContentHash::of(&content), content.len() as u64);
    let folder = TempDir::new().unwrap();
    let store = Store::open(folder.path()).unwrap();
    let partial = store.begin_download(hash, size).unwrap();
    assert!(matches!(store.begin_download(hash, size), Err(StoreError::DownloadRunning { .. })));
    assert_eq!(partial.missing_ranges(), all_chunks(size));
    let (first, second) = (groups(0, 2), groups(5, 6));
    partial.absorb(Cursor::new(encoded(&content, &first)), &first).unwrap();
    partial.absorb(Cursor::new(encoded(&content, &second)), &second).unwrap();
    assert_eq!(partial.have_bytes(), 3 * GROUP_BYTES as u64);
    assert!(matches!(partial.finish(), Err(StoreError::Incomplete { .. })));
    assert!(!store.has_blob(hash).unwrap());
    drop((partial, store));

    let store = Store::open(folder.path()).unwrap();
    let partial = store.begin_download(hash, size).unwrap();
    let missing = partial.missing_ranges();
    assert_eq!(missing, &all_chunks(size) - &(&first | &second));
    partial.absorb(Cursor::new(encoded(&content, &missing)), &missing).unwrap();
    partial.finish().unwrap();
    assert_eq!(fs::read(store.blob_path(hash)).unwrap(), content);
    assert_eq!(store.blob_size(hash).unwrap(), Some(size));
    assert_eq!(names(&folder), [format!("{hash}.blob"), format!("{hash}.outboard")]);
    // The outboard that was received serves as well as one that was built.
    let mut again = Vec::new();
    store.open_blob(hash).unwrap().encode(&groups(3, 5), &mut again).unwrap();
    assert_eq!(again, encoded(&content, &groups(3, 5)));
}

#[test]
fn what_a_broken_stream_brought_is_kept_and_wrong_bytes_never_are() {
    let content = bytes(6 * GROUP_BYTES);
    let (hash, size) = (ContentHash::of(&content), content.len() as u64);
    let folder = TempDir::new().unwrap();
    let store = Store::open(folder.path()).unwrap();
    let partial = store.begin_download(hash, size).unwrap();
    let all = all_chunks(size);
    let honest = encoded(&content, &all);

    let truncated = &honest[..honest.len() / 2];
    assert!(matches!(partial.absorb(truncated, &all), Err(AbsorbError::Truncated { .. })));
    let kept = partial.have_bytes();
    assert!(kept >= 2 * GROUP_BYTES as u64, "{kept}");
    let mut wrong = honest.clone();
    let last = wrong.len() - 1;
    wrong[last] ^= 1;
    assert!(matches!(partial.absorb(wrong.as_slice(), &all), Err(AbsorbError::Mismatch { .. })));
    assert_eq!(partial.missing_ranges(), groups(5, 6));
    let mut lying = honest;
    lying[3] ^= 1;
    assert!(matches!(partial.absorb(lying.as_slice(), &all), Err(AbsorbError::Mismatch { .. })));
    assert!(matches!(store.begin_download(ContentHash([9; 32]), BLOB_BYTES_MAX + 1), Err(StoreError::BlobSize { .. })));
    assert!(matches!(store.begin_download(ContentHash([9; 32]), 0), Err(StoreError::BlobSize { .. })));
}

#[test]
fn a_torn_or_foreign_record_of_ranges_is_not_believed() {
    let content = bytes(8 * GROUP_BYTES);
    let (hash, size) = (ContentHash::of(&content), content.len() as u64);
    let folder = TempDir::new().unwrap();
    let begin = |folder: &TempDir| {
        let store = Store::open(folder.path()).unwrap();
        let partial = store.begin_download(hash, size).unwrap();
        let missing = partial.missing_ranges();
        (store, partial, missing)
    };
    let (store, partial, _) = begin(&folder);
    for range in [groups(0, 1), groups(2, 4)] {
        partial.absorb(Cursor::new(encoded(&content, &range)), &range).unwrap();
        partial.commit().unwrap();
    }
    drop((partial, store));
    let journal = file(&folder, hash, "part-ranges");
    let whole = fs::read(&journal).unwrap();

    // Torn in the second record, and of what it spoke of one group is on disk: the first record still holds, the group
    // is found, and what is appended later is read.
    fs::write(&journal, &whole[..whole.len() - 1]).unwrap();
    flip(&file(&folder, hash, "part"), 2 * GROUP_BYTES);
    let (store, partial, missing) = begin(&folder);
    assert_eq!(missing, &groups(1, 3) | &groups(4, 8));
    partial.absorb(Cursor::new(encoded(&content, &groups(7, 8))), &groups(7, 8)).unwrap();
    partial.commit().unwrap();
    drop((partial, store));
    let (store, partial, missing) = begin(&folder);
    assert_eq!(missing, &groups(1, 3) | &groups(4, 7));
    drop((partial, store));

    // A record that claims everything, without its checksum, is not believed.
    let mut file = OpenOptions::new().append(true).open(&journal).unwrap();
    file.write_all(&[[0; 8], (8_u64 * 16).to_le_bytes(), [0; 8], [0; 8]].concat()).unwrap();
    let (store, partial, missing) = begin(&folder);
    assert_eq!(missing, &groups(1, 3) | &groups(4, 7));
    drop((partial, store));

    // Without a journal the files are scanned: nothing that verifies is fetched again.
    for broken in [&whole[..10], &[]] {
        fs::write(&journal, broken).unwrap();
        let (store, partial, missing) = begin(&folder);
        assert_eq!(missing, &groups(1, 3) | &groups(4, 7));
        drop((partial, store));
    }
}

#[test]
fn what_was_written_before_a_kill_is_found_though_no_record_speaks_of_it() {
    // Two pieces, so that what was begun is told from what was not.
    let content = bytes(64 * GROUP_BYTES);
    let (hash, size) = (ContentHash::of(&content), content.len() as u64);
    let folder = TempDir::new().unwrap();
    let store = Store::open(folder.path()).unwrap();
    let partial = store.begin_download(hash, size).unwrap();
    let range = groups(3, 9);
    assert_eq!(partial.absorb(Cursor::new(encoded(&content, &range)), &range).unwrap(), 6 * GROUP_BYTES as u64);
    let overlap = groups(8, 10);
    assert_eq!(partial.absorb(Cursor::new(encoded(&content, &overlap)), &overlap).unwrap(), GROUP_BYTES as u64);
    drop((partial, store));
    // Never written by anybody who told the journal: not even looked at.
    use std::os::unix::fs::FileExt;
    let part = OpenOptions::new().write(true).open(file(&folder, hash, "part")).unwrap();
    part.write_all_at(&content[40 * GROUP_BYTES..41 * GROUP_BYTES], 40 * GROUP_BYTES as u64).unwrap();
    let store = Store::open(folder.path()).unwrap();
    let partial = store.begin_download(hash, size).unwrap();
    assert_eq!(partial.missing_ranges(), &all_chunks(size) - &groups(3, 10));
}

#[test]
fn a_download_under_way_offers_its_complete_pieces() {
    let content = bytes(100 * GROUP_BYTES);
    let (hash, size) = (ContentHash::of(&content), content.len() as u64);
    let folder = TempDir::new().unwrap();
    let store = Store::open(folder.path()).unwrap();
    assert!(matches!(store.share(hash), Err(StoreError::NotFound { .. })));
    let partial = store.begin_download(hash, size).unwrap();
    let mut shared = store.share(hash).unwrap();
    let held = |holds: &Holds| (0..4).filter(|piece| holds.has(*piece)).collect::<Vec<u32>>();
    for (range, expected) in [(groups(0, 40), vec![0]), (groups(40, 64), vec![0, 1]), (groups(96, 100), vec![0, 1, 3])] {
        partial.absorb(Cursor::new(encoded(&content, &range)), &range).unwrap();
        assert_eq!(held(&shared.holds.borrow_and_update()), expected);
    }
    let mut sent = Vec::new();
    shared.blob.encode(&groups(32, 64), &mut sent).unwrap();
    assert_eq!(sent, encoded(&content, &groups(32, 64)));
    assert!(
        matches!(shared.blob.encode(&groups(60, 70), &mut Vec::new()), Err(ServeError::Damaged { .. })),
        "what is not here cannot leave"
    );
    let rest = partial.missing_ranges();
    partial.absorb(Cursor::new(encoded(&content, &rest)), &rest).unwrap();
    partial.finish().unwrap();
    assert_eq!(*shared.holds.borrow_and_update(), Holds::All);
    // Its files have other names now; who is being served does not notice.
    shared.blob.encode(&groups(64, 96), &mut Vec::new()).unwrap();
    drop(partial);
    assert_eq!(*store.share(hash).unwrap().holds.borrow(), Holds::All);
}

#[test]
fn an_unclean_stop_leaves_nothing_that_lies() {
    let content = bytes(3 * GROUP_BYTES);
    let folder = TempDir::new().unwrap();
    let store = Store::open(folder.path()).unwrap();
    let (kept, _) = store.put_blob(&content).unwrap();
    let (lost, _) = store.put_blob(&content[1..]).unwrap();
    let (short, _) = store.put_blob(&content[2..]).unwrap();
    let (bare, _) = store.put_blob(&content[3..]).unwrap();
    let (unindexed, size) = store.put_blob(&content[4..]).unwrap();
    store.0.index.remove_blob(&unindexed).unwrap();
    drop(store);
    fs::remove_file(file(&folder, lost, "blob")).unwrap();
    OpenOptions::new().write(true).open(file(&folder, short, "blob")).unwrap().set_len(100).unwrap();
    fs::remove_file(file(&folder, bare, "outboard")).unwrap();
    fs::write(folder.path().join("blobs").join("123-4.tmp"), b"half").unwrap();

    let store = Store::open(folder.path()).unwrap();
    assert_eq!(store.blobs().unwrap(), [(kept, content.len() as u64)]);
    assert!(!names(&folder).iter().any(|name| name.ends_with(".tmp")));
    // Renamed, then the power failed before the index: proved again, not fetched again. So is one without its outboard.
    for (hash, size) in [(unindexed, size), (bare, content.len() as u64 - 3)] {
        let partial = store.begin_download(hash, size).unwrap();
        assert!(partial.missing_ranges().is_empty());
        partial.finish().unwrap();
        store.verify_blob(hash).unwrap();
    }
    let partial = store.begin_download(short, content.len() as u64 - 2).unwrap();
    assert_eq!(partial.missing_ranges(), all_chunks(partial.size()));
}

#[test]
fn a_flipped_byte_is_never_served_and_only_its_group_is_fetched_again() {
    let content = bytes(6 * GROUP_BYTES);
    let folder = TempDir::new().unwrap();
    let store = Store::open(folder.path()).unwrap();
    let (hash, size) = store.put_blob(&content).unwrap();
    flip(&file(&folder, hash, "blob"), 2 * GROUP_BYTES + 99);

    let mut sent = Vec::new();
    let outcome = store.open_blob(hash).unwrap().encode(&all_chunks(size), &mut sent);
    assert!(matches!(outcome, Err(ServeError::Damaged { .. })));
    assert_eq!(sent, encoded(&content, &all_chunks(size))[..sent.len()], "what left before it is honest");
    store.open_blob(hash).unwrap().encode(&groups(3, 6), &mut Vec::new()).unwrap();

    assert!(matches!(store.verify_blob(hash), Err(StoreError::Damaged { .. })));
    assert!(!store.has_blob(hash).unwrap());
    let partial = store.begin_download(hash, size).unwrap();
    assert_eq!(partial.missing_ranges(), groups(2, 3));
    partial.absorb(Cursor::new(encoded(&content, &groups(2, 3))), &groups(2, 3)).unwrap();
    partial.finish().unwrap();
    assert_eq!(fs::read(store.blob_path(hash)).unwrap(), content);
}

#[test]
fn every_flipped_byte_of_an_outboard_is_noticed() {
    let content = bytes(4 * GROUP_BYTES);
    let folder = TempDir::new().unwrap();
    let store = Store::open(folder.path()).unwrap();
    let (hash, _) = store.put_blob(&content).unwrap();
    let path = file(&folder, hash, "outboard");
    for at in (0..fs::metadata(&path).unwrap().len() as usize).step_by(13) {
        flip(&path, at);
        assert!(matches!(store.verify_blob(hash), Err(StoreError::Damaged { .. })), "byte {at}");
        store.remove_blob(hash).unwrap();
        store.put_blob(&content).unwrap();
    }
}

#[test]
fn damage_to_what_another_process_left_is_found_before_the_seal() {
    let content = bytes(4 * GROUP_BYTES);
    let (hash, size) = (ContentHash::of(&content), content.len() as u64);
    let folder = TempDir::new().unwrap();
    let store = Store::open(folder.path()).unwrap();
    let partial = store.begin_download(hash, size).unwrap();
    let all = all_chunks(size);
    partial.absorb(Cursor::new(encoded(&content, &all)), &all).unwrap();
    partial.commit().unwrap();
    drop((partial, store));
    let store = Store::open(folder.path()).unwrap();
    let partial = store.begin_download(hash, size).unwrap();
    assert!(partial.missing_ranges().is_empty());
    let path = file(&folder, hash, "part");
    use std::os::unix::fs::FileExt;
    OpenOptions::new().write(true).open(&path).unwrap().write_all_at(&[content[GROUP_BYTES] ^ 1], GROUP_BYTES as u64).unwrap();
    assert!(matches!(partial.finish(), Err(StoreError::Incomplete { missing, .. }) if missing == GROUP_BYTES as u64));
    assert_eq!(partial.missing_ranges(), groups(1, 2));
    partial.absorb(Cursor::new(encoded(&content, &groups(1, 2))), &groups(1, 2)).unwrap();
    partial.finish().unwrap();
    store.verify_blob(hash).unwrap();
}

#[test]
fn small_blobs_need_no_outboard_and_empty_ones_are_refused() {
    let folder = TempDir::new().unwrap();
    let store = Store::open(folder.path()).unwrap();
    for size in [1, 1024, 1025, GROUP_BYTES - 1, GROUP_BYTES, GROUP_BYTES + 1] {
        let content = bytes(size);
        let (hash, size) = store.put_blob(&content).unwrap();
        let mut wire = Vec::new();
        store.open_blob(hash).unwrap().encode(&all_chunks(size), &mut wire).unwrap();
        store.remove_blob(hash).unwrap();
        let partial = store.begin_download(hash, size).unwrap();
        partial.absorb(wire.as_slice(), &partial.missing_ranges()).unwrap();
        partial.finish().unwrap();
        assert_eq!(fs::read(store.blob_path(hash)).unwrap(), content);
    }
    assert!(matches!(store.put_blob(&[]), Err(StoreError::BlobSize { .. })));
    assert!(matches!(store.put_record([0; 32], &[0; RECORD_BYTES_MAX + 1]), Err(StoreError::RecordSize { .. })));
}
