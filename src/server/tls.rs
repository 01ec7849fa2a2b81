//! TLS from the configuration, and the client's certificate as credentials.
//!
//! The handshake lets any client certificate in, provided that the client has its key; whether
//! the certificate is good for anything is decided at CONNECT (`DESIGN` §4, §5).

use std::fmt;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use arc_swap::ArcSwapOption;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{
    CryptoProvider, WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    DigitallySignedStruct, DistinguishedName, Error, RootCertStore, ServerConfig, SignatureScheme,
};

use crate::config::{Tls, TlsVersion};
use crate::identity::ClientCertificate;

/// What a handshake needs; swapped whole when certificates are renewed.
#[derive(Debug)]
pub struct TlsState {
    /// For new connections.
    pub config: Arc<ServerConfig>,
    /// Judges client certificates against `client_ca`.
    trust: Option<Arc<dyn ClientCertVerifier>>,
}

/// The current TLS state, shared by all listeners.
pub type SharedTls = Arc<ArcSwapOption<TlsState>>;

impl TlsState {
    /// Reads certificate, key and trust bundle. Client certificates are asked for where there is a
    /// bundle to check them, or `ask` says that identities with thumbprints exist.
    ///
    /// # Errors
    /// A sentence that names the file.
    pub fn load(tls: &Tls, ask: bool) -> Result<Self, String> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let certificates = read_certificates(&tls.certificate)?;
        let key = PrivateKeyDer::from_pem_file(&tls.key)
            .map_err(|error| format!("{}: no private key: {error}", tls.key.display()))?;
        let trust = match &tls.client_ca {
            Some(path) => Some(read_trust(path, &provider)?),
            None => None,
        };
        let versions: &[_] = match tls.min_version {
            TlsVersion::Tls12 => &[&rustls::version::TLS12, &rustls::version::TLS13],
            TlsVersion::Tls13 => &[&rustls::version::TLS13],
        };
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(versions)
            .map_err(|error| error.to_string())?;
        let builder = if ask || trust.is_some() {
            builder.with_client_cert_verifier(Arc::new(AnyCertificate {
                algorithms: provider.signature_verification_algorithms,
            }))
        } else {
            builder.with_no_client_auth()
        };
        let mut config = builder
            .with_single_cert(certificates, key)
            .map_err(|error| {
                let (certificate, key) = (tls.certificate.display(), tls.key.display());
                format!("{certificate} and {key} do not go together: {error}")
            })?;
        config.max_early_data_size = 0;
        // No resumption: each session is a login, and a ticket store would grow with the clients.
        config.send_tls13_tickets = 0;
        config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
        Ok(Self {
            config: Arc::new(config),
            trust,
        })
    }

    /// The certificate that a client showed, with what the trust bundle says of it.
    #[must_use]
    pub fn client_certificate(&self, chain: &[CertificateDer<'_>]) -> Option<ClientCertificate> {
        let (leaf, rest) = chain.split_first()?;
        let trusted = self.trust.as_ref().is_some_and(|trust| {
            trust
                .verify_client_cert(leaf, rest, UnixTime::now())
                .is_ok()
        });
        ClientCertificate::from_der(leaf, trusted).ok()
    }
}

fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let pem = fs::read(path).map_err(|error| format!("{}: {error}", path.display()))?;
    let certificates: Vec<_> = CertificateDer::pem_slice_iter(&pem)
        .collect::<Result<_, _>>()
        .map_err(|error| format!("{}: {error}", path.display()))?;
    if certificates.is_empty() {
        return Err(format!("{}: no certificate in it", path.display()));
    }
    Ok(certificates)
}

fn read_trust(
    path: &Path,
    provider: &Arc<CryptoProvider>,
) -> Result<Arc<dyn ClientCertVerifier>, String> {
    let mut roots = RootCertStore::empty();
    for certificate in read_certificates(path)? {
        roots
            .add(certificate)
            .map_err(|error| format!("{}: {error}", path.display()))?;
    }
    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider))
        .build()
        .map(|verifier| verifier as Arc<dyn ClientCertVerifier>)
        .map_err(|error| format!("{}: {error}", path.display()))
}

/// Accepts every certificate, but only from a client that has its key.
struct AnyCertificate {
    algorithms: WebPkiSupportedAlgorithms,
}

impl fmt::Debug for AnyCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AnyCertificate")
    }
}

impl ClientCertVerifier for AnyCertificate {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn verify_client_cert(
        &self,
        _leaf: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signature, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
