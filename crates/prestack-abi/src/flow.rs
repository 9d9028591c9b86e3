//! TCP flows: how far the byte streams of both directions have been understood.

use crate::control::bpf_spin_lock;
use crate::requests::RequestKey;

/// Flows in a set.
pub const FLOW_WAYS: usize = 16;
/// Sets in the `FLOW_SETS` map unless user space gives it another power of two.
pub const FLOW_SETS: usize = 512;
/// Most flows that are followed then: elements of the `FLOWS` map. The data of others empties the cache.
pub const MAX_FLOWS: usize = FLOW_SETS * FLOW_WAYS;
/// Most flows that can be followed: their places fit the marks of writes.
pub const MOST_FLOWS: usize = 1 << 16;

/// Bytes of a request that can be carried from one segment to the next: a line, or the header and key
/// of a binary request, that was cut.
pub const MAX_CARRY: usize = 512;
/// Bytes of a reply that can be carried: the longest `VALUE` line has 301.
pub const MAX_REPLY_CARRY: usize = 320;
/// Unanswered commands of a flow (a power of two).
pub const MAX_ASKED: usize = 512;
/// Tickets of a flow (a power of two).
pub const FLOW_TICKETS: usize = 8;
/// Segments of a flow to which its requests can be taken back (a power of two).
pub const SNAPSHOTS: usize = 8;

/// A TCP 4-tuple as it arrives; addresses and ports in network byte order, IPv4 mapped.
#[repr(C)]
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, Debug)]
pub struct FlowKey {
    /// The client's address.
    pub client: [u32; 4],
    /// memcached's address.
    pub server: [u32; 4],
    /// The client's port.
    pub client_port: u16,
    /// memcached's port.
    pub server_port: u16,
}

/// An element of the `FLOW_SETS` map: which flows there are.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct FlowSet {
    /// Held to change the set.
    pub lock: bpf_spin_lock,
    /// Explicit padding.
    pub reserved: u32,
    /// Names of the flows: hashes of their keys, which are odd. 0 where there is none, another even number
    /// where one is being set up.
    pub names: [u64; FLOW_WAYS],
    /// Coarse monotonic time in ns at which the place of a closed flow is free; 0 while it is open.
    pub over_at: [u64; FLOW_WAYS],
    /// Coarse monotonic time in ns at which the host has agreed to a connection of which nothing has shown
    /// yet that its client exists: it gives way to others. 0 once something has.
    pub half_open_since: [u64; FLOW_WAYS],
}

/// Flows of which something waits for what comes before it, at most: elements of the `HOLES` map.
pub const HOLES: usize = 128;
/// How far what waits may reach beyond the first byte that is missing (a power of two).
pub const HOLE_REACH: usize = 8_192;
/// Bytes of the buffer for that. A stretch lies at its first sequence number modulo [`HOLE_REACH`], in one
/// piece; the last third is never used, but the verifier cannot tell.
pub const HOLE_BYTES: usize = 3 * HOLE_REACH;
/// Stretches that wait, at most.
pub const STRETCHES: usize = 16;

/// Bytes that have come while some before them are missing.
#[repr(C)]
#[derive(Clone, Copy, Default, Debug)]
pub struct Stretch {
    /// Sequence number of the first byte.
    pub sequence: u32,
    /// Bytes that wait.
    pub len: u32,
    /// Non-zero if there are any, or a FIN.
    pub is_kept: u32,
    /// The TCP flags of what came last.
    pub flags: u32,
}

/// An element of the `HOLES` map: bytes of a flow's requests that have come while some before them are
/// missing. Elements are shared by several flows.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Hole {
    /// The flow's place in `FLOWS` and one more, and in the upper half where the flow was when it came to own the
    /// element; 0 if that is free.
    pub owner: u64,
    /// What waits, in no order. No two overlap.
    pub stretches: [Stretch; STRETCHES],
    /// The bytes.
    pub bytes: [u64; HOLE_BYTES / 8],
}

