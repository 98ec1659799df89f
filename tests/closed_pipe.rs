//! A command whose reader closes the pipe, as `head` does, ends without a panic.
#![allow(clippy::disallowed_methods, reason = "tests run on the real machine")]

use std::{
    io::Read,
    process::{Command, Stdio},
};

#[test]
fn commands_do_not_panic_on_closed_pipe() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = dir.path().to_str().unwrap();
    let commands: [&[&str]; 4] = [
        &["sim", "--seeds", "2"],
        &["sim", "--seed", "1"],
        &["doctor", "--data-dir", path, "--json"],
        &["--help"],
    ];
    for arguments in commands {
        let mut child = Command::new(env!("CARGO_BIN_EXE_palisade"))
            .args(arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        drop(child.stdout.take());
        let mut words = String::new();
        child.stderr.take().unwrap().read_to_string(&mut words).unwrap();
        let status = child.wait().unwrap();
        assert!(status.code().is_some_and(|code| code < 2), "{arguments:?}: {status}: {words}");
        assert!(!words.contains("panicked"), "{arguments:?}: {words}");
    }
}
