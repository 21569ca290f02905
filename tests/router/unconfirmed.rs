//! Commits whose wait for a standby is cancelled, on a real PostgreSQL whose standby never comes.
//! Passed over where none is installed.

use std::{path::Path, time::Duration};

use matriarch::routing::Unwatched;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
    process::Command,
    time::{Instant, sleep, timeout},
};

use crate::{
    fakes::{Manager, Options, Running, SOON, SSL_REQUEST, router},
    real::{Server, give},
    tls::{Authority, Files, handshake},
};

const NO_STANDBY: &[&str] = &["synchronous_standby_names=nobody", "max_prepared_transactions=5"];

/// A stream of either kind.
pub trait Bytes: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Bytes for T {}

/// A client that sees every message.
pub struct Raw {
    stream: Box<dyn Bytes>,
    pub pid: i32,
    pub key: Vec<u8>,
}

pub fn message(kind: u8, body: &[u8]) -> Vec<u8> {
    let mut out = vec![kind];
    out.extend((u32::try_from(body.len()).unwrap() + 4).to_be_bytes());
    out.extend(body);
    out
}

pub fn query(sql: &str) -> Vec<u8> {
    message(b'Q', format!("{sql}\0").as_bytes())
}

/// One statement of the extended protocol.
fn extended(sql: &str) -> Vec<u8> {
    let parse = message(b'P', format!("\0{sql}\0\0\0").as_bytes());
    [parse, message(b'B', &[0; 8]), message(b'E', &[0; 5])].concat()
}

impl Raw {
    pub async fn start(stream: impl Bytes + 'static, parameters: &[u8]) -> Self {
        let mut raw = Self { stream: Box::new(stream), pid: 0, key: Vec::new() };
        let body = [&196_608u32.to_be_bytes()[..], b"user\0postgres\0database\0postgres\0", parameters, b"\0"].concat();
        raw.send(&message(b'x', &body)[1..]).await;
        loop {
            let (kind, body) = raw.read().await.expect("a session");
            match kind {
                b'K' => {
                    raw.pid = i32::from_be_bytes(body[..4].try_into().unwrap());
                    raw.key = body[4..].to_vec();
                }
                b'E' => panic!("{}", String::from_utf8_lossy(&body)),
                b'Z' => return raw,
                _ => {}
            }
        }
    }

    pub async fn plain(r: &Running, parameters: &[u8]) -> Self {
        Self::start(TcpStream::connect(r.read_write).await.unwrap(), parameters).await
    }

    pub async fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.unwrap();
        self.stream.flush().await.unwrap();
    }

    /// The next message; `None` at the end.
    pub async fn read(&mut self) -> Option<(u8, Vec<u8>)> {
        let read = async {
            let kind = self.stream.read_u8().await.ok()?;
            let length = self.stream.read_u32().await.ok()? as usize;
            let mut body = vec![0; length - 4];
            self.stream.read_exact(&mut body).await.ok()?;
            Some((kind, body))
        };
        timeout(SOON, read).await.expect("a message or an end")
    }

    /// Tags of commands, notices and errors (severity, SQLSTATE) up to the end, or up to the last of `syncs` answers.
    pub async fn told(&mut self, mut syncs: usize) -> Vec<String> {
        let mut told = Vec::new();
        while let Some((kind, body)) = self.read().await {
            let text = |tag: u8| {
                let field = body.split(|b| *b == 0).find(|f| f.first() == Some(&tag));
                String::from_utf8_lossy(field.map_or(b"", |f| &f[1..])).into_owned()
            };
            match kind {
                b'C' => told.push(String::from_utf8_lossy(&body[..body.len() - 1]).into_owned()),
                b'N' => told.push(format!("notice {}", text(b'R'))),
                b'E' => told.push(format!("{} {}: {}", text(b'V'), text(b'C'), text(b'H'))),
                b'Z' => {
                    syncs -= 1;
                    if syncs == 0 {
                        return told;
                    }
                }
                _ => {}
            }
        }
        told.push("end".into());
        told
    }
}

