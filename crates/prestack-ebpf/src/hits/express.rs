//! The express way of plain segments: IPv4 without tags or IP options, through the first door of the configuration,
//! with no TCP options or timestamps alone, and no flags but those of data. Of those, `get <key>\r\n` through the
//! first link and network is looked up without being copied.
//!
//! It does what the other steps do for any segment, which take what is not just so.

use aya_ebpf::bindings::xdp_md;
use aya_ebpf::programs::XdpContext;
use prestack_abi::cache::EntryHeader;
use prestack_abi::config::{Config, Door, Link, MAPPED_V4};
use prestack_abi::flow::{Flow, FlowKey};
use prestack_abi::translated::{MAX_ANSWER, Translated};
use prestack_proto::checksum::{add_word, fold};
use prestack_proto::hash::{backend_seed, finish, mix};
use prestack_proto::net::{
    ETHERNET_LEN, ETHERTYPE_IPV4, IPV4_DONT_FRAGMENT, IPV4_FRAGMENT, IPV4_LEN, PROTO_TCP, TCP_ACK,
    TCP_LEN, TCP_PSH,
};
use prestack_proto::text::reply::KEY_AT;
use prestack_proto::verifier::opaque;
use prestack_proto::window::Source;
use prestack_proto::{MAX_KEY, swar};
use prestack_translate::Segment;

use super::arrive::{self, FOLLOW, NOTHING, PLAIN};
use super::element;
use super::growth;
use super::merged::is_partial_sum;
use super::numbered::{TIMESTAMPS_LEN, USUAL_OPTIONS};
use super::requests::may_answer;
use crate::cache::find::{Query, find_with};
use crate::clock;
use crate::inbound::Inbound;
use crate::ledger::backend::{self, Arrival};
use crate::maps::count;
use crate::packet::{Addresses, Headers, Packet};
use crate::rx::allow::is_spoof_prone;
use crate::scratch::{Scratch, scratch};
use crate::tcp::segment::name_of;
use crate::tcp::{flow, table};

/// Position of the IP header, of the TCP header, and behind one without options.
const L3: u64 = ETHERNET_LEN as u64;
const L4: u64 = L3 + IPV4_LEN as u64;
const SHORTEST: u64 = L4 + TCP_LEN as u64;
/// Position behind a TCP header with timestamps.
const WITH_TIMESTAMPS: u64 = SHORTEST + TIMESTAMPS_LEN;
/// `get ` and the line end, as they are read.
const GET: u32 = u32::from_le_bytes(*b"get ");
const CRLF: u16 = u16::from_le_bytes(*b"\r\n");
/// `get ` and the line end.
const AROUND_KEY: u64 = 6;
/// Words of the longest key.
const KEY_WORDS: u64 = (MAX_KEY / 8) as u64;

const _: () = assert!(L4 == 34 && SHORTEST == 54 && WITH_TIMESTAMPS == 66);

/// The segment is left to the other steps.
pub const OTHER: u64 = u64::MAX;

/// Finds the connection of the segment in the packet, as `prestack_hits_find` does: [`PLAIN`] if requests may be
/// answered on it, [`OTHER`] if that is to look.
///
/// A global function (by its unmangled name), as that which follows: the verifier checks it once.
///
/// # Safety
///
/// `ctx` is the program's context.
#[unsafe(no_mangle)]
#[inline(never)]
pub unsafe extern "C" fn prestack_hits_find_plain(ctx: *mut xdp_md) -> u64 {
    find(&XdpContext::new(ctx)).unwrap_or(OTHER)
}

