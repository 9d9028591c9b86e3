//! GETs of one key that the cache answers.

use std::collections::HashSet;
use std::net::IpAddr;

use crate::bytes::{get, hit, key_of, value_for_reply};
use crate::forms::{forms, known};
use crate::harness::{Datapath, Setup, Verdict, random, random_v4, random_v6, volume};
use crate::packet::{Checksum, PORT, SERVICE_VLAN, VLAN};

/// The longest reply that memcached sends in one datagram.
const MAX_REPLY: usize = 1392;
/// The shortest reply to a `get` of `k` that has the key.
const MIN_REPLY: usize = 20;

#[test]
fn a_key_that_is_not_cached_is_passed() {
    let mut path = Datapath::new();
    path.assert_miss("key");
    assert_eq!(path.stats().udp_misses, 1);
    assert_eq!(path.stats().udp_hits, 0);
}

#[test]
fn what_memcached_answered_is_served() {
    let mut path = Datapath::new();
    path.fill("key", "value");
    path.assert_hit("key", "value");
    path.assert_hit("key", "value");
    path.assert_miss("kez");
    path.assert_miss("ke");
    path.assert_miss("key1");
    assert_eq!(path.stats().udp_hits, 2);
}

#[test]
fn flags_are_part_of_the_reply() {
    let mut path = Datapath::new();
    let reply = "VALUE key 4294967295 3\r\nabc\r\nEND\r\n";
    path.exchange(get(&["key"]), reply);
    let request = path.get_of("key");
    assert_eq!(path.rx(&request), Verdict::Served(reply.into()));
}

#[test]
fn the_id_of_the_request_is_the_id_of_the_reply() {
    let mut path = Datapath::new();
    path.fill("key", "value");
    let request = path.get_of("key");
    // That the reply has the same id is checked with every reply.
    for id in [0, 1, 0xff, 0x100, 0x1234, 0xffff] {
        assert_eq!(
            path.rx(&request.clone().id(id)),
            Verdict::Served(hit("key", "value"))
        );
    }
}

#[test]
fn a_client_may_use_any_port_that_is_no_servers() {
    let mut path = Datapath::new();
    path.fill("key", "value");
    for port in [1024, 11210, 11212, 32768, 65535] {
        let request = path.get_of("key").client_port(port);
        assert_eq!(path.rx(&request), Verdict::Served(hit("key", "value")));
    }
    assert_eq!(path.stats().spoof_prone, 0);
}

#[test]
fn keys_of_every_length() {
    let mut path = Datapath::with(&Setup {
        buckets: 256,
        ..Setup::default()
    });
    for len in 1..=250 {
        let key = key_of(len);
        path.fill(&key, len.to_string());
        path.assert_hit(&key, len.to_string());
    }
    for len in [1, 7, 8, 9, 15, 16, 17, 31, 32, 33, 249, 250] {
        let key = key_of(len);
        path.assert_hit(&key, len.to_string());
        // The same key but for its last byte, and but for its first.
        for at in [0, len - 1] {
            let mut other = key.clone();
            other[at] = b'_';
            path.assert_miss(&other);
        }
    }
}

#[test]
fn keys_may_hold_any_byte_but_spaces_and_controls() {
    let mut path = Datapath::new();
    for byte in 0x21..=0xff_u8 {
        let keys = [
            vec![byte],
            [&b"0123456"[..], &[byte], b"89abcdef"].concat(),
            vec![byte; 13],
        ];
        for key in keys {
            path.fill(&key, [byte]);
            path.assert_hit(&key, [byte]);
        }
    }
}

/// Over every granule (16 bytes), every chunk that is copied (16, 32 and 64 bytes), both ends.
#[test]
fn replies_of_every_length() {
    let mut path = Datapath::new();
    let lengths = MIN_REPLY..=MAX_REPLY;
    let mut seen = 0;
    for len in lengths.step_by(if volume(20) < 20 { 7 } else { 1 }) {
        let Some(value) = value_for_reply("k", len) else {
            continue;
        };
        path.fill("k", &value);
        path.assert_hit("k", &value);
        path.exchange("delete k\r\n", "DELETED\r\n");
        seen += 1;
    }
    assert!(seen > 150, "{seen} lengths");
    for len in [1390, 1391, 1392] {
        let value = value_for_reply("k", len).expect("a length that can be had");
        path.fill("k", &value);
        path.assert_hit("k", &value);
        path.exchange("delete k\r\n", "DELETED\r\n");
    }
}

