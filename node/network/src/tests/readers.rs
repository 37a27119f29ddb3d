//! Readers of blobs that ask for what nobody may ask, and those that ask for everything and take nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use futures::{AsyncReadExt, AsyncWriteExt, StreamExt};
use libp2p::swarm::SwarmEvent;
use tokio::task::{JoinHandle, JoinSet};

use super::hostile::bare_swarm_at;
use super::*;
use crate::blob_frames::Ask;
use crate::blob_streams::{Opened, Stream};
use crate::limits::{BLOB_STREAMS_PER_CONNECTION_MAX, REQUEST_CHUNKS_MAX, REQUEST_RANGES_MAX, WANTS_MAX};
use crate::store::all_chunks;

const HONEST: u8 = 4;
const SYBILS: u8 = 16;
const SIZE: usize = 4 << 20;
/// Four MiB over the loopback take a moment, on a busy machine some seconds.
const SERVED_WITHIN: Duration = Duration::from_secs(10);

/// A conversation with `to` about `hash`, just begun, and the task that keeps its connection alive.
async fn conversation(secret: u8, to: &Multiaddr, hash: ContentHash) -> (PeerId, Stream, JoinHandle<()>) {
    let mut swarm = bare_swarm_at(secret, TCP).await;
    let (id, target) = (*swarm.local_peer_id(), crate::dialer::peer_in(to).unwrap());
    swarm.dial(to.clone()).unwrap();
    while !matches!(swarm.select_next_some().await, SwarmEvent::ConnectionEstablished { .. }) {}
    let (reply, opened) = oneshot::channel();
    swarm.behaviour_mut().blobs.open(target, reply);
    let driving = tokio::spawn(async move { while swarm.next().await.is_some() {} });
    let (_, mut stream) = opened.await.unwrap().unwrap();
    stream.write_all(&hash.0).await.unwrap();
    stream.flush().await.unwrap();
    (id, stream, driving)
}

