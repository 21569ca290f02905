//! TLS that ends at the router: towards clients with a certificate of its own, towards PostgreSQL with a look at
//! PostgreSQL's. The files are read again when they change; sessions keep what they began with.

use std::{
    collections::HashSet,
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, RwLock},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    select,
    signal::unix::{Signal, SignalKind, signal},
    time::sleep,
};
use tokio_rustls::{
    TlsAcceptor, TlsConnector, TlsStream,
    rustls::{
        ClientConfig, RootCertStore, ServerConfig,
        client::Resumption,
        pki_types::{CertificateDer, ServerName},
    },
};
use tracing::{info, warn};

pub use crate::config::CertificateError as TlsError;

use super::{stream::Stream, wire};
use crate::{
    config::{CertificateFiles, RouterConfig, file_stamp, read_certificates, server_tls, tls_provider},
    telemetry::events,
};

/// The protocol's name in the handshake: PostgreSQL 17 and later insist on it where TLS comes without being asked for.
const ALPN: &[u8] = b"postgresql";
/// The files are looked at this often.
const LOOK: Duration = Duration::from_secs(10);
/// The authority of PostgreSQL's certificates.
const CA_KEY: &str = "router.postgresql_ca_file";

/// What a router needs to encrypt, as the files were when they were last found good.
#[derive(Debug)]
pub struct Tls {
    certificate: Option<CertificateFiles>,
    authority: Option<PathBuf>,
    current: RwLock<Current>,
    /// What was complained of, to do so once.
    complaints: Mutex<HashSet<String>>,
}

#[derive(Debug, Clone, Default)]
struct Current {
    /// With the certificate that clients see.
    to_clients: Option<(Arc<ServerConfig>, CertificateDer<'static>)>,
    to_servers: Option<Arc<ClientConfig>>,
}

/// What tells one version of the files from another.
type Stamps = Vec<Option<Vec<u64>>>;

impl Tls {
    /// Reads what the configuration names.
    ///
    /// # Errors
    /// When a file can't be used.
    pub fn load(config: &RouterConfig) -> Result<Self, TlsError> {
        let (certificate, authority) = (config.certificate.clone(), config.postgresql_ca_file.clone());
        let current = Current::read(certificate.as_ref(), authority.as_deref())?;
        Ok(Self { certificate, authority, current: RwLock::new(current), complaints: Mutex::default() })
    }

