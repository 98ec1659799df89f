//! The executor of one shard: the state that its tasks share, and the loop of turns.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    mem, process,
    rc::Rc,
    time::Duration,
};

use palisade_clock::{BoundSource, Estimate, KernelClock};
use palisade_control::RangeDescriptor;
use palisade_replication::Append;
use palisade_shard::{
    ConnectionId, Input, PeerBody, PeerMessage, RejectionStorm, Runtime, SLOW_US, ShardEffects,
    SlowRequest,
};
use palisade_sync::Sender;
use palisade_wal::{Log, SyncPlan};
use palisade_wire::{Encode, FrameKind, PeerAddress, RangeId, Response, write_frame};

use crate::{
    framing::PartialFrames,
    inbox::Inbox,
    metrics::ShardReport,
    outbound::{Outbound, QueuedBytes},
    signal::Signal,
};

/// How long the replies of a drained shard are sent at most, in microseconds.
const SEND_REPLIES_US: u64 = 1_000_000;

/// A message between the shards of one node, or from its main thread.
#[derive(Debug)]
pub(crate) enum ShardCommand {
    /// Send a report.
    Report(tokio::sync::oneshot::Sender<ShardReport>),
    /// Show that the shard works.
    Ping(tokio::sync::oneshot::Sender<()>),
    /// A range has new replicas.
    Install(RangeDescriptor),
    /// Answer the pending requests, and stop.
    Drain,
}

/// State that the tasks of a shard's executor share. Nothing is borrowed across an await.
pub(crate) struct Executor {
    pub(crate) at: PeerAddress,
    pub(crate) clock: KernelClock,
    pub(crate) inbox: Inbox,
    pub(crate) clients: RefCell<BTreeMap<ConnectionId, Rc<Outbound>>>,
    pub(crate) peers: BTreeMap<PeerAddress, Rc<Outbound>>,
    /// Bytes of answers that wait for clients to read.
    pub(crate) queued_bytes: QueuedBytes,
    pub(crate) partial_of_clients: PartialFrames,
    pub(crate) partial_of_peers: PartialFrames,
    /// Raised when a record was appended to the log.
    pub(crate) appended: Signal,
    runtime: RefCell<Runtime<Log>>,
    siblings: Vec<Sender<ShardCommand>>,
    /// Changes that a sibling's mailbox had no room for; sent again in the next turn.
    unsent: RefCell<Vec<(usize, RangeDescriptor)>>,
    next_connection: Cell<u64>,
    /// When the shard was first seen to have drained.
    drained_us: Cell<Option<u64>>,
    /// The clock source that was last reported.
    reported_clock: Cell<Option<BoundSource>>,
    reported_refusal: Cell<bool>,
    reported_other_shape: Cell<bool>,
    reported_failure: Cell<bool>,
    /// When a slow request was last reported, and how many were not since.
    reported_slow: Cell<(u64, u64)>,
}

impl Executor {
    pub(crate) fn new(
        at: PeerAddress,
        clock: KernelClock,
        runtime: Runtime<Log>,
        siblings: Vec<Sender<ShardCommand>>,
        peers: BTreeMap<PeerAddress, Rc<Outbound>>,
    ) -> Rc<Self> {
        Rc::new(Self {
            at,
            clock,
            inbox: Inbox::default(),
            clients: RefCell::default(),
            peers,
            queued_bytes: QueuedBytes::default(),
            partial_of_clients: PartialFrames::default(),
            partial_of_peers: PartialFrames::default(),
            appended: Signal::default(),
            runtime: RefCell::new(runtime),
            siblings,
            unsent: RefCell::default(),
            next_connection: Cell::new(0),
            drained_us: Cell::new(None),
            reported_clock: Cell::new(None),
            reported_refusal: Cell::new(false),
            reported_other_shape: Cell::new(false),
            reported_failure: Cell::new(false),
            reported_slow: Cell::new((0, 0)),
        })
    }

    pub(crate) fn new_connection(&self) -> ConnectionId {
        let id = self.next_connection.get();
        self.next_connection.set(id + 1);
        ConnectionId(id)
    }

    /// Runs turns until the shard is drained.
    pub(crate) async fn run(&self) {
        let mut wake_after_us = None;
        loop {
            match wake_after_us {
                None => self.inbox.wait().await,
                Some(0) => {}
                Some(us) => {
                    let time = async {
                        glommio::timer::sleep(Duration::from_micros(us)).await;
                    };
                    futures_lite::future::or(self.inbox.wait(), time).await;
                }
            }
            let effects = self.turn();
            let wakes_us = effects.wake_after_us;
            self.carry_out(effects);
            self.maintain_log();
            let backlog_us = self.runtime.borrow().backlog_due_us();
            wake_after_us = [wakes_us, backlog_us].into_iter().flatten().min();
            if self.is_drained() {
                return;
            }
            // Let the readers run, so that the next turn processes more inputs at once.
            glommio::executor().yield_task_queue_now().await;
        }
    }

