//! A scan: the keys of a span in order, a page at a time.

use bytes::{BufMut, Bytes, BytesMut};
use palisade_clock::Timestamp;

use crate::{Decode, Encode, RangeId, Reader, WireError, codec::put_bytes};

/// Rows of a page.
pub const MAX_PAGE_ROWS: u32 = 1024;

/// Bytes of keys and values after which a page ends: it may be over by one row.
pub const MAX_PAGE_BYTES: usize = 1024 * 1024;

/// Asks for the next page of a span.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScanRequest {
    /// The range that holds the first key, or the last if backward.
    pub range: RangeId,
    /// The first key of the span.
    pub begin: Bytes,
    /// The key after the span, or `None` for all that follow.
    pub end: Option<Bytes>,
    /// Whether the last keys come first.
    pub backward: bool,
    /// Rows to return, [`MAX_PAGE_ROWS`] at most.
    pub max_rows: u32,
}

/// A page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// The last commit of the range that the page takes into account.
    pub as_of_ts: Timestamp,
    /// Keys with their values, in the order asked for.
    pub rows: Vec<Row>,
    /// Where to go on: as `begin`, or as `end` if backward. `None` when the span is through.
    pub resume: Option<Bytes>,
}

/// A key with its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// The key.
    pub key: Bytes,
    /// When the value was written.
    pub version_ts: Timestamp,
    /// The value.
    pub value: Bytes,
}

fn put_optional(out: &mut BytesMut, bytes: Option<&Bytes>) {
    out.put_u8(u8::from(bytes.is_some()));
    if let Some(bytes) = bytes {
        put_bytes(out, bytes);
    }
}

fn optional(reader: &mut Reader) -> Result<Option<Bytes>, WireError> {
    match reader.u8()? {
        0 => Ok(None),
        1 => reader.bytes().map(Some),
        tag => Err(WireError::UnknownTag { what: "optional bytes", tag }),
    }
}

impl Encode for ScanRequest {
    fn encode(&self, out: &mut BytesMut) {
        out.put_u32_le(self.range.0);
        put_bytes(out, &self.begin);
        put_optional(out, self.end.as_ref());
        out.put_u8(u8::from(self.backward));
        out.put_u32_le(self.max_rows);
    }
}

impl Decode for ScanRequest {
    fn decode(reader: &mut Reader) -> Result<Self, WireError> {
        Ok(Self {
            range: RangeId(reader.u32()?),
            begin: reader.bytes()?,
            end: optional(reader)?,
            backward: reader.u8()? != 0,
            max_rows: reader.u32()?,
        })
    }
}

impl Encode for Page {
    fn encode(&self, out: &mut BytesMut) {
        out.put_u64_le(self.as_of_ts.to_bits());
        put_optional(out, self.resume.as_ref());
        out.put_u32_le(u32::try_from(self.rows.len()).expect("a page is small"));
        for Row { key, version_ts, value } in &self.rows {
            put_bytes(out, key);
            out.put_u64_le(version_ts.to_bits());
            put_bytes(out, value);
        }
    }
}

impl Decode for Page {
    fn decode(reader: &mut Reader) -> Result<Self, WireError> {
        let as_of_ts = Timestamp::from_bits(reader.u64()?);
        let resume = optional(reader)?;
        let mut rows = Vec::new();
        for _ in 0..reader.u32()? {
            rows.push(Row {
                key: reader.bytes()?,
                version_ts: Timestamp::from_bits(reader.u64()?),
                value: reader.bytes()?,
            });
        }
        Ok(Self { as_of_ts, rows, resume })
    }
}
