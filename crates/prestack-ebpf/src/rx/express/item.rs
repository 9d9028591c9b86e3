//! GETs of one key that are answered with a head of their own and the item's data: binary GET and GETK, and
//! `mg <key>` with up to four of the flags `v`, `q`, `f`, `s` and `k`.

use aya_ebpf::bindings::xdp_md;
use aya_ebpf::programs::XdpContext;
use prestack_abi::cache::{EntryHeader, MAX_REPLY};
use prestack_proto::binary::opcode::{GET, GETK};
use prestack_proto::binary::{HEADER_LEN, REQUEST, RESPONSE};
use prestack_proto::checksum::{add_word, fold, shifted};
use prestack_proto::hash::{ANY, TEXT, backend_seed, scan};
use prestack_proto::text::reply::KEY_AT;
use prestack_proto::window::Source;
use prestack_proto::{MAX_KEY, swar};

use super::line::{Numbers, sum_of_block, sum_of_data};
use super::part::{copy_last, copy_part};
use super::{BINARY, CRLF, LOST, META, PAYLOAD, SHORTEST, in_place};
use crate::cache::find::{Found, Kept, Query, find_in};
use crate::clock;
use crate::inbound::Inbound;
use crate::ledger::backend;
use crate::packet::Packet;
use crate::scratch::scratch;

/// Bytes of `mg `, and of `VA `.
const META_LEN: u64 = 3;
/// `VA ` as it is read.
const VALUE: u64 = u64::from_le_bytes(*b"VA \0\0\0\0\0");
/// Bytes of a binary head: the header and the flags.
const BINARY_HEAD: u64 = HEADER_LEN + 4;

/// Flags of `mg`, a bit each.
const V: u64 = 1;
const Q: u64 = 2;
const F: u64 = 4;
const S: u64 = 8;
const K: u64 = 16;

/// A request.
#[derive(Clone, Copy)]
struct Asked {
    /// Position of the key in the packet, and its length: 1 to 250.
    key: u64,
    key_len: u64,
    /// Which bytes a key may have: [`TEXT`] or [`ANY`].
    protocol: u64,
    /// What must be known of the item.
    wanted: u8,
    /// The first word of a binary request and the opaque in its place, or the flags of an `mg`, each with the
    /// space before it.
    words: [u64; 2],
}

impl Asked {
    fn is_binary(&self) -> bool {
        self.protocol == ANY
    }

    /// Whether the answer to a binary request shows the key.
    fn shows_key(&self) -> bool {
        shows_key(self.words[0])
    }

    /// A binary request of `len` bytes.
    #[inline(always)]
    fn binary(packet: Packet, first: u64, len: u64) -> Option<Self> {
        if !packet.reaches(PAYLOAD + HEADER_LEN) {
            return None;
        }
        // SAFETY: just checked.
        let second = unsafe { packet.fixed::<u64>(PAYLOAD + 8) };
        let opcode = first >> 8 & 0xff;
        let key_len = u64::from((first >> 16) as u16).swap_bytes() >> 48;
        let body = u64::from((second as u32).swap_bytes());
        // No extras, and no type of data.
        if first >> 32 & 0xffff != 0 || body != key_len || len != HEADER_LEN + key_len {
            return None;
        }
        if opcode != u64::from(GET) && opcode != u64::from(GETK) {
            return None;
        }
        Some(Self {
            key: PAYLOAD + HEADER_LEN,
            key_len,
            protocol: ANY,
            wanted: EntryHeader::FLAGS | EntryHeader::CAS,
            words: [first, second >> 32 << 32],
        })
    }