/// How somebody ends a wait.
#[derive(Debug, Clone, Copy)]
enum By {
    Request,
    Function(&'static str),
}

struct Site {
    server: Server,
    _manager: Manager,
    r: Running,
    admin: tokio_postgres::Client,
}

impl Site {
    async fn start(settings: &[&str], options: Options, prepare: impl FnOnce(&Path)) -> Option<Self> {
        let Some(server) = Server::start_with(settings, prepare).await else {
            println!("passed over: no PostgreSQL installed");
            return None;
        };
        let manager = Manager::start(server.state());
        let r = router(&[&manager], options).await;
        let admin = server.direct().await;
        admin.batch_execute("set synchronous_commit = local; create table t (i int)").await.unwrap();
        Some(Self { server, _manager: manager, r, admin })
    }

    async fn until(&self, what: &str, sql: &str) {
        let start = Instant::now();
        while !self.admin.query_one(sql, &[]).await.unwrap().get::<_, bool>(0) {
            assert!(start.elapsed() < SOON, "{what}");
            sleep(Duration::from_millis(5)).await;
        }
    }

    /// Waits until the session waits for a standby, and ends that.
    async fn end_wait(&self, client: &Raw, by: By) {
        let pid = client.pid;
        let waits =
            format!("select exists (select from pg_stat_activity where pid = {pid} and wait_event = 'SyncRep')");
        self.until("it should wait for a standby", &waits).await;
        match by {
            By::Request => {
                let mut cancel = TcpStream::connect(self.r.read_write).await.unwrap();
                cancel.write_all(&cancel_request(client)).await.unwrap();
            }
            By::Function(name) => drop(self.admin.query_one(&format!("select {name}({pid})"), &[]).await.unwrap()),
        }
    }

    async fn until_gone(&self, pid: i32) {
        let gone = format!("select not exists (select from pg_stat_activity where pid = {pid})");
        self.until("the server's side should end", &gone).await;
    }

