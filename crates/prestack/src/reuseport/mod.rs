//! memcached with a UDP socket for every worker thread: how it has to be started for that.

mod arguments;
mod library;
mod program;

use std::{ffi::OsString, io, os::unix::ffi::OsStrExt as _, path::Path, process::Command};

pub use library::Library;
pub use program::Unsuited;

/// Why memcached is started as it is.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum AsItIs {
    #[error("it only tells about itself")]
    Informs,
    #[error("it is not told to listen on UDP, which `-U PORT` does")]
    NoUdp,
    #[error("it listens on a unix socket alone (-s), and not on UDP")]
    UnixSocket,
    #[error(transparent)]
    Unsuited(#[from] Unsuited),
    #[error("the library for it cannot be handed over: {0}")]
    Library(#[from] io::Error),
}

/// What makes of `program` with `arguments` a memcached with a UDP socket for every worker thread. The
/// library has to stay open until it is started.
///
/// # Errors
/// That cannot be, or makes no sense.
pub fn prepare(program: &Path, arguments: &[OsString]) -> Result<(Command, Library), AsItIs> {
    let words: Vec<_> = arguments.iter().map(|word| word.as_bytes()).collect();
    let arguments = arguments::spread(&words)?;
    program::check(program)?;
    let library = Library::new()?;
    let mut command = Command::new(program);
    command.args(arguments);
    library.preload(&mut command);
    Ok((command, library))
}
