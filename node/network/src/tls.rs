//! libp2p's TLS 1.3 with the cipher that this machine computes fastest offered first.
//!
//! Certificates, how they are made, parsed and what of a handshake they sign, are those of `libp2p-tls`, and so are the
//! bytes on the wire: whoever speaks `/tls/1.0.0` is understood. Only the order of the ciphers is ours: that crate always
//! names ChaCha20-Poly1305 first, which takes several times as long as AES where the processor has instructions for AES.

use std::net::Ipv4Addr;
use std::sync::Arc;

use futures::future::BoxFuture;
use futures::{AsyncRead, AsyncWrite, FutureExt};
use futures_rustls::rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use futures_rustls::rustls::crypto::aws_lc_rs::{self, cipher_suite};
use futures_rustls::rustls::pki_types::{CertificateDer, IpAddr, ServerName, UnixTime};
use futures_rustls::rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use futures_rustls::rustls::sign::{CertifiedKey, SingleCertAndKey};
use futures_rustls::rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, Error, ServerConfig, SignatureScheme, SupportedCipherSuite,
    version,
};
use futures_rustls::{TlsAcceptor, TlsConnector, TlsStream};
use libp2p::PeerId;
use libp2p::core::upgrade::{InboundConnectionUpgrade, OutboundConnectionUpgrade, UpgradeInfo};
use libp2p::identity::Keypair;
use libp2p::tls::certificate;

const ALPN: &[u8] = b"libp2p";

/// A peer's side of a TLS connection, either way.
#[derive(Clone)]
pub struct Tls {
    server: Arc<ServerConfig>,
    client: Arc<ClientConfig>,
}

/// Why a peer cannot speak TLS, or two peers did not come to terms.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("cannot make a certificate: {0}")]
    Certificate(#[from] certificate::GenError),
    #[error("cannot set up TLS: {0}")]
    Setup(#[from] Error),
    #[error("the TLS handshake failed: {0}")]
    Handshake(#[from] std::io::Error),
    #[error("the other side showed no valid certificate")]
    Unknown,
}

impl Tls {
    pub fn new(key: &Keypair) -> Result<Self, TlsError> {
        let (certificate, secret) = certificate::generate(key)?;
        let mut provider = aws_lc_rs::default_provider();
        provider.cipher_suites = ciphers();
        let secret = provider.key_provider.load_private_key(secret)?;
        let ours = Arc::new(SingleCertAndKey::from(CertifiedKey::new(vec![certificate], secret)));
        let (provider, theirs) = (Arc::new(provider), Arc::new(PeerCertificates));
        let mut client = ClientConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&[&version::TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(theirs.clone())
            .with_client_cert_resolver(ours.clone());
        let mut server = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&version::TLS13])?
            .with_client_cert_verifier(theirs)
            .with_cert_resolver(ours);
        client.alpn_protocols = vec![ALPN.to_vec()];
        server.alpn_protocols = vec![ALPN.to_vec()];
        Ok(Self { server: Arc::new(server), client: Arc::new(client) })
    }
}

/// What the processor has instructions for comes first; the other side's order counts when it dials.
fn ciphers() -> Vec<SupportedCipherSuite> {
    let aes = [cipher_suite::TLS13_AES_256_GCM_SHA384, cipher_suite::TLS13_AES_128_GCM_SHA256];
    let chacha = [cipher_suite::TLS13_CHACHA20_POLY1305_SHA256];
    if has_aes() { [aes.as_slice(), &chacha].concat() } else { [chacha.as_slice(), &aes].concat() }
}

#[cfg(target_arch = "x86_64")]
fn has_aes() -> bool {
    std::arch::is_x86_feature_detected!("aes") && std::arch::is_x86_feature_detected!("pclmulqdq")
}

#[cfg(target_arch = "aarch64")]
fn has_aes() -> bool {
    std::arch::is_aarch64_feature_detected!("aes")
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn has_aes() -> bool {
    false
}

/// Judges certificates as libp2p asks: exactly one, made by the peer itself and signed with the key that names it.
/// Who that peer is, the swarm compares with whom it dialled.
#[derive(Debug)]
struct PeerCertificates;

fn check(certificate: &CertificateDer<'_>, others: &[CertificateDer<'_>]) -> Result<(), Error> {
    if !others.is_empty() {
        return Err(Error::General("a libp2p peer shows exactly one certificate".to_owned()));
    }
    certificate::parse(certificate).map(|_| ()).map_err(|_| Error::InvalidCertificate(CertificateError::BadEncoding))
}

fn check_signature(
    message: &[u8],
    certificate: &CertificateDer<'_>,
    signed: &DigitallySignedStruct,
) -> Result<HandshakeSignatureValid, Error> {
    let certificate = certificate::parse(certificate).map_err(|_| Error::InvalidCertificate(CertificateError::BadEncoding))?;
    let verified = certificate.verify_signature(signed.scheme, message, signed.signature());
    verified.map_err(|_| Error::InvalidCertificate(CertificateError::BadSignature))?;
    Ok(HandshakeSignatureValid::assertion())
}

/// TLS 1.2 is never spoken.
fn refuse_older() -> Result<HandshakeSignatureValid, Error> {
    Err(Error::General("only TLS 1.3 is spoken here".to_owned()))
}

/// Those that libp2p's certificates can be checked with, the preferred ones first.
fn schemes() -> Vec<SignatureScheme> {
    vec![
        SignatureScheme::ECDSA_NISTP384_SHA384,
        SignatureScheme::ECDSA_NISTP256_SHA256,
        SignatureScheme::ED25519,
        SignatureScheme::RSA_PSS_SHA512,
        SignatureScheme::RSA_PSS_SHA384,
        SignatureScheme::RSA_PSS_SHA256,
        SignatureScheme::RSA_PKCS1_SHA512,
        SignatureScheme::RSA_PKCS1_SHA384,
        SignatureScheme::RSA_PKCS1_SHA256,
    ]
}

impl ServerCertVerifier for PeerCertificates {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        check(certificate, others).map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        refuse_older()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        check_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        schemes()
    }
}