#[inline(always)]
fn find(ctx: &XdpContext) -> Option<u64> {
    const TYPES: u64 = (ETHERTYPE_IPV4.to_be() as u64) | 0x45 << 16;
    const FRAGMENT: u64 = ((IPV4_FRAGMENT | IPV4_DONT_FRAGMENT).to_be() as u64) << 32;
    const WHOLE_TCP: u64 = (IPV4_DONT_FRAGMENT.to_be() as u64) << 32 | (PROTO_TCP as u64) << 56;
    const FLAGS: u64 = (TCP_ACK as u64) << 8;
    const OTHER_FLAGS: u64 = 0x0f | (0xff & !(TCP_PSH as u64)) << 8;
    const CONGESTED: u64 = 3;
    let (scratch, config) = (scratch()?, backend::config()?);
    let packet = ctx.packet(config);
    if !packet.reaches(SHORTEST) {
        return None;
    }
    // SAFETY: just checked.
    let word = |at| unsafe { packet.fixed::<u64>(at) };
    let (types, lengths) = (word(8), word(16));
    let (addresses, ports, last) = (word(26), word(34), word(42));
    let unusual = (types >> 32 & 0x00ff_ffff ^ TYPES)
        | (lengths & (FRAGMENT | 0xff << 56) ^ WHOLE_TCP)
        | (last >> 32 & OTHER_FLAGS ^ FLAGS);
    if unusual != 0 || types >> 56 & CONGESTED == CONGESTED {
        return None;
    }
    let (source, destination) = (addresses as u32, (addresses >> 32) as u32);
    let (source_port, port) = (ports as u16, (ports >> 16) as u16);
    let door = &config.doors[0];
    if u64::from(door.port ^ port)
        | u64::from(door.address[3] ^ destination)
        | u64::from(door.address[2] ^ MAPPED_V4)
        | u64::from(door.address[0] | door.address[1])
        | u64::from((door.flags ^ Door::HAS_TCP4) & (Door::HAS_TCP4 | Door::ANY_ADDRESS))
        != 0
        || config.doors_len == 0
    {
        return None;
    }
    let header_len = (last >> 36 & 0x0f) * 4;
    let total = u64::from((lengths as u16).swap_bytes());
    if total < IPV4_LEN as u64 + header_len {
        return None;
    }
    let mut segment = Segment {
        sequence: ((ports >> 32) as u32).swap_bytes(),
        acknowledgement: (last as u32).swap_bytes(),
        len: (total - IPV4_LEN as u64 - header_len) as u32,
        flags: (last >> 40) as u32 & 0xff,
        window: u32::from(((last >> 48) as u16).swap_bytes()),
        ..Segment::default()
    };
    let options = header_len.wrapping_sub(TCP_LEN as u64);
    if options == TIMESTAMPS_LEN {
        if !packet.reaches(WITH_TIMESTAMPS) {
            return None;
        }
        // SAFETY: just checked.
        let [kinds, timestamp, echo] = unsafe { packet.fixed::<[u32; 3]>(SHORTEST) };
        if kinds != USUAL_OPTIONS {
            return None;
        }
        segment.has_timestamps = 1;
        segment.timestamp = timestamp.swap_bytes();
        segment.echo = echo.swap_bytes();
    } else if options != 0 {
        return None;
    }
    let client = [0, 0, MAPPED_V4, source];
    let server = [0, 0, MAPPED_V4, destination];
    let key = FlowKey {
        client,
        server,
        client_port: source_port,
        server_port: port,
    };
    let other = if segment.len == 0 { NOTHING } else { FOLLOW };
    let Some(known) = table::find(name_of(config, &key), clock::now()) else {
        return Some(other);
    };
    if element::state(element::at(known.place)?) != Translated::READY {
        return Some(other);
    }
    let headers = Headers {
        l3: L3,
        l4: L4,
        l4_len: total - IPV4_LEN as u64,
        v6: false,
        udp: false,
        ports: ports as u32,
        addresses: Addresses {
            source: client,
            destination: server,
        },
    };
    let door = Arrival {
        backend: door.backend,
        flags: door.flags,
    };
    arrive::note(scratch, &segment, options, headers, door, known.place);
    Some(PLAIN)
}

/// What [`prestack_hits_get`] says: the other steps are to look at the requests; there is no answer; the answer is in
/// the scratch.
pub const LOOK: u64 = 0;
pub const NO_ANSWER: u64 = 1;
pub const ANSWER: u64 = 2;

