//! Carries out the plans of a log through the ring of the executor that it is called on.

use std::{io, path::Path, sync::Arc};

use glommio::{
    GlommioError,
    io::{BufferedFile, DmaFile, OpenOptions},
};
use palisade_wal::{Backend, SyncPlan};
use rustix::fs::OFlags;

/// Bytes that one direct write takes at most.
const MAX_WRITE_BYTES: usize = 1024 * 1024;

/// The file that is written to, kept open until its segment is sealed.
#[derive(Debug)]
pub struct LogFile {
    backend: Backend,
    open: Option<(Arc<Path>, Opened)>,
}

#[derive(Debug)]
enum Opened {
    /// The page cache holds what is to be synced.
    Mapped(BufferedFile),
    /// Past the page cache, and each write as durable as after a sync (`O_DSYNC`): one round through
    /// the ring, not two.
    Direct(DmaFile),
}

impl LogFile {
    /// Opens nothing yet.
    pub fn new(backend: Backend) -> Self {
        Self { backend, open: None }
    }

    /// Carries out a plan. With [`Backend::Direct`], `pages` is asked for its pages, a part at a
    /// time: an offset from their first byte on, and the memory to fill.
    ///
    /// After an error, nobody knows what the disk holds.
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
            // Nothing is lost if this fails: the file was synced.
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
        // A copy: the last page is appended to meanwhile.
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
