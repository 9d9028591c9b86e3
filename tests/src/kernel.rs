//! The kernel that the tests run on.

use nix::sys::utsname::uname;

/// The kernel's major and minor version.
#[must_use]
pub fn version() -> (u32, u32) {
    let release = uname().map(|name| name.release().to_string_lossy().into_owned());
    let release = release.unwrap_or_default();
    let mut numbers = release.split(['.', '-']).map_while(|n| n.parse().ok());
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}
