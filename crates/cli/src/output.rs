//! Writes to standard output and standard error. Unlike `println!`, nothing here panics if the
//! reader has closed the pipe.

use std::{
    fmt::Arguments,
    io::{self, ErrorKind, Write},
};

use crate::Failure;

/// Writes a line. A closed pipe is no error: its reader, such as `head`, has all that it wants.
///
/// # Errors
///
/// [`Failure::Failed`] if the line can't be written, for example to a full disk.
pub(crate) fn print_line(line: Arguments<'_>) -> Result<(), Failure> {
    match writeln!(io::stdout().lock(), "{line}") {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(Failure::Failed(format!("cannot write the output: {error}")))
        }
        _ => Ok(()),
    }
}

/// Writes a line to standard error. If that fails, there is nowhere left to report it.
pub(crate) fn print_error(line: Arguments<'_>) {
    let _ = writeln!(io::stderr().lock(), "{line}");
}
