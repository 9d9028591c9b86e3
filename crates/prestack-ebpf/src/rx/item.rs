//! GETs of one key whose reply is a head, made for the request, and the item's data: `mg` and the
//! binary protocol.

use aya_ebpf::helpers::generated::bpf_loop;
use core::ffi::c_void;
use prestack_abi::cache::{EntryHeader, MAX_REPLY};
use prestack_proto::MAX_KEY;
use prestack_proto::binary::opcode::{GETK, GETKQ};
use prestack_proto::binary::{HEADER_LEN, RESPONSE};
use prestack_proto::text::meta::{self, Step, head_end, head_start, head_token};
use prestack_proto::window::{Source, Window};

use super::keys::{copy_out, miss, query, take_ticket};
use crate::cache::find::{Found, find};
use crate::maps::count;
use crate::scratch::{Scratch, Walk, scratch};

/// Where the data of the reply starts in the reply buffer: the head is put before it. Longer than
/// any head: `mg` can show a key of 250 bytes, an opaque token of 32 and numbers.
pub const HEAD_ROOM: u64 = 512;
/// More flags than an `mg` that is answered has.
const MAX_FLAGS: u32 = 16;
/// Bytes of a binary head: the header and the flags.
const BINARY_HEAD: u64 = HEADER_LEN + 4;

/// Looks up the key in scratch and puts the reply together.
#[inline(always)]
pub fn look_up(over: u64) {
    prestack_look_up_item();
    if over == Walk::META {
        // SAFETY: the callback fits the helper.
        unsafe {
            bpf_loop(
                MAX_FLAGS,
                add_token as *mut c_void,
                core::ptr::null_mut(),
                0,
            )
        };
    }
    prestack_put_head();
}

/// Finds the item, and copies its data to where the reply has it. A global function (by its
/// unmangled name): the verifier checks it once.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn prestack_look_up_item() -> u64 {
    let Some(scratch) = scratch() else { return 0 };
    // SAFETY: this CPU's scratch.
    let (key, key_len, walk) = unsafe {
        (
            &(*scratch).key,
            (&raw const (*scratch).item.key_len).read_volatile(),
            &mut (*scratch).walk,
        )
    };
    let hash = walk.key;
    let Some(query) = query(walk, hash) else {
        return 0;
    };
    if key_len == 0 || key_len > MAX_KEY as u64 {
        return 0;
    }
    if let Some(found) = find(query, key, 0, key_len) {
        if found.is_ageing && take_ticket(scratch, hash) {
            count!(refreshes);
            walk.misses += 1;
            return 0;
        }
        if take(scratch, &found).is_some() {
            return 0;
        }
    }
    miss(scratch, hash);
    0
}

/// Copies the data of an entry and what else is known of the item.
#[inline(always)]
fn take(scratch: *mut Scratch, found: &Found) -> Option<()> {
    // SAFETY: this CPU's scratch.
    let (reply, walk) = unsafe { (&mut (*scratch).reply, &mut (*scratch).walk) };
    let is_meta = walk.over == Walk::META;
    let wanted = if is_meta {
        EntryHeader::META
    } else {
        EntryHeader::FLAGS | EntryHeader::CAS
    };
    let data_len = found.data_len();
    if !found.knows(wanted) || data_len > MAX_REPLY as u64 {
        return None;
    }
    // `mg` has the line end behind the data that `get` has.
    let len = if is_meta { data_len + 2 } else { data_len };
    let out = copy_out(found.entry, found.data, len, reply, HEAD_ROOM);
    let (knows, flags, cas) = (found.knows, found.flags, found.cas);
    if !found.is_unchanged() {
        count!(races);
        return None;
    }
    walk.out = out;
    // SAFETY: as above.
    let item = unsafe { &mut (*scratch).item };
    item.data_len = data_len;
    item.flags = u64::from(flags);
    item.cas = cas;
    if is_meta {
        start_head(scratch, u64::from(knows));
    }
    Some(())
}

/// Starts the head of a reply to `mg`.
#[inline(always)]
fn start_head(scratch: *mut Scratch, knows: u64) {
    // SAFETY: this CPU's scratch.
    let (item, command, shown, head) = unsafe {
        (
            &(*scratch).item,
            &(*scratch).command,
            &mut (*scratch).shown,
            &mut (*scratch).head,
        )
    };
    let has = |what: u8| knows & u64::from(what) != 0;
    shown.item = meta::Item {
        size: item.data_len,
        flags: item.flags as u32,
        cas: item.cas,
        key_len: item.key_len,
        token_at: command.key,
        token_len: if item.is_canonical != 0 {
            command.key_len
        } else {
            0
        },
        has_flags: has(EntryHeader::FLAGS),
        has_cas: has(EntryHeader::CAS),
        has_key: has(EntryHeader::KEY_PLAIN | EntryHeader::KEY_BASE64),
        is_key_base64: has(EntryHeader::KEY_BASE64),
    };
    shown.cursor = head_start(command.flags, command.line_end, &shown.item, head);
    shown.is_complete = 0;
}

