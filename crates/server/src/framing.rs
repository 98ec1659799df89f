//! Reads frames from a connection.

use std::time::Duration;

use futures_lite::{AsyncRead, AsyncReadExt, FutureExt};
use glommio::sync::Semaphore;
use palisade_wire::{Frame, FrameDecoder, WireError};

const READ_BYTES: usize = 64 * 1024;

/// Room behind a long frame, so that the last read for it does not double the buffer.
const FRAME_ROOM_BYTES: usize = READ_BYTES;

/// Room for the long frames that have arrived in part, over all clients or all peers of a shard, in
/// bytes.
const PARTIAL_BYTES: u64 = 128 << 20;

/// Time limit for the arrival of a long frame, once it has room.
const LONG_FRAME_TIMEOUT: Duration = Duration::from_secs(10);

/// Bounds the memory that frames take until they are whole.
#[derive(Debug)]
pub(crate) struct PartialFrames(Semaphore);

impl Default for PartialFrames {
    fn default() -> Self {
        Self(Semaphore::new(PARTIAL_BYTES))
    }
}

impl PartialFrames {
    /// Returns the next frame of a stream, as [`read_frame`] does. The rest of a frame of more than
    /// 64 KiB is read when there is room for it, and must then arrive in time.
    pub(crate) async fn read_frame(
        &self,
        stream: &mut (impl AsyncRead + Unpin),
        decoder: &mut FrameDecoder,
        scratch: &mut [u8],
    ) -> Result<Frame, Option<WireError>> {
        loop {
            if let Some(frame) = decoder.next_frame()? {
                return Ok(frame);
            }
            let bytes = decoder.partial_frame_bytes();
            if bytes > READ_BYTES {
                let _room = self.0.acquire_permit(bytes as u64).await.map_err(|_| None)?;
                let missing = FRAME_ROOM_BYTES + bytes - decoder.buffer().len();
                decoder.buffer().reserve(missing);
                let timeout = async {
                    glommio::timer::sleep(LONG_FRAME_TIMEOUT).await;
                    Err(None)
                };
                return read_frame(stream, decoder, scratch).or(timeout).await;
            }
            read(stream, decoder, scratch).await?;
        }
    }
}

/// Returns the next frame of a stream.
///
/// # Errors
///
/// `None` at the end of the stream, or if it cannot be read; otherwise why no frame can be decoded.
pub(crate) async fn read_frame(
    stream: &mut (impl AsyncRead + Unpin),
    decoder: &mut FrameDecoder,
    scratch: &mut [u8],
) -> Result<Frame, Option<WireError>> {
    loop {
        if let Some(frame) = decoder.next_frame()? {
            return Ok(frame);
        }
        read(stream, decoder, scratch).await?;
    }
}

async fn read(
    stream: &mut (impl AsyncRead + Unpin),
    decoder: &mut FrameDecoder,
    scratch: &mut [u8],
) -> Result<(), Option<WireError>> {
    match stream.read(scratch).await {
        Ok(0) | Err(_) => Err(None),
        Ok(read) => {
            decoder.buffer().extend_from_slice(&scratch[..read]);
            Ok(())
        }
    }
}

pub(crate) fn scratch() -> Vec<u8> {
    vec![0; READ_BYTES]
}
