//! The certificate of a server, read again whenever its files change.

use std::{
    io,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use tokio::{net::TcpStream, time::sleep};
use tokio_rustls::{TlsAcceptor, rustls::ServerConfig, server::TlsStream};

use crate::{
    config::{CertificateError, CertificateFiles, file_stamp, server_tls},
    telemetry::events,
};

/// The one protocol that is spoken, as the handshake names it.
const ALPN: &[u8] = b"http/1.1";
/// The files are looked at this often.
const LOOK: Duration = Duration::from_secs(10);

/// The keys of the configuration that name certificate and key, for errors.
type Keys = (&'static str, &'static str);

/// The certificate as its files were when they were last found good.
#[derive(Debug)]
pub struct Tls {
    files: CertificateFiles,
    keys: Keys,
    current: RwLock<Arc<ServerConfig>>,
}

impl Tls {
    /// Reads the files; `keys` of the configuration name both in errors.
    ///
    /// # Errors
    /// When one can't be used.
    pub fn load(files: CertificateFiles, keys: Keys) -> Result<Tls, CertificateError> {
        let current = RwLock::new(read(&files, keys)?);
        Ok(Tls { files, keys, current })
    }

    /// Shakes hands with a client.
    ///
    /// # Errors
    /// When the two don't come to terms.
    pub async fn accept(&self, client: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        let config = Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner));
        TlsAcceptor::from(config).accept(client).await
    }

    /// Reads the files again whenever they change; what can't be used leaves the old ones in use. Never ends.
    pub async fn keep_fresh(self: Arc<Self>) {
        let mut read = self.stamps();
        loop {
            sleep(LOOK).await;
            let (this, before) = (Arc::clone(&self), read.clone());
            // Nobody waits for a disk that stands still.
            let look = tokio::task::spawn_blocking(move || {
                // Looked at before they are read: what is written meanwhile is another change.
                let now = this.stamps();
                if now != before {
                    this.reload();
                }
                now
            });
            // One that panicked has said so, and is tried again.
            read = look.await.unwrap_or(read);
        }
    }

    fn stamps(&self) -> [Option<Vec<u64>>; 2] {
        [file_stamp(&self.files.certificate), file_stamp(&self.files.key)]
    }

    fn reload(&self) {
        match read(&self.files, self.keys) {
            Ok(config) => {
                *self.current.write().unwrap_or_else(PoisonError::into_inner) = config;
                let certificate = self.files.certificate.display().to_string();
                tracing::info!(event = events::CERTIFICATE_RELOADED, certificate, "the certificate was read again");
            }
            Err(error) => tracing::warn!(
                event = events::CERTIFICATE_REFUSED,
                error = format!("{}: {error}", error.key),
                "changed certificates can't be used, the old ones stay"
            ),
        }
    }
}

fn read(files: &CertificateFiles, keys: Keys) -> Result<Arc<ServerConfig>, CertificateError> {
    server_tls(files, keys, ALPN).map(|(config, _)| config)
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt as _};

    use tokio::net::TcpListener;
    use tokio_rustls::{
        TlsConnector,
        rustls::{
            ClientConfig, RootCertStore,
            pki_types::{CertificateDer, ServerName},
        },
    };

    use super::*;

    const KEYS: Keys = ("rest.tls_certificate_file", "rest.tls_key_file");

    fn renew(files: &CertificateFiles) -> CertificateDer<'static> {
        let made = rcgen::generate_simple_self_signed(["db1.example".to_owned()]).unwrap();
        fs::write(&files.certificate, made.cert.pem()).unwrap();
        fs::write(&files.key, made.signing_key.serialize_pem()).unwrap();
        fs::set_permissions(&files.key, fs::Permissions::from_mode(0o600)).unwrap();
        made.cert.der().clone()
    }

    /// Whether a client that trusts only `authority` comes to terms.
    async fn trusts(tls: &Tls, authority: &CertificateDer<'static>, protocol: &[u8]) -> bool {
        let mut roots = RootCertStore::empty();
        roots.add(authority.clone()).unwrap();
        let mut client = ClientConfig::builder_with_provider(crate::config::tls_provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        client.alpn_protocols = vec![b"h2".to_vec(), protocol.to_vec()];
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let there = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (here, _) = listener.accept().await.unwrap();
        let name = ServerName::try_from("db1.example").unwrap();
        let connect = TlsConnector::from(Arc::new(client)).connect(name, there);
        let (accepted, connected) = tokio::join!(tls.accept(here), connect);
        accepted.is_ok() && connected.is_ok()
    }

    #[tokio::test]
    async fn clients_see_the_certificate_and_a_new_one_once_it_is_good() {
        let dir = tempfile::tempdir().unwrap();
        let files = CertificateFiles { certificate: dir.path().join("crt"), key: dir.path().join("key") };
        let missing = Tls::load(files.clone(), KEYS).unwrap_err();
        assert_eq!(missing.key, "rest.tls_certificate_file");
        let first = renew(&files);
        let tls = Tls::load(files.clone(), KEYS).unwrap();
        assert!(trusts(&tls, &first, ALPN).await);
        assert!(!trusts(&tls, &first, b"postgresql").await, "no protocol in common");

        let before = tls.stamps();
        fs::write(&files.key, "no key").unwrap();
        assert_ne!(tls.stamps(), before);
        tls.reload();
        assert!(trusts(&tls, &first, ALPN).await, "what can't be used changes nothing");
        let second = renew(&files);
        tls.reload();
        assert!(trusts(&tls, &second, ALPN).await && !trusts(&tls, &first, ALPN).await);
    }
}
