//! Where a round comes from: a file, or a link whose peers are asked for the file.
//!
//! What comes over the network is believed because it has the identity that the link names, and is kept in the home, so
//! that the same link is followed only once.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use mingle_protocol::link::RoundLink;
use mingle_protocol::round::{PEERS_MAX, Round, RoundError, RoundFile, RoundId};

use super::args::NetworkArgs;
use crate::home::Home;
use crate::network::Multiaddr;
use crate::network::rounds::get_round;
use crate::network::web::Web;

/// Longest wait for anybody to hand over a round file.
const PATIENCE: Duration = Duration::from_secs(30);

/// Why an answer is not the round file that was asked for.
#[derive(Debug, thiserror::Error)]
enum Wrong {
    #[error("it gave something that is no round file: {0}")]
    NoRound(#[from] RoundError),
    #[error("it gave the file of another round, {found}")]
    Other { found: RoundId },
}

/// Whether a `--round` is a link rather than a file.
pub fn is_link(source: &Path) -> bool {
    source.to_str().is_some_and(RoundLink::is_meant)
}

/// Reads a round file with what is beside its manifest.
pub fn read_file(path: &Path) -> Result<RoundFile> {
    let text = std::fs::read(path).with_context(|| format!("cannot read the round file {}", path.display()))?;
    RoundFile::from_json(&text).with_context(|| format!("{} is no round", path.display()))
}

/// The round of a file or a link.
pub fn read_round(source: &Path, home: &Home) -> Result<Round> {
    read(source, home, &[], &Web::default()).map(|file| file.round)
}

/// The file of a round that is to be run: one that its founders have signed. Peers given besides those of a link are asked
/// too.
pub fn read_signed(source: &Path, home: &Home, network: &NetworkArgs) -> Result<RoundFile> {
    let file = read(source, home, if network.offline { &[] } else { &network.peers }, &network.tls.web()?)?;
    let threshold = file.round.manifest().founders.as_ref().map_or(0, |founders| founders.threshold);
    ensure!(
        file.is_signed(),
        "{} is not signed by its founders: {} of {threshold} signatures are there and valid",
        source.display(),
        file.signers().count()
    );
    Ok(file)
}

/// The round file of a file or a link, as far as it is signed.
pub fn read(source: &Path, home: &Home, peers: &[Multiaddr], web: &Web) -> Result<RoundFile> {
    match source.to_str().filter(|text| RoundLink::is_meant(text)) {
        None => read_file(source),
        Some(link) => follow(&link.parse()?, home, peers, web),
    }
}

/// The file that a link leads to: the one this home has, or one that a peer hands over, which is kept.
pub fn follow(link: &RoundLink, home: &Home, peers: &[Multiaddr], web: &Web) -> Result<RoundFile> {
    let round_home = home.round(link.round);
    let kept = round_home.round_file();
    let mut file = match kept.exists().then(|| read_file(&kept)).transpose()? {
        Some(file) if file.round.id() == link.round => file,
        _ => get(link, home, peers, web)?,
    };
    for peer in &link.peers {
        if file.peers.len() < PEERS_MAX && !file.peers.contains(peer) {
            file.peers.push(peer.clone());
        }
    }
    round_home.keep(&file)?;
    Ok(file)
}

fn get(link: &RoundLink, home: &Home, peers: &[Multiaddr], web: &Web) -> Result<RoundFile> {
    let mut asked = peers.to_vec();
    for peer in &link.peers {
        let address = peer.parse().with_context(|| format!("the link names {peer:?} as a peer, which is no address"))?;
        if !asked.contains(&address) {
            asked.push(address);
        }
    }
    if asked.is_empty() {
        bail!("the link to round {} names no peer to ask for its file", link.round);
    }
    // A private round's peers let in the keys of its roster alone, so the question is asked with this home's own.
    let (key, _) = home.key_or_create()?;
    let check = |bytes: &[u8]| {
        let file = RoundFile::from_json(bytes)?;
        let found = file.round.id();
        if found == link.round { Ok(file) } else { Err(Wrong::Other { found }) }
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start the runtime")?;
    Ok(runtime.block_on(get_round(key.to_bytes(), link.round, asked, web, PATIENCE, check))?)
}
