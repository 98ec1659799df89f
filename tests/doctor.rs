//! `palisade doctor`: the checks of a machine and a data directory.
#![allow(clippy::disallowed_methods, reason = "tests run on the real machine")]

use std::process::{Command, Output};

fn doctor(dir: &str, json: bool) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_palisade"));
    command.args(["doctor", "--data-dir", dir]);
    if json {
        command.arg("--json");
    }
    command.output().unwrap()
}

fn verdict(output: &Output, check: &str) -> String {
    let findings: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let all = findings.as_array().unwrap();
    let found = all.iter().find(|finding| finding["check"] == check);
    found.unwrap_or_else(|| panic!("{check} was not looked at"))["verdict"]
        .as_str()
        .unwrap()
        .to_owned()
}

#[test]
fn doctor_reports_all_checks_and_leaves_directory_unchanged() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = dir.path().to_str().unwrap();
    let output = doctor(path, true);
    // Other tests run nodes on this machine, so these checks must not find it unsafe.
    for check in ["kernel", "io_uring", "sync of 4 KiB"] {
        assert_ne!(verdict(&output, check), "unsafe", "{check}");
    }
    assert_eq!(std::fs::read_dir(path).unwrap().count(), 0);
    let table = String::from_utf8(doctor(path, false).stdout).unwrap();
    for check in [
        "clock",
        "suspension",
        "cores",
        "open files",
        "swap",
        "file system",
        "room",
        "direct writes",
    ] {
        assert!(table.contains(check), "{check} is missing in\n{table}");
    }
}

#[test]
fn doctor_rejects_volatile_file_system_and_missing_directory() {
    let output = doctor("/dev/shm", true);
    assert_eq!(verdict(&output, "file system"), "unsafe");
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("file system"));
    assert_eq!(doctor("/nowhere", false).status.code(), Some(2));
}
