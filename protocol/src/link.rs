//! A round in one line of chat: its identity with a checksum, and where to ask for its file.
//!
//! ```text
//! mingle:<52 characters of identity, 6 of checksum>?peer=<multiaddress>&peer=...
//! ```
//!
//! The characters are those of bech32m (BIP 350), with `mingle` as the prefix that the checksum covers: no two of them are
//! easily mistaken for each other, any four wrong ones are noticed, and a single wrong one can be pointed at. The identity
//! is all that has to arrive whole: whoever answers, the file is believed because it has this identity.

use std::fmt;
use std::str::FromStr;

use crate::hash::ContentHash;
use crate::round::{PEERS_MAX, RoundId};

/// What every link begins with.
pub const SCHEME: &str = "mingle:";
const PREFIX: &[u8] = b"mingle";
const ALPHABET: &[u8; 32] = b"qpzry9x8gf2tvdw0s3jn54khce6mua7l";
const DIGIT_BITS: u32 = 5;
const IDENTITY_BITS: usize = 256;
const IDENTITY_CHARS: usize = 52;
const CHECKSUM_CHARS: usize = 6;
const CHARS: usize = IDENTITY_CHARS + CHECKSUM_CHARS;
/// The constant of bech32m.
const RESIDUE: u32 = 0x2bc8_30a3;
/// Longer than any link with as many addresses as are allowed.
const LINK_BYTES_MAX: usize = 16_384;

/// A round's identity, and addresses of peers that have its file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RoundLink {
    pub round: RoundId,
    /// Multiaddresses, as text.
    pub peers: Vec<String>,
}

/// Why a text is no link.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LinkError {
    #[error("a link to a round begins with \"{SCHEME}\"")]
    Scheme,
    #[error("the link is {found} bytes long, but at most {LINK_BYTES_MAX} are allowed")]
    TooLong { found: usize },
    #[error("the link is incomplete: {found} of {CHARS} characters follow \"{SCHEME}\"")]
    Incomplete { found: usize },
    #[error("the link has {found} characters after \"{SCHEME}\", but {CHARS} belong there")]
    Overlong { found: usize },
    #[error("character {place} after \"{SCHEME}\" is {found:?}, which is in no link")]
    Character { place: usize, found: char },
    #[error("the link mixes capital and small letters")]
    Case,
    /// Counted from 1.
    #[error(
        "the link was changed on the way: character {place} after \"{SCHEME}\" is {found:?}, but everything fits if it is {expected:?}"
    )]
    One { place: usize, found: char, expected: char },
    #[error("the link was changed on the way: more than one of the {CHARS} characters after \"{SCHEME}\" is wrong")]
    Several,
    #[error("the link's end does not belong to it: {found:?}")]
    Query { found: String },
    #[error("the link names {found} peers, but at most {PEERS_MAX} are allowed")]
    TooManyPeers { found: usize },
}

impl RoundLink {
    /// Whether a text is meant as a link rather than as the name of a file.
    pub fn is_meant(text: &str) -> bool {
        text.get(..SCHEME.len()).is_some_and(|begin| begin.eq_ignore_ascii_case(SCHEME))
    }
}

impl fmt::Display for RoundLink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = gather(&bits(&self.round.0.0, u8::BITS), DIGIT_BITS);
        let checksum = checksum(&digits);
        let characters: String = digits.iter().chain(&checksum).map(|digit| char::from(character(*digit))).collect();
        write!(f, "{SCHEME}{characters}")?;
        for (index, peer) in self.peers.iter().enumerate() {
            write!(f, "{}peer={}", if index == 0 { '?' } else { '&' }, escaped(peer))?;
        }
        Ok(())
    }
}

impl FromStr for RoundLink {
    type Err = LinkError;

    fn from_str(text: &str) -> Result<Self, LinkError> {
        // Chats break lines and add spaces around what is copied.
        let text: String = text.chars().filter(|character| !character.is_whitespace()).collect();
        if text.len() > LINK_BYTES_MAX {
            return Err(LinkError::TooLong { found: text.len() });
        }
        let rest = Some(&text).filter(|text| Self::is_meant(text)).and_then(|text| text.get(SCHEME.len()..)).ok_or(LinkError::Scheme)?;
        let (name, query) = rest.split_once('?').unwrap_or((rest, ""));
        Ok(Self { round: identity(name)?, peers: peers(query)? })
    }
}