/// A want of these ranges, whatever they are.
fn want(ranges: &[(u64, u64)]) -> Vec<u8> {
    let bounds = ranges.iter().flat_map(|(start, end)| [start.to_le_bytes(), end.to_le_bytes()]).flatten();
    [1].into_iter().chain((ranges.len() as u16).to_le_bytes()).chain(bounds).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn blob_requests_beyond_their_bounds_are_not_served_and_are_held_against_the_asker() {
    let bytes = content(SIZE);
    let provider = start(config(1, TCP, &[])).await;
    let (hash, size) = provider.store.put_blob(&bytes).unwrap();
    let many: Vec<(u64, u64)> = (0..=REQUEST_RANGES_MAX as u64).map(|number| (number * 2, number * 2 + 1)).collect();
    let cases: [(&str, Vec<u8>); 8] = [
        ("more ranges than one want may have", want(&many)),
        ("a promise of 65,535 ranges", [1, 255, 255].to_vec()),
        ("more chunks than one want may have", want(&[(0, REQUEST_CHUNKS_MAX + 1)])),
        ("all chunks there are", want(&[(0, u64::MAX)])),
        ("no range", want(&[])),
        ("ranges out of order", want(&[(100, 200), (0, 50)])),
        ("an unknown kind of question", [9; 40].to_vec()),
        ("more wants than may wait", want(&[(0, 4096)]).repeat(WANTS_MAX * 4)),
    ];
    for (secret, (what, frame)) in (10..).zip(cases) {
        let (asker, mut stream, driving) = conversation(secret, &provider.address, hash).await;
        let mut opening = [0; 9];
        stream.read_exact(&mut opening).await.unwrap();
        assert_eq!(opening[1..], size.to_le_bytes(), "{what}");
        // It may be cut off before all of it is written.
        let _ = stream.write_all(&frame).await;
        let _ = stream.flush().await;
        let mut answer = Vec::new();
        let read = timeout(PATIENCE, stream.read_to_end(&mut answer)).await.unwrap_or_else(|_| panic!("{what} is not refused"));
        assert!(answer.len() < SIZE, "{what}: {read:?}");
        let until = Instant::now() + PATIENCE;
        while !provider.handle.peers().iter().any(|peer| peer.peer == asker && peer.counts.offences > 0) {
            assert!(Instant::now() < until, "{what} is held against nobody");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        driving.abort();
    }
    // What lies beyond the blob is no offence: a peer may have been told another size.
    let (asker, mut stream, driving) = conversation(30, &provider.address, hash).await;
    stream.write_all(&want(&[(0, REQUEST_CHUNKS_MAX)])).await.unwrap();
    stream.flush().await.unwrap();
    let mut answer = [0; 18];
    stream.read_exact(&mut answer).await.unwrap();
    assert_eq!((answer[9], &answer[10..]), (7, [0; 8].as_slice()), "it cannot be served");
    assert!(provider.handle.peers().iter().all(|peer| peer.peer != asker || peer.counts.offences == 0));
    driving.abort();

    let mut reader = start(config(100, TCP, &[&provider.address])).await;
    reader.connected_to(provider.id()).await;
    reader.handle.fetch(hash, size, vec![provider.id()]).unwrap();
    reader.download(hash).await.unwrap();
}

/// Holds as many conversations as it may; every second one asks in each for all there is and reads none of it, the others say
/// nothing further. Comes back when it is cut.
async fn sybil(secret: u8, to: Multiaddr, hash: ContentHash, until: Instant, begun: Arc<AtomicUsize>) {
    let target = crate::dialer::peer_in(&to).unwrap();
    let asks = if secret.is_multiple_of(2) { WANTS_MAX } else { 0 };
    let wants = Ask::Want(Ask::first_of(&all_chunks(SIZE as u64))).to_bytes().repeat(asks);
    while Instant::now() < until {
        let mut swarm = bare_swarm_at(secret, &format!("/ip4/127.0.0.{}/tcp/0", 2 + secret % 8)).await;
        swarm.dial(to.clone()).unwrap();
        let (mut hanging, mut opening) = (Vec::new(), JoinSet::<Result<Opened, oneshot::error::RecvError>>::new());
        let mut connected = false;
        // Seldom enough to stay below every quota.
        let mut pace = tokio::time::interval(Duration::from_secs(5));
        while Instant::now() < until {
            tokio::select! {
                event = swarm.select_next_some() => match event {
                    SwarmEvent::ConnectionEstablished { .. } => connected = true,
                    SwarmEvent::ConnectionClosed { .. } | SwarmEvent::OutgoingConnectionError { .. } => break,
                    _ => {}
                },
                Some(opened) = opening.join_next() => if let Ok(Ok(Ok((_, mut stream)))) = opened {
                    begun.fetch_add(1, Ordering::Relaxed);
                    let _ = stream.write_all(&[hash.0.as_slice(), &wants].concat()).await;
                    let _ = stream.flush().await;
                    hanging.push(stream);
                },
                _ = pace.tick(), if connected => for _ in 0..BLOB_STREAMS_PER_CONNECTION_MAX {
                    let (reply, answer) = oneshot::channel();
                    swarm.behaviour_mut().blobs.open(target, reply);
                    opening.spawn(answer);
                },
            }
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// How long each honest reader takes to have the blob; one that fails asks again, as a node does.
async fn fetched(readers: &mut [Peer], hash: ContentHash, size: u64, provider: PeerId) -> Vec<Duration> {
    let began = Instant::now();
    let fetches = readers.iter_mut().map(|reader| async move {
        loop {
            reader.handle.fetch(hash, size, vec![provider]).unwrap();
            match reader.download(hash).await {
                Ok(()) => return began.elapsed(),
                Err(why) => println!("asks again: {why}"),
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    });
    futures::future::join_all(fetches).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sybil_readers_four_to_one_do_not_keep_the_honest_from_their_blobs() {
    let (quiet, bytes) = (content(SIZE - 1), content(SIZE));
    // The watchdog as it is outside tests.
    let provider = start(NetworkConfig { limits: Limits::default(), ..config(200, TCP, &[]) }).await;
    let mut readers = Vec::new();
    for secret in 1..=HONEST {
        let known = NetworkConfig { allowed: Some([member(200)].into()), ..config(secret, TCP, &[&provider.address]) };
        let mut reader = start(NetworkConfig { limits: Limits::default(), ..known }).await;
        reader.connected_to(provider.id()).await;
        readers.push(reader);
    }
    let (hash, size) = provider.store.put_blob(&quiet).unwrap();
    let alone = fetched(&mut readers, hash, size, provider.id()).await;
    let (hash, size) = provider.store.put_blob(&bytes).unwrap();
    let until = Instant::now() + SERVED_WITHIN;
    let (mut sybils, begun) = (JoinSet::new(), Arc::new(AtomicUsize::new(0)));
    for secret in 0..SYBILS {
        sybils.spawn(sybil(100 + secret, provider.address.clone(), hash, until, begun.clone()));
    }
    // They are there first.
    tokio::time::sleep(Duration::from_secs(3)).await;
    let beside = fetched(&mut readers, hash, size, provider.id()).await;
    let longest = beside.iter().max().copied().unwrap_or_default();
    println!("alone {alone:?}, beside sybils {beside:?}; they began {} conversations", begun.load(Ordering::Relaxed));
    assert!(longest < SERVED_WITHIN, "{beside:?}");
    sybils.abort_all();
    for reader in &readers {
        assert!(reader.bytes_of(hash) == bytes && reader.handle.connected_peers().contains(&provider.id()));
    }
}