/// What the requests of a flow are at.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum Mode {
    /// The next byte starts a command, or goes on with what is carried.
    Command = 0,
    /// The next bytes are data, up to `data_until`.
    Data = 1,
    /// The next bytes belong to a text `get` that is too long to be carried.
    Keys = 2,
}

/// State of the requests of a flow at the first byte of a segment.
#[repr(C)]
#[derive(Clone, Copy, Default, Debug)]
pub struct Snapshot {
    /// Commands that are owed a reply, since ever.
    pub asked: u64,
    /// Sequence number of the byte.
    pub sequence: u32,
    /// A [`Mode`].
    pub mode: u32,
    /// Sequence numbers of the current or latest data block.
    pub data_from: u32,
    /// The one behind it.
    pub data_until: u32,
    /// Bytes carried.
    pub carried: u32,
    /// How often `carry` had been written.
    pub carries: u32,
    /// [`Flow::protocol`].
    pub protocol: u32,
    /// [`Flow::quiets`].
    pub quiets: u32,
    /// [`Flow::carry_hash`].
    pub carry_hash: u64,
}

/// A GET's licence to fill the cache with its reply.
#[repr(C)]
#[derive(Clone, Copy, Default, Debug)]
pub struct FlowTicket {
    /// Hash of the key; 0 if there is no ticket.
    pub key: u64,
    /// Coarse monotonic time in ns at which the GET arrived.
    pub time: u64,
    /// The number of the command on its flow.
    pub number: u64,
    /// The bucket's version then.
    pub version: u32,
    /// The backend's epoch then.
    pub epoch: u32,
}

/// An element of the `FLOWS` map.
#[repr(C, align(64))]
#[derive(Clone, Copy)]
pub struct Flow {
    /// Commands that are owed a reply, since ever (the numbers go on when the element is used for
    /// another flow): the number of the next one. `rx` writes it.
    pub asked: u64,
    /// Replies that have left: the number of the command whose reply comes next. `tx` writes it.
    pub counted: u64,
    /// The same as far as it is certain: commands with lower numbers have ended.
    pub answered: u64,
    /// Non-zero while a program is at work on the requests, or begins to count the replies to an exchange, or ends it.
    pub busy: u64,
    /// Coarse monotonic time in ns at which doubt arose.
    pub doubt_since: u64,
    /// Coarse monotonic time in ns at which either end sent data last, if the flow is in doubt.
    pub heard_at: u64,
    /// Number of the first command of the exchange that is under way, or was the last.
    pub exchange_from: u64,
    /// Coarse monotonic time in ns from which a closed flow's writes count as ended; 0 while it is open.
    pub over_at: u64,
    /// Coarse monotonic time in ns: what arrived before it has been acknowledged. `u64::MAX` if all has.
    pub acked_before: u64,
    /// Coarse monotonic time in ns at which a quiet command arrived last.
    pub quiet_at: u64,
    /// Coarse monotonic time in ns at which a quiet `flush_all` arrived last.
    pub quiet_flush_at: u64,
    /// Coarse monotonic time in ns at which memcached sent data last, once a quiet command has arrived.
    pub replied_at: u64,
    /// Coarse monotonic time in ns at which `marked` was the next byte.
    pub marked_at: u64,
    /// Coarse monotonic time in ns since which something has been unacknowledged, or earlier.
    pub unacked_since: u64,
    /// What the backend waits for: 0, [`Flow::OWES_REPLY`] or [`Flow::OWES_ANY`]. Swapped, so that the
    /// flow's part in the backend's `waits` is given back once.
    pub owes: u64,
    /// Non-zero while it counts in the backend's `crowding`, until `crowded_number` is answered. Swapped.
    pub is_crowding: u64,
    /// Number of the last command for whose end the whole backend waits (`owes`).
    pub owed_number: u64,
    /// Sequence number behind the last byte from the client.
    pub next: u32,
    /// Sequence number behind the last byte that the kernel has acknowledged.
    pub acked: u32,
    /// Sequence number that was the next byte at `marked_at`.
    pub marked: u32,
    /// [`Flow::LAST`] or [`Flow::EARLIER`] while bytes are parsed that were seen before.
    pub is_repeat: u32,
    /// Sequence number behind the receive window.
    pub edge: u32,
    /// Sequence number behind the last byte sent.
    pub sent: u32,
    /// Bits of doubt: [`Flow::REQUESTS`], [`Flow::REPLIES`], [`Flow::PART`].
    pub doubt: u32,
    /// Exchanges since then that were as expected.
    pub exchanges: u32,
    /// [`Flow::ASKED`] or [`Flow::REPLIED`] while an exchange is under way in doubt.
    pub is_tentative: u32,
    /// [`Flow::CLOSED`], [`Flow::OPENING`], ...
    pub state: u32,
    /// Non-zero once a packet to the client was seen: `acked`, `edge` and `sent` are known.
    pub is_seen: u32,
    /// log₂ of the unit of the window field.
    pub window_scale: u32,
    /// Which backend.
    pub backend: u32,
    /// Sequence number behind the last byte that came while the requests were in doubt.
    pub doubted_until: u32,
    /// Number of the last write that found no mark in its bucket.
    pub crowded_number: u64,
    /// Coarse monotonic time in ns for which a `flush_all` was asked that has not been answered; 0 if
    /// there is none.
    pub flush_due: u64,
    /// Coarse monotonic time in ns at which it was asked for.
    pub flush_asked: u64,

