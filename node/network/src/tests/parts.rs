//! A part of a blob: only the groups that its judge names, from many at once, over restarts, and more of it later.

// One range is a list of places as well.
#![allow(clippy::single_range_in_vec_init)]

use std::ops::Range;

use super::hostile::{Manner, hostile};
use super::*;
use crate::store::{ChunkRanges, all_chunks, byte_count, groups_of};

const MIB: u64 = 1 << 20;

/// Wants these bytes.
struct Wants(Vec<Range<u64>>);

impl HeadCheck for Wants {
    fn judge(&self, _: &[u8], _: u64) -> HeadVerdict {
        HeadVerdict::Part(self.0.clone())
    }
}

/// The groups that are wanted: the head's is always among them.
fn wanted(places: &[Range<u64>], size: u64) -> ChunkRanges {
    &groups_of(places, size) | &groups_of(std::slice::from_ref(&(0..1)), size)
}

impl Peer {
    fn want(&self, hash: ContentHash, size: u64, from: &[PeerId], places: &[Range<u64>]) {
        self.handle.fetch_checked(hash, size, from.to_vec(), Arc::new(Wants(places.to_vec()))).unwrap();
    }

    async fn part(&mut self, hash: ContentHash) {
        self.expect("the part", |event| match event {
            NetworkEvent::BlobPart { hash: found } if found == hash => Some(()),
            NetworkEvent::BlobFailed { why, .. } => panic!("{why}"),
            NetworkEvent::BlobFetched { .. } => panic!("all of it was fetched"),
            _ => None,
        })
        .await
    }

