//! Interactive transactions, which read, compute and write.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use bytes::Bytes;
use palisade_clock::Timestamp;
use palisade_wire::{Basis, Commit, Expected, LockClaim, Outcome, check_key, check_value};

use crate::{
    Client, ClientError, TransactionScan,
    client::unexpected,
    driver::{Call, How, Locks},
    scan::after_prefix,
};

/// One try of a transaction; see [`Client::run`].
///
/// Keys that it reads are locked until it ends, and so are the gaps between the keys of a scan. Its
/// own reads see its writes at once; other clients see them after the commit.
#[derive(Debug)]
pub struct Transaction {
    client: Client,
    deadline: Instant,
    claim: LockClaim,
    /// The first key that was read or written. Its range is the transaction's range.
    anchor: Option<Bytes>,
    writes: BTreeMap<Bytes, Option<Bytes>>,
    /// True once a call has found that the locks are lost.
    is_aborted: bool,
    /// The last error of a call other than `Aborted`. `commit` returns it, because the body may
    /// have ignored it and computed from a read that failed.
    failed: Option<ClientError>,
    has_locks: bool,
}

impl Transaction {
    fn new(client: Client, deadline: Instant, start_ts: Option<Timestamp>) -> Self {
        let claim = LockClaim { owner: client.next_owner(), start_ts, token: None };
        Self {
            client,
            deadline,
            claim,
            anchor: None,
            writes: BTreeMap::new(),
            is_aborted: false,
            failed: None,
            has_locks: false,
        }
    }

    /// Reads a key and locks it against writes by others.
    ///
    /// # Errors
    ///
    /// [`ClientError::Aborted`] if the locks are lost ([`Client::run`] then runs the transaction
    /// again), [`ClientError::SeveralRanges`] if the key lies in another range than the first key,
    /// [`ClientError::Deadline`], and [`ClientError::Rejected`] if the key is empty or too long.
    pub async fn get(&mut self, key: impl Into<Bytes>) -> Result<Option<Bytes>, ClientError> {
        self.read(key.into(), false).await
    }

    /// Reads a key that will be written, and locks it against reads and writes by others. With
    /// [`Transaction::get`] followed by a write, two transactions that do the same to one key
    /// conflict, and one of them runs again. Errors: as for [`Transaction::get`].
    pub async fn get_for_update(
        &mut self,
        key: impl Into<Bytes>,
    ) -> Result<Option<Bytes>, ClientError> {
        self.read(key.into(), true).await
    }

    /// Writes a key. The write is buffered and sent with the commit.
    ///
    /// # Errors
    ///
    /// [`ClientError::Rejected`] (not retryable) if the key or the value has an invalid size.
    pub fn put(
        &mut self,
        key: impl Into<Bytes>,
        value: impl Into<Bytes>,
    ) -> Result<(), ClientError> {
        let value = value.into();
        check_value(&value).map_err(ClientError::Rejected)?;
        self.write(key.into(), Some(value))
    }

    /// Writes a key that has no value yet, or fails with [`ClientError::ConditionFailed`]. Other
    /// errors: as for [`Transaction::get`] and [`Transaction::put`].
    pub async fn insert(
        &mut self,
        key: impl Into<Bytes>,
        value: impl Into<Bytes>,
    ) -> Result<(), ClientError> {
        self.compare_and_set(key, Expected::Absent, value).await
    }

    /// Writes a key if it matches `expected`, or fails with [`ClientError::ConditionFailed`]. The
    /// transaction may continue after that. A key that this transaction has written has no version
    /// yet. Other errors: as for [`Transaction::get`] and [`Transaction::put`].
    pub async fn compare_and_set(
        &mut self,
        key: impl Into<Bytes>,
        expected: Expected,
        value: impl Into<Bytes>,
    ) -> Result<(), ClientError> {
        let key = key.into();
        let (version_ts, found) = match self.writes.get(&key) {
            Some(own) => (None, own.clone()),
            None => {
                let (version_ts, found) = self.read_locked(key.clone(), true).await?;
                (Some(version_ts), found)
            }
        };
        let holds = match &expected {
            Expected::Absent => found.is_none(),
            Expected::Value(value) => found.as_ref() == Some(value),
            Expected::Version(ts) => found.is_some() && version_ts == Some(*ts),
        };
        if !holds {
            return Err(ClientError::ConditionFailed { condition: 0 });
        }
        self.put(key, value)
    }

    /// Deletes a key. Succeeds also if the key has no value. The delete is buffered and sent with
    /// the commit. Fails with [`ClientError::Rejected`] if the key is empty or too long.
    pub fn delete(&mut self, key: impl Into<Bytes>) -> Result<(), ClientError> {
        self.write(key.into(), None)
    }

