//! Whom PostgreSQL's words blame when it doesn't start or stream: its data, which a copy would replace, or what a copy would
//! find as it was. Pure.

/// Where the reason lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Blame {
    /// In the data directory: a copy helps.
    Data,
    /// In the host, the configuration or somebody else: a copy would meet the same.
    Host,
    /// The words don't say.
    Unknown,
}

/// Whatever else is said: these end a start from the best of data, and most of them a copy as well.
const HOST: &[&str] = &[
    "No space left on device",
    "Disk quota exceeded",
    "Permission denied",
    "Operation not permitted",
    "Read-only file system",
    // The disk itself: a copy would be written to the same.
    "Input/output error",
    "Stale file handle",
    "Too many open files",
    "Cannot allocate memory",
    "Resource temporarily unavailable",
    "out of memory",
    "could not create shared memory",
    "could not map anonymous shared memory",
    "could not create semaphores",
    "could not create lock file",
    "already exists", // a lock file of another server
    "could not create any TCP/IP sockets",
    "could not create any Unix-domain sockets",
    "could not bind",
    "has group or world access",
    "has wrong ownership",
    "has invalid permissions",
    "contains errors", // a configuration file
    "unrecognized configuration parameter",
    "invalid value for parameter",
    "could not load library",
    "could not load server certificate file",
    "could not load private key file",
    "could not load pg_hba.conf",
    "could not access file", // of a library
    "incompatible library",
    "is a lower setting than on the primary",
    "insufficient parameter settings",
    "database files are incompatible with server",
    "restore_command",
    "could not restore file",
    "system identifier differs",
    "authentication failed",
    "no pg_hba.conf entry",
    // It has more than the primary: whatever the reason, it may be the better copy.
    "ahead of the WAL flush position",
    "is not in this server's history",
    "is behind recovery timeline",
];

/// What only damaged or missing files are said to be.
const DATA: &[&str] = &[
    "could not locate a valid checkpoint record",
    "could not locate required checkpoint record",
    "invalid primary checkpoint",
    "invalid checkpoint record",
    "could not find redo location",
    "invalid redo",
    "incorrect checksum in control file",
    "control file contains invalid",
    "its checksum is wrong",
    "invalid page in block",
    "could not read block",
    "unexpected data beyond EOF",
    "WAL contains references to invalid pages",
    "WAL ends before",
    "invalid data in file",
    "invalid data in history file",
    "backup_label",
    "does not contain minimum recovery point",
    "is not a child of this server's history",
    "could not access status of transaction",
    "unexpected timeline ID",
    "is not a valid data directory",
    "finding the end of WAL",
    "timeline history",
    "reading the control data",
];

/// How the names of PostgreSQL's own files begin, as it writes them or we do.
const FILES: &[&str] = &["\"base/", "\"global/", "\"pg_", "/pg_wal/"];

/// The primary has no more what it was asked for.
pub fn is_gone(words: &str) -> bool {
    let slot = words.contains("slot") && words.contains("invalidated");
    (words.contains("requested WAL segment") && words.contains("has already been removed")) || slot
}

/// pg_rewind did not find WAL from before the fork.
pub fn lacks_wal(words: &str) -> bool {
    words.contains("could not find previous WAL record")
}

/// What pg_rewind, or who looks before it, says when it would say the same the next time.
const NO_REWIND: &[&str] = &[
    // WAL from before the fork is not there any more.
    "could not find previous WAL record",
    "could not find common ancestor",
    "needs to use either data checksums or \"wal_log_hints = on\"",
    "it is an unfinished copy; clone it again",
    "which proves nothing; clone it again",
    "could keep WAL that its source never had; clone it again",
];

/// A rewind that ended with these words will never succeed.
pub fn is_no_rewind(words: &str) -> bool {
    NO_REWIND.iter().any(|part| words.contains(part))
}

/// By what PostgreSQL, or whoever reads its files, said last. English: all of it runs with `LC_ALL=C`.
pub fn of(words: &str) -> Blame {
    let any = |parts: &[&str]| parts.iter().any(|part| words.contains(part));
    if is_gone(words) {
        Blame::Data
    } else if any(HOST) {
        Blame::Host
    } else if any(DATA) || is_file_missing(words) || died_of_its_data(words) {
        Blame::Data
    } else {
        Blame::Unknown
    }
}

/// `could not open file "global/pg_filenode.map": No such file or directory`.
fn is_file_missing(words: &str) -> bool {
    words.contains("No such file or directory") && FILES.iter().any(|begin| words.contains(begin))
}

/// Replay broke off by itself; who was killed from outside says nothing.
fn died_of_its_data(words: &str) -> bool {
    let signal = words.split_once("was terminated by signal ").map(|(_, signal)| signal);
    let by_itself = |signal: &str| ["4:", "6:", "7:", "8:", "11:"].iter().any(|own| signal.starts_with(own));
    words.contains("startup process (PID ") && signal.is_some_and(by_itself)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn damaged_or_missing_files_are_the_datas_fault() {
        for words in [
            "PostgreSQL ended: exit code 1 (PANIC:  could not locate a valid checkpoint record)",
            "FATAL:  could not open file \"global/pg_filenode.map\": No such file or directory",
            "FATAL:  could not open directory \"pg_wal\": No such file or directory",
            "could not receive data from WAL stream: ERROR:  requested WAL segment 03 has already been removed",
            "ERROR:  can no longer access replication slot \"n2\": This replication slot has been invalidated",
            "PANIC:  WAL contains references to invalid pages",
            "LOG:  startup process (PID 9) was terminated by signal 6: Aborted",
            "finding the end of WAL in /data: no segment of timeline 1",
            "reading /data/pg_wal/00000002.history: No such file or directory",
        ] {
            assert_eq!(of(words), Blame::Data, "{words}");
        }
    }

    #[test]
    fn what_a_copy_would_find_as_it_was_is_the_hosts() {
        for words in [
            "FATAL:  could not write to file \"pg_wal/xlogtemp.9\": No space left on device",
            "FATAL:  could not open file \"global/pg_control\": Permission denied",
            "FATAL:  data directory \"/data\" has invalid permissions",
            "FATAL:  configuration file \"/run/postgresql.conf\" contains errors",
            "FATAL:  could not access file \"timescaledb\": No such file or directory",
            "FATAL:  lock file \"/run/.s.PGSQL.5432.lock\" already exists",
            "FATAL:  could not read block 3 in file \"base/5/1259\": Input/output error",
            "FATAL:  database files are incompatible with server",
            "FATAL:  database system identifier differs between the primary and standby",
            "FATAL:  could not receive data from WAL stream: ERROR:  requested starting point 0/5 is ahead of the WAL flush position",
        ] {
            assert_eq!(of(words), Blame::Host, "{words}");
        }
    }

    #[test]
    fn what_says_nothing_blames_nobody() {
        let killed = "LOG:  startup process (PID 9) was terminated by signal 9: Killed";
        for words in
            ["", killed, "PostgreSQL ended: exit code 1", "FATAL:  could not connect to the primary server: refused"]
        {
            assert_eq!(of(words), Blame::Unknown, "{words}");
        }
    }
}
