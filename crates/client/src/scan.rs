//! Scans: the keys of a span, one page at a time.

use std::collections::BTreeMap;

use bytes::Bytes;
use palisade_wire::{Commit, Outcome, Page, Row};

use crate::{
    Client, ClientError, Snapshot, Transaction,
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

impl Client {
    /// Returns a scan of the keys from `begin` (inclusive) to `end` (exclusive; `None` for no
    /// bound), in order, in a new [`Client::snapshot`]. It reads nothing yet.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # use palisade_client::*; async fn example(client: Client) -> Result<(), ClientError> {
    /// let mut users = client.scan("users/a", Some("users/b".into()));
    /// while let Some(page) = users.next_page().await? {
    ///     println!("{} rows up to {:?}", page.len(), page.last().map(|row| &row.key));
    /// }
    /// # Ok(()) }
    /// ```
    pub fn scan(&self, begin: impl Into<Bytes>, end: Option<Bytes>) -> Scan {
        self.snapshot().scan(begin, end)
    }

    /// Returns a scan of the keys that begin with `prefix`, in a new [`Client::snapshot`]. It reads
    /// nothing yet.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # use palisade_client::*; async fn example(client: Client) -> Result<(), ClientError> {
    /// let rows = client.scan_prefix("users/").all().await?;
    /// # Ok(()) }
    /// ```
    pub fn scan_prefix(&self, prefix: impl Into<Bytes>) -> Scan {
        self.snapshot().scan_prefix(prefix)
    }

    /// Deletes the keys from `begin` (inclusive) to `end` (exclusive; `None` for no bound), and
    /// returns how many it deleted. Each page of keys is a commit of its own, with its own time
    /// limit. The keys are those of one snapshot, so keys that are written meanwhile may remain.
    /// [`Transaction::delete_span`] is atomic.
    ///
    /// # Errors
    ///
    /// Earlier pages stay deleted, with any error.
    ///
    /// - As for [`Scan::next_page`]. [`ClientError::SnapshotTooOld`] also ends a call that takes
    ///   longer than 60 seconds ([`MAX_SNAPSHOT_AGE_US`](crate::MAX_SNAPSHOT_AGE_US)). Deleting the
    ///   span again is safe.
    /// - As for [`Client::commit`], except for a failed condition and several ranges. The outcome
    ///   of the last page may be unknown.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # use palisade_client::*; async fn example(client: Client) -> Result<(), ClientError> {
    /// let deleted = client.delete_span("users/a", Some("users/b".into())).await?;
    /// # Ok(()) }
    /// ```
    pub async fn delete_span(
        &self,
        begin: impl Into<Bytes>,
        end: Option<Bytes>,
    ) -> Result<u64, ClientError> {
        let mut scan = self.scan(begin, end);
        let mut deleted = 0;
        while let Some(rows) = scan.next_page().await? {
            deleted += rows.len() as u64;
            // A page lies in one range, and never exceeds the limits of a commit.
            self.commit(rows.into_iter().fold(Commit::new(), |commit, row| commit.delete(row.key)))
                .await?;
        }
        Ok(deleted)
    }
}

/// A scan of a snapshot; see [`Client::scan`]. All pages are at one timestamp.
///
/// A page has at least one row, all of one range. It ends after
/// [`MAX_PAGE_ROWS`](crate::MAX_PAGE_ROWS) rows, or once its keys and values have
/// [`MAX_PAGE_BYTES`](crate::MAX_PAGE_BYTES) bytes. The bounds of a scan must have less than 4 MiB
/// together, the size of a frame. This is not checked.
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
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # use palisade_client::*; async fn example(client: Client) -> Result<(), ClientError> {
    /// let mut newest = client.scan_prefix("events/").backward().page_rows(1);
    /// let last_event = newest.next_page().await?;
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn backward(mut self) -> Self {
        self.left = self.left.map(|span| Span { backward: true, ..span });
        self
    }

    /// Limits the rows of a page: from 1 to [`MAX_PAGE_ROWS`](crate::MAX_PAGE_ROWS), which is the
    /// default. Other numbers are taken as the nearest bound.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # use palisade_client::*; async fn example(client: Client) -> Result<(), ClientError> {
    /// let first = client.scan_prefix("users/").page_rows(20).next_page().await?;
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn page_rows(mut self, max_rows: u32) -> Self {
        self.left = self.left.map(|span| Span { max_rows, ..span });
        self
    }

    /// Returns the next rows, at least one, or `None` at the end of the span. After an error, the
    /// same page can be requested again. Each request to a range has the time limit of a call.
    ///
    /// # Errors
    ///
    /// A read changes nothing, with any error.
    ///
    /// - [`ClientError::SnapshotTooOld`]: the versions are no longer kept. Not retryable: open a
    ///   new snapshot and scan from the beginning.
    /// - [`ClientError::Deadline`]: no replica of the range that has the state answers in time.
    ///   Retryable.
    /// - [`ClientError::Closed`] and [`ClientError::Protocol`]. Not retryable.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # use palisade_client::*; async fn example(client: Client) -> Result<(), ClientError> {
    /// let mut users = client.scan_prefix("users/");
    /// while let Some(page) = users.next_page().await? {
    ///     page.iter().for_each(|row| println!("{:?}: {:?}", row.key, row.value));
    /// }
    /// # Ok(()) }
    /// ```
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

    /// Reads all remaining rows into memory. The total size is not limited.
    ///
    /// # Errors
    ///
    /// As for [`Scan::next_page`]. The rows read so far are dropped.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # use palisade_client::*; async fn example(client: Client) -> Result<(), ClientError> {
    /// let rows = client.scan("", None).all().await?;
    /// let bytes: usize = rows.iter().map(|row| row.value.len()).sum();
    /// # Ok(()) }
    /// ```
    pub async fn all(mut self) -> Result<Vec<Row>, ClientError> {
        let mut all = Vec::new();
        while let Some(mut rows) = self.next_page().await? {
            all.append(&mut rows);
        }
        Ok(all)
    }
}

