//! A segment leaves for the client, in wire numbers.

use aya_ebpf::bindings::{__sk_buff, TC_ACT_SHOT};
use aya_ebpf::helpers::generated::{bpf_l4_csum_replace, bpf_skb_load_bytes, bpf_skb_store_bytes};
use aya_ebpf::programs::TcContext;
use prestack_abi::config::Config;
use prestack_abi::translated::Translated;
use prestack_proto::checksum::fold;
use prestack_proto::net::{ETHERNET_LEN, IPV4_LEN, TCP_FIN, TCP_LEN, TCP_RST, TCP_SYN};
use prestack_proto::verifier::opaque;
use prestack_translate::{Agreement, Block, Departing, Ends, MAX_BLOCKS, Segment};

use super::element::{self, locked};
use super::numbered::{self, MAX_BLOCKS_AT, TIMESTAMPS_LEN, USUAL_OPTIONS, change_of_block};
use crate::clock;
use crate::ledger::backend;
use crate::packet::Packet;
use crate::scratch::scratch;
use crate::tcp::plain::Plain;
use crate::tcp::segment::name_of;
use crate::tcp::{flow, socket, table};
use crate::tx::{self, NEXT};

/// What [`prestack_hits_depart`] says of a segment: it is not translated; its options are to be looked at.
pub const NOT_OURS: u64 = 0;
const USUAL: u64 = 1;
const UNUSUAL: u64 = 2;
/// The connection has earned that requests are answered on it.
const EARNED: u64 = 3;

/// A segment leaves.
#[inline(always)]
pub fn leaves(ctx: &TcContext) -> i32 {
    // SAFETY: a function of ours, called with the program's context.
    let what = unsafe { prestack_hits_depart(ctx.skb.skb) };
    leave(ctx, what)
}

/// A segment leaves that is in the scratch, and of which this is known.
#[inline(always)]
pub fn leave(ctx: &TcContext, what: u64) -> i32 {
    let skb = ctx.skb.skb;
    // SAFETY: functions of ours, called with the program's context.
    unsafe {
        match what {
            NOT_OURS => return NEXT,
            EARNED => {
                prestack_hits_agree(skb);
                return NEXT;
            }
            UNUSUAL if prestack_hits_leave_options(skb) == 0 => return NEXT,
            _ => {}
        }
        match prestack_hits_leave() {
            KEEP => NEXT,
            REWRITE if prestack_hits_renumber(skb) != 0 => NEXT,
            _ => TC_ACT_SHOT,
        }
    }
}

/// Finds the connection of the segment in the packet.
///
/// A global function (by its unmangled name), as those that follow: the verifier checks it once.
///
/// # Safety
///
/// `ctx` is the program's context.
#[unsafe(no_mangle)]
#[inline(never)]
unsafe extern "C" fn prestack_hits_depart(ctx: *mut __sk_buff) -> u64 {
    depart(&TcContext::new(ctx)).unwrap_or(NOT_OURS)
}

#[inline(always)]
fn depart(ctx: &TcContext) -> Option<u64> {
    let (scratch, config) = (scratch()?, backend::config()?);
    let (packet, headers, door) = tx::reply(ctx)?;
    let (segment, options, is_usual) = numbered::read(packet, &headers, false)?;
    let is_followed = door.has_tcp(headers.v6);
    if segment.has(TCP_SYN) && is_followed {
        return None;
    }
    let key = numbered::key(&headers, true);
    let known = table::find(name_of(config, &key), clock::now())?;
    if segment.has(TCP_SYN) {
        // A new connection, of which no flow begins here: it has nothing of the one before.
        element::begin(config, known.place);
        return None;
    }
    let state = element::state(element::at(known.place)?);
    // What has earned it is to be followed until it is ready.
    if state != Translated::READY && !(state == Translated::EARNED && is_followed) {
        return None;
    }
    // SAFETY: this CPU's scratch. Volatile, or the compiler makes it a call to memcpy.
    unsafe {
        let numbered = &raw mut (*scratch).numbered;
        (&raw mut (*numbered).segment).write_volatile(segment);
        (&raw mut (*numbered).place).write_volatile(known.place);
        (&raw mut (*numbered).l4).write_volatile(headers.l4);
        (&raw mut (*numbered).options).write_volatile(options);
        (&raw mut (*numbered).found.count).write_volatile(0);
    }
    Some(if state == Translated::EARNED {
        EARNED
    } else if is_usual {
        USUAL
    } else {
        UNUSUAL
    })
}

