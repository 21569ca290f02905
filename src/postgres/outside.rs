//! What belongs to a data directory and lies elsewhere: WAL behind a link, and tablespaces (manual, 73.1). A copy gets places of
//! its own beside those of the directory it is to replace, which goes only with what no other directory here uses.

use std::{
    ffi::OsString,
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use tokio_postgres::{Config, NoTls, SimpleQueryMessage};

use super::{conf::Upstream, error::PostgresError, files, instance::Instance, session::SqlError};

/// For a question to the source of a copy.
const SHORT: Duration = Duration::from_secs(10);
/// Beside the data directory there may be, of this member …
const SUFFIXES: [&str; 4] = ["", ".new", ".old", ".failed"];
/// In a tablespace's directory, what is one server's begins so.
const OF_A_VERSION: &str = "PG_";

/// Directories that one data directory names.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Outside {
    wal: Option<PathBuf>,
    tablespaces: Vec<PathBuf>,
}

impl Outside {
    /// What can't be read is not there.
    fn of(data_dir: &Path) -> Self {
        let target = |link: &Path| fs::read_link(link).ok().filter(|target| target.is_absolute());
        let entries = fs::read_dir(data_dir.join("pg_tblspc")).into_iter().flatten().flatten();
        Self {
            wal: target(&data_dir.join("pg_wal")),
            tablespaces: entries.filter_map(|entry| target(&entry.path())).collect(),
        }
    }

    fn uses(&self, path: &Path) -> bool {
        self.wal.iter().chain(&self.tablespaces).any(|used| used == path)
    }
}

/// `path` if nothing is there, or else the first of `path.2`, `path.3`, … of which that is true.
fn place_beside(path: &Path) -> PathBuf {
    let vacant = |path: &PathBuf| {
        fs::read_dir(path).map_or_else(|e| e.kind() == io::ErrorKind::NotFound, |mut d| d.next().is_none())
    };
    let numbered = (2_u32..).map(|n| files::beside(&without_number(path), &format!(".{n}")));
    std::iter::once(path.to_owned()).chain(numbered).find(vacant).unwrap_or_else(|| path.to_owned())
}

/// Copies of copies don't get longer and longer names.
fn without_number(path: &Path) -> PathBuf {
    match path.extension().and_then(|e| e.to_str()) {
        Some(number) if number.parse::<u32>().is_ok_and(|n| n >= 2) => path.with_extension(""),
        _ => path.to_owned(),
    }
}

/// `OLD=NEW`, with the `=` in either escaped.
fn mapping(from: &str, to: &Path) -> OsString {
    let escaped = |text: &str| text.replace('\\', "\\\\").replace('=', "\\=");
    format!("--tablespace-mapping={}={}", escaped(from), escaped(&to.to_string_lossy())).into()
}

impl Instance {
    /// Options of pg_basebackup that put WAL and tablespaces of a copy where there is place for them.
    ///
    /// # Errors
    /// The source doesn't say where its tablespaces are.
    pub(super) async fn places_for_a_copy(&self, source: &Upstream) -> Result<Vec<OsString>, SqlError> {
        let tablespaces = self.tablespaces_of(source).await?;
        let mut options: Vec<OsString> =
            tablespaces.iter().map(|from| mapping(from, &place_beside(Path::new(from)))).collect();
        if let Some(wal) = Outside::of(self.data_dir()).wal {
            let mut option = OsString::from("--waldir=");
            option.push(place_beside(&wal));
            options.push(option);
        }
        Ok(options)
    }

    /// Where `pg_wal` of a copy goes, when that of the data directory lies elsewhere.
    pub(super) fn place_for_wal(&self) -> Option<PathBuf> {
        Outside::of(self.data_dir()).wal.map(|wal| place_beside(&wal))
    }

    /// Options of pgBackRest that put every tablespace of a copy where there is place for it. What the data directory has now
    /// says where that is; of what it doesn't have the backup's own path is taken, which pgBackRest refuses if it is not empty.
    pub(super) fn places_for_a_restore(&self) -> Vec<String> {
        let links = fs::read_dir(self.data_dir().join("pg_tblspc")).into_iter().flatten().flatten();
        let mapped = |link: fs::DirEntry| {
            let target = fs::read_link(link.path()).ok().filter(|target| target.is_absolute())?;
            let oid = link.file_name().to_str().filter(|name| name.parse::<u32>().is_ok())?.to_owned();
            Some(format!("--tablespace-map={oid}={}", place_beside(&target).display()))
        };
        links.filter_map(mapped).collect()
    }

    /// The system identifier of another member.
    ///
    /// # Errors
    /// It doesn't answer.
    pub(super) async fn system_of(&self, source: &Upstream) -> Result<u64, SqlError> {
        let doing = "asking the source for its system identifier";
        let told =
            self.ask_source(source, doing, "SELECT system_identifier FROM pg_catalog.pg_control_system()").await?;
        let number = told.first().and_then(|text| text.parse::<i64>().ok());
        // PostgreSQL shows it with a sign.
        number.map(i64::cast_unsigned).ok_or(SqlError::Unexpected { doing, problem: format!("it said {told:?}") })
    }