/// A scan of a transaction; see [`Transaction::scan`]. The part of the span that was read is
/// locked, with the gaps between its keys, so all pages are consistent. Each page takes one lock.
/// Pages and bounds have the limits of a [`Scan`].
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
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # use palisade_client::*;
    /// # async fn example(tx: &mut Transaction) -> Result<(), ClientError> {
    /// let last = tx.scan_prefix("events/").backward().page_rows(1).next_page().await?;
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn backward(mut self) -> Self {
        self.left = self.left.map(|span| Span { backward: true, ..span });
        self
    }

    /// Limits the rows that are read and locked at a time: from 1 to
    /// [`MAX_PAGE_ROWS`](crate::MAX_PAGE_ROWS), which is the default. The transaction's own writes
    /// in the span come on top. Rows that are read but not needed stay locked against writes by
    /// others.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # use palisade_client::*;
    /// # async fn example(tx: &mut Transaction) -> Result<(), ClientError> {
    /// let first = tx.scan_prefix("jobs/").page_rows(1).next_page().await?;
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn page_rows(mut self, max_rows: u32) -> Self {
        self.left = self.left.map(|span| Span { max_rows, ..span });
        self
    }

    /// Locks the rows against reads by others too.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # use palisade_client::*;
    /// # async fn example(tx: &mut Transaction) -> Result<(), ClientError> {
    /// let jobs = tx.scan_prefix("jobs/").for_update().all().await?;
    /// for (key, _) in jobs {
    ///     tx.put(key, "done")?;
    /// }
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn for_update(mut self) -> Self {
        self.exclusive = true;
        self
    }

    /// Returns the next keys and values, at least one, or `None` at the end of the span.
    ///
    /// # Errors
    ///
    /// As for [`Transaction::get`], except for the size of the key. After an error, the transaction
    /// does not commit. [`ClientError::SeveralRanges`] states that the rest of the span lies in
    /// another range.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # use palisade_client::*;
    /// # async fn example(tx: &mut Transaction) -> Result<(), ClientError> {
    /// let mut jobs = tx.scan_prefix("jobs/").page_rows(10);
    /// let first = jobs.next_page().await?.unwrap_or_default();
    /// # Ok(()) }
    /// ```
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

    /// Reads all remaining rows into memory. The total size is not limited.
    ///
    /// # Errors
    ///
    /// As for [`TransactionScan::next_page`].
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # use palisade_client::*;
    /// # async fn example(tx: &mut Transaction) -> Result<(), ClientError> {
    /// let jobs = tx.scan_prefix("jobs/").all().await?;
    /// # Ok(()) }
    /// ```
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