/// Puts a plain segment that was followed into the scratch, and says what is to be done with it.
#[inline(always)]
pub fn depart_plain(config: &Config, packet: Packet, plain: &Plain) -> Option<u64> {
    if !element::is_on(config) {
        return None;
    }
    let scratch = scratch()?;
    let what = match element::state(element::at(plain.place)?) {
        Translated::READY => USUAL,
        Translated::EARNED => EARNED,
        _ => return None,
    };
    let options = plain.data.wrapping_sub(BEHIND_HEADER);
    if !packet.reaches(BEHIND_HEADER) {
        return None;
    }
    let mut segment = Segment {
        sequence: plain.sequence,
        acknowledgement: plain.acknowledgement,
        len: plain.len as u32,
        // SAFETY: just checked.
        flags: unsafe { packet.fixed::<u8>(BEHIND_HEADER - 7) }.into(),
        window: plain.window,
        ..Segment::default()
    };
    let mut is_usual = options == 0;
    if options >= TIMESTAMPS_LEN && packet.reaches(BEHIND_HEADER + TIMESTAMPS_LEN) {
        // SAFETY: just checked.
        let [kinds, timestamp, echo] = unsafe { packet.fixed::<[u32; 3]>(BEHIND_HEADER) };
        if kinds == USUAL_OPTIONS {
            segment.has_timestamps = 1;
            segment.timestamp = timestamp.swap_bytes();
            segment.echo = echo.swap_bytes();
            is_usual = options == TIMESTAMPS_LEN;
        }
    }
    // SAFETY: this CPU's scratch. Volatile, or the compiler makes it a call to memcpy.
    unsafe {
        let numbered = &raw mut (*scratch).numbered;
        (&raw mut (*numbered).segment).write_volatile(segment);
        (&raw mut (*numbered).place).write_volatile(plain.place);
        (&raw mut (*numbered).l4).write_volatile(BEHIND_HEADER - TCP_LEN as u64);
        (&raw mut (*numbered).options).write_volatile(options);
        (&raw mut (*numbered).found.count).write_volatile(0);
    }
    Some(if what == USUAL && !is_usual {
        UNUSUAL
    } else {
        what
    })
}

/// Position behind the TCP header of a plain segment without options.
const BEHIND_HEADER: u64 = (ETHERNET_LEN + IPV4_LEN + TCP_LEN) as u64;

/// Looks at the options of the segment; 0 if they are not there.
///
/// # Safety
///
/// `ctx` is the program's context.
#[unsafe(no_mangle)]
#[inline(never)]
unsafe extern "C" fn prestack_hits_leave_options(ctx: *mut __sk_buff) -> u64 {
    let Some(scratch) = scratch() else { return 0 };
    // SAFETY: the program's context, and this CPU's scratch, whose window is longer than options.
    unsafe {
        let numbered = &mut (*scratch).numbered;
        let at = numbered.l4 + TCP_LEN as u64;
        let size = numbered::options_size(numbered.options);
        let to = (*scratch).head.start().cast();
        if bpf_skb_load_bytes(ctx.cast(), at as u32, to, size) != 0 {
            return 0;
        }
        numbered::read_options(numbered, &(*scratch).head);
    }
    1
}

/// Finds out what the two ends of the connection have agreed to, once nothing is under way to the kernel: from
/// then on its segments have to come by here.
///
/// # Safety
///
/// `ctx` is the program's context.
#[unsafe(no_mangle)]
#[inline(never)]
unsafe extern "C" fn prestack_hits_agree(ctx: *mut __sk_buff) -> u64 {
    let Some(scratch) = scratch() else { return 0 };
    // SAFETY: this CPU's scratch.
    let numbered = unsafe { &(*scratch).numbered };
    let (Some(element), Some(flow)) = (element::at(numbered.place), flow::at(numbered.place))
    else {
        return 0;
    };
    let segment = numbered.segment;
    // SAFETY: a map element.
    let (next, sent) = unsafe {
        (
            (&raw const (*flow).next).read_volatile(),
            (&raw const (*flow).sent).read_volatile(),
        )
    };
    // What is sent again says what has come, but not all that was sent.
    if next != segment.acknowledgement || sent != segment.end() {
        return 0;
    }
    // SAFETY: the program's context, and a map element.
    let Some(agreement) = (unsafe { socket::agreement(ctx, &(*flow).key) }) else {
        return 0;
    };
    let is_servable = agreement.flags & Agreement::SERVABLE != 0
        && agreement.has_timestamps() == (segment.has_timestamps != 0);
    locked(element, |element, ends, translation| {
        // A new connection of this name may have begun meanwhile.
        if element::state(element) != Translated::EARNED {
            return;
        }
        translation.begin(agreement);
        *ends = Ends::told_by(&segment);
        let state = if is_servable {
            Translated::READY
        } else {
            Translated::REFUSED
        };
        // SAFETY: a map element that is locked.
        unsafe { (&raw mut (*element).state).write_volatile(state) };
    });
    0
}

/// What [`prestack_hits_leave`] says: the segment goes as it is, is to be rewritten, must not go.
const KEEP: u64 = 0;
const REWRITE: u64 = 1;
const DROP: u64 = 2;

