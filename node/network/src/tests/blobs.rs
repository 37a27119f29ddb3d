//! Blobs between honest peers.

use super::*;

const SIZE: usize = 8 << 20;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_blob_arrives_verified_over_tcp_and_quic() {
    let bytes = content(SIZE + 12345);
    for transport in [TCP, QUIC] {
        let provider = start(config(1, transport, &[])).await;
        let (hash, size) = provider.store.put_blob(&bytes).unwrap();
        let mut reader = start(config(2, transport, &[&provider.address])).await;
        reader.connected_to(provider.id()).await;
        reader.handle.fetch(hash, size, vec![provider.id()]).unwrap();
        reader.download(hash).await.unwrap();
        assert_eq!(reader.bytes_of(hash), bytes);
        // What is there already is fetched at once; a wrong size is said to be one.
        reader.handle.fetch(hash, size, Vec::new()).unwrap();
        reader.download(hash).await.unwrap();
        reader.handle.fetch(hash, size + 1, Vec::new()).unwrap();
        assert!(reader.download(hash).await.unwrap_err().contains("were announced"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_has_a_blob_serves_it_when_its_announcer_is_gone() {
    let bytes = content(SIZE / 4);
    let keeper = start(config(1, TCP, &[])).await;
    let empty = start(config(2, TCP, &[&keeper.address])).await;
    let (hash, size) = keeper.store.put_blob(&bytes).unwrap();
    let mut reader = start(config(3, TCP, &[&keeper.address, &empty.address])).await;
    reader.connected_to(keeper.id()).await;
    reader.connected_to(empty.id()).await;
    // Named: one that is unknown to everybody, and one that does not have it. The keeper is not named at all.
    reader.handle.fetch(hash, size, vec![PeerId::random(), empty.id()]).unwrap();
    reader.download(hash).await.unwrap();
    assert_eq!(reader.bytes_of(hash), bytes);

    let absent = ContentHash([5; 32]);
    reader.handle.fetch(absent, size, Vec::new()).unwrap();
    let why = reader.download(absent).await.unwrap_err();
    assert!(why.contains(&format!("peer {} does not have it", keeper.id())), "{why}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_blobs_queue_and_all_arrive() {
    let provider = start(config(1, QUIC, &[])).await;
    let blobs: Vec<_> = (1..20).map(|number| provider.store.put_blob(&content(number * 10_000)).unwrap()).collect();
    let mut reader = start(config(2, QUIC, &[&provider.address])).await;
    for (hash, size) in &blobs {
        // Before the connection is there: the provider is dialled and asked again.
        reader.handle.fetch(*hash, *size, vec![provider.id()]).unwrap();
    }
    let mut left: BTreeSet<ContentHash> = blobs.iter().map(|(hash, _)| *hash).collect();
    while !left.is_empty() {
        let hash = reader.expect("a blob", |event| if let NetworkEvent::BlobFetched { hash } = event { Some(hash) } else { None }).await;
        assert!(left.remove(&hash));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_blob_damaged_on_disk_is_not_served_and_is_told() {
    let bytes = content(SIZE / 8);
    let mut provider = start(config(1, TCP, &[])).await;
    let (hash, size) = provider.store.put_blob(&bytes).unwrap();
    let mut damaged = bytes.clone();
    damaged[size as usize / 2] ^= 1;
    std::fs::write(provider.store.blob_path(hash), &damaged).unwrap();
    let mut reader = start(config(2, TCP, &[&provider.address])).await;
    reader.connected_to(provider.id()).await;
    reader.handle.fetch(hash, size, vec![provider.id()]).unwrap();
    let told = provider.expect("the news", |event| if let NetworkEvent::BlobDamaged { hash } = event { Some(hash) } else { None });
    assert_eq!(told.await, hash);
    let why = reader.download(hash).await.unwrap_err();
    assert!(why.contains(&format!("peer {}", provider.id())), "{why}");
    assert!(!provider.store.has_blob(hash).unwrap() && !reader.store.has_blob(hash).unwrap());

    // The two halves that are whole together make the blob whole again.
    let (third, _) = (start(config(3, TCP, &[&provider.address])).await, ());
    third.store.put_blob(&bytes).unwrap();
    provider.connected_to(third.id()).await;
    provider.handle.fetch(hash, size, vec![third.id()]).unwrap();
    provider.download(hash).await.unwrap();
    assert_eq!(provider.bytes_of(hash), bytes);
}
