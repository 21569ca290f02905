//! Free space: looked at once a second beside everything else, and judged. The rules are pure, [`watch`] is not.

use std::time::Duration;

use tokio::sync::mpsc;

use super::{core::Event, hands::blocking, pace::Pace, process::Wake};
use crate::{
    domain::{KeptWal, Level, Lsn, Moment, RoomView, Settings, SlotsYield, Thresholds, Volume},
    postgres::{Instance, Place, Space, VolumeSpace},
};

/// Between two looks.
const LOOK: Duration = Duration::from_secs(1);
/// A reserve that could not be made or freed, or not yet, is tried again this much later.
const AGAIN: Duration = Duration::from_secs(60);
/// So long the primary stays after slots began to be given up for room: a checkpoint has removed what they held by then,
/// and the reserve is made again.
const RELIEF: Duration = Duration::from_secs(20);

/// Segments of WAL come and go: a volume that filled up by no more than two of the usual size has no trend.
const TREND: u64 = 32 << 20;

/// What is to be done with a reserve.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reserve {
    /// Keep so many bytes back.
    Make(Place, u64),
    /// Free what is kept back.
    Free(Place),
    /// Remove the data directories that are kept after clones.
    Release,
}

/// What is known of the room PostgreSQL has.
#[derive(Debug, Clone, Default)]
pub struct Room {
    seen: Option<Space>,
    data: Kept,
    wal: Kept,
    /// The end of WAL.
    written: Pace,
    released: Option<Moment>,
    /// What keeps WAL from being removed.
    held: KeptWal,
    /// Since when slots are given up.
    relief: Option<Moment>,
}

/// The reserve of one volume.
#[derive(Debug, Clone, Default)]
struct Kept {
    /// Bytes that are used, without what is kept back.
    used: Pace,
    /// It was freed because the volume was full.
    spent: bool,
    /// It was last to be made …
    made: Option<Moment>,
    /// … and freed.
    freed: Option<Moment>,
}

impl Room {
    /// A new look, and what is to be done about it. `occupied`: there is a database, without one nothing is kept back.
    pub fn see(&mut self, space: Space, settings: &Settings, occupied: bool, now: Moment) -> Vec<Reserve> {
        self.seen = Some(space);
        let mut out = Vec::new();
        let volumes = [(Place::Data, Some(space.data)), (Place::Wal, space.wal)];
        for (place, volume) in volumes.into_iter().filter_map(|(place, volume)| Some((place, volume?))) {
            let level = |free| level(place, free, &volume, &space, settings);
            let kept = self.kept(place);
            kept.used.note(volume.size.saturating_sub(volume.free).saturating_sub(volume.reserve), now);
            let low = place == Place::Data && level(volume.free) > Level::Fine;
            out.extend(kept.mind(place, &volume, level, settings.disk_reserve, occupied, now));
            if low && self.released.is_none_or(|at| now.since(at) >= AGAIN) {
                self.released = Some(now);
                out.push(Reserve::Release);
            }
        }
        self.relieve(settings, now);
        out
    }

    /// A new look at what keeps WAL from being removed.
    pub fn see_kept(&mut self, kept: KeptWal, settings: &Settings, now: Moment) {
        self.held = kept;
        self.relieve(settings, now);
    }

    fn relieve(&mut self, settings: &Settings, now: Moment) {
        let Some(whose) = self.gives_up(settings) else {
            self.relief = None;
            return;
        };
        if self.relief.is_none() && !self.held.to_give_up(whose).is_empty() {
            self.relief = Some(now);
        }
    }

    /// Whose slots are given up now.
    pub fn gives_up(&self, settings: &Settings) -> Option<SlotsYield> {
        self.view(settings).filter(|view| view.of_wal().is_short()).map(|_| settings.slots_yield)
    }

    /// What keeps WAL, as others see it.
    pub fn kept_wal(&self, now: Moment) -> KeptWal {
        let gives_way = self.relief.is_some_and(|since| now.since(since) < RELIEF);
        KeptWal { gives_way, ..self.held.clone() }
    }

    /// Where WAL ends at this look; `None`: not known.
    pub fn wal_ends(&mut self, end: Option<Lsn>, now: Moment) {
        match end {
            Some(end) => self.written.note_growing(end.0, now),
            None => self.written = Pace::default(),
        }
    }

