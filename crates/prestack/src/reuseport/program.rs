//! Whether a program is a memcached that the library can do something for, found out without running it.

use std::{
    ffi::{CString, OsStr},
    fs, io,
    os::unix::{ffi::OsStrExt as _, fs::MetadataExt as _},
    path::Path,
    ptr,
};

use nix::libc;
use object::{
    Architecture, LittleEndian, Object as _,
    read::elf::{ElfFile64, ProgramHeader as _},
};

/// The functions that the library stands before.
const FUNCTIONS: [&str; 2] = ["bind", "dup"];

/// The setting that says how many threads serve a UDP port: `stats settings` shows it by this name.
const SETTING: &[u8] = b"num_threads_per_udp";

/// Why it cannot.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum Unsuited {
    #[error("it cannot be read: {0}")]
    Unreadable(#[from] io::Error),
    #[error("it is no program for x86-64, but perhaps a script that starts one: name that one")]
    NotElf,
    #[error(
        "it is linked statically, or for another C library than glibc, and so loads no library"
    )]
    NotGlibc,
    #[error("it gains privileges when started, and so loads no library of others")]
    Privileged,
    #[error("it does not call `{0}` of the C library, as memcached 1.6 does")]
    NoCall(&'static str),
    #[error("it has no setting `num_threads_per_udp`, as memcached 1.6 has")]
    NotMemcached,
}

/// Looks into the program.
///
/// # Errors
/// It is none that the library can do something for.
pub fn check(program: &Path) -> Result<(), Unsuited> {
    check_file(&fs::read(program)?)?;
    if gains_privileges(program)? {
        return Err(Unsuited::Privileged);
    }
    Ok(())
}

fn check_file(bytes: &[u8]) -> Result<(), Unsuited> {
    let not_elf = |_| Unsuited::NotElf;
    let file = ElfFile64::<LittleEndian>::parse(bytes).map_err(not_elf)?;
    if file.architecture() != Architecture::X86_64 {
        return Err(Unsuited::NotElf);
    }
    let loader = file
        .elf_program_headers()
        .iter()
        .find_map(|header| header.interpreter(LittleEndian, bytes).ok()?);
    let loader = loader.map(|path| Path::new(OsStr::from_bytes(path)));
    let is_glibcs = |name: &OsStr| name.as_bytes().starts_with(b"ld-linux");
    if !loader.and_then(Path::file_name).is_some_and(is_glibcs) {
        return Err(Unsuited::NotGlibc);
    }
    let imports = file.imports().map_err(not_elf)?;
    for function in FUNCTIONS {
        if !imports
            .iter()
            .any(|import| import.name() == function.as_bytes())
        {
            return Err(Unsuited::NoCall(function));
        }
    }
    if !bytes.windows(SETTING.len()).any(|window| window == SETTING) {
        return Err(Unsuited::NotMemcached);
    }
    Ok(())
}

/// Whether the program may run with more privileges than its user has: the loader then takes no library
/// from the environment.
fn gains_privileges(program: &Path) -> io::Result<bool> {
    const SET_ID: u32 = libc::S_ISUID | libc::S_ISGID;
    if fs::metadata(program)?.mode() & SET_ID != 0 {
        return Ok(true);
    }
    let path = CString::new(program.as_os_str().as_bytes())?;
    let attribute = c"security.capability";
    // SAFETY: both strings end in zero, and nothing is written where there is no room.
    let len = unsafe { libc::getxattr(path.as_ptr(), attribute.as_ptr(), ptr::null_mut(), 0) };
    Ok(len > 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    const MEMCACHED: &str = "/usr/bin/memcached";

    #[test]
    fn memcached_is_understood() {
        check(Path::new(MEMCACHED)).expect("stock memcached");
    }

    #[test]
    fn others_are_not() {
        let script = check_file(b"#!/bin/sh\nexec memcached\n");
        assert!(matches!(script, Err(Unsuited::NotElf)));
        let missing = check(Path::new("/nonexistent"));
        assert!(matches!(missing, Err(Unsuited::Unreadable(_))));
        let cat = check(Path::new("/bin/cat"));
        assert!(matches!(cat, Err(Unsuited::NoCall(_))), "{cat:?}");
    }

    /// Stock memcached, but for one thing.
    #[test]
    fn every_condition_counts() {
        let changed = |from: &[u8], to: &[u8]| {
            let mut bytes = fs::read(MEMCACHED).expect("stock memcached");
            let mut at = 0;
            while let Some(next) = bytes[at..].windows(from.len()).position(|w| w == from) {
                at += next;
                bytes[at..at + to.len()].copy_from_slice(to);
            }
            check_file(&bytes)
        };
        let musl = changed(b"/ld-linux-x86-64", b"/ld-musl-x86-64.");
        assert!(matches!(musl, Err(Unsuited::NotGlibc)), "{musl:?}");
        let no_dup = changed(b"dup\0", b"dop\0");
        assert!(matches!(no_dup, Err(Unsuited::NoCall("dup"))), "{no_dup:?}");
        let setting = changed(SETTING, b"num_processes");
        assert!(
            matches!(setting, Err(Unsuited::NotMemcached)),
            "{setting:?}"
        );
        let arm = changed(b"\x03\0\x3e\0\x01\0\0\0", b"\x03\0\xb7\0\x01\0\0\0");
        assert!(matches!(arm, Err(Unsuited::NotElf)), "{arm:?}");
    }

    #[test]
    fn a_program_that_gains_privileges_is_left_alone() {
        let copy = tempfile::NamedTempFile::new().expect("a file");
        fs::copy(MEMCACHED, copy.path()).expect("copied");
        check(copy.path()).expect("a copy is as good");
        fs::set_permissions(copy.path(), fs::Permissions::from_mode(0o4755)).expect("ours");
        let privileged = check(copy.path());
        assert!(
            matches!(privileged, Err(Unsuited::Privileged)),
            "{privileged:?}"
        );
    }
}
