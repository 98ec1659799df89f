//! Runs the files in `transcripts/` against a shard in both modes. Each shows one anomaly:
//! the steps of several client sessions, and the expected answer of each step.
//!
//! A line is `[session] command -> answer`; text after `#` is a comment. A command without a
//! session is a transaction by itself. The answer `waits` means that the step is pending; a later
//! line `session resumes` gives its answer.
#![allow(missing_docs, reason = "a test")]
#![allow(clippy::disallowed_methods, reason = "reads the scripts")]

mod support;

use std::{collections::BTreeMap, fs, path::Path};

use bytes::Bytes;
use palisade_clock::{Interval, Now, Timestamp};
use palisade_shard::{ConnectionId, Input, Shard};
use palisade_wire::{
    Basis, Commit, CommitRequest, LockClaim, Locking, Mode, Operation, Outcome, RangeId, ReadKind,
    Rejection, Request, ScanRequest, SessionId, TxnId,
};
use support::shard_alone;

const RANGE: RangeId = RangeId(1);

struct Stage {
    shard: Shard,
    now: Now,
    appends: u64,
    next_number: u64,
    sessions: BTreeMap<String, Session>,
    /// Outcomes by request id, until a step takes them.
    answers: BTreeMap<u64, Outcome>,
    marks: BTreeMap<String, Timestamp>,
}

/// Client state of a transaction or a snapshot.
struct Session {
    claim: LockClaim,
    writes: BTreeMap<String, Option<String>>,
    /// The kind of its reads, or `None` for locked reads.
    kind: Option<ReadKind>,
    waits_for: Option<u64>,
}

impl Stage {
    fn new(mode: Mode) -> Self {
        let now = Now { monotonic_us: 1, wall: Interval::around(1_000_000_000, 10) };
        let shard = shard_alone(mode, 1 << 20, now);
        let mut stage = Self {
            shard,
            now,
            appends: 0,
            next_number: 0,
            sessions: BTreeMap::new(),
            answers: BTreeMap::new(),
            marks: BTreeMap::new(),
        };
        stage.pass(50_000);
        stage
    }

    /// Advances the time, with ticks and turns.
    fn pass(&mut self, us: u64) {
        const STEP_US: u64 = 10_000;
        for _ in 0..us.div_ceil(STEP_US) {
            self.shard.step(Input::Tick, self.now);
            self.advance(STEP_US);
            self.settle();
        }
    }

    fn advance(&mut self, us: u64) {
        self.now.monotonic_us += us;
        let reading_us = self.now.wall.reading_us() + us;
        self.now.wall = Interval::around(reading_us, 10);
    }

    /// Runs turns, each made durable at once, until only time can bring further replies.
    fn settle(&mut self) {
        for _ in 0..6 {
            self.advance(10);
            let effects = self.shard.end_turn(self.now);
            self.appends += effects.appends.len() as u64;
            self.shard.step(Input::Durable { appends: self.appends }, self.now);
            let replies = effects.replies.into_iter();
            self.answers.extend(replies.map(|(_, reply)| (reply.request_id, reply.outcome)));
        }
    }

    fn number(&mut self) -> u64 {
        self.next_number += 1;
        self.next_number
    }

    fn ask(&mut self, operation: Operation) -> u64 {
        let request_id = self.number();
        let request = Request::new(request_id, operation);
        self.shard.step(Input::Request { connection: ConnectionId(1), request }, self.now);
        self.settle();
        request_id
    }

    fn commit(&mut self, commit: Commit, claim: Option<LockClaim>) -> u64 {
        let txn = TxnId { session: SessionId(1), sequence: self.number() };
        let expires_ts = Timestamp::from_physical_us(self.now.wall.latest_us + 60_000_000);
        let request = CommitRequest { txn, settled_below: 0, expires_ts, commit };
        self.ask(Operation::Commit { range: RANGE, request, claim })
    }

    /// Executes one line and returns its answer.
    fn step(&mut self, line: &str) -> String {
        let words: Vec<_> = line.split_whitespace().collect();
        match words[..] {
            ["put", key, value] => {
                let id = self.commit(Commit::new().put(bytes(key), bytes(value)), None);
                self.answer_alone(id)
            }
            ["get", key] => {
                let key = bytes(key);
                let id = self.ask(Operation::Get { range: RANGE, key, kind: ReadKind::Latest });
                self.answer_alone(id)
            }
            ["mark", name] => {
                self.marks
                    .insert(name.to_owned(), Timestamp::from_physical_us(self.now.wall.latest_us));
                self.advance(50);
                String::new()
            }
            ["pass", seconds] => {
                self.pass(seconds.parse::<u64>().expect("seconds") * 1_000_000);
                String::new()
            }
            [name, "begin"] => self.open(name, None, None),
            [name, "snapshot"] => self.open(name, None, Some(ReadKind::Snapshot)),
            [name, "past", mark] => {
                let kind = ReadKind::AsOf(self.marks[mark]);
                self.open(name, None, Some(kind))
            }
            [name, "again"] => {
                let start_ts = self.sessions[name].claim.start_ts;
                self.open(name, start_ts, None)
            }
            [name, "resumes"] => self.answer(name),
            [name, ref command @ ..] => {
                self.of_session(name, command);
                self.answer(name)
            }
            [] => unreachable!("empty lines are left out"),
        }
    }

