//! The sync wave of a shard: the next sync starts when the last one returns.

use std::{io, process, rc::Rc};

use palisade_wal::Backend;

use crate::{core::Core, log_file::LogFile};

/// The kernel's word for an error of the disk.
const EIO: i32 = 5;

/// Syncs the log whenever something is not durable, for as long as the shard lives.
///
/// A failed sync ends the process: the page cache may call pages clean that never reached the disk,
/// so that trying again would only hide the loss. Tests have the one after `fail_after` others fail.
pub(crate) async fn sync_log(core: Rc<Core>, backend: Backend, fail_after: Option<u64>) {
    let mut file = LogFile::new(backend);
    let mut syncs = 0;
    loop {
        let Some(plan) = core.next_sync() else {
            core.appended.wait().await;
            continue;
        };
        let synced = file.carry_out(&plan, |at, out| core.copy_pages(&plan, at, out)).await;
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
                plan.path.display()
            );
            process::abort();
        }
        core.synced(&plan);
    }
}
