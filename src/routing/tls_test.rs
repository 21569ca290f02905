//! Files that can't be used, and files that change. Handshakes are in tests/router.

use std::{fs, os::unix::fs::PermissionsExt as _};

use super::*;

struct Files {
    dir: tempfile::TempDir,
    certificate: PathBuf,
    key: PathBuf,
}

impl Files {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (certificate, key) = (dir.path().join("server.crt"), dir.path().join("server.key"));
        let files = Self { dir, certificate, key };
        files.renew();
        files
    }

    fn renew(&self) {
        let made = rcgen::generate_simple_self_signed(["router.example".to_owned()]).unwrap();
        fs::write(&self.certificate, made.cert.pem()).unwrap();
        fs::write(&self.key, made.signing_key.serialize_pem()).unwrap();
        fs::set_permissions(&self.key, fs::Permissions::from_mode(0o600)).unwrap();
    }

    fn config(&self) -> RouterConfig {
        RouterConfig {
            read_write: ([127, 0, 0, 1], 0).into(),
            read_only: None,
            sync_only: None,
            metrics: None,
            read_only_max_lag: None,
            read_only_from_primary: true,
            read_only_weights: [].into(),
            proxy_protocol: false,
            drain: Duration::ZERO,
            max_sessions: 1,
            threads: 1,
            connect_ahead: true,
            certificate: Some(CertificateFiles { certificate: self.certificate.clone(), key: self.key.clone() }),
            tls_required: false,
            postgresql_ca_file: None,
        }
    }

    /// Key and text of the error, with a short name of the directory.
    fn told(&self, config: &RouterConfig) -> (&'static str, String) {
        let error = Tls::load(config).unwrap_err();
        (error.key, error.told.replace(&self.dir.path().display().to_string(), "DIR"))
    }
}

#[test]
fn what_can_not_be_used_is_named_with_the_file_and_the_reason() {
    let files = Files::new();
    let config = files.config();
    let (certificate, key) = (fs::read(&files.certificate).unwrap(), fs::read(&files.key).unwrap());
    Tls::load(&config).unwrap();

    fs::set_permissions(&files.key, fs::Permissions::from_mode(0o644)).unwrap();
    let open = "DIR/server.key has mode 0644, so others can read it; chmod 0600 DIR/server.key (0640 if root owns it)";
    assert_eq!(files.told(&config), ("router.tls_key_file", open.to_owned()));
    fs::set_permissions(&files.key, fs::Permissions::from_mode(0o600)).unwrap();

    fs::write(&files.key, "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n")
        .unwrap();
    let encrypted =
        "DIR/server.key holds no private key, or one with a passphrase; put the key there in PEM, without a passphrase";
    assert_eq!(files.told(&config), ("router.tls_key_file", encrypted.to_owned()));

    fs::write(&files.certificate, "no certificate\n").unwrap();
    let empty = "DIR/server.crt holds no certificate; put it there in PEM";
    assert_eq!(files.told(&config), ("router.tls_certificate_file", empty.to_owned()));

    // The key of another certificate.
    files.renew();
    fs::write(&files.certificate, &certificate).unwrap();
    let (at, told) = files.told(&config);
    assert_eq!(at, "router.tls_key_file");
    assert!(told.starts_with("DIR/server.key doesn't go with DIR/server.crt ("), "{told}");
    assert!(told.ends_with("; name a certificate and its own key"), "{told}");

    fs::write(&files.key, &key).unwrap();
    Tls::load(&config).unwrap();
    fs::remove_file(&files.key).unwrap();
    assert!(files.told(&config).1.starts_with("DIR/server.key can't be read (No such file"));

    let authority = RouterConfig { certificate: None, postgresql_ca_file: Some(files.key.clone()), ..config };
    let (at, told) = files.told(&authority);
    assert_eq!(at, "router.postgresql_ca_file");
    assert!(told.starts_with("DIR/server.key can't be read ("), "{told}");
    fs::write(&files.key, "").unwrap();
    assert!(files.told(&authority).1.starts_with("DIR/server.key holds no certificate; "));
}

#[test]
fn new_files_are_taken_as_a_pair_and_bad_ones_change_nothing() {
    let files = Files::new();
    let tls = Tls::load(&files.config()).unwrap();
    let shown = || tls.current().to_clients.unwrap().1;
    let (first, old_key) = (shown(), fs::read(&files.key).unwrap());
    files.renew();
    let new_key = fs::read(&files.key).unwrap();
    fs::write(&files.key, old_key).unwrap();
    tls.reload(&mut None);
    assert_eq!(shown(), first, "the new certificate is there and its key is not yet");
    let half = tls.stamps();
    fs::write(&files.key, new_key).unwrap();
    assert_ne!(tls.stamps(), half, "that is another change");
    tls.reload(&mut None);
    assert_ne!(shown(), first);
}