    fn turn(&self) -> ShardEffects {
        let mut runtime = self.runtime.borrow_mut();
        let effects = runtime.turn(&mut self.inbox.inputs(), self.clock.now());
        self.inbox.turn_ended();
        let shard = runtime.shard();
        if shard.is_refused() && !self.reported_refusal.replace(true) {
            tracing::error!(
                "{}: this shard's log is new, but its peers know another one at its address, which \
                 was lost. It takes no part: what it had promised is forgotten. Restore the data \
                 directory, or give the node a new number",
                self.at
            );
        }
        if let Some(peer) = shard.peer_of_other_shape()
            && !self.reported_other_shape.replace(true)
        {
            tracing::error!(
                "{}: {peer} was started with other node numbers, shards, ranges_per_mode or mode than \
                 this node: the two ignore each other. Compare their configurations",
                self.at
            );
        }
        effects
    }

    /// Maintains the log, and reports the clock's source at the same interval.
    fn maintain_log(&self) {
        let now_us = self.clock.now().monotonic_us;
        let Some(prepared) = self.runtime.borrow_mut().maintain(now_us) else { return };
        self.report_clock();
        match prepared {
            Ok(()) => self.reported_failure.set(false),
            Err(error) if !self.reported_failure.replace(true) => {
                tracing::warn!("{}: {error}; writes are refused before the log is full", self.at);
            }
            Err(_) => {}
        }
    }

    /// Reports the clock's source and error bound when the source changes. Only the first shard
    /// logs them.
    fn report_clock(&self) {
        let Estimate { bound_us, by } = self.clock.estimate();
        if self.reported_clock.replace(Some(by)) == Some(by) {
            return;
        }
        let mut runtime = self.runtime.borrow_mut();
        runtime.shard_mut().set_bound_source(by);
        if self.at.shard.0 != 0 {
            return;
        }
        match by {
            BoundSource::Kernel => {
                tracing::info!("the kernel's clock is right to within {bound_us} us");
            }
            BoundSource::ClockBound => {
                tracing::info!("ClockBound calls the clock right to within {bound_us} us");
            }
            BoundSource::Config => {
                tracing::info!("the clock is taken to be right to within {bound_us} us");
            }
            BoundSource::Unknown if runtime.shard().is_fenced(self.clock.now()) => tracing::error!(
                "no clock source knows the error of this node's clock: it serves nothing until one \
                 does; check the machine's time daemon"
            ),
            BoundSource::Unknown => tracing::warn!(
                "the kernel calls its clock unsynchronised: clock.bound_us is trusted instead, \
                 {bound_us} us, and every commit waits for about twice that; synchronise the clock"
            ),
        }
    }

    fn carry_out(&self, effects: ShardEffects) {
        let ShardEffects { appends, sends, replies, reconnects, installs, slow, storm, .. } =
            effects;
        self.write(appends);
        self.report_slow(&slow);
        if let Some(RejectionStorm { rejections, during_us, reason }) = storm {
            let seconds = during_us / 1_000_000;
            tracing::warn!(
                "{}: rejected {rejections} requests within {seconds} s, most often: {reason}",
                self.at
            );
        }
        reconnects.iter().filter_map(|at| self.peers.get(at)).for_each(|peer| peer.close());
        self.send(&sends);
        self.reply(&replies);
        for descriptor in installs {
            self.inbox.push(Input::Install(descriptor.clone()));
            let all = (0..self.siblings.len()).map(|at| (at, descriptor.clone()));
            self.unsent.borrow_mut().extend(all);
        }
        self.send_installs();
    }

    /// Writes to the log. If the log is full, the process stops, which is like a crash just before
    /// the write.
    fn write(&self, appends: Vec<(RangeId, Append)>) {
        let mut runtime = self.runtime.borrow_mut();
        if appends.is_empty() && runtime.backlog_due_us().is_none() {
            return;
        }
        let written = runtime.write(appends);
        drop(runtime);
        self.appended.raise();
        if let Err(error) = written {
            let runtime = self.runtime.borrow();
            let pinning: Vec<_> = runtime.log().pinning().take(8).map(RangeId).collect();
            tracing::error!(
                "{}: {error}; the node stops to keep its promises. Of {} segments, the first is \
                 kept for {pinning:?}",
                self.at,
                runtime.log().live_segments()
            );
            process::abort();
        }
    }

    fn send(&self, sends: &[(PeerAddress, PeerMessage)]) {
        for (to, message) in sends {
            // Frames to a peer that is unreachable or too slow are dropped. The protocols expect
            // message loss.
            if let Some(peer) = self.peers.get(to) {
                let frame = |out: &mut _| {
                    write_frame(out, FrameKind::Peer, |out| message.encode(out));
                };
                // A heartbeat may overtake other messages, as in the simulator's network.
                match message.body {
                    PeerBody::Hello(_) => peer.push_urgent(frame),
                    _ => peer.push(frame),
                };
            }
        }
        for (to, _) in sends {
            if let Some(peer) = self.peers.get(to) {
                peer.send();
            }
        }
    }

    /// Returns the time of the monotonic clock, in microseconds.
    pub(crate) fn now_us(&self) -> u64 {
        self.clock.now().monotonic_us
    }

