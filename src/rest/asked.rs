//! What a request asks for: path and query as Patroni's API has them (its `api.py`, `do_GET`).

/// A question that is answered by 200 or 503.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Question {
    /// May it be written to?
    Primary,
    /// Does it hold the lock?
    Leader,
    /// Does it lead a standby cluster? There are none here.
    StandbyLeader,
    /// Is it a standby to read from?
    Replica,
    /// … or the primary?
    ReadOnly,
    /// Is it a standby that has to confirm?
    Sync,
    /// … or the primary?
    ReadOnlySync,
    /// Is it a standby that may confirm, in the mode quorum?
    Quorum,
    /// … or the primary?
    ReadOnlyQuorum,
    /// Is it a standby that confirms nothing?
    Async,
    /// Does PostgreSQL run?
    Health,
    /// Do manager and agent work?
    Liveness,
    /// Is it the primary, or a standby that streams and is not far behind?
    Readiness,
}

/// What else may be asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Document {
    /// All of this host: `/patroni`.
    Host,
    /// All members: `/cluster`.
    Cluster,
    /// Its timelines: `/history`.
    History,
    /// For Prometheus: `/metrics`.
    Metrics,
    /// The settings: `/config`.
    Config,
}

/// What a path names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// See [`Question`].
    Question(Question),
    /// See [`Document`].
    Document(Document),
}

/// The names that Patroni has had for each.
const PLACES: [(&str, Place); 26] = {
    use {Document as D, Place as P, Question as Q};
    [
        ("", P::Question(Q::Primary)),
        ("primary", P::Question(Q::Primary)),
        ("master", P::Question(Q::Primary)),
        ("read-write", P::Question(Q::Primary)),
        ("leader", P::Question(Q::Leader)),
        ("standby-leader", P::Question(Q::StandbyLeader)),
        ("standby_leader", P::Question(Q::StandbyLeader)),
        ("replica", P::Question(Q::Replica)),
        ("read-only", P::Question(Q::ReadOnly)),
        ("sync", P::Question(Q::Sync)),
        ("synchronous", P::Question(Q::Sync)),
        ("read-only-sync", P::Question(Q::ReadOnlySync)),
        ("read-only-synchronous", P::Question(Q::ReadOnlySync)),
        ("quorum", P::Question(Q::Quorum)),
        ("read-only-quorum", P::Question(Q::ReadOnlyQuorum)),
        ("async", P::Question(Q::Async)),
        ("asynchronous", P::Question(Q::Async)),
        ("health", P::Question(Q::Health)),
        ("liveness", P::Question(Q::Liveness)),
        ("readiness", P::Question(Q::Readiness)),
        ("patroni", P::Document(D::Host)),
        ("cluster", P::Document(D::Cluster)),
        ("history", P::Document(D::History)),
        ("metrics", P::Document(D::Metrics)),
        ("config", P::Document(D::Config)),
        ("status", P::Document(D::Host)),
    ]
};

/// What is there; `None`: nothing.
pub fn place(path: &str) -> Option<Place> {
    let name = path.trim_matches('/');
    PLACES.iter().find(|(known, _)| *known == name).map(|(_, place)| *place)
}

/// What a standby has to be beside that.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Conditions {
    /// At most so many bytes behind.
    pub lag: Option<u64>,
    /// `replication_state`.
    pub state: Option<String>,
    /// `tag_…`, without that.
    pub tags: Vec<(String, String)>,
    /// `mode=write`: what is received counts for the lag, not what is replayed.
    pub received: bool,
}

impl Conditions {
    /// Of a query string.
    ///
    /// # Errors
    /// A value that can't be; an unknown key is nobody's business, as with Patroni.
    pub fn of(query: &str) -> Result<Self, String> {
        let mut conditions = Self::default();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            let (key, value) = (decoded(key), decoded(value));
            match key.as_str() {
                "lag" => conditions.lag = Some(bytes(&value)?),
                "replication_state" => conditions.state = Some(value),
                "mode" => conditions.received = value == "write",
                key => conditions.tags.extend(key.strip_prefix("tag_").map(|tag| (tag.to_owned(), value))),
            }
        }
        Ok(conditions)
    }
}

/// `1048576`, `1MB`, `16kB`: the units of PostgreSQL (manual, 20.1.1), blocks among them no more.
fn bytes(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let factor = match unit.trim() {
        "" | "B" => 1,
        "kB" => 1 << 10,
        "MB" => 1 << 20,
        "GB" => 1 << 30,
        "TB" => 1_u64 << 40,
        _ => return Err(format!("lag={text} is no number of bytes: use 1048576, 16kB or 10MB")),
    };
    let number =
        number.parse::<u64>().map_err(|_| format!("lag={text} is no number of bytes: use 1048576, 16kB or 10MB"))?;
    Ok(number.saturating_mul(factor))
}

/// `%XX` and `+` (HTML's `application/x-www-form-urlencoded`).
fn decoded(text: &str) -> String {
    let (mut out, mut rest) = (Vec::with_capacity(text.len()), text.as_bytes());
    while let Some((&first, after)) = rest.split_first() {
        let escaped = (first == b'%').then(|| after.get(..2)).flatten();
        let byte = escaped.and_then(|hex| u8::from_str_radix(std::str::from_utf8(hex).ok()?, 16).ok());
        let plain = if first == b'+' { b' ' } else { first };
        out.push(byte.unwrap_or(plain));
        rest = if byte.is_some() { &after[2..] } else { after };
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_of_patroni_leads_somewhere() {
        let question = |path: &str| match place(path) {
            Some(Place::Question(question)) => question,
            other => panic!("{path}: {other:?}"),
        };
        for path in ["/", "/primary", "/master", "/read-write", "primary/"] {
            assert_eq!(question(path), Question::Primary, "{path}");
        }
        assert_eq!(question("/standby_leader"), Question::StandbyLeader);
        assert_eq!(question("/asynchronous"), Question::Async);
        assert_eq!(place("/patroni"), Some(Place::Document(Document::Host)));
        assert_eq!(place("/primary/x"), None);
    }

    #[test]
    fn conditions_are_read_as_patroni_reads_them() {
        let of = |query: &str| Conditions::of(query).unwrap();
        assert_eq!(of("lag=1048576").lag, Some(1 << 20));
        assert_eq!(of("lag=10MB&x=1").lag, Some(10 << 20));
        assert_eq!(of("lag=16kB").lag, Some(16 << 10));
        assert_eq!(of("replication_state=in+archive%20recovery").state.as_deref(), Some("in archive recovery"));
        let tags = of("tag_site=a%26b&tag_clonefrom=true").tags;
        assert_eq!(tags, [("site".to_owned(), "a&b".to_owned()), ("clonefrom".to_owned(), "true".to_owned())]);
        assert!(of("mode=write").received && !of("mode=apply").received);
        for wrong in ["lag=", "lag=x", "lag=-1", "lag=5 blocks"] {
            assert!(Conditions::of(wrong).unwrap_err().contains("is no number of bytes"), "{wrong}");
        }
        assert_eq!(of("%zz=%"), Conditions::default());
    }
}
