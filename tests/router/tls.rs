//! TLS that ends at the router, and goes on to PostgreSQL or not, with real libpq.

use std::{
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Output,
    sync::Arc,
    time::Duration,
};

use matriarch::config::CertificateFiles;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    process::Command,
    time::{Instant, sleep},
};
use tokio_rustls::{
    TlsConnector,
    client::TlsStream,
    rustls::{
        ClientConfig, RootCertStore,
        crypto::ring,
        pki_types::{CertificateDer, pem::PemObject},
    },
};

use crate::{
    fakes::{Backend, Client, GSS_REQUEST, Manager, Options, Running, SOON, SSL_REQUEST, Told, router, state},
    real::{Server, give},
    unconfirmed::{Raw, WITH_TLS, put_certificate, query},
};

/// Who signs certificates.
pub struct Authority {
    dir: tempfile::TempDir,
    issuer: Issuer<'static, KeyPair>,
    pub file: PathBuf,
}

/// A certificate with its key.
pub struct Files {
    _dir: tempfile::TempDir,
    pub certificate: PathBuf,
    pub key: PathBuf,
}

impl Authority {
    pub fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "an authority for tests");
        let key = KeyPair::generate().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("root.crt");
        std::fs::write(&file, params.self_signed(&key).unwrap().pem()).unwrap();
        Self { dir, issuer: Issuer::new(params, key), file }
    }

    pub fn certificate(&self, names: &[&str]) -> Files {
        let dir = tempfile::tempdir_in(self.dir.path()).unwrap();
        let files = Files { certificate: dir.path().join("server.crt"), key: dir.path().join("server.key"), _dir: dir };
        self.renew(&files, names);
        files
    }

    pub fn renew(&self, files: &Files, names: &[&str]) {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        params.distinguished_name.push(DnType::CommonName, "a server for tests");
        let key = KeyPair::generate().unwrap();
        std::fs::write(&files.certificate, params.signed_by(&key, &self.issuer).unwrap().pem()).unwrap();
        std::fs::write(&files.key, key.serialize_pem()).unwrap();
        std::fs::set_permissions(&files.key, std::fs::Permissions::from_mode(0o600)).unwrap();
    }
}

impl Files {
    pub fn config(&self) -> CertificateFiles {
        CertificateFiles { certificate: self.certificate.clone(), key: self.key.clone() }
    }
}

pub async fn handshake(
    stream: TcpStream,
    authority: &Authority,
    alpn: &[&str],
) -> std::io::Result<TlsStream<TcpStream>> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(&authority.file).unwrap()).unwrap();
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
    let builder = builder.with_safe_default_protocol_versions().unwrap();
    let mut config = builder.with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
    TlsConnector::from(Arc::new(config)).connect("localhost".try_into().unwrap(), stream).await
}

/// A PostgreSQL with a role `app` that logs in with a password, and a router before it.
struct Site {
    server: Server,
    _manager: Manager,
    r: Running,
    authority: Authority,
}

const HBA: &str = "host all app 127.0.0.1/32 scram-sha-256\nhost all all 127.0.0.1/32 trust\nlocal all all trust\n";

async fn site(settings: &[&str], authority: Authority, options: Options, prepare: impl FnOnce(&Path)) -> Option<Site> {
    let hba = |dir: &Path| {
        std::fs::write(dir.join("hba.conf"), HBA).unwrap();
        give(&dir.join("hba.conf"));
        prepare(dir);
    };
    let Some(server) = Server::start_with(&[settings, &["hba_file=DIR/hba.conf"]].concat(), hba).await else {
        println!("passed over: no PostgreSQL installed");
        return None;
    };
    server.direct().await.batch_execute("create role app login password 'not so secret'").await.unwrap();
    let manager = Manager::start(server.state());
    let r = router(&[&manager], options).await;
    Some(Site { server, _manager: manager, r, authority })
}

impl Site {
    /// What psql says: the query's answer, or its errors.
    async fn psql(&self, more: &str) -> Result<String, String> {
        let Output { status, stdout, stderr } = self.run_psql(more).await;
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).trim().to_owned();
        if status.success() { Ok(text(stdout)) } else { Err(text(stderr)) }
    }

    async fn run_psql(&self, more: &str) -> Output {
        let (port, root) = (self.r.read_write.port(), self.authority.file.display());
        let target = format!(
            "host=localhost hostaddr=127.0.0.1 port={port} dbname=postgres user=app gssencmode=disable sslrootcert={root} {more}"
        );
        let sql = "select ssl from pg_stat_ssl where pid = pg_backend_pid()";
        let psql = Command::new(self.server.bin.join("psql"))
            .env("PGPASSWORD", "not so secret")
            .args(["-XAtc", sql, &target])
            .output();
        psql.await.unwrap()
    }
}