/// The segment leaves.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn prestack_hits_leave() -> u64 {
    let (Some(scratch), Some(config)) = (scratch(), backend::config()) else {
        return KEEP;
    };
    let now = clock::now();
    // SAFETY: this CPU's scratch.
    let numbered = unsafe { &mut (*scratch).numbered };
    let Some(element) = element::at(numbered.place) else {
        return KEEP;
    };
    let segment = numbered.segment;
    let is_serving = config.policy.is_serving != 0;
    let count = numbered.found.count;
    let result = locked(element, |element, ends, translation| {
        if translation.is_active == 0 {
            ends.give(&segment);
            return KEEP;
        }
        let departure = translation.leave(ends, &segment, is_serving, now);
        numbered.sequence = departure.sequence;
        numbered.acknowledgement = departure.acknowledgement;
        for i in 0..MAX_BLOCKS as usize {
            if i as u64 >= count {
                break;
            }
            numbered.blocks[i] =
                translation.leave_block(ends, departure.acknowledgement, numbered.blocks[i]);
        }
        numbered.departing = u32::from(departure.departing == Departing::WithoutFin);
        let wanting = match segment.has(TCP_RST) {
            true => 0,
            false => element::is_wanting(element, ends, translation),
        };
        let is_fin = segment.has(TCP_FIN) && departure.departing == Departing::Go;
        element::note_fin(element, is_fin, Translated::KERNEL);
        let ended = element::has_ended(element, ends, translation);
        if departure.departing == Departing::Drop {
            DROP
        } else {
            REWRITE | (ended | wanting) << STATE_SHIFT
        }
    });
    let state = result >> STATE_SHIFT;
    if state & element::ENDED != 0 {
        element::end(config, numbered.place, now);
    } else if state & element::WANTING != 0 {
        element::linger_on(config, numbered.place, now);
    }
    result & ((1 << STATE_SHIFT) - 1)
}

const STATE_SHIFT: u64 = 8;

/// Writes the wire numbers into the packet; 0 if that did not work out.
///
/// # Safety
///
/// `ctx` is the program's context.
#[unsafe(no_mangle)]
#[inline(never)]
unsafe extern "C" fn prestack_hits_renumber(ctx: *mut __sk_buff) -> u64 {
    // SAFETY: the caller's.
    u64::from(unsafe { renumber(ctx) }.is_some())
}

#[inline(always)]
unsafe fn renumber(ctx: *mut __sk_buff) -> Option<()> {
    let scratch = scratch()?;
    // SAFETY: this CPU's scratch.
    let numbered = unsafe { &(*scratch).numbered };
    let segment = &numbered.segment;
    let l4 = opaque(numbered.l4) as u32 & 0xff;
    // SAFETY: the program's context; a value on the stack of the size given.
    let store = |at: u32, value: &u64| unsafe {
        let from = (&raw const *value).cast();
        (bpf_skb_store_bytes(ctx, at, from, size_of::<u64>() as u32, 0) == 0).then_some(())
    };
    let numbers = |sequence: u32, acknowledgement: u32| {
        u64::from(sequence.to_be()) | u64::from(acknowledgement.to_be()) << 32
    };
    let old = numbers(segment.sequence, segment.acknowledgement);
    let new = numbers(numbered.sequence, numbered.acknowledgement);
    let mut change = change_of_block(old, new, 0);
    store(l4 + 4, &new)?;
    let count = numbered.found.count;
    let at = opaque(numbered.found.blocks) & MAX_BLOCKS_AT;
    for i in 0..MAX_BLOCKS as usize {
        if i as u64 >= count {
            break;
        }
        let at = at as u32 + l4 + TCP_LEN as u32 + 8 * i as u32;
        let Block { start, end } = numbered.blocks[i];
        let new = numbers(start, end);
        let mut old = 0u64;
        // SAFETY: as above.
        let loaded = unsafe {
            bpf_skb_load_bytes(
                ctx.cast(),
                at,
                (&raw mut old).cast(),
                size_of::<u64>() as u32,
            )
        };
        if loaded != 0 {
            return None;
        }
        change += change_of_block(old, new, numbered.found.blocks);
        store(at, &new)?;
    }
    if numbered.departing != 0 {
        change += drop_fin(ctx, l4)?;
    }
    // The kernel leaves a partial checksum as it is: it covers none of this.
    // SAFETY: the program's context.
    let replaced = unsafe { bpf_l4_csum_replace(ctx, l4 + 16, 0, u64::from(fold(change)), 0) };
    (replaced == 0).then_some(())
}

/// Takes the FIN off. Returns what that does to the sum.
#[inline(always)]
fn drop_fin(ctx: *mut __sk_buff, l4: u32) -> Option<u64> {
    let mut old = [0u8; 2];
    // SAFETY: the program's context; values on the stack of the sizes given.
    unsafe {
        if bpf_skb_load_bytes(ctx.cast(), l4 + 12, (&raw mut old).cast(), 2) != 0 {
            return None;
        }
        let new = [old[0], old[1] & !TCP_FIN];
        if bpf_skb_store_bytes(ctx, l4 + 12, (&raw const new).cast(), 2, 0) != 0 {
            return None;
        }
        Some(u64::from(!u16::from_ne_bytes(old)) + u64::from(u16::from_ne_bytes(new)))
    }
}