    /// PostgreSQL ended because there was no room for its WAL. Whether something was kept back that is free now.
    pub fn ran_out(&mut self) -> Option<Reserve> {
        let seen = self.seen?;
        let (place, volume) = match seen.wal {
            Some(wal) => (Place::Wal, wal),
            None => (Place::Data, seen.data),
        };
        let first = volume.reserve > 0 && !self.kept(place).spent;
        self.kept(place).spent = true;
        first.then_some(Reserve::Free(place))
    }

    fn kept(&mut self, place: Place) -> &mut Kept {
        match place {
            Place::Data => &mut self.data,
            Place::Wal => &mut self.wal,
        }
    }

    /// WAL is known to be on another volume than the data.
    pub fn has_wal_apart(&self) -> bool {
        self.seen.is_some_and(|space| space.wal.is_some())
    }

    /// As others see it.
    pub fn view(&self, settings: &Settings) -> Option<RoomView> {
        let space = self.seen?;
        let volume = |place, v: VolumeSpace, kept: &Kept| Volume {
            free: v.free,
            size: v.size,
            level: level(place, v.free, &v, &space, settings),
            reserve: v.reserve,
            spent: kept.spent,
            filling: kept.used.per_second(TREND),
        };
        let wal = space.wal.map(|v| volume(Place::Wal, v, &self.wal));
        Some(RoomView { data: volume(Place::Data, space.data, &self.data), wal, written: self.written.per_second(1) })
    }
}

impl Kept {
    fn mind(
        &mut self,
        place: Place,
        volume: &VolumeSpace,
        level: impl Fn(u64) -> Level,
        wanted: u64,
        occupied: bool,
        now: Moment,
    ) -> Option<Reserve> {
        // Whatever the thresholds are, no more is kept back than is left besides.
        let ample = |free| level(free) == Level::Fine && free >= wanted;
        let due = |asked: Option<Moment>| asked.is_none_or(|at| now.since(at) >= AGAIN);
        if volume.reserve > 0 {
            // It was made, so the next one doesn't repeat a failure.
            self.made = None;
            let short = level(volume.free) == Level::Short;
            self.spent = short || (self.spent && !ample(volume.free));
            let free = (short || volume.reserve != wanted) && due(self.freed);
            self.freed = if free { Some(now) } else { self.freed };
            return free.then_some(Reserve::Free(place));
        }
        self.freed = None;
        if wanted == 0 {
            // Nobody wants one: then only the room itself says when it is back.
            self.spent &= !ample(volume.free);
            return None;
        }
        let room = volume.free.checked_sub(wanted).is_some_and(|rest| match self.spent {
            true => ample(rest),
            false => level(rest) <= Level::Low,
        });
        let make = room && occupied && due(self.made);
        self.made = if make { Some(now) } else { self.made };
        make.then_some(Reserve::Make(place, wanted))
    }
}

/// Of data and WAL together the worse verdict counts.
fn level(place: Place, free: u64, volume: &VolumeSpace, space: &Space, settings: &Settings) -> Level {
    let by = |thresholds: Thresholds| thresholds.level(free, volume.size);
    match place {
        Place::Wal => by(settings.wal_room()),
        Place::Data if space.wal.is_some() => by(settings.data_room()),
        Place::Data => by(settings.data_room()).max(by(settings.wal_room())),
    }
}

