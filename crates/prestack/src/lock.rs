//! A lock file: it is there while it is held, and for longer only if its holder was killed.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    fcntl::{FcntlArg, fcntl},
    libc,
};

/// A lock that is held. It is released when this is dropped, which removes the file, or by the
/// kernel when the process ends some other way.
#[derive(Debug)]
pub struct Lock {
    path: PathBuf,
    _file: File,
}

impl Lock {
    /// Takes the lock; `None` if someone holds it.
    ///
    /// # Errors
    /// The file cannot be made or locked.
    pub fn take(path: &Path) -> io::Result<Option<Self>> {
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(false).mode(0o600);
        loop {
            let file = options.open(path)?;
            match fcntl(&file, FcntlArg::F_OFD_SETLK(&whole_file())) {
                Ok(_) => {}
                Err(Errno::EAGAIN | Errno::EACCES) => return Ok(None),
                Err(error) => return Err(error.into()),
            }
            // Its last holder may have removed it after it was opened here: then the lock is on a
            // file that nobody else finds.
            if is_at(&file, path)? {
                return Ok(Some(Self {
                    path: path.into(),
                    _file: file,
                }));
            }
        }
    }

    /// Whether someone holds the lock.
    ///
    /// # Errors
    /// The file cannot be opened.
    pub fn is_held(path: &Path) -> io::Result<bool> {
        let file = match OpenOptions::new().write(true).open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(error),
        };
        let mut lock = whole_file();
        fcntl(&file, FcntlArg::F_OFD_GETLK(&mut lock))?;
        Ok(i32::from(lock.l_type) != libc::F_UNLCK)
    }
}

/// Whether this process holds the lock, and not another one.
///
/// # Errors
/// The file cannot be looked at, or this process may not look at that one.
pub fn is_held_by(path: &Path, pid: u32) -> io::Result<bool> {
    let there = |path: &Path| match fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        file => file.map(|file| Some((file.dev(), file.ino()))),
    };
    let Some(locked) = there(path)? else {
        return Ok(false);
    };
    let descriptors = match fs::read_dir(format!("/proc/{pid}/fd")) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        descriptors => descriptors?,
    };
    // They come and go, and so may the process.
    for descriptor in descriptors.map_while(Result::ok) {
        let number = descriptor.file_name();
        let info = format!("/proc/{pid}/fdinfo/{}", number.to_string_lossy());
        let info = fs::read_to_string(info).unwrap_or_default();
        let has_lock =
            (info.lines()).any(|line| line.starts_with("lock:") && line.contains("OFDLCK"));
        if has_lock && there(&descriptor.path())? == Some(locked) {
            return Ok(true);
        }
    }
    Ok(false)
}

impl Drop for Lock {
    fn drop(&mut self) {
        // While the lock is held, so that the file is this one: nobody else removes it. One that
        // cannot be removed is used again.
        let _ = fs::remove_file(&self.path);
    }
}

/// Whether `path` names this open file.
fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    let this = file.metadata()?;
    match fs::metadata(path) {
        Ok(there) => Ok((there.dev(), there.ino()) == (this.dev(), this.ino())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// A write lock on all of a file.
fn whole_file() -> libc::flock {
    libc::flock {
        l_type: libc::F_WRLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    }
}

#[cfg(test)]
mod tests {
    use std::{
        process::Command,
        sync::atomic::{AtomicBool, AtomicU32, Ordering},
        thread,
    };

    use super::*;

    #[test]
    fn a_lock_has_one_holder_and_leaves_no_file() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("lock");
        assert!(!Lock::is_held(&path).expect("readable"));
        let lock = Lock::take(&path).expect("usable").expect("free");
        assert!(Lock::is_held(&path).expect("readable"));
        assert!(Lock::take(&path).expect("usable").is_none());
        assert!(Lock::is_held(&path).expect("readable"));
        drop(lock);
        assert!(!path.exists());
        assert!(!Lock::is_held(&path).expect("readable"));
    }

    #[test]
    fn its_holder_is_known() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("lock");
        let mut other = Command::new("sleep").arg("60").spawn().expect("started");
        let is_held_by = |pid| is_held_by(&path, pid).expect("readable");
        let me = std::process::id();
        assert!(!is_held_by(me));
        let lock = Lock::take(&path).expect("usable").expect("free");
        assert!(is_held_by(me));
        assert!(!is_held_by(other.id()));
        other.kill().expect("killed");
        other.wait().expect("ended");
        assert!(!is_held_by(other.id()));
        // A file that is only open is not locked.
        drop(lock);
        let _file = File::create(&path).expect("made");
        assert!(!is_held_by(me));
    }

    #[test]
    fn the_file_of_a_killed_holder_is_taken_over() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("lock");
        File::create(&path).expect("made");
        assert!(!Lock::is_held(&path).expect("readable"));
        drop(Lock::take(&path).expect("usable").expect("free"));
        assert!(!path.exists());
    }

    #[test]
    fn it_has_one_holder_while_others_remove_the_file() {
        const ROUNDS: u32 = 200;
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("lock");
        let (held, rounds) = (AtomicBool::new(false), AtomicU32::new(0));
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    while rounds.load(Ordering::SeqCst) < ROUNDS {
                        if let Some(lock) = Lock::take(&path).expect("usable") {
                            assert!(!held.swap(true, Ordering::SeqCst), "two hold the lock");
                            rounds.fetch_add(1, Ordering::SeqCst);
                            thread::yield_now();
                            held.store(false, Ordering::SeqCst);
                            drop(lock);
                        }
                    }
                });
            }
        });
        assert!(!path.exists());
    }
}
