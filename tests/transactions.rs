//! Interactive transactions and snapshots, through the client, against real processes.
#![allow(clippy::disallowed_methods, reason = "tests run on the real machine")]

mod support;

use std::time::Duration;

use palisade_client::{Bytes, Client, ClientError, Expected, Mode, Transaction};
use palisade_cluster::{Cluster, ClusterOptions};
use support::{BOTH_MODES, keys, options, pause, run};

type Result<T> = std::result::Result<T, ClientError>;

fn number(value: Option<&Bytes>) -> u64 {
    value.map_or(0, |value| u64::from_le_bytes(value[..].try_into().unwrap()))
}

async fn add(client: &Client, key: &[u8], locks_first: bool) -> Result<()> {
    client
        .run(async |tx: &mut Transaction| {
            let before = match locks_first {
                true => tx.get_for_update(key.to_vec()).await?,
                false => tx.get(key.to_vec()).await?,
            };
            tx.put(key.to_vec(), (number(before.as_ref()) + 1).to_le_bytes().to_vec())
        })
        .await
}

/// Each node is killed in turn, and the locks in its memory are lost with it.
#[test]
fn transactions_lose_no_updates_under_contention_and_node_kills() {
    run(async {
        let mut cluster = Cluster::start(options()).unwrap();
        let client = cluster.wait_until_serving().await.unwrap();
        let client = client.with_timeout(Duration::from_secs(60));
        for mode in BOTH_MODES {
            let key = keys(&client, mode).await.key(0).to_vec();
            let work = |locks_first| {
                let (client, key) = (client.clone(), key.clone());
                async move {
                    for _ in 0..60 {
                        add(&client, &key, locks_first).await.unwrap();
                    }
                }
            };
            let all = futures_lite::future::zip(
                futures_lite::future::zip(work(true), work(false)),
                futures_lite::future::zip(work(true), work(false)),
            );
            let kills = async {
                for node in 0..3 {
                    pause(Duration::from_millis(100)).await;
                    cluster.kill(node).unwrap();
                    pause(Duration::from_millis(300)).await;
                    cluster.start_node(node).unwrap();
                    pause(Duration::from_millis(600)).await;
                }
            };
            futures_lite::future::zip(all, kills).await;
            let counted = client.get(key).await.unwrap().map(|found| found.value);
            assert_eq!(number(counted.as_ref()), 240, "{mode}");
        }
    });
}

/// Scenario 33, as clients see it: transfers conserve the total that concurrent scans read.
#[test]
fn transactions_transfers_conserve_total_seen_by_scans() {
    const ACCOUNTS: u8 = 6;
    run(async {
        let mut cluster = Cluster::start(options()).unwrap();
        let client = cluster.wait_until_serving().await.unwrap();
        for mode in BOTH_MODES {
            let bank = keys(&client, mode).await.key(0).to_vec();
            let account = |of: u8| [&bank[..], b"/", &[of]].concat();
            client
                .run(async |tx: &mut Transaction| {
                    (0..ACCOUNTS)
                        .try_for_each(|of| tx.put(account(of), 100_u64.to_le_bytes().to_vec()))
                })
                .await
                .unwrap();
            let transfers = async {
                let mut random = fastrand::Rng::with_seed(1);
                for _ in 0..150 {
                    let (from, to) = (random.u8(0..ACCOUNTS), random.u8(0..ACCOUNTS));
                    let moved = client
                        .run(async |tx: &mut Transaction| {
                            let of = number(tx.get(account(from)).await?.as_ref());
                            let to_have = number(tx.get(account(to)).await?.as_ref());
                            if of < 7 || from == to {
                                return Ok::<_, ClientError>(false);
                            }
                            tx.put(account(from), (of - 7).to_le_bytes().to_vec())?;
                            tx.put(account(to), (to_have + 7).to_le_bytes().to_vec())?;
                            Ok(true)
                        })
                        .await;
                    moved.unwrap();
                }
            };
            let look = async |backward: bool| {
                for _ in 0..60 {
                    let rows = client
                        .run(async |tx: &mut Transaction| {
                            let scan = tx.scan(account(0), Some(account(ACCOUNTS).into()));
                            let scan = scan.page_rows(2);
                            if backward { scan.backward().all().await } else { scan.all().await }
                        })
                        .await
                        .unwrap();
                    assert_eq!(rows.len(), usize::from(ACCOUNTS));
                    assert_eq!(rows[0].0 > rows[1].0, backward);
                    let total: u64 = rows.iter().map(|(_, value)| number(Some(value))).sum();
                    assert_eq!(total, u64::from(ACCOUNTS) * 100, "{mode}");
                }
            };
            let others = futures_lite::future::zip(look(false), look(true));
            let both = futures_lite::future::zip(transfers, others);
            futures_lite::future::zip(both, async {}).await;
        }
    });
}

