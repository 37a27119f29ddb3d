//! A thousand connections that say nothing, and some that say only garbage.

use futures::StreamExt;
use libp2p::swarm::{SwarmEvent, dummy};
use libp2p::{SwarmBuilder, noise, tcp, yamux};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpSocket;
use tokio::task::JoinSet;

use super::*;

/// Connections that never begin a handshake, and those that finish it and then say nothing.
const MUTE: usize = 600;
const SILENT: usize = 400;
const GARBAGE: usize = 300;
/// How often one that was not let in tries again.
const TRIES: usize = 30;

fn socket_of(address: &Multiaddr) -> std::net::SocketAddr {
    let port = address.iter().find_map(|part| if let libp2p::multiaddr::Protocol::Tcp(port) = part { Some(port) } else { None });
    ([127, 0, 0, 1], port.unwrap()).into()
}

/// Opens a plain TCP connection from 127.0.0.`host`, says `what`, and waits to be cut; how long that took.
async fn mute(to: std::net::SocketAddr, host: u8, what: Vec<u8>) -> Option<Duration> {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(([127, 0, 0, host], 0).into()).unwrap();
    let mut stream = socket.connect(to).await.ok()?;
    let since = Instant::now();
    let _ = stream.write_all(&what).await;
    let mut answer = [0; 1024];
    while stream.read(&mut answer).await.is_ok_and(|read| read > 0) {}
    Some(since.elapsed())
}

/// Shakes hands under a new name and then says nothing, until it is cut; how long that took.
async fn silent(to: Multiaddr, host: usize) -> Option<Duration> {
    let mut swarm = SwarmBuilder::with_new_identity()
        .with_tokio()
        .with_tcp(tcp::Config::default(), noise::Config::new, yamux::Config::default)
        .unwrap()
        .with_behaviour(|_| dummy::Behaviour)
        .unwrap()
        .with_swarm_config(|config| config.with_idle_connection_timeout(PATIENCE * 10))
        .build();
    swarm.listen_on(format!("/ip4/127.0.0.{host}/tcp/0").parse().unwrap()).unwrap();
    let (mut since, mut tries) = (None, 0);
    loop {
        match swarm.select_next_some().await {
            // Only then does a dial leave from that address.
            SwarmEvent::NewListenAddr { .. } => swarm.dial(to.clone()).unwrap(),
            SwarmEvent::ConnectionEstablished { .. } => since = Some(Instant::now()),
            SwarmEvent::ConnectionClosed { .. } => return since.map(|since| since.elapsed()),
            // The others hold every place where hands are shaken: again, like anybody who means it.
            SwarmEvent::OutgoingConnectionError { .. } if tries < TRIES => {
                tries += 1;
                tokio::time::sleep(Duration::from_millis(500)).await;
                swarm.dial(to.clone()).unwrap();
            }
            SwarmEvent::OutgoingConnectionError { .. } => return None,
            _ => {}
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_idle_connections_are_cut_and_leave_room_for_others() {
    let victim = Victim::start().await;
    let honest = Honest::around(&victim, 3).await;
    let before = (victim.moment(), victim.now());
    let to = socket_of(&victim.address);
    let mut idle = JoinSet::new();
    for number in 0..MUTE {
        idle.spawn(mute(to, 2 + (number % 3) as u8, Vec::new()));
    }
    for number in 0..SILENT {
        idle.spawn(silent(victim.address.clone(), 5 + number % 4));
    }
    let cut = async {
        let mut lasted: Vec<Duration> = Vec::new();
        while let Some(ended) = idle.join_next().await {
            lasted.extend(ended.unwrap());
        }
        (lasted.iter().max().copied().unwrap_or_default(), lasted.len())
    };
    // Somebody honest comes while they sit there.
    let newcomer = async {
        let mut newcomer = start(NetworkConfig { allowed: Some([member(200)].into()), ..config(9, TCP, &[&victim.address]) }).await;
        newcomer.connected_to(victim.id).await;
    };
    let (delivered, (longest, let_in), ()) = tokio::join!(honest.talk(), cut, newcomer);
    println!("{let_in} idle connections were opened");
    judge("idle", &victim, before, delivered, Some(longest));
    // Most are turned away for the rest of the time, because their addresses try too often.
    assert!(let_in > MUTE, "nobody shook hands: {let_in}");
    // What it last said of itself may be a moment old.
    let until = Instant::now() + PATIENCE;
    while victim.now().peers > 5 {
        assert!(Instant::now() < until, "{:?}", victim.now());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_on_the_port_costs_its_address_the_right_to_try() {
    let victim = Victim::start().await;
    let honest = Honest::around(&victim, 3).await;
    let before = (victim.moment(), victim.now());
    let to = socket_of(&victim.address);
    let attack = async {
        let (mut longest, mut answered) = (Duration::ZERO, 0);
        for number in 0..GARBAGE {
            let since = Instant::now();
            let what = content(1 + number * 37);
            let told = timeout(PATIENCE, mute(to, 2, [&[19], b"/multistream/9.9.9\n".as_slice(), &what].concat())).await.unwrap();
            longest = longest.max(told.unwrap_or_else(|| since.elapsed()));
            answered += usize::from(told.is_some());
        }
        (longest, answered)
    };
    let (delivered, (longest, _)) = tokio::join!(honest.talk(), attack);
    judge("garbage", &victim, before, delivered, Some(longest));
}
