//! The file of one host, as it is put together and written.

use std::collections::BTreeMap;

use super::map::{DIRECTORY, Member};

/// A password, which goes into a file of its own and nowhere else.
#[derive(Clone)]
pub struct Secret {
    /// Its file, below the directory of the configuration.
    pub file: &'static str,
    /// What is in it.
    pub value: String,
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Secret").field("file", &self.file).finish_non_exhaustive()
    }
}

/// What a host's file says.
#[derive(Debug, Clone, Default)]
pub struct Draft {
    pub scope: Option<String>,
    pub members: Vec<Member>,
    /// Which of them this host is.
    pub me: usize,
    /// With its reason.
    pub profile: Option<(&'static str, String)>,
    pub failsafe: bool,
    pub timings: BTreeMap<&'static str, u64>,
    /// For `matriarch config set`.
    pub settings: Vec<(String, String)>,
    pub bin_dir: Option<String>,
    pub data_dir: Option<String>,
    pub listen_addresses: Option<String>,
    pub socket_dir: Option<String>,
    pub superuser: Option<String>,
    pub replication: Option<String>,
    pub hba: Vec<String>,
    pub parameters: BTreeMap<String, String>,
    pub callbacks: BTreeMap<String, String>,
    pub rest: BTreeMap<&'static str, String>,
    pub allowlist: Vec<String>,
    pub layers: BTreeMap<&'static str, String>,
    /// Members that routers lead nobody to.
    pub weights: Vec<String>,
    pub secrets: Vec<Secret>,
}

/// A text for a shell.
pub fn quoted(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "=_-.,:/%@+".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        text.to_owned()
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}

fn string(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}

fn list(texts: &[String]) -> String {
    let lines = texts.iter().map(|text| format!("  {},\n", string(text)));
    if texts.is_empty() { "[]".to_owned() } else { format!("[\n{}]", lines.collect::<String>()) }
}

impl Draft {
    /// The member this is the file of.
    pub fn member(&self) -> &str {
        self.members.get(self.me).map_or("", |member| member.id.as_str())
    }

    /// Managers talk beyond this host.
    pub fn is_open(&self) -> bool {
        let loopback =
            |host: &str| host == "localhost" || host.parse().is_ok_and(|ip: std::net::IpAddr| ip.is_loopback());
        self.members.iter().any(|member| !loopback(&member.host))
    }

    /// What all hosts have in common, for when the cluster stands.
    pub fn commands(&self) -> Vec<String> {
        let all = self.settings.iter().map(|(key, value)| quoted(&format!("{key}={value}")));
        let all = Vec::from_iter(all);
        if all.is_empty() { Vec::new() } else { vec![format!("matriarch config set {}", all.join(" "))] }
    }

    /// As a configuration file. `hooks`: this version knows `[hooks.patroni]`; else it is written as a comment.
    pub fn to_toml(&self, hooks: bool) -> String {
        let mut out = String::new();
        self.cluster(&mut out);
        self.host(&mut out);
        for (table, values) in [("rest", &self.rest), ("layers", &self.layers)] {
            if values.is_empty() {
                continue;
            }
            out.push_str(&format!("\n[{table}]\n"));
            values.iter().for_each(|(key, value)| out.push_str(&format!("{key} = {}\n", string(value))));
            if table == "rest" && !self.allowlist.is_empty() && self.rest.contains_key("username") {
                out.push_str(&format!("allowlist = {}\n", list(&self.allowlist)));
            }
        }
        if !self.callbacks.is_empty() {
            let mark = if hooks { "" } else { "# " };
            out.push_str(&format!("\n{mark}[hooks.patroni]\n"));
            self.callbacks.iter().for_each(|(key, value)| out.push_str(&format!("{mark}{key} = {}\n", string(value))));
        }
        out.push_str(
            "\n# Leads clients to the primary: docs/router.md. Clients may as well go by the API, as they did.\n",
        );
        out.push_str("# [router]\n# read_write = \"127.0.0.1:6432\"\n# read_only = \"127.0.0.1:6433\"\n");
        if !self.weights.is_empty() {
            let weights = self.weights.iter().map(|member| format!("{} = 0", string(member)));
            out.push_str(&format!("# read_only_weights = {{ {} }}\n", Vec::from_iter(weights).join(", ")));
        }
        out
    }

    fn cluster(&self, out: &mut String) {
        out.push_str("# Imported from a configuration of Patroni. `matriarch config check` and `matriarch preflight` look at it.\n\n");
        out.push_str(&format!("[cluster]\nname = {}\n", string(self.scope.as_deref().unwrap_or("main"))));
        if let Some((profile, why)) = &self.profile {
            out.push_str(&format!("# {why}.\nprofile = {}\n", string(profile)));
        }
        if self.is_open() {
            out.push_str("# Traffic between the managers is not encrypted.\ninsecure = true\n");
        }
        out.push_str(&format!("secret_file = {}\n", string(&format!("{DIRECTORY}/secret"))));
        if self.failsafe {
            out.push_str("failsafe = true\n");
        }
        if !self.timings.is_empty() {
            out.push_str("\n[cluster.timings]\n");
            self.timings.iter().for_each(|(key, value)| out.push_str(&format!("{key} = {value}\n")));
        }
        out.push_str("\n# The first one has the primary when the cluster begins.\n");
        for member in &self.members {
            let Member { id, host, port, manager_port } = member;
            let (id, host, agent_port) = (string(id), string(host), manager_port + 1);
            out.push_str(&format!(
                "[[cluster.members]]\nid = {id}\nhost = {host}\nmanager_port = {manager_port}\nagent_port = {agent_port}\npostgres_port = {port}\n\n"
            ));
        }
    }

    fn host(&self, out: &mut String) {
        out.push_str(&format!("[member]\nid = {}\n\n[manager]\n\n[agent]\n\n[postgresql]\n", string(self.member())));
        let bin_dir = self.bin_dir.as_deref();
        if bin_dir.is_none() {
            out.push_str("# Fill it in: the directory of the programs that the data directory is of.\n");
        }
        let some = |key: &str, value: Option<&str>| value.map(|value| format!("{key} = {}\n", string(value)));
        let lines = [
            some("bin_dir", bin_dir.or(Some("/usr/lib/postgresql/FILL-IN/bin"))),
            some("data_dir", self.data_dir.as_deref()),
            some("listen_addresses", self.listen_addresses.as_deref()),
            some("socket_dir", self.socket_dir.as_deref()),
            some("superuser", self.superuser.as_deref()),
            some("superuser_password_file", Some(&format!("{DIRECTORY}/superuser.pass"))),
            some("replication_user", self.replication.as_deref()),
            some("replication_password_file", Some(&format!("{DIRECTORY}/replication.pass"))),
        ];
        out.extend(lines.into_iter().flatten());
        out.push_str(&format!("hba = {}\n\n[postgresql.parameters]\n", list(&self.hba)));
        for (key, value) in &self.parameters {
            let key = if key.contains('.') { string(key) } else { key.clone() };
            out.push_str(&format!("{key} = {}\n", string(value)));
        }
        out.push_str(
            "\n# What runs is taken over as it runs: the primary of the first member, standbys without a copy\n# (docs/from-patroni.md). \
             Read once; the table may go afterwards.\n[bootstrap]\nmethod = \"adopt\"\nrestart = false\n",
        );
    }
}