/// Adds what one flag of an `mg` asks for to the head: one step of a walk. Returns 1 at its end.
#[inline(never)]
extern "C" fn add_token(_: u32, _: *mut c_void) -> i64 {
    let Some(scratch) = scratch() else { return 1 };
    // SAFETY: this CPU's scratch.
    let (window, key, shown, head) = unsafe {
        (
            &(*scratch).window,
            &(*scratch).key,
            &mut (*scratch).shown,
            &mut (*scratch).head,
        )
    };
    match head_token(window, &mut shown.cursor, &shown.item, key, head) {
        Step::More => 0,
        Step::End => {
            shown.is_complete = 1;
            1
        }
        Step::Refused => 1,
    }
}

/// Puts the head of a reply to `mg` before the data, and returns its length; `None` if something that
/// is asked for is not known.
#[inline(always)]
fn meta_head(scratch: *mut Scratch) -> Option<u64> {
    // SAFETY: this CPU's scratch.
    let (head, reply, shown) = unsafe {
        (
            &mut (*scratch).head,
            &mut (*scratch).reply,
            &(*scratch).shown,
        )
    };
    if shown.is_complete == 0 {
        return None;
    }
    let len = head_end(&shown.cursor, head);
    copy_back(head, len, reply, HEAD_ROOM);
    Some(len)
}

/// Puts the head of a binary reply before the data, and returns its length.
#[inline(always)]
fn binary_head(scratch: *mut Scratch) -> u64 {
    // SAFETY: this CPU's scratch.
    let (window, key, reply, item, request) = unsafe {
        (
            &(*scratch).window,
            &(*scratch).key,
            &mut (*scratch).reply,
            &(*scratch).item,
            (&raw const (*scratch).walk.at).read_volatile(),
        )
    };
    let opcode = u64::from(window.byte(request + 1));
    let key_len = if opcode == u64::from(GETK) || opcode == u64::from(GETKQ) {
        item.key_len
    } else {
        0
    };
    copy_back(key, key_len, reply, HEAD_ROOM);
    let body = 4 + key_len + item.data_len;
    let head_len = BINARY_HEAD + key_len;
    let at = reply.forgotten(HEAD_ROOM - head_len);
    // Magic, opcode, key length (big-endian), length of the extras; data type and status are 0.
    let key_len = u64::from((key_len as u16).swap_bytes());
    let first = u64::from(RESPONSE) | opcode << 8 | key_len << 16 | 4 << 32;
    reply.set_word(at, first);
    // Length of the body; the opaque is the request's, in the same place.
    let opaque = window.word(request + 8) >> 32 << 32;
    reply.set_word(at + 8, opaque | u64::from((body as u32).swap_bytes()));
    let cas = item.cas.swap_bytes();
    reply.set_word(at + 16, cas);
    let flags = u64::from((item.flags as u32).swap_bytes());
    // The last four bytes of the CAS number once more: the word must not reach behind the flags.
    reply.set_word(at + 20, flags << 32 | cas >> 32);
    head_len
}

/// Copies the first `len` bytes of a window to where they end at `to` of another, and garbage before
/// them.
#[inline(always)]
fn copy_back(source: &Window, len: u64, target: &mut Window, to: u64) {
    let len = source.forgotten(len);
    for i in 0..HEAD_ROOM / 8 {
        let done = 8 * i;
        if done >= len {
            break;
        }
        target.set_word(to - 8 - done, source.word(len.wrapping_sub(8 + done)));
    }
}

/// Puts the head before the data. If something is asked for that is not known, the key has missed.
/// A global function, like [`prestack_look_up_item`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn prestack_put_head() -> u64 {
    let Some(scratch) = scratch() else { return 0 };
    // SAFETY: this CPU's scratch.
    let walk = unsafe { &mut (*scratch).walk };
    if walk.misses != 0 {
        return 0;
    }
    let head_len = if walk.over == Walk::META {
        meta_head(scratch)
    } else {
        Some(binary_head(scratch))
    };
    match head_len {
        Some(len) if len < HEAD_ROOM => {
            walk.start = HEAD_ROOM - len;
            walk.at = walk.end;
        }
        _ => miss(scratch, walk.key),
    }
    0
}
