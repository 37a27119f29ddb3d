//! Who else is there: a peer that misses neighbours asks one it has for a few it knows.
//!
//! ```text
//! question  nothing
//! answer    count u8 <= 8 | each: length u8, name | count u8 <= 4 | each: length u8, address
//! ```
//! An answer is a hint. Whoever is named proves its name when it is dialled, and how many are dialled is the asker's own
//! choice. Nothing is looked up by key in this network, so nothing keeps tables, walks or refreshes: a question and its
//! answer are less than a KiB, and a peer with neighbours enough asks nobody.

use std::collections::HashMap;
use std::io;
use std::time::Duration;

use futures::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use libp2p::request_response::{self, ProtocolSupport};
use libp2p::{Multiaddr, PeerId, StreamProtocol};
use rand::seq::SliceRandom;
use tokio::time::Instant;

use super::limits::{REFERRAL_ADDRESSES_MAX, REFERRAL_AGAIN, REFERRAL_AGAIN_LONGEST, REFERRALS_MAX};

pub const REFERRAL_PROTOCOL: StreamProtocol = StreamProtocol::new("/mingle/peers/1");

/// An answer is small: who takes longer has gone.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Questions of one connection at a time.
const STREAMS_MAX: usize = 2;

/// A peer and where it may be dialled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Referral {
    pub peer: PeerId,
    pub addresses: Vec<Multiaddr>,
}

pub type Behaviour = request_response::Behaviour<ReferralCodec>;
pub type Event = request_response::Event<(), Vec<Referral>>;

/// What carries the protocol.
pub fn behaviour() -> Behaviour {
    let config = request_response::Config::default().with_request_timeout(TIMEOUT).with_max_concurrent_streams(STREAMS_MAX);
    request_response::Behaviour::with_codec(ReferralCodec, [(REFERRAL_PROTOCOL, ProtocolSupport::Full)], config)
}

/// At most so many as an answer holds, those that can surely be dialled (by `sure`) before the others, else by chance.
pub fn choose(mut known: Vec<Referral>, sure: impl Fn(&PeerId) -> bool) -> Vec<Referral> {
    known.shuffle(&mut rand::rng());
    known.sort_by_key(|referral| !sure(&referral.peer));
    known.truncate(REFERRALS_MAX);
    for referral in &mut known {
        referral.addresses.truncate(REFERRAL_ADDRESSES_MAX);
    }
    known
}

/// When which neighbour was asked: each again after a while, which doubles, because small networks always miss some.
#[derive(Default)]
pub struct Asked(HashMap<PeerId, (Instant, u32)>);

impl Asked {
    /// One of `neighbours` that may be asked now; it counts as asked.
    pub fn next<'a>(&mut self, neighbours: impl Iterator<Item = &'a PeerId>, now: Instant) -> Option<PeerId> {
        let waited = |(at, times): &(Instant, u32)| {
            let pause = REFERRAL_AGAIN.saturating_mul(1 << times.saturating_sub(1).min(16)).min(REFERRAL_AGAIN_LONGEST);
            now.saturating_duration_since(*at) >= pause
        };
        let mut ready = neighbours.filter(|peer| self.0.get(peer).is_none_or(waited));
        let peer = *ready.next()?;
        let entry = self.0.entry(peer).or_insert((now, 0));
        *entry = (now, entry.1.saturating_add(1));
        Some(peer)
    }

    /// Remembers only who is still a neighbour.
    pub fn retain(&mut self, is_neighbour: impl Fn(&PeerId) -> bool) {
        self.0.retain(|peer, _| is_neighbour(peer));
    }
}

#[derive(Clone)]
pub struct ReferralCodec;

fn refused(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

async fn read_u8(io: &mut (impl AsyncRead + Unpin + Send)) -> io::Result<usize> {
    let mut byte = [0];
    io.read_exact(&mut byte).await?;
    Ok(usize::from(byte[0]))
}

/// At most 255 bytes.
async fn read_short(io: &mut (impl AsyncRead + Unpin + Send)) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; read_u8(io).await?];
    io.read_exact(&mut bytes).await?;
    Ok(bytes)
}

async fn read_count(io: &mut (impl AsyncRead + Unpin + Send), max: usize) -> io::Result<usize> {
    let count = read_u8(io).await?;
    if count <= max { Ok(count) } else { Err(refused("more peers or addresses are named than one answer may hold")) }
}

fn push_short(to: &mut Vec<u8>, bytes: &[u8]) {
    if let Ok(length) = u8::try_from(bytes.len()) {
        to.push(length);
        to.extend_from_slice(bytes);
    }
}

fn to_bytes(referrals: &[Referral]) -> Vec<u8> {
    let referrals: Vec<&Referral> = referrals.iter().take(REFERRALS_MAX).collect();
    let mut bytes = vec![referrals.len() as u8];
    for Referral { peer, addresses } in referrals {
        push_short(&mut bytes, &peer.to_bytes());
        let fitting = addresses.iter().filter(|address| address.len() <= usize::from(u8::MAX)).take(REFERRAL_ADDRESSES_MAX);
        let fitting: Vec<Vec<u8>> = fitting.map(Multiaddr::to_vec).collect();
        bytes.push(fitting.len() as u8);
        fitting.iter().for_each(|address| push_short(&mut bytes, address));
    }
    bytes
}

