//! Fixed little-endian encoding of the hot messages.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use thiserror::Error;

/// Why bytes from outside were refused. None is retryable on the same connection: what follows in
/// the stream can't be trusted, so the connection is closed.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum WireError {
    /// The message ended before its last field.
    #[error("a message was cut short: it needs {needed} more bytes where {left} are left")]
    Truncated {
        /// Bytes that the next field takes.
        needed: usize,
        /// Bytes that were left.
        left: usize,
    },
    /// The message went on after its last field.
    #[error("a message has {0} bytes after its end")]
    TrailingBytes(usize),
    /// A tag that this version does not know.
    #[error("unknown {what} {tag}: the peer may run another version, or is not Palisade")]
    UnknownTag {
        /// Which tag.
        what: &'static str,
        /// Its value.
        tag: u8,
    },
    /// A frame of another protocol version.
    #[error("protocol version {theirs} is not spoken here (this is version {ours})")]
    Version {
        /// The version in the frame.
        theirs: u8,
        /// The version spoken here.
        ours: u8,
    },
    /// A length field over the limit.
    #[error("a frame of {bytes} bytes is over the limit of {limit}")]
    FrameTooLarge {
        /// What the length field says.
        bytes: usize,
        /// The limit.
        limit: usize,
    },
    /// The checksum does not match the bytes.
    #[error("a frame's checksum does not match: the stream is damaged, or is not Palisade's")]
    Checksum,
    /// A cold message that did not parse.
    #[error("a control message could not be decoded: {0}")]
    Cold(#[from] postcard::Error),
}

/// A value with a fixed encoding.
pub trait Encode {
    /// Appends the encoding to `out`.
    fn encode(&self, out: &mut BytesMut);
}

/// A value that can be read back from bytes that nobody vouches for.
pub trait Decode: Sized {
    /// Reads one value from the front.
    fn decode(reader: &mut Reader) -> Result<Self, WireError>;
}

/// Decodes a message that fills its bytes to the end.
pub fn decode_exact<T: Decode>(bytes: Bytes) -> Result<T, WireError> {
    let mut reader = Reader::new(bytes);
    let value = T::decode(&mut reader)?;
    reader.finish()?;
    Ok(value)
}

/// Reads fields from the front of a message; every read is checked.
#[derive(Debug)]
pub struct Reader {
    bytes: Bytes,
}

impl Reader {
    /// Reads from the front of `bytes`.
    pub fn new(bytes: Bytes) -> Self {
        Self { bytes }
    }

    fn need(&self, needed: usize) -> Result<(), WireError> {
        let left = self.bytes.len();
        if left < needed { Err(WireError::Truncated { needed, left }) } else { Ok(()) }
    }

    /// One byte.
    pub fn u8(&mut self) -> Result<u8, WireError> {
        self.need(1)?;
        Ok(self.bytes.get_u8())
    }

    /// A little-endian `u16`.
    pub fn u16(&mut self) -> Result<u16, WireError> {
        self.need(2)?;
        Ok(self.bytes.get_u16_le())
    }

    /// A little-endian `u32`.
    pub fn u32(&mut self) -> Result<u32, WireError> {
        self.need(4)?;
        Ok(self.bytes.get_u32_le())
    }

    /// A little-endian `u64`.
    pub fn u64(&mut self) -> Result<u64, WireError> {
        self.need(8)?;
        Ok(self.bytes.get_u64_le())
    }

    /// One byte that is 0 or 1.
    pub fn bool(&mut self) -> Result<bool, WireError> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            tag => Err(WireError::UnknownTag { what: "truth value", tag }),
        }
    }

    /// Bytes with a `u32` length before them, shared with the message, not copied.
    pub fn bytes(&mut self) -> Result<Bytes, WireError> {
        let len = self.u32()? as usize;
        self.need(len)?;
        Ok(self.bytes.split_to(len))
    }

    /// Everything that is left.
    pub fn rest(&mut self) -> Bytes {
        self.bytes.split_to(self.bytes.len())
    }

    /// Bytes that were not read yet.
    pub fn remaining(&self) -> usize {
        self.bytes.len()
    }

    /// Fails if anything is left.
    pub fn finish(&self) -> Result<(), WireError> {
        if self.bytes.is_empty() { Ok(()) } else { Err(WireError::TrailingBytes(self.bytes.len())) }
    }
}

/// Appends bytes with a `u32` length before them, as [`Reader::bytes`] reads them.
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
