//! Reads frames from a connection.

use std::time::Duration;

use futures_lite::{AsyncRead, AsyncReadExt, FutureExt};
use palisade_wire::{Frame, FrameDecoder, FrameKind};

/// Time limit for the first frame of a connection.
const HELLO_TIMEOUT: Duration = Duration::from_secs(5);

const READ_BYTES: usize = 64 * 1024;

/// Returns the next frame of a stream, or `None` at its end, or if it cannot be read or decoded.
pub(crate) async fn read_frame(
    stream: &mut (impl AsyncRead + Unpin),
    decoder: &mut FrameDecoder,
    scratch: &mut [u8],
) -> Option<Frame> {
    loop {
        match decoder.next_frame() {
            Ok(Some(frame)) => return Some(frame),
            Ok(None) => {}
            Err(error) => {
                tracing::debug!("a connection is closed: {error}");
                return None;
            }
        }
        match stream.read(scratch).await {
            Ok(0) | Err(_) => return None,
            Ok(read) => decoder.buffer().extend_from_slice(&scratch[..read]),
        }
    }
}

/// Returns the first frame of a stream, or `None` if it is late or of another kind.
pub(crate) async fn read_hello(
    stream: &mut (impl AsyncRead + Unpin),
    decoder: &mut FrameDecoder,
    scratch: &mut [u8],
    kind: FrameKind,
) -> Option<Frame> {
    let timeout = async {
        glommio::timer::sleep(HELLO_TIMEOUT).await;
        None
    };
    let frame = read_frame(stream, decoder, scratch).or(timeout).await?;
    (frame.kind == kind).then_some(frame)
}

pub(crate) fn scratch() -> Vec<u8> {
    vec![0; READ_BYTES]
}
