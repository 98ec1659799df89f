//! Frames and messages that travel between processes: versioned, length-limited, checksummed.
//!
//! Invariants:
//! - Decoding any bytes returns a message or a typed [`WireError`]. It never panics, and it never
//!   reserves memory for a length above the frame limit.
//! - A frame is returned only whole, and with its checksum verified.
//!
//! Left out: sockets, and the meaning of the messages. The replication protocols define their own
//! messages; this crate only frames them.

mod checks;
mod codec;
mod commit;
mod durations;
mod frame;
mod handshake;
mod ids;
mod limits;
mod outcome;
mod read;
mod rejection;
mod request;
mod scan;
mod status;

pub use checks::{check_key, check_value};
pub use codec::{Decode, Encode, Reader, WireError, decode_cold, decode_exact};
pub use commit::{Commit, CommitRequest, Condition, Expected, Write};
pub use durations::{DURATION_BUCKETS, Durations};
pub use frame::{
    FRAME_HEADER_BYTES, Frame, FrameDecoder, FrameKind, PROTOCOL_VERSION, write_frame,
};
pub use handshake::{
    Accepted, Acceptor, AccessKey, AccessRole, ClientHello, ClusterSecret, Initiator, KeyError,
    KeyId, Keyring, NONCE_BYTES, Nonce, PROOF_BYTES, PeerHello, Proof, Refusal, Welcome,
};
pub use ids::{Mode, NodeId, PeerAddress, RangeId, SessionId, ShardId, TxnId};
pub use limits::{
    MAX_COMMIT_BYTES, MAX_COMMIT_PARTS, MAX_COUNT, MAX_ENTRY_BYTES, MAX_FRAME_BYTES, MAX_KEY_BYTES,
    MAX_LIFETIME_US, MAX_SNAPSHOT_AGE_US, MAX_VALUE_BYTES,
};
pub use outcome::{Outcome, Response};
pub use read::{Basis, LockClaim, LockGrant, LockToken, Locking, ReadKind};
pub use rejection::Rejection;
pub use request::{Operation, ReplicaChange, Request};
pub use scan::{MAX_PAGE_BYTES, MAX_PAGE_ROWS, Page, Row, ScanRequest};
pub use status::{Admission, NodeStatus, PeerStatus, RangeStatus, Role, ShardStatus, Stage};
