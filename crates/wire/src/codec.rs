//! The fixed little-endian encoding of the frequent messages.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use thiserror::Error;

use crate::{MAX_COUNT, MAX_ENTRY_BYTES};

/// Why received bytes were rejected. No variant is retryable on the same connection: the rest of
/// the stream can't be trusted, so the connection is closed.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum WireError {
    /// The message ended before its last field.
    #[error("a message was cut short: it needs {needed} more bytes where {left} are left")]
    Truncated {
        /// Size of the next field, in bytes.
        needed: usize,
        /// Bytes left in the message.
        left: usize,
    },
    /// The message has this many bytes after its last field.
    #[error("a message has {0} bytes after its end")]
    TrailingBytes(usize),
    /// A field that must be zero is not.
    #[error("{0} must be zero: the peer may run another version, or is not Palisade")]
    NotZero(&'static str),
    /// A tag that this version does not define.
    #[error("unknown {what} {tag}: the peer may run another version, or is not Palisade")]
    UnknownTag {
        /// The field that the tag belongs to.
        what: &'static str,
        /// The value of the tag.
        tag: u8,
    },
    /// A frame of another protocol version.
    #[error("protocol version {theirs} is not spoken here (this is version {ours})")]
    Version {
        /// The version in the frame.
        theirs: u8,
        /// The version of this build.
        ours: u8,
    },
    /// The length field of a frame is over the limit.
    #[error("a frame of {bytes} bytes is over the limit of {limit}")]
    FrameTooLarge {
        /// The value of the length field, in bytes.
        bytes: usize,
        /// The limit, in bytes.
        limit: usize,
    },
    /// A value that no sender of this version writes.
    #[error("{0}: the peer may run another version, or is not Palisade")]
    Invalid(&'static str),
    /// The checksum does not match the frame.
    #[error("a frame's checksum does not match: the stream is damaged, or is not Palisade's")]
    Checksum,
    /// An infrequent message, encoded with postcard, could not be decoded.
    #[error("a control message could not be decoded: {0}")]
    Cold(#[from] postcard::Error),
}

/// A value with a fixed encoding.
pub trait Encode {
    /// Appends the encoding to `out`.
    fn encode(&self, out: &mut BytesMut);
}

/// A value that can be decoded from untrusted bytes.
pub trait Decode: Sized {
    /// Decodes one value from the front of `reader`.
    ///
    /// # Errors
    ///
    /// A [`WireError`] if the bytes are not a whole, valid value. The position of `reader` is then
    /// unspecified.
    fn decode(reader: &mut Reader) -> Result<Self, WireError>;
}

/// Decodes a message that occupies all of `bytes`.
///
/// # Errors
///
/// The error of the message's decoder, or [`WireError::TrailingBytes`].
pub fn decode_exact<T: Decode>(bytes: Bytes) -> Result<T, WireError> {
    let mut reader = Reader::new(bytes);
    let value = T::decode(&mut reader)?;
    reader.finish()?;
    Ok(value)
}

/// Reads fields from the front of a message. Each read checks the length first, and returns
/// [`WireError::Truncated`] if too few bytes are left.
#[derive(Debug)]
pub struct Reader {
    bytes: Bytes,
}

impl Reader {
    /// Creates a reader at the front of `bytes`.
    pub fn new(bytes: Bytes) -> Self {
        Self { bytes }
    }

    fn need(&self, needed: usize) -> Result<(), WireError> {
        let left = self.bytes.len();
        if left < needed { Err(WireError::Truncated { needed, left }) } else { Ok(()) }
    }

    /// Reads one byte.
    pub fn u8(&mut self) -> Result<u8, WireError> {
        self.need(1)?;
        Ok(self.bytes.get_u8())
    }

    /// Reads a little-endian `u16`.
    pub fn u16(&mut self) -> Result<u16, WireError> {
        self.need(2)?;
        Ok(self.bytes.get_u16_le())
    }

    /// Reads a little-endian `u32`.
    pub fn u32(&mut self) -> Result<u32, WireError> {
        self.need(4)?;
        Ok(self.bytes.get_u32_le())
    }

    /// Reads a little-endian `u64`.
    pub fn u64(&mut self) -> Result<u64, WireError> {
        self.need(8)?;
        Ok(self.bytes.get_u64_le())
    }

    /// Reads a term, an index or another count: a little-endian `u64` below [`MAX_COUNT`], so that
    /// its successors do not overflow.
    pub fn count(&mut self) -> Result<u64, WireError> {
        let count = self.u64()?;
        if count < MAX_COUNT { Ok(count) } else { Err(WireError::Invalid("a count is too large")) }
    }

    /// Reads one byte that must be 0 or 1; other values are [`WireError::UnknownTag`].
    pub fn bool(&mut self) -> Result<bool, WireError> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            tag => Err(WireError::UnknownTag { what: "truth value", tag }),
        }
    }

    /// Reads a fixed number of bytes.
    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], WireError> {
        self.need(N)?;
        let mut array = [0; N];
        self.bytes.copy_to_slice(&mut array);
        Ok(array)
    }

    /// Reads bytes preceded by a `u32` length. The result shares the message's buffer.
    pub fn bytes(&mut self) -> Result<Bytes, WireError> {
        let len = self.u32()? as usize;
        self.need(len)?;
        Ok(self.bytes.split_to(len))
    }

    /// Reads a copy of a payload for the log, preceded by a `u32` length. A copy, because payloads
    /// outlive the receive buffer.
    pub fn payload(&mut self) -> Result<Bytes, WireError> {
        let payload = self.bytes()?;
        if payload.len() > MAX_ENTRY_BYTES {
            return Err(WireError::Invalid("an entry is over the limit"));
        }
        Ok(Bytes::copy_from_slice(&payload))
    }

    /// Takes all remaining bytes, possibly none.
    pub fn rest(&mut self) -> Bytes {
        self.bytes.split_to(self.bytes.len())
    }

    /// Returns the number of bytes left.
    pub fn remaining(&self) -> usize {
        self.bytes.len()
    }

    /// Checks that all bytes were read.
    ///
    /// # Errors
    ///
    /// [`WireError::TrailingBytes`] with the number of bytes left.
    pub fn finish(&self) -> Result<(), WireError> {
        if self.bytes.is_empty() { Ok(()) } else { Err(WireError::TrailingBytes(self.bytes.len())) }
    }
}

/// Decodes an infrequent message that is encoded with postcard.
///
/// # Errors
///
/// [`WireError::Cold`], or [`WireError::TrailingBytes`]. Not retryable.
pub fn decode_cold<'a, T: serde::Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, WireError> {
    match postcard::take_from_bytes(bytes)? {
        (value, []) => Ok(value),
        (_, rest) => Err(WireError::TrailingBytes(rest.len())),
    }
}

/// Appends bytes preceded by a `u32` length, the encoding that [`Reader::bytes`] reads.
pub(crate) fn put_bytes(out: &mut BytesMut, bytes: &[u8]) {
    let len = u32::try_from(bytes.len()).expect("fields are far below 4 GiB");
    out.put_u32_le(len);
    out.put_slice(bytes);
}

impl Encode for Bytes {
    fn encode(&self, out: &mut BytesMut) {
        put_bytes(out, self);
    }
}

impl Decode for Bytes {
    fn decode(reader: &mut Reader) -> Result<Self, WireError> {
        reader.bytes()
    }
}
