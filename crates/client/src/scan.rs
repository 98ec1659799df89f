//! The keys of a span, a page at a time.

use std::collections::BTreeMap;

use bytes::Bytes;
use palisade_wire::{Outcome, Page, Row};

use crate::{
    ClientError, Snapshot, Transaction,
    client::unexpected,
    driver::{Call, How, Span},
};

/// The first key after all that begin with a prefix, unless there is none.
pub(crate) fn after_prefix(prefix: &[u8]) -> Option<Bytes> {
    let last = prefix.iter().rposition(|byte| *byte < u8::MAX)?;
    let mut after = prefix[..=last].to_vec();
    after[last] += 1;
    Some(after.into())
}

/// A scan under way: see [`Client::scan`](crate::Client::scan). All of it is as it was at one moment.
#[derive(Clone, Debug)]
pub struct Scan {
    snapshot: Snapshot,
    /// What is left, unless it is through.
    left: Option<Span>,
}

impl Scan {
    pub(crate) fn new(snapshot: Snapshot, begin: Bytes, end: Option<Bytes>) -> Self {
        Self { snapshot, left: Some(Span::new(begin, end)) }
    }

    /// The last keys come first.
    #[must_use]
    pub fn backward(mut self) -> Self {
        self.left = self.left.map(|span| Span { backward: true, ..span });
        self
    }

    /// Pages hold so many rows at most.
    #[must_use]
    pub fn page_rows(mut self, max_rows: u32) -> Self {
        self.left = self.left.map(|span| Span { max_rows, ..span });
        self
    }

    /// The next rows, at least one; or `None` when the span is through. After an error, the same
    /// page can be asked for again.
    pub async fn next_page(&mut self) -> Result<Option<Vec<Row>>, ClientError> {
        while let Some(span) = self.left.clone().filter(|span| !span.is_empty()) {
            let Page { rows, resume, .. } = match self.snapshot.page(&span).await? {
                Outcome::Page { page, .. } => page,
                other => return Err(unexpected(&other)),
            };
            self.left = resume.map(|resume| span.split(resume).1);
            if !rows.is_empty() {
                return Ok(Some(rows));
            }
        }
        self.left = None;
        Ok(None)
    }

    /// All rows that are left, gathered in memory.
    pub async fn all(mut self) -> Result<Vec<Row>, ClientError> {
        let mut all = Vec::new();
        while let Some(mut rows) = self.next_page().await? {
            all.append(&mut rows);
        }
        Ok(all)
    }
}

/// A scan of a transaction under way: see [`Transaction::scan`]. What it has gone over is locked, all
/// of it as it was at one moment.
#[derive(Debug)]
pub struct TransactionScan<'a> {
    transaction: &'a mut Transaction,
    /// What is left, unless it is through.
    left: Option<Span>,
    exclusive: bool,
}

impl<'a> TransactionScan<'a> {
    pub(crate) fn new(transaction: &'a mut Transaction, begin: Bytes, end: Option<Bytes>) -> Self {
        Self { transaction, left: Some(Span::new(begin, end)), exclusive: false }
    }

    /// The last keys come first.
    #[must_use]
    pub fn backward(mut self) -> Self {
        self.left = self.left.map(|span| Span { backward: true, ..span });
        self
    }

    /// So many rows at most are asked for at a time, and locked: more than are wanted keep others
    /// from writing.
    #[must_use]
    pub fn page_rows(mut self, max_rows: u32) -> Self {
        self.left = self.left.map(|span| Span { max_rows, ..span });
        self
    }

    /// Nobody else may read what is gone over, either.
    #[must_use]
    pub fn for_update(mut self) -> Self {
        self.exclusive = true;
        self
    }

    /// The next keys with their values, at least one; or `None` when the span is through.
    pub async fn next_page(&mut self) -> Result<Option<Vec<(Bytes, Bytes)>>, ClientError> {
        while let Some(span) = self.left.clone().filter(|span| !span.is_empty()) {
            let how = How::Locked(self.transaction.locks(&span.begin, self.exclusive));
            let call = Call::Scan { span: span.clone(), how };
            let page = match self.transaction.call(call).await? {
                Outcome::Page { page, .. } => page,
                other => return Err(unexpected(&other)),
            };
            let (covered, left) = match page.resume {
                None => (span, None),
                Some(resume) => {
                    let (covered, left) = span.split(resume);
                    (covered, Some(left))
                }
            };
            self.left = left;
            let Span { begin, end, backward, .. } = covered;
            let mut rows: BTreeMap<_, _> =
                page.rows.into_iter().map(|row| (row.key, row.value)).collect();
            let before_end = |key: &Bytes| end.as_ref().is_none_or(|end| key < end);
            let own = self.transaction.own().range(begin..).take_while(|(key, _)| before_end(key));
            for (key, value) in own {
                match value {
                    Some(value) => drop(rows.insert(key.clone(), value.clone())),
                    None => drop(rows.remove(key)),
                }
            }
            let mut rows: Vec<_> = rows.into_iter().collect();
            if backward {
                rows.reverse();
            }
            if !rows.is_empty() {
                return Ok(Some(rows));
            }
        }
        self.left = None;
        Ok(None)
    }

    /// All rows that are left, gathered in memory.
    pub async fn all(mut self) -> Result<Vec<(Bytes, Bytes)>, ClientError> {
        let mut all = Vec::new();
        while let Some(mut rows) = self.next_page().await? {
            all.append(&mut rows);
        }
        Ok(all)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_after_a_prefix_is_the_first_that_does_not_begin_with_it() {
        let after = |prefix: &[u8]| after_prefix(prefix).map(|after| after.to_vec());
        assert_eq!(after(b"a"), Some(b"b".to_vec()));
        assert_eq!(after(b"a\xff\xff"), Some(b"b".to_vec()));
        assert_eq!(after(b"a\xfe"), Some(b"a\xff".to_vec()));
        assert_eq!(after(b"\xff"), None);
        assert_eq!(after(b""), None);
    }
}
