//! The least work of a durable log, as a baseline: gathers records in pages and writes them to a
//! prefilled file, over and over. There are no checksums, no index and no end marker.

use std::{fs::File, io::Write, path::Path, sync::Arc};

use crate::{
    direct_file::{self, Pages},
    group_commit::GroupLog,
};

const FILE_BYTES: u64 = 256 << 20;
const BATCH_BYTES: usize = 256 * 1024;

/// Two buffers of pages: one gathers records while the other is written.
pub(crate) struct Bare {
    file: Arc<File>,
    offset: u64,
    gathering: Pages,
    idle: Option<Pages>,
}

impl Bare {
    pub(crate) fn create(dir: &Path) -> anyhow::Result<Self> {
        let path = dir.join("bare");
        let mut file = File::create(&path)?;
        for _ in 0..FILE_BYTES >> 20 {
            file.write_all(&[0; 1 << 20])?;
        }
        file.sync_all()?;
        let pages = || Pages::new(BATCH_BYTES);
        let file = Arc::new(direct_file::open(&path)?);
        Ok(Self { file, offset: 0, gathering: pages(), idle: Some(pages()) })
    }
}

impl GroupLog for Bare {
    type Batch = (Arc<File>, Pages, u64);

    fn append(&mut self, payload: &[u8]) -> anyhow::Result<()> {
        self.gathering.push(&u32::try_from(payload.len())?.to_le_bytes());
        self.gathering.push(payload);
        Ok(())
    }

    fn begin(&mut self) -> anyhow::Result<Self::Batch> {
        let mut next = self.idle.take().expect("one batch is written at a time");
        next.clear();
        let mut batch = std::mem::replace(&mut self.gathering, next);
        batch.pad();
        if self.offset + batch.len() as u64 > FILE_BYTES {
            self.offset = 0;
        }
        let at = self.offset;
        self.offset += batch.len() as u64;
        Ok((self.file.clone(), batch, at))
    }

    fn sync((file, batch, at): &Self::Batch) -> anyhow::Result<()> {
        batch.write_to(file, *at)
    }

    fn end(&mut self, (_, batch, _): Self::Batch) {
        self.idle = Some(batch);
    }
}
