//! `palisade wal inspect` on the log of a node that was killed.
#![allow(clippy::disallowed_methods, reason = "tests run on the real machine")]

mod support;

use std::{
    fs,
    io::{BufRead, BufReader},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use palisade_client::Mode;
use palisade_cluster::{Cluster, ClusterOptions};
use support::{kill_all, options, run};

fn inspect(log: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_palisade"));
    command.args(["wal", "inspect"]).arg(log).stdin(Stdio::null());
    command
}

fn log_of_node_0(parent: &Path) -> PathBuf {
    let mut clusters = fs::read_dir(parent).unwrap();
    let cluster = clusters.next().expect("the cluster's directory").unwrap().path();
    cluster.join("node-0/shard-000/log")
}

#[test]
fn wal_inspect_prints_entries_and_reports_damage() {
    let parent = tempfile::tempdir().unwrap();
    let cluster_options =
        ClusterOptions { shards: 1, data_dir: Some(parent.path().to_owned()), ..options() };
    // Keeps the cluster's directory until the end of the test.
    let _cluster = run(async {
        let mut cluster = Cluster::start(cluster_options).unwrap();
        let client = cluster.wait_until_serving().await.unwrap();
        let keys = support::keys(&client, Mode::Raft).await;
        for at in 0..100 {
            client.put(keys.key(at), vec![at as u8; 1000]).await.unwrap();
        }
        kill_all(&mut cluster, 3);
        cluster
    });
    let log = log_of_node_0(parent.path());

    let output = inspect(&log).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let entries = text.lines().filter(|line| line.contains("entry")).count();
    assert!(entries >= 100, "{text}");
    assert!(text.contains("00000000.seg") && text.contains("group "), "{text}");

    // A reader that closes the pipe after one line causes no error.
    let mut child = inspect(&log).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut first = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut first).unwrap();
    let output = child.wait_with_output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && stderr.is_empty(), "{:?}: {stderr}", output.status);

    let segment = log.join("00000000.seg");
    let file = fs::OpenOptions::new().read(true).write(true).open(&segment).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, 5000).unwrap();
    file.write_all_at(&[byte[0] ^ 1], 5000).unwrap();
    let output = inspect(&log).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("00000000.seg is damaged at byte"), "{stderr}");
}
