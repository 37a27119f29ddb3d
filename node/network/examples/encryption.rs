//! Which encryption moves bulk with less work: TLS or noise, over one TCP connection on the loopback interface.
//!
//! `cargo run --release -p mingle-network --example encryption [MIB]`: wall time and processor time of both ends together.

use std::error::Error;
use std::time::{Duration, Instant};

use futures::{AsyncReadExt, AsyncWriteExt, StreamExt, future};
use libp2p::core::muxing::{StreamMuxerBox, StreamMuxerExt};
use libp2p::core::transport::{Boxed, DialOpts, ListenerId, PortUse, TransportEvent};
use libp2p::core::{Endpoint, Transport, upgrade};
use libp2p::identity::Keypair;
use libp2p::{PeerId, noise, tcp, tls, yamux};

const BUFFER: usize = 256 * 1024;

type Security = Boxed<(PeerId, StreamMuxerBox)>;
type Make = fn(&Keypair) -> Result<Security, Box<dyn Error>>;

fn with_noise(key: &Keypair) -> Result<Security, Box<dyn Error>> {
    let tcp = tcp::tokio::Transport::new(tcp::Config::default().nodelay(true)).upgrade(upgrade::Version::V1Lazy);
    let muxed = tcp.authenticate(noise::Config::new(key)?).multiplex(yamux::Config::default());
    Ok(muxed.map(|(peer, muxer), _| (peer, StreamMuxerBox::new(muxer))).boxed())
}

fn with_tls(key: &Keypair) -> Result<Security, Box<dyn Error>> {
    let tcp = tcp::tokio::Transport::new(tcp::Config::default().nodelay(true)).upgrade(upgrade::Version::V1Lazy);
    let muxed = tcp.authenticate(tls::Config::new(key)?).multiplex(yamux::Config::default());
    Ok(muxed.map(|(peer, muxer), _| (peer, StreamMuxerBox::new(muxer))).boxed())
}

/// Sends so many bytes from one end to the other; wall and processor time.
async fn send(make: Make, bytes: usize) -> Result<(Duration, Duration), Box<dyn Error>> {
    let mut listener = make(&Keypair::generate_ed25519())?;
    listener.listen_on(ListenerId::next(), "/ip4/127.0.0.1/tcp/0".parse()?)?;
    let address = loop {
        if let Some(TransportEvent::NewAddress { listen_addr, .. }) = listener.next().await {
            break listen_addr;
        }
    };
    let serving = tokio::spawn(async move {
        loop {
            let Some(TransportEvent::Incoming { upgrade, .. }) = listener.next().await else { continue };
            let other = async { while listener.next().await.is_some() {} };
            let serve = async {
                let (_, mut muxer) = upgrade.await.ok()?;
                let mut stream = poll_inbound(&mut muxer).await?;
                let rest = async { while poll_inbound(&mut muxer).await.is_some() {} };
                let read = async {
                    let (mut buffer, mut left) = (vec![0; BUFFER], bytes);
                    while left > 0 {
                        left -= stream.read(&mut buffer).await.ok().filter(|read| *read > 0)?;
                    }
                    stream.write_all(&[1]).await.ok()?;
                    stream.close().await.ok()
                };
                match future::select(std::pin::pin!(read), std::pin::pin!(rest)).await {
                    future::Either::Left((done, _)) => done,
                    future::Either::Right(_) => None,
                }
            };
            future::select(std::pin::pin!(serve), std::pin::pin!(other)).await;
        }
    });
    let mut dialer = make(&Keypair::generate_ed25519())?;
    let (_, mut muxer) = dialer.dial(address, DialOpts { role: Endpoint::Dialer, port_use: PortUse::New })?.await?;
    let mut stream = future::poll_fn(|context| muxer.poll_outbound_unpin(context)).await?;
    let (began, worked) = (Instant::now(), processor_time());
    let write = async {
        let buffer = vec![7; BUFFER];
        for _ in 0..bytes / BUFFER {
            stream.write_all(&buffer).await?;
        }
        stream.flush().await?;
        stream.read_exact(&mut [0]).await
    };
    let drive = future::poll_fn(|context| muxer.poll_unpin(context).map(|_| ()));
    match future::select(std::pin::pin!(write), std::pin::pin!(drive)).await {
        future::Either::Left((done, _)) => done?,
        future::Either::Right(_) => return Err("the connection ended".into()),
    }
    let took = (began.elapsed(), processor_time().saturating_sub(worked));
    serving.abort();
    Ok(took)
}

async fn poll_inbound(muxer: &mut StreamMuxerBox) -> Option<libp2p::core::muxing::SubstreamBox> {
    future::poll_fn(|context| {
        let _ = muxer.poll_unpin(context);
        muxer.poll_inbound_unpin(context)
    })
    .await
    .ok()
}

/// Of this process, on all processors.
fn processor_time() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields = stat.rsplit(") ").next().unwrap_or_default().split(' ').skip(11).take(2);
    let ticks: u64 = fields.filter_map(|field| field.parse::<u64>().ok()).sum();
    // Linux counts in hundredths of a second.
    Duration::from_millis(ticks * 10)
}

fn main() -> Result<(), Box<dyn Error>> {
    let mib: usize = std::env::args().nth(1).map_or(Ok(512), |text| text.parse())?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    for _ in 0..3 {
        for (name, make) in [("tls", with_tls as Make), ("noise", with_noise as Make)] {
            let (wall, work) = runtime.block_on(send(make, mib << 20))?;
            let rate = mib as f64 / wall.as_secs_f64();
            println!("{name:6} {mib} MiB in {wall:.2?}: {rate:.0} MiB/s, processor time {work:.2?}");
        }
    }
    Ok(())
}
