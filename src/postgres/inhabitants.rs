//! The roles, databases and extensions that the configuration wants in the first data directory.

use std::{env, fmt::Write as _};

use postgres_protocol::password::scram_sha_256;

use super::{
    conf::{sql_identifier, sql_literal},
    content::InitdbError,
    error::PostgresError,
    instance::{Instance, read_secret},
    private::{PrivateError, PrivateServer},
    session::{Session, SqlError},
};
use crate::config::{InitialDatabase, InitialRole, PasswordSource};

/// A database is copied file by file.
const DEADLINE: std::time::Duration = std::time::Duration::from_secs(600);

/// The verifier of each role's password, read before anything is begun.
pub(super) struct Verifiers(Vec<Option<String>>);

impl Instance {
    /// Reads the passwords of the roles, and keeps their verifiers only.
    ///
    /// # Errors
    /// A password can't be read, or others can read it too.
    pub(super) fn verifiers(&self) -> Result<Verifiers, InitdbError> {
        let read = |role: &InitialRole| role.password.as_ref().map(|source| verifier(role, source)).transpose();
        self.config().bootstrap.roles.iter().map(read).collect::<Result<_, _>>().map(Verifiers)
    }

    /// Makes what is missing and sets what is there to what the configuration says. Every role is there before any is made
    /// a member, every database before its extensions.
    pub(super) async fn make_inhabitants(
        &self,
        server: &PrivateServer,
        Verifiers(verifiers): &Verifiers,
    ) -> Result<(), InitdbError> {
        let content = &self.config().bootstrap;
        let session = server.connect(self, "postgres").await?;
        for (role, verifier) in content.roles.iter().zip(verifiers) {
            let what = || format!("role {}", role.name);
            if !exists(&session, "pg_roles", "rolname", &role.name).await.map_err(of(what()))? {
                run(&session, &format!("CREATE ROLE {}", sql_identifier(&role.name))).await.map_err(of(what()))?;
            }
            run(&session, &alter_role(role, verifier.as_deref())).await.map_err(of(what()))?;
        }
        for role in &content.roles {
            for group in &role.member_of {
                let sql = format!("GRANT {} TO {}", sql_identifier(group), sql_identifier(&role.name));
                run(&session, &sql).await.map_err(of(format!("role {}", role.name)))?;
            }
        }
        for database in &content.databases {
            let what = || format!("database {}", database.name);
            if !exists(&session, "pg_database", "datname", &database.name).await.map_err(of(what()))? {
                run(&session, &create_database(database)).await.map_err(of(what()))?;
            } else if let Some(owner) = &database.owner {
                let (name, owner) = (sql_identifier(&database.name), sql_identifier(owner));
                run(&session, &format!("ALTER DATABASE {name} OWNER TO {owner}")).await.map_err(of(what()))?;
            }
            if !database.extensions.is_empty() {
                self.make_extensions(server, database).await?;
            }
        }
        Ok(())
    }

    async fn make_extensions(&self, server: &PrivateServer, database: &InitialDatabase) -> Result<(), InitdbError> {
        let session = server.connect(self, &database.name).await?;
        for extension in &database.extensions {
            // Its objects go where CREATE EXTENSION puts them by default, not into the catalog.
            let sql = format!(
                "SET search_path = \"$user\", public; CREATE EXTENSION IF NOT EXISTS {}; RESET search_path",
                sql_identifier(extension)
            );
            let what = format!("extension {extension} in database {}", database.name);
            run(&session, &sql).await.map_err(of(what))?;
        }
        Ok(())
    }
}

fn of(what: String) -> impl FnOnce(SqlError) -> InitdbError {
    move |source| InitdbError::Inhabitant { what, source }
}

async fn run(session: &Session, sql: &str) -> Result<(), SqlError> {
    session.query("making it", sql, DEADLINE).await.map(drop)
}

async fn exists(session: &Session, table: &str, column: &str, name: &str) -> Result<bool, SqlError> {
    let sql = format!("SELECT FROM pg_catalog.{table} WHERE {column} = {}", sql_literal(name));
    Ok(!session.query("looking for it", &sql, DEADLINE).await?.is_empty())
}