#[test]
fn transactions_read_own_writes_and_failed_writes_stay_invisible() {
    run(async {
        let mut cluster = Cluster::start(options()).unwrap();
        let client = cluster.wait_until_serving().await.unwrap();
        let all = keys(&client, BOTH_MODES[0]).await;
        let base = all.key(0).to_vec();
        let key = |name: &str| [&base[..], name.as_bytes()].concat();
        client.put(key("b"), "old").await.unwrap();
        client.put(key("c"), "old").await.unwrap();
        let failed: Result<()> = client
            .run(async |tx: &mut Transaction| {
                tx.put(key("a"), "new")?;
                tx.delete(key("b"))?;
                assert_eq!(tx.get(key("a")).await?.as_deref(), Some(&b"new"[..]));
                assert_eq!(tx.get(key("b")).await?, None);
                let names = |rows: Vec<(Bytes, Bytes)>| {
                    rows.iter().map(|(key, _)| key[base.len()]).collect::<Vec<_>>()
                };
                let span = || (key("a"), Some(Bytes::from(key("z"))));
                let rows = tx.scan(span().0, span().1).all().await?;
                assert_eq!(names(rows), b"ac");
                let rows = tx.scan(span().0, span().1).backward().page_rows(1).all().await?;
                assert_eq!(names(rows), b"ca");
                let taken = tx.insert(key("c"), "new").await;
                assert_eq!(taken, Err(ClientError::ConditionFailed { condition: 0 }));
                tx.insert(key("b"), "again").await?;
                tx.compare_and_set(key("b"), Expected::Value("again".into()), "more").await?;
                Err(ClientError::NodeDown)
            })
            .await;
        assert_eq!(failed, Err(ClientError::NodeDown));
        let value = async |name| client.get(key(name)).await.unwrap().map(|found| found.value);
        assert_eq!(value("a").await, None);
        assert_eq!(value("b").await.as_deref(), Some(&b"old"[..]));
        // Its locks are released, so this put does not wait.
        client.with_timeout(Duration::from_secs(2)).put(key("c"), "free").await.unwrap();

        let several: Result<()> = client
            .run(async |tx: &mut Transaction| {
                tx.get(all.key(0)).await?;
                tx.put(all.key(1), "elsewhere")
            })
            .await;
        assert_eq!(several, Err(ClientError::SeveralRanges));
        // A transaction whose body ignores the error of a call commits nothing either.
        let careless: Result<()> = client
            .run(async |tx: &mut Transaction| {
                tx.get(all.key(0)).await?;
                let _ = tx.get(all.key(1)).await;
                tx.put(all.key(0), "careless")
            })
            .await;
        assert_eq!(careless, Err(ClientError::SeveralRanges));
        assert_eq!(client.get(all.key(0)).await.unwrap(), None);
        let nothing: Result<u8> = client.run(async |_: &mut Transaction| Ok(7)).await;
        assert_eq!(nothing, Ok(7));
    });
}

