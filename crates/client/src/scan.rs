//! Scans: the keys of a span, one page at a time.

use bytes::Bytes;
use palisade_wire::{Commit, Outcome, Page, Rejection, Row};

use crate::{Client, ClientError, Snapshot, calls::ScanSpan, error::unexpected};

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
    /// [`Transaction::delete_span`](crate::Transaction::delete_span) is atomic.
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

impl Snapshot {
    /// Returns a scan of the keys from `begin` (inclusive) to `end` (exclusive; `None` for no
    /// bound), in order, over all ranges. It reads nothing yet.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # use palisade_client::*; async fn example(client: Client) -> Result<(), ClientError> {
    /// let rows = client.snapshot().scan("users/a", Some("users/b".into())).all().await?;
    /// # Ok(()) }
    /// ```
    pub fn scan(&self, begin: impl Into<Bytes>, end: Option<Bytes>) -> Scan {
        Scan::new(self.clone(), ScanSpan::new(begin.into(), end))
    }

    /// Returns a scan of the keys that begin with `prefix`. It reads nothing yet.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # use palisade_client::*; async fn example(client: Client) -> Result<(), ClientError> {
    /// let rows = client.snapshot().scan_prefix("users/").all().await?;
    /// # Ok(()) }
    /// ```
    pub fn scan_prefix(&self, prefix: impl Into<Bytes>) -> Scan {
        Scan::new(self.clone(), ScanSpan::of_prefix(prefix.into()))
    }
}

/// A scan of a snapshot; see [`Client::scan`]. All pages are at one timestamp.
///
/// A page has at least one row, all of one range. It ends after
/// [`MAX_PAGE_ROWS`](crate::MAX_PAGE_ROWS) rows, or once its keys and values have
/// [`MAX_PAGE_BYTES`](crate::MAX_PAGE_BYTES) bytes. A bound may be empty, and has at most
/// [`MAX_KEY_BYTES`](crate::MAX_KEY_BYTES) bytes.
#[derive(Clone, Debug)]
pub struct Scan {
    snapshot: Snapshot,
    /// The span that is still to be read; `None` at the end.
    left: Option<ScanSpan>,
    /// Whether the bounds have the size of a key.
    checked: Result<(), Rejection>,
}

impl Scan {
    fn new(snapshot: Snapshot, span: ScanSpan) -> Self {
        Self { snapshot, checked: span.check(), left: Some(span) }
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
        self.left = self.left.map(|span| ScanSpan { backward: true, ..span });
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
        self.left = self.left.map(|span| ScanSpan { max_rows, ..span });
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
    /// - [`ClientError::Rejected`] with [`Rejection::KeySize`]: a bound is longer than
    ///   [`MAX_KEY_BYTES`](crate::MAX_KEY_BYTES). Not retryable.
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
        self.checked.map_err(ClientError::Rejected)?;
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