    async fn tablespaces_of(&self, source: &Upstream) -> Result<Vec<String>, SqlError> {
        let sql = "SELECT pg_catalog.pg_tablespace_location(oid) FROM pg_catalog.pg_tablespace";
        let locations = self.ask_source(source, "asking the source for its tablespaces", sql).await?;
        // One inside the data directory is copied with it.
        Ok(locations.into_iter().filter(|location| location.starts_with('/')).collect())
    }

    /// The first column of what another member answers.
    pub(super) async fn ask_source(
        &self,
        source: &Upstream,
        doing: &'static str,
        sql: &str,
    ) -> Result<Vec<String>, SqlError> {
        let unexpected = |e: PostgresError| SqlError::Unexpected { doing, problem: e.to_string() };
        let mut target = Config::new();
        target.host(&source.host).port(source.port).user(&self.config().replication_user).dbname("postgres");
        target.password(self.replication_password().map_err(unexpected)?).application_name("matriarch");
        let ask = async {
            let (client, connection) = target.connect(NoTls).await.map_err(|e| SqlError::from_driver(doing, e))?;
            let connection = tokio::spawn(connection);
            let rows = client.simple_query(sql).await.map_err(|e| SqlError::from_driver(doing, e));
            connection.abort();
            rows
        };
        let rows = match tokio::time::timeout(SHORT, ask).await {
            Ok(rows) => rows?,
            Err(_) => return Err(SqlError::Timeout { doing, after: SHORT }),
        };
        let first = |row: &SimpleQueryMessage| match row {
            SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
            _ => None,
        };
        Ok(rows.iter().filter_map(first).collect())
    }

    /// Removes a directory with what only it has elsewhere, if it is there.
    ///
    /// # Errors
    /// Something can't be removed.
    pub(super) fn remove_data_blocking(&self, dir: &Path) -> Result<(), PostgresError> {
        let outside = Outside::of(dir);
        let others: Vec<Outside> =
            self.directories().iter().filter(|other| *other != dir).map(|other| Outside::of(other)).collect();
        let ours_alone = |path: &&PathBuf| !others.iter().any(|other| other.uses(path));
        outside.wal.iter().filter(ours_alone).try_for_each(|wal| removed(fs::remove_dir_all(wal), wal))?;
        outside.tablespaces.iter().filter(ours_alone).try_for_each(|space| remove_tablespace(space))?;
        removed(fs::remove_dir_all(dir), dir)
    }

    /// [`Instance::remove_data_blocking`], off the runtime's threads.
    ///
    /// # Errors
    /// As there.
    pub(super) async fn remove_data(&self, dir: &Path) -> Result<(), PostgresError> {
        let (instance, dir) = (self.clone(), dir.to_owned());
        files::blocking(move || instance.remove_data_blocking(&dir)).await
    }

    /// Every data directory of this member, as far as there is one.
    fn directories(&self) -> Vec<PathBuf> {
        let inside = |dir: PathBuf| fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path());
        let beside = SUFFIXES.iter().map(|suffix| self.beside(suffix));
        let kept = inside(self.beside(".kept")).map(|place| place.join("data"));
        beside.chain(kept).chain(inside(self.beside(".discarded"))).collect()
    }
}

/// The directory itself may have been made by an administrator, or be a mount point: it goes only if that is easy.
fn remove_tablespace(space: &Path) -> Result<(), PostgresError> {
    let entries = fs::read_dir(space).into_iter().flatten().flatten();
    let ours = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(OF_A_VERSION));
    ours.map(|entry| entry.path()).try_for_each(|path| removed(fs::remove_dir_all(&path), &path))?;
    if without_number(space) != space {
        let _ = fs::remove_dir(space);
    }
    Ok(())
}

fn removed(result: io::Result<()>, path: &Path) -> Result<(), PostgresError> {
    match result {
        Ok(()) => files::sync_parent(path),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(PostgresError::file("removing", path)(error)),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_the_same_or_the_first_beside_it_that_is_vacant() {
        let root = tempfile::tempdir().unwrap();
        let space = root.path().join("space");
        assert_eq!(place_beside(&space), space, "nothing is there");
        fs::create_dir(&space).unwrap();
        assert_eq!(place_beside(&space), space, "it is empty");
        fs::create_dir(space.join("PG_15_202209061")).unwrap();
        let second = root.path().join("space.2");
        assert_eq!(place_beside(&space), second);
        fs::create_dir_all(second.join("PG_15_202209061")).unwrap();
        assert_eq!(place_beside(&second), root.path().join("space.3"), "not space.2.2");
    }

    #[test]
    fn a_mapping_escapes_what_would_end_it() {
        assert_eq!(mapping("/a=b", Path::new("/c")), OsString::from("--tablespace-mapping=/a\\=b=/c"));
    }
}
