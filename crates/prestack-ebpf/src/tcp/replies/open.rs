//! The host agrees to a connection: a flow starts.

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::helpers::generated::bpf_skb_load_bytes;
use prestack_abi::flow::Flow;
use prestack_proto::verifier::opaque;
use prestack_proto::window::{Source, Window};

use crate::clock;
use crate::ledger::backend;
use crate::scratch::scratch;
use crate::tcp::flow::{self, Beginning};
use crate::tcp::{GREATEST_SCALE, table};

/// TCP options (IANA registry "TCP Option Kind Numbers"): end, nothing, window scale (RFC 7323), Multipath TCP
/// (RFC 8684).
const OPTION_END: u8 = 0;
const OPTION_NOTHING: u8 = 1;
const OPTION_WINDOW_SCALE: u8 = 3;
const OPTION_MULTIPATH: u8 = 30;
/// Bytes of options at most.
const MAX_OPTIONS: u64 = 40;

/// Loads the segment's TCP options, which start at `at`, into the window, and returns their length.
///
/// # Safety
///
/// `ctx` is the program's context.
#[unsafe(no_mangle)]
#[inline(never)]
pub unsafe extern "C" fn prestack_tcp_options(ctx: *mut __sk_buff) -> u64 {
    let Some(scratch) = scratch() else { return 0 };
    // SAFETY: this CPU's scratch, whose window is longer.
    unsafe {
        let from = (&raw const (*scratch).segment.at).read_volatile();
        let len = (&raw const (*scratch).segment.data)
            .read_volatile()
            .wrapping_sub(from);
        let to = (*scratch).window.start().cast();
        let size = ((opaque(len.wrapping_sub(1)) & 63) + 1) as u32;
        if len == 0 || bpf_skb_load_bytes(ctx.cast(), from as u32, to, size) != 0 {
            return 0;
        }
        len
    }
}

/// The host agrees to the connection of the segment in the scratch, of whose options there are `len`
/// bytes in the window.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn prestack_tcp_open(len: u64) -> u64 {
    let (Some(scratch), Some(config)) = (scratch(), backend::config()) else {
        return 0;
    };
    // SAFETY: this CPU's scratch.
    let (segment, window) = unsafe {
        (
            (&raw const (*scratch).segment).read_volatile(),
            &(*scratch).window,
        )
    };
    let sent = segment.sequence.wrapping_add(1);
    let next = segment.acknowledgement;
    if let Some(known) = table::find(segment.name(config), clock::now())
        && let Some(flow) = flow::at(known.place)
    {
        // SAFETY: a map element.
        let is_again = unsafe {
            let state = (*flow).state;
            (state == Flow::OPENING || state == Flow::OPEN)
                && (*flow).sent == sent
                && (*flow).acked == next
        };
        if is_again {
            return 0;
        }
    }
    let options = Options::read(window, len);
    let agreed = Beginning::Agreed {
        next,
        sent,
        edge: next.wrapping_add(segment.window),
        window_scale: options.window_scale,
        is_part: options.is_part,
    };
    flow::begin(config, &segment, agreed);
    0
}

/// What the host says in its options.
struct Options {
    /// The shift of its window; 0 without one.
    window_scale: u32,
    /// The connection is a part of a Multipath TCP connection.
    is_part: bool,
}

impl Options {
    /// Reads them in the first `len` bytes of the window.
    #[inline(always)]
    fn read(window: &Window, len: u64) -> Self {
        let mut at = window.forgotten(0);
        let mut scale = window.forgotten(0);
        let mut is_part = window.forgotten(0);
        for _ in 0..MAX_OPTIONS {
            let kind = window.byte(at);
            if at >= len || kind == OPTION_END {
                break;
            }
            let size = u64::from(window.byte(at + 1));
            if kind == OPTION_WINDOW_SCALE {
                scale = window.forgotten(u64::from(window.byte(at + 2)));
            }
            if kind == OPTION_MULTIPATH {
                is_part = window.forgotten(1);
            }
            let step = if kind == OPTION_NOTHING { 1 } else { size };
            if step == 0 {
                break;
            }
            at = window.forgotten(at + step);
        }
        Self {
            window_scale: if scale > GREATEST_SCALE {
                GREATEST_SCALE as u32
            } else {
                scale as u32
            },
            is_part: is_part != 0,
        }
    }
}