    fn current(&self) -> Current {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether clients' TLS ends here.
    pub fn ends_here(&self) -> bool {
        self.certificate.is_some()
    }

    /// Whether the router encrypts what it sends to PostgreSQL.
    pub fn goes_on(&self) -> bool {
        self.authority.is_some()
    }

    /// Shakes hands with a client. `direct`: it didn't ask before.
    ///
    /// # Errors
    /// When the two don't come to terms.
    pub async fn accept(&self, client: TcpStream, direct: bool) -> io::Result<Stream> {
        let Some((config, _)) = self.current().to_clients else {
            return Err(io::Error::other("the router has no certificate"));
        };
        let stream = TlsAcceptor::from(config).accept(client).await?;
        // Whoever begins with TLS says in it that PostgreSQL is meant, so that no other protocol gets in by mistake.
        if direct && stream.get_ref().1.alpn_protocol() != Some(ALPN) {
            return Err(io::Error::other("TLS without a request for it needs the protocol name `postgresql` (ALPN)"));
        }
        Ok(Stream::Tls(Box::new(TlsStream::Server(stream))))
    }

    /// Encrypts a connection to a server if the configuration says so. `bound`: its client is encrypted as well, and may
    /// bind its password to the certificate it saw.
    ///
    /// # Errors
    /// When the server doesn't encrypt, or not with a certificate that counts.
    pub async fn connect(&self, mut server: TcpStream, address: &str, bound: bool) -> io::Result<Stream> {
        let current = self.current();
        let Some(config) = current.to_servers else { return Ok(Stream::Plain(server)) };
        let host = address.rsplit_once(':').map_or(address, |(host, _)| host).trim_matches(['[', ']']);
        let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
        server.write_all(&wire::SSL_REQUEST).await?;
        if server.read_u8().await? != b'S' {
            self.complain(address, || format!("doesn't encrypt, which {CA_KEY} asks for; switch ssl on there"));
            return Err(io::Error::other(format!("it doesn't encrypt, which {CA_KEY} asks for")));
        }
        let stream = match TlsConnector::from(config).connect(name, server).await {
            Ok(stream) => stream,
            Err(error) => {
                // A server that ends in the middle is restarting; what is wrong with a certificate is to be mended.
                if error.kind() == io::ErrorKind::InvalidData {
                    self.complain(address, || format!("can't be trusted: {error}"));
                }
                return Err(error);
            }
        };
        let theirs = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
        let same = current.to_clients.is_none_or(|(_, ours)| theirs == Some(&ours));
        if bound && !same {
            self.complain(address, || {
                "has another certificate than the router: clients that use TLS and SCRAM are refused unless they set \
                 channel_binding=disable"
                    .to_owned()
            });
        }
        Ok(Stream::Tls(Box::new(TlsStream::Client(stream))))
    }

    /// Once for each server until the files change: what is wrong may be said in ever new words.
    fn complain(&self, address: &str, what: impl FnOnce() -> String) {
        if self.complaints.lock().unwrap_or_else(PoisonError::into_inner).insert(address.to_owned()) {
            warn!("{address} {}", what());
        }
    }

    fn stamps(&self) -> Stamps {
        let pair = self.certificate.iter().flat_map(|f| [&f.certificate, &f.key]);
        pair.chain(&self.authority).map(|file| file_stamp(file)).collect()
    }

    /// Reads the files again. When they can't be used, what was read before stays, and this is false.
    fn reload(&self, refused: &mut Option<String>) -> bool {
        match Current::read(self.certificate.as_ref(), self.authority.as_deref()) {
            Ok(current) => {
                *self.current.write().unwrap_or_else(PoisonError::into_inner) = current;
                self.complaints.lock().unwrap_or_else(PoisonError::into_inner).clear();
                let certificate = self.certificate.as_ref().map(|f| f.certificate.display().to_string());
                info!(event = events::CERTIFICATE_RELOADED, certificate, "certificates were read again");
                *refused = None;
                true
            }
            Err(error) => {
                let error = format!("{}: {error}", error.key);
                if refused.as_ref() != Some(&error) {
                    warn!(
                        event = events::CERTIFICATE_REFUSED,
                        error, "changed certificates can't be used, the old ones stay"
                    );
                }
                *refused = Some(error);
                false
            }
        }
    }

    /// Reads the files again whenever they change, and on SIGHUP. Never ends.
    pub async fn keep_fresh(self: Arc<Self>) {
        // Without a handler SIGHUP would end the router, also one that has no certificates.
        let mut hangup = signal(SignalKind::hangup()).ok();
        let (mut read, mut refused) = (self.stamps(), None);
        loop {
            let told = select! {
                () = told(hangup.as_mut()) => true,
                () = sleep(LOOK), if !read.is_empty() => false,
            };
            let this = Arc::clone(&self);
            // Sessions don't wait for a disk that stands still.
            let look = tokio::task::spawn_blocking(move || {
                // Looked at before they are read: what is written meanwhile is another change.
                let now = this.stamps();
                let due = !now.is_empty() && (told || now != read);
                if due && !this.reload(&mut refused) {
                    // What was refused for want of a descriptor, say, is tried again.
                    return (read, refused);
                }
                (now, refused)
            });
            match look.await {
                Ok(after) => (read, refused) = after,
                // It panicked: that is said, and nothing is read again.
                Err(_) => return std::future::pending().await,
            }
        }
    }
}

async fn told(hangup: Option<&mut Signal>) {
    match hangup {
        Some(hangup) => drop(hangup.recv().await),
        None => std::future::pending().await,
    }
}

impl Current {
    fn read(certificate: Option<&CertificateFiles>, authority: Option<&Path>) -> Result<Self, TlsError> {
        Ok(Self {
            to_clients: certificate.map(to_clients).transpose()?,
            to_servers: authority.map(to_servers).transpose()?,
        })
    }
}

fn to_clients(files: &CertificateFiles) -> Result<(Arc<ServerConfig>, CertificateDer<'static>), TlsError> {
    server_tls(files, ("router.tls_certificate_file", "router.tls_key_file"), ALPN)
}

fn to_servers(file: &Path) -> Result<Arc<ClientConfig>, TlsError> {
    let wrong = |problem: String| TlsError { key: CA_KEY, told: format!("{} {problem}", file.display()) };
    let mut roots = RootCertStore::empty();
    for authority in read_certificates(CA_KEY, file)? {
        let advice = "name the certificates of those who signed PostgreSQL's";
        roots.add(authority).map_err(|error| wrong(format!("can't be used ({error}); {advice}")))?;
    }
    if roots.is_empty() {
        return Err(wrong("holds no certificate; put those who signed PostgreSQL's there, in PEM".to_owned()));
    }
    let mut config = ClientConfig::builder_with_provider(tls_provider())
        .with_safe_default_protocol_versions()
        .map_err(|error| wrong(format!("can't be used ({error}); report this")))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
}

#[cfg(test)]
#[path = "tls_test.rs"]
mod tests;