    /// An `mg` of `len` bytes.
    #[inline(always)]
    fn meta(packet: Packet, len: u64) -> Option<Self> {
        let end = PAYLOAD + len;
        if packet.read::<u16>(end - 2)? != CRLF {
            return None;
        }
        // The last eight bytes of the line, in which flags of one letter are letters behind spaces.
        let text: u64 = packet.read(end - 10)?;
        let room = len - META_LEN - 2;
        let mut count = 0;
        for i in 1..=4 {
            if text >> (64 - 16 * i) & 0xff != u64::from(b' ') || 2 * i >= room {
                break;
            }
            count = i;
        }
        let count = packet.forgotten(count);
        let flags = if count < 4 {
            text >> (64 - 16 * (count & 3))
        } else {
            text
        };
        let (flags, mut set) = (packet.forgotten(if count == 0 { 0 } else { flags }), 0);
        for i in 0..4 {
            if i >= count {
                break;
            }
            let bit = bit_of(letter(flags, i));
            // None is asked for twice, and all are known.
            if bit == 0 || set & bit != 0 {
                return None;
            }
            set = packet.forgotten(set | bit);
        }
        if set & V == 0 {
            return None;
        }
        let known = |bit: u64, what: u8| if set & bit != 0 { what } else { 0 };
        let wanted = known(F, EntryHeader::FLAGS) | known(K, EntryHeader::KEY_PLAIN);
        Some(Self {
            key: PAYLOAD + META_LEN,
            key_len: room - 2 * count,
            protocol: TEXT,
            wanted: EntryHeader::META | wanted,
            words: [flags, 0],
        })
    }
}

/// Whether the answer to the binary request that starts with this word shows the key.
#[inline(always)]
fn shows_key(first: u64) -> bool {
    first >> 8 & 0xff == u64::from(GETK)
}

/// The bit of a flag, by its letter; 0 for any that is not answered here.
#[inline(always)]
fn bit_of(letter: u64) -> u64 {
    match letter as u8 {
        b'v' => V,
        b'q' => Q,
        b'f' => F,
        b's' => S,
        b'k' => K,
        _ => 0,
    }
}

/// Looks up what is asked for by a request that starts with the magic byte or `mg `, and whose headers have
/// been checked: its form and the length of the reply. `None` if it is not to be answered here.
#[inline(always)]
pub fn look_up(ctx: &XdpContext) -> Option<u64> {
    let config = backend::config()?;
    let packet = ctx.packet(config);
    if !packet.reaches(SHORTEST + 1) {
        return None;
    }
    // SAFETY: just checked.
    let first = unsafe { packet.fixed::<u64>(PAYLOAD) };
    let len = packet.len() - PAYLOAD;
    let asked = if first & 0xff == u64::from(REQUEST) {
        Asked::binary(packet, first, len)?
    } else {
        Asked::meta(packet, len)?
    };
    // From here on, one path for both.
    let asked = Asked {
        key: packet.forgotten(asked.key),
        key_len: packet.forgotten(asked.key_len),
        protocol: packet.forgotten(asked.protocol),
        wanted: packet.forgotten(asked.wanted.into()) as u8,
        words: asked.words,
    };
    let key_len = asked.key_len;
    if key_len == 0 {
        return None;
    }
    if key_len > MAX_KEY as u64 {
        return None;
    }
    let number = config.doors[0].backend;
    let seed = backend_seed(config.seed, number);
    let key = scan(&packet, asked.key, key_len, seed, asked.protocol)?;
    let state = backend::backend(number)?;
    let now = clock::now();
    let query = Query {
        config,
        backend: number,
        epoch: backend::epoch(state, now),
        now,
        hash: key.hash,
    };
    // Asked for once: the cache may grow meanwhile.
    let place = config.place(key.hash);
    let found = find_in(query, place, key_len, |entry| {
        entry.has_key(&packet, asked.key, key_len)
    })?;
    if found.is_ageing
        || !found.knows(asked.wanted)
        || now >= config.serve_until
        || !backend::answers_udp(state)
    {
        return None;
    }
    let data_len = packet.forgotten(found.data_len());
    if data_len > MAX_REPLY as u64 {
        return None;
    }
    let reply_len = if asked.is_binary() {
        let key_len = if asked.shows_key() { key_len } else { 0 };
        BINARY_HEAD + key_len + data_len
    } else {
        meta_len(packet, &asked, &found)?
    };
    let scratch = scratch()?;
    // SAFETY: this CPU's scratch.
    unsafe {
        Kept::keep(
            &raw mut (*scratch).in_place.kept[0],
            place,
            &found,
            key_len,
            key.sum,
        );
        (&raw mut (*scratch).in_place.words).write_volatile(asked.words);
    }
    let form = if asked.is_binary() { BINARY } else { META };
    Some(form << 32 | reply_len & 0xffff)
}

