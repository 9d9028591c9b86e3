//! The library that is preloaded into memcached, carried inside the binary.

use std::{
    env,
    ffi::OsString,
    fs::File,
    io::{self, Write as _},
    os::fd::AsRawFd as _,
    process::Command,
};

use nix::{
    fcntl::{FcntlArg, SealFlag, fcntl},
    sys::memfd::{MFdFlags, memfd_create},
};

/// The compiled library, an ELF object (`cargo xtask build` makes it).
static LIBRARY: &[u8] = include_bytes!(env!("PRESTACK_REUSEPORT_LIBRARY"));

/// The variable in which the dynamic loader finds what to preload.
const PRELOAD: &str = "LD_PRELOAD";

/// The library as a file in memory: it has no place in the file system that could be mounted without
/// execution, be out of another user's reach, or be left behind.
#[derive(Debug)]
pub struct Library(File);

impl Library {
    /// Writes the file, which stays open in the programs that this process becomes.
    ///
    /// # Errors
    /// The kernel gives none.
    pub fn new() -> io::Result<Self> {
        let mut file = File::from(memfd_create(
            c"prestack-reuseport",
            MFdFlags::MFD_ALLOW_SEALING,
        )?);
        file.write_all(LIBRARY)?;
        let all = SealFlag::F_SEAL_WRITE
            | SealFlag::F_SEAL_GROW
            | SealFlag::F_SEAL_SHRINK
            | SealFlag::F_SEAL_SEAL;
        fcntl(&file, FcntlArg::F_ADD_SEALS(all))?;
        Ok(Self(file))
    }

    /// Has the library loaded before what else is to be preloaded.
    pub fn preload(&self, command: &mut Command) {
        let mut libraries = OsString::from(format!("/proc/self/fd/{}", self.0.as_raw_fd()));
        if let Some(others) = env::var_os(PRELOAD).filter(|others| !others.is_empty()) {
            libraries.push(":");
            libraries.push(others);
        }
        command.env(PRELOAD, libraries);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_loads_it_from_memory() {
        let library = Library::new().expect("memory");
        let mut command = Command::new("cat");
        library.preload(&mut command);
        let output = command.arg("/proc/self/maps").output().expect("cat");
        let maps = String::from_utf8_lossy(&output.stdout);
        assert!(maps.contains("prestack-reuseport"), "{maps}");
        assert_eq!(String::from_utf8_lossy(&output.stderr), "");
        (&library.0).write_all(b"x").expect_err("sealed");
    }
}