fn contains(result: Result<String, String>, text: &str) {
    let error = result.unwrap_err();
    assert!(error.contains(text), "{error}");
}

#[tokio::test]
async fn in_plain_text_to_postgresql_passwords_work_and_channel_binding_does_not() {
    let authority = Authority::new();
    let files = authority.certificate(&["localhost"]);
    let options = Options { certificate: Some(files.config()), ..Options::default() };
    // The server could encrypt; it isn't asked.
    let Some(site) = site(&WITH_TLS, authority, options, |dir| put_certificate(dir, &files)).await else { return };
    assert_eq!(site.psql("sslmode=verify-full").await, Ok("f".into()));
    assert_eq!(site.psql("sslmode=verify-full channel_binding=disable").await, Ok("f".into()));
    assert_eq!(site.psql("sslmode=verify-full ssl_min_protocol_version=TLSv1.3").await, Ok("f".into()));
    assert_eq!(site.psql("sslmode=verify-full ssl_max_protocol_version=TLSv1.2").await, Ok("f".into()));
    assert_eq!(site.psql("sslmode=disable").await, Ok("f".into()));
    contains(site.psql("sslmode=verify-full channel_binding=require").await, "channel binding");
    contains(
        site.psql("sslmode=verify-full ssl_min_protocol_version=TLSv1 ssl_max_protocol_version=TLSv1.1").await,
        "",
    );
    contains(site.psql("host=other.example sslmode=verify-full").await, "does not match host name");
    let status = site.r.handle.status();
    assert_eq!(status.unwatched.tls, 0);
}

#[tokio::test]
async fn with_one_certificate_on_both_channel_binding_works() {
    let authority = Authority::new();
    let files = authority.certificate(&["localhost", "127.0.0.1"]);
    let ca = Some(authority.file.clone());
    let options = Options { certificate: Some(files.config()), postgresql_ca_file: ca, ..Options::default() };
    let Some(site) = site(&WITH_TLS, authority, options, |dir| put_certificate(dir, &files)).await else { return };
    assert_eq!(site.psql("sslmode=verify-full channel_binding=require").await, Ok("t".into()));
    assert_eq!(site.psql("sslmode=verify-full").await, Ok("t".into()));
    assert_eq!(site.psql("sslmode=verify-full channel_binding=disable").await, Ok("t".into()));
    // A client in plain text, say on the router's own host, is encrypted from there on.
    assert_eq!(site.psql("sslmode=disable").await, Ok("t".into()));
    // And watched, and cancelled.
    let mut client = Raw::plain(&site.r, b"").await;
    let mut cancel = TcpStream::connect(site.r.read_write).await.unwrap();
    client.send(&query("select pg_sleep(60)")).await;
    let admin = site.server.direct().await;
    let start = Instant::now();
    let asleep =
        format!("select exists (select from pg_stat_activity where pid = {} and wait_event = 'PgSleep')", client.pid);
    while !admin.query_one(&asleep, &[]).await.unwrap().get::<_, bool>(0) {
        assert!(start.elapsed() < SOON);
        sleep(Duration::from_millis(5)).await;
    }
    let request = [&[0, 0, 0, 16, 4, 210, 22, 46][..], &client.pid.to_be_bytes(), &client.key].concat();
    cancel.write_all(&request).await.unwrap();
    assert_eq!(client.told(1).await, ["ERROR 57014: "]);
    assert_eq!(site.r.handle.status().unwatched.tls, 0);
}

#[tokio::test]
async fn with_another_certificate_behind_it_only_clients_that_bind_nothing_get_in() {
    let authority = Authority::new();
    let (ours, theirs) = (authority.certificate(&["localhost"]), authority.certificate(&["127.0.0.1"]));
    let ca = Some(authority.file.clone());
    let options = Options { certificate: Some(ours.config()), postgresql_ca_file: ca, ..Options::default() };
    let Some(site) = site(&WITH_TLS, authority, options, |dir| put_certificate(dir, &theirs)).await else { return };
    contains(site.psql("sslmode=verify-full").await, "SCRAM channel binding check failed");
    contains(site.psql("sslmode=verify-full channel_binding=require").await, "SCRAM channel binding check failed");
    assert_eq!(site.psql("sslmode=verify-full channel_binding=disable").await, Ok("t".into()));
    assert_eq!(site.psql("sslmode=disable").await, Ok("t".into()));
}

