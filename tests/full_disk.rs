//! Fills up the disk of whole nodes: a small tmpfs, mounted in a mount namespace of the test.
#![allow(clippy::disallowed_methods, reason = "tests run on the real machine")]

mod support;

use std::{
    env, fs,
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use palisade_client::{Client, ClientError, Mode};
use palisade_cluster::{Cluster, ClusterOptions};
use support::{BOTH_MODES, kill_all, last_words, options, pause, run, start_all};

const INSIDE: &str = "PALISADE_TEST_INSIDE";
const TEST: &str = "full_disk_refuses_writes_serves_reads_and_recovers";

const VALUE_BYTES: usize = 256 * 1024;

/// Scenario 45: on a full disk, writes are refused with a retryable error, reads are answered, and
/// no process ends. Once there is room, writes succeed again.
#[test]
fn full_disk_refuses_writes_serves_reads_and_recovers() {
    let Some(dir) = env::var_os(INSIDE) else {
        let dir = tempfile::tempdir().unwrap();
        let status = Command::new("unshare")
            .args(["--map-root-user", "--mount"])
            .arg(env::current_exe().unwrap())
            .args(["--exact", TEST, "--nocapture"])
            .env(INSIDE, dir.path())
            .status()
            .unwrap();
        assert!(status.success(), "inside: {status} (is a user namespace allowed?)");
        return;
    };
    let dir = Path::new(&dir);
    let mount = ["-t", "tmpfs", "-o", "size=420m", "tmpfs"];
    assert!(Command::new("mount").args(mount).arg(dir).status().unwrap().success());
    let ballast = dir.join("ballast");
    fs::write(&ballast, vec![1; 270 << 20]).unwrap();
    run(async {
        let mut cluster = Cluster::start(ClusterOptions {
            shards: 1,
            data_dir: Some(dir.to_owned()),
            ..options()
        })
        .unwrap();
        let client = cluster.wait_until_serving().await.unwrap();
        let keys = support::keys(&client, Mode::Raft).await;
        let chain_keys = support::keys(&client, Mode::Chain).await;
        let key = |mode, at| match mode {
            Mode::Raft => keys.key(at),
            Mode::Chain => chain_keys.key(at),
        };
        // Every write has a key of its own, so that no versions can be collected to make room.
        let mut written = Vec::new();
        let patient = client.with_timeout(Duration::from_secs(3));
        for mode in BOTH_MODES {
            let refused = loop {
                assert!(written.len() < 400, "{mode}: the disk did not fill up");
                let key = key(mode, written.len() as u32);
                match patient.put(key.clone(), vec![1; VALUE_BYTES]).await {
                    Ok(_) => written.push(key),
                    Err(error) => break error,
                }
            };
            assert!(refused.is_retryable(), "{mode}: {refused}");
            assert!(matches!(refused, ClientError::Deadline { .. }), "{mode}: {refused}");
        }
        assert!(written.len() > 8, "only {} writes came before the end", written.len());
        let words = last_words(&cluster);
        assert!(words.contains("No space left"), "{words}");
        let read_all = async |client: &Client| {
            for key in &written {
                let found = client.get(key.clone()).await?;
                assert!(found.is_some_and(|found| found.value.len() == VALUE_BYTES), "{key:?}");
            }
            Ok::<_, ClientError>(())
        };
        let read = read_all(&client).await;
        assert!(read.is_ok(), "{read:?}\n{}", last_words(&cluster));

        fs::remove_file(&ballast).unwrap();
        let deadline = Instant::now() + Duration::from_secs(60);
        for mode in BOTH_MODES {
            while let Err(error) = patient.put(key(mode, 199), vec![2; 100]).await {
                assert!(Instant::now() < deadline, "{mode}: {error}\n{}", last_words(&cluster));
                pause(Duration::from_millis(100)).await;
            }
        }
        // All nodes still run: a chain with a dead member would not have committed.
        kill_all(&mut cluster, 3);
        start_all(&mut cluster, 3);
        let client = cluster.wait_until_serving().await.unwrap();
        read_all(&client).await.unwrap();
    });
    let unmounted = Command::new("umount").arg(dir).stderr(Stdio::null()).status().unwrap();
    assert!(unmounted.success(), "something is left running on the full disk");
}
