//! Several memcacheds behind one interface: each with all its doors, none with another's items.

use prestack::doors::{DoorSpec, Transports};

use crate::bytes::{get, hit};
use crate::harness::{Datapath, Setup, Verdict, doors_of_wildcard};
use crate::packet::{ACK, PORT, PacketBuilder};

/// The other port of the first backend.
const SECOND_PORT: u16 = 11_213;
/// The port of the other backend.
const OTHER: u16 = 11_212;

/// Two backends; the first listens on two ports.
fn two_backends() -> Datapath {
    Datapath::with(&Setup {
        doors: [
            doors_of_wildcard(PORT, 0),
            doors_of_wildcard(SECOND_PORT, 0),
            doors_of_wildcard(OTHER, 1),
        ]
        .concat(),
        ..Setup::default()
    })
}

/// Caches `key` in the backend at this port.
fn fill(path: &mut Datapath, port: u16, value: &str) {
    let before = path.stats().fills;
    let request = path.get_of("key").server_port(port);
    path.pass(&request);
    path.tx(&request.reply(hit("key", value)));
    assert_eq!(path.stats().fills, before + 1, "port {port}");
}

fn look(path: &mut Datapath, port: u16) -> Verdict {
    let request = path.get_of("key").server_port(port);
    let verdict = path.rx(&request);
    if verdict == Verdict::Passed {
        path.tx(&request.reply("END\r\n"));
    }
    verdict
}

fn served(value: &str) -> Verdict {
    Verdict::Served(hit("key", value))
}

#[test]
fn the_same_key_of_two_backends() {
    let mut path = two_backends();
    fill(&mut path, PORT, "first");
    assert_eq!(look(&mut path, OTHER), Verdict::Passed);
    fill(&mut path, OTHER, "second");
    for _ in 0..3 {
        assert_eq!(look(&mut path, PORT), served("first"));
        assert_eq!(look(&mut path, SECOND_PORT), served("first"));
        assert_eq!(look(&mut path, OTHER), served("second"));
    }
}

#[test]
fn a_get_of_several_keys_stays_in_its_backend() {
    let mut path = two_backends();
    fill(&mut path, PORT, "first");
    fill(&mut path, OTHER, "second");
    path.fill("more", "of the first");
    let request = path.request(get(&["key", "more"]));
    path.pass(&request.clone().server_port(OTHER));
    assert!(matches!(path.rx(&request), Verdict::Served(_)));
}

#[test]
fn a_reply_of_one_backend_does_not_fill_the_other() {
    let mut path = two_backends();
    let request = path.get_of("key");
    path.pass(&request);
    path.tx(&request
        .clone()
        .server_port(OTHER)
        .reply(hit("key", "second")));
    assert_eq!(path.stats().fills, 0);
    assert_eq!(look(&mut path, OTHER), Verdict::Passed);
}

/// A client may number the requests to each port from zero, over one socket.
#[test]
fn the_same_id_at_two_ports() {
    let mut path = two_backends();
    let one = path.get_of("key");
    let two = one
        .clone()
        .payload(get(&["other"]))
        .server_port(SECOND_PORT);
    path.pass(&one);
    path.pass(&two);
    path.tx(&two.reply(hit("other", "value")));
    path.tx(&one.reply(hit("key", "value")));
    path.assert_hit("key", "value");
    path.assert_hit("other", "value");
}

/// A client may ask both over one socket, and under one id.
#[test]
fn the_same_request_to_two_addresses_on_one_port() {
    let door = |last, backend| DoorSpec {
        address: Some([10, 0, 0, last].into()),
        port: PORT,
        backend,
        serve_tcp: true,
        serve_udp: true,
        transports: Transports::all(Some([10, 0, 0, last].into())),
    };
    let mut path = Datapath::with(&Setup {
        doors: vec![door(1, 0), door(3, 1)],
        ..Setup::default()
    });
    let first = path.get_of("key");
    let second = first.clone().to(([10, 0, 0, 3], PORT));
    path.pass(&first);
    path.pass(&second);
    path.tx(&second.reply(hit("key", "second")));
    path.tx(&first.reply(hit("key", "first")));
    assert_eq!(path.rx(&first), served("first"));
    assert_eq!(path.rx(&second), served("second"));
}

/// A way to a backend: another transport, family or port of it.
type Way = fn(&Datapath, u16, &str);

const WAYS: [(&str, Way); 5] = [
    ("UDP over IPv4", |path, port, text| {
        path.pass(&PacketBuilder::udp(text).id(999).server_port(port));
    }),
    ("UDP over IPv6", |path, port, text| {
        path.pass(&PacketBuilder::udp(text).id(999).v6().server_port(port));
    }),
    (
        "UDP to an address that is not served",
        |path, port, text| {
            path.pass(&PacketBuilder::udp(text).id(999).to(([10, 0, 0, 77], port)));
        },
    ),
    ("TCP over IPv4", |path, port, text| {
        let segment = PacketBuilder::tcp(1, ACK, text).server_port(port);
        path.accept(&segment);
        path.pass(&segment);
    }),
    ("TCP over IPv6", |path, port, text| {
        let segment = PacketBuilder::tcp(1, ACK, text).v6().server_port(port);
        path.accept(&segment);
        path.pass(&segment);
    }),
];

#[test]
fn a_write_through_any_door_of_a_backend() {
    for text in ["delete key\r\n", "set key 0 0 3\r\nnew\r\n", "md key q\r\n"] {
        for (way, write) in WAYS {
            for port in [PORT, SECOND_PORT, OTHER] {
                let mut path = two_backends();
                fill(&mut path, PORT, "first");
                fill(&mut path, OTHER, "second");
                write(&path, port, text);
                let (first, second) = if port == OTHER {
                    (served("first"), Verdict::Passed)
                } else {
                    (Verdict::Passed, served("second"))
                };
                let case = format!("{text:?} by {way} to {port}");
                assert_eq!(look(&mut path, PORT), first, "{case}");
                assert_eq!(look(&mut path, SECOND_PORT), first, "{case}");
                assert_eq!(look(&mut path, OTHER), second, "{case}");
                assert_eq!((path.epoch_of(0), path.epoch_of(1)), (0, 0), "{case}");
            }
        }
    }
}

#[test]
fn what_is_not_understood_empties_one_backend() {
    for (way, send) in WAYS {
        for (port, epochs) in [(SECOND_PORT, (1, 0)), (OTHER, (0, 1))] {
            let mut path = two_backends();
            fill(&mut path, PORT, "first");
            fill(&mut path, OTHER, "second");
            send(&path, port, "flush_all\r\n");
            let case = format!("{way} to {port}");
            assert_eq!((path.epoch_of(0), path.epoch_of(1)), epochs, "{case}");
            let is_first = look(&mut path, PORT) == served("first");
            let is_second = look(&mut path, OTHER) == served("second");
            assert_eq!(
                (is_first, is_second),
                (port == OTHER, port != OTHER),
                "{case}"
            );
        }
    }
}

/// A fragment may belong to a packet for any port.
#[test]
fn a_fragment_empties_every_backend_of_its_address() {
    let mut path = two_backends();
    fill(&mut path, PORT, "first");
    fill(&mut path, OTHER, "second");
    path.pass(&PacketBuilder::udp("a key\r\n").fragment(1, false));
    assert_eq!((path.epoch_of(0), path.epoch_of(1)), (1, 1));
    assert_eq!(look(&mut path, PORT), Verdict::Passed);
    assert_eq!(look(&mut path, OTHER), Verdict::Passed);
}
