//! One blob from many: several providers at once, peers that feed each other, headers first, and liars among them.

use super::hostile::{Hostile, Manner, hostile};
use super::*;

const MIB: u64 = 1 << 20;

/// A config whose uploads are bounded.
fn limited(secret: u8, per_second: u64, bootstrap: &[&Multiaddr]) -> NetworkConfig {
    let mut config = config(secret, TCP, bootstrap);
    config.limits.upload_bytes_per_second = Some(per_second);
    config
}

fn served(peer: &Peer) -> u64 {
    peer.handle.uploads().iter().map(|upload| upload.bytes).sum()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn four_providers_share_the_work() {
    let bytes = content(16 << 20);
    let mut seeds = Vec::new();
    // A second's worth may come at once: with more of it three of them would have given all before the fourth is asked.
    for secret in 1..=4 {
        let seed = start(limited(secret, 2 * MIB, &[])).await;
        seed.store.put_blob(&bytes).unwrap();
        seeds.push(seed);
    }
    let addresses: Vec<&Multiaddr> = seeds.iter().map(|seed| &seed.address).collect();
    let mut reader = start(config(9, TCP, &addresses)).await;
    for seed in &seeds {
        reader.connected_to(seed.id()).await;
    }
    let (hash, size) = (ContentHash::of(&bytes), bytes.len() as u64);
    reader.handle.fetch(hash, size, seeds.iter().map(Peer::id).collect()).unwrap();
    // Halfway the transfers tell of all four.
    let mut seen = BTreeSet::new();
    loop {
        for transfer in reader.handle.transfers() {
            assert_eq!((transfer.hash, transfer.size), (hash, size));
            let sending = transfer.providers.iter().filter(|provider| provider.state == ProviderState::Sending);
            seen.extend(sending.map(|provider| provider.peer));
        }
        let ended = |event| matches!(event, NetworkEvent::BlobFetched { .. }).then_some(());
        if timeout(Duration::from_millis(10), reader.expect("the blob", ended)).await.is_ok() {
            break;
        }
    }
    assert_eq!(reader.bytes_of(hash), bytes);
    assert_eq!(seen.len(), 4, "seen at work: {seen:?}");
    let shares: Vec<u64> = seeds.iter().map(served).collect();
    assert!(shares.iter().all(|share| *share >= size / 16), "{shares:?}");
    assert!(shares.iter().sum::<u64>() <= size + size / 8, "{shares:?}");
    assert!(reader.handle.transfers().is_empty(), "what is here is no transfer");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_has_a_part_serves_it() {
    let bytes = content(8 << 20);
    let (hash, size) = (ContentHash::of(&bytes), bytes.len() as u64);
    let seed = start(limited(1, 2 * MIB, &[])).await;
    seed.store.put_blob(&bytes).unwrap();
    // The last may speak to the middle only: all it gets, the middle has fetched before.
    let mut middle = start(config(2, TCP, &[&seed.address])).await;
    let last = NetworkConfig { allowed: Some([member(2)].into()), ..config(3, TCP, &[&middle.address]) };
    let mut last = start(last).await;
    middle.connected_to(seed.id()).await;
    last.connected_to(middle.id()).await;
    middle.handle.fetch(hash, size, vec![seed.id()]).unwrap();
    middle.expect("a beginning", |event| matches!(event, NetworkEvent::BlobProgress { .. }).then_some(())).await;
    last.handle.fetch(hash, size, vec![middle.id()]).unwrap();
    let progress = |event| if let NetworkEvent::BlobProgress { have, .. } = event { Some(have) } else { None };
    let have = last.expect("a part from who has a part", progress).await;
    assert!(have > 0 && !middle.store.has_blob(hash).unwrap(), "the middle was done before it served");
    middle.download(hash).await.unwrap();
    last.download(hash).await.unwrap();
    assert_eq!(last.bytes_of(hash), bytes);
    assert!(served(&seed) <= size + size / 10, "the seed sent it once: {}", served(&seed));
}

struct FirstByte(u8);

impl HeadCheck for FirstByte {
    fn judge(&self, head: &[u8], size: u64) -> HeadVerdict {
        match head.first() {
            // Looks further first, as one does for a long header.
            _ if (head.len() as u64) < 20_000.min(size) => HeadVerdict::More(20_000),
            Some(first) if *first == self.0 => HeadVerdict::Fits,
            first => HeadVerdict::Refused(format!("it begins with {first:?}")),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_header_costs_kilobytes() {
    let bytes = content(64 << 20);
    let (hash, size) = (ContentHash::of(&bytes), bytes.len() as u64);
    let seed = start(config(1, TCP, &[])).await;
    seed.store.put_blob(&bytes).unwrap();
    let mut reader = start(config(2, TCP, &[&seed.address])).await;
    reader.connected_to(seed.id()).await;
    reader.handle.fetch_checked(hash, size, vec![seed.id()], Arc::new(FirstByte(!bytes[0]))).unwrap();
    let refused = |event| if let NetworkEvent::BlobRefused { hash, why } = event { Some((hash, why)) } else { None };
    let (found, why) = reader.expect("a refusal", refused).await;
    assert!(found == hash && why.contains("it begins with"), "{why}");
    let read = reader.handle.traffic().blob_in;
    assert!((20_000..64 << 10).contains(&read), "{read} bytes were read");
    assert!(reader.store.partials().unwrap().is_empty(), "something of it was kept");
    // The same blob under a judge that it pleases comes whole.
    reader.handle.fetch_checked(hash, size, vec![seed.id()], Arc::new(FirstByte(bytes[0]))).unwrap();
    reader.download(hash).await.unwrap();
    assert_eq!(reader.bytes_of(hash), bytes);
    assert!(reader.handle.traffic().blob_in <= read + size + size / 100, "bytes on the wire: {}", reader.handle.traffic().blob_in);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn liars_among_the_providers_cost_little_and_are_cut() {
    let bytes = content(16 << 20);
    let (hash, size) = (ContentHash::of(&bytes), bytes.len() as u64);
    // Slow enough for the others to be asked as well.
    let honest = start(limited(1, 8 * MIB, &[])).await;
    honest.store.put_blob(&bytes).unwrap();
    let forged = hostile(2, &bytes, Manner::Corrupts(20)).await;
    let sour = hostile(3, &bytes, Manner::Sours(bytes.len() / 4 * 9 / 10)).await;
    let trickle = hostile(4, &bytes, Manner::Trickles(0)).await;
    let others: [&Hostile; 3] = [&forged, &sour, &trickle];
    let mut bootstrap = vec![&honest.address];
    bootstrap.extend(others.iter().map(|other| &other.address));
    let mut reader = start(config(9, TCP, &bootstrap)).await;
    reader.connected_to(honest.id()).await;
    for other in others {
        reader.connected_to(other.id).await;
    }
    let began = std::time::Instant::now();
    let providers = others.iter().map(|other| other.id).chain([honest.id()]).collect();
    reader.handle.fetch(hash, size, providers).unwrap();
    reader.download(hash).await.unwrap();
    let took = began.elapsed();
    assert_eq!(reader.bytes_of(hash), bytes);
    // What may be asked for twice, and a block that each liar had on its way.
    let cap = 2 * MIB + 3 * (512 << 10);
    let wasted = reader.handle.traffic().blob_in.saturating_sub(size + size / 100);
    assert!(wasted as f64 <= 1.1 * cap as f64, "{wasted} bytes were wasted of {cap}, in {took:?}");
    for liar in [&forged, &sour] {
        let peers = reader.handle.peers();
        let offences = peers.iter().find(|peer| peer.peer == liar.id).map(|peer| peer.counts.offences);
        assert_ne!(offences, Some(0), "a liar is known as one");
    }
}
