//! What a peer shows and whom it believes where a connection looks like one to a web server (`/wss`).
//!
//! The certificate lets the connection through firewalls and proxies and says whose host it is; who the peer is, its own key
//! proves inside. Refuses files that hold no PEM, keys that do not belong to their certificate, and, as a dialler, every
//! certificate that neither the web's authorities nor one named by the operator signed.

use std::io;
use std::path::{Path, PathBuf};

use futures_rustls::rustls;
use libp2p::dns::{ResolverConfig, ResolverOpts};
use libp2p::websocket::{error, tls};
use rustls::CertificateError;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

/// How `/wss` and names are dealt with. The default believes the web's authorities, asks the system's resolver, and listens
/// without TLS only.
#[derive(Clone, Debug, Default)]
pub struct Web {
    tls: Option<tls::Config>,
    resolver: Option<(ResolverConfig, ResolverOpts)>,
}

/// A certificate chain with its key, as files in PEM.
#[derive(Clone, Copy, Debug)]
pub struct Identity<'a> {
    /// The host's own certificate first.
    pub certificate: &'a Path,
    pub key: &'a Path,
}

/// Why a file is of no use.
#[derive(Debug, thiserror::Error)]
pub enum WebError {
    #[error("cannot read {}: {why}", path.display())]
    Unreadable { path: PathBuf, why: io::Error },
    #[error("{} holds no certificate in PEM", path.display())]
    NoCertificate { path: PathBuf },
    #[error("{} holds no private key in PEM that can be read", path.display())]
    NoKey { path: PathBuf },
    #[error("the key in {} does not belong to the certificate in {}", key.display(), certificate.display())]
    Mismatch { certificate: PathBuf, key: PathBuf },
    #[error("the certificate in {} cannot be used: {why}", path.display())]
    Certificate { path: PathBuf, why: String },
}

impl Web {
    /// Listens with `identity`, and believes the certificates in the file `trusted` beside the web's authorities.
    ///
    /// # Errors
    /// A file that cannot be read or does not hold what it should.
    pub fn new(identity: Option<Identity<'_>>, trusted: Option<&Path>) -> Result<Self, WebError> {
        let mut tls = tls::Config::builder();
        if let Some(path) = trusted {
            for certificate in certificates(path)? {
                tls.add_trust(&certificate).map_err(|error| unusable(path, &error))?;
            }
        }
        if let Some(Identity { certificate, key }) = identity {
            let (chain, secret) = (certificates(certificate)?, private_key(key)?);
            tls.server(secret, chain).map_err(|error| match rustls_error(&error) {
                Some(rustls::Error::InconsistentKeys(_)) => WebError::Mismatch { certificate: certificate.into(), key: key.into() },
                _ => unusable(certificate, &error),
            })?;
        }
        let tls = (identity.is_some() || trusted.is_some()).then(|| tls.finish());
        Ok(Self { tls, resolver: None })
    }

    /// Asks this resolver instead of the system's.
    #[cfg(test)]
    pub fn resolving(mut self, config: ResolverConfig, options: ResolverOpts) -> Self {
        self.resolver = Some((config, options));
        self
    }

    pub(super) fn tls(&self) -> Option<&tls::Config> {
        self.tls.as_ref()
    }

    pub(super) fn resolver(&self) -> Option<&(ResolverConfig, ResolverOpts)> {
        self.resolver.as_ref()
    }
}

fn read(path: &Path) -> Result<Vec<u8>, WebError> {
    std::fs::read(path).map_err(|why| WebError::Unreadable { path: path.into(), why })
}

fn certificates(path: &Path) -> Result<Vec<tls::Certificate>, WebError> {
    let text = read(path)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    match found {
        Ok(found) if !found.is_empty() => Ok(found.iter().map(|der| tls::Certificate::new(der.to_vec())).collect()),
        _ => Err(WebError::NoCertificate { path: path.into() }),
    }
}

fn private_key(path: &Path) -> Result<tls::PrivateKey, WebError> {
    let text = read(path)?;
    let none = || WebError::NoKey { path: path.into() };
    let der = PrivateKeyDer::from_pem_slice(&text).map_err(|_| none())?.secret_der().to_vec();
    // What the bytes are is looked at once more there, and not survived when they are nothing.
    PrivateKeyDer::try_from(der.as_slice()).map_err(|_| none())?;
    Ok(tls::PrivateKey::new(der))
}

