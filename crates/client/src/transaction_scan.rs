//! Scans of a transaction: the keys of a span, one page at a time, with its own writes.

use std::collections::BTreeMap;

use bytes::Bytes;
use palisade_wire::{Outcome, Rejection};

use crate::{
    ClientError, Transaction,
    calls::{Call, ReadMode, ScanSpan},
    error::unexpected,
};

impl Transaction {
    /// Returns a scan of the keys from `begin` (inclusive) to `end` (exclusive; `None` for no
    /// bound), in order. It includes this transaction's own writes. It fails if it leaves the
    /// transaction's range, so choose bounds within one range.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # use palisade_client::*;
    /// # async fn example(tx: &mut Transaction) -> Result<(), ClientError> {
    /// let users = tx.scan("users/a", Some("users/b".into())).all().await?;
    /// tx.put("users/count", users.len().to_string())?;
    /// # Ok(()) }
    /// ```
    pub fn scan(&mut self, begin: impl Into<Bytes>, end: Option<Bytes>) -> TransactionScan<'_> {
        TransactionScan::new(self, ScanSpan::new(begin.into(), end))
    }

    /// Returns a scan of the keys that begin with `prefix`. It includes this transaction's own
    /// writes.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # use palisade_client::*;
    /// # async fn example(tx: &mut Transaction) -> Result<(), ClientError> {
    /// let users = tx.scan_prefix("users/").all().await?.len();
    /// tx.put("users/count", users.to_string())?;
    /// # Ok(()) }
    /// ```
    pub fn scan_prefix(&mut self, prefix: impl Into<Bytes>) -> TransactionScan<'_> {
        TransactionScan::new(self, ScanSpan::of_prefix(prefix.into()))
    }

    /// Deletes the keys from `begin` (inclusive) to `end` (exclusive; `None` for no bound), and
    /// returns how many it deleted. Reads and locks them as [`TransactionScan::for_update`] does.
    /// The commit fails if the transaction then writes more than
    /// [`MAX_COMMIT_PARTS`](crate::MAX_COMMIT_PARTS) keys.
    ///
    /// # Errors
    ///
    /// As for [`Transaction::get`].
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # use palisade_client::*;
    /// # async fn example(tx: &mut Transaction) -> Result<(), ClientError> {
    /// let deleted = tx.delete_span("users/a", Some("users/b".into())).await?;
    /// tx.put("users/deleted", deleted.to_string())?;
    /// # Ok(()) }
    /// ```
    pub async fn delete_span(
        &mut self,
        begin: impl Into<Bytes>,
        end: Option<Bytes>,
    ) -> Result<u64, ClientError> {
        let rows = self.scan(begin, end).for_update().all().await?;
        let deleted = rows.len() as u64;
        rows.into_iter().try_for_each(|(key, _)| self.delete(key))?;
        Ok(deleted)
    }
}

/// A scan of a transaction; see [`Transaction::scan`]. The part of the span that was read is
/// locked, with the gaps between its keys, so all pages are consistent. Each page takes one lock.
/// Pages and bounds have the limits of a [`Scan`](crate::Scan).
#[derive(Debug)]
pub struct TransactionScan<'a> {
    transaction: &'a mut Transaction,
    /// The span that is still to be read; `None` at the end.
    left: Option<ScanSpan>,
    exclusive: bool,
    /// Whether the bounds have the size of a key.
    checked: Result<(), Rejection>,
}

impl<'a> TransactionScan<'a> {
    fn new(transaction: &'a mut Transaction, span: ScanSpan) -> Self {
        Self { transaction, checked: span.check(), left: Some(span), exclusive: false }
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
        self.left = self.left.map(|span| ScanSpan { backward: true, ..span });
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
        self.left = self.left.map(|span| ScanSpan { max_rows, ..span });
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
    /// As for [`Transaction::get`]. [`ClientError::SeveralRanges`] states that the rest of the span
    /// lies in another range. [`ClientError::Rejected`] with [`Rejection::KeySize`] states that a
    /// bound is longer than [`MAX_KEY_BYTES`](crate::MAX_KEY_BYTES). After any other error, the
    /// transaction does not commit.
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
        self.checked.map_err(ClientError::Rejected)?;
        while let Some(span) = self.left.clone().filter(|span| !span.is_empty()) {
            let mode = ReadMode::Locked(self.transaction.locks(&span.begin, self.exclusive));
            let call = Call::Scan { span: span.clone(), mode };
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
            let ScanSpan { begin, end, backward, .. } = covered;
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
