//! Opening a directory of segments: which are the log, where it ends, and what may be reused.

use std::{
    fs,
    path::{Path, PathBuf},
};

use crate::{
    LogOptions, Record, WalError,
    recovery::{scan, was_durable_beyond},
    segment::{SEGMENT_HEADER_BYTES, Segment, SegmentStart, segment_position},
};

const SEGMENT_EXTENSION: &str = "seg";

/// A directory's segments, told apart.
pub(crate) struct Opened {
    /// Where the log ends, unless it is new.
    pub(crate) end: Option<End>,
    /// Segments ready to be started.
    pub(crate) blank: Vec<Segment>,
    /// Number of the next file.
    pub(crate) slots: u64,
}

/// The segment that the log ends in.
pub(crate) struct End {
    pub(crate) active: Segment,
    pub(crate) sequence: u64,
    pub(crate) offset: usize,
    pub(crate) last_crc: u32,
    pub(crate) sealed: bool,
}

/// The file of a slot.
pub(crate) fn slot_path(dir: &Path, slot: u64) -> PathBuf {
    dir.join(format!("{slot:08}.{SEGMENT_EXTENSION}"))
}

/// Reads a directory and replays its log.
pub(crate) fn open_directory(
    dir: &Path,
    options: &LogOptions,
    mut visit: impl FnMut(Record<'_>),
) -> Result<Opened, WalError> {
    fs::create_dir_all(dir).map_err(WalError::io("create", dir))?;
    let mut blank = Vec::new();
    let mut started = Vec::new();
    let mut slots = 0;
    for (slot, path) in list_slots(dir)? {
        slots = slots.max(slot + 1);
        let segment = Segment::open(&path, options.segment_bytes)?;
        match segment.read_start(options)? {
            None => blank.push(segment),
            Some(start) => started.push((segment, start)),
        }
    }
    started.sort_by_key(|(_, start)| start.sequence);

    let Some(end) = find_end(&started, options, &mut visit)? else {
        return Ok(Opened { end: None, blank, slots });
    };
    // From here on the directory is changed; every reason to refuse has been looked at.
    for (mut segment, _) in started.drain(end.segment + 1..) {
        segment.clear()?;
        blank.push(segment);
    }
    let (mut active, start) = started.pop().expect("the segment that the log ends in is there");
    if !end.sealed {
        active.zero_from(end.offset)?;
    }
    // What is replayed must not be lost again: it may have been in the page cache only.
    for segment in started.iter().map(|(segment, _)| segment).chain([&active]) {
        segment.file.sync_data().map_err(WalError::io("sync", &segment.path))?;
    }
    let end = End {
        active,
        sequence: start.sequence,
        offset: end.offset,
        last_crc: end.last_crc,
        sealed: end.sealed,
    };
    Ok(Opened { end: Some(end), blank, slots })
}

fn list_slots(dir: &Path) -> Result<Vec<(u64, PathBuf)>, WalError> {
    let mut slots = Vec::new();
    for entry in fs::read_dir(dir).map_err(WalError::io("list", dir))? {
        let path = entry.map_err(WalError::io("list", dir))?.path();
        let extension = path.extension().and_then(|extension| extension.to_str());
        let slot = path.file_stem().and_then(|stem| stem.to_str()).and_then(|s| s.parse().ok());
        match (extension, slot) {
            (Some(SEGMENT_EXTENSION), Some(slot)) => slots.push((slot, path)),
            // Its creation was interrupted: it never was part of the log.
            (Some("tmp"), _) => fs::remove_file(&path).map_err(WalError::io("remove", &path))?,
            _ => {
                return Err(WalError::Foreign {
                    path,
                    what: "it is not a log segment of Palisade",
                });
            }
        }
    }
    slots.sort();
    Ok(slots)
}

/// Where the log ends, before anything was changed.
struct FoundEnd {
    segment: usize,
    offset: usize,
    last_crc: u32,
    sealed: bool,
}

fn find_end(
    started: &[(Segment, SegmentStart)],
    options: &LogOptions,
    visit: &mut impl FnMut(Record<'_>),
) -> Result<Option<FoundEnd>, WalError> {
    let mut last_crc = 0;
    let mut found: Option<FoundEnd> = None;
    for (at, (segment, start)) in started.iter().enumerate() {
        let follows = start.sequence == at as u64 && start.previous_crc == last_crc;
        if !follows || found.as_ref().is_some_and(|found| !found.sealed) {
            break;
        }
        let base = segment_position(start.sequence, options.segment_bytes);
        let scan = scan(&segment.map, start.sequence, base, last_crc, visit);
        last_crc = scan.last_crc;
        found = Some(FoundEnd { segment: at, offset: scan.end, last_crc, sealed: scan.sealed });
    }
    let Some(end) = found else {
        return match started.first() {
            None => Ok(None),
            Some((segment, _)) => Err(WalError::Corrupt {
                path: segment.path.clone(),
                offset: 0,
                what: "the log's first segment is missing",
            }),
        };
    };
    refuse_if_damaged(started, options, &end)?;
    Ok(Some(end))
}

/// Fails if anything after the end shows that the log had been durable beyond it.
fn refuse_if_damaged(
    started: &[(Segment, SegmentStart)],
    options: &LogOptions,
    end: &FoundEnd,
) -> Result<(), WalError> {
    let (damaged, start) = &started[end.segment];
    let position = segment_position(start.sequence, options.segment_bytes) + end.offset as u64;
    for (at, (segment, start)) in started.iter().enumerate().skip(end.segment) {
        let base = segment_position(start.sequence, options.segment_bytes);
        let from = if at == end.segment { end.offset } else { SEGMENT_HEADER_BYTES };
        if was_durable_beyond(&segment.map, start.sequence, base, from, position) {
            return Err(WalError::Corrupt {
                path: damaged.path.clone(),
                offset: end.offset as u64,
                what: "a record does not verify",
            });
        }
    }
    Ok(())
}
