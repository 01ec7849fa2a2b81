//! Certificates for development: an authority, a server certificate, client certificates.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose,
};
use time::{Duration, OffsetDateTime};

use crate::files;
use crate::identity::Identity;

/// How long a certificate is valid: what browsers and operating systems accept at most.
const VALID: Duration = Duration::days(365);
/// How long the authority is valid.
const CA_VALID: Duration = Duration::days(3650);
/// Clocks of devices are off: certificates are valid from this long ago.
const SKEW: Duration = Duration::days(1);

/// What went wrong while certificates were made.
#[derive(Debug, thiserror::Error)]
pub enum CertsError {
    /// A file could not be read or written.
    #[error("{0}: {1}")]
    File(PathBuf, io::Error),
    /// The certificate library refused.
    #[error("{0}")]
    Certificate(#[from] rcgen::Error),
    /// The authority's key is missing; making a new one would orphan its certificates.
    #[error("{0}: ca.pem is there and ca.key is missing; restore it, or remove ca.pem")]
    Incomplete(PathBuf),
    /// A client name is no identity.
    #[error("'{0}' is neither DEVICE nor DEVICE/MODULE")]
    Identity(String),
}

/// The development authority and where its certificates go.
pub struct Authority {
    dir: PathBuf,
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

impl Authority {
    /// Opens the authority of a folder (`ca.pem`, `ca.key`), or makes one.
    ///
    /// # Errors
    /// Files that cannot be read or written, or hold something else.
    pub fn open(dir: &Path) -> Result<Self, CertsError> {
        files::make_private_dir(dir).map_err(|error| CertsError::File(dir.into(), error))?;
        let (certificate, key) = (dir.join("ca.pem"), dir.join("ca.key"));
        let pair = match (certificate.exists(), key.exists()) {
            (true, false) => return Err(CertsError::Incomplete(dir.into())),
            (_, true) => KeyPair::from_pem(&read(&key)?)?,
            (false, false) => {
                let pair = KeyPair::generate()?;
                write(&key, pair.serialize_pem().as_bytes(), true)?;
                pair
            }
        };
        let params = ca_params()?;
        // What was issued with the key counts under a new certificate of it, too.
        let pem = if certificate.exists() {
            read(&certificate)?
        } else {
            let pem = params.self_signed(&pair)?.pem();
            write(&certificate, pem.as_bytes(), false)?;
            pem
        };
        Ok(Self {
            dir: dir.into(),
            issuer: Issuer::new(params, pair),
            pem,
        })
    }

    /// Makes `server.pem` (with the authority's certificate) and `server.key` for these names.
    ///
    /// # Errors
    /// Names that are no host names, files that cannot be written.
    pub fn server(&self, hostnames: &[String]) -> Result<(), CertsError> {
        let mut params = CertificateParams::new(hostnames)?;
        params.distinguished_name = name(hostnames.first().map_or("edgehub", String::as_str));
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        self.issue(params, "server")
    }

    /// Makes a client certificate for an identity, as `client-DEVICE[-MODULE].pem` and `.key`.
    ///
    /// # Errors
    /// A name that is no identity, files that cannot be written.
    pub fn client(&self, identity: &str) -> Result<(), CertsError> {
        let valid = Identity::parse(identity);
        let identity = valid.ok_or_else(|| CertsError::Identity(identity.to_owned()))?;
        let mut params = CertificateParams::default();
        params.distinguished_name = name(identity.as_str());
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.issue(
            params,
            &format!("client-{}", identity.as_str().replace('/', "-")),
        )
    }

    fn issue(&self, mut params: CertificateParams, file: &str) -> Result<(), CertsError> {
        validity(&mut params, VALID);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        let chain = format!("{}{}", certificate.pem(), self.pem);
        let path = self.dir.join(file);
        write(
            &path.with_extension("key"),
            key.serialize_pem().as_bytes(),
            true,
        )?;
        write(&path.with_extension("pem"), chain.as_bytes(), false)
    }
}

fn ca_params() -> Result<CertificateParams, CertsError> {
    let mut params = CertificateParams::new(Vec::new())?;
    params.distinguished_name = name("edgehub development CA");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    validity(&mut params, CA_VALID);
    Ok(params)
}

fn validity(params: &mut CertificateParams, valid: Duration) {
    let now = OffsetDateTime::from(SystemTime::now());
    params.not_before = now - SKEW;
    params.not_after = now + valid;
}

fn name(common: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common);
    name
}

fn read(path: &Path) -> Result<String, CertsError> {
    fs::read_to_string(path).map_err(|error| CertsError::File(path.into(), error))
}

fn write(path: &Path, content: &[u8], private: bool) -> Result<(), CertsError> {
    let written = if private {
        files::write_private(path, content)
    } else {
        files::write_public(path, content)
    };
    written.map_err(|error| CertsError::File(path.into(), error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_alone_gets_its_certificate_and_a_certificate_alone_is_told() {
        let dir = tempfile::tempdir().unwrap();
        Authority::open(dir.path()).unwrap();
        let key = fs::read(dir.path().join("ca.key")).unwrap();
        fs::remove_file(dir.path().join("ca.pem")).unwrap();
        Authority::open(dir.path()).unwrap();
        assert!(dir.path().join("ca.pem").exists());
        assert_eq!(fs::read(dir.path().join("ca.key")).unwrap(), key);
        fs::remove_file(dir.path().join("ca.key")).unwrap();
        let opened = Authority::open(dir.path()).map(|_| ());
        let text = opened.unwrap_err().to_string();
        assert!(text.contains("ca.key is missing"), "{text}");
    }
}
