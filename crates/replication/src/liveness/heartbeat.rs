//! The message that shards exchange periodically.

use bytes::{BufMut, BytesMut};
use palisade_wire::{Decode, Encode, RangeId, Reader, WireError};

use super::revocations::{MAX_REVOCATIONS, Revocation, Revoked};

/// The periodic message from one shard to another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Heartbeat {
    /// Send time on the sender's clock, in microseconds.
    pub sent_us: u64,
    /// True if the sender is about to stop: nothing should be handed over to it.
    pub draining: bool,
    /// The latest session of the receiver that the sender knows, or 0.
    pub to_session: u64,
    /// The latest `sent_us` of that session that the sender received, or 0.
    pub echo_us: u64,
    /// How many revocations of that session the sender has processed.
    pub taken_in: u64,
    /// Number of revocations before those below. The receiver has confirmed them.
    pub confirmed: u64,
    /// Revocations that the receiver has not confirmed, oldest first.
    pub revocations: Vec<Revocation>,
}

impl Encode for Heartbeat {
    fn encode(&self, out: &mut BytesMut) {
        out.put_u64_le(self.sent_us);
        out.put_u8(u8::from(self.draining));
        out.put_u64_le(self.to_session);
        out.put_u64_le(self.echo_us);
        out.put_u64_le(self.taken_in);
        out.put_u64_le(self.confirmed);
        out.put_u32_le(u32::try_from(self.revocations.len()).expect("ranges are numbered so"));
        for revocation in &self.revocations {
            out.put_u32_le(revocation.range.0);
            out.put_u64_le(revocation.term);
            out.put_u8(match revocation.what {
                Revoked::Leadership => 1,
                Revoked::Support => 2,
            });
        }
    }
}

impl Decode for Heartbeat {
    fn decode(reader: &mut Reader) -> Result<Self, WireError> {
        let (sent_us, draining) = (reader.count()?, reader.bool()?);
        let (to_session, echo_us) = (reader.u64()?, reader.u64()?);
        let (taken_in, confirmed) = (reader.count()?, reader.count()?);
        let count = reader.u32()?;
        if count as usize > MAX_REVOCATIONS {
            return Err(WireError::Invalid("a heartbeat has too many revocations"));
        }
        let mut revocations = Vec::new();
        for _ in 0..count {
            let (range, term) = (RangeId(reader.u32()?), reader.count()?);
            let what = match reader.u8()? {
                1 => Revoked::Leadership,
                2 => Revoked::Support,
                tag => return Err(WireError::UnknownTag { what: "revocation", tag }),
            };
            revocations.push(Revocation { range, term, what });
        }
        Ok(Self { sent_us, draining, to_session, echo_us, taken_in, confirmed, revocations })
    }
}
