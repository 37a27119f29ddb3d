//! Routers that hide a host behind their own address, by the kernel's connection tracking.

use std::process::{Command, Stdio};

use super::space::{Space, ip};

/// How a router names a host's connections to the outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Nat {
    /// By the port that the host took, whomever it speaks to, as most routers do: two such hosts can meet directly.
    PortPreserving,
    /// By a port drawn anew for everyone it speaks to: nobody can tell where the next connection will come from.
    Symmetric,
}

impl Nat {
    /// Puts `inside` on a private network behind `outside`, whose public interface is named.
    pub(super) fn put_between(self, inside: &Space, outside: &Space, public: &str, number: u8) -> Result<(), String> {
        let (host, router) = (format!("192.168.{number}.2"), format!("192.168.{number}.1"));
        ip(&["link", "add", "lan", "netns", inside.name(), "type", "veth", "peer", "name", "lan", "netns", outside.name()])?;
        outside.batch(&[format!("address add {router}/24 dev lan"), "link set dev lan up".into()])?;
        inside.batch(&[
            format!("address add {host}/24 dev lan"),
            "link set dev lan up".into(),
            format!("route add default via {router}"),
        ])?;
        outside.run(&["sh", "-c", "cat > /proc/sys/net/ipv4/ip_forward"], "1\n")?;
        outside.run(&["nft", "-f", "-"], &self.rules(public))
    }

    /// What comes unasked is dropped before anything is remembered of it. Otherwise a packet of a peer that dials us, come
    /// before ours to it, would take the very port that ours needs; and a TCP connection would be refused aloud.
    fn rules(self, public: &str) -> String {
        let how = match self {
            Self::PortPreserving => "",
            Self::Symmetric => " fully-random",
        };
        format!(
            "table ip lab {{
                chain out {{ type nat hook postrouting priority 100; oifname \"{public}\" masquerade{how}; }}
                chain in {{ type filter hook input priority 0; iifname \"{public}\" ct state new,invalid drop; }}
                chain through {{ type filter hook forward priority 0; iifname \"{public}\" ct state new,invalid drop; }}
            }}\n"
        )
    }
}

/// Whether this machine can have such routers; tried in a namespace for that.
pub fn possible(space: &Space) -> Result<(), String> {
    let found = Command::new("nft").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    match found {
        Ok(status) if status.success() => {}
        _ => return Err("the program nft (package nftables) is not here".into()),
    }
    let rules = Nat::Symmetric.rules("lo");
    space.run(&["nft", "-f", "-"], &rules).map_err(|error| format!("this kernel has no address translation: {error}"))
}
