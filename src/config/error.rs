//! The one shape of a configuration error: file, key, what is wrong, what to do.

use std::{
    fmt,
    path::{Path, PathBuf},
};

/// A configuration that can't be used. Shown on one line: `FILE: KEY: problem; what to do`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError {
    /// The file.
    pub file: PathBuf,
    /// The key, with its tables, dots between; empty when the whole file is meant.
    pub key: String,
    /// What is wrong with it.
    pub problem: String,
    /// What to do about it.
    pub advice: String,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.file.display())?;
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        write!(f, "{}; {}", self.problem, self.advice)
    }
}

impl std::error::Error for ConfigError {}

/// What is wrong with one key, before the file's name is added.
#[derive(Debug)]
pub(super) struct Wrong {
    pub key: String,
    pub problem: String,
    pub advice: String,
}

impl Wrong {
    pub fn new(key: impl Into<String>, problem: impl Into<String>, advice: impl Into<String>) -> Wrong {
        Wrong { key: key.into(), problem: problem.into(), advice: advice.into() }
    }

    /// The same for a problem whose text already ends with `; what to do`.
    pub fn told(key: impl Into<String>, told: &str) -> Wrong {
        let (problem, advice) = told.split_once("; ").unwrap_or((told, "correct it"));
        Wrong::new(key, problem, advice)
    }

    pub fn in_file(self, file: &Path) -> ConfigError {
        ConfigError { file: file.to_owned(), key: self.key, problem: self.problem, advice: self.advice }
    }
}
