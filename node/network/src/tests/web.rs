//! Seeds that look like web servers, and names that lead to them, with an authority and a name server of the test's own.

use std::path::{Path, PathBuf};

use hickory_resolver::config::{NameServerConfig, ResolverConfig, ResolverOpts};
use rcgen::{BasicConstraints, Certificate, CertificateParams, IsCa, KeyPair};
use tokio::net::UdpSocket;

use super::*;
use crate::web::{Identity, Web};

const HOST: &str = "seed.test";

/// An authority as an institution has one, in a folder.
struct Authority {
    folder: TempDir,
    certificate: Certificate,
    key: KeyPair,
}

impl Authority {
    fn new() -> Self {
        let (folder, key) = (TempDir::new().unwrap(), KeyPair::generate().unwrap());
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&key).unwrap();
        std::fs::write(folder.path().join("ca.pem"), certificate.pem()).unwrap();
        Self { folder, certificate, key }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("ca.pem")
    }

    /// What a host shows that this authority vouches for.
    fn host(&self, name: &str) -> Web {
        let key = KeyPair::generate().unwrap();
        let shown = CertificateParams::new(vec![name.to_owned()]).unwrap().signed_by(&key, &self.certificate, &self.key).unwrap();
        let files = ["host.pem", "host.key"].map(|file| self.folder.path().join(file));
        std::fs::write(&files[0], shown.pem()).unwrap();
        std::fs::write(&files[1], key.serialize_pem()).unwrap();
        Web::new(Some(Identity { certificate: &files[0], key: &files[1] }), None).unwrap()
    }
}

/// The type of a question or an answer for an address, and for text.
const A: u16 = 1;
const TXT: u16 = 16;

/// A name server that says 127.0.0.1 of every name and gives these texts, and how to ask it.
async fn name_server(texts: Vec<String>) -> (ResolverConfig, ResolverOpts) {
    let socket = UdpSocket::bind(("127.0.0.1", 0)).await.unwrap();
    let mut server = NameServerConfig::udp([127, 0, 0, 1].into());
    server.connections[0].port = socket.local_addr().unwrap().port();
    tokio::spawn(async move {
        let mut query = [0; 512];
        while let Ok((length, from)) = socket.recv_from(&mut query).await {
            // The name ends with an empty label; its type and class follow.
            let end = 12 + query[12..length].iter().position(|byte| *byte == 0).unwrap() + 5;
            let kind = u16::from_be_bytes([query[end - 4], query[end - 3]]);
            let data: Vec<Vec<u8>> = match kind {
                A => vec![vec![127, 0, 0, 1]],
                TXT => texts.iter().map(|text| [&[text.len() as u8], text.as_bytes()].concat()).collect(),
                _ => Vec::new(),
            };
            let mut answer = query[..end].to_vec();
            // An answer that knows all about the one question; no further sections.
            answer[2..12].copy_from_slice(&[0x84, 0, 0, 1, 0, data.len() as u8, 0, 0, 0, 0]);
            for data in data {
                answer.extend([0xc0, 12, 0, kind as u8, 0, 1, 0, 0, 0, 60, 0, data.len() as u8]);
                answer.extend(data);
            }
            let _ = socket.send_to(&answer, from).await;
        }
    });
    (ResolverConfig::from_name_servers(vec![server]), ResolverOpts::default())
}

/// A seed behind `/wss`, and its address by name.
async fn seed(web: Web) -> (Peer, Multiaddr) {
    let mut config = config(1, "/ip4/127.0.0.1/tcp/0/wss", &[]);
    config.reach.web = web;
    let seed = start(config).await;
    let address = seed.address.to_string().replace("/ip4/127.0.0.1/", &format!("/dns4/{HOST}/"));
    assert!(address.contains("/wss/p2p/"), "{address}");
    (seed, address.parse().unwrap())
}

async fn member(secret: u8, dials: &Multiaddr, trusts: Option<&Path>) -> Peer {
    let mut config = config(secret, TCP, &[dials]);
    let (resolver, options) = name_server(Vec::new()).await;
    config.reach.web = Web::new(None, trusts).unwrap().resolving(resolver, options);
    start(config).await
}

