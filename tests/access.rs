//! Who may connect to a cluster with a secret, and what a connection may take.
#![allow(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "tests run on the real machine"
)]

mod support;

use std::{
    fs,
    io::{ErrorKind, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    os::unix::fs::PermissionsExt,
    process::Command,
    time::Duration,
};

use bytes::BytesMut;
use palisade_client::{
    Change, Client, ClientError, ClientOptions, Mode, Refusal, Rejection, ShardId,
};
use palisade_cluster::{Cluster, ClusterOptions};
use palisade_wire::{
    AccessRole, ClientHello, ClusterSecret, Decode, Encode, Frame, FrameDecoder, FrameKind,
    Initiator, NodeId, Operation, PROOF_BYTES, PROTOCOL_VERSION, PeerAddress, PeerHello, Request,
    Welcome, decode_exact, write_frame,
};
use support::{options, run, wait_until_all_serve};

fn secret(byte: u8) -> ClusterSecret {
    ClusterSecret::from_bytes([byte; ClusterSecret::BYTES])
}

fn with_secret() -> ClusterOptions {
    ClusterOptions { secret: Some(secret(1)), shards: 1, ..options() }
}

async fn connect(
    cluster: &Cluster,
    key: Option<(&ClusterSecret, AccessRole)>,
) -> Result<Client, ClientError> {
    let key = key.map(|(secret, role)| secret.key(role));
    let timeout = Duration::from_secs(10);
    let options = ClientOptions { key, timeout, ..ClientOptions::default() };
    Client::connect(&cluster.addresses(), options).await
}

#[test]
fn only_holders_of_a_key_are_served() {
    run(async {
        let mut cluster = Cluster::start(with_secret()).unwrap();
        cluster.wait_until_serving().await.unwrap();
        let (own, other) = (secret(1), secret(2));
        let refused = async |key| connect(&cluster, key).await.unwrap_err();
        assert_eq!(refused(None).await, ClientError::Refused(Refusal::KeyNeeded));
        let wrong = [(&other, AccessRole::Client), (&own, AccessRole::Peer)];
        for key in wrong {
            assert_eq!(refused(Some(key)).await, ClientError::Refused(Refusal::UnknownKey));
        }

        let client = connect(&cluster, Some((&own, AccessRole::Client))).await.unwrap();
        client.put("key", "value").await.unwrap();
        assert_eq!(client.get("key").await.unwrap().unwrap().value, "value");
        let ranges = client.topology().await.unwrap().ranges;
        let chain = ranges.ranges().iter().find(|range| range.mode == Mode::Chain).unwrap();
        let node = chain.members.last().unwrap().node;
        let change = Change::RemoveFromChain { range: chain.range, epoch: chain.epoch, node };
        let refused = client.change_ranges(&change).await.unwrap_err();
        assert_eq!(refused, ClientError::Rejected(Rejection::NotPermitted));
        // A removed member must be stopped.
        cluster.kill(node.0).unwrap();
        let admin = connect(&cluster, Some((&own, AccessRole::Admin))).await.unwrap();
        admin.change_ranges(&change).await.unwrap();
    });
}

#[test]
fn client_with_a_key_refuses_a_cluster_without_a_secret() {
    run(async {
        let mut cluster = Cluster::start(ClusterOptions { nodes: 1, ..options() }).unwrap();
        cluster.wait_until_serving().await.unwrap();
        let refused = connect(&cluster, Some((&secret(1), AccessRole::Client))).await.unwrap_err();
        assert_eq!(refused, ClientError::Refused(Refusal::NoProof));
    });
}

/// Replaces the secret of a cluster node by node: first both are accepted, then the new one alone.
#[test]
fn secret_is_replaced_node_by_node() {
    run(async {
        let mut cluster = Cluster::start(with_secret()).unwrap();
        cluster.wait_until_serving().await.unwrap();
        let (old, new) = (secret(1), secret(2));
        let client = connect(&cluster, Some((&old, AccessRole::Client))).await.unwrap();
        let files = [
            format!("{}\n{}\n", old.expose(), new.expose()),
            format!("# the next one\n{}\n{}\n", new.expose(), old.expose()),
            format!("{}\n", new.expose()),
        ];
        for (step, text) in files.into_iter().enumerate() {
            let path = cluster.dir().join(format!("secret-{step}"));
            fs::write(&path, text).unwrap();
            for node in 0..3 {
                cluster.stop(node).unwrap();
                cluster.change_config(node, |config| config.secret_file = Some(path.clone()));
                cluster.start_node(node).unwrap();
                // The nodes are of two minds about the secret, and serve.
                let reader = if step < 2 { &old } else { &new };
                let reader = connect(&cluster, Some((reader, AccessRole::Client))).await.unwrap();
                wait_until_all_serve(&reader).await;
                let writer = if step < 2 { &client } else { &reader };
                writer.put("key", format!("{step} {node}")).await.unwrap();
                let read = reader.get("key").await.unwrap().unwrap();
                assert_eq!(read.value, format!("{step} {node}"));
            }
        }
        let refused = connect(&cluster, Some((&old, AccessRole::Client))).await.unwrap_err();
        assert_eq!(refused, ClientError::Refused(Refusal::UnknownKey));
    });
}

/// Sends bytes, and returns the message of a kind that comes back.
fn answer<T: Decode>(address: SocketAddr, bytes: &[u8], kind: FrameKind) -> T {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.write_all(bytes).unwrap();
    let frame = next_frame(&mut stream, &mut FrameDecoder::default()).expect("an answer comes");
    assert_eq!(frame.kind, kind);
    decode_exact(frame.payload).unwrap()
}

/// Sends bytes, and more after the first frame that comes back. Returns the message of a kind that
/// comes back then, or `None` if the connection ends.
fn second_answer<T: Decode>(
    address: SocketAddr,
    first: &[u8],
    second: &[u8],
    kind: FrameKind,
) -> Option<T> {
    let mut stream = TcpStream::connect(address).unwrap();
    let mut decoder = FrameDecoder::default();
    stream.write_all(first).unwrap();
    next_frame(&mut stream, &mut decoder).expect("an answer comes");
    stream.write_all(second).unwrap();
    let frame = next_frame(&mut stream, &mut decoder)?;
    assert_eq!(frame.kind, kind);
    Some(decode_exact(frame.payload).unwrap())
}

fn next_frame(stream: &mut TcpStream, decoder: &mut FrameDecoder) -> Option<Frame> {
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let mut piece = [0; 4096];
    loop {
        if let Some(frame) = decoder.next_frame().unwrap() {
            return Some(frame);
        }
        match stream.read(&mut piece) {
            Ok(0) => return None,
            Ok(read) => decoder.buffer().extend_from_slice(&piece[..read]),
            Err(error) if error.kind() == ErrorKind::ConnectionReset => return None,
            Err(error) => panic!("{error}"),
        }
    }
}

fn frame(kind: FrameKind, message: &impl Encode) -> BytesMut {
    let mut out = BytesMut::new();
    write_frame(&mut out, kind, |out| message.encode(out));
    out
}

#[test]
fn refusals_name_their_reason() {
    run(async {
        let mut cluster = Cluster::start(with_secret()).unwrap();
        let client = cluster.wait_until_serving().await.unwrap();
        let cluster_id = client.topology().await.unwrap().cluster_id;
        let at = |node| PeerAddress { node: NodeId(node), shard: ShardId(0) };
        let hello = PeerHello { cluster_id, from: at(1), to: at(0), key: None, nonce: [0; 32] };
        let client_key = Some(secret(1).key(AccessRole::Admin).id());
        let other_cluster = Refusal::OtherCluster { cluster_id };
        let peers = [
            (hello, Refusal::KeyNeeded),
            (PeerHello { key: client_key, ..hello }, Refusal::UnknownKey),
            (PeerHello { cluster_id: 7, ..hello }, other_cluster),
            (PeerHello { to: at(1), ..hello }, Refusal::OtherAddress),
            (PeerHello { from: at(9), ..hello }, Refusal::OtherAddress),
        ];
        for (hello, expected) in peers {
            let bytes = frame(FrameKind::PeerHello, &hello);
            let refusal: Refusal = answer(cluster.peer_address(0), &bytes, FrameKind::Refusal);
            assert_eq!(refusal, expected);
        }
        let client_address = cluster.addresses()[0];
        let hello = ClientHello { cluster_id: Some(7), key: None, nonce: [0; 32] };
        let mut bytes = frame(FrameKind::ClientHello, &hello);
        let refusal: Refusal = answer(client_address, &bytes, FrameKind::Refusal);
        assert_eq!(refusal, other_cluster);
        // The version is the byte after the checksum and the length.
        bytes[8] = PROTOCOL_VERSION - 1;
        let refusal: Refusal = answer(client_address, &bytes, FrameKind::Refusal);
        let versions =
            Refusal::OtherVersion { theirs: PROTOCOL_VERSION, ours: PROTOCOL_VERSION - 1 };
        assert_eq!(refusal, versions);
    });
}

/// A side that names a key must show that it holds it: nothing else does instead.
#[test]
fn connection_without_the_right_proof_is_refused() {
    run(async {
        let mut cluster = Cluster::start(with_secret()).unwrap();
        let client = cluster.wait_until_serving().await.unwrap();
        let cluster_id = client.topology().await.unwrap().cluster_id;
        let address = cluster.addresses()[0];
        let key = secret(1).key(AccessRole::Client);
        let hello = ClientHello { cluster_id: None, key: Some(key.id()), nonce: [3; 32] };
        let initiator = Initiator::new(Some(key), &hello);
        let hello = frame(FrameKind::ClientHello, &hello);
        // A proof that was made for another connection.
        let welcome: Welcome = answer(address, &hello, FrameKind::Welcome);
        let recorded = frame(FrameKind::Proof, &initiator.check(&welcome).unwrap().unwrap());
        let zero = frame(FrameKind::Proof, &Zeros);
        let own = frame(FrameKind::Proof, &welcome.proof.unwrap());
        for proof in [recorded, zero, own] {
            let refusal: Refusal =
                second_answer(address, &hello, &proof, FrameKind::Refusal).unwrap();
            assert_eq!(refusal, Refusal::WrongProof);
        }
        // A request in place of the proof gets no answer.
        let request = frame(FrameKind::Request, &Request::new(1, Operation::RangeMap));
        assert!(second_answer::<Refusal>(address, &hello, &request, FrameKind::Refusal).is_none());
        let at = |node| PeerAddress { node: NodeId(node), shard: ShardId(0) };
        let key = Some(secret(1).key(AccessRole::Peer).id());
        let hello = PeerHello { cluster_id, from: at(1), to: at(0), key, nonce: [0; 32] };
        let hello = frame(FrameKind::PeerHello, &hello);
        let proof = frame(FrameKind::Proof, &Zeros);
        let refusal: Option<Refusal> =
            second_answer(cluster.peer_address(0), &hello, &proof, FrameKind::Refusal);
        assert_eq!(refusal, Some(Refusal::WrongProof));
    });
}

/// As many zeros as a proof has bytes.
struct Zeros;

impl Encode for Zeros {
    fn encode(&self, out: &mut BytesMut) {
        out.extend_from_slice(&[0; PROOF_BYTES]);
    }
}

/// Connections that send nothing do not keep others out: the oldest is ended before its time.
#[test]
fn silent_connections_keep_no_client_out() {
    run(async {
        let mut cluster = Cluster::start(ClusterOptions { shards: 1, ..options() }).unwrap();
        cluster.wait_until_serving().await.unwrap();
        let address = cluster.addresses()[0];
        let silent: Vec<_> = (0..400).map(|_| TcpStream::connect(address).unwrap()).collect();
        // A handshake may take five seconds.
        silent[0].set_read_timeout(Some(Duration::from_secs(4))).unwrap();
        assert_eq!((&silent[0]).read(&mut [0; 1]).unwrap(), 0);
        let options = ClientOptions { timeout: Duration::from_secs(3), ..cluster.client_options() };
        let client = Client::connect(&cluster.addresses()[..1], options).await.unwrap();
        client.put("key", "value").await.unwrap();
    });
}

/// Clients send most of a long frame each, and stop. The node must not keep it all.
#[test]
fn frames_that_never_end_take_bounded_memory() {
    const CONNECTIONS: usize = 150;
    const FRAME_BYTES: u32 = 4 << 20;
    run(async {
        let mut cluster = Cluster::start(ClusterOptions { shards: 1, ..options() }).unwrap();
        cluster.wait_until_serving().await.unwrap();
        let metrics = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        cluster.stop(0).unwrap();
        cluster.change_config(0, |config| config.metrics_address = Some(metrics));
        cluster.start_node(0).unwrap();
        let client = cluster.wait_until_serving().await.unwrap();
        let before = resident_bytes(metrics);
        let address = cluster.addresses()[0];
        let hello = ClientHello { cluster_id: None, key: None, nonce: [0; 32] };
        let hello = frame(FrameKind::ClientHello, &hello);
        let header = [0_u32.to_le_bytes(), FRAME_BYTES.to_le_bytes()].concat();
        let header = [&header[..], &[PROTOCOL_VERSION, FrameKind::Request as u8, 0, 0]].concat();
        let payload = vec![1; FRAME_BYTES as usize - 1];
        let streams: Vec<TcpStream> = (0..CONNECTIONS)
            .map(|_| {
                let mut stream = TcpStream::connect(address).unwrap();
                stream.set_write_timeout(Some(Duration::from_millis(50))).unwrap();
                stream.write_all(&hello).unwrap();
                // Without the answer, the frame would arrive during the handshake.
                stream.read_exact(&mut [0; 12]).unwrap();
                stream.write_all(&header).unwrap();
                // The node stops reading once there is no room.
                let _ = stream.write_all(&payload);
                stream
            })
            .collect();
        client.put("key", "value").await.unwrap();
        let taken = resident_bytes(metrics).saturating_sub(before);
        assert!(taken < 300 << 20, "{} MiB", taken >> 20);
        drop(streams);
    });
}

fn resident_bytes(metrics: SocketAddr) -> u64 {
    let mut stream = TcpStream::connect(metrics).unwrap();
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let line = text.lines().find(|line| line.starts_with("palisade_resident_memory_bytes "));
    line.and_then(|line| line.split(' ').nth(1)).unwrap().parse().unwrap()
}

#[test]
fn commands_create_and_use_keys() {
    run(async {
        let dir = tempfile::tempdir().unwrap();
        let palisade = |arguments: &[&str]| {
            let mut command = Command::new(env!("CARGO_BIN_EXE_palisade"));
            command.args(arguments).current_dir(dir.path()).output().unwrap()
        };
        assert!(palisade(&["key", "create", "secret"]).status.success());
        assert!(!palisade(&["key", "create", "secret"]).status.success(), "it is overwritten");
        let derive = |options: &[&str], files: [&str; 2]| {
            let arguments = [&["key", "derive", "--role", "client"], options, &files].concat();
            palisade(&arguments).status.success()
        };
        assert!(derive(&[], ["secret", "key"]));
        let mode = fs::metadata(dir.path().join("key")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let text = fs::read_to_string(dir.path().join("secret")).unwrap();
        let secret: ClusterSecret = text.parse().unwrap();
        // While a secret is replaced, the operator must choose.
        let next = ClusterSecret::from_bytes([9; ClusterSecret::BYTES]);
        fs::write(dir.path().join("both"), format!("{}\n{text}", next.expose())).unwrap();
        assert!(!derive(&[], ["both", "other"]) && !derive(&["--secret", "3"], ["both", "other"]));
        assert!(derive(&["--secret", "1"], ["both", "other"]));
        let key = fs::read_to_string(dir.path().join("other")).unwrap();
        assert_eq!(key.trim(), next.key(AccessRole::Client).expose());
        let options = ClusterOptions { secret: Some(secret), ..with_secret() };
        let mut cluster = Cluster::start(options).unwrap();
        cluster.wait_until_serving().await.unwrap();
        let address = cluster.addresses()[0].to_string();
        let status = palisade(&["status", "--connect", &address, "--key-file", "key"]);
        assert!(status.status.success(), "{}", String::from_utf8_lossy(&status.stderr));
        assert!(String::from_utf8_lossy(&status.stdout).contains("log sync"));
        let status = palisade(&["status", "--connect", &address]);
        let error = String::from_utf8_lossy(&status.stderr).into_owned();
        assert!(!status.status.success() && error.contains("palisade key derive"), "{error}");
        let status = palisade(&["status", "--connect", &address, "--key-file", "secret"]);
        let error = String::from_utf8_lossy(&status.stderr).into_owned();
        assert!(!status.status.success() && error.contains("derive a key"), "{error}");
    });
}
