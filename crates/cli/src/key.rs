//! `palisade key`: the secret of a cluster, and the keys of its clients.

use std::{
    fs::{self, File},
    io::Write,
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use clap::{Args, Subcommand, ValueEnum};
use palisade_wire::{AccessKey, AccessRole, ClusterSecret};

use crate::{Failure, failed, output::print_error};

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Create a file with a new secret, for `secret_file` in the config of all nodes
    Create {
        /// The file to create
        file: PathBuf,
    },
    /// Create a file with a key that is derived from a secret
    Derive {
        /// What the holder of the key may do
        #[arg(long, value_enum)]
        role: RoleArgument,
        /// Which secret, from 1, if the file holds several
        #[arg(long)]
        secret: Option<usize>,
        /// The file with the secret
        secret_file: PathBuf,
        /// The file to create
        key_file: PathBuf,
    },
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum RoleArgument {
    /// Read and write
    Client,
    /// Read and write, and change ranges, members and modes
    Admin,
}

pub(crate) fn run(arguments: &Arguments) -> Result<(), Failure> {
    match &arguments.command {
        Command::Create { file } => {
            let mut bytes = [0; ClusterSecret::BYTES];
            getrandom::fill(&mut bytes).map_err(failed)?;
            create(file, &ClusterSecret::from_bytes(bytes).expose())
        }
        Command::Derive { role, secret, secret_file, key_file } => {
            let role = match role {
                RoleArgument::Client => AccessRole::Client,
                RoleArgument::Admin => AccessRole::Admin,
            };
            let secrets = palisade_server::read_secrets(secret_file).map_err(failed)?;
            let count = secrets.len();
            let number = secret.or((count == 1).then_some(1)).ok_or_else(|| {
                Failure::Usage(format!("the file holds {count} secrets: choose one with --secret"))
            })?;
            let chosen = number.checked_sub(1).and_then(|at| secrets.get(at)).ok_or_else(|| {
                Failure::Usage(format!("the file holds {count} secrets, and not {number}"))
            })?;
            create(key_file, &chosen.key(role).expose())
        }
    }
}

/// Creates a file that only its owner may read.
fn create(path: &Path, text: &str) -> Result<(), Failure> {
    let written = File::options()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .and_then(|mut file| writeln!(file, "{text}").and_then(|()| file.sync_all()));
    written.map_err(|error| Failure::Failed(format!("cannot create {}: {error}", path.display())))
}

/// Returns the key in a file, or `None` without a file.
pub(crate) fn read(file: Option<&Path>) -> Result<Option<AccessKey>, Failure> {
    let Some(path) = file else { return Ok(None) };
    let usage = |error: &dyn std::fmt::Display| {
        Failure::Usage(format!("cannot use the key file {}: {error}", path.display()))
    };
    let text = fs::read_to_string(path).map_err(|error| usage(&error))?;
    let key = text.parse().map_err(|error| usage(&error))?;
    let mode = fs::metadata(path).map_err(|error| usage(&error))?.permissions().mode();
    if mode & 0o077 != 0 {
        let path = path.display();
        print_error(format_args!("warning: other users may read {path}: set its mode to 600"));
    }
    Ok(Some(key))
}