    /// What of the blob is not here. Reads all that is.
    fn lacks(&self, hash: ContentHash, bytes: &[u8]) -> ChunkRanges {
        let partial = self.store.begin_download(hash, bytes.len() as u64).unwrap();
        let missing = partial.missing_ranges();
        let mut encoded = Vec::new();
        let blob = self.store.share(hash).unwrap().blob;
        blob.encode(&(&all_chunks(bytes.len() as u64) - &missing), &mut encoded).expect("what it says it has verifies");
        missing
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_part_comes_from_two_at_once_and_nothing_else_comes() {
    let bytes = content(24 << 20);
    let (hash, size) = (ContentHash::of(&bytes), bytes.len() as u64);
    let mut seeds = Vec::new();
    for secret in 1..=2 {
        let mut config = config(secret, TCP, &[]);
        config.limits.upload_bytes_per_second = Some(4 * MIB);
        let seed = start(config).await;
        seed.store.put_blob(&bytes).unwrap();
        seeds.push(seed);
    }
    let mut reader = start(config(9, TCP, &[&seeds[0].address, &seeds[1].address])).await;
    for seed in &seeds {
        reader.connected_to(seed.id()).await;
    }
    let places = [3 * MIB + 5..5 * MIB, 9 * MIB..9 * MIB + 1, 11 * MIB..14 * MIB + 77, size - 10..size];
    let wants = wanted(&places, size);
    let part = byte_count(&wants, size);
    reader.want(hash, size, &[seeds[0].id(), seeds[1].id()], &places);
    let mut told = Vec::new();
    reader
        .expect("the part", |event| match event {
            NetworkEvent::BlobProgress { have, size, .. } => {
                told.push((have, size));
                None
            }
            NetworkEvent::BlobPart { hash: found } => (found == hash).then_some(()),
            other => panic!("{other:?}"),
        })
        .await;
    assert!(!told.is_empty() && told.iter().all(|(have, size)| have <= size && *size == part), "progress counts what is wanted: {told:?}");
    assert_eq!(reader.lacks(hash, &bytes), &all_chunks(size) - &wants);
    assert!(!reader.store.has_blob(hash).unwrap() && reader.handle.transfers().is_empty());
    let shares: Vec<u64> = seeds.iter().map(|seed| seed.handle.uploads().iter().map(|upload| upload.bytes).sum()).collect();
    assert!(shares.iter().all(|share| *share > part / 8), "{shares:?} of {part}");
    let read = reader.handle.traffic().blob_in;
    println!("{read} bytes on the wire for {part} of a blob of {size}: {:.4}", read as f64 / part as f64);
    assert!((part..part + part / 25).contains(&read), "{read} bytes for {part}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_part_goes_on_after_a_restart_and_more_of_it_costs_only_the_rest() {
    let bytes = content(8 << 20);
    let (hash, size) = (ContentHash::of(&bytes), bytes.len() as u64);
    let places = [MIB..3 * MIB, 5 * MIB + 100..6 * MIB];
    let wants = wanted(&places, size);
    let dying = hostile(10, &bytes, Manner::Truncates((3 * MIB / 2) as usize)).await;
    let mut config = config(100, TCP, &[&dying.address]);
    let mut peer = start(config.clone()).await;
    peer.connected_to(dying.id).await;
    peer.want(hash, size, &[dying.id], &places);
    let far = |event| if let NetworkEvent::BlobProgress { have, .. } = event { (have > MIB).then_some(()) } else { None };
    peer.expect("progress", far).await;
    drop(dying);
    peer.handle.shutdown().await;
    let Peer { store, folder, .. } = peer;
    drop(store);

    let honest = hostile(11, &bytes, Manner::Honest).await;
    let asked = || std::mem::take(&mut *honest.asked.lock().unwrap()).iter().fold(ChunkRanges::empty(), |all, ranges| &all | ranges);
    config.bootstrap = vec![honest.address.clone()];
    let mut peer = start_in(config, folder).await;
    peer.connected_to(honest.id).await;
    let left = &peer.lacks(hash, &bytes) & &wants;
    assert!(byte_count(&left, size) < byte_count(&wants, size) - MIB && !left.is_empty());
    peer.want(hash, size, &[honest.id], &places);
    peer.part(hash).await;
    assert_eq!((asked(), peer.lacks(hash, &bytes)), (left, &all_chunks(size) - &wants));
    // What is here is asked of nobody.
    peer.want(hash, size, &[], &[MIB..2 * MIB]);
    peer.part(hash).await;
    assert_eq!(asked(), ChunkRanges::empty());
    // More of it, and then all.
    let more = [MIB / 2..7 * MIB / 2];
    let rest = &wanted(&more, size) - &wants;
    peer.want(hash, size, &[honest.id], &more);
    peer.part(hash).await;
    assert_eq!(asked(), rest);
    peer.handle.fetch(hash, size, vec![honest.id]).unwrap();
    peer.download(hash).await.unwrap();
    assert_eq!(asked(), &(&all_chunks(size) - &wants) - &rest);
    assert_eq!(peer.bytes_of(hash), bytes);
    // A part of what is whole is whole.
    peer.want(hash, size, &[], &places);
    peer.download(hash).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_forged_group_of_a_part_is_refused() {
    let bytes = content(4 << 20);
    let (hash, size) = (ContentHash::of(&bytes), bytes.len() as u64);
    let places = [MIB..2 * MIB];
    // The head is honest, and what comes after it is not.
    let liar = hostile(10, &bytes, Manner::Sours(1)).await;
    let mut reader = start(config(100, TCP, &[&liar.address])).await;
    reader.connected_to(liar.id).await;
    reader.want(hash, size, &[liar.id], &places);
    let failed = |event| if let NetworkEvent::BlobFailed { why, .. } = event { Some(why) } else { None };
    let why = reader.expect("a failure", failed).await;
    assert!(why.contains(&format!("peer {} sent wrong bytes", liar.id)), "{why}");
    let lacks = reader.lacks(hash, &bytes);
    assert!(lacks.is_superset(&groups_of(&places, size)), "nothing forged was kept");
    let honest = start(config(101, TCP, &[])).await;
    honest.store.put_blob(&bytes).unwrap();
    reader.handle.dial(honest.address.clone()).unwrap();
    reader.connected_to(honest.id()).await;
    reader.want(hash, size, &[liar.id, honest.id()], &places);
    reader.part(hash).await;
    assert_eq!(reader.lacks(hash, &bytes), &all_chunks(size) - &wanted(&places, size));
}
