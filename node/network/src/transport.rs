//! What connections run over: QUIC; TCP with TLS or noise; and WebSocket, with a web server's TLS around it or without.
//!
//! It is put together by hand, because libp2p's builder makes its WebSocket without a certificate and without a choice of
//! whom to believe. WebSocket resolves names itself, beneath TLS, which has to know them.

use futures::TryFutureExt;
use futures::future::{Either, MapOk};
use libp2p::core::muxing::StreamMuxerBox;
use libp2p::core::transport::Boxed;
use libp2p::core::upgrade::{InboundConnectionUpgrade, OutboundConnectionUpgrade, SelectUpgrade, UpgradeInfo, Version};
use libp2p::identity::Keypair;
use libp2p::{PeerId, Transport, dns, noise, quic, tcp, websocket, yamux};

use super::NetworkError;
use super::buffered::Buffered;
use super::limits::{DIAL_TIMEOUT, QUIC_IDLE_MS_MAX, QUIC_KEEP_ALIVE, WEB_FRAME_BYTES_MAX, YAMUX_STREAMS_MAX};
use super::tls::Tls;
use super::web::{Web, dial_error};

type Connections = Boxed<(PeerId, StreamMuxerBox)>;

/// Everything a peer can dial and listen on, but circuits.
pub fn transport(key: &Keypair, web: &Web) -> Result<Connections, NetworkError> {
    let direct = tcp(key)?.or_transport(quic(key)).map(|either, _| either.into_inner()).boxed();
    let direct = resolving(direct, web)?;
    Ok(web_socket(key, web)?.or_transport(direct).map(|either, _| either.into_inner()).boxed())
}

fn tcp(key: &Keypair) -> Result<Connections, NetworkError> {
    let tcp = tcp::tokio::Transport::new(tcp::Config::default().nodelay(true)).upgrade(Version::V1Lazy);
    Ok(tcp
        .authenticate(Buffered(secured(key)?))
        .multiplex(yamux_config())
        .map(|(peer, muxer), _| (peer, StreamMuxerBox::new(muxer)))
        .boxed())
}

fn quic(key: &Keypair) -> Connections {
    let mut config = quic::Config::new(key);
    config.keep_alive_interval = QUIC_KEEP_ALIVE;
    config.max_idle_timeout = QUIC_IDLE_MS_MAX;
    config.handshake_timeout = DIAL_TIMEOUT;
    quic::tokio::Transport::new(config).map(|(peer, muxer), _| (peer, StreamMuxerBox::new(muxer))).boxed()
}

fn web_socket(key: &Keypair, web: &Web) -> Result<Connections, NetworkError> {
    let mut sockets = websocket::Config::new(resolving(tcp::tokio::Transport::new(tcp::Config::default().nodelay(true)), web)?);
    sockets.set_max_data_size(WEB_FRAME_BYTES_MAX);
    if let Some(tls) = web.tls() {
        sockets.set_tls_config(tls.clone());
    }
    let sockets = sockets.map_err(dial_error).upgrade(Version::V1Lazy);
    let secured = sockets.authenticate(secured(key)?).multiplex(yamux_config());
    Ok(secured.map(|(peer, muxer), _| (peer, StreamMuxerBox::new(muxer))).boxed())
}

/// Names are asked of the system's name servers. A system that names none, as at a site without a network, has peers whose
/// addresses are numbers: only dialling a name fails there.
fn resolving<T>(inner: T, web: &Web) -> Result<dns::tokio::Transport<T>, NetworkError> {
    if web.resolver().is_none() && dns::tokio::Transport::system(()).is_ok() {
        return dns::tokio::Transport::system(inner).map_err(setup);
    }
    let (config, options) = web.resolver().cloned().unwrap_or_default();
    Ok(dns::tokio::Transport::custom(inner, config, options))
}

fn setup(error: impl std::fmt::Display) -> NetworkError {
    NetworkError::Setup(error.to_string())
}

pub fn yamux_config() -> yamux::Config {
    let mut config = yamux::Config::default();
    config.set_max_num_streams(YAMUX_STREAMS_MAX);
    config
}

/// Two ways to agree on who is who; the first is offered first.
#[derive(Clone)]
struct Secured<A, B>(SelectUpgrade<A, B>);

/// TLS first. Whoever knows only noise gets it.
fn secured(key: &Keypair) -> Result<Secured<Tls, noise::Config>, NetworkError> {
    let tls = Tls::new(key).map_err(setup)?;
    Ok(Secured(SelectUpgrade::new(tls, noise::Config::new(key).map_err(setup)?)))
}

/// From one of two peers on one of two streams to a peer on either stream.
type Factored<F, A, B> = MapOk<F, fn(Either<(PeerId, A), (PeerId, B)>) -> (PeerId, Either<A, B>)>;

impl<A: UpgradeInfo, B: UpgradeInfo> UpgradeInfo for Secured<A, B> {
    type Info = <SelectUpgrade<A, B> as UpgradeInfo>::Info;
    type InfoIter = <SelectUpgrade<A, B> as UpgradeInfo>::InfoIter;

    fn protocol_info(&self) -> Self::InfoIter {
        self.0.protocol_info()
    }
}

impl<C, A, B, OfA, OfB> InboundConnectionUpgrade<C> for Secured<A, B>
where
    A: InboundConnectionUpgrade<C, Output = (PeerId, OfA)>,
    B: InboundConnectionUpgrade<C, Output = (PeerId, OfB)>,
{
    type Output = (PeerId, Either<OfA, OfB>);
    type Error = <SelectUpgrade<A, B> as InboundConnectionUpgrade<C>>::Error;
    type Future = Factored<<SelectUpgrade<A, B> as InboundConnectionUpgrade<C>>::Future, OfA, OfB>;

    fn upgrade_inbound(self, socket: C, info: Self::Info) -> Self::Future {
        self.0.upgrade_inbound(socket, info).map_ok(Either::factor_first)
    }
}

impl<C, A, B, OfA, OfB> OutboundConnectionUpgrade<C> for Secured<A, B>
where
    A: OutboundConnectionUpgrade<C, Output = (PeerId, OfA)>,
    B: OutboundConnectionUpgrade<C, Output = (PeerId, OfB)>,
{
    type Output = (PeerId, Either<OfA, OfB>);
    type Error = <SelectUpgrade<A, B> as OutboundConnectionUpgrade<C>>::Error;
    type Future = Factored<<SelectUpgrade<A, B> as OutboundConnectionUpgrade<C>>::Future, OfA, OfB>;

    fn upgrade_outbound(self, socket: C, info: Self::Info) -> Self::Future {
        self.0.upgrade_outbound(socket, info).map_ok(Either::factor_first)
    }
}
