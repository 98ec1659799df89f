//! `palisade key`: the secret of a cluster, and the keys of its clients.

use std::{
    fs::{self, File},
    io::Write,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use clap::{Args, Subcommand, ValueEnum};
use palisade_wire::{AccessKey, AccessRole, ClusterSecret};

use crate::{Failure, failed, output::print_line};

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Create a file with a new secret, for `secret_file` in the config of all nodes
    Create {
        /// The file, which must not exist
        file: PathBuf,
    },
    /// Print a key that is derived from the last secret in a file
    Derive {
        /// What the holder of the key may do
        #[arg(long, value_enum)]
        role: RoleArgument,
        /// The file with the secret
        file: PathBuf,
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
        Command::Create { file } => create(file),
        Command::Derive { role, file } => {
            let role = match role {
                RoleArgument::Client => AccessRole::Client,
                RoleArgument::Admin => AccessRole::Admin,
            };
            let secrets = palisade_server::read_secrets(file).map_err(failed)?;
            let secret = secrets.last().expect("a file without a secret is an error");
            print_line(format_args!("{}", secret.key(role).expose()))
        }
    }
}

fn create(path: &Path) -> Result<(), Failure> {
    let mut bytes = [0; ClusterSecret::BYTES];
    getrandom::fill(&mut bytes).map_err(failed)?;
    let secret = ClusterSecret::from_bytes(bytes).expose();
    let written = File::options()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .and_then(|mut file| writeln!(file, "{secret}").and_then(|()| file.sync_all()));
    written.map_err(|error| Failure::Failed(format!("cannot create {}: {error}", path.display())))
}

/// Returns the key in a file, or `None` without a file.
pub(crate) fn read(file: Option<&Path>) -> Result<Option<AccessKey>, Failure> {
    let Some(path) = file else { return Ok(None) };
    let usage = |error: &dyn std::fmt::Display| {
        Failure::Usage(format!("cannot use the key file {}: {error}", path.display()))
    };
    let text = fs::read_to_string(path).map_err(|error| usage(&error))?;
    text.parse().map(Some).map_err(|error| usage(&error))
}
