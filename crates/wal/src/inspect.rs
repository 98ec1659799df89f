//! Inspects a log on disk for an operator. Changes nothing, and verifies every record.

use std::path::{Path, PathBuf};

use crate::{
    LogOptions, Position, Record, WalError,
    open::{Chain, Listed, list_slots, verify_all},
    segment::{Header, SEGMENT_HEADER_BYTES, read_owner},
};

/// The content of a log's directory.
#[derive(Debug)]
pub struct Inspection {
    /// Owner and segment size from the first readable header; `None` if no header can be read.
    pub owner: Option<LogOptions>,
    /// The files: first those of the log, in order, then the others.
    pub segments: Vec<InspectedSegment>,
    /// The end of the log, or the error that would prevent opening it.
    pub end: Result<Position, WalError>,
}

/// A segment file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InspectedSegment {
    /// Path of the file.
    pub path: PathBuf,
    /// The file's role in the log.
    pub role: SegmentRole,
    /// Sequence of the segment; `None` if it was never started or its header does not verify.
    pub sequence: Option<u64>,
    /// Sequence of the first segment that was needed when this one was started; 0 without a
    /// `sequence`.
    pub first_needed: u64,
    /// Number of valid records, not counting the seal.
    pub records: u64,
    /// Offset in the file where the valid records end, in bytes.
    pub end: usize,
    /// True if the segment ends with a seal: the log continues in the next one.
    pub sealed: bool,
}

/// The role of a file in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SegmentRole {
    /// Part of the log.
    Live,
    /// A former part of the log that is no longer needed.
    Old,
    /// Started, but not reached from the log's beginning: it follows the end, or the log can't be
    /// assembled.
    Beyond,
    /// Never started.
    Spare,
    /// The header does not verify.
    Unreadable,
}

/// A record and its position.
#[derive(Clone, Copy, Debug)]
pub struct InspectedRecord<'a> {
    /// The record.
    pub record: Record<'a>,
    /// Position of its first byte in the log.
    pub position: Position,
    /// Offset of its first byte in the file.
    pub offset: u64,
    /// The durable position when it was written.
    pub durable: Position,
}

/// Reads a directory and passes each record of the log to `visit`, with its file, in order. Damage
/// is reported in [`Inspection::end`].
///
/// # Errors
/// - [`WalError::Io`] if a file can't be read.
/// - [`WalError::Foreign`] if a file does not belong to the log. Not retryable.
pub fn inspect(
    dir: &Path,
    mut visit: impl FnMut(&Path, InspectedRecord<'_>),
) -> Result<Inspection, WalError> {
    let Listed { slots, .. } = list_slots(dir)?;
    let paths: Vec<_> = slots.into_iter().map(|(_, path)| path).collect();
    let Some(options) = owner(&paths)? else {
        let blank = |path: PathBuf| {
            let role = SegmentRole::Spare;
            InspectedSegment {
                path,
                role,
                sequence: None,
                first_needed: 0,
                records: 0,
                end: SEGMENT_HEADER_BYTES,
                sealed: false,
            }
        };
        let segments = paths.into_iter().map(blank).collect();
        return Ok(Inspection { owner: None, segments, end: Ok(0) });
    };
    let files = verify_all(&paths, &options, &|_| {})?;
    let chain = Chain::find(&files, &options);
    let mut segments = Vec::new();
    for (at, file) in files.iter().enumerate() {
        let (sequence, first_needed) = match file.start() {
            Some(start) => (Some(start.sequence), start.first_needed),
            None => (None, 0),
        };
        let role = match (&file.header, &chain) {
            (Header::Blank, _) => SegmentRole::Spare,
            (Header::Unreadable, _) => SegmentRole::Unreadable,
            (_, Ok(chain)) if chain.segments.contains(&at) => SegmentRole::Live,
            (Header::Started(start), Ok(chain)) if start.sequence < chain.first_needed => {
                SegmentRole::Old
            }
            _ => SegmentRole::Beyond,
        };
        let records = file.start().map_or(0, |start| file.records(start, &options).count() as u64);
        segments.push(InspectedSegment {
            path: file.segment.path.clone(),
            role,
            sequence,
            first_needed,
            records,
            end: file.scan.end,
            sealed: file.scan.sealed,
        });
    }
    if let Ok(chain) = &chain {
        for file in chain.segments.iter().map(|at| &files[*at]) {
            let start = file.start().expect("the log is made of started segments");
            for found in file.records(start, &options) {
                let offset = found.position % options.segment_bytes;
                let (record, position, durable) = (found.record, found.position, found.durable);
                let record = InspectedRecord { record, position, offset, durable };
                visit(&file.segment.path, record);
            }
        }
    }
    segments.sort_by_key(|segment| (segment.role != SegmentRole::Live, segment.sequence));
    let end = chain.and_then(|chain| {
        chain.refuse_if_damaged(&files, &options)?;
        Ok(chain.end)
    });
    Ok(Inspection { owner: Some(options), segments, end })
}

/// Returns the options in the first readable header.
fn owner(paths: &[PathBuf]) -> Result<Option<LogOptions>, WalError> {
    for path in paths {
        let mut page = vec![0; SEGMENT_HEADER_BYTES];
        let file = std::fs::File::open(path).map_err(WalError::io("open", path))?;
        let read = std::os::unix::fs::FileExt::read_at(&file, &mut page, 0);
        read.map_err(WalError::io("read", path))?;
        if let Some(options) = read_owner(&page) {
            return Ok(Some(options));
        }
    }
    Ok(None)
}
