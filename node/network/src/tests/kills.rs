//! `kill -9` at random moments of a download in another process: it resumes, and next to nothing is fetched twice.
//!
//! The bar (1 GiB, 100 kills, at most 64 MiB fetched twice in all) by hand:
//! `MINGLE_KILL_MIB=1024 MINGLE_KILLS=100 cargo test --release -p mingle-network kills -- --nocapture`

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use super::*;
use crate::schedule::Dice;

const MIB: u64 = 1 << 20;
/// Set for the process that is killed: folder, address, hash, size.
const CHILD: &str = "MINGLE_KILL_CHILD";
/// Slow enough for kills to meet the download under way.
const UPLOAD: u64 = 32 * MIB;

fn number(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).ok().and_then(|value| value.parse().ok()).unwrap_or(otherwise)
}

/// The process that is killed: this very test binary, told to run this only.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn child_of_the_kills() {
    let Ok(orders) = std::env::var(CHILD) else { return };
    let [folder, address, hash, size] = orders.split('|').collect::<Vec<_>>().try_into().unwrap();
    let address: Multiaddr = address.parse().unwrap();
    let seed = crate::dialer::peer_in(&address).unwrap();
    let store = Store::open(PathBuf::from(folder)).unwrap();
    let (handle, mut events) = Network::start(config(2, TCP, &[&address]), store).unwrap();
    handle.fetch(hash.parse().unwrap(), size.parse().unwrap(), vec![seed]).unwrap();
    while let Some(event) = events.recv().await {
        match event {
            NetworkEvent::BlobFetched { .. } => break,
            NetworkEvent::BlobFailed { why, .. } => panic!("{why}"),
            _ => {}
        }
    }
    handle.shutdown().await;
}

fn spawn(orders: &str) -> Child {
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args(["--exact", "tests::kills::child_of_the_kills"]).env(CHILD, orders);
    child.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_download_fetches_next_to_nothing_twice() {
    let (size, kills) = (number("MINGLE_KILL_MIB", 64) * MIB, number("MINGLE_KILLS", 10));
    let dice_seed = number("MINGLE_TEST_SEED", getrandom::u64().unwrap());
    let mut dice = Dice(dice_seed);
    let bytes = content(size as usize);
    let mut config = config(1, TCP, &[]);
    config.limits.upload_bytes_per_second = Some(UPLOAD);
    let seed = start(config).await;
    let (hash, size) = seed.store.put_blob(&bytes).unwrap();
    let folder = TempDir::new().unwrap();
    let orders = format!("{}|{}|{hash}|{size}", folder.path().display(), seed.address);

    // The moments are drawn so that all of them fall into the download, whatever each start costs.
    let (mut have, mut killed) = (0, 0);
    while killed < kills {
        let before = seed.handle.traffic().blob_out;
        let share = (size - have) / (kills - killed + 1);
        let until = before + dice.below(2 * share.max(1));
        let mut child = spawn(&orders);
        let began = std::time::Instant::now();
        while seed.handle.traffic().blob_out < until.max(before + 1) && child.try_wait().unwrap().is_none() {
            assert!(began.elapsed() < PATIENCE, "the child does not download; seed {dice_seed}");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        child.kill().unwrap();
        child.wait().unwrap();
        killed += 1;
        let store = Store::open(folder.path()).unwrap();
        if store.has_blob(hash).unwrap() {
            break;
        }
        let kept = store.begin_download(hash, size).unwrap();
        assert!(kept.have_bytes() >= have, "what was there is lost; seed {dice_seed}");
        have = kept.have_bytes();
    }
    let status = tokio::task::spawn_blocking(move || spawn(&orders).wait()).await.unwrap().unwrap();
    assert!(status.success(), "the last process failed; seed {dice_seed}");
    let store = Store::open(folder.path()).unwrap();
    store.verify_blob(hash).unwrap();
    // Proofs and frames are 1 % of the payload; the rest was sent more than once, or was on its way when the kill came.
    let sent = seed.handle.traffic().blob_out;
    let twice = sent.saturating_sub(size + size / 100);
    println!("{killed} kills of {} MiB: {:.1} MiB sent twice, seed {dice_seed}", size / MIB, twice as f64 / MIB as f64);
    // A block (512 KiB) on its way and one being written; few kills may be unlucky ones, many must keep to the bar.
    let most = (kills * MIB).min(64 * MIB);
    assert!(twice <= most, "{twice} bytes were sent twice in {killed} kills; seed {dice_seed}");
    assert!(killed > kills / 2, "only {killed} kills met the download; seed {dice_seed}");
}