fn alter_role(role: &InitialRole, verifier: Option<&str>) -> String {
    let mut sql = format!("ALTER ROLE {}", sql_identifier(&role.name));
    // Writing to a String can't fail.
    for attribute in &role.attributes {
        let _ = write!(sql, " {attribute}");
    }
    if let Some(verifier) = verifier {
        let _ = write!(sql, " PASSWORD {}", sql_literal(verifier));
    }
    sql
}

fn create_database(database: &InitialDatabase) -> String {
    let mut sql = format!("CREATE DATABASE {}", sql_identifier(&database.name));
    // Only that one can be copied with another encoding or locale.
    let other = database.encoding.is_some() || database.locale.is_some();
    let template = database.template.as_deref().or_else(|| other.then_some("template0"));
    for (word, name) in [("OWNER", database.owner.as_deref()), ("TEMPLATE", template)] {
        if let Some(name) = name {
            let _ = write!(sql, " {word} {}", sql_identifier(name));
        }
    }
    for (word, text) in [("ENCODING", &database.encoding), ("LOCALE", &database.locale)] {
        if let Some(text) = text {
            let _ = write!(sql, " {word} {}", sql_literal(text));
        }
    }
    sql
}

fn verifier(role: &InitialRole, source: &PasswordSource) -> Result<String, InitdbError> {
    let problem = |problem: String| InitdbError::Password { role: role.name.clone(), problem };
    let password = match source {
        PasswordSource::File(path) => read_secret("bootstrap.roles", path).map_err(|error| problem(said(&error)))?,
        PasswordSource::Environment(variable) => match env::var(variable) {
            Ok(password) if !password.is_empty() => password,
            Ok(_) | Err(_) => {
                return Err(problem(format!("the agent's environment has no {variable}, or it is empty or not text")));
            }
        },
    };
    Ok(scram_sha_256(password.as_bytes()))
}

fn said(error: &PostgresError) -> String {
    use std::error::Error as _;
    match error.source() {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

impl From<PrivateError> for InitdbError {
    fn from(error: PrivateError) -> Self {
        match error {
            PrivateError::File(error) => InitdbError::Step(error),
            other => InitdbError::Server(other),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn names_and_texts_are_quoted() {
        let role = InitialRole {
            name: "a\"; DROP".into(),
            password: None,
            attributes: vec!["LOGIN".into(), "CREATEDB".into()],
            member_of: Vec::new(),
        };
        assert_eq!(
            alter_role(&role, Some("SCRAM-SHA-256$x'y")),
            "ALTER ROLE \"a\"\"; DROP\" LOGIN CREATEDB PASSWORD 'SCRAM-SHA-256$x''y'"
        );
        let mut database = InitialDatabase {
            name: "App".into(),
            owner: Some("app".into()),
            template: None,
            encoding: None,
            locale: None,
            extensions: Vec::new(),
        };
        assert_eq!(create_database(&database), "CREATE DATABASE \"App\" OWNER \"app\"");
        database.locale = Some("de_DE.UTF-8".into());
        let text = "CREATE DATABASE \"App\" OWNER \"app\" TEMPLATE \"template0\" LOCALE 'de_DE.UTF-8'";
        assert_eq!(create_database(&database), text);
    }

    #[test]
    fn a_password_is_kept_as_its_verifier_only() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pass");
        let role = |path: &std::path::Path| InitialRole {
            name: "app".into(),
            password: Some(PasswordSource::File(path.to_owned())),
            attributes: Vec::new(),
            member_of: Vec::new(),
        };
        let read = |path| verifier(&role(path), &PasswordSource::File(path.to_owned()));
        assert!(read(&path).unwrap_err().to_string().starts_with("the password of role app"));
        std::fs::write(&path, "hunter2\n").unwrap();
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
        let verifier = read(&path).unwrap();
        assert!(verifier.starts_with("SCRAM-SHA-256$4096:") && !verifier.contains("hunter2"));
        let missing = PasswordSource::Environment("MATRIARCH_TEST_NO_SUCH_VARIABLE".into());
        assert!(super::verifier(&role(&path), &missing).is_err());
        let there = PasswordSource::Environment("PATH".into());
        assert!(super::verifier(&role(&path), &there).unwrap().starts_with("SCRAM-SHA-256$"));
    }
}
