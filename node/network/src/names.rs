//! A peer's libp2p name is its member key in another form, so each follows from the other.

use libp2p::PeerId;
use libp2p::identity::{Keypair, PublicKey, ed25519};
use mingle_protocol::identity::MemberKey;

use super::NetworkError;

/// The network name of a member; `None` when the bytes are no point of the curve.
pub fn peer_of(member: &MemberKey) -> Option<PeerId> {
    let key = ed25519::PublicKey::try_from_bytes(&member.0).ok()?;
    Some(PublicKey::from(key).to_peer_id())
}

/// The member key behind a network name; `None` for peers that are not ed25519 keys.
pub fn member_of(peer: &PeerId) -> Option<MemberKey> {
    /// Multihash code of a name that contains the key itself.
    const IDENTITY: u64 = 0;
    let name = peer.as_ref();
    let key = (name.code() == IDENTITY).then(|| PublicKey::try_decode_protobuf(name.digest()))?.ok()?;
    Some(MemberKey(key.try_into_ed25519().ok()?.to_bytes()))
}

/// The libp2p key pair of a member's secret.
pub fn keypair_of(secret: [u8; 32]) -> Result<Keypair, NetworkError> {
    Keypair::ed25519_from_bytes(secret).map_err(|error| NetworkError::Setup(error.to_string()))
}