#[test]
fn replies_of_every_length_over_long_keys_and_ipv6() {
    let mut path = Datapath::new();
    let key = key_of(250);
    for len in (270..=MAX_REPLY).step_by(volume(20).clamp(1, 11)) {
        let Some(value) = value_for_reply(&key, len) else {
            continue;
        };
        path.fill(&key, &value);
        path.assert_hit(&key, &value);
        let request = path.get_of(&key).v6();
        assert_eq!(path.rx(&request), Verdict::Served(hit(&key, &value)));
        path.exchange([b"delete ", &key[..], b"\r\n"].concat(), "DELETED\r\n");
    }
}

#[test]
fn values_may_hold_anything() {
    let mut path = Datapath::new();
    let values: [&[u8]; 14] = [
        b"",
        b"\r\n",
        b"\n",
        b"\r",
        b"END\r\n",
        b"\r\nEND\r\n",
        b"END\r\n\r\nEND\r\n",
        b"VALUE x 0 1\r\ny\r\nEND\r\n",
        b"VALUE key 0 1\r\ny\r\nEND\r\n",
        b"\0",
        b"\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0",
        b"\x80\x00\x00\x01",
        b" ",
        &[0xff; 700],
    ];
    for value in values {
        path.fill("key", value);
        path.assert_hit("key", value);
        path.exchange("delete key\r\n", "DELETED\r\n");
    }
}

#[test]
fn random_values_are_served_byte_for_byte() {
    let mut random = random();
    let mut path = Datapath::new();
    let mut cached = HashSet::new();
    for _ in 0..volume(400) {
        let key: Vec<u8> = (0..random.usize(1..=250))
            .map(|_| random.u8(0x21..))
            .collect();
        // Short keys come again; what is cached is served, and not filled.
        if !cached.insert(key.clone()) {
            continue;
        }
        let room = MAX_REPLY - hit(&key, "").len() - 3;
        let value: Vec<u8> = (0..random.usize(0..=room)).map(|_| random.u8(..)).collect();
        path.fill(&key, &value);
        path.assert_hit(&key, &value);
    }
}

/// Every reply's checksums are recomputed: see `check`.
#[test]
fn checksums_are_right_for_many_addresses() {
    let mut random = random();
    let anybody = ["0.0.0.0/0", "::/0"];
    let mut setup = Setup {
        allow: anybody.map(|net| net.parse().expect("a network")).to_vec(),
        ..Setup::default()
    };
    let mut path = Datapath::new();
    for round in 0..volume(800) {
        let (client, server): (IpAddr, IpAddr) = if round % 4 == 3 {
            (random_v6(&mut random).into(), random_v6(&mut random).into())
        } else {
            (random_v4(&mut random).into(), random_v4(&mut random).into())
        };
        let key: Vec<u8> = (0..random.usize(5..20))
            .map(|_| random.u8(0x21..))
            .collect();
        let value: Vec<u8> = (0..random.usize(0..200)).map(|_| random.u8(..)).collect();
        // Filled at the usual address, asked for at another one of the backend.
        setup.doors[0].address = Setup::default().doors[0].address;
        path.configure(&setup);
        path.fill(&key, &value);
        setup.doors[0].address = Some(server);
        path.configure(&setup);
        let request = path
            .get_of(&key)
            .id(random.u16(..))
            .from((client, random.u16(PORT + 1..)))
            .to((server, PORT));
        assert_eq!(path.rx(&request), Verdict::Served(hit(&key, &value)));
    }
}

#[test]
fn a_sum_of_zero_is_sent_as_ones() {
    let mut path = Datapath::new();
    path.fill("key", "value");
    // Of all ids one makes the sum of the reply come out as zero: were it sent so, it would say
    // that there is no checksum, which is checked with every reply.
    let request = path.get_of("key");
    for id in 0..=u16::MAX {
        if volume(20) < 20 && id % 256 != 0 {
            continue;
        }
        path.rx(&request.clone().id(id));
    }
    assert!(path.stats().udp_hits >= 256);
}

#[test]
fn a_request_without_checksum_has_a_reply_without() {
    let mut path = Datapath::new();
    path.fill("key", "value");
    let request = path.get_of("key").checksum(Checksum::None);
    assert_eq!(path.rx(&request), Verdict::Served(hit("key", "value")));
}

