//! A cluster: the same calls, over the network. All keys of a transaction must lie in one range.
//!
//! `cargo run -p palisade --example cluster -- HOST:PORT,HOST:PORT`, with the client addresses of a
//! running cluster (see `palisade start` in the README)
#![allow(clippy::print_stdout, reason = "it shows what it does")]

use palisade::{ClientError, OpenError, Transaction};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), OpenError> {
    let nodes = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:7000".to_owned());
    let db = palisade::open(&format!("palisade://{nodes}")).await?;
    let visits = db
        .run(async |tx: &mut Transaction| {
            let before = tx.get_for_update("visits").await?;
            let before = before.and_then(|value| String::from_utf8_lossy(&value).parse().ok());
            let visits = before.unwrap_or(0_u64) + 1;
            tx.put("visits", visits.to_string())?;
            Ok::<_, ClientError>(visits)
        })
        .await?;
    println!("visit {visits}");

    // A snapshot: all ranges at one timestamp. It does not block writers.
    let snapshot = db.snapshot();
    let rows = snapshot.scan("", None).all().await?;
    println!("{} keys at {}", rows.len(), snapshot.at_ts().expect("something was read"));
    Ok(())
}