fn identity(name: &str) -> Result<RoundId, LinkError> {
    if name.chars().any(|c| c.is_ascii_uppercase()) && name.chars().any(|c| c.is_ascii_lowercase()) {
        return Err(LinkError::Case);
    }
    let mut digits = Vec::new();
    for (index, found) in name.chars().enumerate() {
        let digit = ALPHABET.iter().position(|known| char::from(*known) == found.to_ascii_lowercase());
        let digit = digit.and_then(|digit| u8::try_from(digit).ok());
        digits.push(digit.ok_or(LinkError::Character { place: index.saturating_add(1), found })?);
    }
    match digits.len() {
        found if found < CHARS => return Err(LinkError::Incomplete { found }),
        found if found > CHARS => return Err(LinkError::Overlong { found }),
        _ => {}
    }
    if residue(&digits) != RESIDUE {
        return Err(single(&mut digits).unwrap_or(LinkError::Several));
    }
    let (digits, _) = digits.split_at_checked(IDENTITY_CHARS).ok_or(LinkError::Several)?;
    let bits = bits(digits, DIGIT_BITS);
    // The last character has four bits more than there is identity.
    let (identity, padding) = bits.split_at_checked(IDENTITY_BITS).ok_or(LinkError::Several)?;
    match gather(identity, u8::BITS).try_into() {
        Ok(identity) if padding.iter().all(|bit| !bit) => Ok(RoundId(ContentHash(identity))),
        _ => Err(LinkError::Several),
    }
}

/// The bits of numbers of `width` bits, the highest first.
fn bits(numbers: &[u8], width: u32) -> Vec<bool> {
    numbers.iter().flat_map(|number| (0..width).rev().map(move |bit| number.wrapping_shr(bit) & 1 == 1)).collect()
}

/// Numbers of `width` bits; what the last one lacks is zero.
fn gather(bits: &[bool], width: u32) -> Vec<u8> {
    let width = width as usize;
    let number = |bits: &[bool]| bits.iter().copied().chain([false; 8]).take(width).fold(0u8, |number, bit| (number << 1) | u8::from(bit));
    bits.chunks(width).map(number).collect()
}

/// The one change of one character that makes everything fit, where there is one.
fn single(digits: &mut [u8]) -> Option<LinkError> {
    for index in 0..digits.len() {
        let found = *digits.get(index)?;
        for other in 0..32u8 {
            *digits.get_mut(index)? = other;
            if residue(digits) == RESIDUE {
                let shown = |digit| char::from(character(digit));
                return Some(LinkError::One { place: index.saturating_add(1), found: shown(found), expected: shown(other) });
            }
        }
        *digits.get_mut(index)? = found;
    }
    None
}

fn character(digit: u8) -> u8 {
    ALPHABET.get(usize::from(digit)).copied().unwrap_or(b'q')
}

fn checksum(digits: &[u8]) -> [u8; CHECKSUM_CHARS] {
    let padded: Vec<u8> = digits.iter().copied().chain([0; CHECKSUM_CHARS]).collect();
    let residue = residue(&padded) ^ RESIDUE;
    [25, 20, 15, 10, 5, 0].map(|shift| u8::try_from(residue.wrapping_shr(shift) & 31).unwrap_or(0))
}

/// The remainder of the prefix and the digits by bech32's polynomial.
fn residue(digits: &[u8]) -> u32 {
    const GENERATOR: [u32; 5] = [0x3b6a_57b2, 0x2650_8e6d, 0x1ea1_19fa, 0x3d42_33dd, 0x2a14_62b3];
    let prefix = PREFIX.iter().map(|c| c >> 5).chain([0]).chain(PREFIX.iter().map(|c| c & 31));
    prefix.chain(digits.iter().copied()).fold(1u32, |sum, digit| {
        let shifted = ((sum & 0x1ff_ffff) << 5) ^ u32::from(digit);
        let top = sum >> 25;
        GENERATOR.iter().zip(0u32..).filter(|(_, bit)| top.wrapping_shr(*bit) & 1 == 1).fold(shifted, |sum, (term, _)| sum ^ term)
    })
}

fn peers(query: &str) -> Result<Vec<String>, LinkError> {
    let mut peers = Vec::new();
    for part in query.split('&').filter(|part| !part.is_empty()) {
        let refuse = || LinkError::Query { found: part.chars().take(80).collect() };
        // Words of later versions are not for us.
        if let ("peer", peer) = part.split_once('=').ok_or_else(refuse)? {
            peers.push(unescaped(peer).ok_or_else(refuse)?);
        }
    }
    if peers.len() > PEERS_MAX { Err(LinkError::TooManyPeers { found: peers.len() }) } else { Ok(peers) }
}

/// `%` and two hex digits for what would end the address or the link.
fn escaped(peer: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/.:-_~@+,".contains(&byte);
    peer.bytes().map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}

