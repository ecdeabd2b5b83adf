//! TLS between nodes: version 1.3 only, both sides present a key, both sides pin the other's.
//!
//! Owns the two verifiers. Never consults a certificate authority, a name or a date: a peer is the public key that its
//! administrator entered with `lockstep peer add`. The proof that the peer holds that key is TLS's own signature.

use super::keys::{Fingerprint, Identity};
use std::fmt;
use std::sync::Arc;
use tokio_rustls::rustls::client::danger::{
    HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier,
};
use tokio_rustls::rustls::crypto::{CryptoProvider, ring, verify_tls13_signature};
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use tokio_rustls::rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use tokio_rustls::rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, Error,
    PeerIncompatible, ServerConfig, SignatureScheme, version::TLS13,
};
use tokio_rustls::{TlsAcceptor, TlsConnector};

/// Says which peer a key belongs to; asked at every handshake, so that `peer add` and `peer remove` act at once.
pub type Known = Arc<dyn Fn(&Fingerprint) -> Option<String> + Send + Sync>;

/// The name in the client's hello; nothing depends on it.
const SERVER_NAME: &str = "lockstep";

fn provider() -> Arc<CryptoProvider> {
    let mut provider = ring::default_provider();
    // AES-128 first: the fastest here (2.1 GB/s a core with AES-NI), and as good as the key exchange.
    provider
        .cipher_suites
        .sort_by_key(|s| s.suite() != tokio_rustls::rustls::CipherSuite::TLS13_AES_128_GCM_SHA256);
    Arc::new(provider)
}

fn unknown() -> Error {
    Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure)
}

/// How both verifiers check signatures: TLS's own proof that the other side holds the key that it shows.
macro_rules! signatures {
    () => {
        fn verify_tls12_signature(
            &self,
            _message: &[u8],
            _certificate: &CertificateDer<'_>,
            _signature: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            Err(PeerIncompatible::Tls12NotOffered.into())
        }

        fn verify_tls13_signature(
            &self,
            message: &[u8],
            certificate: &CertificateDer<'_>,
            signature: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            let algorithms = &self.provider.signature_verification_algorithms;
            verify_tls13_signature(message, certificate, signature, algorithms)
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            let algorithms = &self.provider.signature_verification_algorithms;
            algorithms.supported_schemes()
        }
    };
}

struct PinnedServer {
    expected: Fingerprint,
    provider: Arc<CryptoProvider>,
}

impl fmt::Debug for PinnedServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PinnedServer({})", self.expected)
    }
}

impl ServerCertVerifier for PinnedServer {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        match Fingerprint::of_certificate(end_entity) {
            None => Err(CertificateError::BadEncoding.into()),
            Some(found) if found == self.expected => Ok(ServerCertVerified::assertion()),
            Some(_) => Err(unknown()),
        }
    }

    signatures!();
}

struct KnownClients {
    known: Known,
    provider: Arc<CryptoProvider>,
}

impl fmt::Debug for KnownClients {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KnownClients")
    }
}

impl ClientCertVerifier for KnownClients {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let found = Fingerprint::of_certificate(end_entity)
            .ok_or_else(|| Error::from(CertificateError::BadEncoding))?;
        match (self.known)(&found) {
            Some(_) => Ok(ClientCertVerified::assertion()),
            None => {
                tracing::warn!(
                    fingerprint = %found,
                    "refused a client with an unknown key; if it is one of yours: \
                     lockstep peer add NAME ADDR:PORT --fingerprint {found}"
                );
                Err(unknown())
            }
        }
    }

    signatures!();
}

/// What the listener uses: shows our key, asks for theirs, accepts those that `known` names.
pub fn acceptor(identity: &Identity, known: Known) -> Result<TlsAcceptor, Error> {
    let provider = provider();
    let verifier = Arc::new(KnownClients {
        known,
        provider: Arc::clone(&provider),
    });
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])?
        .with_client_cert_verifier(verifier)
        .with_single_cert(vec![identity.certificate()], identity.key())?;
    // A resumed session would skip the look at the key, and `peer remove` would come too late.
    config.send_tls13_tickets = 0;
    Ok(TlsAcceptor::from(Arc::new(config)))
}

/// What calls a peer: shows our key and accepts exactly the key `expected`.
pub fn connector(identity: &Identity, expected: Fingerprint) -> Result<TlsConnector, Error> {
    let provider = provider();
    let verifier = Arc::new(PinnedServer {
        expected,
        provider: Arc::clone(&provider),
    });
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_client_auth_cert(vec![identity.certificate()], identity.key())?;
    config.resumption = tokio_rustls::rustls::client::Resumption::disabled();
    config.enable_sni = false;
    Ok(TlsConnector::from(Arc::new(config)))
}

/// The name to give to `TlsConnector::connect`.
pub fn server_name() -> ServerName<'static> {
    ServerName::try_from(SERVER_NAME).expect("a constant that is a valid name")
}
