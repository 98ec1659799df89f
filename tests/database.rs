//! One suite for all kinds of database: in memory, in a directory, and a cluster of processes.
#![allow(clippy::disallowed_methods, reason = "tests run on the real machine")]

mod support;

use std::time::Duration;

use palisade::{
    BlockingTransaction, Bytes, Client, ClientError, Commit, Expected, OpenError, Transaction,
};
use palisade_cluster::Cluster;
use support::{options, run};

type Result<T> = std::result::Result<T, ClientError>;

/// Returns a key of the suite. All keys share a prefix, so they lie in one range of any cluster.
fn key(name: &str) -> Vec<u8> {
    format!("suite/{name}").into()
}

fn span() -> (Vec<u8>, Option<Bytes>) {
    (key(""), Some("suite0".into()))
}

async fn value(db: &Client, name: &str) -> Option<Bytes> {
    db.get(key(name)).await.unwrap().map(|found| found.value)
}

/// Checks the behaviour of a new database of any kind.
async fn suite(db: &Client) {
    single_keys(db).await;
    commits(db).await;
    transactions(db).await;
    snapshots(db).await;
    spans(db).await;
    counters(db).await;
}

async fn single_keys(db: &Client) {
    assert_eq!(db.get(key("a")).await.unwrap(), None);
    let first = db.put(key("a"), "1").await.unwrap();
    let found = db.get(key("a")).await.unwrap().unwrap();
    assert_eq!((&found.value[..], found.version_ts), (&b"1"[..], first.commit_ts));
    let taken = db.insert(key("a"), "2").await.unwrap_err();
    assert_eq!(taken, ClientError::ConditionFailed { condition: 0 });
    let set = Expected::Version(first.commit_ts);
    let second = db.compare_and_set(key("a"), set.clone(), "2").await.unwrap();
    assert!(second.commit_ts > first.commit_ts);
    db.compare_and_set(key("a"), set, "3").await.unwrap_err();
    db.delete(key("a")).await.unwrap();
    assert_eq!(value(db, "a").await, None);
    db.insert(key("a"), "4").await.unwrap();
    db.delete(key("a")).await.unwrap();
    assert!(matches!(db.put("", "no key").await, Err(ClientError::Rejected(_))));
}

async fn commits(db: &Client) {
    let both = Commit::new().put(key("b"), "1").put(key("c"), "1");
    db.commit(both.clone().expect(key("b"), Expected::Absent)).await.unwrap();
    let again = db.commit(both.put(key("d"), "1").expect(key("b"), Expected::Absent)).await;
    assert_eq!(again, Err(ClientError::ConditionFailed { condition: 0 }));
    assert_eq!(value(db, "d").await, None);
    let rows = db.scan(span().0, span().1).all().await.unwrap();
    let names: Vec<_> = rows.iter().map(|row| row.key.to_vec()).collect();
    assert_eq!(names, [key("b"), key("c")]);
    let rows = db.scan(span().0, span().1).backward().page_rows(1).all().await.unwrap();
    assert_eq!(rows[0].key, key("c"));
}

async fn transactions(db: &Client) {
    let failed: Result<()> = db
        .run(async |tx: &mut Transaction| {
            tx.put(key("b"), "9")?;
            tx.delete(key("c"))?;
            assert_eq!(tx.get(key("b")).await?.as_deref(), Some(&b"9"[..]));
            let rows = tx.scan(span().0, span().1).all().await?;
            assert_eq!(rows, [(Bytes::from(key("b")), Bytes::from("9"))]);
            Err(ClientError::NodeDown)
        })
        .await;
    assert_eq!(failed, Err(ClientError::NodeDown));
    assert_eq!(value(db, "b").await.as_deref(), Some(&b"1"[..]));
    let read = db
        .run(async |tx: &mut Transaction| {
            let read = tx.get_for_update(key("b")).await?;
            tx.insert(key("e"), "new").await?;
            tx.delete(key("c"))?;
            Ok::<_, ClientError>(read)
        })
        .await;
    assert_eq!(read.unwrap().as_deref(), Some(&b"1"[..]));
    assert_eq!((value(db, "c").await, value(db, "e").await), (None, Some("new".into())));
}

async fn snapshots(db: &Client) {
    let before = db.snapshot();
    let rows = before.scan(span().0, span().1).all().await.unwrap();
    db.put(key("b"), "2").await.unwrap();
    db.delete(key("e")).await.unwrap();
    assert_eq!(before.scan(span().0, span().1).all().await.unwrap(), rows);
    assert_eq!(before.get(key("b")).await.unwrap().unwrap().value, "1");
    assert_eq!(db.snapshot().get(key("e")).await.unwrap(), None);
    let past = db.snapshot_at(before.at_ts().unwrap());
    assert_eq!(past.scan(span().0, span().1).all().await.unwrap(), rows);
    let stale = db.stale_snapshot(Duration::from_secs(1));
    let found = stale.get(key("b")).await.unwrap().unwrap().value;
    assert!(found == "1" || found == "2");
}