    /// Returns a scan of the keys from `begin` (inclusive) to `end` (exclusive; `None` for no
    /// bound), in order. It includes this transaction's own writes.
    pub fn scan(&mut self, begin: impl Into<Bytes>, end: Option<Bytes>) -> TransactionScan<'_> {
        TransactionScan::new(self, begin.into(), end)
    }

    /// Returns a scan of the keys that begin with `prefix`. It includes this transaction's own
    /// writes.
    pub fn scan_prefix(&mut self, prefix: impl Into<Bytes>) -> TransactionScan<'_> {
        let begin = prefix.into();
        let end = after_prefix(&begin);
        self.scan(begin, end)
    }

    /// Deletes the keys from `begin` (inclusive) to `end` (exclusive; `None` for no bound), and
    /// returns how many it deleted. The commit fails if the transaction exceeds
    /// [`MAX_COMMIT_PARTS`](crate::MAX_COMMIT_PARTS). Errors: as for [`Transaction::get`].
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

    fn write(&mut self, key: Bytes, value: Option<Bytes>) -> Result<(), ClientError> {
        check_key(&key).map_err(ClientError::Rejected)?;
        self.anchor.get_or_insert_with(|| key.clone());
        self.writes.insert(key, value);
        Ok(())
    }

    async fn read(&mut self, key: Bytes, exclusive: bool) -> Result<Option<Bytes>, ClientError> {
        if let Some(own) = self.writes.get(&key) {
            return Ok(own.clone());
        }
        Ok(self.read_locked(key, exclusive).await?.1)
    }

    async fn read_locked(
        &mut self,
        key: Bytes,
        exclusive: bool,
    ) -> Result<(Timestamp, Option<Bytes>), ClientError> {
        check_key(&key).map_err(ClientError::Rejected)?;
        let how = How::Locked(self.locks(&key, exclusive));
        match self.call(Call::Get { key, how }).await? {
            Outcome::Value { version_ts, value, .. } => Ok((version_ts, value)),
            other => Err(unexpected(&other)),
        }
    }

    /// Returns the locks to request for a read of `key`. The first key decides the range of the
    /// transaction.
    pub(crate) fn locks(&mut self, key: &Bytes, exclusive: bool) -> Locks {
        self.has_locks = true;
        let anchor = self.anchor.get_or_insert_with(|| key.clone()).clone();
        Locks { claim: self.claim, exclusive, anchor }
    }

    pub(crate) async fn call(&mut self, call: Call) -> Result<Outcome, ClientError> {
        let result = if self.is_aborted {
            Err(ClientError::Aborted)
        } else {
            self.client.call_until(call, self.deadline).await
        };
        match &result {
            Err(ClientError::Aborted) => self.is_aborted = true,
            Err(error) => self.failed = Some(error.clone()),
            Ok(_) => {}
        }
        if let Ok(Outcome::Value { basis, .. } | Outcome::Page { basis, .. }) = &result
            && let Basis::Locked(grant) = basis
        {
            self.claim = self.claim.granted(*grant);
        }
        result
    }

    /// The transaction's own writes, ordered by key.
    pub(crate) fn own(&self) -> &BTreeMap<Bytes, Option<Bytes>> {
        &self.writes
    }

    async fn commit(&mut self) -> Result<(), ClientError> {
        if let Some(error) = self.failed.take() {
            return Err(error);
        }
        let Some(anchor) = self.anchor.clone() else { return Ok(()) };
        let mut commit = Commit::new();
        for (key, value) in std::mem::take(&mut self.writes) {
            commit = match value {
                Some(value) => commit.put(key, value),
                None => commit.delete(key),
            };
        }
        if !commit.is_empty() {
            commit.check().map_err(ClientError::Rejected)?;
        }
        // Without writes and without locks there is nothing to commit.
        if commit.is_empty() && self.claim.token.is_none() {
            return Ok(());
        }
        let claim = self.claim;
        let locks = claim.token.map(|_| Locks { claim, exclusive: true, anchor });
        // From here on the outcome is the cluster's, so `drop` must not send a rollback.
        self.has_locks = false;
        match self.call(Call::Commit { commit, locks }).await? {
            Outcome::Committed { .. } => Ok(()),
            other => Err(unexpected(&other)),
        }
    }
}

impl Drop for Transaction {
    /// Releases the locks, without waiting for the answer.
    fn drop(&mut self) {
        if let Some(anchor) = self.anchor.take()
            && self.has_locks
            && !self.is_aborted
        {
            let locks = Locks { claim: self.claim, exclusive: false, anchor };
            self.client.send(Call::Rollback(locks));
        }
    }
}

/// The tries of a transaction.
#[derive(Debug)]
pub(crate) struct Tries {
    client: Client,
    timeout: Duration,
    deadline: Instant,
    /// The first try's start. It is the priority of all tries: older transactions win conflicts.
    start_ts: Option<Timestamp>,
}

impl Tries {
    pub(crate) fn new(client: Client, timeout: Duration) -> Self {
        let deadline = Instant::now() + timeout;
        Self { client, timeout, deadline, start_ts: None }
    }

    pub(crate) fn begin(&self) -> Transaction {
        Transaction::new(self.client.clone(), self.deadline, self.start_ts)
    }

    /// Ends a try. Returns the result, or `None` if the transaction must run again. No pause is
    /// needed between tries: wound-wait makes a try wait for older transactions, and its age gives
    /// it precedence over younger ones in the end.
    pub(crate) async fn end<T, E: From<ClientError>>(
        &mut self,
        mut transaction: Transaction,
        result: Result<T, E>,
    ) -> Option<Result<T, E>> {
        match result {
            Err(error) if !transaction.is_aborted => return Some(Err(error)),
            Ok(value) if !transaction.is_aborted => match transaction.commit().await {
                Ok(()) => return Some(Ok(value)),
                Err(ClientError::Aborted) => {}
                Err(error) => return Some(Err(error.into())),
            },
            _ => {}
        }
        self.start_ts = transaction.claim.start_ts;
        self.client.count_retry();
        if Instant::now() < self.deadline {
            return None;
        }
        let (after, reason) = (self.timeout, "the transaction lost its locks again and again");
        Some(Err(ClientError::Deadline { after, reason, outcome_unknown: false }.into()))
    }
}
