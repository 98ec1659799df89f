//! A log as bytes in memory, for the simulator: one endless segment, with the records and the
//! recovery of the real one.

use std::{collections::VecDeque, fmt};

use crate::{
    Position, Record,
    record::{Place, encode, record_bytes},
    recovery::{Scan, scan, was_durable_beyond},
    segment::SEGMENT_HEADER_BYTES,
};

/// A log in memory. Whoever holds it decides what of its bytes survives a crash.
#[derive(Clone, Debug)]
pub struct Image {
    /// Stands in for the segment's sequence: records of another log do not verify.
    owner: u64,
    bytes: Vec<u8>,
    last_crc: u32,
    durable: Position,
    /// Ends of records that say more of what is durable than those before, and what they say.
    claims: VecDeque<(Position, Position)>,
    vouched: Position,
}

/// Durable bytes of an image are damaged. Not retryable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImageDamage {
    /// Where the first record that does not verify begins.
    pub offset: usize,
}

impl Image {
    /// An empty log.
    pub fn new(owner: u64) -> Self {
        let bytes = vec![0; SEGMENT_HEADER_BYTES];
        let durable = bytes.len() as u64;
        Self::with(owner, bytes, 0, durable)
    }

    fn with(owner: u64, bytes: Vec<u8>, last_crc: u32, durable: Position) -> Self {
        Self { owner, bytes, last_crc, durable, claims: VecDeque::new(), vouched: 0 }
    }

    /// Appends a record and returns the position of its end.
    pub fn append(&mut self, record: &Record<'_>) -> Position {
        let start = self.bytes.len();
        let place = Place {
            sequence: self.owner,
            position: start as u64,
            previous_crc: self.last_crc,
            durable: self.durable,
        };
        self.bytes.resize(start + record_bytes(record.payload.len()), 0);
        self.last_crc = encode(record, place, &mut self.bytes[start..]);
        if self.claims.back().map_or(self.vouched, |(_, durable)| *durable) < self.durable {
            self.claims.push_back((self.end(), self.durable));
        }
        self.end()
    }

    /// The end of the last record appended.
    pub fn end(&self) -> Position {
        self.bytes.len() as u64
    }

    /// Everything that ends at or below this was synced.
    pub fn durable(&self) -> Position {
        self.durable
    }

    /// Takes note that a sync covered everything up to a position.
    pub fn synced(&mut self, up_to: Position) {
        assert!(up_to <= self.end(), "a sync was reported beyond the end of the log");
        self.durable = self.durable.max(up_to);
        while let Some((end, durable)) = self.claims.front()
            && *end <= self.durable
        {
            self.vouched = *durable;
            self.claims.pop_front();
        }
    }

    /// Below this, damage shows: a durable record says that everything there was durable.
    pub fn vouched(&self) -> Position {
        self.vouched
    }

    /// Everything that was appended, in its place.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// What a restart finds in `bytes`, which may have been torn or damaged: a tail that no sync
    /// had covered is cut, damage of anything else is refused. With `trust_damage`, which is a
    /// fault for tests of the checks, the log is cut at the first damage of any kind.
    pub fn recover(
        owner: u64,
        mut bytes: Vec<u8>,
        trust_damage: bool,
        visit: &mut impl FnMut(Record<'_>),
    ) -> Result<Self, ImageDamage> {
        if bytes.len() < SEGMENT_HEADER_BYTES
            || bytes[..SEGMENT_HEADER_BYTES].iter().any(|byte| *byte != 0)
        {
            return Err(ImageDamage { offset: 0 });
        }
        bytes.resize(bytes.len().next_multiple_of(8), 0);
        let Scan { end, last_crc, .. } = scan(&bytes, owner, 0, 0, visit);
        if !trust_damage && was_durable_beyond(&bytes, owner, 0, end, end as u64) {
            return Err(ImageDamage { offset: end });
        }
        bytes.truncate(end);
        Ok(Self::with(owner, bytes, last_crc, end as u64))
    }
}

impl fmt::Display for ImageDamage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a durable record at byte {} does not verify", self.offset)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::RecordKind;

    fn image(records: u64, synced: u64) -> Image {
        let mut image = Image::new(9);
        for index in 1..=records {
            let payload = vec![7; 20 + index as usize];
            let kind = RecordKind::Entry;
            image.append(&Record { kind, group: 1, term: 1, index, part: 0, payload: &payload });
            if index == synced {
                image.synced(image.end());
            }
        }
        image
    }

    fn recover(bytes: Vec<u8>, trust_damage: bool) -> Result<(Image, u64), ImageDamage> {
        let mut records = 0;
        let image = Image::recover(9, bytes, trust_damage, &mut |_| records += 1)?;
        Ok((image, records))
    }

    #[test]
    fn what_was_written_comes_back_and_can_be_continued() {
        let (mut image, records) = recover(image(5, 0).bytes().to_vec(), false).unwrap();
        assert_eq!(records, 5);
        let kind = RecordKind::Entry;
        image.append(&Record { kind, group: 1, term: 1, index: 6, part: 0, payload: &[1] });
        assert_eq!(recover(image.bytes().to_vec(), false).unwrap().1, 6);
    }

    #[test]
    fn a_torn_tail_is_cut_and_damage_below_it_is_refused() {
        let image = image(6, 3);
        let synced = usize::try_from(image.durable()).unwrap();
        let mut torn = image.bytes().to_vec();
        torn[synced + 10] ^= 1;
        assert_eq!(recover(torn, false).unwrap().1, 3);
        let mut damaged = image.bytes().to_vec();
        damaged[SEGMENT_HEADER_BYTES + 100] ^= 1;
        assert!(recover(damaged.clone(), false).is_err());
        assert_eq!(recover(damaged, true).unwrap().1, 1);
    }
}
