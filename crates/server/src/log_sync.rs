//! The sync wave of a shard: the next sync starts when the last one returns.

use std::{collections::BTreeMap, io, path::PathBuf, process, rc::Rc};

use glommio::io::BufferedFile;
use palisade_shard::Input;

use crate::core::Core;

/// The kernel's word for an error of the disk.
const EIO: i32 = 5;

/// Syncs the log whenever something is not durable, for as long as the shard lives.
///
/// Syncs go through the shard's ring. A failed one ends the process: the page cache may call pages
/// clean that never reached the disk, so that trying again would only hide the loss. Tests have the
/// one after `fail_after` others fail.
pub(crate) async fn sync_log(core: Rc<Core>, fail_after: Option<u64>) {
    let mut syncs = 0;
    let mut files: BTreeMap<PathBuf, BufferedFile> = BTreeMap::new();
    loop {
        let Some((plan, appends)) = core.next_sync() else {
            core.appended.wait().await;
            continue;
        };
        for path in &plan.files {
            let synced = match files.get(path) {
                Some(file) => file.fdatasync().await,
                None => match BufferedFile::open(path).await {
                    Ok(file) => files.entry(path.clone()).or_insert(file).fdatasync().await,
                    Err(error) => Err(error),
                },
            };
            syncs += 1;
            let synced = match synced {
                Ok(()) if fail_after.is_some_and(|after| syncs > after) => {
                    Err(io::Error::from_raw_os_error(EIO).into())
                }
                synced => synced,
            };
            if let Err(error) = synced {
                core.sync_failed();
                tracing::error!(
                    "a sync of {} failed: {error}. Nothing more is acknowledged. Check the disk; \
                     the next start trusts only what it reads back",
                    path.display()
                );
                process::abort();
            }
        }
        // Sealed segments are synced a last time with the plan that also names their successor.
        let last = plan.files.last().cloned();
        for path in plan.files.iter().filter(|path| Some(*path) != last.as_ref()) {
            if let Some(file) = files.remove(path) {
                // Nothing is lost if this fails: the file was synced.
                let _ = file.close().await;
            }
        }
        core.synced(plan.up_to);
        core.inbox.push(Input::Durable { appends }, 0);
    }
}