impl ClientCertVerifier for PeerCertificates {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        certificate: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        check(certificate, others).map(|()| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        refuse_older()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        check_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        schemes()
    }
}

impl UpgradeInfo for Tls {
    type Info = &'static str;
    type InfoIter = std::iter::Once<Self::Info>;

    fn protocol_info(&self) -> Self::InfoIter {
        std::iter::once("/tls/1.0.0")
    }
}

type Upgrading<C> = BoxFuture<'static, Result<(PeerId, TlsStream<C>), TlsError>>;

impl<C: AsyncRead + AsyncWrite + Send + Unpin + 'static> InboundConnectionUpgrade<C> for Tls {
    type Output = (PeerId, TlsStream<C>);
    type Error = TlsError;
    type Future = Upgrading<C>;

    fn upgrade_inbound(self, socket: C, _: Self::Info) -> Self::Future {
        async move { named(TlsAcceptor::from(self.server).accept(socket).await?.into()) }.boxed()
    }
}

impl<C: AsyncRead + AsyncWrite + Send + Unpin + 'static> OutboundConnectionUpgrade<C> for Tls {
    type Output = (PeerId, TlsStream<C>);
    type Error = TlsError;
    type Future = Upgrading<C>;

    fn upgrade_outbound(self, socket: C, _: Self::Info) -> Self::Future {
        // No name is sent, as libp2p asks: the certificate says who it is.
        let nobody = ServerName::IpAddress(IpAddr::from(std::net::IpAddr::from(Ipv4Addr::UNSPECIFIED)));
        async move { named(TlsConnector::from(self.client).connect(nobody, socket).await?.into()) }.boxed()
    }
}

/// Who the other side has proved to be.
fn named<C>(stream: TlsStream<C>) -> Result<(PeerId, TlsStream<C>), TlsError> {
    let Some([certificate]) = stream.get_ref().1.peer_certificates() else { return Err(TlsError::Unknown) };
    let peer = certificate::parse(certificate).map_err(|_| TlsError::Unknown)?.peer_id();
    Ok((peer, stream))
}

#[cfg(test)]
mod tests {
    use futures::{AsyncReadExt, AsyncWriteExt};
    use tokio_util::compat::TokioAsyncReadCompatExt;

    use super::*;

