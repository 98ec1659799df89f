//! Messages between Raft replicas.

use bytes::{BufMut, BytesMut};
use palisade_wire::{Decode, Encode, Reader, WireError};

use crate::{
    Entry,
    codec::{decode_entries, encode_entries},
};

/// A message between replicas of a Raft group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// The sender's term.
    pub term: u64,
    /// The content.
    pub body: Body,
}

/// The content of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Body {
    /// The sender asks whether it could win an election in the next term.
    RequestPreVote {
        /// Index of the sender's last entry.
        last_index: u64,
        /// Term of the sender's last entry.
        last_term: u64,
    },
    /// The sender would vote for the receiver.
    PreVote {
        /// Term of the request.
        asked_in: u64,
    },
    /// A candidate requests a vote.
    RequestVote {
        /// Index of the candidate's last entry.
        last_index: u64,
        /// Term of the candidate's last entry.
        last_term: u64,
        /// True if the leader asked the candidate to stand. That leader has given up its lease, so
        /// voters need not keep their promises to it.
        transfer: bool,
    },
    /// The sender votes for the receiver.
    Vote,
    /// The leader sends entries, or none as a heartbeat.
    Append {
        /// Index of the entry before them.
        previous_index: u64,
        /// Term of that entry.
        previous_term: u64,
        /// The leader's commit index.
        commit_index: u64,
        /// Number of the leader's latest round, in which it checks that it still leads.
        round: u64,
        /// The entries.
        entries: Vec<Entry>,
    },
    /// The follower's log matches the leader's up to an index, durably.
    Matched {
        /// That index.
        index: u64,
        /// The follower's commit index.
        commit_index: u64,
        /// The round of the message that this answers.
        round: u64,
    },
    /// The follower's log does not hold the entry before those sent.
    Mismatched {
        /// Index of that entry.
        previous_index: u64,
        /// The highest index at which the logs may agree.
        try_index: u64,
        /// The round of the message that this answers.
        round: u64,
    },
    /// The message that this answers had a term below the sender's.
    Outdated,
    /// The leader asks the receiver to stand for election now, and to take over.
    Transfer,
}

impl Body {
    /// Returns true if the message holds entries for the receiver's log.
    pub fn has_entries(&self) -> bool {
        matches!(self, Self::Append { entries, .. } if !entries.is_empty())
    }

    /// Returns about how many bytes the entries take in the log of the receiver.
    pub fn log_bytes(&self) -> u64 {
        let Self::Append { entries, .. } = self else { return 0 };
        entries.iter().map(Entry::log_bytes).sum()
    }

    /// Removes all entries, or those after the first one that take more than `max_bytes` with it.
    /// A leader could have sent what is left as well: without entries it is a heartbeat.
    pub fn keep_entries(&mut self, max_bytes: Option<usize>) {
        let Self::Append { entries, .. } = self else { return };
        let mut left_bytes = max_bytes.unwrap_or(0);
        let fits = |entry: &&Entry| {
            let fits = entry.payload.len() <= left_bytes;
            left_bytes = left_bytes.saturating_sub(entry.payload.len());
            fits
        };
        let fitting = entries.iter().take_while(fits).count();
        entries.truncate(max_bytes.map_or(0, |_| fitting.max(1)));
    }
}

impl Encode for Message {
    fn encode(&self, out: &mut BytesMut) {
        out.put_u64_le(self.term);
        match &self.body {
            Body::RequestVote { last_index, last_term, transfer } => {
                out.put_u8(1);
                out.put_u64_le(*last_index);
                out.put_u64_le(*last_term);
                out.put_u8(u8::from(*transfer));
            }
            Body::Vote => out.put_u8(2),
            Body::Append { previous_index, previous_term, commit_index, round, entries } => {
                out.put_u8(3);
                out.put_u64_le(*previous_index);
                out.put_u64_le(*previous_term);
                out.put_u64_le(*commit_index);
                out.put_u64_le(*round);
                encode_entries(entries, out);
            }
            Body::Matched { index, commit_index, round } => {
                out.put_u8(4);
                out.put_u64_le(*index);
                out.put_u64_le(*commit_index);
                out.put_u64_le(*round);
            }
            Body::Mismatched { previous_index, try_index, round } => {
                out.put_u8(5);
                out.put_u64_le(*previous_index);
                out.put_u64_le(*try_index);
                out.put_u64_le(*round);
            }
            Body::Outdated => out.put_u8(6),
            Body::RequestPreVote { last_index, last_term } => {
                out.put_u8(7);
                out.put_u64_le(*last_index);
                out.put_u64_le(*last_term);
            }
            Body::PreVote { asked_in } => {
                out.put_u8(8);
                out.put_u64_le(*asked_in);
            }
            Body::Transfer => out.put_u8(9),
        }
    }
}

impl Decode for Message {
    fn decode(reader: &mut Reader) -> Result<Self, WireError> {
        let term = reader.count()?;
        let body = match reader.u8()? {
            1 => Body::RequestVote {
                last_index: reader.count()?,
                last_term: reader.count()?,
                transfer: reader.bool()?,
            },
            2 => Body::Vote,
            3 => Body::Append {
                previous_index: reader.count()?,
                previous_term: reader.count()?,
                commit_index: reader.count()?,
                round: reader.count()?,
                entries: decode_entries(reader)?,
            },
            4 => Body::Matched {
                index: reader.count()?,
                commit_index: reader.count()?,
                round: reader.count()?,
            },
            5 => Body::Mismatched {
                previous_index: reader.count()?,
                try_index: reader.count()?,
                round: reader.count()?,
            },
            6 => Body::Outdated,
            7 => Body::RequestPreVote { last_index: reader.count()?, last_term: reader.count()? },
            8 => Body::PreVote { asked_in: reader.count()? },
            9 => Body::Transfer,
            tag => return Err(WireError::UnknownTag { what: "raft message", tag }),
        };
        Ok(Self { term, body })
    }
}
