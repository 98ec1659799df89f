//! The properties of an encoding: a decoded value is encoded without loss, and to the same bytes.

use std::fmt::Debug;

use bytes::{Bytes, BytesMut};
use palisade_wire::{Decode, Encode, WireError, decode_exact};

/// Checks `data` as a message with the fixed encoding: see [`exact`].
pub(crate) fn message<T: Decode + Encode + PartialEq + Debug>(data: &[u8]) -> bool {
    exact(data, decode_exact::<T>, |value: &T| {
        let mut out = BytesMut::new();
        value.encode(&mut out);
        out.freeze()
    })
}

/// Checks that `data`, if it decodes, is the encoding of its value. Returns true if it decodes.
pub(crate) fn exact<T: PartialEq + Debug>(
    data: &[u8],
    decode: impl Fn(Bytes) -> Result<T, WireError>,
    encode: impl Fn(&T) -> Bytes,
) -> bool {
    let Ok(value) = decode(Bytes::copy_from_slice(data)) else { return false };
    let encoded = encode(&value);
    let again = decode(encoded.clone());
    assert_eq!(again.as_ref(), Ok(&value), "the encoding lost a part of the value");
    assert_eq!(encoded, data, "other bytes decode to the same value: {value:?}");
    true
}

/// Checks that the value of `data`, if it decodes, is encoded without loss, and that trailing bytes
/// are refused. Returns true if it decodes.
///
/// Postcard accepts integers with redundant bytes, so `data` may differ from the encoding. The
/// encoding is never longer.
pub(crate) fn postcard<T: PartialEq + Debug>(
    data: &[u8],
    decode: impl Fn(&[u8]) -> Result<T, WireError>,
    encode: impl Fn(&T) -> Bytes,
) -> bool {
    let Ok(value) = decode(data) else { return false };
    let encoded = encode(&value);
    let again = decode(&encoded);
    assert_eq!(again.as_ref(), Ok(&value), "the encoding lost a part of the value");
    assert!(encoded.len() <= data.len(), "{} bytes decode to {value:?}", data.len());
    let longer = [&encoded[..], &[0][..]].concat();
    assert!(decode(&longer).is_err(), "a trailing byte is ignored after {value:?}");
    true
}
