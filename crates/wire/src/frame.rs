//! The frame around every message on every connection.
//!
//! ```text
//! offset  bytes  field
//!      0      4  crc32 of everything after it, payload included
//!      4      4  length of the payload
//!      8      1  protocol version
//!      9      1  kind
//!     10      2  zero
//!     12      …  payload
//! ```
//! All numbers are little-endian. TCP's own checksum has only 16 bits. This one also detects a peer
//! that sends halves of two different frames after a dropped partial write.

use bytes::{Buf, Bytes, BytesMut};
use zerocopy::{
    FromBytes, Immutable, IntoBytes, KnownLayout,
    little_endian::{U16, U32},
};

use crate::{MAX_FRAME_BYTES, WireError};

/// The protocol version of this build. Frames of any other version are rejected.
pub const PROTOCOL_VERSION: u8 = 7;

/// Length of the frame header, in bytes.
pub const FRAME_HEADER_BYTES: usize = size_of::<FrameHeader>();

/// Limit on the payload of a frame during a handshake, in bytes.
const MAX_HANDSHAKE_BYTES: usize = 256;

const CRC_BYTES: usize = 4;

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct FrameHeader {
    crc: U32,
    length: U32,
    version: u8,
    kind: u8,
    zero: U16,
}

/// The kind of message in a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum FrameKind {
    /// A client's first frame: a [`ClientHello`](crate::ClientHello).
    ClientHello = 1,
    /// The answer to a first frame: a [`Welcome`](crate::Welcome).
    Welcome = 2,
    /// A client's [`Request`](crate::Request).
    Request = 3,
    /// A [`Response`](crate::Response) to a client.
    Response = 4,
    /// A peer's first frame: a [`PeerHello`](crate::PeerHello).
    PeerHello = 5,
    /// A message from shard to shard, defined by its protocol.
    Peer = 6,
    /// The answer to a welcome: a [`Proof`](crate::Proof).
    Proof = 7,
    /// The last frame of a connection that is not accepted: a [`Refusal`](crate::Refusal).
    Refusal = 8,
}

impl FrameKind {
    fn from_tag(tag: u8) -> Result<Self, WireError> {
        Ok(match tag {
            1 => Self::ClientHello,
            2 => Self::Welcome,
            3 => Self::Request,
            4 => Self::Response,
            5 => Self::PeerHello,
            6 => Self::Peer,
            7 => Self::Proof,
            8 => Self::Refusal,
            tag => return Err(WireError::UnknownTag { what: "frame kind", tag }),
        })
    }
}

/// A whole frame whose checksum was verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// The kind of message in the payload.
    pub kind: FrameKind,
    /// The encoded message. It shares the buffer in which the frame was received.
    pub payload: Bytes,
}

/// Appends a frame to `out`. `payload` appends the payload.
///
/// # Panics
///
/// If the payload is longer than [`MAX_FRAME_BYTES`].
pub fn write_frame(out: &mut BytesMut, kind: FrameKind, payload: impl FnOnce(&mut BytesMut)) {
    let start = out.len();
    out.extend_from_slice(&[0; FRAME_HEADER_BYTES]);
    payload(out);
    let length = out.len() - start - FRAME_HEADER_BYTES;
    assert!(length <= MAX_FRAME_BYTES, "a frame of {length} bytes was about to be sent");
    let length = u32::try_from(length).expect("the frame limit fits 32 bits");
    let mut header = FrameHeader {
        crc: U32::ZERO,
        length: U32::new(length),
        version: PROTOCOL_VERSION,
        kind: kind as u8,
        zero: U16::ZERO,
    };
    let frame = &mut out[start..];
    frame[..FRAME_HEADER_BYTES].copy_from_slice(header.as_bytes());
    header.crc = U32::new(crc32fast::hash(&frame[CRC_BYTES..]));
    frame[..CRC_BYTES].copy_from_slice(header.crc.as_bytes());
}

/// Splits a stream of bytes into frames.
#[derive(Debug)]
pub struct FrameDecoder {
    buffer: BytesMut,
    max_bytes: usize,
}

impl Default for FrameDecoder {
    fn default() -> Self {
        Self { buffer: BytesMut::new(), max_bytes: MAX_FRAME_BYTES }
    }
}

impl FrameDecoder {
    /// Returns a decoder for the frames of a handshake, whose payload is short.
    pub fn for_handshake() -> Self {
        Self { buffer: BytesMut::new(), max_bytes: MAX_HANDSHAKE_BYTES }
    }

    /// Accepts frames of any allowed length, after a handshake.
    pub fn end_handshake(&mut self) {
        self.max_bytes = MAX_FRAME_BYTES;
    }