/// Scenarios 7 and 32: a transaction that waits for a lock ends by its deadline, without the lock.
#[test]
fn lock_wait_ends_by_transaction_deadline() {
    run(async {
        let mut cluster = Cluster::start(options()).unwrap();
        let client = cluster.wait_until_serving().await.unwrap();
        for mode in BOTH_MODES {
            let key = keys(&client, mode).await.key(0).to_vec();
            let hasty = client.with_timeout(Duration::from_millis(300));
            let held: Result<()> = client
                .run(async |tx: &mut Transaction| {
                    tx.get_for_update(key.clone()).await?;
                    let waited: Result<Option<Bytes>> =
                        hasty.run(async |tx: &mut Transaction| tx.get(key.clone()).await).await;
                    let error = waited.unwrap_err();
                    assert!(
                        matches!(error, ClientError::Deadline { outcome_unknown: false, .. }),
                        "{error}"
                    );
                    // A current read needs no lock.
                    assert_eq!(hasty.get(key.clone()).await?, None);
                    tx.put(key.clone(), "held")
                })
                .await;
            held.unwrap();
            let found = hasty.get(key.clone()).await.unwrap().map(|found| found.value);
            assert_eq!(found.as_deref(), Some(&b"held"[..]));
            hasty.put(key, "free").await.unwrap();
        }
    });
}

/// One writer puts each number to a key of one range, then to a key of another range. In every
/// snapshot, the first number equals the second or is one larger.
#[test]
fn snapshot_over_ranges_is_consistent_and_includes_acknowledged_writes() {
    run(async {
        let mut cluster = Cluster::start(options()).unwrap();
        let client = cluster.wait_until_serving().await.unwrap();
        let first = keys(&client, BOTH_MODES[0]).await.key(0).to_vec();
        let second = keys(&client, BOTH_MODES[1]).await.key(0).to_vec();
        let acknowledged = std::cell::Cell::new(0_u64);
        let done = std::cell::Cell::new(false);
        let writer = async {
            for count in 1..=200_u64 {
                client.put(first.clone(), count.to_le_bytes().to_vec()).await.unwrap();
                client.put(second.clone(), count.to_le_bytes().to_vec()).await.unwrap();
                acknowledged.set(count);
            }
            done.set(true);
        };
        let readers = async {
            let mut seen = Vec::new();
            while !done.get() {
                let before = acknowledged.get();
                let fresh = client.snapshot();
                let stale = client.stale_snapshot(Duration::from_millis(50));
                for snapshot in [&fresh, &stale] {
                    let value = async |key: &Vec<u8>| {
                        let found = snapshot.get(key.clone()).await.unwrap();
                        number(found.map(|found| found.value).as_ref())
                    };
                    let (of_second, of_first) = (value(&second).await, value(&first).await);
                    assert!(of_first == of_second || of_first == of_second + 1);
                    seen.push((snapshot.at_ts().unwrap(), of_first));
                    let scanned = snapshot.scan("", None).all().await.unwrap();
                    let found = scanned.iter().find(|row| row.key == first);
                    assert_eq!(number(found.map(|row| &row.value)), of_first);
                }
                let [.., (_, of_first), _] = seen[..] else { unreachable!() };
                assert!(of_first >= before, "{of_first} is read, {before} was acknowledged");
                // A read at an earlier timestamp, from any replica.
                let (at_ts, expected) = seen[seen.len().saturating_sub(6)];
                let found = client.snapshot_at(at_ts).get(first.clone()).await.unwrap();
                assert_eq!(number(found.map(|found| found.value).as_ref()), expected);
            }
            assert!(seen.len() > 10 && seen.iter().any(|(_, of_first)| *of_first > 1));
        };
        futures_lite::future::zip(writer, readers).await;
    });
}