/// Looks up the one key of the plain segment in the scratch and in the packet.
///
/// # Safety
///
/// `ctx` is the program's context.
#[unsafe(no_mangle)]
#[inline(never)]
pub unsafe extern "C" fn prestack_hits_get(ctx: *mut xdp_md) -> u64 {
    get(&XdpContext::new(ctx)).unwrap_or(LOOK)
}

#[inline(always)]
fn get(ctx: &XdpContext) -> Option<u64> {
    let (scratch, config) = (scratch()?, backend::config()?);
    // SAFETY: this CPU's scratch.
    let (place, options, len, number, door) = unsafe {
        let numbered = &raw const (*scratch).numbered;
        (
            (&raw const (*numbered).place).read_volatile(),
            (&raw const (*numbered).options).read_volatile(),
            u64::from((&raw const (*numbered).segment.len).read_volatile()),
            (&raw const (*scratch).located.backend).read_volatile() as u8,
            (&raw const (*scratch).located.flags).read_volatile(),
        )
    };
    let now = clock::now();
    if len == 0
        || config.policy.is_serving == 0
        || now >= config.serve_until
        || !may_answer(place, door)?
    {
        return Some(NO_ANSWER);
    }
    let key_len = len.wrapping_sub(AROUND_KEY);
    // SAFETY: a map element.
    let protocol = unsafe { (&raw const (*flow::at(place)?).protocol).read_volatile() };
    if key_len == 0 || key_len > MAX_KEY as u64 || protocol != Flow::TEXT {
        return None;
    }
    let packet = ctx.packet(config);
    if !packet.reaches(SHORTEST) || !is_admitted(ctx, config, packet) {
        return None;
    }
    let header_sum = header_sum(packet, options, len)?;
    let data = packet.forgotten(SHORTEST + options);
    if packet.read::<u32>(data)? != GET || packet.read::<u16>(data + 4 + key_len)? != CRLF {
        return None;
    }
    let mut hash = backend_seed(config.seed, number);
    let mut sum = u64::from(GET);
    // A position that the verifier knows to be small, so that constants may be added to it.
    let key = opaque(packet.start + (opaque(data + 4) & 0x7f));
    for i in 0..KEY_WORDS {
        if 8 * i + 8 > key_len {
            break;
        }
        if key + 8 * i + 8 > packet.end {
            return None;
        }
        // SAFETY: just checked. BPF reads words at any address.
        let word = unsafe { *((key + 8 * i) as *const u64) };
        if swar::below(word, 0x21) != 0 {
            return None;
        }
        hash = mix(hash, word);
        sum = add_word(sum, word);
    }
    let rest = key_len & 7;
    let mut tail = 0;
    if rest != 0 {
        let word: u64 = packet.read(data + 4 + key_len - 8)?;
        tail = word >> (64 - 8 * rest);
        let padded = tail | swar::repeat(0x21) << (8 * rest);
        if swar::below(padded, 0x21) != 0 {
            return None;
        }
        hash = mix(hash, tail);
        sum = add_word(sum, tail);
    }
    sum += u64::from(if rest & 1 == 0 {
        CRLF
    } else {
        CRLF.swap_bytes()
    });
    let sum = header_sum + sum;
    if !checksum_holds(config, packet, sum, len + TCP_LEN as u64 + options) {
        return None;
    }
    let query = Query {
        config,
        backend: number,
        epoch: backend::epoch(backend::backend(number)?, now),
        now,
        hash: finish(hash, key_len),
    };
    let found = find_with(query, key_len, |entry| {
        for i in 0..KEY_WORDS {
            if 8 * i + 8 > key_len {
                break;
            }
            if key + 8 * i + 8 > packet.end {
                return false;
            }
            // SAFETY: just checked. BPF reads words at any address.
            let word = unsafe { *((key + 8 * i) as *const u64) };
            if entry.word(KEY_AT + 8 * i) != Some(word) {
                return false;
            }
        }
        rest == 0
            || entry
                .word(KEY_AT + key_len - 8)
                .is_some_and(|word| word >> (64 - 8 * rest) == tail)
    });
    let Some(found) = found else {
        count!(tcp_misses);
        return Some(NO_ANSWER);
    };
    let reply_len = found.reply_len;
    if !found.knows(EntryHeader::FLAGS)
        || reply_len > config.policy.room
        || reply_len > MAX_ANSWER as u64
        || is_refused(ctx, scratch, SHORTEST + options + reply_len, packet)
    {
        count!(tcp_misses);
        return Some(NO_ANSWER);
    }
    // SAFETY: this CPU's scratch.
    let (answer, numbered) = unsafe { (&mut (*scratch).answer, &mut (*scratch).numbered) };
    for i in 0..MAX_ANSWER as u64 / 8 {
        if 8 * i >= reply_len {
            break;
        }
        answer.set_word(8 * i, found.entry.word_before_end(8 * i));
    }
    if !found.is_unchanged() {
        count!(races);
        return Some(NO_ANSWER);
    }
    numbered.answer = reply_len;
    numbered.sum = found.sum.into();
    Some(ANSWER)
}