    /// Returns the buffer to which the caller appends the next bytes of the stream.
    pub fn buffer(&mut self) -> &mut BytesMut {
        &mut self.buffer
    }

    /// Returns the length of the frame that has arrived in part, in bytes. 0 if its length has not
    /// arrived.
    pub fn partial_frame_bytes(&self) -> usize {
        let header = self.buffer.get(..FRAME_HEADER_BYTES);
        let header = header.and_then(|bytes| FrameHeader::read_from_bytes(bytes).ok());
        header.map_or(0, |header| FRAME_HEADER_BYTES + header.length.get() as usize)
    }

    /// Removes and returns the next whole frame, or `None` if more bytes are needed.
    ///
    /// # Errors
    ///
    /// [`WireError::Version`], [`WireError::FrameTooLarge`], [`WireError::Checksum`] or
    /// [`WireError::UnknownTag`]. None is retryable: close the connection.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, WireError> {
        if self.buffer.len() < FRAME_HEADER_BYTES {
            return Ok(None);
        }
        let header = FrameHeader::read_from_bytes(&self.buffer[..FRAME_HEADER_BYTES])
            .expect("the slice is as long as the header");
        if header.version != PROTOCOL_VERSION {
            return Err(WireError::Version { theirs: header.version, ours: PROTOCOL_VERSION });
        }
        let bytes = header.length.get() as usize;
        if bytes > self.max_bytes {
            return Err(WireError::FrameTooLarge { bytes, limit: self.max_bytes });
        }
        if self.buffer.len() < FRAME_HEADER_BYTES + bytes {
            return Ok(None);
        }
        let mut frame = self.buffer.split_to(FRAME_HEADER_BYTES + bytes).freeze();
        if crc32fast::hash(&frame[CRC_BYTES..]) != header.crc.get() {
            return Err(WireError::Checksum);
        }
        if header.zero != U16::ZERO {
            return Err(WireError::NotZero("the reserved field of a frame"));
        }
        let kind = FrameKind::from_tag(header.kind)?;
        frame.advance(FRAME_HEADER_BYTES);
        Ok(Some(Frame { kind, payload: frame }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stream() -> BytesMut {
        let mut out = BytesMut::new();
        write_frame(&mut out, FrameKind::Request, |out| out.extend_from_slice(b"first"));
        write_frame(&mut out, FrameKind::Peer, |_| {});
        out
    }

    #[test]
    fn decoder_yields_whole_frames_for_any_chunking() {
        let stream = stream();
        for step in 1..=stream.len() {
            let mut decoder = FrameDecoder::default();
            let mut frames = Vec::new();
            for piece in stream.chunks(step) {
                decoder.buffer().extend_from_slice(piece);
                if decoder.buffer().len() >= FRAME_HEADER_BYTES && frames.is_empty() {
                    assert_eq!(decoder.partial_frame_bytes(), FRAME_HEADER_BYTES + 5);
                }
                while let Some(frame) = decoder.next_frame().unwrap() {
                    frames.push(frame);
                }
            }
            assert_eq!(frames.len(), 2);
            assert_eq!(&frames[0].payload[..], b"first");
            assert_eq!(frames[1].kind, FrameKind::Peer);
        }
    }

    #[test]
    fn decoder_detects_every_bit_flip() {
        let stream = stream();
        let first_frame_bytes = FRAME_HEADER_BYTES + b"first".len();
        for bit in 0..first_frame_bytes * 8 {
            let mut decoder = FrameDecoder::default();
            decoder.buffer().extend_from_slice(&stream);
            decoder.buffer()[bit / 8] ^= 1 << (bit % 8);
            // A larger length may wait for more bytes. Every other flip is an error.
            let frame = decoder.next_frame();
            assert!(!matches!(frame, Ok(Some(_))), "bit {bit} went unnoticed: {frame:?}");
        }
    }

    #[test]
    fn decoder_rejects_length_over_limit_before_allocating() {
        let mut decoder = FrameDecoder::default();
        decoder.buffer().extend_from_slice(&[
            0,
            0,
            0,
            0,
            255,
            255,
            255,
            255,
            PROTOCOL_VERSION,
            3,
            0,
            0,
        ]);
        assert!(matches!(decoder.next_frame(), Err(WireError::FrameTooLarge { .. })));
    }

    #[test]
    fn decoder_rejects_other_protocol_version() {
        let mut decoder = FrameDecoder::default();
        decoder.buffer().extend_from_slice(b"GET / HTTP/1.1\r\n\r\n");
        assert!(matches!(decoder.next_frame(), Err(WireError::Version { .. })));
    }
}