    /// A [`Mode`].
    pub mode: u32,
    /// 0 before the first byte, then [`Flow::TEXT`] or [`Flow::BINARY`]: memcached decides by the
    /// first byte of a connection.
    pub protocol: u32,
    /// Sequence number of the first byte of the current or latest data block.
    pub data_from: u32,
    /// Sequence number behind its last byte.
    pub data_until: u32,
    /// Bytes in `carry`.
    pub carried: u32,
    /// How often `carry` was written.
    pub carries: u32,
    /// Quiet commands since the last one that is owed a reply (`prestack_proto::stream::QUIET_TEXT` and
    /// `QUIET_META`).
    pub quiets: u32,
    /// State of the requests before they were taken back.
    pub before: Snapshot,
    /// State that they are to be in when what was seen before has been parsed again.
    pub expected: Snapshot,
    /// Hash of the bytes in `carry`.
    pub carry_hash: u64,
    /// In which turn of `carry` they are.
    pub carry_turn: u32,
    /// [`Flow::KEPT`] and [`Flow::NOT_KEPT`], while something has come and some before it is missing.
    pub has_hole: u32,
    /// Sequence number of the first byte that was not kept.
    pub not_kept_from: u32,
    /// The one behind the last of these.
    pub not_kept_until: u32,
    /// Snapshots taken.
    pub snapshots_taken: u32,
    /// Tickets given.
    pub tickets_given: u32,

    /// Bytes in `reply_carry`.
    pub reply_carried: u32,
    /// Non-zero while the next bytes to the client are data, up to `reply_until`.
    pub is_reply_data: u32,
    /// Sequence number behind that data.
    pub reply_until: u32,

