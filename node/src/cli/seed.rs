//! `mingle seed`: a public peer that others meet at. It announces nothing.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};

use super::args::{PeerArgs, ReachArg};
use super::http::HttpArgs;
use crate::driver::{Goal, Work};
use crate::network::Multiaddr;

/// Where a seed listens when it is not told: the port that other peers try first, on every interface.
const LISTEN: [&str; 4] = ["/ip4/0.0.0.0/udp/4001/quic-v1", "/ip4/0.0.0.0/tcp/4001", "/ip6/::/udp/4001/quic-v1", "/ip6/::/tcp/4001"];

const EXAMPLES: &str = "\
Examples:
  mingle seed --round round.json
  mingle seed --round round.json --ws 443 --external /ip4/203.0.113.5/tcp/4001 --external /ip4/203.0.113.5/tcp/443/ws
  mingle seed --round round.json --wss 443 --tls-cert seed.pem --tls-key seed.key --external /dns4/seed.example/tcp/443/wss
  mingle seed --round round.json --ws 8080 --external /dns4/seed.example/tcp/443/wss    behind a proxy that speaks TLS

It relays what peers behind routers need to meet directly (never an adapter), tells peers whether they can be dialled,
and keeps and serves the round's adapters. Without --external it takes the addresses it listens on for those it is
dialled at, but for that of --wss: its certificate is for a name, which has to be told. In a private round its key must be admitted as a reader.";

#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Also listen for WebSocket connections on this TCP port, such as 443 for peers behind strict firewalls
    #[arg(long, value_name = "PORT")]
    ws: Option<u16>,
    /// Also listen for WebSocket connections inside TLS on this TCP port, as a web server does
    #[arg(long, value_name = "PORT", requires_all = ["tls_cert", "tls_key"])]
    wss: Option<u16>,
    /// Certificate chain (PEM) for --wss, the host's own first
    #[arg(long, value_name = "FILE", requires = "wss")]
    tls_cert: Option<PathBuf>,
    /// Private key (PEM) of the certificate
    #[arg(long, value_name = "FILE", requires = "wss")]
    tls_key: Option<PathBuf>,
    #[command(flatten)]
    peer: PeerArgs,
    #[command(flatten)]
    http: HttpArgs,
}

pub fn run(args: Args) -> Result<ExitCode> {
    let Args { ws, wss, tls_cert, tls_key, mut peer, http } = args;
    ensure!(ws.is_none() || ws != wss, "--ws and --wss cannot listen on the same port");
    let network = &mut peer.network;
    network.reach.reach = ReachArg::Public;
    if network.listen.is_empty() {
        network.listen = LISTEN.iter().filter_map(|address| address.parse().ok()).collect();
        // A machine without IPv6 cannot listen there.
        network.listen.retain(|address| has_ipv6() || !address.to_string().starts_with("/ip6/"));
    }
    for (port, protocol) in [(ws, "ws"), (wss, "wss")] {
        if let Some(port) = port {
            let address: Multiaddr = format!("/ip4/0.0.0.0/tcp/{port}/{protocol}").parse().context("no such port")?;
            network.listen.push(address);
        }
    }
    network.tls.identity = tls_cert.zip(tls_key);
    let mut peer = peer.open()?;
    peer.http = http;
    peer.run(Work::Seed, Goal::default())?;
    Ok(ExitCode::SUCCESS)
}

fn has_ipv6() -> bool {
    std::net::UdpSocket::bind(("::", 0)).is_ok()
}
