//! Syncs the log of a shard. The next sync starts when the last one returns.

use std::{io, process, rc::Rc};

use palisade_wal::Backend;

use crate::{executor::Executor, log_file::LogFile};

/// The kernel's error number for an I/O error.
const EIO: i32 = 5;

/// Syncs the log whenever it is not durable to its end, for as long as the shard lives.
///
/// A failed sync ends the process. The page cache may mark pages clean that never reached the disk,
/// so a retry would hide the loss. In tests, every sync after the first `fail_after` fails.
pub(crate) async fn sync_log(executor: Rc<Executor>, backend: Backend, fail_after: Option<u64>) {
    let mut file = LogFile::new(backend);
    let mut syncs = 0;
    loop {
        let Some(plan) = executor.next_sync() else {
            executor.appended.wait().await;
            continue;
        };
        let began_us = executor.clock.now().monotonic_us;
        let synced = file.carry_out(&plan, |at, out| executor.copy_pages(&plan, at, out)).await;
        syncs += 1;
        let synced = match synced {
            Ok(()) if fail_after.is_some_and(|after| syncs > after) => {
                Err(io::Error::from_raw_os_error(EIO).into())
            }
            synced => synced,
        };
        if let Err(error) = synced {
            executor.sync_failed();
            tracing::error!(
                "a sync of {} failed: {error}. Nothing more is acknowledged. Check the disk; \
                 the next start trusts only what it reads back",
                plan.path.display()
            );
            process::abort();
        }
        executor.synced(&plan, began_us);
    }
}