#[tokio::test]
async fn a_postgresql_that_can_not_be_trusted_gets_no_session() {
    let (authority, other) = (Authority::new(), Authority::new());
    let (stranger, elsewhere) = (other.certificate(&["127.0.0.1"]), authority.certificate(&["elsewhere.example"]));
    let hold = Duration::from_millis(500);
    for (files, why) in
        [(Some(&stranger), "BadSignature"), (Some(&elsewhere), "not valid for name"), (None, "doesn't encrypt")]
    {
        let settings: &[&str] = if files.is_some() { &WITH_TLS } else { &[] };
        let prepare = |dir: &Path| files.into_iter().for_each(|files| put_certificate(dir, files));
        let Some(server) = Server::start_with(settings, prepare).await else { return };
        let manager = Manager::start(server.state());
        let options = Options { hold, postgresql_ca_file: Some(authority.file.clone()), ..Options::default() };
        let r = router(&[&manager], options).await;
        let target =
            format!("host=127.0.0.1 port={} user=postgres dbname=postgres sslmode=disable", r.read_write.port());
        let psql = Command::new(server.bin.join("psql")).args(["-XAtc", "select 1", &target]).output();
        let output = psql.await.unwrap();
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && told.contains("encrypt: ") && told.contains(why), "{why}: {told}");
    }
}

#[tokio::test]
async fn direct_tls_names_its_protocol() {
    let authority = Authority::new();
    let files = authority.certificate(&["localhost"]);
    let options = Options { certificate: Some(files.config()), ..Options::default() };
    let Some(site) = site(&[], authority, options, |_| {}).await else { return };
    let dial = || async { TcpStream::connect(site.r.read_write).await.unwrap() };
    let stream = handshake(dial().await, &site.authority, &["postgresql"]).await.unwrap();
    let mut client = Raw::start(stream, b"").await;
    client.send(&query("select 1")).await;
    assert_eq!(client.told(1).await, ["SELECT 1"]);
    assert!(handshake(dial().await, &site.authority, &["h2"]).await.is_err());
    // In TLS 1.3 the client's side is done before the router's: it is told with the first thing it reads.
    let mut stream = handshake(dial().await, &site.authority, &[]).await.unwrap();
    assert_eq!(stream.read(&mut [0; 1]).await.unwrap_or(0), 0);
    // Asked for, the name may be missing: clients before 17 have none.
    let mut asked = dial().await;
    asked.write_all(&SSL_REQUEST).await.unwrap();
    assert_eq!(asked.read_u8().await.unwrap(), b'S');
    Raw::start(handshake(asked, &site.authority, &[]).await.unwrap(), b"").await;
}

#[tokio::test]
async fn plain_text_is_refused_where_tls_is_required() {
    let authority = Authority::new();
    let files = authority.certificate(&["localhost"]);
    let backend = Backend::start("a").await;
    let manager = Manager::start(state(1, 1, true, Some(&backend)));
    let r =
        router(&[&manager], Options { certificate: Some(files.config()), tls_required: true, ..Options::default() })
            .await;
    let mut client = Client::open(r.read_write).await;
    let refused = ("28000".to_owned(), "the router takes encrypted sessions only".to_owned());
    assert_eq!(client.told().await, Told::Refused(refused.0, refused.1));
    client.ended().await;
    assert_eq!(backend.attempts(), 0);
    // As libpq does with a Kerberos ticket: the server is asked for GSSAPI, the router for TLS.
    let mut client = Client::connect(r.read_write).await;
    client.send(&GSS_REQUEST).await;
    assert_eq!(client.byte().await, b'N');
    client.send(&SSL_REQUEST).await;
    assert_eq!(client.byte().await, b'S');
    let mut stream = handshake(client.0, &authority, &["postgresql"]).await.unwrap();
    stream.write_all(b"\0\0\0\x14\0\x03\0\0user\0test\0\0\0").await.unwrap();
    assert_eq!(stream.read_u8().await.unwrap(), b'R');
}

