//! A database in the memory of the program, for tests and experiments. It is lost when the program
//! ends.
//!
//! `cargo run -p palisade --example in_memory`
#![allow(clippy::print_stdout, reason = "it shows what it does")]

use palisade::{BlockingTransaction, ClientError, OpenError};

fn main() -> Result<(), OpenError> {
    let db = palisade::open_blocking("mem:")?;
    db.put("account/ann", "70")?;
    db.put("account/bob", "30")?;

    // Atomic: both writes are committed, or none.
    let moved = db.run(|tx: &mut BlockingTransaction| {
        let balance = |value: Option<palisade::Bytes>| -> i64 {
            value.and_then(|value| String::from_utf8_lossy(&value).parse().ok()).unwrap_or(0)
        };
        let ann = balance(tx.get_for_update("account/ann")?);
        let bob = balance(tx.get_for_update("account/bob")?);
        let moved = ann.min(25);
        tx.put("account/ann", (ann - moved).to_string())?;
        tx.put("account/bob", (bob + moved).to_string())?;
        Ok::<_, ClientError>(moved)
    })?;
    println!("moved {moved}");

    for (name, balance) in db.run(|tx: &mut BlockingTransaction| tx.scan_prefix("account/"))? {
        println!("{}: {}", String::from_utf8_lossy(&name), String::from_utf8_lossy(&balance));
    }
    Ok(())
}
