//! What travels between processes: frames and messages, versioned, length-limited, checksummed.
//!
//! Invariants:
//! - Whatever bytes arrive, decoding ends in a message or a typed [`WireError`], never in a panic,
//!   and never reserves memory for a length that the frame limit does not allow.
//! - A frame is handed on only whole and with its checksum verified.
//!
//! Knows nothing of sockets, and nothing of what the messages mean. The messages between replicas
//! are defined by the protocols that exchange them; this crate gives them their frame.

mod codec;
mod commit;
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

pub use codec::{Decode, Encode, Reader, WireError, decode_exact};
pub use commit::{
    Commit, CommitRequest, Condition, Expected, MAX_COMMIT_BYTES, MAX_COMMIT_PARTS, Write,
};
pub use frame::{
    FRAME_HEADER_BYTES, Frame, FrameDecoder, FrameKind, PROTOCOL_VERSION, write_frame,
};
pub use handshake::{ClientHello, PeerHello, ServerHello};
pub use ids::{Mode, NodeId, PeerAddress, RangeId, SessionId, ShardId, TxnId};
pub use limits::{
    MAX_FRAME_BYTES, MAX_KEY_BYTES, MAX_LIFETIME_US, MAX_SNAPSHOT_AGE_US, MAX_VALUE_BYTES,
    check_key, check_value,
};
pub use outcome::{Outcome, Response};
pub use read::{Basis, LockClaim, LockGrant, LockToken, Locking, ReadKind};
pub use rejection::Rejection;
pub use request::{Operation, ReplicaChange, Request};
pub use scan::{MAX_PAGE_BYTES, MAX_PAGE_ROWS, Page, Row, ScanRequest};
pub use status::{Admission, NodeStatus, RangeStatus, Role, ShardStatus};
