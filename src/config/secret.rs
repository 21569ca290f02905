//! Secrets from files: never in a log line, never readable by others.

use std::{
    fs::{self, File},
    io::{self, Read as _},
    os::unix::fs::{MetadataExt as _, PermissionsExt},
    path::Path,
};

use nix::unistd::geteuid;

use crate::domain::Secret;

/// The fewest bytes a secret that authenticates lease datagrams may have.
pub const SECRET_BYTES_MIN: usize = 32;

/// Why a file can't serve as a secret. The path stands in the message around it.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// It can't be opened or read.
    #[error("{path} can't be read ({source}); create it with mode 0600, owned by the user that runs this")]
    Unreadable {
        /// The file.
        path: String,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Others than its owner may read it.
    #[error("{path} has mode {mode:04o}, so others than its owner can use it; chmod 0600 {path}")]
    TooOpen {
        /// The file.
        path: String,
        /// Its permission bits.
        mode: u32,
    },
    /// A private key that others can read.
    #[error("{path} has mode {mode:04o}, so others can read it; chmod 0600 {path} (0640 if root owns it)")]
    KeyTooOpen {
        /// The file.
        path: String,
        /// Its permission bits.
        mode: u32,
    },
    /// A private key of somebody who could change it.
    #[error("{path} belongs to user {owner}; let it belong to the user that runs this, or to root")]
    KeyOfAnother {
        /// The file.
        path: String,
        /// Whose it is.
        owner: u32,
    },
    /// Too short to be hard to guess.
    #[error("{path} holds {length} bytes; use at least {least}, e.g. `openssl rand -hex 32 > {path}`")]
    TooShort {
        /// The file.
        path: String,
        /// What it holds, white space at the ends not counted.
        length: usize,
        /// What it should hold.
        least: usize,
    },
    /// A password must be one line.
    #[error("{path} holds more than one line; put the password alone into it")]
    NotOneLine {
        /// The file.
        path: String,
    },
}

/// Reads the cluster's secret: at least [`SECRET_BYTES_MIN`] bytes, white space at the ends not counted.
///
/// # Errors
/// When the file can't be read, is open to others than its owner, or is too short.
pub fn read_secret(path: &Path) -> Result<Secret, SecretError> {
    read(path, SECRET_BYTES_MIN)
}

/// Reads a password: one line that is not empty.
///
/// # Errors
/// When the file can't be read, is open to others than its owner, is empty or has several lines.
pub fn read_password(path: &Path) -> Result<Secret, SecretError> {
    let secret = read(path, 1)?;
    if secret.expose().iter().any(|b| matches!(b, b'\n' | b'\r' | 0)) {
        return Err(SecretError::NotOneLine { path: path.display().to_string() });
    }
    Ok(secret)
}

/// Reads the private key of a certificate under PostgreSQL's rule for its own: it belongs to this user and only he can
/// read it, or it belongs to root and at most its group can as well. What is in it is not looked at.
///
/// # Errors
/// When the file can't be read, or by others than these.
pub fn read_private_key(path: &Path) -> Result<Secret, SecretError> {
    let shown = || path.display().to_string();
    let unreadable = |source| SecretError::Unreadable { path: shown(), source };
    let mut file = File::open(path).map_err(unreadable)?;
    let facts = file.metadata().map_err(unreadable)?;
    let (owner, mode) = (facts.uid(), facts.mode() & 0o7777);
    // Root can read it anyhow, and looks at it for whoever will run the router.
    if owner != 0 && owner != geteuid().as_raw() && !geteuid().is_root() {
        return Err(SecretError::KeyOfAnother { path: shown(), owner });
    }
    let others = if owner == 0 { 0o027 } else { 0o077 };
    if mode & others != 0 {
        return Err(SecretError::KeyTooOpen { path: shown(), mode });
    }
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).map_err(unreadable)?;
    Ok(Secret::new(bytes))
}

fn read(path: &Path, least: usize) -> Result<Secret, SecretError> {
    let shown = || path.display().to_string();
    let unreadable = |source| SecretError::Unreadable { path: shown(), source };
    let mode = fs::metadata(path).map_err(unreadable)?.permissions().mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(SecretError::TooOpen { path: shown(), mode });
    }
    let bytes = fs::read(path).map_err(unreadable)?.trim_ascii().to_vec();
    if bytes.len() < least {
        return Err(SecretError::TooShort { path: shown(), length: bytes.len(), least });
    }
    Ok(Secret::new(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(content: &str, mode: u32) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), content).unwrap();
        fs::set_permissions(file.path(), fs::Permissions::from_mode(mode)).unwrap();
        file
    }

    #[test]
    fn a_good_secret_is_read_without_its_newline_and_never_printed() {
        let text = "0123456789abcdef0123456789abcdef";
        let secret = read_secret(file(&format!("{text}\n"), 0o600).path()).unwrap();
        assert_eq!(secret.expose(), text.as_bytes());
        assert_eq!(format!("{secret:?}"), "Secret(hidden)");
    }

    #[test]
    fn a_private_key_is_read_under_the_rule_of_postgresql() {
        assert_eq!(read_private_key(file("key\n", 0o600).path()).unwrap().expose(), b"key\n");
        assert_eq!(read_private_key(file("key\n", 0o400).path()).unwrap().expose(), b"key\n");
        let root = geteuid().is_root();
        let group = file("key", 0o640);
        assert_eq!(read_private_key(group.path()).is_ok(), root);
        for mode in [0o604, 0o644, 0o660, 0o602, 0o666] {
            let open = file("key", mode);
            let told = read_private_key(open.path()).unwrap_err().to_string();
            let path = open.path().display();
            let expected =
                format!("{path} has mode {mode:04o}, so others can read it; chmod 0600 {path} (0640 if root owns it)");
            assert_eq!(told, expected);
        }
        if root {
            std::os::unix::fs::chown(group.path(), Some(65_534), None).unwrap();
            assert!(matches!(read_private_key(group.path()), Err(SecretError::KeyTooOpen { mode: 0o640, .. })));
        }
    }

    #[test]
    fn a_short_an_open_and_a_missing_one_are_refused() {
        assert!(matches!(read_secret(file("short", 0o600).path()), Err(SecretError::TooShort { length: 5, .. })));
        assert!(matches!(read_secret(file(&"x".repeat(64), 0o640).path()), Err(SecretError::TooOpen { .. })));
        assert!(matches!(read_secret(Path::new("/nonexistent/secret")), Err(SecretError::Unreadable { .. })));
        assert!(matches!(read_password(file("a\nb\n", 0o400).path()), Err(SecretError::NotOneLine { .. })));
        assert!(matches!(read_password(file("\n", 0o600).path()), Err(SecretError::TooShort { .. })));
    }
}
