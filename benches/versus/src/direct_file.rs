//! A file that bypasses the page cache, with writes that are durable when they return.

use std::{
    fs::{File, OpenOptions},
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::Path,
};

use rustix::fs::OFlags;

/// Alignment and unit of direct writes, in bytes.
pub(crate) const PAGE_BYTES: usize = 4096;

/// Opens an existing file for direct, durable writes.
pub(crate) fn open(path: &Path) -> anyhow::Result<File> {
    let flags = i32::try_from((OFlags::DIRECT | OFlags::DSYNC).bits())?;
    Ok(OpenOptions::new().write(true).custom_flags(flags).open(path)?)
}

/// A buffer that is aligned to a page.
pub(crate) struct Pages {
    bytes: Vec<u8>,
    begin: usize,
    len: usize,
}

impl Pages {
    pub(crate) fn new(capacity: usize) -> Self {
        let bytes = vec![0; capacity + PAGE_BYTES];
        let begin = bytes.as_ptr().align_offset(PAGE_BYTES);
        Self { bytes, begin, len: 0 }
    }

    pub(crate) fn clear(&mut self) {
        self.len = 0;
    }

    pub(crate) fn push(&mut self, bytes: &[u8]) {
        let at = self.begin + self.len;
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
        self.len += bytes.len();
    }

    /// Fills the last page with zeros.
    pub(crate) fn pad(&mut self) {
        let end = self.len.next_multiple_of(PAGE_BYTES);
        self.bytes[self.begin + self.len..self.begin + end].fill(0);
        self.len = end;
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Writes the whole buffer at an offset of the file.
    pub(crate) fn write_to(&self, file: &File, offset: u64) -> anyhow::Result<()> {
        Ok(file.write_all_at(&self.bytes[self.begin..self.begin + self.len], offset)?)
    }
}
