//! What can go wrong with files, helpers and preconditions; the long operations
//! ([`super::RewindError`], [`super::CloneError`], …) build on it.

use std::{io, path::PathBuf};

use super::command::HelperError;

/// A simple operation on the local PostgreSQL failed.
#[derive(Debug, thiserror::Error)]
pub enum PostgresError {
    /// A file operation.
    #[error("{doing} {}", path.display())]
    File {
        /// Present participle: "writing", "renaming".
        doing: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A helper program.
    #[error(transparent)]
    Helper(#[from] HelperError),
    /// `pg_controldata` printed something unexpected.
    #[error("reading the control data of {}: {problem}", data_dir.display())]
    ControlData {
        /// Whose control data.
        data_dir: PathBuf,
        /// What is odd.
        problem: String,
    },
    /// A precondition of managing PostgreSQL on this host is not met.
    #[error("{what}: {problem}")]
    Preflight {
        /// The key of the configuration that says so, `postgresql.bin_dir` for example.
        key: &'static str,
        /// Which thing: a file, a directory, a program, the user.
        what: String,
        /// What is wrong and how to put it right.
        problem: String,
    },
    /// A timeline history file is missing or can't be read.
    #[error("timeline history {}: {problem}", path.display())]
    History {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// The end of WAL can't be found.
    #[error("finding the end of WAL in {}: {problem}", data_dir.display())]
    WalEnd {
        /// Whose WAL.
        data_dir: PathBuf,
        /// What is missing.
        problem: String,
    },
    /// A segment of WAL from another member is not as it should be.
    #[error("the WAL in {name} is not as it was written: {problem}")]
    Segment {
        /// Its file.
        name: String,
        /// What is wrong.
        problem: String,
    },
    /// A process uses the data directory.
    #[error("PostgreSQL runs in {} as process {pid}", data_dir.display())]
    Running {
        /// Which directory.
        data_dir: PathBuf,
        /// The postmaster or single-user process.
        pid: i32,
    },
    /// A rewind was cut off; the data directory may be half rewound.
    #[error("{} may be half rewound; rewind or clone again before any start", data_dir.display())]
    HalfRewound {
        /// Which directory.
        data_dir: PathBuf,
    },
    /// Another operation (perhaps a helper left by an earlier agent) works on the data directory.
    #[error("another operation holds {}", lock.display())]
    Busy {
        /// The lock file.
        lock: PathBuf,
    },
}

impl PostgresError {
    /// For `map_err`: a file operation on `path` that failed.
    pub(super) fn file(doing: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> PostgresError {
        let path = path.into();
        move |source| PostgresError::File { doing, path, source }
    }
}
