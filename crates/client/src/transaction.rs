//! Interactive transactions, which read, compute and write.

use std::{collections::BTreeMap, time::Instant};

use bytes::Bytes;
use palisade_clock::Timestamp;
use palisade_wire::{Basis, Commit, Expected, LockClaim, Outcome, check_key, check_value};

use crate::{
    Client, ClientError,
    calls::{Call, Locks, ReadMode},
    error::unexpected,
};

impl Client {
    /// Runs a transaction: reads, then writes, in one range, atomically and strictly serializable.
    /// Other clients see its writes only after the commit, and cannot change what it has read.
    ///
    /// `body` is run again from its start if the transaction loses its locks, to an older
    /// transaction or to a change of leader. So `body` should have no effects beside calls of the
    /// transaction. A transaction loses its locks after 5 seconds without a call. If `body` returns
    /// an error, the transaction is rolled back. An error that it returns after the loss of the
    /// locks is discarded, because `body` runs again. All tries together end by the client's
    /// deadline, apart from the time that `body` itself takes.
    ///
    /// Waits for locks of older transactions, and for the commit as [`Client::commit`] does. A
    /// transaction holds at most 16,384 locks: one for each key that it reads, and one for each
    /// page of a scan.
    ///
    /// # Errors
    ///
    /// - The errors of `body`. Nothing was changed.
    /// - The last error of a call in `body` other than [`ClientError::Aborted`], even if `body`
    ///   ignored it. Nothing was changed. Errors of sizes and conditions are excepted.
    /// - [`ClientError::Deadline`]: the time limit passed. Retryable. Its field `outcome_unknown`
    ///   states whether the commit may have taken effect.
    /// - Those of [`Client::commit`], except for a failed condition. The limits on the size of a
    ///   commit hold for all writes of the transaction.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # use palisade_client::*; async fn example(client: Client) -> Result<(), ClientError> {
    /// let visits = client
    ///     .run(async |tx: &mut Transaction| {
    ///         let before = tx.get_for_update("visits").await?;
    ///         let visits = before.map_or(0, |before| before.len()) + 1;
    ///         tx.put("visits", "*".repeat(visits))?;
    ///         Ok::<_, ClientError>(visits)
    ///     })
    ///     .await?;
    /// # Ok(()) }
    /// ```
    pub async fn run<T, E: From<ClientError>>(
        &self,
        mut body: impl AsyncFnMut(&mut Transaction) -> Result<T, E>,
    ) -> Result<T, E> {
        let mut tries = Tries::new(self.clone());
        loop {
            let mut transaction = tries.begin();
            let result = body(&mut transaction).await;
            if let Some(result) = tries.end(transaction, result).await {
                return result;
            }
        }
    }
}

