//! Scans: the keys of a span, one page at a time.

use std::collections::BTreeMap;

use bytes::Bytes;
use palisade_wire::{Outcome, Page, Row};

use crate::{
    ClientError, Snapshot, Transaction,
    client::unexpected,
    driver::{Call, How, Span},
};

/// Returns the first key above all keys that begin with `prefix`, or `None` if there is none.
pub(crate) fn after_prefix(prefix: &[u8]) -> Option<Bytes> {
    let last = prefix.iter().rposition(|byte| *byte < u8::MAX)?;
    let mut after = prefix[..=last].to_vec();
    after[last] += 1;
    Some(after.into())
}

/// A scan of a snapshot; see [`Client::scan`](crate::Client::scan). All pages are at one timestamp.
#[derive(Clone, Debug)]
pub struct Scan {
    snapshot: Snapshot,
    /// The span that is still to be read; `None` at the end.
    left: Option<Span>,
}

impl Scan {
    pub(crate) fn new(snapshot: Snapshot, begin: Bytes, end: Option<Bytes>) -> Self {
        Self { snapshot, left: Some(Span::new(begin, end)) }
    }

    /// Makes the scan return keys in descending order.
    #[must_use]
    pub fn backward(mut self) -> Self {
        self.left = self.left.map(|span| Span { backward: true, ..span });
        self
    }

    /// Limits the rows of a page. Without it, the limit is [`MAX_PAGE_ROWS`](crate::MAX_PAGE_ROWS).
    #[must_use]
    pub fn page_rows(mut self, max_rows: u32) -> Self {
        self.left = self.left.map(|span| Span { max_rows, ..span });
        self
    }

    /// Returns the next rows, at least one, or `None` at the end of the span. After an error, the
    /// same page can be requested again.
    ///
    /// # Errors
    ///
    /// [`ClientError::SnapshotTooOld`] (not retryable) and [`ClientError::Deadline`] (retryable).
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

    /// Reads all remaining rows into memory.
    pub async fn all(mut self) -> Result<Vec<Row>, ClientError> {
        let mut all = Vec::new();
        while let Some(mut rows) = self.next_page().await? {
            all.append(&mut rows);
        }
        Ok(all)
    }
}

/// A scan of a transaction; see [`Transaction::scan`]. The part of the span that was read is
/// locked, with the gaps between its keys, so all pages are consistent.
#[derive(Debug)]
pub struct TransactionScan<'a> {
    transaction: &'a mut Transaction,
    /// The span that is still to be read; `None` at the end.
    left: Option<Span>,
    exclusive: bool,
}

impl<'a> TransactionScan<'a> {
    pub(crate) fn new(transaction: &'a mut Transaction, begin: Bytes, end: Option<Bytes>) -> Self {
        Self { transaction, left: Some(Span::new(begin, end)), exclusive: false }
    }

    /// Makes the scan return keys in descending order.
    #[must_use]
    pub fn backward(mut self) -> Self {
        self.left = self.left.map(|span| Span { backward: true, ..span });
        self
    }

    /// Limits the rows that are read and locked at a time. Rows that are read but not needed stay
    /// locked against writes by others.
    #[must_use]
    pub fn page_rows(mut self, max_rows: u32) -> Self {
        self.left = self.left.map(|span| Span { max_rows, ..span });
        self
    }

    /// Locks the rows against reads by others too.
    #[must_use]
    pub fn for_update(mut self) -> Self {
        self.exclusive = true;
        self
    }

    /// Returns the next keys and values, at least one, or `None` at the end of the span. Errors: as
    /// for [`Transaction::get`].
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

    /// Reads all remaining rows into memory.
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
