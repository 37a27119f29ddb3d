//! As much of an IPv4 packet as a wire reads: whither, and how much of it is payload.

use std::net::Ipv4Addr;

const TCP: u8 = 6;
const UDP: u8 = 17;
const UDP_HEADER: usize = 8;

/// What a packet says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet {
    pub from: Ipv4Addr,
    pub to: Ipv4Addr,
    /// Bytes that TCP or UDP carries; 0 of anything else.
    pub payload: usize,
}

impl Packet {
    /// None of what is not IPv4, or cut short.
    pub fn read(bytes: &[u8]) -> Option<Self> {
        let head = bytes.first()?;
        if head >> 4 != 4 {
            return None;
        }
        let address = |at: usize| Some(Ipv4Addr::from(<[u8; 4]>::try_from(bytes.get(at..at + 4)?).ok()?));
        let (from, to) = (address(12)?, address(16)?);
        let inner = bytes.get(usize::from(head & 15) * 4..)?;
        let payload = match *bytes.get(9)? {
            TCP => inner.len().saturating_sub(usize::from(inner.get(12)? >> 4) * 4),
            UDP => inner.len().saturating_sub(UDP_HEADER),
            _ => 0,
        };
        Some(Self { from, to, payload })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet(protocol: u8, inner: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, protocol, 0, 0, 11, 77, 0, 2, 11, 77, 0, 3];
        bytes.extend_from_slice(inner);
        bytes
    }

    #[test]
    fn whither_and_how_much_is_read_and_nothing_else_is_let_in() {
        let (from, to) = (Ipv4Addr::new(11, 77, 0, 2), Ipv4Addr::new(11, 77, 0, 3));
        assert_eq!(Packet::read(&packet(UDP, &[0; 108])), Some(Packet { from, to, payload: 100 }));
        let mut segment = [0; 132];
        segment[12] = 8 << 4;
        assert_eq!(Packet::read(&packet(TCP, &segment)), Some(Packet { from, to, payload: 100 }));
        assert_eq!(Packet::read(&packet(1, &[0; 64])), Some(Packet { from, to, payload: 0 }));
        assert_eq!(Packet::read(&packet(TCP, &[0; 5])), None);
        assert_eq!(Packet::read(&[0x60; 40]), None, "IPv6");
        assert_eq!(Packet::read(&[0x45; 10]), None);
        assert_eq!(Packet::read(&[]), None);
    }
}