    /// Both ends of a connection, one of them libp2p's own.
    async fn meet<I, O>(inbound: I, outbound: O) -> [TlsStream<tokio_util::compat::Compat<tokio::io::DuplexStream>>; 2]
    where
        I: InboundConnectionUpgrade<
                tokio_util::compat::Compat<tokio::io::DuplexStream>,
                Output = (PeerId, TlsStream<tokio_util::compat::Compat<tokio::io::DuplexStream>>),
                Info = &'static str,
                Error: std::fmt::Debug,
            >,
        O: OutboundConnectionUpgrade<
                tokio_util::compat::Compat<tokio::io::DuplexStream>,
                Output = (PeerId, TlsStream<tokio_util::compat::Compat<tokio::io::DuplexStream>>),
                Info = &'static str,
                Error: std::fmt::Debug,
            >,
    {
        let (here, there) = tokio::io::duplex(1 << 16);
        let (one, other) = futures::future::join(
            inbound.upgrade_inbound(here.compat(), "/tls/1.0.0"),
            outbound.upgrade_outbound(there.compat(), "/tls/1.0.0"),
        )
        .await;
        let ((_, mut one), (_, mut other)) = (one.unwrap(), other.unwrap());
        one.write_all(b"well met").await.unwrap();
        one.flush().await.unwrap();
        let mut read = [0; 8];
        other.read_exact(&mut read).await.unwrap();
        assert_eq!(&read, b"well met");
        [one, other]
    }

    #[tokio::test]
    async fn the_fast_cipher_is_chosen_and_libp2p_is_understood_both_ways() {
        let keys = [Keypair::generate_ed25519(), Keypair::generate_ed25519()];
        let ours = || Tls::new(&keys[0]).unwrap();
        let theirs = || libp2p::tls::Config::new(&keys[1]).unwrap();
        let chosen = |stream: &TlsStream<_>| stream.get_ref().1.negotiated_cipher_suite().unwrap().suite();
        for stream in meet(ours(), ours()).await {
            assert_eq!(chosen(&stream), ciphers()[0].suite());
        }
        meet(ours(), theirs()).await;
        meet(theirs(), ours()).await;
    }

    #[tokio::test]
    async fn each_side_learns_who_the_other_is_and_a_borrowed_certificate_is_refused() {
        let keys = [Keypair::generate_ed25519(), Keypair::generate_ed25519()];
        let (here, there) = tokio::io::duplex(1 << 16);
        let (one, other) = futures::future::join(
            Tls::new(&keys[0]).unwrap().upgrade_inbound(here.compat(), "/tls/1.0.0"),
            Tls::new(&keys[1]).unwrap().upgrade_outbound(there.compat(), "/tls/1.0.0"),
        )
        .await;
        assert_eq!(one.unwrap().0, keys[1].public().to_peer_id());
        assert_eq!(other.unwrap().0, keys[0].public().to_peer_id());

        // A stranger that shows somebody's certificate without the key it speaks of.
        let (shown, _) = certificate::generate(&keys[0]).unwrap();
        let (_, secret) = certificate::generate(&keys[1]).unwrap();
        let provider = aws_lc_rs::default_provider();
        let secret = provider.key_provider.load_private_key(secret).unwrap();
        let borrowed = Arc::new(SingleCertAndKey::from(CertifiedKey::new(vec![shown], secret)));
        let mut stranger = Tls::new(&keys[1]).unwrap();
        let mut client = (*stranger.client).clone();
        client.client_auth_cert_resolver = borrowed.clone();
        stranger.client = Arc::new(client);
        let (here, there) = tokio::io::duplex(1 << 16);
        let (one, _) = futures::future::join(
            Tls::new(&keys[0]).unwrap().upgrade_inbound(here.compat(), "/tls/1.0.0"),
            stranger.clone().upgrade_outbound(there.compat(), "/tls/1.0.0"),
        )
        .await;
        assert!(matches!(one, Err(TlsError::Handshake(_))));
        let mut server = (*stranger.server).clone();
        server.cert_resolver = borrowed;
        stranger.server = Arc::new(server);
        let (here, there) = tokio::io::duplex(1 << 16);
        let (_, other) = futures::future::join(
            stranger.upgrade_inbound(here.compat(), "/tls/1.0.0"),
            Tls::new(&keys[0]).unwrap().upgrade_outbound(there.compat(), "/tls/1.0.0"),
        )
        .await;
        assert!(matches!(other, Err(TlsError::Handshake(_))));
    }
}
