//! TLS that ends at the router: towards clients with a certificate of its own, towards PostgreSQL with a look at
//! PostgreSQL's. The files are read again when they change; sessions keep what they began with.

use std::{
    collections::HashSet,
    fs, io,
    os::unix::fs::MetadataExt as _,
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
        crypto::{CryptoProvider, ring},
        pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem, pem::PemObject as _},
        server::NoServerSessionStorage,
    },
};
use tracing::{info, warn};

use super::{stream::Stream, wire};
use crate::{
    config::{CertificateFiles, RouterConfig, read_private_key},
    telemetry::events,
};

/// The protocol's name in the handshake: PostgreSQL 17 and later insist on it where TLS comes without being asked for.
const ALPN: &[u8] = b"postgresql";
/// The files are looked at this often.
const LOOK: Duration = Duration::from_secs(10);
/// The authority of PostgreSQL's certificates.
const CA_KEY: &str = "router.postgresql_ca_file";

/// Why a file can't be used.
#[derive(Debug, thiserror::Error)]
#[error("{told}")]
pub struct TlsError {
    /// The key of the configuration that names it.
    pub key: &'static str,
    /// File and reason, then `; what to do`.
    pub told: String,
}

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
        // A key that others could read is mended without a change of its bytes.
        let stamp = |m: fs::Metadata| {
            [m.ino(), m.size(), m.mtime_nsec().unsigned_abs()].into_iter().chain(changed(&m)).collect()
        };
        pair.chain(&self.authority).map(|file| fs::metadata(file).ok().map(stamp)).collect()
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

fn changed(file: &fs::Metadata) -> [u64; 3] {
    [file.mtime().unsigned_abs(), file.ctime().unsigned_abs(), file.ctime_nsec().unsigned_abs()]
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

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

/// TLS 1.2 and 1.3, no resumption: as PostgreSQL has it.
fn to_clients(files: &CertificateFiles) -> Result<(Arc<ServerConfig>, CertificateDer<'static>), TlsError> {
    let chain = certificates("router.tls_certificate_file", &files.certificate)?;
    let Some(first) = chain.first().cloned() else {
        let told = format!("{} holds no certificate; put it there in PEM", files.certificate.display());
        return Err(TlsError { key: "router.tls_certificate_file", told });
    };
    let wrong = |told: String| TlsError { key: "router.tls_key_file", told };
    let secret = read_private_key(&files.key).map_err(|error| wrong(error.to_string()))?;
    let key = PrivateKeyDer::from_pem_slice(secret.expose()).map_err(|error| {
        // The error itself may quote the file.
        let problem = match error {
            pem::Error::NoItemsFound => "holds no private key, or one with a passphrase",
            _ => "is no PEM",
        };
        wrong(format!("{} {problem}; put the key there in PEM, without a passphrase", files.key.display()))
    })?;
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .and_then(|builder| builder.with_no_client_auth().with_single_cert(chain, key))
        .map_err(|error| {
            let (certificate, key) = (files.certificate.display(), files.key.display());
            wrong(format!("{key} doesn't go with {certificate} ({error}); name a certificate and its own key"))
        })?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok((Arc::new(config), first))
}

fn to_servers(file: &Path) -> Result<Arc<ClientConfig>, TlsError> {
    let wrong = |problem: String| TlsError { key: CA_KEY, told: format!("{} {problem}", file.display()) };
    let mut roots = RootCertStore::empty();
    for authority in certificates(CA_KEY, file)? {
        let advice = "name the certificates of those who signed PostgreSQL's";
        roots.add(authority).map_err(|error| wrong(format!("can't be used ({error}); {advice}")))?;
    }
    if roots.is_empty() {
        return Err(wrong("holds no certificate; put those who signed PostgreSQL's there, in PEM".to_owned()));
    }
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(|error| wrong(format!("can't be used ({error}); report this")))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
}

fn certificates(key: &'static str, file: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let found = CertificateDer::pem_file_iter(file).and_then(Iterator::collect);
    found.map_err(|error| {
        // Only these say nothing of what is in the file: somebody may have named a key.
        let problem = match error {
            pem::Error::Io(error) => format!("can't be read ({error})"),
            _ => "is no PEM".to_owned(),
        };
        TlsError { key, told: format!("{} {problem}; name a file in PEM", file.display()) }
    })
}

#[cfg(test)]
#[path = "tls_test.rs"]
mod tests;
