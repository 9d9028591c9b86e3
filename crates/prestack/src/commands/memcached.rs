//! `prestack memcached`.

use std::{
    convert::Infallible,
    env, io,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use nix::unistd::{AccessFlags, access};
use tracing::{info, warn};

use crate::{
    cli::MemcachedArgs,
    reuseport::{self, AsItIs},
};

/// Why memcached does not run.
#[derive(Debug, thiserror::Error)]
enum StartError {
    #[error("there is no {0} in PATH: install memcached, or name it with --binary")]
    NotFound(PathBuf),
    #[error("cannot start {}: {source}", .program.display())]
    Failed { program: PathBuf, source: io::Error },
}

/// Becomes memcached.
///
/// # Errors
/// There is none, or it cannot be started.
pub fn memcached(args: &MemcachedArgs) -> anyhow::Result<Infallible> {
    let program = find(&args.binary).ok_or_else(|| StartError::NotFound(args.binary.clone()))?;
    // What is not there or not to be started is not looked into.
    if let Err(errno) = access(&program, AccessFlags::X_OK) {
        let source = errno.into();
        return Err(StartError::Failed { program, source }.into());
    }
    let source = match reuseport::prepare(&program, &args.arguments) {
        Ok((mut command, _library)) => {
            info!(
                "starting {} with a UDP socket for every worker thread",
                program.display()
            );
            command.exec()
        }
        Err(reason) => {
            if !matches!(reason, AsItIs::Informs) {
                warn!("starting {} as it is: {reason}", program.display());
            }
            Command::new(&program).args(&args.arguments).exec()
        }
    };
    Err(StartError::Failed { program, source }.into())
}

/// The program that a shell would start by this name.
fn find(name: &Path) -> Option<PathBuf> {
    if name.components().count() > 1 {
        return Some(name.to_owned());
    }
    env::split_paths(&env::var_os("PATH")?)
        .map(|folder| folder.join(name))
        .find(|path| path.is_file() && access(path, AccessFlags::X_OK).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_found_as_by_a_shell() {
        assert!(find(Path::new("sh")).is_some_and(|path| path.is_absolute()));
        assert_eq!(find(Path::new("no-such-program")), None);
        for path in ["/no/such/program", "./program"] {
            assert_eq!(find(Path::new(path)), Some(path.into()));
        }
    }
}
