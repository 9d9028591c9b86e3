//! Who is not answered, although what was asked for is in the cache.

use std::time::{Duration, Instant};

use crate::bytes::hit;
use crate::forms::{forms, known, learn};
use crate::harness::{Datapath, Setup, Verdict, doors_of_wildcard, volume, wait};
use crate::packet::{CLIENT_PORT, Checksum, PORT, PacketBuilder, SERVER4, SERVICE_VLAN, VLAN};

fn filled(setup: &Setup) -> Datapath {
    let mut path = Datapath::with(setup);
    path.fill("key", "value");
    path
}

/// The request is passed in the plain form of a GET and in every other.
fn assert_refused(path: &mut Datapath, alter: impl Fn(PacketBuilder) -> PacketBuilder) {
    for text in ["get key\r\n", "get  key\r\n", "get key key\r\n"] {
        let request = path.request(text);
        assert_eq!(
            path.rx(&request),
            Verdict::Served(reply_to(text)),
            "{text:?} as it is"
        );
        let request = path.request(text);
        path.pass(&alter(request));
    }
}

fn reply_to(text: &str) -> Vec<u8> {
    let block = hit("key", "value");
    match text {
        "get key key\r\n" => [&block[..block.len() - 5], &block].concat(),
        _ => block,
    }
}

#[test]
fn ports_of_servers() {
    let mut path = filled(&Setup::default());
    for port in [0, 1, 53, 123, 1023, 11211, PORT] {
        assert_refused(&mut path, |request| request.client_port(port));
    }
    assert_eq!(path.stats().spoof_prone, 21);
    assert_eq!(path.stats().not_allowed, 0);
}

#[test]
fn reserved_ports_may_be_served() {
    let mut path = filled(&Setup {
        serve_reserved_ports: true,
        ..Setup::default()
    });
    for port in [0, 1, 53, 1023] {
        let request = path.get_of("key").client_port(port);
        assert_eq!(path.rx(&request), Verdict::Served(hit("key", "value")));
    }
    assert_refused(&mut path, |request| request.client_port(PORT));
}

#[test]
fn the_backend_itself() {
    let anybody = ["0.0.0.0/0", "::/0"].map(|net| net.parse().expect("a network"));
    let mut path = filled(&Setup {
        allow: anybody.to_vec(),
        ..Setup::default()
    });
    assert_refused(&mut path, |request| request.from((SERVER4, PORT)));
}

#[test]
fn group_addresses() {
    let anybody = ["0.0.0.0/0", "::/0"].map(|net| net.parse().expect("a network"));
    let mut path = filled(&Setup {
        allow: anybody.to_vec(),
        ..Setup::default()
    });
    for mac in [[0xff; 6], [1, 0, 0x5e, 0, 0, 1], [0x33, 0x33, 0, 0, 0, 1]] {
        assert_refused(&mut path, |mut request| {
            request.destination_mac = mac;
            request
        });
        assert_refused(&mut path, |mut request| {
            request.source_mac = mac;
            request
        });
    }
    for source in [
        "0.0.0.0",
        "224.0.0.1",
        "239.255.255.250",
        "240.0.0.1",
        "255.255.255.255",
    ] {
        let source: std::net::Ipv4Addr = source.parse().expect("an address");
        assert_refused(&mut path, |request| request.from((source, 40_000)));
    }
    for source in ["::", "ff02::1", "ff0e::1"] {
        let source: std::net::Ipv6Addr = source.parse().expect("an address");
        let request = path.get_of("key").v6().from((source, 40_000));
        path.pass(&request);
    }
}

#[test]
fn the_broadcast_address_of_an_allowed_network() {
    let mut path = filled(&Setup::default());
    for source in [[10, 0, 0, 255], [10, 0, 0, 0]] {
        assert_refused(&mut path, |request| request.from((source, 40_000)));
    }
    // Also of networks that are next to one another.
    let mut path = filled(&Setup {
        allow: ["10.0.0.0/24", "10.0.1.0/24"]
            .map(|net| net.parse().expect("a network"))
            .to_vec(),
        ..Setup::default()
    });
    for source in [[10, 0, 0, 255], [10, 0, 1, 0], [10, 0, 1, 255]] {
        assert_refused(&mut path, |request| request.from((source, 40_000)));
    }
    let neighbour = path.get_of("key").from(([10, 0, 1, 1], 40_000));
    assert_eq!(path.rx(&neighbour), Verdict::Served(hit("key", "value")));
    // RFC 3021: of two hosts none is the broadcast address; a single one is not either.
    for (network, source) in [("10.0.0.8/31", 8), ("10.0.0.8/31", 9), ("10.0.0.7/32", 7)] {
        let mut path = filled(&Setup::default());
        path.configure(&Setup {
            allow: vec![network.parse().expect("a network")],
            ..Setup::default()
        });
        let request = path.get_of("key").from(([10, 0, 0, source], 40_000));
        assert_eq!(path.rx(&request), Verdict::Served(hit("key", "value")));
    }
}

