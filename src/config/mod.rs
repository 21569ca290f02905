//! The configuration file: `raw` as written, `checked` as used.

pub mod checked;

pub use checked::{
    AgentConfig, AgentEndpoint, ClusterConfig, Config, LocalMember, ManagerConfig, MemberConfig, PostgresqlConfig,
    RouterConfig,
};