async fn read(io: &mut (impl AsyncRead + Unpin + Send)) -> io::Result<Vec<Referral>> {
    let mut referrals = Vec::new();
    for _ in 0..read_count(io, REFERRALS_MAX).await? {
        let peer = PeerId::from_bytes(&read_short(io).await?).map_err(|_| refused("a peer's name is none"))?;
        let mut addresses = Vec::new();
        for _ in 0..read_count(io, REFERRAL_ADDRESSES_MAX).await? {
            let address = Multiaddr::try_from(read_short(io).await?).map_err(|_| refused("a peer's address is none"))?;
            addresses.push(address);
        }
        referrals.push(Referral { peer, addresses });
    }
    Ok(referrals)
}

impl request_response::Codec for ReferralCodec {
    type Protocol = StreamProtocol;
    type Request = ();
    type Response = Vec<Referral>;

    async fn read_request<T: AsyncRead + Unpin + Send>(&mut self, _: &StreamProtocol, _: &mut T) -> io::Result<()> {
        Ok(())
    }

    async fn read_response<T: AsyncRead + Unpin + Send>(&mut self, _: &StreamProtocol, io: &mut T) -> io::Result<Vec<Referral>> {
        read(io).await
    }

    async fn write_request<T: AsyncWrite + Unpin + Send>(&mut self, _: &StreamProtocol, io: &mut T, (): ()) -> io::Result<()> {
        io.flush().await
    }

    async fn write_response<T: AsyncWrite + Unpin + Send>(
        &mut self,
        _: &StreamProtocol,
        io: &mut T,
        referrals: Vec<Referral>,
    ) -> io::Result<()> {
        io.write_all(&to_bytes(&referrals)).await?;
        io.flush().await
    }
}

#[cfg(test)]
mod tests {
    use futures::executor::block_on;

    use super::*;

    fn referral(addresses: usize) -> Referral {
        let address = |port| format!("/ip4/10.0.0.1/udp/{port}/quic-v1").parse().unwrap();
        Referral { peer: PeerId::random(), addresses: (1..=addresses).map(address).collect() }
    }

    fn from_bytes(bytes: &[u8]) -> io::Result<Vec<Referral>> {
        block_on(read(&mut &*bytes))
    }

    #[test]
    fn an_answer_survives_and_is_bounded_before_it_is_written() {
        let referrals: Vec<Referral> = (0..3).map(referral).collect();
        assert_eq!(from_bytes(&to_bytes(&referrals)).unwrap(), referrals);
        assert_eq!(from_bytes(&to_bytes(&[])).unwrap(), []);
        let many: Vec<Referral> = (0..100).map(|_| referral(100)).collect();
        let bytes = to_bytes(&many);
        assert!(bytes.len() < 1024, "{}", bytes.len());
        let read = from_bytes(&bytes).unwrap();
        assert_eq!((read.len(), read[0].addresses.len()), (REFERRALS_MAX, REFERRAL_ADDRESSES_MAX));
    }

    #[test]
    fn answers_that_no_honest_peer_writes_are_refused() {
        let honest = to_bytes(&[referral(2)]);
        assert!(from_bytes(&honest[..honest.len() - 1]).is_err());
        assert!(from_bytes(&[REFERRALS_MAX as u8 + 1]).is_err());
        assert!(from_bytes(&[1, 3, 1, 2, 3, 0]).is_err(), "no name");
        let mut too_many = honest.clone();
        too_many[2 + honest[1] as usize] = REFERRAL_ADDRESSES_MAX as u8 + 1;
        assert!(from_bytes(&too_many).is_err());
        assert!(from_bytes(&[]).is_err());
    }

    #[test]
    fn those_that_can_be_dialled_are_named_first() {
        let known: Vec<Referral> = (0..50).map(|_| referral(1)).collect();
        let sure: Vec<PeerId> = known[..5].iter().map(|referral| referral.peer).collect();
        let chosen = choose(known, |peer| sure.contains(peer));
        assert_eq!(chosen.len(), REFERRALS_MAX);
        assert!(chosen[..5].iter().all(|referral| sure.contains(&referral.peer)));
    }

    #[test]
    fn neighbours_are_asked_in_turn_and_seldom_again() {
        let (one, two) = (PeerId::random(), PeerId::random());
        let (mut asked, mut now) = (Asked::default(), Instant::now());
        let neighbours = [one, two];
        let next = |asked: &mut Asked, now| asked.next(neighbours.iter(), now);
        assert_eq!((next(&mut asked, now), next(&mut asked, now), next(&mut asked, now)), (Some(one), Some(two), None));
        now += REFERRAL_AGAIN;
        assert_eq!(next(&mut asked, now), Some(one));
        now += REFERRAL_AGAIN;
        assert_eq!((next(&mut asked, now), next(&mut asked, now)), (Some(two), None), "the pause has doubled");
        asked.retain(|_| false);
        assert_eq!(next(&mut asked, now), Some(one));
    }
}
