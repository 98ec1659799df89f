//! A shard's log on a simulated disk: synced bytes survive a crash, unsynced bytes may be lost or
//! torn.

use palisade_wal::{Image, ImageDamage, Record, Remains};

/// The unit that the disk writes atomically.
const SECTOR_BYTES: usize = 512;

#[derive(Debug)]
pub(crate) struct Disk {
    owner: u64,
    segment_bytes: u64,
    pub(crate) image: Image,
    /// Records appended since the shard's start.
    pub(crate) appends: u64,
    /// The sync in flight: the log position and the number of appends that it covers.
    syncing: Option<(u64, u64)>,
}

impl Disk {
    pub(crate) fn new(owner: u64, segment_bytes: u64) -> Self {
        let image = Image::new(owner, segment_bytes);
        Self { owner, segment_bytes, image, appends: 0, syncing: None }
    }

    pub(crate) fn append(&mut self, record: &Record<'_>) {
        self.image.append(record);
        self.appends += 1;
    }

    /// Begins a sync and returns true, unless one is in flight or everything is synced.
    pub(crate) fn begin_sync(&mut self) -> bool {
        let idle = self.syncing.is_none() && self.image.end() > self.image.durable();
        if idle {
            self.syncing = Some((self.image.end(), self.appends));
        }
        idle
    }

    /// Completes the sync in flight. Returns the number of appends that are durable, or `None` if
    /// no sync was in flight.
    pub(crate) fn end_sync(&mut self) -> Option<u64> {
        let (end, appends) = self.syncing.take()?;
        self.image.synced(end);
        Some(appends)
    }

    /// Returns what a power loss leaves: a random part of the unsynced tail has reached the disk.
    pub(crate) fn crash(&self, random: &mut fastrand::Rng) -> Remains {
        let mut remains = self.image.remains().clone();
        let durable = remains.offset(self.image.durable());
        let tail = &mut remains.bytes[durable..];
        match random.u8(0..5) {
            0 => tail.fill(0),
            1 => {}
            2 => {
                let kept = random.usize(0..=tail.len());
                tail[kept..].fill(0);
            }
            _ => {
                for sector in tail.chunks_mut(SECTOR_BYTES) {
                    if random.bool() {
                        sector.fill(0);
                    }
                }
            }
        }
        remains
    }

    /// Flips a random bit in the part of the log that a durable record shows to be durable, so that
    /// recovery must detect it. Returns false if that part is empty.
    pub(crate) fn flip_bit(&self, remains: &mut Remains, random: &mut fastrand::Rng) -> bool {
        let (first, known_durable) = (self.image.first(), self.image.known_durable());
        if known_durable <= first {
            return false;
        }
        let at = remains.offset(random.u64(first..known_durable));
        remains.bytes[at] ^= 1 << random.u8(0..8);
        true
    }

    /// Recovers the log from `remains` and visits its records. Fails if durable bytes are damaged.
    pub(crate) fn recover(
        &mut self,
        remains: Remains,
        trust_damage: bool,
        visit: &mut impl FnMut(Record<'_>),
    ) -> Result<(), ImageDamage> {
        self.image = Image::recover(self.owner, self.segment_bytes, remains, trust_damage, visit)?;
        self.appends = 0;
        self.syncing = None;
        Ok(())
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.image.end()
    }
}