/// Scenario 34: versions of a snapshot that is still read are kept, others are collected.
#[test]
fn snapshot_versions_are_kept_while_read_then_collected() {
    run(async {
        let mut cluster = Cluster::start(options()).unwrap();
        let client = cluster.wait_until_serving().await.unwrap();
        for mode in BOTH_MODES {
            let key = keys(&client, mode).await.key(0).to_vec();
            client.put(key.clone(), "before").await.unwrap();
            let snapshot = client.snapshot();
            snapshot.get(key.clone()).await.unwrap();
            let forgotten = client.put(key.clone(), "after").await.unwrap().commit_ts;
            for _ in 0..10 {
                pause(Duration::from_millis(300)).await;
                client.put(key.clone(), "after").await.unwrap();
                let found = snapshot.get(key.clone()).await.unwrap().unwrap();
                assert_eq!(found.value, "before", "{mode}");
            }
            drop(snapshot);
            let deadline = std::time::Instant::now() + Duration::from_secs(60);
            loop {
                pause(Duration::from_millis(500)).await;
                client.put(key.clone(), "after").await.unwrap();
                let gone = client.snapshot_at(forgotten);
                if gone.get(key.clone()).await
                    == Err(ClientError::SnapshotTooOld { at_ts: forgotten })
                {
                    break;
                }
                assert!(std::time::Instant::now() < deadline, "it is kept for ever");
                drop(gone);
                // The read has protected the timestamp for some more seconds.
                pause(Duration::from_secs(7)).await;
            }
        }
    });
}

/// Scenario 53: a snapshot that was read in only one range stays readable in all others, while
/// writes go on there and after a node is killed.
#[test]
fn snapshot_stays_readable_in_ranges_not_yet_read() {
    run(async {
        let mut cluster =
            Cluster::start(ClusterOptions { ranges_per_mode: 6, ..options() }).unwrap();
        let client = cluster.wait_until_serving().await.unwrap();
        // One key for each of twelve ranges.
        let prefix = |at: u32| u16::try_from((at << 16) / 12 + 9).expect("it is below 65,536");
        let keys: Vec<Vec<u8>> = (0..12).map(|at| prefix(at).to_be_bytes().to_vec()).collect();
        let ranges = client.topology().await.unwrap().ranges;
        let mut held: Vec<_> = keys.iter().map(|key| ranges.find(key).range).collect();
        held.dedup();
        assert_eq!(held.len(), 12);
        for key in &keys {
            client.put(key.clone(), "before").await.unwrap();
        }
        let snapshot = client.snapshot();
        snapshot.get(keys[0].clone()).await.unwrap();
        let started = std::time::Instant::now();
        while started.elapsed() < Duration::from_secs(12) {
            for key in &keys {
                client.put(key.clone(), "after").await.unwrap();
            }
        }
        cluster.kill(1).unwrap();
        let raft = keys.iter().filter(|key| ranges.find(key).mode == Mode::Raft);
        for key in raft {
            client.put(key.clone(), "after").await.unwrap();
            let found = snapshot.get(key.clone()).await.unwrap().unwrap();
            assert_eq!(found.value, "before", "{key:?}");
        }
        // A chain may lack its head or tail until it is repaired, but each live member can serve
        // reads at an earlier timestamp.
        for key in keys.iter().filter(|key| ranges.find(key).mode == Mode::Chain) {
            let old = client.snapshot_at(snapshot.at_ts().unwrap());
            let found = old.get(key.clone()).await.unwrap().unwrap();
            assert_eq!(found.value, "before", "{key:?}");
        }
    });
}

/// Scenario 6: at any replica, a client reads its own writes and never reads an older state. The
/// same holds for another client that observes its session token.
#[test]
fn session_stale_reads_are_monotonic_and_read_own_writes() {
    run(async {
        let mut cluster = Cluster::start(options()).unwrap();
        let client = cluster.wait_until_serving().await.unwrap();
        let addresses = cluster.addresses();
        let other = Client::connect(&addresses, cluster.client_options()).await.unwrap();
        for mode in BOTH_MODES {
            let key = keys(&client, mode).await.key(0).to_vec();
            let hour = Duration::from_secs(3600);
            for count in 1..=60_u64 {
                client.put(key.clone(), count.to_le_bytes().to_vec()).await.unwrap();
                let own = client.stale_snapshot(hour).get(key.clone()).await.unwrap();
                assert_eq!(number(own.map(|found| found.value).as_ref()), count);
                other.observe(client.session_token());
                let theirs = other.stale_snapshot(hour).get(key.clone()).await.unwrap();
                assert_eq!(number(theirs.map(|found| found.value).as_ref()), count);
                if count == 30 {
                    cluster.kill(2).unwrap();
                    cluster.start_node(2).unwrap();
                }
            }
        }
    });
}
