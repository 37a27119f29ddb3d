//! Providers that lie, stop, stall or speak too much, over the real protocols.

use std::sync::{Arc, Mutex};

use futures::{AsyncWriteExt, StreamExt};
use libp2p::Swarm;
use libp2p::swarm::SwarmEvent;
use tokio::io::AsyncReadExt;
use tokio_util::compat::FuturesAsyncReadCompatExt;

use super::super::behaviour::{Net, NetEvent, swarm};
use super::super::blob_frames::{Ask, BLOCK_HEAD_BYTES, Tell, first_chunk, read_hash};
use super::super::blob_streams::Inbound;
use super::super::gossip::Gossip;
use super::super::guard::Guard;
use super::super::traffic::Meter;
use super::*;
use crate::pieces::{Holds, Pieces};
use crate::store::{ChunkRanges, all_chunks};

const SIZE: usize = 8 << 20;

/// What a hostile provider does in one conversation.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Manner {
    Honest,
    /// Sends so many bytes of blocks, then closes the stream.
    Truncates(usize),
    /// Sends so many bytes of blocks, then nothing, for ever.
    Stalls(usize),
    /// Sends so many bytes of blocks, then one byte now and then.
    Trickles(usize),
    /// Sends so many honest bytes of blocks, then garbage.
    Sours(usize),
    /// Flips the byte of its blocks at this place.
    Corrupts(usize),
    LiesAboutSize,
    /// Says this first, and no more.
    Says(Tell),
    /// Begins with an answer of an unknown kind.
    Babbles,
    /// Answers the first want with a block that it did not ask for.
    Unasked,
    /// Says that it cannot serve what it said it holds.
    Refuses,
}