/// Whether no packet can hold so many bytes as far as was seen.
#[inline(always)]
fn is_refused(ctx: &XdpContext, scratch: *mut Scratch, new_len: u64, packet: Packet) -> bool {
    let len = packet.len();
    new_len > len && growth::is_refused(ctx, scratch, new_len - len)
}

/// Whether the segment came over the first link, from a source of the first network, which is served there.
#[inline(always)]
fn is_admitted(ctx: &XdpContext, config: &Config, packet: Packet) -> bool {
    let link = &config.links[0];
    // SAFETY: the packet reaches further.
    let (macs, source, ports) = unsafe {
        (
            packet.fixed::<u64>(0),
            packet.fixed::<u32>(26),
            packet.fixed::<u32>(L4),
        )
    };
    (macs & Link::MAC ^ link.mac) | (ctx.ingress_ifindex() as u64 ^ link.place) == 0
        && link.allow & 1 != 0
        && config.allow4_len != 0
        && config.allow4[0].has_host(source)
        && !is_spoof_prone(config, ports, macs)
}

/// The sum of the TCP header and of the pseudo header, not folded; `None` if the IP header's checksum does not hold.
#[inline(always)]
fn header_sum(packet: Packet, options: u64, len: u64) -> Option<u64> {
    // SAFETY: the packet reaches further.
    let word = |at| unsafe { packet.fixed::<u64>(at) };
    let (addresses, lengths) = (word(26), word(16));
    let addresses = (addresses & 0xffff_ffff) + (addresses >> 32);
    let ip = (word(8) >> 48) + u64::from(word(24) as u16) + addresses;
    if fold(add_word(ip, lengths)) != 0xffff {
        return None;
    }
    let l4_len = (len + TCP_LEN as u64 + options) as u16;
    let pseudo = addresses + u64::from(u16::to_be(PROTO_TCP.into())) + u64::from(l4_len.to_be());
    // SAFETY: as above.
    let last = u64::from(unsafe { packet.fixed::<u32>(L4 + 16) });
    let mut sum = add_word(add_word(pseudo + last, word(L4)), word(L4 + 8));
    if options != 0 {
        if !packet.reaches(WITH_TIMESTAMPS) {
            return None;
        }
        // SAFETY: just checked.
        let [kinds, timestamp, echo] = unsafe { packet.fixed::<[u32; 3]>(SHORTEST) };
        sum += u64::from(kinds) + u64::from(timestamp) + u64::from(echo);
    }
    Some(sum)
}

/// Whether the TCP checksum holds, given the sum of everything.
#[inline(always)]
fn checksum_holds(config: &Config, packet: Packet, sum: u64, l4_len: u64) -> bool {
    // SAFETY: the packet reaches further.
    let (addresses, field) = unsafe { (packet.fixed::<u64>(26), packet.fixed::<u16>(L4 + 16)) };
    let addresses = (addresses & 0xffff_ffff) + (addresses >> 32);
    let l4_len = u64::from((l4_len as u16).to_be());
    let pseudo = addresses + u64::from(u16::to_be(PROTO_TCP.into())) + l4_len;
    fold(sum) == 0xffff || is_partial_sum(config, field, pseudo)
}