/// One try of a transaction; see [`Client::run`].
///
/// Keys that it reads are locked until it ends, and so are the gaps between the keys of a scan. Its
/// own reads see its writes at once; other clients see them after the commit. All its keys must lie
/// in the range of the first one. Its writes are buffered in memory: at most
/// [`MAX_COMMIT_PARTS`](crate::MAX_COMMIT_PARTS) keys, and
/// [`MAX_COMMIT_BYTES`](crate::MAX_COMMIT_BYTES) bytes of keys and values.
///
/// All calls of all tries share the deadline of [`Client::run`].
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

    /// Reads a key and locks it against writes by others. Waits for the locks of older
    /// transactions, and takes those of younger ones. Reads the transaction's own write of the key
    /// without a call.
    ///
    /// # Errors
    ///
    /// Nothing was changed, and nothing will be: after any of these errors except for the last, the
    /// transaction does not commit.
    ///
    /// - [`ClientError::Aborted`]: the locks are lost. Retryable as a new transaction, which
    ///   [`Client::run`] starts.
    /// - [`ClientError::SeveralRanges`]: the key lies in another range than the first key. Not
    ///   retryable.
    /// - [`ClientError::Deadline`]: no answer in time, others hold the locks for too long, or the
    ///   transaction has too many. Retryable as a new transaction.
    /// - [`ClientError::Closed`] and [`ClientError::Protocol`]. Not retryable.
    /// - [`ClientError::Rejected`] with [`Rejection::KeySize`](crate::Rejection::KeySize): the key
    ///   is empty or longer than [`MAX_KEY_BYTES`](crate::MAX_KEY_BYTES). Not retryable.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # use palisade_client::*;
    /// # async fn example(tx: &mut Transaction) -> Result<(), ClientError> {
    /// let greeting = tx.get("greeting").await?.unwrap_or_else(|| "hello".into());
    /// tx.put("greeting/copy", greeting)?;
    /// # Ok(()) }
    /// ```
    pub async fn get(&mut self, key: impl Into<Bytes>) -> Result<Option<Bytes>, ClientError> {
        self.read(key.into(), false).await
    }

    /// Reads a key that will be written, and locks it against reads and writes by others. With
    /// [`Transaction::get`] followed by a write, two transactions that do the same to one key
    /// conflict, and one of them runs again.
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
    /// let length = tx.get_for_update("key").await?.map_or(0, |value| value.len());
    /// tx.put("key", vec![b'x'; length + 1])?;
    /// # Ok(()) }
    /// ```
    pub async fn get_for_update(
        &mut self,
        key: impl Into<Bytes>,
    ) -> Result<Option<Bytes>, ClientError> {
        self.read(key.into(), true).await
    }

    /// Writes a key. The write is buffered and sent with the commit. Waits for nothing.
    ///
    /// # Errors
    ///
    /// [`ClientError::Rejected`] with [`Rejection::KeySize`](crate::Rejection::KeySize) or
    /// [`Rejection::ValueSize`](crate::Rejection::ValueSize): a key has 1 to
    /// [`MAX_KEY_BYTES`](crate::MAX_KEY_BYTES) bytes, a value at most
    /// [`MAX_VALUE_BYTES`](crate::MAX_VALUE_BYTES). The write is not buffered. Not retryable.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # use palisade_client::*;
    /// # async fn example(tx: &mut Transaction) -> Result<(), ClientError> {
    /// tx.put("key", "value")?;
    /// assert_eq!(tx.get("key").await?.unwrap(), "value");
    /// # Ok(()) }
    /// ```
    pub fn put(
        &mut self,
        key: impl Into<Bytes>,
        value: impl Into<Bytes>,
    ) -> Result<(), ClientError> {
        let value = value.into();
        check_value(&value).map_err(ClientError::Rejected)?;
        self.write(key.into(), Some(value))
    }

    /// Writes a key that has no value yet. Reads the key as [`Transaction::get_for_update`] does.
    ///
    /// # Errors
    ///
    /// - [`ClientError::ConditionFailed`]: the key has a value. The transaction may continue. Not
    ///   retryable in the same transaction.
    /// - As for [`Transaction::get`] and [`Transaction::put`].
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # use palisade_client::*;
    /// # async fn example(tx: &mut Transaction) -> Result<(), ClientError> {
    /// if let Err(ClientError::ConditionFailed { .. }) = tx.insert("key", "first").await {
    ///     tx.put("key", "second")?;
    /// }
    /// # Ok(()) }
    /// ```
    pub async fn insert(
        &mut self,
        key: impl Into<Bytes>,
        value: impl Into<Bytes>,
    ) -> Result<(), ClientError> {
        self.compare_and_set(key, Expected::Absent, value).await
    }

    /// Writes a key if it matches `expected`. Reads the key as [`Transaction::get_for_update`]
    /// does. A key that this transaction has written has no version yet.
    ///
    /// # Errors
    ///
    /// As for [`Transaction::insert`]. [`ClientError::ConditionFailed`] states that the key does
    /// not match.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # use palisade_client::*;
    /// # async fn example(tx: &mut Transaction) -> Result<(), ClientError> {
    /// tx.compare_and_set("state", Expected::Value("ready".into()), "running").await?;
    /// # Ok(()) }
    /// ```
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
    /// the commit. Waits for nothing.
    ///
    /// # Errors
    ///
    /// [`ClientError::Rejected`] with [`Rejection::KeySize`](crate::Rejection::KeySize), as for
    /// [`Transaction::put`]. Not retryable.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # use palisade_client::*;
    /// # async fn example(tx: &mut Transaction) -> Result<(), ClientError> {
    /// tx.delete("key")?;
    /// # Ok(()) }
    /// ```
    pub fn delete(&mut self, key: impl Into<Bytes>) -> Result<(), ClientError> {
        self.write(key.into(), None)
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
        let mode = ReadMode::Locked(self.locks(&key, exclusive));
        match self.call(Call::Get { key, mode }).await? {
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
    deadline: Instant,
    /// The first try's start. It is the priority of all tries: older transactions win conflicts.
    start_ts: Option<Timestamp>,
}

impl Tries {
    pub(crate) fn new(client: Client) -> Self {
        Self { deadline: client.deadline(), client, start_ts: None }
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
        self.client.count_rerun();
        if Instant::now() < self.deadline {
            return None;
        }
        let after = self.client.timeout;
        let reason = "the transaction lost its locks again and again";
        Some(Err(ClientError::Deadline { after, reason, outcome_unknown: false }.into()))
    }
}