fn unusable(path: &Path, error: &tls::Error) -> WebError {
    let why = rustls_error(error).map_or_else(|| error.to_string(), ToString::to_string);
    WebError::Certificate { path: path.into(), why }
}

fn rustls_error(error: &tls::Error) -> Option<&rustls::Error> {
    match error {
        tls::Error::Tls(error) => error.downcast_ref(),
        tls::Error::Io(error) => error.get_ref()?.downcast_ref(),
        _ => None,
    }
}

/// What every sentence about a certificate that is not believed begins with.
const CERTIFICATE: &str = "its TLS certificate";

/// Certificates that are not believed are told in words of ours.
pub(super) fn dial_error<E: std::error::Error + Send + Sync + 'static>(error: error::Error<E>) -> io::Error {
    let why = match &error {
        error::Error::Tls(error) => rustls_error(error),
        _ => None,
    };
    let Some(rustls::Error::InvalidCertificate(why)) = why else { return io::Error::other(error) };
    io::Error::other(match why {
        CertificateError::UnknownIssuer | CertificateError::BadSignature => {
            format!("{CERTIFICATE} is not from an authority that is trusted here")
        }
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => format!("{CERTIFICATE} has expired"),
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            format!("{CERTIFICATE} is for another host")
        }
        other => format!("{CERTIFICATE} is refused: {other}"),
    })
}

/// What is wrong with a certificate, where that is why a dial failed.
pub(super) fn distrusted(error: &(dyn std::error::Error + 'static)) -> Option<String> {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    let why = error.to_string();
    why.starts_with(CERTIFICATE).then_some(why)
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;

    #[test]
    fn files_that_are_of_no_use_are_refused_by_name() {
        let folder = TempDir::new().unwrap();
        let put = |name: &str, text: &str| {
            let path = folder.path().join(name);
            std::fs::write(&path, text).unwrap();
            path
        };
        let made = |host: &str| rcgen::generate_simple_self_signed([host.to_owned()]).unwrap();
        let (one, other) = (made("one.test"), made("other.test"));
        let (certificate, key) = (put("one.pem", &one.cert.pem()), put("one.key", &one.key_pair.serialize_pem()));
        let chain = put("chain.pem", &[one.cert.pem(), other.cert.pem()].concat());
        let others = put("other.key", &other.key_pair.serialize_pem());
        let empty = put("empty.pem", "nothing");
        // In PEM, and nothing inside.
        let hollow = put("hollow.key", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n");
        let junk = put("junk.pem", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n");
        let missing = folder.path().join("missing");

        let shows = |certificate: &Path, key: &Path| Web::new(Some(Identity { certificate, key }), None);
        assert!(shows(&certificate, &key).unwrap().tls().is_some() && shows(&chain, &key).is_ok());
        assert!(matches!(shows(&missing, &key), Err(WebError::Unreadable { path, .. }) if path == missing));
        assert!(matches!(shows(&certificate, &missing), Err(WebError::Unreadable { .. })));
        assert!(matches!(shows(&empty, &key), Err(WebError::NoCertificate { .. })));
        assert!(matches!(shows(&key, &key), Err(WebError::NoCertificate { .. })), "they were given the wrong way round");
        assert!(matches!(shows(&certificate, &certificate), Err(WebError::NoKey { .. })));
        assert!(matches!(shows(&certificate, &hollow), Err(WebError::NoKey { .. })));
        assert!(matches!(shows(&junk, &key), Err(WebError::Certificate { .. })));
        let mismatch = shows(&certificate, &others).unwrap_err();
        let said = format!("the key in {} does not belong to the certificate in {}", others.display(), certificate.display());
        assert_eq!(mismatch.to_string(), said);

        assert!(Web::new(None, Some(&chain)).unwrap().tls().is_some());
        assert!(matches!(Web::new(None, Some(&key)), Err(WebError::NoCertificate { .. })));
        assert!(matches!(Web::new(None, Some(&junk)), Err(WebError::Certificate { .. })));
        assert!(Web::new(None, None).unwrap().tls().is_none());
    }
}