    async fn rows(&self, which: &str) -> i64 {
        self.admin.query_one(&format!("select count(*) from t where {which}"), &[]).await.unwrap().get(0)
    }
}

fn cancel_request(client: &Raw) -> Vec<u8> {
    let body = [&80_877_102u32.to_be_bytes()[..], &client.pid.to_be_bytes(), &client.key].concat();
    message(b'x', &body)[1..].to_vec()
}

const NOTICE: &str = "notice SyncRepWaitForLSN";
const UNKNOWN: &str = "FATAL 08007: Connect anew and look whether it is there before trying again.";

/// What a client saw before the notice; after it there is nothing but the error.
fn with_unknown(before: &[&str]) -> Vec<String> {
    before.iter().chain(&[NOTICE, UNKNOWN, "end"]).map(|s| (*s).to_owned()).collect()
}

#[tokio::test]
async fn a_cancelled_wait_is_an_unknown_outcome_however_it_was_cancelled() {
    let Some(site) = Site::start(NO_STANDBY, Options::default(), |_| {}).await else { return };
    let ways = [By::Request, By::Function("pg_cancel_backend"), By::Function("pg_terminate_backend")];
    for (i, by) in ways.into_iter().enumerate() {
        let mut client = Raw::plain(&site.r, b"").await;
        client.send(&query(&format!("insert into t values ({i})"))).await;
        site.end_wait(&client, by).await;
        assert_eq!(client.told(1).await, with_unknown(&[]), "{by:?}");
        site.until_gone(client.pid).await;
        assert_eq!(site.rows(&format!("i = {i}")).await, 1, "it is on the primary, {by:?}");
        assert_eq!(site.r.handle.status().false_acks_turned, i as u64 + 1);
    }
    let status = site.r.handle.status();
    assert_eq!((status.unwatched_now, status.unwatched), (0, Unwatched::default()));
}

#[tokio::test]
async fn it_is_so_in_each_way_to_commit() {
    let Some(site) = Site::start(NO_STANDBY, Options::default(), |_| {}).await else { return };
    let sync = message(b'S', b"");
    // The server commits at the Sync, after CommandComplete: what acknowledges is the ReadyForQuery that is never told.
    let pipeline = [extended("select 1"), sync.clone(), extended("insert into t values (2)"), sync.clone()];
    let more = [extended("select 3"), sync.clone()].concat();
    let block =
        [extended("begin"), extended("insert into t values (3)"), extended("commit"), extended("select 3"), sync];
    let prepare = "begin; insert into t values (5); prepare transaction 'x'";
    let procedure = "do $$ begin insert into t values (6); commit; end $$";
    let copy = [query("copy t from stdin"), message(b'd', b"4\n"), message(b'c', b"")].concat();
    let cases: [(&str, Vec<u8>, &[&str]); 7] = [
        ("pipeline", [pipeline.concat(), more].concat(), &["SELECT 1", "INSERT 0 1"]),
        ("extended commit", block.concat(), &["BEGIN", "INSERT 0 1"]),
        ("copy", copy, &[]),
        ("prepare", query(prepare), &["BEGIN", "INSERT 0 1"]),
        ("commit prepared", query("commit prepared 'x'"), &[]),
        ("procedure", query(procedure), &[]),
        ("block", query("begin; insert into t values (9); commit; select 10"), &["BEGIN", "INSERT 0 1"]),
    ];
    for (i, (what, sent, before)) in cases.into_iter().enumerate() {
        let mut client = Raw::plain(&site.r, b"").await;
        client.send(&sent).await;
        site.end_wait(&client, By::Request).await;
        assert_eq!(client.told(9).await, with_unknown(before), "{what}");
        site.until_gone(client.pid).await;
        assert_eq!(site.r.handle.status().false_acks_turned, i as u64 + 1, "{what}");
    }
    assert_eq!(site.rows("i in (2, 3, 4, 5, 6, 9)").await, 6);
    assert_eq!(site.r.handle.status().false_acks_turned, 7);
}

#[tokio::test]
async fn tls_that_ends_at_the_router_hides_nothing_from_it() {
    let authority = Authority::new();
    let files = authority.certificate(&["localhost"]);
    let options = Options { certificate: Some(files.config()), ..Options::default() };
    let Some(site) = Site::start(NO_STANDBY, options, |_| {}).await else { return };
    let ways = [By::Request, By::Function("pg_cancel_backend"), By::Function("pg_terminate_backend")];
    for (i, by) in ways.into_iter().enumerate() {
        let mut client = Raw::start(encrypted(&site, &authority).await, b"").await;
        client.send(&query(&format!("insert into t values ({i})"))).await;
        if let By::Request = by {
            // The request itself in TLS as well.
            site.until(
                "it should wait",
                &format!(
                    "select exists (select from pg_stat_activity where pid = {} and wait_event = 'SyncRep')",
                    client.pid
                ),
            )
            .await;
            let mut cancel = encrypted(&site, &authority).await;
            cancel.write_all(&cancel_request(&client)).await.unwrap();
            cancel.flush().await.unwrap();
            assert_eq!(cancel.read(&mut [0; 1]).await.unwrap_or(0), 0, "it is closed when it was handed on");
        } else {
            site.end_wait(&client, by).await;
        }
        assert_eq!(client.told(1).await, with_unknown(&[]), "{by:?}");
        site.until_gone(client.pid).await;
        assert_eq!(site.rows(&format!("i = {i}")).await, 1);
    }
    let status = site.r.handle.status();
    assert_eq!((status.false_acks_turned, status.unwatched), (3, Unwatched::default()));
}

async fn encrypted(site: &Site, authority: &Authority) -> tokio_rustls::client::TlsStream<TcpStream> {
    let mut stream = TcpStream::connect(site.r.read_write).await.unwrap();
    stream.write_all(&SSL_REQUEST).await.unwrap();
    assert_eq!(stream.read_u8().await.unwrap(), b'S');
    handshake(stream, authority, &[]).await.unwrap()
}

/// Puts a certificate where `ssl_cert_file = DIR/server.crt` finds it.
pub fn put_certificate(dir: &Path, files: &Files) {
    for (from, to) in [(&files.certificate, "server.crt"), (&files.key, "server.key")] {
        std::fs::copy(from, dir.join(to)).unwrap();
        give(&dir.join(to));
    }
}

pub const WITH_TLS: [&str; 3] = ["ssl=on", "ssl_cert_file=DIR/server.crt", "ssl_key_file=DIR/server.key"];

#[tokio::test]
async fn tls_that_is_passed_on_hides_the_false_acknowledgement_and_is_counted() {
    let authority = Authority::new();
    let files = authority.certificate(&["localhost"]);
    let settings = [NO_STANDBY, &WITH_TLS].concat();
    let Some(site) = Site::start(&settings, Options::default(), |dir| put_certificate(dir, &files)).await else {
        return;
    };
    let mut client = Raw::start(encrypted(&site, &authority).await, b"").await;
    client.send(&query("insert into t values (1)")).await;
    site.end_wait(&client, By::Function("pg_cancel_backend")).await;
    assert_eq!(client.told(1).await, [NOTICE, "INSERT 0 1"]);
    let status = site.r.handle.status();
    assert_eq!((status.unwatched_now, status.unwatched), (1, Unwatched { tls: 1, gss: 0, muted: 0 }));
    assert_eq!(status.false_acks_turned, 0);
    drop(client);
    site.r.until("none are left", |s| s.unwatched_now == 0 && s.unwatched.tls == 1).await;
}

#[tokio::test]
async fn a_session_that_is_told_no_warnings_is_counted_where_that_can_be_known() {
    let Some(site) = Site::start(NO_STANDBY, Options::default(), |_| {}).await else { return };
    let mut at_start = Raw::plain(&site.r, b"options\0-c client_min_messages=error\0").await;
    let mut later = Raw::plain(&site.r, b"").await;
    later.send(&query("set client_min_messages = error")).await;
    later.told(1).await;
    for client in [&mut at_start, &mut later] {
        client.send(&query("insert into t values (1)")).await;
        site.end_wait(client, By::Request).await;
        assert_eq!(client.told(1).await, ["INSERT 0 1"], "PostgreSQL gives no sign");
    }
    let status = site.r.handle.status();
    assert_eq!((status.unwatched, status.false_acks_turned), (Unwatched { tls: 0, gss: 0, muted: 1 }, 0));
}

#[tokio::test]
async fn a_translated_notice_is_known_as_well() {
    let dir = tempfile::tempdir().unwrap();
    let made = dir.path().join("de_DE.UTF-8");
    let output = std::process::Command::new("localedef").args(["-i", "de_DE", "-f", "UTF-8"]).arg(&made).output();
    if !output.is_ok_and(|output| output.status.success()) {
        println!("passed over: no localedef");
        return;
    }
    let settings = [NO_STANDBY, &["lc_messages=de_DE.UTF-8"]].concat();
    let prepare = |dir: &Path| std::fs::rename(&made, dir.join("de_DE.UTF-8")).unwrap();
    let Some(site) = Site::start(&settings, Options::default(), prepare).await else { return };
    let mut client = Raw::plain(&site.r, b"").await;
    client.send(&query("insert into t values (1)")).await;
    site.end_wait(&client, By::Request).await;
    let notice = client.read().await.unwrap();
    let text = String::from_utf8_lossy(&notice.1).into_owned();
    assert!(text.starts_with("SWARNUNG\0VWARNING\0") || !site.translated().await, "{text}");
    assert_eq!(client.told(1).await, [UNKNOWN, "end"]);
}

impl Site {
    /// Whether this PostgreSQL has German messages at all.
    async fn translated(&self) -> bool {
        let error = self.admin.query_one("select 1/0", &[]).await.unwrap_err();
        !error.as_db_error().unwrap().message().starts_with("division")
    }
}

#[tokio::test]
async fn other_notices_and_replication_pass_as_they_are() {
    let Some(site) = Site::start(NO_STANDBY, Options::default(), |_| {}).await else { return };
    let mut client = Raw::plain(&site.r, b"").await;
    let raises = "do $$ begin raise warning 'RSyncRepWaitForLSN'; raise notice '%', repeat('x', 300000); end $$";
    client.send(&query(raises)).await;
    assert_eq!(client.told(1).await, ["notice exec_stmt_raise", "notice exec_stmt_raise", "DO"]);
    // A copy of the server through the router, with its WAL streamed in CopyBoth meanwhile.
    let copy = site.server.dir.path().join("copy");
    let port = site.r.read_write.port().to_string();
    let backup = Command::new(site.server.bin.join("pg_basebackup"))
        .args(["-h", "127.0.0.1", "-U", "postgres", "-c", "fast", "-X", "stream", "-p", &port, "-D"])
        .arg(&copy)
        .output();
    let output = backup.await.unwrap();
    assert!(output.status.success(), "{output:?}");
    assert!(copy.join("backup_label").exists());
    assert_eq!(site.r.handle.status().false_acks_turned, 0);
}
