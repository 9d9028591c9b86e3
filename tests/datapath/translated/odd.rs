//! Segments in packets with IP options or extension headers, in fragments, and longer than an IP header can say.

use std::time::Duration;

use super::connection::Ready;
use super::{filled, setup};
use crate::bytes::hit;
use crate::harness::{Datapath, Setup, wait};
use crate::packet::{ACK, PSH, PacketBuilder};
use crate::tcp::connection::Connection;

const GET: &str = "get key\r\n";
/// Record route, with no room for an address; and its end.
const OPTIONS: [u8; 4] = [7, 3, 4, 0];
/// IPv6 extension headers: hop-by-hop, fragment, destination options.
const HOP_BY_HOP: u8 = 0;
const FRAGMENT: u8 = 44;
const DESTINATION: u8 = 60;

fn answered(path: &mut Datapath, port: u16, v6: bool) -> Ready {
    let mut connection = Connection::new(port);
    connection.v6 = v6;
    connection.shake_hands(path);
    let mut ready = Ready::of(path, connection, None);
    ready.served(path, GET, hit("key", "value"));
    ready
}

/// The segment passes, in the kernel's numbers, and otherwise as it is in these.
fn translated(path: &Datapath, wire: &PacketBuilder, kernel: &PacketBuilder) {
    let ran = path.kernel().programs.rx(&wire.build());
    assert_eq!(ran.action, 2, "{wire:?}");
    assert_eq!(
        ran.packet.escape_ascii().to_string(),
        kernel.build().escape_ascii().to_string()
    );
}

#[test]
fn behind_options_and_extension_headers_they_are_translated() {
    type Change = fn(PacketBuilder) -> PacketBuilder;
    let changes: [(bool, Change); 4] = [
        (false, |packet| packet.ip_options(&OPTIONS)),
        (true, |packet| packet.extension_header(HOP_BY_HOP)),
        (true, |packet| packet.extension_header(DESTINATION)),
        // What offloads have put together, of more than 64 KiB.
        (false, |packet| {
            let len = 40 + packet.payload.len() as i32;
            packet.ip_length_lie(-len)
        }),
    ];
    for (v6, change) in changes {
        let mut path = filled();
        let mut ready = answered(&mut path, 4500, v6);
        // Also a request that would be answered.
        for data in ["", GET] {
            let flags = ACK | PSH;
            let wire = change(ready.segment(flags, data));
            let kernel = change(ready.connection.segment(flags, data));
            translated(&path, &wire, &kernel);
        }
        ready.connection.client = ready.connection.client.wrapping_add(GET.len() as u32);
        ready.replies(&path, hit("key", "value"));
    }
}

#[test]
fn an_answer_that_was_lost_comes_back_without_them() {
    for v6 in [false, true] {
        let mut path = filled();
        let ready = answered(&mut path, 4501, v6);
        let answer = hit("key", "value");
        let segment = ready.segment(ACK | PSH, GET);
        let (sequence, acknowledgement) = segment.numbers();
        let request = segment
            .sequence(sequence.wrapping_sub(GET.len() as u32))
            .acknowledging(acknowledgement.wrapping_sub(answer.len() as u32));
        let request = if v6 {
            request.extension_header(DESTINATION)
        } else {
            request.ip_options(&OPTIONS)
        };
        assert_eq!(ready.resent(&path, &request).data, answer);
    }
}

#[test]
fn fragments_do_not_come_to_the_kernel_in_the_clients_numbers() {
    for v6 in [false, true] {
        let mut path = filled();
        let ready = answered(&mut path, 4502, v6);
        let fragment = |ready: &Ready, offset: u16, more: bool| {
            let segment = ready.segment(ACK | PSH, "set a 0 0 1\r\nb\r\n");
            if v6 {
                let mut packet = segment.extension_header(FRAGMENT);
                packet.extra[2..4].copy_from_slice(&(offset << 3 | u16::from(more)).to_be_bytes());
                packet
            } else {
                segment.fragment(offset, more)
            }
        };
        let action = |path: &Datapath, packet: &PacketBuilder| {
            let packet = packet.build();
            let ran = path.kernel().programs.rx(&packet);
            assert_eq!(ran.packet, packet);
            ran.action
        };
        let first = fragment(&ready, 0, true);
        assert_eq!(action(&path, &first), 1);
        // Without a first one nothing becomes of those that follow.
        let later = fragment(&ready, 4, false);
        assert_eq!(action(&path, &later), 2);
        // On a connection on which nothing was answered.
        let mut connection = Connection::new(4503);
        connection.v6 = v6;
        connection.shake_hands(&path);
        let other = Ready::of(&mut path, connection, None);
        assert_eq!(action(&path, &fragment(&other, 0, true)), 2);
    }
}

/// What came in fragments the kernel may have: if what is missing before it were answered, it would stand at the wrong
/// place.
#[test]
fn nothing_before_fragments_is_answered() {
    const SETTLE: Duration = Duration::from_millis(200);
    let mut path = Datapath::with(&Setup {
        settle: SETTLE,
        remember: SETTLE,
        ..setup()
    });
    let ready = Ready::open(&mut path, 4504);
    let missing = ready.segment(ACK | PSH, GET);
    let behind = missing.numbers().0.wrapping_add(GET.len() as u32);
    let segment = ready.segment(ACK | PSH, "set other 0 0 1\r\nb\r\n");
    let segment = segment.sequence(behind);
    for fragment in [
        segment.clone().fragment(0, true),
        segment.fragment(4, false),
    ] {
        assert_eq!(path.kernel().programs.rx(&fragment.build()).action, 2);
    }
    wait(SETTLE * 3);
    path.fill("key", "value");
    path.assert_hit("key", "value");
    assert_eq!(path.kernel().programs.rx(&missing.build()).action, 2);
}

/// A request behind IP options, of whose answer nothing can be sent again, is lost as a whole.
#[test]
fn what_cannot_be_sent_again_changes_nothing() {
    let mut path = filled();
    let mut ready = Ready::open(&mut path, 4505);
    let request = ready.segment(ACK | PSH, GET);
    ready.served(&path, GET, hit("key", "value"));
    // Shorter than it says.
    let cut = request.ip_options(&OPTIONS).ip_length_lie(64);
    assert_eq!(path.kernel().programs.rx(&cut.build()).action, 1);
}
