//! What is said on standard output and standard error, where nobody may listen any more.

use std::io::{self, Write, stderr, stdout};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result};

/// Notes so far, for those who read the results later.
static NOTES: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// Prints results, and the end of their last line.
///
/// # Errors
/// When standard output takes nothing; but not when its reader, such as `head`, has seen enough.
pub(crate) fn print(text: &str) -> Result<()> {
    print_to(&mut stdout(), text)
}

fn print_to(out: &mut impl Write, text: &str) -> Result<()> {
    match writeln!(out, "{text}").and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        printed => printed.context("cannot write to standard output"),
    }
}

/// Says something on standard error, if anybody listens there.
pub(crate) fn say(text: &str) {
    let _ = writeln!(stderr(), "{text}");
}

/// Says something that is to be known of the results, and keeps it for them.
pub(crate) fn note(text: String) {
    say(&format!("note: {text}"));
    let mut notes = NOTES.lock().unwrap_or_else(PoisonError::into_inner);
    notes.push(text);
}

/// The notes so far.
pub(crate) fn notes() -> Vec<String> {
    let notes = NOTES.lock().unwrap_or_else(PoisonError::into_inner);
    notes.clone()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An output that fails like this.
    struct Failing(io::ErrorKind);

    impl Write for Failing {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(self.0.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn who_has_seen_enough_is_no_failure_and_a_full_disk_is() {
        print_to(&mut Failing(io::ErrorKind::BrokenPipe), "text").unwrap();
        let failure = print_to(&mut Failing(io::ErrorKind::StorageFull), "text");
        let failure = failure.unwrap_err().to_string();
        assert!(failure.contains("standard output"), "{failure}");
    }
}
