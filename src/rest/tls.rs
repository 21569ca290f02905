//! The certificate of this API, read again whenever its files change.

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

/// The certificate as its files were when they were last found good.
#[derive(Debug)]
pub struct Tls {
    files: CertificateFiles,
    current: RwLock<Arc<ServerConfig>>,
}

impl Tls {
    /// Reads the files.
    ///
    /// # Errors
    /// When one can't be used.
    pub fn load(files: CertificateFiles) -> Result<Tls, CertificateError> {
        let current = RwLock::new(read(&files)?);
        Ok(Tls { files, current })
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
        match read(&self.files) {
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

fn read(files: &CertificateFiles) -> Result<Arc<ServerConfig>, CertificateError> {
    let keys = ("rest.tls_certificate_file", "rest.tls_key_file");
    server_tls(files, keys, ALPN).map(|(config, _)| config)
}