    fn open(&mut self, name: &str, start_ts: Option<Timestamp>, kind: Option<ReadKind>) -> String {
        let owner = TxnId { session: SessionId(2), sequence: self.number() };
        let claim = LockClaim { owner, start_ts, token: None };
        let session = Session { claim, writes: BTreeMap::new(), kind, waits_for: None };
        self.sessions.insert(name.to_owned(), session);
        String::new()
    }

    fn of_session(&mut self, name: &str, command: &[&str]) {
        let session = self.sessions.get_mut(name).unwrap_or_else(|| panic!("{name} begins first"));
        let claim = session.claim;
        let locking = |exclusive| ReadKind::Locking(Locking { claim, exclusive });
        let kind = session.kind.unwrap_or(locking(false));
        let id = match command {
            ["put", key, value] => {
                session.writes.insert((*key).to_owned(), Some((*value).to_owned()));
                return;
            }
            ["delete", key] => {
                session.writes.insert((*key).to_owned(), None);
                return;
            }
            ["get", key] => self.ask(Operation::Get { range: RANGE, key: bytes(key), kind }),
            ["get_for_update", key] => {
                let kind = locking(true);
                self.ask(Operation::Get { range: RANGE, key: bytes(key), kind })
            }
            ["scan", begin, end] => {
                let (begin, end) = (bytes(begin), Some(bytes(end)));
                let scan = ScanRequest { range: RANGE, begin, end, backward: false, max_rows: 99 };
                self.ask(Operation::Scan { scan, kind })
            }
            ["rollback"] => self.ask(Operation::Rollback { range: RANGE, claim }),
            ["commit"] => {
                let mut commit = Commit::new();
                for (key, value) in std::mem::take(&mut session.writes) {
                    commit = match value {
                        Some(value) => commit.put(key, value),
                        None => commit.delete(key),
                    };
                }
                let claim = claim.token.map(|_| claim);
                self.commit(commit, claim)
            }
            other => panic!("{other:?} is no command"),
        };
        self.sessions.get_mut(name).expect("it was there").waits_for = Some(id);
    }

    /// Returns the answer of the last step of a session.
    fn answer(&mut self, name: &str) -> String {
        let session = self.sessions.get_mut(name).expect("it has begun");
        let Some(id) = session.waits_for else { return String::new() };
        let Some(outcome) = self.answers.remove(&id) else { return "waits".to_owned() };
        session.waits_for = None;
        if let Outcome::Value { basis, .. } | Outcome::Page { basis, .. } = &outcome {
            match basis {
                Basis::Locked(grant) => session.claim = session.claim.granted(*grant),
                Basis::AsOf(at_ts) => session.kind = Some(ReadKind::AsOf(*at_ts)),
                Basis::Latest => {}
            }
        }
        text(&outcome)
    }

    /// Returns the answer of a step without a session. Such a step cannot resume later.
    fn answer_alone(&mut self, id: u64) -> String {
        self.answers.remove(&id).map_or("waits".to_owned(), |outcome| text(&outcome))
    }
}

fn bytes(word: &str) -> Bytes {
    Bytes::copy_from_slice(word.as_bytes())
}

fn text(outcome: &Outcome) -> String {
    let of = |bytes: &Bytes| String::from_utf8_lossy(bytes).into_owned();
    match outcome {
        Outcome::Committed { .. } | Outcome::RolledBack => "ok".to_owned(),
        Outcome::Value { value, .. } => value.as_ref().map_or("none".to_owned(), of),
        Outcome::Page { page, .. } if page.rows.is_empty() => "nothing".to_owned(),
        Outcome::Page { page, .. } => {
            let rows = page.rows.iter().map(|row| format!("{}={}", of(&row.key), of(&row.value)));
            rows.collect::<Vec<_>>().join(" ")
        }
        Outcome::Rejected(Rejection::Aborted) => "aborted".to_owned(),
        Outcome::Rejected(Rejection::Locked) => "timed out".to_owned(),
        other => format!("{other:?}"),
    }
}

fn play(path: &Path, mode: Mode) -> usize {
    let script = fs::read_to_string(path).expect("a script");
    let mut stage = Stage::new(mode);
    let mut steps = 0;
    for (number, line) in script.lines().enumerate() {
        let line = line.split('#').next().unwrap_or_default().trim();
        if line.is_empty() {
            continue;
        }
        let (command, expected) = line.split_once("->").unwrap_or((line, ""));
        let answer = stage.step(command.trim());
        let place = format!("{}:{} in {mode} mode", path.display(), number + 1);
        assert_eq!(answer, expected.trim(), "{place}: {}", command.trim());
        steps += 1;
    }
    steps
}

#[test]
fn transcripts_replay_as_recorded() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/transcripts");
    let mut scripts: Vec<_> = fs::read_dir(dir)
        .expect("the scripts")
        .map(|entry| entry.expect("an entry").path())
        .collect();
    scripts.sort();
    assert!(scripts.len() >= 16, "there were more of them");
    for script in scripts {
        for mode in [Mode::Raft, Mode::Chain] {
            assert!(play(&script, mode) > 4, "{} does nothing", script.display());
        }
    }
}