/// The length of the reply to an `mg`; `None` if it is not to be answered here.
#[inline(always)]
fn meta_len(packet: Packet, asked: &Asked, found: &Found) -> Option<u64> {
    let numbers = Numbers::of(found, asked.key_len)?;
    let data_len = found.data_len();
    let mut len = META_LEN + numbers.size_len + 2 + data_len + 2;
    if asked.words[0] >> 16 == 0 {
        return Some(len);
    }
    // What is written in words must not reach behind the reply.
    if data_len < 8 {
        return None;
    }
    for i in 0..4 {
        let more = match bit_of(letter(asked.words[0], i)) {
            F => 2 + numbers.flags_len,
            S => 2 + numbers.size_len,
            K => 2 + asked.key_len,
            _ => 0,
        };
        len = packet.forgotten(len + more);
    }
    Some(len)
}

/// The letter of a flag of an `mg`.
#[inline(always)]
fn letter(flags: u64, i: u64) -> u64 {
    flags >> (16 * i + 8) & 0xff
}

/// Writes and sends the reply to a binary GET. A global function (by
/// its unmangled name), as is the other: the verifier checks each once.
///
/// # Safety
///
/// `ctx` is the program's context.
#[unsafe(no_mangle)]
#[inline(never)]
pub unsafe extern "C" fn prestack_express_binary(ctx: *mut xdp_md, reply_len: u64) -> u64 {
    write(ctx, reply_len, write_binary)
}

/// The same for an `mg`.
///
/// # Safety
///
/// `ctx` is the program's context.
#[unsafe(no_mangle)]
#[inline(never)]
pub unsafe extern "C" fn prestack_express_meta(ctx: *mut xdp_md, reply_len: u64) -> u64 {
    write(ctx, reply_len, write_meta)
}

/// Sends the reply that `each` writes from the entry that was kept: the action for the kernel, or [`LOST`].
/// `each` returns its sum, not folded.
#[inline(always)]
fn write(
    ctx: *mut xdp_md,
    reply_len: u64,
    each: impl FnOnce(Packet, &Kept, &Found, [u64; 2]) -> Option<u64>,
) -> u64 {
    let (Some(config), Some(scratch)) = (backend::config(), scratch()) else {
        return LOST;
    };
    let ctx = XdpContext::new(ctx);
    let packet = ctx.packet(config);
    // SAFETY: this CPU's scratch.
    let (kept, words) = unsafe {
        let in_place = &raw const (*scratch).in_place;
        (
            &(*in_place).kept[0],
            (&raw const (*in_place).words).read_volatile(),
        )
    };
    let Some(found) = kept.found() else {
        return LOST;
    };
    match each(packet, kept, &found, words) {
        Some(sum) if found.is_unchanged() => in_place::send(&ctx, reply_len, fold(sum)),
        _ => LOST,
    }
}

