//! What is not answered, each for one reason alone, whichever steps look at it.

use std::time::Duration;

use super::connection::{Ready, Taken};
use super::{filled, setup};
use crate::bytes::hit;
use crate::harness::{Datapath, Setup, Verdict};
use crate::packet::{ACK, CWR, Checksum, ECE, FIN, PSH, PacketBuilder, URG, VLAN};
use crate::tcp::connection::Connection;

/// The same request: the first is answered by the express way, the second by the steps for all forms.
const REQUESTS: [&str; 2] = ["get key\r\n", "get  key\r\n"];

/// A connection at rest, with timestamps, on which the last request was answered.
fn answered(path: &mut Datapath, mut connection: Connection, request: &str) -> Ready {
    connection.shake_hands(path);
    let mut ready = Ready::of(path, connection, Some((500, 900)));
    ready.served(path, request, hit("key", "value"));
    ready
}

fn connection(port: u16, v6: bool) -> Connection {
    let mut connection = Connection::new(port);
    connection.v6 = v6;
    connection
}

/// The request passes in the kernel's numbers.
fn passes(path: &Datapath, ready: &Ready, packet: &PacketBuilder, request: &str) {
    let packet = packet.build();
    let ran = path.kernel().programs.rx(&packet);
    assert_eq!(ran.action, 2, "{request:?} {:?}", packet.escape_ascii());
    let (wire, kernel) = (ready.segment(ACK, ""), ready.connection.segment(ACK, ""));
    let at = |packet: &[u8], (sequence, acknowledgement): (u32, u32)| {
        let numbers = [sequence.to_be_bytes(), acknowledgement.to_be_bytes()].concat();
        packet.windows(8).position(|word| word == numbers)
    };
    let place = at(&packet, wire.numbers()).expect("the client's numbers");
    assert_eq!(at(&ran.packet, kernel.numbers()), Some(place));
}

type Change = fn(PacketBuilder) -> PacketBuilder;

fn is_unanswered(v6: bool, change: Change) {
    for request in REQUESTS {
        let mut path = filled();
        let ready = answered(&mut path, connection(4600, v6), request);
        let segment = ready.segment(ACK | PSH, request);
        passes(&path, &ready, &change(segment), request);
    }
}

#[test]
fn segments_that_are_not_plain() {
    let changes: [Change; 10] = [
        |segment| segment.flags(ACK | PSH | URG),
        |segment| segment.flags(ACK | PSH | FIN),
        |segment| segment.checksum(Checksum::Wrong),
        // The kernel is to answer congestion, or has been told that the client did (RFC 3168).
        |segment| segment.flags(ACK | PSH | ECE),
        |segment| segment.flags(ACK | PSH | CWR),
        // Congestion was experienced.
        |mut segment| {
            segment.traffic_class = 3;
            segment
        },
        // From before the last one, and none.
        |segment| segment.tcp_options(&[1, 1, 8, 10, 0, 0, 1, 0xf3, 0, 0, 3, 0x84]),
        |segment| segment.tcp_options(&[]),
        // To another host, and from a port at which others listen.
        |segment| segment.destined([2, 0, 0, 0, 0, 0x77]),
        |segment| segment.tag(VLAN, 99),
    ];
    for change in changes {
        is_unanswered(false, change);
        is_unanswered(true, change);
    }
    // It may be cut up, and its header is damaged.
    is_unanswered(false, |segment| segment.fragment(0, false));
    is_unanswered(false, |segment| segment.ip_checksum_lie(1));
}

