//! Carries out the sync plans of a log, through the ring of the current executor.

use std::{io, path::Path, sync::Arc};

use glommio::{
    GlommioError,
    io::{BufferedFile, DmaFile, OpenOptions},
};
use palisade_wal::{Backend, SyncPlan};
use rustix::fs::OFlags;

/// Limit of one direct write, in bytes.
const MAX_WRITE_BYTES: usize = 1024 * 1024;

/// The file that is synced. It stays open until its segment is sealed.
#[derive(Debug)]
pub struct LogFile {
    backend: Backend,
    open: Option<(Arc<Path>, Opened)>,
}

#[derive(Debug)]
enum Opened {
    /// Syncs the page cache, which holds the appended bytes.
    Mapped(BufferedFile),
    /// Writes past the page cache. With `O_DSYNC`, each write is as durable as after a sync, so it
    /// takes one round through the ring instead of two.
    Direct(DmaFile),
}

impl LogFile {
    /// Returns a log file that opens segments when plans name them.
    pub fn new(backend: Backend) -> Self {
        Self { backend, open: None }
    }

    /// Carries out a plan. With [`Backend::Direct`], it calls `pages` for one part of the plan's
    /// pages at a time, with the offset of the part in the pages, in bytes, and the memory to fill.
    ///
    /// # Errors
    ///
    /// An error of the file or the ring. Not retryable: the contents of the disk are unknown after
    /// it.
    pub async fn carry_out(
        &mut self,
        plan: &SyncPlan,
        pages: impl Fn(usize, &mut [u8]),
    ) -> Result<(), GlommioError<()>> {
        if self.open.as_ref().is_none_or(|(path, _)| *path != plan.path) {
            let opened = Opened::open(&plan.path, self.backend).await?;
            self.open = Some((plan.path.clone(), opened));
        }
        let (_, opened) = self.open.as_ref().expect("it was just opened");
        match opened {
            Opened::Mapped(file) => file.fdatasync().await?,
            Opened::Direct(file) => write(file, plan, pages).await?,
        }
        if plan.seals
            && let Some((_, opened)) = self.open.take()
        {
            // A failure loses nothing, because the file was synced.
            let _ = opened.close().await;
        }
        Ok(())
    }
}

async fn write(
    file: &DmaFile,
    plan: &SyncPlan,
    pages: impl Fn(usize, &mut [u8]),
) -> Result<(), GlommioError<()>> {
    let total = usize::try_from(plan.pages.end - plan.pages.start).expect("it is in memory");
    for offset in (0..total).step_by(MAX_WRITE_BYTES) {
        let len = MAX_WRITE_BYTES.min(total - offset);
        // A copy, because appends may change the last page during the write.
        let mut bytes = file.alloc_dma_buffer(len);
        pages(offset, bytes.as_bytes_mut());
        if file.write_at(bytes, plan.pages.start + offset as u64).await? != len {
            return Err(io::Error::from(io::ErrorKind::WriteZero).into());
        }
    }
    Ok(())
}

impl Opened {
    async fn open(path: &Path, backend: Backend) -> Result<Self, GlommioError<()>> {
        match backend {
            Backend::Mapped => Ok(Self::Mapped(BufferedFile::open(path).await?)),
            Backend::Direct => {
                let flags = i32::try_from(OFlags::DSYNC.bits()).expect("a low bit");
                let mut options = OpenOptions::new();
                options.read(true).write(true).custom_flags(flags);
                Ok(Self::Direct(options.dma_open(path).await?))
            }
        }
    }

    async fn close(self) -> Result<(), GlommioError<()>> {
        match self {
            Self::Mapped(file) => file.close().await,
            Self::Direct(file) => file.close().await,
        }
    }
}