#[tokio::test]
async fn what_is_no_tls_and_what_is_tls_twice_is_closed() {
    let authority = Authority::new();
    let files = authority.certificate(&["localhost"]);
    let backend = Backend::start("a").await;
    let manager = Manager::start(state(1, 1, true, Some(&backend)));
    let r = router(&[&manager], Options { certificate: Some(files.config()), ..Options::default() }).await;
    let mut client = Client::connect(r.read_write).await;
    // Bytes slipped in between the request and the handshake are no part of what is encrypted.
    client.send(&[&SSL_REQUEST[..], b"\0\0\0\x14\0\x03\0\0user\0test\0\0\0"].concat()).await;
    assert_eq!(client.byte().await, b'S');
    let mut rest = Vec::new();
    let _ = client.0.read_to_end(&mut rest).await;
    assert_eq!(rest.first().copied().unwrap_or(0x15), 0x15, "an alert at most: {rest:?}");
    for twice in [SSL_REQUEST, GSS_REQUEST] {
        let mut client = Client::connect(r.read_write).await;
        client.send(&SSL_REQUEST).await;
        assert_eq!(client.byte().await, b'S');
        let mut stream = handshake(client.0, &authority, &[]).await.unwrap();
        stream.write_all(&twice).await.unwrap();
        assert_eq!(stream.read(&mut [0; 1]).await.unwrap_or(0), 0);
    }
    assert_eq!(backend.attempts(), 0);
}

#[tokio::test]
async fn a_client_in_tls_that_leaves_while_it_is_held_gives_its_place_back() {
    let authority = Authority::new();
    let files = authority.certificate(&["localhost"]);
    let backend = Backend::start("a").await;
    let manager = Manager::start(state(1, 1, false, Some(&backend)));
    let r = router(&[&manager], Options { certificate: Some(files.config()), ..Options::default() }).await;
    let begin = || async {
        let mut client = Client::connect(r.read_write).await;
        client.send(&SSL_REQUEST).await;
        assert_eq!(client.byte().await, b'S');
        let mut stream = handshake(client.0, &authority, &[]).await.unwrap();
        stream.write_all(b"\0\0\0\x14\0\x03\0\0user\0test\0\0\0").await.unwrap();
        stream
    };
    let mut polite = begin().await;
    r.until_held(1).await;
    polite.shutdown().await.unwrap();
    r.until_held(0).await;
    // One that talks on before it was answered stays, and what it said gets there.
    let mut talks = begin().await;
    r.until_held(1).await;
    talks.write_all(b"early").await.unwrap();
    manager.say(state(1, 2, true, Some(&backend)));
    let mut told = Vec::new();
    while !told.ends_with(b"early") {
        let mut bytes = [0; 64];
        let read = tokio::time::timeout(SOON, talks.read(&mut bytes)).await.unwrap().unwrap();
        assert!(read > 0, "{told:?}");
        told.extend(&bytes[..read]);
    }
}

#[tokio::test]
async fn a_new_certificate_is_shown_on_sighup_and_sessions_go_on() {
    let authority = Authority::new();
    let files = authority.certificate(&["localhost"]);
    let options = Options { certificate: Some(files.config()), ..Options::default() };
    let Some(site) = site(&[], authority, options, |_| {}).await else { return };
    let authority = &site.authority;
    let begin = || async {
        let stream = TcpStream::connect(site.r.read_write).await.unwrap();
        let stream = handshake(stream, authority, &["postgresql"]).await.unwrap();
        let shown = stream.get_ref().1.peer_certificates().unwrap()[0].to_vec();
        (shown, stream)
    };
    let (first, stream) = begin().await;
    let mut session = Raw::start(stream, b"").await;
    let hangup = || nix::sys::signal::raise(nix::sys::signal::Signal::SIGHUP).unwrap();
    // Files that can't be used change nothing.
    std::fs::write(&files.key, "no key").unwrap();
    hangup();
    assert_eq!(begin().await.0, first);
    authority.renew(&files, &["localhost"]);
    hangup();
    let start = Instant::now();
    while begin().await.0 == first {
        assert!(start.elapsed() < SOON, "the new certificate should be shown");
        sleep(Duration::from_millis(10)).await;
    }
    session.send(&query("select 1")).await;
    assert_eq!(session.told(1).await, ["SELECT 1"]);
}
