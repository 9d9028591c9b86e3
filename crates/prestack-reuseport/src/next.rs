//! The functions that this library stands before: the C library's, or those of a library preloaded after
//! this one.

use std::{ffi::CStr, mem};

use libc::{c_int, c_void, sockaddr, socklen_t};

/// The next `bind`.
///
/// # Safety
///
/// There are `len` bytes at `address`.
pub unsafe fn bind(fd: c_int, address: *const sockaddr, len: socklen_t) -> c_int {
    type Bind = unsafe extern "C" fn(c_int, *const sockaddr, socklen_t) -> c_int;
    let Some(found) = find(c"bind") else {
        return missing();
    };
    // SAFETY: it is POSIX's `bind`, and this is its type.
    let bind = unsafe { mem::transmute::<*mut c_void, Bind>(found) };
    // SAFETY: the caller's.
    unsafe { bind(fd, address, len) }
}

/// The next `dup`.
pub fn dup(fd: c_int) -> c_int {
    type Dup = extern "C" fn(c_int) -> c_int;
    let Some(found) = find(c"dup") else {
        return missing();
    };
    // SAFETY: it is POSIX's `dup`, and this is its type; it takes any number.
    let dup = unsafe { mem::transmute::<*mut c_void, Dup>(found) };
    dup(fd)
}

fn find(name: &CStr) -> Option<*mut c_void> {
    // SAFETY: the name is a string that ends in zero.
    let found = unsafe { libc::dlsym(libc::RTLD_NEXT, name.as_ptr()) };
    (!found.is_null()).then_some(found)
}

/// What a function returns that does not exist.
fn missing() -> c_int {
    // SAFETY: the thread's own `errno`.
    unsafe { *libc::__errno_location() = libc::ENOSYS };
    -1
}
