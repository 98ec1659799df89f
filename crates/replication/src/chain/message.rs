//! Messages between the members of a chain.

use bytes::{BufMut, BytesMut};
use palisade_wire::{Decode, Encode, Reader, WireError};

use crate::{
    Entry,
    codec::{decode_entries, encode_entries},
};

/// A message between members of a chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// The sender's epoch. A receiver in another epoch ignores the message.
    pub epoch: u64,
    /// The content.
    pub body: Body,
}

/// The content of a message. A predecessor is one step nearer to the head.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Body {
    /// To the predecessor: requests a probe.
    Hello,
    /// To the successor: asks where its log ends.
    Probe {
        /// The sender's session.
        session: u64,
    },
    /// To the predecessor: reports where the sender's log ends, and requests the entries after
    /// that.
    Attach {
        /// The session of the probe that this answers.
        session: u64,
        /// A random number that every `Forward` to the sender must carry.
        link: u64,
        /// Index of the sender's last entry.
        last_index: u64,
        /// Epoch of the sender's last entry.
        last_term: u64,
        /// The sender's commit index.
        commit_index: u64,
    },
    /// To the successor: requests entries that the sender lacks.
    Fetch {
        /// The sender's session.
        session: u64,
        /// Index of the first entry requested.
        from_index: u64,
    },
    /// To the predecessor: returns the entries that it requested.
    Fetched {
        /// The session of the request.
        session: u64,
        /// Entries, from the requested index on.
        entries: Vec<Entry>,
    },
    /// To the successor: sends entries, and the index that is durable upstream.
    Forward {
        /// The link of the latest `Attach`.
        link: u64,
        /// Index of the entry before those sent.
        previous_index: u64,
        /// Epoch of that entry.
        previous_term: u64,
        /// Index durable at the sender and at every member before it.
        stable_index: u64,
        /// The entries.
        entries: Vec<Entry>,
    },
    /// To the predecessor: reports the sender's commit index.
    Committed {
        /// Index of the last committed entry.
        index: u64,
    },
}

impl Body {
    /// Returns true if the message holds entries for the receiver's log.
    pub fn has_entries(&self) -> bool {
        !self.entries().is_empty()
    }

    /// Returns about how many bytes the entries take in the log of the receiver.
    pub fn log_bytes(&self) -> u64 {
        self.entries().iter().map(Entry::log_bytes).sum()
    }

    fn entries(&self) -> &[Entry] {
        match self {
            Self::Forward { entries, .. } | Self::Fetched { entries, .. } => entries,
            _ => &[],
        }
    }
}

impl Encode for Message {
    fn encode(&self, out: &mut BytesMut) {
        out.put_u64_le(self.epoch);
        match &self.body {
            Body::Hello => out.put_u8(1),
            Body::Probe { session } => {
                out.put_u8(2);
                out.put_u64_le(*session);
            }
            Body::Attach { session, link, last_index, last_term, commit_index } => {
                out.put_u8(3);
                out.put_u64_le(*session);
                out.put_u64_le(*link);
                out.put_u64_le(*last_index);
                out.put_u64_le(*last_term);
                out.put_u64_le(*commit_index);
            }
            Body::Fetch { session, from_index } => {
                out.put_u8(4);
                out.put_u64_le(*session);
                out.put_u64_le(*from_index);
            }
            Body::Fetched { session, entries } => {
                out.put_u8(5);
                out.put_u64_le(*session);
                encode_entries(entries, out);
            }
            Body::Forward { link, previous_index, previous_term, stable_index, entries } => {
                out.put_u8(6);
                out.put_u64_le(*link);
                out.put_u64_le(*previous_index);
                out.put_u64_le(*previous_term);
                out.put_u64_le(*stable_index);
                encode_entries(entries, out);
            }
            Body::Committed { index } => {
                out.put_u8(7);
                out.put_u64_le(*index);
            }
        }
    }
}

impl Decode for Message {
    fn decode(reader: &mut Reader) -> Result<Self, WireError> {
        let epoch = reader.count()?;
        let body = match reader.u8()? {
            1 => Body::Hello,
            2 => Body::Probe { session: reader.u64()? },
            3 => Body::Attach {
                session: reader.u64()?,
                link: reader.u64()?,
                last_index: reader.count()?,
                last_term: reader.count()?,
                commit_index: reader.count()?,
            },
            4 => Body::Fetch { session: reader.u64()?, from_index: reader.count()? },
            5 => Body::Fetched { session: reader.u64()?, entries: decode_entries(reader)? },
            6 => Body::Forward {
                link: reader.u64()?,
                previous_index: reader.count()?,
                previous_term: reader.count()?,
                stable_index: reader.count()?,
                entries: decode_entries(reader)?,
            },
            7 => Body::Committed { index: reader.count()? },
            tag => return Err(WireError::UnknownTag { what: "chain message", tag }),
        };
        Ok(Self { epoch, body })
    }
}