async fn spans(db: &Client) {
    let put = (0..20).fold(Commit::new(), |commit, at| commit.put(key(&format!("s/{at:02}")), "1"));
    db.commit(put).await.unwrap();
    let begin = |at: &str| key(&format!("s/{at}"));
    let deleted = db
        .run(async |tx: &mut Transaction| {
            tx.put(begin("03x"), "own")?;
            let deleted = tx.delete_span(begin("03"), Some(begin("05").into())).await?;
            let left = tx.scan_prefix(key("s/0")).all().await?;
            assert_eq!(left.len(), 8);
            Ok::<_, ClientError>(deleted)
        })
        .await;
    assert_eq!(deleted, Ok(3));
    assert_eq!(db.scan_prefix(key("s/")).all().await.unwrap().len(), 18);
    assert_eq!(db.delete_span(begin("1"), Some(begin("15").into())).await, Ok(5));
    assert_eq!(db.delete_span(begin(""), Some(key("s0").into())).await, Ok(13));
    assert_eq!(db.snapshot().scan_prefix(key("s/")).all().await.unwrap(), []);
}

async fn counters(db: &Client) {
    let add = async |times: u32| {
        for _ in 0..times {
            let added: Result<()> = db
                .run(async |tx: &mut Transaction| {
                    let before = tx.get(key("count")).await?;
                    let before = before.map_or(0, |value| value.len());
                    tx.put(key("count"), vec![0; before + 1])
                })
                .await;
            added.unwrap();
        }
    };
    futures_lite::future::zip(add(30), futures_lite::future::zip(add(30), add(30))).await;
    assert_eq!(value(db, "count").await.map(|value| value.len()), Some(90));
}

#[test]
fn database_in_memory_passes_common_suite() {
    run(async {
        let db = palisade::open("mem:").await.unwrap();
        suite(&db).await;
        // A second database in memory shares nothing with the first.
        let other = palisade::open("mem:").await.unwrap();
        assert_eq!(value(&other, "b").await, None);
        suite(&other).await;
        let clone = db.clone();
        drop(db);
        assert_eq!(value(&clone, "b").await.as_deref(), Some(&b"2"[..]));
    });
}

#[test]
fn database_in_directory_passes_common_suite_and_reopens() {
    run(async {
        let dir = tempfile::tempdir().unwrap();
        let address = format!("file:{}", dir.path().join("db").display());
        let db = palisade::open(&address).await.unwrap();
        suite(&db).await;
        let in_use = palisade::open(&address).await.unwrap_err().to_string();
        assert!(in_use.contains("in use"), "{in_use}");
        let last = db.put(key("last"), "word").await.unwrap();
        drop(db);
        for round in 0..3 {
            let db = palisade::open(&address).await.unwrap();
            assert_eq!(value(&db, "last").await.as_deref(), Some(&b"word"[..]));
            assert_eq!(value(&db, "count").await.map(|value| value.len()), Some(90));
            let next = db.put(key("round"), vec![round]).await.unwrap();
            assert!(next.commit_ts > last.commit_ts);
        }
    });
}

/// The process aborts after a commit, and its engine with it. Acknowledged commits must survive.
#[test]
fn database_acknowledged_commits_survive_process_abort() {
    const VISITOR: &str = "PALISADE_TEST_DIRECTORY";
    if let Ok(directory) = std::env::var(VISITOR) {
        let db = palisade::open_blocking(&format!("file:{directory}")).unwrap();
        let visited: Result<()> = db.run(|tx: &mut BlockingTransaction| {
            let before = tx.get(key("visits"))?.map_or(0, |value| value.len());
            tx.put(key("visits"), vec![0; before + 1])
        });
        visited.unwrap();
        std::process::abort();
    }
    let dir = tempfile::tempdir().unwrap();
    for _ in 0..4 {
        let this = std::env::current_exe().unwrap();
        let mut visit = std::process::Command::new(this);
        visit.args(["--exact", "database_acknowledged_commits_survive_process_abort"]);
        let output = visit.env(VISITOR, dir.path()).output().unwrap();
        assert!(!output.status.success(), "it kills itself");
    }
    let db = palisade::open_blocking(&format!("file:{}", dir.path().display())).unwrap();
    let before = db.snapshot();
    assert_eq!(before.scan_prefix("suite/").unwrap().len(), 1);
    db.put(key("later"), "1").unwrap();
    assert_eq!(before.get(key("later")).unwrap(), None);
    let at_ts = before.at_ts().unwrap();
    assert_eq!(db.snapshot_at(at_ts).scan(span().0, span().1).unwrap().len(), 1);
    let visits = db.get(key("visits")).unwrap().unwrap().value.len();
    assert_eq!(visits, 4);
}

#[test]
fn database_on_cluster_passes_common_suite() {
    run(async {
        let mut cluster = Cluster::start(options()).unwrap();
        drop(cluster.wait_until_serving().await.unwrap());
        let nodes: Vec<_> = cluster.addresses().iter().map(ToString::to_string).collect();
        let db = palisade::open(&format!("palisade://{}", nodes.join(","))).await.unwrap();
        suite(&db).await;
    });
}

#[test]
fn database_invalid_address_is_refused() {
    run(async {
        for address in ["", "mem", "file:", "palisade://", "postgres://x"] {
            let error = palisade::open(address).await.unwrap_err();
            assert!(matches!(error, OpenError::Address { .. }), "{address}: {error}");
            assert!(error.to_string().contains("palisade://HOST"));
        }
    });
}
