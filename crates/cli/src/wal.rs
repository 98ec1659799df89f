//! `palisade wal`: inspects a log on disk.

use std::{
    collections::BTreeMap,
    io::{self, BufWriter, Write},
    path::{Path, PathBuf},
};

use clap::{Args, Subcommand};
use palisade_wal::{InspectedRecord, Inspection, RecordKind, inspect};

use crate::{Failure, failed};

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Verify a shard's log and print its segments and records, without changing it
    Inspect {
        /// Directory of the log: `shard-000/log` in a node's data directory
        dir: PathBuf,
        /// Print the segments only, without their records
        #[arg(long)]
        segments_only: bool,
    },
}

pub(crate) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let Command::Inspect { dir, segments_only } = &arguments.command;
    let mut out = BufWriter::new(io::stdout().lock());
    match print(dir, *segments_only, &mut out).and_then(|end| out.flush().map(|()| end)) {
        Ok(end) => end,
        // The reader has closed the pipe, so it needs no more output.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        Err(error) => Err(failed(error)),
    }
}

/// Prints the log. The outer result is an error if printing fails, the inner one if the log cannot
/// be used.
fn print(dir: &Path, segments_only: bool, out: &mut impl Write) -> io::Result<Result<(), Failure>> {
    let mut groups = BTreeMap::<u32, (u64, u64)>::new();
    let mut last_path = PathBuf::new();
    let mut printed = Ok(());
    let inspected = inspect(dir, |path, found| {
        let (records, bytes) = groups.entry(found.record.group).or_default();
        *records += 1;
        *bytes += found.record.payload.len() as u64;
        if !segments_only && printed.is_ok() {
            if last_path != path {
                printed = writeln!(out, "{}", path.display());
                path.clone_into(&mut last_path);
            }
            printed = std::mem::replace(&mut printed, Ok(())).and_then(|()| record(&found, out));
        }
    });
    printed?;
    let inspection = match inspected {
        Ok(inspection) => inspection,
        Err(error) => return Ok(Err(failed(error))),
    };
    segments(&inspection, out)?;
    for (group, (records, bytes)) in groups {
        writeln!(out, "group {group}: {records} records, {bytes} bytes of payload")?;
    }
    match inspection.end {
        Ok(end) => {
            writeln!(out, "the log is whole, and ends at position {end}")?;
            Ok(Ok(()))
        }
        Err(error) => Ok(Err(failed(error))),
    }
}

fn record(found: &InspectedRecord<'_>, out: &mut impl Write) -> io::Result<()> {
    let InspectedRecord { record, position, offset, durable } = found;
    let what = match record.kind {
        RecordKind::Entry => format!("entry {}", record.index),
        RecordKind::Members => format!("members {}", record.index),
        RecordKind::State => "state".to_owned(),
        RecordKind::Snapshot => format!("snapshot {} part {}", record.index, record.part),
        RecordKind::SnapshotEnd => format!("snapshot {} part {}, last", record.index, record.part),
        RecordKind::Replacement => {
            format!("snapshot {} part {}, last, replaces the log", record.index, record.part)
        }
        RecordKind::Seal => "seal".to_owned(),
    };
    writeln!(
        out,
        "  {offset:>10}  at {position:>12}  durable {durable:>12}  group {:<10}  term {:<6}  {what}, \
         {} bytes",
        record.group,
        record.term,
        record.payload.len()
    )
}

fn segments(inspection: &Inspection, out: &mut impl Write) -> io::Result<()> {
    if let Some(owner) = &inspection.owner {
        writeln!(
            out,
            "cluster {} node {} shard {}, segments of {} bytes",
            owner.cluster_id, owner.node, owner.shard, owner.segment_bytes
        )?;
    }
    for segment in &inspection.segments {
        let name = segment.path.file_name().unwrap_or_default().to_string_lossy();
        let role = format!("{:?}", segment.role).to_lowercase();
        match segment.sequence {
            None => writeln!(out, "{name}  {role}")?,
            Some(sequence) => writeln!(
                out,
                "{name}  {role:<6}  sequence {sequence}, {} records up to byte {}{}, first needed {}",
                segment.records,
                segment.end,
                if segment.sealed { " and a seal" } else { "" },
                segment.first_needed
            )?,
        }
    }
    Ok(())
}