    /// The 4-tuple.
    pub key: FlowKey,
    /// Non-zero if neither end had sent anything for the settle time when the exchanges began.
    pub is_rested: u32,
    /// Non-zero while something that may be a write, and of which is not known what it is or when it is answered, may
    /// still be under way: every reply empties the cache.
    pub is_unsettled: u32,
    /// Sequence number behind the last byte that was kept in `HOLES`, while anything is.
    pub kept_until: u32,
    /// Sequence number of the first byte of the exchange.
    pub exchange_at: u32,
    /// Number of the command whose key is in `kept`.
    pub kept_number: u64,
    /// The key of a GET with a ticket whose reply does not name it.
    pub kept: RequestKey,
    /// Tickets, a ring.
    pub tickets: [FlowTicket; FLOW_TICKETS],
    /// Snapshots, a ring.
    pub snapshots: [Snapshot; SNAPSHOTS],
    /// What the commands that are owed a reply are, a ring: of the text protocol a
    /// `prestack_proto::stream::Ask` and the quiet commands before it, of the binary protocol the
    /// opcode.
    pub asks: [u8; MAX_ASKED],
    /// The beginning of a command. Written in turns, so that what was carried before is still there; the third
    /// is for what is parsed again.
    pub carry: [[u64; MAX_CARRY / 8]; 3],
    /// The beginning of a reply.
    pub reply_carry: [u64; MAX_REPLY_CARRY / 8],
}

impl Flow {
    /// Which commands have arrived is in doubt: the flow's data empties the cache.
    pub const REQUESTS: u32 = 1;
    /// Which commands have been answered is in doubt: none counts as answered.
    pub const REPLIES: u32 = 2;
    /// The flow is a part of a Multipath TCP connection: memcached gets its bytes among those of other parts, so
    /// doubt does not end.
    pub const PART: u32 = 4;

    /// The flow is not open.
    pub const CLOSED: u32 = 0;
    /// memcached's host has agreed to the connection, and nothing has come of it.
    pub const OPENING: u32 = 1;
    /// The connection is established.
    pub const OPEN: u32 = 2;
    /// The client has reset it, and the host has not shown that it did not heed that.
    pub const RESET: u32 = 3;

    /// What was seen before is the latest segment.
    pub const LAST: u32 = 1;
    /// It is an earlier one.
    pub const EARLIER: u32 = 2;

    /// Bytes of the flow wait in `HOLES`.
    pub const KEPT: u32 = 1;
    /// Others could not be kept.
    pub const NOT_KEPT: u32 = 2;

    /// The flow speaks the text protocol.
    pub const TEXT: u32 = 1;
    /// The flow speaks the binary protocol.
    pub const BINARY: u32 = 2;

    /// Nothing has left in the exchange yet.
    pub const ASKED: u32 = 1;
    /// Replies have begun to leave.
    pub const REPLIED: u32 = 2;

    /// The backend waits for the reply to the command `owed_number`.
    pub const OWES_REPLY: u64 = 1;
    /// The backend waits for any reply.
    pub const OWES_ANY: u64 = 2;
}

const _: () = assert!(size_of::<FlowKey>() == 36);
const _: () = assert!(size_of::<Snapshot>() == 48);
const _: () = assert!(size_of::<FlowTicket>() == 32);
const _: () = assert!(FLOW_SETS.is_power_of_two() && MAX_ASKED.is_power_of_two());
const _: () = assert!(FLOW_TICKETS.is_power_of_two() && SNAPSHOTS.is_power_of_two());
const _: () = assert!(MAX_FLOWS <= MOST_FLOWS);

/// What the program gets that ends what is known of a flow, behind an Ethernet header: the flow as it was when it
/// was looked at, and what was found.
#[repr(C)]
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Finding {
    /// Its name.
    pub name: u64,
    /// [`Flow::asked`].
    pub asked: u64,
    /// [`Flow::heard_at`].
    pub heard_at: u64,
    /// Its place.
    pub place: u32,
    /// [`Flow::next`].
    pub next: u32,
    /// [`Flow::acked`].
    pub acked: u32,
    /// [`Flow::sent`].
    pub sent: u32,
    /// [`Finding::GONE`] or [`Finding::IDLE`].
    pub what: u32,
    /// Explicit padding.
    pub reserved: u32,
}

impl Finding {
    /// The flow has no socket any more.
    pub const GONE: u32 = 0;
    /// memcached has read all that came, and all that it sent has been acknowledged: it waits for more.
    pub const IDLE: u32 = 1;
}

const _: () = assert!(size_of::<Finding>() == 48);
