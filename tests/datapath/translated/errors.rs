//! What routers say of segments that the kernel has sent on a connection on which GETs were answered.

use super::connection::Ready;
use super::filled;
use crate::bytes::hit;
use crate::harness::Datapath;
use crate::packet::{ACK, Checksum, PacketBuilder, UDP, VLAN};
use crate::tcp::connection::Connection;

const GET: &str = "get key\r\n";
/// Types and codes: "fragmentation needed" (RFC 792), "packet too big" (RFC 4443).
const TOO_BIG4: (u8, u8) = (3, 4);
const TOO_BIG6: (u8, u8) = (2, 0);
/// Bytes of IP headers.
const IP4: usize = 20;
const IP6: usize = 40;

fn answered(path: &mut Datapath, port: u16, v6: bool) -> Ready {
    let mut connection = Connection::new(port);
    connection.v6 = v6;
    connection.shake_hands(path);
    let mut ready = Ready::of(path, connection, None);
    for _ in 0..2 {
        ready.served(path, GET, hit("key", "value"));
    }
    ready
}

/// What the kernel sends so many bytes before what it sends next, in wire numbers and in its own.
fn sent(ready: &Ready, before: u32, given: u32) -> [PacketBuilder; 2] {
    let kernel = ready.connection.answer(ACK, vec![b'a'; 1460]);
    let sequence = kernel.numbers().0.wrapping_sub(before);
    let wire = kernel.clone().sequence(sequence.wrapping_add(given));
    [wire, kernel.sequence(sequence)]
}

/// It passes: as this.
fn passes(path: &Datapath, error: &PacketBuilder, passed: &PacketBuilder) {
    let ran = path.kernel().programs.rx(&error.build());
    assert_eq!(ran.action, 2, "{error:?}");
    assert_eq!(
        ran.packet.escape_ascii().to_string(),
        passed.build().escape_ascii().to_string(),
        "{error:?}"
    );
}

/// But for the quoted packet's own checksum, which nobody looks at: most routers quote less.
fn is_translated(path: &Datapath, error: &PacketBuilder, kernel: &PacketBuilder, ip: usize) {
    let mut passed = error.clone();
    let at = passed.payload.len().min(ip + 8);
    passed.payload[ip..at].copy_from_slice(&kernel.build()[14..][ip..at]);
    assert_ne!(passed.payload, error.payload);
    passes(path, error, &passed);
}

fn is_untouched(path: &Datapath, error: &PacketBuilder) {
    passes(path, error, error);
}

#[test]
fn the_quoted_number_is_the_kernels() {
    let kinds4 = [TOO_BIG4, (3, 1), (11, 0), (12, 0)];
    let kinds6 = [TOO_BIG6, (1, 0), (3, 0), (4, 1)];
    for (v6, ip, kinds) in [(false, IP4, kinds4), (true, IP6, kinds6)] {
        let mut path = filled();
        let ready = answered(&mut path, 4800, v6);
        let [wire, kernel] = sent(&ready, 0, ready.given);
        for (kind, code) in kinds {
            // All that there must be, and what routers of today quote.
            for quoted in [ip + 8, ip + 20, 500] {
                let error = PacketBuilder::error(kind, code, &wire, quoted);
                is_translated(&path, &error, &kernel, ip);
                is_translated(&path, &error.clone().tag(VLAN, 7), &kernel, ip);
                let damaged = error.checksum(Checksum::Wrong);
                is_translated(&path, &damaged, &kernel, ip);
            }
        }
    }
}

#[test]
fn what_lies_before_the_answer_and_behind_options_is_translated() {
    let mut path = filled();
    let ready = answered(&mut path, 4801, false);
    let (kind, code) = TOO_BIG4;
    let last = hit("key", "value").len() as u32;
    let [wire, kernel] = sent(&ready, 20, ready.given - last);
    let error = PacketBuilder::error(kind, code, &wire, IP4 + 8);
    is_translated(&path, &error, &kernel, IP4);
    // No operation, four times.
    let options = [1, 1, 1, 1];
    is_translated(&path, &error.ip_options(&options), &kernel, IP4);
    let (wire, kernel) = (wire.ip_options(&options), kernel.ip_options(&options));
    let error = PacketBuilder::error(kind, code, &wire, IP4 + 4 + 8);
    is_translated(&path, &error, &kernel, IP4 + 4);
    // The answer itself, to the kernel, is what it sends next.
    let [_, kernel] = sent(&ready, 0, 0);
    let [answer, _] = sent(&ready, 0, ready.given - last);
    let error = PacketBuilder::error(kind, code, &answer, IP4 + 8);
    is_translated(&path, &error, &kernel, IP4);
}

#[test]
fn all_else_is_untouched() {
    for (v6, ip, (kind, code), other) in [(false, IP4, TOO_BIG4, 8), (true, IP6, TOO_BIG6, 128)] {
        let mut path = filled();
        let ready = answered(&mut path, 4802, v6);
        let [wire, _] = sent(&ready, 0, ready.given);
        let about = |packet: &PacketBuilder| PacketBuilder::error(kind, code, packet, ip + 8);
        // Of other connections, and what memcached's clients have sent.
        is_untouched(&path, &about(&wire.clone().server_port(4803)));
        is_untouched(&path, &about(&wire.clone().client_port(4803)));
        is_untouched(&path, &about(&wire.clone().reversed()));
        let mut fresh = Connection::new(4804);
        fresh.v6 = v6;
        fresh.shake_hands(&path);
        let fresh = Ready::of(&mut path, fresh, None);
        is_untouched(&path, &about(&fresh.connection.answer(ACK, "STORED\r\n")));
        // Not TCP, no error, and too little.
        is_untouched(&path, &about(&wire.clone().ip_protocol(UDP)));
        is_untouched(&path, &PacketBuilder::error(other, code, &wire, ip + 8));
        is_untouched(&path, &PacketBuilder::error(kind, code, &wire, ip + 7));
        // Of a later fragment there is no TCP header.
        if !v6 {
            is_untouched(&path, &about(&wire.clone().fragment(2, false)));
            is_untouched(&path, &about(&wire).fragment(0, true));
        }
    }
}