#[test]
fn a_memcached_that_was_not_seen_answering_over_udp() {
    let mut path = known(&Setup::default());
    path.kernel().controls.doubt_udp(0);
    for (request, _) in forms() {
        path.only_pass(request);
    }
    path.exchange("mn\r\n", "MN\r\n");
    path.assert_hit("key", "value");
}

#[test]
fn a_source_above_its_rate() {
    // A hit every 200 ms, and no more than two at once.
    let interval = Duration::from_millis(200);
    let mut path = filled(&Setup {
        rate_interval: interval,
        rate_burst: interval,
        ..Setup::default()
    });
    let hits = |path: &mut Datapath, host: u8| {
        let asked = (0..10)
            .map(|_| path.get_of("key").from(([10, 0, 0, host], 40_000)))
            .collect::<Vec<_>>();
        asked
            .iter()
            .filter(|request| path.rx(request) != Verdict::Passed)
            .count()
    };
    assert!((2..=3).contains(&hits(&mut path, 2)));
    assert!(path.stats().rate_limited >= 7);
    // Another source has its own.
    assert!((2..=3).contains(&hits(&mut path, 3)));
    wait(4 * interval);
    assert!((2..=3).contains(&hits(&mut path, 2)));
}

/// A memcached on the client's host has the usual port, whatever this one's is.
#[test]
fn the_port_of_memcached_at_other_doors() {
    const OTHER: u16 = 11_212;
    let mut path = filled(&Setup {
        doors: [doors_of_wildcard(PORT, 0), doors_of_wildcard(OTHER, 0)].concat(),
        ..Setup::default()
    });
    for text in ["get key\r\n", "get  key\r\n"] {
        for (port, is_refused) in [(PORT, true), (OTHER, true), (OTHER + 1, false)] {
            let request = path.request(text).server_port(OTHER).client_port(port);
            assert_eq!(path.rx(&request) == Verdict::Passed, is_refused, "{port}");
        }
    }
}

#[test]
fn a_rate_without_a_burst() {
    let mut path = filled(&Setup {
        rate_interval: Duration::from_secs(3600),
        ..Setup::default()
    });
    path.assert_hit("key", "value");
    for text in ["get key\r\n", "get  key\r\n", "get key key\r\n"] {
        path.only_pass(text);
    }
    assert_eq!(path.stats().rate_limited, 3);
}

/// What is not answered in the end is not counted.
#[test]
fn a_hit_that_comes_to_nothing_is_free() {
    let mut path = filled(&Setup {
        rate_interval: Duration::from_secs(3600),
        ..Setup::default()
    });
    // More than is kept of a request, to be put back: it cannot be answered in place.
    let request = path.get_of("key").padding([0; 400]);
    path.pass(&request);
    path.assert_hit("key", "value");
    path.only_pass("get key\r\n");
    assert_eq!(path.stats().rate_limited, 1);
}

/// Who may not be served has no place in the memory of requests, nor tickets.
#[test]
fn strangers_are_not_remembered() {
    for text in [
        "get key\r\n",
        "get  key\r\n",
        "gets key\r\n",
        "get key other\r\n",
        "mg key v\r\n",
        "mg key\r\n",
        "version\r\n",
        "stats\r\n",
        "version\r\nversion\r\n",
    ] {
        let mut path = Datapath::with(&Setup {
            allow: Vec::new(),
            ..Setup::default()
        });
        let request = PacketBuilder::udp(text).id(7);
        path.pass(&request);
        // Not a stranger any more, it has all names to itself.
        path.configure(&Setup::default());
        let request = request.payload("get key\r\n");
        path.pass(&request);
        path.tx(&request.reply(hit("key", "value")));
        assert_eq!(path.stats().fills, 1, "{text:?}");
    }
}

/// RFC 8200, 8.1: the stack drops it.
#[test]
fn ipv6_without_a_checksum() {
    let mut path = filled(&Setup::default());
    for text in ["get key\r\n", "get  key\r\n", "get key key\r\n"] {
        let request = path.request(text).v6();
        assert_eq!(path.rx(&request), Verdict::Served(reply_to(text)));
        let request = path.request(text).v6().checksum(Checksum::None);
        path.pass(&request);
    }
    assert_eq!(path.stats().bad_checksums, 3);
}

/// How many of all forms were not served for each of the reasons that are counted.
fn refusals(path: &Datapath) -> [u64; 4] {
    let stats = path.stats();
    [
        stats.not_allowed,
        stats.spoof_prone,
        stats.rate_limited,
        stats.bad_checksums,
    ]
}