fn unescaped(text: &str) -> Option<String> {
    let mut bytes = Vec::new();
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let mut digit = || char::from(rest.next()?).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
        bytes.push((digit()? << 4) | digit()?);
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::arithmetic_side_effects)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn link(peers: &[&str]) -> RoundLink {
        RoundLink { round: RoundId(ContentHash::of(b"a round")), peers: peers.iter().map(ToString::to_string).collect() }
    }

    #[test]
    fn a_link_reads_as_it_was_written() {
        let text = link(&["/dns4/peer.example/tcp/4001", "/ip4/10.0.0.7/udp/4001/quic-v1/p2p/12D3KooW"]).to_string();
        assert_eq!(text.split_once('?').unwrap().1, "peer=/dns4/peer.example/tcp/4001&peer=/ip4/10.0.0.7/udp/4001/quic-v1/p2p/12D3KooW");
        assert_eq!(text.parse::<RoundLink>().unwrap().to_string(), text);
        let bare = link(&[]).to_string();
        assert_eq!(bare.len(), SCHEME.len() + CHARS);
        assert_eq!(bare.to_uppercase().parse::<RoundLink>().unwrap(), link(&[]));
        // As a chat may break it.
        let (begin, end) = bare.split_at(30);
        assert_eq!(format!(" {begin}\n  {end} ").parse::<RoundLink>().unwrap(), link(&[]));
    }

    #[test]
    fn links_are_those_of_another_implementation() {
        let vectors: serde_json::Value = serde_json::from_str(include_str!("../vectors/links.json")).unwrap();
        for vector in vectors.as_array().unwrap() {
            let round: RoundId = vector["round"].as_str().unwrap().parse().unwrap();
            assert_eq!(RoundLink { round, peers: vec![] }.to_string(), vector["link"].as_str().unwrap());
        }
    }

    #[test]
    fn what_is_wrong_is_pointed_at() {
        let read = |text: &str| text.parse::<RoundLink>().unwrap_err();
        let text = link(&[]).to_string();
        assert_eq!(read("round.json"), LinkError::Scheme);
        assert_eq!(read(SCHEME), LinkError::Incomplete { found: 0 });
        assert_eq!(read(&text[..40]), LinkError::Incomplete { found: 33 });
        assert_eq!(read(&format!("{text}q")), LinkError::Overlong { found: 59 });
        assert!(matches!(read(&text.replacen(':', ":b", 1)), LinkError::Character { place: 1, found: 'b' }));
        assert_eq!(read(&format!("{}{}", &text[..20], text[20..].to_uppercase())), LinkError::Case);
        let found = text.chars().nth(SCHEME.len() + 10).unwrap();
        let other = if found == 'q' { 'p' } else { 'q' };
        let bent: String = text.chars().enumerate().map(|(index, c)| if index == SCHEME.len() + 10 { other } else { c }).collect();
        assert_eq!(read(&bent), LinkError::One { place: 11, found: other, expected: found });
        assert!(matches!(read(&format!("{text}?peer")), LinkError::Query { .. }));
        assert!(matches!(read(&format!("{text}?peer=%4")), LinkError::Query { .. }));
        assert!(matches!(read(&format!("{text}?peer=%ff")), LinkError::Query { .. }));
        assert_eq!(read(&format!("{text}?{}", "peer=a&".repeat(17))), LinkError::TooManyPeers { found: 17 });
        assert!(matches!(read(&format!("{text}?peer={}", "a".repeat(LINK_BYTES_MAX))), LinkError::TooLong { .. }));
        assert_eq!(format!("{text}?peer=a&later=word").parse::<RoundLink>().unwrap(), link(&["a"]));
    }

    proptest! {
        #[test]
        fn every_identity_and_every_address_come_back(id in proptest::array::uniform32(0u8..), peers in proptest::collection::vec("[^\\s]{1,40}", 0..5)) {
            let peers: Vec<String> = peers.into_iter().map(|peer| peer.chars().filter(|c| !c.is_whitespace()).collect()).collect();
            let link = RoundLink { round: RoundId(ContentHash(id)), peers };
            prop_assert_eq!(link.to_string().parse::<RoundLink>().unwrap(), link);
        }

        #[test]
        fn up_to_four_wrong_characters_are_never_believed(id in proptest::array::uniform32(0u8..), changes in proptest::collection::vec((0..CHARS, 1u8..32), 1..5)) {
            let link = RoundLink { round: RoundId(ContentHash(id)), peers: vec![] };
            let mut text = link.to_string().into_bytes();
            for (place, by) in &changes {
                let digit = ALPHABET.iter().position(|c| *c == text[SCHEME.len() + place]).unwrap() as u8;
                text[SCHEME.len() + place] = ALPHABET[usize::from((digit + by) % 32)];
            }
            let text = String::from_utf8(text).unwrap();
            prop_assume!(text != link.to_string());
            let read = text.parse::<RoundLink>();
            prop_assert!(matches!(read, Err(LinkError::One { .. } | LinkError::Several)), "{:?}", read);
            // The one that is pointed at is the one that is wrong.
            if let (Err(LinkError::One { place, expected, .. }), [_]) = (read, &changes[..]) {
                let mut mended = text.into_bytes();
                mended[SCHEME.len() + place - 1] = expected as u8;
                prop_assert_eq!(String::from_utf8(mended).unwrap(), link.to_string());
            }
        }

        #[test]
        fn no_text_makes_it_panic(text in "\\PC{0,80}", query in "\\PC{0,40}") {
            let _ = text.parse::<RoundLink>();
            let _ = format!("{SCHEME}{text}?{query}").parse::<RoundLink>();
            let _ = format!("{}?{query}", RoundLink { round: RoundId(ContentHash::default()), peers: vec![] }).parse::<RoundLink>();
        }
    }
}