#[test]
fn a_partial_checksum_is_right_and_answered_with_a_full_one() {
    let mut path = Datapath::new();
    path.fill("key", "value");
    for request in [path.get_of("key"), path.get_of("key").v6()] {
        let request = request.checksum(Checksum::Partial);
        assert_eq!(path.rx(&request), Verdict::Served(hit("key", "value")));
    }
}

#[test]
fn ipv6_is_served() {
    let mut path = Datapath::new();
    let request = path.get_of("key").v6();
    path.pass(&request);
    path.tx(&request.reply(hit("key", "value")));
    let request = path.get_of("key").v6();
    assert_eq!(path.rx(&request), Verdict::Served(hit("key", "value")));
    // The backend is the same over both.
    path.assert_hit("key", "value");
}

#[test]
fn tags_are_kept() {
    let mut path = Datapath::new();
    let tags: [&[(u16, u16)]; 4] = [
        &[(VLAN, 5)],
        &[(SERVICE_VLAN, 0xe123)],
        &[(SERVICE_VLAN, 7), (VLAN, 0x2fff)],
        &[(VLAN, 7), (VLAN, 7)],
    ];
    for (number, tags) in tags.into_iter().enumerate() {
        for v6 in [false, true] {
            let key = format!("key-{number}-{v6}");
            let tagged = |path: &mut Datapath| {
                let request = path.get_of(&key);
                let request = if v6 { request.v6() } else { request };
                tags.iter().fold(request, |request, (ethertype, tag)| {
                    request.tag(*ethertype, *tag)
                })
            };
            let request = tagged(&mut path);
            path.pass(&request);
            path.tx(&request.reply(hit(&key, "value")));
            let request = tagged(&mut path);
            assert_eq!(path.rx(&request), Verdict::Served(hit(&key, "value")));
        }
    }
}

#[test]
fn every_form_is_served_over_every_layer() {
    let tags: [&[(u16, u16)]; 3] = [
        &[],
        &[(SERVICE_VLAN, 0xe123)],
        &[(SERVICE_VLAN, 7), (VLAN, 0x2fff)],
    ];
    let mut path = known(&Setup::default());
    for (form, reply) in forms() {
        for tags in tags {
            for v6 in [false, true] {
                for checksum in [Checksum::Full, Checksum::Partial, Checksum::None] {
                    if v6 && checksum == Checksum::None {
                        continue;
                    }
                    let request = path.request(&form).checksum(checksum);
                    let request = if v6 { request.v6() } else { request };
                    let request = tags.iter().fold(request, |request, (ethertype, tag)| {
                        request.tag(*ethertype, *tag)
                    });
                    let served = Verdict::Served(reply.clone());
                    assert_eq!(path.rx(&request), served, "{request:?}");
                    let request = request.padding([b'x'; 9]);
                    assert_eq!(path.rx(&request), served, "{request:?}");
                }
            }
        }
    }
}

#[test]
fn padding_is_no_payload() {
    let mut path = Datapath::new();
    path.fill("k", "v");
    for padding in [&b"\0\0\0\0\0\0"[..], b"\r\nget x\r\n", &[b'x'; 100]] {
        let request = path.get_of("k").padding(padding);
        assert_eq!(path.rx(&request), Verdict::Served(hit("k", "v")));
        let request = path.get_of("other").padding(padding);
        path.pass(&request);
        path.tx(&request.reply("END\r\n").padding(padding));
    }
}

#[test]
fn headers_of_the_request_that_do_not_matter() {
    let mut path = Datapath::new();
    path.fill("key", "value");
    let served = Verdict::Served(hit("key", "value"));
    let mut request = path.get_of("key");
    request.hop_limit = 1;
    request.traffic_class = 0xfc;
    request.identification = 0xffff;
    assert_eq!(path.rx(&request), served);
    assert_eq!(path.rx(&request.clone().v6()), served);
    // "Do not fragment" left out is no fragment.
    assert_eq!(path.rx(&request.fragment(0, false)), served);
}

#[test]
fn every_address_of_the_backend_leads_to_its_entries() {
    let mut path = Datapath::new();
    path.fill("key", "value");
    for request in [path.get_of("key"), path.get_of("key").v6()] {
        assert_eq!(path.rx(&request), Verdict::Served(hit("key", "value")));
    }
}