pub(super) struct Hostile {
    pub id: PeerId,
    pub address: Multiaddr,
    pub asked: Arc<Mutex<Vec<ChunkRanges>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Hostile {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A swarm without a service, that dials from the address it listens on.
pub(super) async fn bare_swarm_at(secret: u8, listen: &str) -> Swarm<Net> {
    let mut swarm = bare_swarm(secret, listen);
    address_of(&mut swarm).await;
    swarm
}

fn bare_swarm(secret: u8, listen: &str) -> Swarm<Net> {
    let key = keypair_of([secret; 32]).unwrap();
    let (gossip, _) = Gossip::new(TOPIC).unwrap();
    let guard = Arc::new(Guard::new(None, Scoring::On));
    let mut swarm = swarm(&key, gossip, false, &guard, &ReachConfig::default(), &Meter::default(), &Limits::default()).unwrap();
    swarm.listen_on(listen.parse().unwrap()).unwrap();
    swarm
}

async fn address_of(swarm: &mut Swarm<Net>) -> Multiaddr {
    loop {
        if let SwarmEvent::NewListenAddr { address, .. } = swarm.select_next_some().await {
            return address.with_p2p(*swarm.local_peer_id()).unwrap();
        }
    }
}

pub(super) async fn hostile(secret: u8, bytes: &[u8], manner: Manner) -> Hostile {
    let folder = TempDir::new().unwrap();
    let store = Store::open(folder.path()).unwrap();
    store.put_blob(bytes).unwrap();
    let mut swarm = bare_swarm(secret, TCP);
    let address = address_of(&mut swarm).await;
    let asked = Arc::new(Mutex::new(Vec::new()));
    let (id, seen) = (*swarm.local_peer_id(), asked.clone());
    let task = tokio::spawn(async move {
        let _folder = folder;
        loop {
            let SwarmEvent::Behaviour(NetEvent::Blobs(inbound)) = swarm.select_next_some().await else { continue };
            let (store, seen, manner) = (store.clone(), seen.clone(), manner.clone());
            tokio::spawn(async move {
                let _ = converse(store, seen, manner, inbound).await;
            });
        }
    });
    Hostile { id, address, asked, task }
}

/// Answers wants in its manner until the asker leaves.
async fn converse(store: Store, seen: Arc<Mutex<Vec<ChunkRanges>>>, manner: Manner, inbound: Inbound) -> std::io::Result<()> {
    let mut stream = inbound.stream.compat();
    let blob = store.open_blob(read_hash(&mut stream).await?).unwrap();
    let opening = match &manner {
        Manner::LiesAboutSize => Tell::Holds { size: blob.size + 1, holds: Holds::All }.to_bytes(),
        Manner::Says(said) => said.to_bytes(),
        Manner::Babbles => vec![77],
        _ => Tell::Holds { size: blob.size, holds: Holds::All }.to_bytes(),
    };
    stream.get_mut().write_all(&opening).await?;
    stream.get_mut().flush().await?;
    if matches!(manner, Manner::LiesAboutSize | Manner::Says(_) | Manner::Babbles) {
        seen.lock().unwrap().push(ChunkRanges::empty());
        return stream.get_mut().close().await;
    }
    let mut sent = 0;
    loop {
        let kind = stream.read_u8().await?;
        let Ask::Want(ranges) = Ask::read(kind, &mut stream).await? else { continue };
        seen.lock().unwrap().push(ranges.clone());
        let stream = stream.get_mut();
        match manner {
            Manner::Refuses => {
                stream.write_all(&Tell::Cannot(first_chunk(&ranges)).to_bytes()).await?;
                stream.flush().await?;
                continue;
            }
            Manner::Unasked => {
                stream.write_all(&Tell::Block(first_chunk(&ranges) + 512).to_bytes()).await?;
                stream.flush().await?;
                std::future::pending().await
            }
            _ => {}
        }
        for block in Pieces::blocks(&ranges) {
            let mut answer = Tell::Block(first_chunk(&block)).to_bytes();
            blob.encode(&block, &mut answer).unwrap();
            match manner {
                Manner::Sours(after) if sent >= after => answer[BLOCK_HEAD_BYTES..].fill(0x55),
                Manner::Corrupts(at) => answer[BLOCK_HEAD_BYTES + at] ^= 1,
                Manner::Truncates(most) | Manner::Stalls(most) | Manner::Trickles(most) => answer.truncate(most.saturating_sub(sent)),
                _ => {}
            }
            sent += answer.len();
            stream.write_all(&answer).await?;
            stream.flush().await?;
            match manner {
                Manner::Truncates(most) if sent >= most => return stream.close().await,
                Manner::Stalls(most) if sent >= most => std::future::pending().await,
                Manner::Trickles(most) if sent >= most => loop {
                    // What belongs there, only slowly.
                    stream.write_all(&[0]).await?;
                    stream.flush().await?;
                    tokio::time::sleep(Duration::from_millis(100)).await;
                },
                _ => {}
            }
        }
    }
}

/// A reader, connected to `provider`.
async fn reader(secret: u8, provider: &Hostile) -> Peer {
    let mut reader = start(config(secret, TCP, &[&provider.address])).await;
    reader.connected_to(provider.id).await;
    reader
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_lie_is_refused_by_name_and_costs_no_honest_byte() {
    let bytes = content(SIZE);
    let (hash, size) = (ContentHash::of(&bytes), bytes.len() as u64);
    let cases = [
        (Manner::Corrupts(300_000), "sent wrong bytes"),
        (Manner::Corrupts(20), "sent wrong bytes"),
        (Manner::Unasked, "sent wrong bytes: a block that nobody asked for"),
        (Manner::LiesAboutSize, "says it has 8388609 bytes, but 8388608 were announced"),
        (Manner::Says(Tell::NotFound), "does not have it"),
        (Manner::Says(Tell::Wait), "sent wrong bytes: it did not say what it holds"),
        (Manner::Babbles, "sent wrong bytes"),
    ];
    let honest = start(config(200, TCP, &[])).await;
    honest.store.put_blob(&bytes).unwrap();
    for (number, (manner, fact)) in (0..).zip(cases) {
        let liar = hostile(10 + number, &bytes, manner.clone()).await;
        let mut reader = reader(100 + number, &liar).await;
        reader.handle.fetch(hash, size, vec![liar.id]).unwrap();
        let why = reader.download(hash).await.unwrap_err();
        assert!(why.contains(&format!("peer {} {fact}", liar.id)), "{manner:?}: {why}");
        assert!(!reader.store.has_blob(hash).unwrap());
        let asked = liar.asked.lock().unwrap().len();
        assert!((1..=2).contains(&asked), "a liar is asked once, for two pieces at most: {manner:?}: {asked}");
        let lied = !matches!(manner, Manner::Says(Tell::NotFound));
        while !reader.handle.peers().iter().any(|peer| peer.peer == liar.id && (peer.counts.offences > 0) == lied) {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }

        reader.handle.dial(honest.address.clone()).unwrap();
        reader.connected_to(honest.id()).await;
        reader.handle.fetch(hash, size, vec![liar.id, honest.id()]).unwrap();
        reader.download(hash).await.unwrap();
        assert_eq!(reader.bytes_of(hash), bytes, "{manner:?}");
        reader.handle.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_busy_or_truncating_provider_is_asked_again_but_not_for_ever() {
    let bytes = content(100_000);
    let (hash, size) = (ContentHash::of(&bytes), bytes.len() as u64);
    let short = hostile(10, &bytes, Manner::Truncates(5)).await;
    let mut reader = reader(100, &short).await;
    reader.handle.fetch(hash, size, vec![short.id]).unwrap();
    let why = reader.download(hash).await.unwrap_err();
    assert!(why.contains(&format!("peer {} stopped early", short.id)), "{why}");
    assert_eq!(short.asked.lock().unwrap().len(), 4);

    let busy = hostile(11, &bytes, Manner::Says(Tell::Busy)).await;
    let honest = hostile(12, &bytes, Manner::Honest).await;
    reader.handle.dial(busy.address.clone()).unwrap();
    reader.connected_to(busy.id).await;
    reader.handle.fetch(hash, size, vec![busy.id]).unwrap();
    tokio::time::sleep(Duration::from_millis(500)).await;
    // A provider that comes later joins the download that runs.
    reader.handle.dial(honest.address.clone()).unwrap();
    reader.connected_to(honest.id).await;
    reader.handle.fetch(hash, size, vec![honest.id]).unwrap();
    reader.download(hash).await.unwrap();
    assert!(!busy.asked.lock().unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_download_goes_on_elsewhere_with_exactly_what_is_missing() {
    let bytes = content(SIZE);
    let (hash, size) = (ContentHash::of(&bytes), bytes.len() as u64);
    let dying = hostile(10, &bytes, Manner::Truncates(SIZE / 2)).await;
    let mut config = config(100, TCP, &[&dying.address]);
    let mut peer = start(config.clone()).await;
    peer.connected_to(dying.id).await;
    peer.handle.fetch(hash, size, vec![dying.id]).unwrap();
    // Half has come when it dies for good, and the reader with it.
    let half = |event| if let NetworkEvent::BlobProgress { have, .. } = event { Some(have) } else { None };
    let have = peer.expect("progress", half).await;
    assert!(have > size / 3 && have < size, "{have}");
    drop(dying);
    peer.handle.shutdown().await;
    let Peer { store, folder, .. } = peer;
    drop(store);

    let honest = hostile(11, &bytes, Manner::Honest).await;
    config.bootstrap = vec![honest.address.clone()];
    let mut peer = start_in(config, folder).await;
    let kept = peer.store.begin_download(hash, size).unwrap();
    let missing = kept.missing_ranges();
    assert!(kept.have_bytes() >= have);
    drop(kept);
    peer.connected_to(honest.id).await;
    peer.handle.fetch(hash, size, vec![honest.id]).unwrap();
    peer.download(hash).await.unwrap();
    assert_eq!(peer.bytes_of(hash), bytes);
    let asked = honest.asked.lock().unwrap().iter().fold(ChunkRanges::empty(), |all, ranges| &all | ranges);
    assert_eq!(asked, missing);
    assert_ne!(asked, all_chunks(size));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_or_trickling_provider_loses_its_connection_and_the_next_one_serves() {
    let bytes = content(SIZE / 4);
    let (hash, size) = (ContentHash::of(&bytes), bytes.len() as u64);
    for manner in [Manner::Stalls(SIZE / 8), Manner::Trickles(SIZE / 8)] {
        let silent = hostile(10, &bytes, manner.clone()).await;
        let honest = hostile(11, &bytes, Manner::Honest).await;
        let mut reader = reader(100, &silent).await;
        reader.handle.fetch(hash, size, vec![silent.id]).unwrap();
        let cut = |event| matches!(event, NetworkEvent::PeerDisconnected(peer) if peer == silent.id).then_some(());
        reader.expect("the connection to be cut", cut).await;
        reader.handle.dial(honest.address.clone()).unwrap();
        reader.connected_to(honest.id).await;
        reader.handle.fetch(hash, size, vec![honest.id]).unwrap();
        reader.download(hash).await.unwrap();
        assert_eq!(reader.bytes_of(hash), bytes);
        let after = honest.asked.lock().unwrap().iter().fold(ChunkRanges::empty(), |all, ranges| &all | ranges);
        assert_ne!(after, all_chunks(size), "what the silent one sent was kept");
        reader.handle.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_cannot_serve_what_it_promised_is_left_for_others() {
    let bytes = content(SIZE / 4);
    let (hash, size) = (ContentHash::of(&bytes), bytes.len() as u64);
    let unwilling = hostile(10, &bytes, Manner::Refuses).await;
    let honest = hostile(11, &bytes, Manner::Honest).await;
    let mut reader = reader(100, &unwilling).await;
    reader.handle.dial(honest.address.clone()).unwrap();
    reader.connected_to(honest.id).await;
    reader.handle.fetch(hash, size, vec![unwilling.id, honest.id]).unwrap();
    reader.download(hash).await.unwrap();
    assert!(unwilling.asked.lock().unwrap().len() <= 4, "each piece is asked of it once");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancelled_download_lets_go_and_can_begin_again() {
    let bytes = content(SIZE / 8);
    let (hash, size) = (ContentHash::of(&bytes), bytes.len() as u64);
    let silent = hostile(10, &bytes, Manner::Stalls(700_000)).await;
    let honest = hostile(11, &bytes, Manner::Honest).await;
    let mut config = config(100, TCP, &[&silent.address, &honest.address]);
    config.limits.stall_window = Duration::from_secs(60);
    let mut reader = start(config).await;
    reader.connected_to(silent.id).await;
    reader.connected_to(honest.id).await;
    reader.handle.fetch(hash, size, vec![silent.id]).unwrap();
    reader.expect("progress", |event| matches!(event, NetworkEvent::BlobProgress { .. }).then_some(())).await;
    reader.handle.cancel_fetch(hash).unwrap();
    reader.handle.fetch(hash, size, vec![honest.id]).unwrap();
    reader.download(hash).await.unwrap();
    assert_eq!(reader.bytes_of(hash), bytes);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_beyond_the_bounds_and_false_frames_do_no_harm() {
    let bytes = content(100_000);
    let honest = start(config(1, TCP, &[])).await;
    let (hash, size) = honest.store.put_blob(&bytes).unwrap();
    let mut flood = bare_swarm(2, TCP);
    flood.dial(honest.address.clone()).unwrap();
    let target = honest.id();
    let flooding = tokio::spawn(async move {
        let mut held = Vec::new();
        let mut opened = tokio::task::JoinSet::new();
        loop {
            tokio::select! {
                event = flood.select_next_some() => if matches!(event, SwarmEvent::ConnectionEstablished { .. }) {
                    for _ in 0..limits::BLOB_STREAMS_PER_CONNECTION_MAX * 4 {
                        let (reply, answer) = oneshot::channel();
                        flood.behaviour_mut().blobs.open(target, reply);
                        opened.spawn(answer);
                    }
                },
                Some(Ok(Ok(Ok((_, mut stream))))) = opened.join_next() => {
                    // No honest frame: a hash, then 65,535 ranges.
                    let _ = stream.write_all(&[255; 200]).await;
                    held.push(stream);
                }
            }
        }
    });
    let mut reader = start(config(3, TCP, &[&honest.address])).await;
    reader.connected_to(target).await;
    reader.handle.fetch(hash, size, vec![target]).unwrap();
    reader.download(hash).await.unwrap();
    assert_eq!(reader.bytes_of(hash), bytes);
    flooding.abort();
}
