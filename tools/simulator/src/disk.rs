//! A shard's log on a simulated disk: what is synced stays, what is not may vanish or tear.

use palisade_wal::{Image, Record};

/// What the disk writes at once.
const SECTOR_BYTES: usize = 512;

#[derive(Debug)]
pub(crate) struct Disk {
    owner: u64,
    image: Image,
    /// Writes since the shard's start.
    pub(crate) appends: u64,
    /// What the sync under way covers: the end, and how many writes.
    syncing: Option<(u64, u64)>,
}

impl Disk {
    pub(crate) fn new(owner: u64) -> Self {
        Self { owner, image: Image::new(owner), appends: 0, syncing: None }
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
    pub(crate) fn crash(&self, random: &mut fastrand::Rng) -> Vec<u8> {
        let mut bytes = self.image.bytes().to_vec();
        let durable = usize::try_from(self.image.durable()).expect("it is in memory");
        let tail = &mut bytes[durable..];
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
        bytes
    }

    /// A log that nothing was ever written to.
    pub(crate) fn blank(&self) -> Vec<u8> {
        Image::new(self.owner).bytes().to_vec()
    }

    /// Flips a bit of what is durable, where it must show; tells whether there was one.
    pub(crate) fn flip_bit(&self, bytes: &mut [u8], random: &mut fastrand::Rng) -> bool {
        const HEADER_BYTES: u64 = 4096;
        let vouched = self.image.vouched();
        if vouched <= HEADER_BYTES {
            return false;
        }
        let at = usize::try_from(random.u64(HEADER_BYTES..vouched)).expect("it is in memory");
        bytes[at] ^= 1 << random.u8(0..8);
        true
    }

    /// What a restart finds, or that it refuses to.
    pub(crate) fn recover(
        &mut self,
        bytes: Vec<u8>,
        trust_damage: bool,
        visit: &mut impl FnMut(Record<'_>),
    ) -> Result<(), palisade_wal::ImageDamage> {
        self.image = Image::recover(self.owner, bytes, trust_damage, visit)?;
        self.appends = 0;
        self.syncing = None;
        Ok(())
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.image.end()
    }
}