    /// Rejects a request that the shard does not see.
    pub(crate) fn reject(&self, connection: ConnectionId, response: Response) {
        self.runtime.borrow_mut().shard_mut().record_rejected(&response);
        self.reply(&[(connection, response)]);
    }

    /// Queues answers to clients, and starts sending them.
    fn reply(&self, replies: &[(ConnectionId, Response)]) {
        let clients = self.clients.borrow();
        for (connection, response) in replies {
            let Some(client) = clients.get(connection) else { continue };
            let frame = |out: &mut _| {
                write_frame(out, FrameKind::Response, |out| response.encode(out));
            };
            if !client.push(frame) {
                // The client does not read its answers.
                client.close();
            }
        }
        for (connection, _) in replies {
            if let Some(client) = clients.get(connection) {
                client.send();
            }
        }
    }

    /// Sends range changes to the other shards. A change that finds a full mailbox is sent again in
    /// the next turn.
    fn send_installs(&self) {
        let mut unsent = self.unsent.borrow_mut();
        for (sibling, descriptor) in mem::take(&mut *unsent) {
            let command = ShardCommand::Install(descriptor.clone());
            if let Err(error) = self.siblings[sibling].try_send(command)
                && error.is_retryable()
            {
                unsent.push((sibling, descriptor));
            }
        }
    }

    /// Returns the next sync plan, or `None` if everything is durable.
    pub(crate) fn next_sync(&self) -> Option<SyncPlan> {
        self.runtime.borrow().sync_plan()
    }

    /// Copies the part at offset `at` of a plan's pages to `out`.
    pub(crate) fn copy_pages(&self, plan: &SyncPlan, at: usize, out: &mut [u8]) {
        out.copy_from_slice(&self.runtime.borrow().log().pages(plan)[at..at + out.len()]);
    }

    /// Takes in that a sync has ended, which began at `began_us` on the monotonic clock.
    pub(crate) fn synced(&self, plan: &SyncPlan, began_us: u64) {
        let took_us = self.clock.now().monotonic_us.saturating_sub(began_us);
        let mut runtime = self.runtime.borrow_mut();
        runtime.shard_mut().record_sync(took_us);
        let durable = runtime.synced(plan);
        drop(runtime);
        self.inbox.push(durable);
    }

    pub(crate) fn sync_failed(&self) {
        self.runtime.borrow_mut().log_mut().sync_failed();
    }

    /// Logs requests that took long, at most one a second.
    fn report_slow(&self, slow: &[SlowRequest]) {
        let Some(request) = slow.first() else { return };
        let (reported_us, others) = self.reported_slow.get();
        let now_us = self.clock.now().monotonic_us;
        if now_us < reported_us + SLOW_US {
            return self.reported_slow.set((reported_us, others + slow.len() as u64));
        }
        self.reported_slow.set((now_us, 0));
        let others = others + slow.len() as u64 - 1;
        let what = match *request {
            SlowRequest::Commit { range, ordered_after_us, done_after_us } => format!(
                "a commit in {range} took {} ms: {} ms in the queue, for locks and for room in the log, \
                 {} ms to replicate",
                done_after_us / 1_000,
                ordered_after_us / 1_000,
                done_after_us.saturating_sub(ordered_after_us) / 1_000
            ),
            SlowRequest::Read { range, done_after_us } => {
                format!("a read in {range} took {} ms", done_after_us / 1_000)
            }
            SlowRequest::Rejected { rejection, done_after_us } => {
                format!("a request was rejected after {} ms: {rejection}", done_after_us / 1_000)
            }
        };
        let at = self.at;
        tracing::warn!("{at}: {what}; {others} more slow requests since the last report");
    }

    /// Returns what an operator sees of the shard.
    pub(crate) fn report(&self) -> ShardReport {
        let (runtime, now) = (self.runtime.borrow(), self.clock.now());
        let shard = runtime.shard();
        let peers = self.peers.iter();
        ShardReport {
            status: shard.status(now),
            is_fenced: shard.is_fenced(now),
            is_draining: shard.is_draining(),
            connections: self.clients.borrow().len(),
            client_queued_bytes: self.queued_bytes.get(),
            peer_queued_bytes: peers.map(|(at, peer)| (*at, peer.queued_bytes())).collect(),
        }
    }

    /// Returns true if no replica needs ticks.
    pub(crate) fn is_quiet(&self) -> bool {
        self.runtime.borrow().shard().active_replicas() == 0
    }

    /// Returns true if the shard has drained, and its replies are sent. Does not wait for clients
    /// that do not read them.
    fn is_drained(&self) -> bool {
        let runtime = self.runtime.borrow();
        if !runtime.shard().is_drained() {
            return false;
        }
        let now_us = self.clock.now().monotonic_us;
        let since_us = self.drained_us.get().unwrap_or(now_us);
        self.drained_us.set(Some(since_us));
        let sent = self.clients.borrow().values().all(|client| client.is_empty());
        let ends = sent || now_us >= since_us + SEND_REPLIES_US;
        if ends {
            tracing::info!("{}: drained, leads {} ranges", self.at, runtime.shard().leaderships());
        }
        ends
    }
}
