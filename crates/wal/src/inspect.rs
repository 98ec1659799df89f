//! A log as it lies on the disk, for a person: nothing is changed, and nothing is taken on trust.

use std::path::{Path, PathBuf};

use crate::{
    LogOptions, Position, Record, WalError,
    open::{Chain, Listed, list_slots, verify_all},
    segment::{Header, SEGMENT_HEADER_BYTES, read_owner},
};

/// What a directory holds.
#[derive(Debug)]
pub struct Inspection {
    /// Whose log it is, as its headers say; `None` if none of them can be read.
    pub owner: Option<LogOptions>,
    /// The files, those of the log first and in order.
    pub segments: Vec<InspectedSegment>,
    /// Where the log ends, if it can be opened; or why it can't.
    pub end: Result<Position, WalError>,
}

/// A file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InspectedSegment {
    /// Where it is.
    pub path: PathBuf,
    /// What it is to the log.
    pub role: SegmentRole,
    /// Its place in the log, if it was ever started.
    pub sequence: Option<u64>,
    /// The first segment that was needed when it was started.
    pub first_needed: u64,
    /// Valid records, the seal not counted.
    pub records: u64,
    /// Where they end in the file, in bytes.
    pub end: usize,
    /// Whether the log goes on in another segment.
    pub sealed: bool,
}

/// What a file is to the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SegmentRole {
    /// Part of it.
    Live,
    /// It was part of it, and is not needed any more.
    Old,
    /// It was started after what is now the end.
    Beyond,
    /// It was never started.
    Spare,
    /// Its header does not verify.
    Unreadable,
}

/// A record, and where it is.
#[derive(Clone, Copy, Debug)]
pub struct InspectedRecord<'a> {
    /// The record.
    pub record: Record<'a>,
    /// Its first byte in the log.
    pub position: Position,
    /// Its first byte in the file.
    pub offset: u64,
    /// What was known to be durable when it was written.
    pub durable: Position,
}

/// Reads a directory and hands every record of the log to `visit`, with its file, in order.
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

/// The log that the first readable header belongs to.
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