#[inline(always)]
fn write_binary(
    packet: Packet,
    kept: &Kept,
    found: &Found,
    [request, opaque]: [u64; 2],
) -> Option<u64> {
    let Found { entry, data, .. } = *found;
    let data_len = found.data_len();
    let shows_key = shows_key(request);
    let key_len = if shows_key { kept.key_len } else { 0 };
    let body = 4 + key_len + data_len;
    // From the end to the front: what is too short for a word has garbage before it.
    copy_last(
        packet,
        PAYLOAD + BINARY_HEAD + key_len,
        entry,
        data,
        data_len,
    )?;
    let mut sum = sum_of_data(found, kept.key_len, kept.key_sum, key_len)?;
    if shows_key {
        copy_last(packet, PAYLOAD + BINARY_HEAD, entry, KEY_AT, key_len)?;
        sum += kept.key_sum;
    }
    // Magic, opcode, key length (big-endian), length of the extras; data type and status are 0.
    let key_len = u64::from((key_len as u16).swap_bytes());
    let first = u64::from(RESPONSE) | request & 0xff00 | key_len << 16 | 4 << 32;
    let second = opaque | u64::from((body as u32).swap_bytes());
    let cas = found.cas.swap_bytes();
    let flags = found.flags.swap_bytes();
    if !packet.reaches(PAYLOAD + BINARY_HEAD) {
        return None;
    }
    // SAFETY: just checked.
    unsafe {
        packet.set_fixed(PAYLOAD, first);
        packet.set_fixed(PAYLOAD + 8, second);
        packet.set_fixed(PAYLOAD + 16, cas);
        packet.set_fixed(PAYLOAD + HEADER_LEN, flags);
    }
    sum = add_word(add_word(add_word(sum, first), second), cas);
    Some(sum + u64::from(flags))
}

#[inline(always)]
fn write_meta(packet: Packet, kept: &Kept, found: &Found, [flags, _]: [u64; 2]) -> Option<u64> {
    let numbers = Numbers::of(found, kept.key_len)?;
    // From the front to the end: behind what is written in words is garbage.
    let first = VALUE | numbers.size << 24;
    packet.write(PAYLOAD, first)?;
    let mut sum = add_word(0, first);
    let mut at = META_LEN + numbers.size_len;
    for i in 0..4 {
        let letter = letter(flags, i);
        let bit = bit_of(letter);
        if bit & (F | S | K) != 0 {
            let name = (u64::from(b' ') | letter << 8) as u16;
            packet.write(PAYLOAD + at, name)?;
            sum += shifted(name.into(), at);
            let shown = Shown::of(packet, kept, found, &numbers, bit, PAYLOAD + at + 2)?;
            sum += shifted(shown.sum, at);
            at += 2 + shown.len;
        }
        at = packet.forgotten(at);
        sum = packet.forgotten(sum);
    }
    copy_part(
        packet,
        PAYLOAD + at,
        found.entry,
        found.data - 2,
        found.data_len() + 4,
    )?;
    Some(sum + sum_of_block(found, kept.key_len, kept.key_sum, at)?)
}

/// What a flag of an `mg` shows.
struct Shown {
    len: u64,
    /// The first byte the first of a word, not folded.
    sum: u64,
}

impl Shown {
    /// Writes it at a position of the packet, and garbage behind it.
    #[inline(always)]
    fn of(
        packet: Packet,
        kept: &Kept,
        found: &Found,
        numbers: &Numbers,
        bit: u64,
        at: u64,
    ) -> Option<Self> {
        let entry = found.entry;
        let shown = if bit == S {
            packet.write(at, numbers.size as u32)?;
            Self {
                len: numbers.size_len,
                sum: numbers.size,
            }
        } else if bit == F {
            let len = numbers.flags_len;
            let word = swar::keep(entry.word(numbers.flags)?, len);
            let rest = if len > 8 {
                swar::keep(entry.word(numbers.flags + 8)?, len - 8)
            } else {
                0
            };
            packet.write(at, word)?;
            packet.write(at + 8, rest as u16)?;
            Self {
                len,
                sum: add_word(rest, word),
            }
        } else {
            let len = kept.key_len;
            if len < 8 {
                packet.write(at, entry.word(KEY_AT)?)?;
            } else {
                copy_part(packet, at, entry, KEY_AT, len)?;
            }
            Self {
                len,
                sum: kept.key_sum,
            }
        };
        Some(Self {
            len: packet.forgotten(shown.len),
            sum: packet.forgotten(shown.sum),
        })
    }
}