/// The connection has earned it, and prestack was asked to serve at other addresses, or other ports.
#[test]
fn doors_that_are_not_served() {
    for request in REQUESTS {
        for v6 in [false, true] {
            let mut path = filled();
            let ready = answered(&mut path, connection(4604, v6), request);
            let mut changed = setup();
            let door = changed.doors.iter_mut();
            door.filter(|door| door.address.is_some_and(|address| address.is_ipv6() == v6))
                .for_each(|door| door.serve_tcp = false);
            path.configure(&changed);
            // What was carried is, and nothing more is answered.
            let segment = ready.segment(ACK | PSH, request);
            passes(&path, &ready, &segment, request);
            // Over UDP, and at the other address, it is.
            let get = path.get_of("key");
            assert_eq!(path.rx(&get), Verdict::Served(hit("key", "value")));
            let other = answered(&mut path, connection(4605, !v6), request);
            let segment = other.segment(ACK | PSH, request);
            assert_eq!(other.resent(&path, &segment).data, hit("key", "value"));
        }
    }
}

/// A stack on this host leaves the checksum to the device.
#[test]
fn partial_checksums_are_right() {
    for request in REQUESTS {
        for v6 in [false, true] {
            let mut path = filled();
            let ready = answered(&mut path, connection(4601, v6), request);
            let segment = ready.segment(ACK | PSH, request);
            let Taken { data, .. } = ready.resent(&path, &segment.checksum(Checksum::Partial));
            assert_eq!(data, hit("key", "value"));
        }
    }
}

/// But not where the host may have put segments together, and leaves it too: an answer in the place of such a one would be
/// spoilt. What was lost is sent again all the same, as it may have another reason.
#[test]
fn what_the_host_has_put_together_passes() {
    for request in REQUESTS {
        for v6 in [false, true] {
            let mut path = filled();
            let mut ready = answered(&mut path, connection(4602, v6), request);
            path.configure(&Setup {
                whole_sums: true,
                ..setup()
            });
            let merged_passes = |path: &Datapath, segment: &PacketBuilder| {
                let packet = segment.clone().checksum(Checksum::Partial).build();
                let ran = path.kernel().programs.rx(&packet);
                assert_eq!(ran.action, 2, "{request:?}");
            };
            // What is to be answered.
            merged_passes(&path, &ready.segment(ACK | PSH, request));
            ready.connection.client = ready.connection.client.wrapping_add(request.len() as u32);
            ready.replies(&path, hit("key", "value"));
            ready.passed(&path, &ready.segment(ACK, ""));
            // What asks again for an answer that was lost.
            let segment = ready.segment(ACK | PSH, request);
            ready.served(&path, request, hit("key", "value"));
            for sum in [Checksum::Partial, Checksum::Full] {
                let again = ready.resent(&path, &segment.clone().checksum(sum));
                assert_eq!(again.data, hit("key", "value"));
            }
        }
    }
}

/// Whose ends may mark congestion (ECT(1) and ECT(0), RFC 3168), without any being there.
#[test]
fn segments_that_may_be_marked_are_answered() {
    for request in REQUESTS {
        for v6 in [false, true] {
            for class in [1, 2] {
                let mut path = filled();
                let ready = answered(&mut path, connection(4603, v6), request);
                let mut segment = ready.segment(ACK | PSH, request);
                segment.traffic_class = class;
                assert_eq!(ready.resent(&path, &segment).data, hit("key", "value"));
            }
        }
    }
}

#[test]
fn sources_that_are_not_served() {
    for request in REQUESTS {
        for v6 in [false, true] {
            for port in [11_211, 1023] {
                let mut path = filled();
                let mut connection = connection(port, v6);
                connection.shake_hands(&path);
                let ready = Ready::of(&mut path, connection, None);
                let segment = ready.segment(ACK | PSH, request);
                passes(&path, &ready, &segment, request);
            }
            let settings: [fn(&mut Setup); 3] = [
                |setup| setup.serve_for = Duration::ZERO,
                |setup| setup.policy.is_serving = 0,
                |setup| {
                    setup.allow = vec![
                        "10.0.1.0/24".parse().expect("a network"),
                        "fd01::/64".parse().expect("a network"),
                    ];
                },
            ];
            for change in settings {
                let mut path = filled();
                let ready = answered(&mut path, connection(4602, v6), request);
                let mut changed = setup();
                change(&mut changed);
                path.configure(&changed);
                let segment = ready.segment(ACK | PSH, request);
                passes(&path, &ready, &segment, request);
            }
        }
    }
}
