//! How fast the disk of the Raft log is while nothing is written to it: a leader on a slow one makes every decision wait,
//! and that should be known before the next failover.

use std::{
    fs::File,
    io::{Seek as _, SeekFrom, Write as _},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tokio::{
    sync::watch,
    time::{Instant, timeout},
};

use super::log_store::SyncGauge;

/// A log that rested for so long is stood in for.
const EVERY: Duration = Duration::from_secs(10);
/// Beside the log, on its file system. Holds one byte.
const FILE: &str = "sync-probe";

/// Until the node stops.
pub(super) async fn probe(gauge: Arc<SyncGauge>, dir: PathBuf, mut stop: watch::Receiver<bool>) {
    let mut seen = gauge.count();
    while timeout(EVERY, stop.wait_for(|stop| *stop)).await.is_err() {
        let count = gauge.count();
        if std::mem::replace(&mut seen, count) != count {
            continue;
        }
        let (file, began) = (dir.join(FILE), Instant::now());
        match tokio::task::spawn_blocking(move || sync(&file)).await {
            Ok(Ok(())) => gauge.probed(began.elapsed()),
            Ok(Err(error)) => tracing::debug!(file = FILE, error = %error, "the disk of the Raft log can't be tried"),
            Err(_) => return, // the runtime ends
        }
    }
}

fn sync(path: &Path) -> std::io::Result<()> {
    let mut file = File::options().create(true).truncate(false).write(true).open(path)?;
    file.seek(SeekFrom::Start(0))?;
    file.write_all(b"x")?;
    file.sync_data()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_log_at_rest_still_has_a_figure_and_a_busy_one_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let gauge = Arc::new(SyncGauge::new());
        let (stop, stopping) = watch::channel(false);
        let task = tokio::spawn(probe(Arc::clone(&gauge), dir.path().to_owned(), stopping));
        assert_eq!(gauge.typical(), None);
        while gauge.typical().is_none() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        assert!(dir.path().join(FILE).exists());
        stop.send_replace(true);
        task.await.unwrap();
    }
}
