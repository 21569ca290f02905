//! Certificates from files, for the processes that show one. Nothing of what a file holds gets into an error: somebody
//! may have named a key.

use std::{fs, os::unix::fs::MetadataExt as _, path::Path, sync::Arc};

use tokio_rustls::rustls::{
    ServerConfig,
    crypto::{CryptoProvider, ring},
    pki_types::{CertificateDer, PrivateKeyDer, pem, pem::PemObject as _},
    server::NoServerSessionStorage,
};

use super::{CertificateFiles, read_private_key};

/// Why a file can't be used.
#[derive(Debug, thiserror::Error)]
#[error("{told}")]
pub struct CertificateError {
    /// The key of the configuration that names it.
    pub key: &'static str,
    /// File and reason, then `; what to do`.
    pub told: String,
}

/// The cryptography of every TLS connection.
pub fn tls_provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

/// What a server needs to show its certificate, and that certificate; `keys` name both files in errors. TLS 1.2 and 1.3,
/// no resumption: as PostgreSQL has it.
///
/// # Errors
/// When a file can't be used, or the two don't belong together.
pub fn server_tls(
    files: &CertificateFiles,
    keys: (&'static str, &'static str),
    protocol: &[u8],
) -> Result<(Arc<ServerConfig>, CertificateDer<'static>), CertificateError> {
    let chain = read_certificates(keys.0, &files.certificate)?;
    let Some(first) = chain.first().cloned() else {
        let told = format!("{} holds no certificate; put it there in PEM", files.certificate.display());
        return Err(CertificateError { key: keys.0, told });
    };
    let wrong = |told: String| CertificateError { key: keys.1, told };
    let secret = read_private_key(&files.key).map_err(|error| wrong(error.to_string()))?;
    let key = PrivateKeyDer::from_pem_slice(secret.expose()).map_err(|error| {
        // The error itself may quote the file.
        let problem = match error {
            pem::Error::NoItemsFound => "holds no private key, or one with a passphrase",
            _ => "is no PEM",
        };
        wrong(format!("{} {problem}; put the key there in PEM, without a passphrase", files.key.display()))
    })?;
    let mut config = ServerConfig::builder_with_provider(tls_provider())
        .with_safe_default_protocol_versions()
        .and_then(|builder| builder.with_no_client_auth().with_single_cert(chain, key))
        .map_err(|error| {
            let (certificate, key) = (files.certificate.display(), files.key.display());
            wrong(format!("{key} doesn't go with {certificate} ({error}); name a certificate and its own key"))
        })?;
    config.alpn_protocols = vec![protocol.to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok((Arc::new(config), first))
}

/// All certificates of a file, which may be none.
///
/// # Errors
/// When it can't be read, or is no PEM.
pub fn read_certificates(key: &'static str, file: &Path) -> Result<Vec<CertificateDer<'static>>, CertificateError> {
    let found = CertificateDer::pem_file_iter(file).and_then(Iterator::collect);
    found.map_err(|error| {
        // Only these say nothing of what is in the file: somebody may have named a key.
        let problem = match error {
            pem::Error::Io(error) => format!("can't be read ({error})"),
            _ => "is no PEM".to_owned(),
        };
        CertificateError { key, told: format!("{} {problem}; name a file in PEM", file.display()) }
    })
}

/// What tells one version of a file from another; `None`: it isn't there. A key that others could read is mended without
/// a change of its bytes, so the time of the inode counts as well.
pub fn file_stamp(file: &Path) -> Option<Vec<u64>> {
    let m = fs::metadata(file).ok()?;
    let times = [m.mtime(), m.mtime_nsec(), m.ctime(), m.ctime_nsec()].map(i64::unsigned_abs);
    Some([m.ino(), m.size()].into_iter().chain(times).collect())
}
