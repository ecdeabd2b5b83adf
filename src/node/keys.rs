//! A node's key pair and the fingerprint by which its peers know it.
//!
//! Owns `node.key` in the state directory (PKCS#8 in PEM, mode 0600). Never shows the private key and never trusts a
//! name in a certificate: a node is its public key, and the fingerprint is the SHA-256 of the certificate's
//! SubjectPublicKeyInfo (RFC 7469 pins the same bytes). The certificate around the key is made anew at each start.

use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, PublicKeyData};
use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use thiserror::Error;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio_rustls::rustls::server::ParsedCertificate;

/// Why a key can not be used.
#[derive(Debug, Error)]
pub enum KeyError {
    /// The file can not be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The key file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Others could read the private key.
    #[error("{path} has mode {mode:04o}, which lets others read the key; expected 0600")]
    Exposed {
        /// The key file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The file holds no key, or a certificate could not be made of it.
    #[error("{path}: no usable key: {detail}")]
    Damaged {
        /// The key file.
        path: PathBuf,
        /// What the decoder said.
        detail: String,
    },
}

/// SHA-256 of a node's SubjectPublicKeyInfo.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Fingerprint([u8; 32]);

/// A text that is no fingerprint.
#[derive(Debug, Error, PartialEq, Eq)]
#[error(
    "a fingerprint is 64 hexadecimal digits, in groups or not; this has {digits} and {others} other characters"
)]
pub struct NotAFingerprint {
    digits: usize,
    others: usize,
}

impl Fingerprint {
    /// Of a SubjectPublicKeyInfo in DER.
    pub fn of_public_key(spki: &[u8]) -> Fingerprint {
        let digest = ring::digest::digest(&ring::digest::SHA256, spki);
        let mut bytes = [0; 32];
        bytes.copy_from_slice(digest.as_ref());
        Fingerprint(bytes)
    }

    /// Of the key in a peer's certificate; `None` when it is no certificate.
    pub fn of_certificate(certificate: &CertificateDer<'_>) -> Option<Fingerprint> {
        let parsed = ParsedCertificate::try_from(certificate).ok()?;
        Some(Fingerprint::of_public_key(
            &parsed.subject_public_key_info(),
        ))
    }
}

impl fmt::Display for Fingerprint {
    /// Eight groups of eight hexadecimal digits: one word for a shell, groups for an eye.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, byte) in self.0.iter().enumerate() {
            if i > 0 && i % 4 == 0 {
                f.write_str("-")?;
            }
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Fingerprint {
    type Err = NotAFingerprint;

    fn from_str(text: &str) -> Result<Fingerprint, NotAFingerprint> {
        let mut digits = Vec::with_capacity(64);
        let mut others = 0;
        for c in text.trim().chars() {
            match c.to_digit(16) {
                Some(d) => digits.push(d as u8),
                None if matches!(c, '-' | ':' | ' ') => {}
                None => others += 1,
            }
        }
        if digits.len() != 64 || others > 0 {
            let digits = digits.len();
            return Err(NotAFingerprint { digits, others });
        }
        let mut bytes = [0; 32];
        for (byte, pair) in bytes.iter_mut().zip(digits.chunks(2)) {
            *byte = pair[0] << 4 | pair[1];
        }
        Ok(Fingerprint(bytes))
    }
}

impl serde::Serialize for Fingerprint {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for Fingerprint {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Fingerprint, D::Error> {
        let text = String::deserialize(d)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// A node's own key with a certificate around it.
pub struct Identity {
    certificate: CertificateDer<'static>,
    key: PrivatePkcs8KeyDer<'static>,
    fingerprint: Fingerprint,
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identity({})", self.fingerprint)
    }
}

impl Identity {
    /// Makes a key pair and writes it to `path`, which must not exist yet. Durable on return.
    pub fn create(path: &Path, name: &str) -> Result<Identity, KeyError> {
        let damaged = |e: rcgen::Error| KeyError::Damaged {
            path: path.to_owned(),
            detail: e.to_string(),
        };
        let io = |source| KeyError::Io {
            path: path.to_owned(),
            source,
        };
        let pair = KeyPair::generate_for(&rcgen::PKCS_ED25519).map_err(damaged)?;
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)
            .map_err(io)?;
        file.write_all(pair.serialize_pem().as_bytes())
            .map_err(io)?;
        file.sync_all().map_err(io)?;
        if let Some(dir) = path.parent() {
            File::open(dir).and_then(|d| d.sync_all()).map_err(io)?;
        }
        Identity::of(&pair, name).map_err(damaged)
    }

