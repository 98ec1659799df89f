//! Frames. [`FrameDecoder`] is compared with a plain parser of a whole stream. Both must return the
//! same frames and the same error, for pieces of any size.
//!
//! The first byte of the input chooses the sizes of the pieces. The rest is the stream. It is
//! decoded as it is, and again after its checksums were corrected. Without correction, a mutated
//! stream is nearly always refused at its first frame.

use bytes::BytesMut;
use palisade_wire::{
    FRAME_HEADER_BYTES, Frame, FrameDecoder, MAX_FRAME_BYTES, PROTOCOL_VERSION, WireError,
    write_frame,
};

const CRC_BYTES: usize = 4;
const VERSION_AT: usize = 8;
const KIND_AT: usize = 9;
const LAST_KIND: u8 = 8;

/// Why no frame is at the front of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Incomplete,
    Version,
    TooLarge,
    Checksum,
    Kind,
    /// The reserved bytes are not zero. Any error will do, but a frame must not be returned: it
    /// would be encoded with zeros.
    Reserved,
}

/// Checks a stream. Returns true if it has a valid frame once its checksums are corrected.
pub fn check(data: &[u8]) -> bool {
    let Some((&seed, stream)) = data.split_first() else { return false };
    compare(stream, seed);
    compare(&resealed(stream), seed)
}

/// Compares the decoder with [`split`] on one stream. Returns true if it has a valid frame.
fn compare(stream: &[u8], seed: u8) -> bool {
    let mut rest = stream;
    let end = loop {
        match split(rest) {
            Ok(frame) => rest = &rest[frame.len()..],
            Err(end) => break end,
        }
    };
    let valid = &stream[..stream.len() - rest.len()];
    for sizes in [Sizes { seed: 0, state: 0 }, Sizes { seed, state: seed.into() }] {
        let (frames, error) = decode(stream, sizes);
        let mut again = BytesMut::new();
        for Frame { kind, payload } in &frames {
            write_frame(&mut again, *kind, |out| out.extend_from_slice(payload));
        }
        assert_eq!(&again[..], valid, "the frames before {end:?} differ, in {sizes:?}");
        let agrees = match end {
            End::Incomplete => error.is_none(),
            End::Version => matches!(error, Some(WireError::Version { .. })),
            End::TooLarge => matches!(error, Some(WireError::FrameTooLarge { .. })),
            End::Checksum => error == Some(WireError::Checksum),
            End::Kind => matches!(error, Some(WireError::UnknownTag { .. })),
            End::Reserved => true,
        };
        assert!(agrees, "{end:?} was reported as {error:?}, in {sizes:?}");
    }
    !valid.is_empty()
}

/// Returns the valid frame at the front of a stream, header included.
fn split(stream: &[u8]) -> Result<&[u8], End> {
    let header = stream.get(..FRAME_HEADER_BYTES).ok_or(End::Incomplete)?;
    if header[VERSION_AT] != PROTOCOL_VERSION {
        return Err(End::Version);
    }
    let length = payload_bytes(header);
    if length > MAX_FRAME_BYTES {
        return Err(End::TooLarge);
    }
    if header[KIND_AT + 1..] != [0, 0] {
        return Err(End::Reserved);
    }
    let frame = stream.get(..FRAME_HEADER_BYTES + length).ok_or(End::Incomplete)?;
    if crc32fast::hash(&frame[CRC_BYTES..]).to_le_bytes() != frame[..CRC_BYTES] {
        return Err(End::Checksum);
    }
    if !(1..=LAST_KIND).contains(&header[KIND_AT]) {
        return Err(End::Kind);
    }
    Ok(frame)
}

/// Returns the length in a header.
fn payload_bytes(header: &[u8]) -> usize {
    let length: [u8; 4] = header[CRC_BYTES..VERSION_AT].try_into().expect("it has four bytes");
    u32::from_le_bytes(length) as usize
}

/// Returns the stream with the checksum and the version of each whole frame corrected.
fn resealed(stream: &[u8]) -> Vec<u8> {
    let mut stream = stream.to_vec();
    let mut at = 0;
    while let Some(header) = stream.get(at..at + FRAME_HEADER_BYTES) {
        let end = at + FRAME_HEADER_BYTES + payload_bytes(header);
        let Some(frame) = stream.get_mut(at..end) else { break };
        frame[VERSION_AT] = PROTOCOL_VERSION;
        let crc = crc32fast::hash(&frame[CRC_BYTES..]);
        frame[..CRC_BYTES].copy_from_slice(&crc.to_le_bytes());
        at = end;
    }
    stream
}

/// Pseudo-random sizes of pieces, from 1 to `seed`. With a seed of 0, one piece holds everything.
#[derive(Clone, Copy, Debug)]
struct Sizes {
    seed: u8,
    state: u32,
}

impl Sizes {
    fn next_piece(&mut self) -> usize {
        // The generator of Numerical Recipes.
        self.state = self.state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let random = (self.state >> 16) as usize;
        if self.seed == 0 { usize::MAX } else { 1 + random % usize::from(self.seed) }
    }
}

/// Decodes a stream in pieces, up to its end or the first error. Checks that the decoder buffers
/// nothing but bytes that it has not returned.
fn decode(stream: &[u8], mut sizes: Sizes) -> (Vec<Frame>, Option<WireError>) {
    let mut decoder = FrameDecoder::default();
    let (mut frames, mut fed, mut returned) = (Vec::new(), 0, 0);
    while fed < stream.len() {
        let piece = sizes.next_piece().min(stream.len() - fed);
        decoder.buffer().extend_from_slice(&stream[fed..fed + piece]);
        fed += piece;
        loop {
            match decoder.next_frame() {
                Ok(Some(frame)) => {
                    returned += FRAME_HEADER_BYTES + frame.payload.len();
                    frames.push(frame);
                }
                Ok(None) => break,
                Err(error) => return (frames, Some(error)),
            }
        }
        assert_eq!(decoder.buffer().len(), fed - returned, "the decoder lost or kept bytes");
        let capacity = decoder.buffer().capacity();
        let limit = 2 * (FRAME_HEADER_BYTES + MAX_FRAME_BYTES + stream.len());
        assert!(capacity <= limit, "{capacity} bytes are reserved, over {limit}");
    }
    (frames, None)
}
