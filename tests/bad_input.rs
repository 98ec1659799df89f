//! Wrong usage of the program ends with a clear error and exit status 2. Garbage on a port closes
//! the connection. Neither loses data.
#![allow(clippy::disallowed_methods, reason = "tests run on the real machine")]

mod support;

use std::{
    fs,
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    path::Path,
    process::{Command, Output, Stdio},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use palisade_client::{Mode, NodeId, PeerAddress, Timestamp, Topology};
use palisade_cluster::{Cluster, ClusterOptions};
use palisade_control::RangeDescriptor;
use palisade_replication::{Entry, EntryKind, Heartbeat, Revocation, Revoked, SnapshotPart, raft};
use palisade_shard::{Hello, PeerBody, PeerMessage, SnapshotMessage};
use palisade_wire::{Encode, FrameKind, PeerHello, ShardId, write_frame};
use support::{BOTH_MODES, keys, options, pause, run};

fn palisade(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_palisade"))
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

fn refused(arguments: &[&str], expected: &str) {
    let output = palisade(arguments);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{arguments:?}: {stderr}");
    assert!(stderr.contains(expected), "{arguments:?} should name {expected:?}: {stderr}");
}

fn start(config: &Path, expected: &str) {
    refused(&["start", "--config", config.to_str().unwrap()], expected);
}

fn config(dir: &Path, port: u16) -> String {
    let data_dir = dir.join("data");
    format!(
        "cluster_id = 5\nnode = 0\ndata_dir = {data_dir:?}\nshards = 1\n\
         [log]\nsegment_bytes = 8388608\nlimit_bytes = 67108864\n\
         [[nodes]]\nnode = 0\nhost = \"127.0.0.1\"\nclient_port = {port}\npeer_port = {}\n",
        port + 1
    )
}

#[test]
fn cli_error_names_invalid_argument() {
    refused(&["compare", "--no-such-flag"], "--no-such-flag");
    refused(&["compare", "--kill", "7"], "node 7");
    refused(&["bench", "--mode", "paxos"], "paxos");
    refused(&["bench", "--value-bytes", "9000000"], "1048576");
    refused(&["bench", "--clients", "0"], "0");
    refused(&["nonsense"], "nonsense");
    refused(&[], "Usage");
}

#[test]
fn config_error_names_unreadable_file_or_invalid_field() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("node.toml");
    start(&path, "cannot read the config file");
    fs::write(&path, "cluster_id = \"x\"").unwrap();
    start(&path, "is not valid");
    let good = config(dir.path(), 9);
    fs::write(&path, good.replace("shards = 1", "shards = 1\nshard = 2")).unwrap();
    start(&path, "shard");
    fs::write(&path, good.replace("node = 0\ndata", "node = 3\ndata")).unwrap();
    start(&path, "node 3");
    fs::write(&path, good.replace("[[nodes]]\nnode = 0", "[[nodes]]\nnode = 0\nhots = 1")).unwrap();
    start(&path, "hots");
}

#[test]
fn startup_error_names_port_in_use() {
    let dir = tempfile::tempdir().unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let path = dir.path().join("node.toml");
    fs::write(&path, config(dir.path(), port)).unwrap();
    start(&path, &port.to_string());
}

#[test]
fn startup_refuses_locked_or_foreign_data_directory() {
    run(async {
        let mut cluster = Cluster::start(options()).unwrap();
        let client = cluster.wait_until_serving().await.unwrap();
        client.put("key", "value").await.unwrap();
        // A second process for the same node.
        start(&cluster.config_path(1), "in use by another process");
        cluster.stop(1).unwrap();
        let text = fs::read_to_string(cluster.config_path(1)).unwrap();
        let foreign = cluster.dir().join("foreign.toml");
        let line = text.lines().find(|line| line.starts_with("cluster_id")).unwrap();
        fs::write(&foreign, text.replace(line, "cluster_id = 99")).unwrap();
        start(&foreign, "but is opened for node 1 of cluster 99");
        cluster.start_node(1).unwrap();
        let client = cluster.wait_until_serving().await.unwrap();
        assert_eq!(client.get("key").await.unwrap().unwrap().value, "value");
    });
}

fn is_closed_after(address: SocketAddr, bytes: &[u8]) -> bool {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    // The node may close the connection before everything is written.
    let _ = stream.write_all(bytes);
    let mut answer = [0; 4096];
    loop {
        match stream.read(&mut answer) {
            Ok(0) => return true,
            Ok(_) => {}
            Err(error) => return error.kind() == std::io::ErrorKind::ConnectionReset,
        }
    }
}

#[test]
fn connection_with_invalid_bytes_is_closed_without_data_loss() {
    run(async {
        let mut cluster = Cluster::start(options()).unwrap();
        let client = cluster.wait_until_serving().await.unwrap();
        client.put("key", "value").await.unwrap();
        let mut hello = BytesMut::new();
        write_frame(&mut hello, FrameKind::ClientHello, |out| {
            Encode::encode(
                &palisade_wire::ClientHello { cluster_id: None, key: None, nonce: [0; 32] },
                out,
            );
        });
        let mut garbage: Vec<Vec<u8>> = vec![
            b"GET / HTTP/1.1\r\nHost: palisade\r\n\r\n".to_vec(),
            vec![0xFF; 100_000],
            vec![0; 64],
            // A frame with a length over the limit.
            [vec![0; 4], vec![0xFF; 4], vec![1, 1, 0, 0]].concat(),
            // A valid hello, then garbage. A hello for another cluster is added below.
            [hello.to_vec(), vec![7; 5_000]].concat(),
        ];
        let mut foreign = BytesMut::new();
        write_frame(&mut foreign, FrameKind::ClientHello, |out| {
            Encode::encode(
                &palisade_wire::ClientHello { cluster_id: Some(1), key: None, nonce: [0; 32] },
                out,
            );
        });
        garbage.push(foreign.to_vec());
        for bytes in &garbage {
            let ports = [cluster.addresses()[0], cluster.peer_address(0)];
            for address in ports {
                assert!(is_closed_after(address, bytes), "{address} keeps {} bytes", bytes.len());
            }
        }
        assert_eq!(client.get("key").await.unwrap().unwrap().value, "value");
        client.put("key", "other").await.unwrap();
        assert_eq!(client.get("key").await.unwrap().unwrap().value, "other");
    });
}

/// Writes a frame with a message as its payload.
fn frame(out: &mut BytesMut, kind: FrameKind, message: &impl Encode) {
    write_frame(out, kind, |out| message.encode(out));
}

/// Returns messages that no correct peer sends, about the ranges that a shard replicates.
fn hostile_bodies(topology: &Topology, at: PeerAddress) -> Vec<PeerBody> {
    let of_mode = |mode| {
        let mut ranges = topology.ranges.ranges()[1..].iter();
        let found = ranges.find(|range| range.mode == mode && range.members.contains(&at));
        found.expect("a shard has ranges of both modes").clone()
    };
    let (raft, chain) = (of_mode(Mode::Raft), of_mode(Mode::Chain));
    let part = |index, part, payload: &[u8]| SnapshotPart {
        index,
        term: 1 << 40,
        part,
        last: true,
        payload: Bytes::copy_from_slice(payload),
    };
    let snapshot = |range: &RangeDescriptor, part| PeerBody::Snapshot {
        range: range.range,
        message: SnapshotMessage::Part { stream: 1, part },
    };
    let append = |entries| PeerBody::Raft {
        range: raft.range,
        message: raft::Message {
            term: 1 << 40,
            body: raft::Body::Append {
                previous_index: 0,
                previous_term: 0,
                commit_index: u64::MAX,
                round: 0,
                entries,
            },
        },
    };
    let entry = |index, bytes| Entry {
        index,
        term: 1,
        kind: EntryKind::Command,
        payload: vec![0; bytes].into(),
    };
    let heartbeat = |echo_us, revocations| {
        let revocation = Revocation { range: raft.range, term: 1, what: Revoked::Leadership };
        PeerBody::Hello(Hello {
            shape_checksum: 0,
            incarnation: 1,
            registered: 0,
            ranges_version: u64::MAX,
            heartbeat: Heartbeat {
                draining: false,
                sent_us: u64::MAX,
                to_session: 1,
                echo_us,
                taken_in: u64::MAX,
                confirmed: u64::MAX,
                revocations: vec![revocation; revocations],
            },
        })
    };
    let ranges = |change: fn(&mut RangeDescriptor)| {
        let mut range = chain.clone();
        change(&mut range);
        PeerBody::Ranges(RangeDescriptor::to_bytes([&range].into_iter()))
    };
    vec![
        snapshot(&chain, part(1 << 40, 0, b"")),
        snapshot(&raft, part(1 << 40, 0, b"no members")),
        snapshot(&raft, part(u64::MAX, 0, b"")),
        append(vec![entry(u64::MAX, 1)]),
        append(vec![entry(1, 3 << 20)]),
        heartbeat(u64::MAX, 0),
        heartbeat(0, 5_000),
        ranges(|range| range.members.clear()),
        ranges(|range| range.epoch = u64::MAX),
        ranges(|range| (range.start, range.epoch) = (vec![0xFF; 9], 7)),
        PeerBody::Ranges(Bytes::from_static(b"\xFF\xFF\xFF")),
    ]
}

#[test]
fn hostile_peer_messages_do_not_stop_a_node() {
    run(async {
        let options = ClusterOptions { shards: 1, ..options() };
        let mut cluster = Cluster::start(options).unwrap();
        let client = cluster.wait_until_serving().await.unwrap();
        let topology = client.topology().await.unwrap();
        let at = |node| PeerAddress { node: NodeId(node), shard: ShardId(0) };
        for (number, body) in hostile_bodies(&topology, at(0)).into_iter().enumerate() {
            let mut bytes = BytesMut::new();
            let hello = PeerHello {
                cluster_id: topology.cluster_id,
                from: at(1),
                to: at(0),
                key: None,
                nonce: [0; 32],
            };
            frame(&mut bytes, FrameKind::PeerHello, &hello);
            frame(
                &mut bytes,
                FrameKind::Peer,
                &PeerMessage { session: 1, sent_ts: Timestamp::ZERO, body },
            );
            let mut stream = TcpStream::connect(cluster.peer_address(0)).unwrap();
            // The node may close the connection before everything is written.
            let _ = stream.write_all(&bytes);
            pause(Duration::from_millis(200)).await;
            for mode in BOTH_MODES {
                let keys = keys(&client, mode).await;
                for key in 0..u32::try_from(keys.ranges()).unwrap() {
                    let written = client.put(keys.key(key), "value").await;
                    let words = cluster.last_words(0);
                    assert!(written.is_ok(), "message {number}, {mode}: {written:?}, {words}");
                }
            }
            let status = client.status().await.unwrap();
            let runs = status.iter().filter(|node| !node.shards.is_empty()).count();
            assert_eq!(runs, 3, "message {number}: {}", cluster.last_words(0));
        }
    });
}
