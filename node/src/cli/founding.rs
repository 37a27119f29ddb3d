//! Options that say who belongs to a new round: its founders, members and readers, and the first peers to dial.

use std::collections::BTreeSet;

use anyhow::Result;
use mingle_protocol::identity::{MemberKey, Roster, SecretKey};
use mingle_protocol::standing::{Founders, Readers};

use super::args::{HomeArgs, multiaddr};
use crate::network::{Multiaddr, PeerId, member_of};

#[derive(clap::Args)]
pub struct FoundingArgs {
    /// Public key of a member that may announce; given several times. Without any, everybody may
    #[arg(long = "member", value_name = "KEY")]
    members: Vec<MemberKey>,
    /// Public key of a founder beside this home's, who may sign the round and change who belongs; given several times
    #[arg(long = "founder", value_name = "KEY")]
    founders: Vec<MemberKey>,
    /// How many founders must agree
    #[arg(long, value_name = "M", default_value_t = 1)]
    threshold: u32,
    /// Nobody signs the round, and nobody can ever change who belongs
    #[arg(long, conflicts_with_all = ["founders", "threshold"])]
    no_founders: bool,
    /// Public key of a reader that may follow a round with members; given several times
    #[arg(long = "reader", value_name = "KEY", requires = "members")]
    readers: Vec<MemberKey>,
    /// Everybody may follow, also where members are listed; otherwise such a round is private
    #[arg(long, conflicts_with = "readers")]
    readers_open: bool,
    /// Address of a peer that whoever has the round file dials; given several times. In a private round the peer becomes a
    /// reader where its address ends in its name (/p2p/...)
    #[arg(long = "peer", value_name = "MULTIADDR", value_parser = multiaddr)]
    peers: Vec<Multiaddr>,
    #[command(flatten)]
    home: HomeArgs,
}

/// Who belongs to a new round.
pub struct Founding {
    pub roster: Roster,
    pub founders: Option<Founders>,
    pub readers: Option<Readers>,
    pub peers: Vec<String>,
    /// The founder that signs now.
    pub signer: Option<SecretKey>,
}

impl FoundingArgs {
    /// Makes the key of this home when it has none, since that becomes a founder.
    pub fn settle(&self) -> Result<Founding> {
        let (mut founders, mut signer) = (None, None);
        if !self.no_founders {
            let (key, _) = self.home.open()?.key_or_create()?;
            let keys: BTreeSet<MemberKey> = self.founders.iter().copied().chain([key.member()]).collect();
            founders = Some(Founders { keys, threshold: self.threshold });
            signer = Some(key);
        }
        let members: BTreeSet<MemberKey> = self.members.iter().copied().collect();
        let peers = self.peers.iter().map(ToString::to_string).collect();
        if members.is_empty() {
            return Ok(Founding { roster: Roster::Open, founders, readers: None, peers, signer });
        }
        let listed = self.readers.iter().copied().chain(self.peers.iter().flat_map(named_in)).filter(|key| !members.contains(key));
        let readers = (!self.readers_open).then(|| Readers::Listed(listed.collect()));
        Ok(Founding { roster: Roster::Members(members), founders, readers, peers, signer })
    }
}

/// The peers whose names an address holds: the one it ends at, and the relay it may go through.
fn named_in(address: &Multiaddr) -> Vec<MemberKey> {
    let text = address.to_string();
    let names = text.split("/p2p/").skip(1).filter_map(|rest| rest.split('/').next());
    names.filter_map(|name| name.parse::<PeerId>().ok()).filter_map(|peer| member_of(&peer)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::peer_of;

    #[test]
    fn an_address_names_its_peer_and_its_relay() -> Result<()> {
        let keys = [3, 4].map(|number| SecretKey::from_bytes(&[number; 32]).member());
        let names = keys.map(|key| peer_of(&key).map(|peer| peer.to_string()).unwrap_or_default());
        let [one, two] = &names;
        assert_eq!(named_in(&"/dns4/seed.example/tcp/443".parse()?), []);
        assert_eq!(named_in(&format!("/ip4/10.0.0.7/tcp/4001/p2p/{one}").parse()?), [keys[0]]);
        assert_eq!(named_in(&format!("/ip4/10.0.0.7/tcp/4001/p2p/{one}/p2p-circuit/p2p/{two}").parse()?), keys);
        Ok(())
    }
}
