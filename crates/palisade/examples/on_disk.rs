//! A database in a directory: acknowledged writes are still stored at the next start.
//!
//! `cargo run -p palisade --example on_disk -- DIRECTORY`, several times
#![allow(clippy::print_stdout, reason = "it shows what it does")]

use palisade::{BlockingTransaction, ClientError, OpenError};

fn main() -> Result<(), OpenError> {
    let directory = std::env::args().nth(1).unwrap_or_else(|| "palisade-example".to_owned());
    let db = palisade::open_blocking(&format!("file:{directory}"))?;
    let visits = db.run(|tx: &mut BlockingTransaction| {
        let before = tx.get_for_update("visits")?;
        let before = before.and_then(|value| String::from_utf8_lossy(&value).parse().ok());
        let visits = before.unwrap_or(0_u64) + 1;
        tx.put("visits", visits.to_string())?;
        Ok::<_, ClientError>(visits)
    })?;
    println!("visit {visits} to {directory}");
    Ok(())
}
