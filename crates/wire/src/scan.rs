//! Scans: the keys of a span in order, one page per request.

use bytes::{BufMut, Bytes, BytesMut};
use palisade_clock::Timestamp;

use crate::{Decode, Encode, RangeId, Reader, WireError, codec::put_bytes};

/// Maximum number of rows of a page.
pub const MAX_PAGE_ROWS: u32 = 1024;

/// A page ends once its keys and values have this many bytes. The last row may exceed the limit.
pub const MAX_PAGE_BYTES: usize = 1024 * 1024;

/// A request for the next page of a span.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScanRequest {
    /// The range that holds the first key of the span, or the last one if `backward`.
    pub range: RangeId,
    /// The inclusive lower bound of the span.
    pub begin: Bytes,
    /// The exclusive upper bound of the span, or `None` for no bound.
    pub end: Option<Bytes>,
    /// True to return rows in descending order of their keys, from the end of the span.
    pub backward: bool,
    /// Maximum number of rows to return, clamped to 1..=[`MAX_PAGE_ROWS`].
    pub max_rows: u32,
}

/// A page of a scan. It may have no rows although `resume` is set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// The timestamp of the state: that of the read, or of the last commit applied to the range.
    pub as_of_ts: Timestamp,
    /// The rows, in the requested order.
    pub rows: Vec<Row>,
    /// The next request's `begin`, or its `end` if backward. `None` if the span is finished.
    pub resume: Option<Bytes>,
}

/// A key with its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// The key.
    pub key: Bytes,
    /// The timestamp at which the value was written.
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
            backward: reader.bool()?,
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
