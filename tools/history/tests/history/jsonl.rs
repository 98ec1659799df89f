//! The stored form: it reads back what it wrote, and reports errors in any other input.

use palisade_history::{Action, Completion, HistoryError, Operation, read_history, write_history};
use proptest::prelude::*;

use crate::script::{absent, info, read, write};

const GOOD: &str = r#"{"process":3,"start_ns":1,"end_ns":2,"type":"ok","ops":[["w","k17",6]]}"#;

fn stored(history: &[Operation]) -> Vec<u8> {
    let mut text = Vec::new();
    write_history(&mut text, history).expect("memory takes all writes");
    text
}

/// Returns the line and the reason reported for a history that must be refused.
#[track_caller]
fn malformed(text: &[u8]) -> (u64, String) {
    match read_history(text) {
        Err(HistoryError::Malformed { line, reason }) => (line, reason),
        other => panic!("expected a malformed line, got {other:?}"),
    }
}

#[test]
fn writer_output_matches_expected_layout() {
    let history = [read(5, 10, 20), write(6, 30, 40), info(absent(50, 60))];
    let expected = concat!(
        r#"{"process":1,"start_ns":10,"end_ns":20,"type":"ok","session":"1","ops":[["r","k17",5]]}"#,
        "\n",
        r#"{"process":1,"start_ns":30,"end_ns":40,"type":"ok","session":"1","ops":[["w","k17",6]]}"#,
        "\n",
        r#"{"process":1,"start_ns":50,"end_ns":60,"type":"info","session":"1","ops":[["r","k17",null]]}"#,
        "\n",
    );
    assert_eq!(String::from_utf8(stored(&history)).expect("text"), expected);
}

#[test]
fn reader_accepts_missing_session_blank_lines_and_extra_fields() {
    let expected = Operation { process: 3, ..write(6, 1, 2) };
    let more = GOOD.replace(r#""ops""#, r#""note":{"a":[1]},"session":"x","ops""#);
    let text = format!("\n{GOOD}\r\n   \n  {more}");
    let history = read_history(text.as_bytes()).expect("well-formed");
    assert_eq!(history, [expected, expected]);
}

#[test]
fn reader_reports_line_and_reason_of_malformed_input() {
    let damaged = |from: &str, to: &str| GOOD.replace(from, to);
    let cases = [
        ("nonsense".to_owned(), "not a JSON object"),
        (r#"[3,1,2,"ok",[["w","k17",6]]]"#.to_owned(), "not a JSON object"),
        ("{}".to_owned(), "missing field `process`"),
        (GOOD[..40].to_owned(), "EOF"),
        (damaged("\"ok\"", "\"maybe\""), "unknown variant `maybe`"),
        (damaged("\"w\"", "\"cas\""), "unknown variant `cas`"),
        (damaged(":3,", ":-3,"), "-3"),
        (damaged(":3,", ":4294967296,"), "4294967296"),
        (damaged(",6]", ",6.5]"), "6.5"),
        (damaged(",6]", ",null]"), "a write without a value"),
        (damaged(",6]", "]"), "length 2"),
        (damaged("k17", "17"), "key \"17\""),
        (damaged("k17", "k017"), "key \"k017\""),
        (damaged("k17", "k+17"), "key \"k+17\""),
        (damaged("k17", "k"), "key \"k\""),
        (damaged("k17", "k4294967296"), "key \"k4294967296\""),
        (damaged(r#"["w","k17",6]"#, ""), "found 0"),
        (damaged("]]", r#"],["r","k1",2]]"#), "found 2"),
    ];
    for (garbage, expected) in cases {
        let text = format!("{GOOD}\n\n{garbage}\n{GOOD}\n");
        let (line, reason) = malformed(text.as_bytes());
        assert_eq!(line, 3, "{garbage}: {reason}");
        assert!(reason.contains(expected), "{garbage}: {reason}");
        assert!(!reason.contains("at line"), "{garbage}: {reason}");
    }
}

#[test]
fn error_message_starts_with_line_number() {
    let error = read_history(&b"\nnonsense"[..]).expect_err("garbage was accepted");
    assert!(error.to_string().starts_with("line 2: not a JSON"), "{error}");
}

#[test]
fn reader_refuses_text_that_is_not_utf8() {
    let mut text = GOOD.replace("k17", "k?").into_bytes();
    for byte in &mut text {
        if *byte == b'?' {
            *byte = 0xff;
        }
    }
    assert_eq!(malformed(&text).0, 1);
}

fn operations() -> impl Strategy<Value = Operation> {
    let action = prop_oneof![
        any::<u64>().prop_map(Action::Write),
        any::<u64>().prop_map(|value| Action::Read(Some(value))),
        Just(Action::Read(None)),
    ];
    let outcome = prop_oneof![Just(Completion::Ok), Just(Completion::Fail), Just(Completion::Info)];
    (any::<u32>(), any::<u64>(), any::<u64>(), any::<u32>(), action, outcome).prop_map(
        |(process, start_ns, end_ns, key, action, outcome)| Operation {
            process,
            start_ns,
            end_ns,
            key,
            action,
            outcome,
        },
    )
}

proptest! {
    #[test]
    fn history_round_trips_through_jsonl(history in prop::collection::vec(operations(), 0..20)) {
        let text = stored(&history);
        prop_assert_eq!(read_history(text.as_slice()).expect("well-formed"), history);
    }

    #[test]
    fn reader_never_panics_on_damaged_history(
        history in prop::collection::vec(operations(), 1..4),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let mut text = stored(&history);
        for (at, byte) in damage {
            let at = at.index(text.len());
            text[at] = byte;
        }
        // Damage to a digit leaves a well-formed line, so both results are valid.
        let _either = read_history(text.as_slice());
    }

    #[test]
    fn reader_never_panics_on_random_bytes(noise in prop::collection::vec(any::<u8>(), 0..200)) {
        let _either = read_history(noise.as_slice());
    }
}