    /// Reads the key pair at `path`; refused when others may read it.
    pub fn load(path: &Path, name: &str) -> Result<Identity, KeyError> {
        let io = |source| KeyError::Io {
            path: path.to_owned(),
            source,
        };
        let damaged = |e: rcgen::Error| KeyError::Damaged {
            path: path.to_owned(),
            detail: e.to_string(),
        };
        let mut file = File::open(path).map_err(io)?;
        let mode = file.metadata().map_err(io)?.mode() & 0o7777;
        if mode & 0o077 != 0 {
            let path = path.to_owned();
            return Err(KeyError::Exposed { path, mode });
        }
        let mut pem = String::new();
        file.read_to_string(&mut pem).map_err(io)?;
        let pair = KeyPair::from_pem(&pem).map_err(damaged)?;
        Identity::of(&pair, name).map_err(damaged)
    }

    fn of(pair: &KeyPair, name: &str) -> Result<Identity, rcgen::Error> {
        let mut params = CertificateParams::new(Vec::new())?;
        let mut subject = DistinguishedName::new();
        subject.push(DnType::CommonName, name);
        params.distinguished_name = subject;
        let certificate = params.self_signed(pair)?;
        Ok(Identity {
            certificate: certificate.der().clone(),
            key: PrivatePkcs8KeyDer::from(pair.serialize_der()),
            fingerprint: Fingerprint::of_public_key(&pair.subject_public_key_info()),
        })
    }

    /// What peers pin.
    pub fn fingerprint(&self) -> Fingerprint {
        self.fingerprint
    }

    /// The certificate to present.
    pub(super) fn certificate(&self) -> CertificateDer<'static> {
        self.certificate.clone()
    }

    /// The private key, for TLS.
    pub(super) fn key(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::Pkcs8(self.key.clone_key())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn the_certificate_shows_the_fingerprint_of_its_key() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("node.key");
        let made = Identity::create(&path, "alpha").unwrap();
        assert_eq!(
            Fingerprint::of_certificate(&made.certificate()),
            Some(made.fingerprint())
        );
        let loaded = Identity::load(&path, "renamed").unwrap();
        assert_eq!(loaded.fingerprint(), made.fingerprint());
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
    }

    #[test]
    fn a_key_that_others_can_read_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("node.key");
        Identity::create(&path, "alpha").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
        assert!(matches!(
            Identity::load(&path, "alpha"),
            Err(KeyError::Exposed { mode: 0o640, .. })
        ));
    }

    #[test]
    fn a_damaged_key_is_named_and_an_existing_one_is_not_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("node.key");
        Identity::create(&path, "alpha").unwrap();
        assert!(matches!(
            Identity::create(&path, "alpha"),
            Err(KeyError::Io { .. })
        ));
        std::fs::write(&path, "-----BEGIN PRIVATE KEY-----\nAAAA\n").unwrap();
        assert!(matches!(
            Identity::load(&path, "alpha"),
            Err(KeyError::Damaged { .. })
        ));
    }

    #[test]
    fn fingerprints_are_read_in_any_grouping() {
        let shown = Fingerprint::of_public_key(b"some key").to_string();
        assert_eq!(shown.len(), 71);
        let parsed: Fingerprint = shown.parse().unwrap();
        assert_eq!(parsed.to_string(), shown);
        let bare = shown.replace('-', "").to_uppercase();
        assert_eq!(bare.parse(), Ok(parsed));
        assert!("abc".parse::<Fingerprint>().is_err());
        assert!(
            shown
                .replace('-', "_")
                .as_str()
                .parse::<Fingerprint>()
                .is_err()
        );
    }
}