/// Looks until nobody listens any more. A file system that hangs holds up nothing but this.
pub async fn watch(instance: Instance, wakes: mpsc::UnboundedSender<Wake>) {
    let mut told = false;
    loop {
        let at_work = instance.clone();
        match blocking(move || at_work.space().map_err(|e| e.to_string())).await {
            Ok(Ok(space)) => {
                told = false;
                if wakes.send(Wake::Core(Event::Room(space))).is_err() {
                    return;
                }
            }
            Ok(Err(error)) | Err(error) if !told => {
                told = true;
                tracing::warn!(error, "failed to look how much room the disks have");
            }
            Ok(Err(_)) | Err(_) => {}
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Makes or frees a reserve; waits for the file system.
pub fn carry_out(instance: &Instance, what: Reserve) {
    let done = match what {
        Reserve::Make(place, bytes) => instance.make_reserve(place, bytes).map(|()| true),
        Reserve::Free(place) => instance.free_reserve(place),
        Reserve::Release => instance.release_kept_data(),
    };
    match done {
        Ok(true) => tracing::info!(?what, "changed what is kept back on a volume"),
        Ok(false) => {}
        Err(error) => tracing::warn!(error = super::hands::chain(&error), ?what, "failed to change what is kept back"),
    }
}

/// Removes what a release has given up.
pub fn remove_released(instance: &Instance) {
    if let Err(error) = instance.remove_gone() {
        tracing::warn!(error = super::hands::chain(&error), "failed to remove what was kept of diverged data");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{SlotHolds, Whose};

    const MIB: u64 = 1 << 20;

    fn volume(free: u64, reserve: u64) -> VolumeSpace {
        VolumeSpace { free: free * MIB, size: 1_000 * MIB, reserve: reserve * MIB }
    }

    fn apart(free: u64, reserve: u64) -> Space {
        Space { data: volume(500, 64), wal: Some(volume(free, reserve)) }
    }

    fn at(seconds: u64) -> Moment {
        Moment(Duration::from_secs(seconds))
    }

    fn wal(room: &Room) -> (Level, bool) {
        let view = room.view(&Settings::default()).unwrap_or_default();
        (view.of_wal().level, view.of_wal().spent)
    }

    #[test]
    fn the_reserve_is_freed_when_room_is_short_and_made_again_when_it_is_back() {
        let (mut room, settings) = (Room::default(), Settings::default());
        let see = |room: &mut Room, space, second| room.see(space, &settings, true, at(second));
        assert_eq!(see(&mut room, apart(900, 0), 0), [Reserve::Make(Place::Wal, 64 * MIB)]);
        assert_eq!(see(&mut room, apart(900, 0), 1), [], "it was asked for a moment ago");
        assert_eq!(see(&mut room, apart(836, 64), 2), []);
        assert_eq!(see(&mut room, apart(50, 64), 3), []);
        assert_eq!(wal(&room), (Level::Low, false));
        assert_eq!(see(&mut room, apart(19, 64), 4), [Reserve::Free(Place::Wal)]);
        assert_eq!(see(&mut room, apart(83, 0), 70), []);
        assert_eq!(wal(&room), (Level::Low, true), "what is left is what was the reserve");
        assert_eq!(see(&mut room, apart(160, 0), 71), [], "it would not be fine with the reserve made");
        assert_eq!(see(&mut room, apart(170, 0), 72), [Reserve::Make(Place::Wal, 64 * MIB)]);
        assert_eq!(wal(&room), (Level::Fine, true));
        assert_eq!(see(&mut room, apart(106, 64), 73), []);
        assert_eq!(wal(&room), (Level::Fine, false));
        assert_eq!(see(&mut room, apart(19, 64), 74), [Reserve::Free(Place::Wal)]);
        assert_eq!(
            see(&mut room, apart(900, 0), 75),
            [Reserve::Make(Place::Wal, 64 * MIB)],
            "no sooner than it can be"
        );
    }

    #[test]
    fn what_ran_out_of_room_had_a_reserve_once() {
        let (mut room, settings) = (Room::default(), Settings::default());
        assert_eq!(room.ran_out(), None, "nothing was seen yet");
        room.see(apart(100, 64), &settings, true, at(0));
        assert_eq!(room.ran_out(), Some(Reserve::Free(Place::Wal)));
        assert_eq!(room.ran_out(), None);
        assert!(wal(&room).1);
        let mut shared = Room::default();
        shared.see(Space { data: volume(100, 64), wal: None }, &settings, true, at(0));
        assert_eq!(shared.ran_out(), Some(Reserve::Free(Place::Data)));
    }

    #[test]
    fn what_is_kept_back_is_no_growth_and_what_is_written_is() {
        let (mut room, settings) = (Room::default(), Settings::default());
        let mut look = |second, free, reserve| {
            room.see(apart(free, reserve), &settings, true, at(second));
            room.wal_ends(Some(Lsn(second * MIB)), at(second));
            let view = room.view(&settings).unwrap_or_default();
            (view.of_wal().filling, view.data.filling, view.written)
        };
        assert_eq!(look(0, 900, 0), (0, 0, 0));
        assert_eq!(look(30, 836, 64), (0, 0, MIB), "the reserve was made");
        assert_eq!(look(40, 806, 64), (0, 0, MIB), "two segments may come and go");
        assert_eq!(look(60, 716, 64), (2 * MIB, 0, MIB));
        room.wal_ends(None, at(61));
        assert_eq!(room.view(&settings).map(|v| v.written), Some(0), "there is no server any more");
    }

    #[test]
    fn another_size_is_freed_first_and_none_is_kept_where_no_database_is() {
        let mut room = Room::default();
        let half = Settings { disk_reserve: 32 * MIB, ..Settings::default() };
        let shared = |reserve| Space { data: volume(500, reserve), wal: None };
        assert_eq!(room.see(shared(64), &half, true, at(0)), [Reserve::Free(Place::Data)]);
        assert_eq!(room.see(shared(0), &half, false, at(1)), []);
        assert_eq!(room.see(shared(0), &half, true, at(2)), [Reserve::Make(Place::Data, 32 * MIB)]);
        let none = Settings { disk_reserve: 0, ..Settings::default() };
        assert_eq!(room.see(shared(32), &none, true, at(3)), [Reserve::Free(Place::Data)]);
        assert_eq!(room.see(shared(32), &none, true, at(4)), [], "it was to be freed a moment ago");
        assert_eq!(room.see(shared(0), &none, true, at(5)), []);
        assert_eq!(room.view(&none).map(|v| v.is_fine()), Some(true));
    }

    #[test]
    fn without_thresholds_what_was_freed_is_not_taken_for_room() {
        let mut room = Room::default();
        let none = crate::domain::Least::Bytes(0);
        let settings = Settings { wal_room_act: none, wal_room_warn: none, ..Settings::default() };
        room.see(apart(0, 64), &settings, true, at(0));
        assert_eq!(room.ran_out(), Some(Reserve::Free(Place::Wal)));
        assert_eq!(room.see(apart(0, 64), &settings, true, at(1)), [], "looked at before it was freed");
        assert_eq!(room.see(apart(64, 0), &settings, true, at(2)), [], "just freed");
        assert!(wal(&room).1);
        assert_eq!(room.see(apart(128, 0), &settings, true, at(3)), [Reserve::Make(Place::Wal, 64 * MIB)]);
    }

    #[test]
    fn slots_are_given_up_for_room_and_that_is_waited_for_once() {
        let (mut room, settings) = (Room::default(), Settings::default());
        let slot = SlotHolds { name: "matriarch_n2".into(), whose: Whose::Member, active: false, bytes: 100 * MIB };
        let holding = KeptWal { slots: vec![slot], ..KeptWal::default() };
        room.see(apart(100, 64), &settings, true, at(0));
        room.see_kept(holding.clone(), &settings, at(1));
        assert_eq!((room.gives_up(&settings), room.kept_wal(at(1)).gives_way), (None, false), "there is room");
        room.see(apart(19, 64), &settings, true, at(2));
        assert_eq!(
            (room.gives_up(&settings), room.kept_wal(at(2)).gives_way),
            (Some(SlotsYield::Members), true),
            "at once"
        );
        room.see_kept(KeptWal::default(), &settings, at(3));
        assert!(room.kept_wal(at(21)).gives_way, "what it held is not removed yet");
        assert!(!room.kept_wal(at(22)).gives_way, "it was not enough");
        room.see_kept(holding.clone(), &settings, at(30));
        assert!(!room.kept_wal(at(30)).gives_way, "the same shortage");
        room.see(apart(500, 0), &settings, true, at(40));
        room.see(apart(436, 64), &settings, true, at(41));
        room.see(apart(19, 64), &settings, true, at(42));
        assert!(room.kept_wal(at(42)).gives_way, "another");

        let never = Settings { slots_yield: SlotsYield::None, ..Settings::default() };
        room.see_kept(holding, &never, at(43));
        assert!(!Room { relief: None, ..room }.kept_wal(at(43)).gives_way);
    }

    #[test]
    fn on_one_volume_the_stricter_threshold_counts() {
        let mut room = Room::default();
        let settings = Settings { wal_room_act: crate::domain::Least::Percent(8), ..Settings::default() };
        room.see(Space { data: volume(70, 0), wal: None }, &settings, true, at(0));
        assert_eq!(room.view(&settings).map(|v| v.is_short()), Some(true));
        room.see(apart(90, 64), &settings, true, at(1));
        assert_eq!(room.view(&settings).map(|v| v.is_short()), Some(false));
    }
}
