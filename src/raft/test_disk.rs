//! A log in memory whose syncs can be made to hang and to fail.

use std::{
    collections::BTreeMap,
    io,
    ops::Range,
    sync::{Condvar, Mutex},
};

use super::backend::{LogBackend, Meta};

#[derive(Default)]
struct Content {
    log: BTreeMap<u64, Vec<u8>>,
    meta: Vec<(Meta, Vec<u8>)>,
    hanging: bool,
    failing: bool,
    syncs: usize,
}

#[derive(Default)]
pub(super) struct TestDisk {
    content: Mutex<Content>,
    changed: Condvar,
}

/// Syncs hang as long as this lives.
pub(super) struct Hanging<'a>(&'a TestDisk);

impl Drop for Hanging<'_> {
    fn drop(&mut self) {
        self.0.content.lock().unwrap().hanging = false;
        self.0.changed.notify_all();
    }
}

impl TestDisk {
    pub(super) fn hang(&self) -> Hanging<'_> {
        self.content.lock().unwrap().hanging = true;
        Hanging(self)
    }

    pub(super) fn fail(&self) {
        self.content.lock().unwrap().failing = true;
    }

    pub(super) fn recover(&self) {
        self.content.lock().unwrap().failing = false;
    }

    /// How many syncs have been let through.
    pub(super) fn syncs(&self) -> usize {
        self.content.lock().unwrap().syncs
    }

    pub(super) fn change(&self, index: u64, change: impl FnOnce(&mut Vec<u8>)) {
        change(self.content.lock().unwrap().log.get_mut(&index).unwrap());
    }

    pub(super) fn lose(&self, index: u64) {
        self.content.lock().unwrap().log.remove(&index);
    }
}

impl LogBackend for TestDisk {
    fn append(&self, records: Vec<(u64, Vec<u8>)>) -> io::Result<()> {
        self.content.lock().unwrap().log.extend(records);
        Ok(())
    }

    fn truncate(&self, from: u64) -> io::Result<()> {
        self.content.lock().unwrap().log.split_off(&from);
        Ok(())
    }

    fn purge(&self, upto: u64) -> io::Result<()> {
        self.content.lock().unwrap().log.retain(|i, _| *i > upto);
        Ok(())
    }

    fn read(&self, range: Range<u64>) -> io::Result<Vec<(u64, Vec<u8>)>> {
        Ok(self.content.lock().unwrap().log.range(range).map(|(i, v)| (*i, v.clone())).collect())
    }

    fn last(&self) -> io::Result<Option<(u64, Vec<u8>)>> {
        Ok(self.content.lock().unwrap().log.last_key_value().map(|(i, v)| (*i, v.clone())))
    }

    fn put(&self, meta: Meta, value: Vec<u8>) -> io::Result<()> {
        self.content.lock().unwrap().meta.push((meta, value));
        Ok(())
    }

    fn get(&self, meta: Meta) -> io::Result<Option<Vec<u8>>> {
        Ok(self.content.lock().unwrap().meta.iter().rev().find(|(m, _)| *m == meta).map(|(_, v)| v.clone()))
    }

    fn sync(&self) -> io::Result<()> {
        let content = self.content.lock().unwrap();
        let mut content = self.changed.wait_while(content, |c| c.hanging).unwrap();
        content.syncs += 1;
        if content.failing { Err(io::Error::other("no space")) } else { Ok(()) }
    }
}
