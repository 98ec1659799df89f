//! A shard's log on a simulated disk: what is synced stays, what is not may vanish or tear.

use palisade_wal::{Image, ImageDamage, Record, Remains};

/// What the disk writes at once.
const SECTOR_BYTES: usize = 512;

#[derive(Debug)]
pub(crate) struct Disk {
    owner: u64,
    segment_bytes: u64,
    pub(crate) image: Image,
    /// Writes since the shard's start.
    pub(crate) appends: u64,
    /// What the sync under way covers: the end, and how many writes.
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

    /// Begins a sync, unless one is under way or there is nothing to sync.
    pub(crate) fn begin_sync(&mut self) -> bool {
        let idle = self.syncing.is_none() && self.image.end() > self.image.durable();
        if idle {
            self.syncing = Some((self.image.end(), self.appends));
        }
        idle
    }

    /// The sync is done: how many writes are durable.
    pub(crate) fn end_sync(&mut self) -> Option<u64> {
        let (end, appends) = self.syncing.take()?;
        self.image.synced(end);
        Some(appends)
    }

    /// Power is lost: of what was not synced any part may have reached the disk.
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

    /// Flips a bit of what is durable, where it must show; tells whether there was one.
    pub(crate) fn flip_bit(&self, remains: &mut Remains, random: &mut fastrand::Rng) -> bool {
        let (first, vouched) = (self.image.first(), self.image.vouched());
        if vouched <= first {
            return false;
        }
        let at = remains.offset(random.u64(first..vouched));
        remains.bytes[at] ^= 1 << random.u8(0..8);
        true
    }

    /// What a restart finds, or that it refuses to.
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