/// Why the peer does not believe its bootstrap address.
async fn distrusts(peer: &mut Peer) -> (Multiaddr, String) {
    peer.expect("doubt", |event| match event {
        NetworkEvent::Distrusted { address, why } => Some((address, why)),
        NetworkEvent::PeerConnected(_) => panic!("it is connected"),
        _ => None,
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_seed_of_a_trusted_authority_is_reached_as_a_web_server_is_and_carries_a_blob() {
    let authority = Authority::new();
    let (mut seed, address) = seed(authority.host(HOST)).await;
    let mut member = member(2, &address, Some(&authority.path())).await;
    member.connected_to(seed.id()).await;
    seed.connected_to(member.id()).await;
    let bytes = content(300_000);
    let (hash, size) = seed.store.put_blob(&bytes).unwrap();
    member.handle.fetch(hash, size, vec![seed.id()]).unwrap();
    member.download(hash).await.unwrap();
    assert_eq!(member.bytes_of(hash), bytes);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_does_not_trust_the_authority_is_told_so_once_and_not_connected() {
    let (authority, stranger) = (Authority::new(), Authority::new());
    let (seed, address) = seed(authority.host(HOST)).await;
    // Only the web's authorities, or another institution's.
    for (secret, trusts) in [(2, None), (3, Some(stranger.path()))] {
        let mut member = member(secret, &address, trusts.as_deref()).await;
        let (at, why) = distrusts(&mut member).await;
        assert_eq!((at, why.as_str()), (address.clone(), "its TLS certificate is not from an authority that is trusted here"));
        // It goes on dialling, and does not go on complaining.
        tokio::time::sleep(Duration::from_secs(3)).await;
        while let Ok(event) = member.events.try_recv() {
            assert!(!matches!(event, NetworkEvent::Distrusted { .. } | NetworkEvent::PeerConnected(_)), "{event:?}");
        }
        assert!(seed.handle.connected_peers().is_empty());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_of_another_host_is_not_believed() {
    let authority = Authority::new();
    let (seed, address) = seed(authority.host("elsewhere.test")).await;
    let mut member = member(2, &address, Some(&authority.path())).await;
    assert_eq!(distrusts(&mut member).await.1, "its TLS certificate is for another host");
    assert!(seed.handle.connected_peers().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dnsaddr_leads_to_every_address_that_its_texts_list() {
    let (tcp, quic) = (start(config(1, TCP, &[])).await, start(config(2, QUIC, &[])).await);
    let named = tcp.address.to_string().replace("/ip4/127.0.0.1/", "/dns4/host.test/");
    let texts = vec![format!("dnsaddr={named}"), format!("dnsaddr={}", quic.address), "v=spf1 -all".to_owned(), "dnsaddr=junk".to_owned()];
    let (resolver, options) = name_server(texts).await;
    // With a peer's name at the end, only what leads to that peer.
    let addresses = [&tcp, &quic].map(|peer| format!("/dnsaddr/{HOST}/p2p/{}", peer.id()).parse().unwrap());
    let mut config = config(3, TCP, &addresses.each_ref());
    config.reach.web = Web::default().resolving(resolver.clone(), options.clone());
    config.limits.peers_target = 0;
    let mut member = start(config.clone()).await;
    member.connected_to(tcp.id()).await;
    member.connected_to(quic.id()).await;
    // Without one, whoever answers first.
    config.secret = [4; 32];
    config.bootstrap = vec![format!("/dnsaddr/{HOST}").parse().unwrap()];
    let mut other = start(config).await;
    other.expect("a connection", |event| matches!(event, NetworkEvent::PeerConnected(_)).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_no_name_server_is_named_numbers_are_dialled_all_the_same() {
    let mut seed = start(config(1, TCP, &[])).await;
    let name = "/dns4/seed.test/tcp/1".parse().unwrap();
    let mut config = config(2, TCP, &[&name, &seed.address]);
    // What a system without any resolv.conf comes to.
    config.reach.web = Web::default().resolving(ResolverConfig::default(), ResolverOpts::default());
    let mut member = start(config).await;
    member.connected_to(seed.id()).await;
    seed.connected_to(member.id()).await;
}
