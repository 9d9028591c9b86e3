//! A segment with the numbers that count.

use prestack_abi::flow::FlowKey;
use prestack_proto::checksum::fold;
use prestack_proto::net::TCP_LEN;
use prestack_proto::verifier::opaque;
use prestack_proto::window::{Source, Window};
use prestack_translate::{Again, Block, MAX_BLOCKS, Options, Reply, Segment};

use crate::packet::{Headers, Packet};

/// No operation twice, then timestamps (RFC 7323, appendix A): as Linux and most others send them.
pub const USUAL_OPTIONS: u32 = u32::from_le_bytes([1, 1, 8, 10]);
/// Bytes of these options, and of nothing else.
pub const TIMESTAMPS_LEN: u64 = 12;
/// Flags of a TCP header in its fourth word: 12 bits in network byte order.
const FLAGS: u16 = 0x0fff;

/// A segment of a connection on which requests are answered.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Numbered {
    /// What its header says.
    pub segment: Segment,
    /// The flow's place in `FLOWS`.
    pub place: u32,
    /// Position of the IP header.
    pub l3: u64,
    /// Position of the TCP header.
    pub l4: u64,
    /// Bytes of TCP options.
    pub options: u64,
    /// Non-zero for IPv6.
    pub v6: u64,
    /// Where the options' numbers are.
    pub found: Options,
    /// The SACK blocks, in the numbers of the end that gets them once it is translated.
    pub blocks: [Block; MAX_BLOCKS as usize],
    /// The numbers of the other end: sequence, acknowledgement.
    pub sequence: u32,
    pub acknowledgement: u32,
    /// The window field for the kernel.
    pub window: u32,
    /// The header of the segment that is sent in its place.
    pub reply: Reply,
    /// What is sent again in its place.
    pub again: Again,
    /// What to do with one that leaves.
    pub departing: u32,
    /// Non-zero if segments of the connection have timestamps.
    pub has_timestamps: u64,
    /// Bytes of the answer.
    pub answer: u64,
    /// Its one's-complement sum, if the express way has found it.
    pub sum: u64,
    /// Position in the window of the next request, and of what is behind the last.
    pub at: u64,
    pub end: u64,
}

impl Numbered {
    /// Bytes of the TCP header.
    #[inline(always)]
    pub fn header_len(&self) -> u64 {
        TCP_LEN as u64 + self.options
    }
}

/// The segment's header, but for options that are not as usual: [`Options`] are to be found then, which the
/// second value says.
#[inline(always)]
pub fn read(packet: Packet, headers: &Headers, is_congested: bool) -> Option<(Segment, u64, bool)> {
    let l4 = headers.l4;
    let tcp = packet.at::<[u32; 5]>(l4)?;
    // SAFETY: `at` checked the length.
    let [_, sequence, acknowledgement, last, _] = unsafe { *tcp };
    let offset = u64::from(last as u8 >> 4) * 4;
    if offset < TCP_LEN as u64 || offset > headers.l4_len {
        return None;
    }
    let options = offset - TCP_LEN as u64;
    let mut segment = Segment {
        sequence: sequence.swap_bytes(),
        acknowledgement: acknowledgement.swap_bytes(),
        len: (headers.l4_len - offset) as u32,
        flags: u32::from((last as u16).swap_bytes() & FLAGS),
        window: u32::from(((last >> 16) as u16).swap_bytes()),
        has_timestamps: 0,
        timestamp: 0,
        echo: 0,
        is_congested: is_congested.into(),
    };
    let mut is_usual = options == 0;
    if options >= TIMESTAMPS_LEN
        && let Some(words) = packet.at::<[u32; 3]>(l4 + TCP_LEN as u64)
    {
        // SAFETY: as above.
        let [kinds, timestamp, echo] = unsafe { *words };
        if kinds == USUAL_OPTIONS {
            segment.has_timestamps = 1;
            segment.timestamp = timestamp.swap_bytes();
            segment.echo = echo.swap_bytes();
            is_usual = options == TIMESTAMPS_LEN;
        }
    }
    Some((segment, options, is_usual))
}

/// Takes note of the options, which are at the start of the window.
#[inline(always)]
pub fn read_options(numbered: &mut Numbered, window: &Window) {
    let found = Options::find(window, window.forgotten(numbered.options));
    numbered.found = found;
    if found.timestamps != 0 {
        let word = window.word(found.timestamps);
        numbered.segment.has_timestamps = 1;
        numbered.segment.timestamp = (word as u32).swap_bytes();
        numbered.segment.echo = ((word >> 32) as u32).swap_bytes();
    }
    for i in 0..MAX_BLOCKS as usize {
        let word = window.word(found.blocks + 8 * i as u64);
        numbered.blocks[i] = Block {
            start: (word as u32).swap_bytes(),
            end: ((word >> 32) as u32).swap_bytes(),
        };
    }
}

/// The flow of a packet; with `is_reply` memcached is the source.
#[inline(always)]
pub fn key(headers: &Headers, is_reply: bool) -> FlowKey {
    let addresses = &headers.addresses;
    let (source, destination) = (headers.source_port(), headers.destination_port());
    if is_reply {
        FlowKey {
            client: addresses.destination,
            server: addresses.source,
            client_port: destination,
            server_port: source,
        }
    } else {
        FlowKey {
            client: addresses.source,
            server: addresses.destination,
            client_port: source,
            server_port: destination,
        }
    }
}

/// Bytes of options to be loaded, bounded for a helper: 1 to 40.
#[inline(always)]
pub fn options_size(options: u64) -> u32 {
    ((opaque(options.wrapping_sub(1)) & 0x3f) + 1) as u32
}

/// Greatest position of a SACK block in options.
pub const MAX_BLOCKS_AT: u64 = 0x3f;

/// What is to be added to the one's-complement sum of a segment when a SACK block goes from `old` to `new`, as they
/// lie in the packet, `at` bytes behind a position that is even.
#[inline(always)]
pub fn change_of_block(old: u64, new: u64, at: u64) -> u64 {
    let halves = |word: u64| (word & 0xffff_ffff) + (word >> 32);
    let change = u64::from(!fold(halves(old))) + halves(new);
    // At an odd position each byte is in the other half of its word.
    if at & 1 == 0 {
        change
    } else {
        u64::from(fold(change).swap_bytes())
    }
}
