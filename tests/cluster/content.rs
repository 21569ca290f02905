//! A cluster whose first data was restored: it has been through other timelines, and goes on from there.

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path};

use matriarch::demo::rig::{Ground, Unstarted};
use nix::sys::signal::Signal;

use crate::stage::{EXE, HEAL, SOON, TIMINGS, alone, others, profile, tasks_done, until};

/// Makes a data directory that was promoted twice.
const RESTORE: &str = "#!/bin/sh\nset -e\nbin=$MATRIARCH_BIN_DIR\n\"$bin/initdb\" -D \"$1\" -U postgres --auth=trust -N\n\
    for n in 1 2; do\ntouch \"$1/standby.signal\"\n\
    \"$bin/pg_ctl\" -D \"$1\" -w -l \"$1.log\" -o \"-c listen_addresses= -c unix_socket_directories=$1\" start\n\
    \"$bin/pg_ctl\" -D \"$1\" -w promote\n\"$bin/pg_ctl\" -D \"$1\" -w -m fast stop\ndone\n";

pub fn play() {
    let _alone = alone();
    let cluster = Unstarted::lay_out_on(Path::new(EXE), Path::new("/tmp"), &profile().to_string(), Ground::default());
    let cluster = cluster.unwrap();
    let script = cluster.root().join("restore");
    fs::write(&script, RESTORE).unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    let from = format!(
        "\n[bootstrap]\nmethod = \"command\"\ncommand = [\"{}\", \"{{data_dir}}\"]\n\
         [[bootstrap.databases]]\nname = \"wanted\"\n",
        script.display()
    );
    // The host of the clients has no PostgreSQL.
    let change = |text: &str| match text.contains("[member]") {
        true => format!("{text}{TIMINGS}{from}"),
        false => format!("{text}{TIMINGS}"),
    };
    cluster.configure(change).unwrap();
    let rig = cluster.up().unwrap();
    let before = rig.healthy(HEAL).unwrap();
    assert_eq!(before.timeline, 4, "restored on timeline 3, so the first grant takes 4");
    let initdbs: usize = rig.members().iter().map(|host| tasks_done(&rig, host, "initdb")).sum();
    assert_eq!(initdbs, 1);
    let there = |host: &str| rig.query(host, "select datname from pg_database where datname = 'wanted'");
    for host in others(&rig, &[]) {
        until("the database is there", SOON, || there(&host).is_ok_and(|rows| rows.concat() == "wanted"));
    }
    // Its WAL is the cluster's also where it is older than the cluster: whoever comes back is not copied anew.
    let standby = others(&rig, &[&before.primary]).remove(0);
    let copies = tasks_done(&rig, &standby, "clone");
    rig.signal(rig.postmaster(&standby).unwrap(), Signal::SIGKILL).unwrap();
    until("it is gone", SOON, || rig.healthy(HEAL).is_ok());
    rig.signal(rig.postmaster(&before.primary).unwrap(), Signal::SIGKILL).unwrap();
    let after = rig.healthy(HEAL).unwrap();
    assert!(after.timeline >= before.timeline);
    assert_eq!(tasks_done(&rig, &standby, "clone"), copies);
}