/// What is wrong with a request, what does it, and what it counts as ([`refusals`]).
type Wrong = (&'static str, fn(PacketBuilder) -> PacketBuilder, [u64; 4]);

#[test]
fn every_form_is_refused_to_whom_it_should_be() {
    let wrongs: [Wrong; 7] = [
        (
            "a stranger",
            |request| request.from(([10, 0, 1, 2], 40_000)),
            [1, 0, 0, 0],
        ),
        (
            "a reserved port",
            |request| request.client_port(53),
            [0, 1, 0, 0],
        ),
        (
            "another memcached",
            |request| request.client_port(PORT),
            [0, 1, 0, 0],
        ),
        (
            "a broadcast",
            |mut request| {
                request.destination_mac = [0xff; 6];
                request
            },
            [0, 1, 0, 0],
        ),
        (
            "a checksum",
            |request| request.checksum(Checksum::Wrong),
            [0, 0, 0, 1],
        ),
        (
            "a header's checksum",
            |request| request.ip_checksum_lie(1),
            [0, 0, 0, 1],
        ),
        (
            "IPv6 without a checksum",
            |request| request.v6().checksum(Checksum::None),
            [0, 0, 0, 1],
        ),
    ];
    for (form, expected) in forms() {
        let form_text = form.escape_ascii();
        for (what, alter, counted) in wrongs {
            let mut path = known(&Setup::default());
            let request = path.request(&form);
            let served = Verdict::Served(expected.clone());
            assert_eq!(path.rx(&request), served, "{form_text}");
            assert_eq!(refusals(&path), [0; 4], "{form_text}");
            path.pass(&alter(request));
            assert_eq!(refusals(&path), counted, "{form_text} from {what}");
        }
    }
}

#[test]
fn every_form_is_refused_where_nothing_is_served() {
    let usual = Setup::default();
    let mut unserved = usual.clone();
    for door in &mut unserved.doors {
        door.serve_tcp = false;
        door.serve_udp = false;
    }
    let unwatched = Setup {
        serve_for: Duration::ZERO,
        ..usual.clone()
    };
    for (form, expected) in forms() {
        let form_text = form.escape_ascii();
        for setup in [&unserved, &unwatched] {
            let mut path = known(&usual);
            let request = path.request(&form);
            let served = Verdict::Served(expected.clone());
            assert_eq!(path.rx(&request), served, "{form_text}");
            path.configure(setup);
            path.pass(&request);
            assert_eq!(refusals(&path), [0; 4], "{form_text}");
        }
    }
}

#[test]
fn every_form_counts_against_the_rate() {
    for (form, expected) in forms() {
        let mut path = known(&Setup {
            rate_interval: Duration::from_secs(3600),
            ..Setup::default()
        });
        let request = path.request(&form);
        let form_text = form.escape_ascii();
        assert_eq!(path.rx(&request), Verdict::Served(expected), "{form_text}");
        path.pass(&request);
        assert_eq!(refusals(&path), [0, 0, 1, 0], "{form_text}");
    }
}

/// What was flipped on the way is found, wherever it was in the datagram or its addresses.
#[test]
fn every_flipped_bit_is_found_in_every_form() {
    let setup = Setup {
        settle: Duration::ZERO,
        remember: Duration::ZERO,
        ..Setup::default()
    };
    let mut path = known(&setup);
    let tags: [&[u16]; 3] = [&[], &[VLAN], &[SERVICE_VLAN, VLAN]];
    // The plain get has a test of its own.
    for (form, expected) in &forms()[2..] {
        for (tags, v6) in tags.iter().flat_map(|tags| [(tags, false), (tags, true)]) {
            let request = PacketBuilder::udp(form).id(9).client_port(CLIENT_PORT + 1);
            let request = if v6 { request.v6() } else { request };
            let tagged = |request: PacketBuilder, tag: &u16| request.tag(*tag, 5);
            let packet = tags.iter().fold(request, tagged).build();
            let served = Verdict::Served(expected.clone());
            let addresses = 14 + 4 * tags.len() + if v6 { 8 } else { 12 };
            for at in (addresses..packet.len()).step_by(if volume(20) < 20 { 5 } else { 1 }) {
                for bit in 0..8 {
                    let mut flipped = packet.clone();
                    flipped[at] ^= 1 << bit;
                    let what = format!("{} byte {at} bit {bit}", form.escape_ascii());
                    let epoch = path.epoch();
                    assert_eq!(path.rx_bytes(&flipped), Verdict::Passed, "{what}");
                    // It may have been taken for something that empties the cache, or for a write.
                    if path.epoch() != epoch {
                        learn(&mut path);
                    }
                    let deadline = Instant::now() + Duration::from_secs(5);
                    while path.rx_bytes(&packet) != served {
                        assert!(Instant::now() < deadline, "{what}");
                        learn(&mut path);
                    }
                }
            }
        }
    }
}
