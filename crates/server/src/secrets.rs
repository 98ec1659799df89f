//! Reads the file with the secret of the cluster.

use std::{
    fs, io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use palisade_wire::{ClusterSecret, KeyError};
use thiserror::Error;

/// Why the secret of the cluster cannot be used. Not retryable: the file must change.
#[derive(Debug, Error)]
pub enum SecretError {
    /// The file cannot be read.
    #[error("cannot read the secret file {path}: {source}", path = path.display())]
    Unreadable {
        /// Path of the file.
        path: PathBuf,
        /// The kernel's error.
        source: io::Error,
    },
    /// A line is not a secret.
    #[error("{path}, line {line}: {source}", path = path.display())]
    Invalid {
        /// Path of the file.
        path: PathBuf,
        /// The number of the line, from 1.
        line: usize,
        /// What is expected.
        source: KeyError,
    },
    /// The file holds no secret.
    #[error("the secret file {path} is empty", path = path.display())]
    Empty {
        /// Path of the file.
        path: PathBuf,
    },
}

/// Returns the secrets of a file, one on each line that is neither empty nor a comment.
///
/// # Errors
///
/// [`SecretError`].
pub fn read_secrets(path: &Path) -> Result<Vec<ClusterSecret>, SecretError> {
    let unreadable = |source| SecretError::Unreadable { path: path.to_owned(), source };
    let text = fs::read_to_string(path).map_err(unreadable)?;
    let mode = fs::metadata(path).map_err(unreadable)?.permissions().mode();
    if mode & 0o077 != 0 {
        tracing::warn!("other users may read {}: set its mode to 600", path.display());
    }
    let lines = (1..).zip(text.lines()).map(|(line, text)| (line, text.trim()));
    let secrets: Vec<_> = lines
        .filter(|(_, text)| !text.is_empty() && !text.starts_with('#'))
        .map(|(line, text)| {
            let invalid = |source| SecretError::Invalid { path: path.to_owned(), line, source };
            text.parse().map_err(invalid)
        })
        .collect::<Result<_, _>>()?;
    if secrets.is_empty() {
        return Err(SecretError::Empty { path: path.to_owned() });
    }
    Ok(secrets)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_read_in_order_and_errors_name_the_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secret");
        let secrets = [1, 2].map(|byte| ClusterSecret::from_bytes([byte; 32]));
        let [one, two] = secrets.each_ref().map(ClusterSecret::expose);
        fs::write(&path, format!("# new\n{one}\n\n  {two} \n")).unwrap();
        assert_eq!(read_secrets(&path).unwrap(), secrets);
        fs::write(&path, format!("{one}\nsecret\n")).unwrap();
        assert!(matches!(read_secrets(&path), Err(SecretError::Invalid { line: 2, .. })));
        fs::write(&path, "# none\n").unwrap();
        assert!(matches!(read_secrets(&path), Err(SecretError::Empty { .. })));
        fs::remove_file(&path).unwrap();
        assert!(matches!(read_secrets(&path), Err(SecretError::Unreadable { .. })));
    }
}
