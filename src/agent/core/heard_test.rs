//! What a standby tells of its primary's WAL.

use std::time::Duration;

use super::{
    Event, Now, Sight,
    tests::{at, now, standby},
};
use crate::domain::observation::HeardOfPrimary;

fn told(end: u64, primary: u64) -> Event {
    let sight = Sight {
        in_recovery: true,
        streaming: true,
        wal_end: at(2, end),
        wal_end_known: true,
        upstream_end: Some((at(2, primary), Duration::from_millis(40))),
        ..Sight::default()
    };
    Event::Probed { life: 1, result: Ok(Box::new(sight)) }
}

#[test]
fn a_standby_says_how_long_ago_its_wal_was_all_there_was_and_counts_a_suspension() {
    let mut core = standby();
    assert_eq!(core.heard_of_primary(now(0)), HeardOfPrimary::default(), "nothing yet");
    core.step(told(90, 100), now(1_000));
    core.step(told(150, 200), now(2_000));
    let heard = core.heard_of_primary(now(2_500));
    assert_eq!(heard, HeardOfPrimary { end: at(2, 200), complete_ago_ms: Some(1_540), ..heard });

    // The host was suspended for an hour: only one of the clocks knows.
    let hour = Duration::from_secs(3_600);
    let awake = Now {
        clocks: crate::domain::moment::TwoClocks { boot: now(2_500).clocks.boot + hour, ..now(2_500).clocks },
        ..now(2_500)
    };
    assert_eq!(core.heard_of_primary(awake).complete_ago_ms, Some(3_601_540));
}
