//! Packets that are changed at random, and random bytes: whatever is not answered goes on as it
//! came, which the harness checks, and what is answered is answered rightly.

use std::time::Duration;

use crate::binary::{self, GET, GETK, GETKQ, GETQ};
use crate::bytes::{get, hit, item};
use crate::harness::{Datapath, Setup, Verdict, random, volume};
use crate::packet::{ACK, Checksum, FIN, PSH, PacketBuilder, SERVICE_VLAN, SYN, VLAN};

/// Shortest frame that the kernel runs a program on.
const ETHERNET: usize = 14;
/// Longest frame here: what an MTU of 1500 allows, and two VLAN tags.
const LONGEST: usize = 1522;

/// Time ends nothing but writes, and those at once: an emptied cache can be filled again.
fn setup() -> Setup {
    Setup {
        settle: Duration::ZERO,
        ..Setup::default()
    }
}

/// How many of [`requests`] are GETs of cached keys over UDP: the first.
const GETS: usize = 70;

/// Requests of all kinds.
fn requests() -> Vec<PacketBuilder> {
    let texts = [
        get(&["key"]),
        get(&["key", "other"]),
        b"gets key\r\n".to_vec(),
        b"mg key v\r\n".to_vec(),
        b"mg key c k O1 v f s\r\n".to_vec(),
        binary::get(GET, b"key", 1),
        binary::get(GETK, b"other", 0x0102_0304),
        get(&["key", "other", "none"]),
        get(&["k".repeat(250)]),
        b"set none 0 0 3\r\nnew\r\n".to_vec(),
        b"delete none noreply\r\n".to_vec(),
        b"ms none 3 q\r\nnew\r\n".to_vec(),
    ];
    let (mut udp, mut tcp) = (Vec::new(), Vec::new());
    for text in texts {
        let plain = PacketBuilder::udp(&text);
        udp.extend([
            plain.clone(),
            plain.clone().v6(),
            plain.clone().checksum(Checksum::None),
            plain.clone().checksum(Checksum::Partial).v6(),
            plain.clone().tag(VLAN, 5),
            plain.clone().tag(SERVICE_VLAN, 7).tag(VLAN, 5).v6(),
            plain.clone().ip_options(&[1; 8]),
            plain.clone().v6().extension_header(60),
            plain.clone().fragment(0, true),
            plain.padding([0; 18]),
        ]);
        tcp.extend([
            PacketBuilder::tcp(0, SYN, "").tcp_options(&[1; 12]),
            PacketBuilder::tcp(1, ACK | PSH, &text),
            PacketBuilder::tcp(1, ACK | PSH, &text).v6(),
            PacketBuilder::tcp(1, ACK | FIN, &text).tcp_options(&[1; 12]),
        ]);
    }
    udp.extend(tcp);
    udp
}

/// Changes a frame in a few places.
fn mutate(random: &mut fastrand::Rng, frame: &mut Vec<u8>) {
    for _ in 0..random.usize(1..3) {
        let at = random.usize(..frame.len());
        match random.u32(..8) {
            0 => frame[at] ^= 1 << random.u32(..8),
            1 => frame[at] = random.u8(..),
            2 => {
                frame[at] = *random
                    .choice(&[0, 1, 0x7f, 0x80, 0xff, b' ', b'\r'])
                    .expect("one")
            }
            3 => frame.truncate(at.max(ETHERNET)),
            4 => frame.extend((0..random.usize(..64)).map(|_| random.u8(..))),
            5 => frame.insert(at, random.u8(..)),
            6 if frame.len() > ETHERNET => drop(frame.remove(at)),
            _ => {
                let from = random.usize(..frame.len());
                let len = random.usize(..16).min(frame.len() - at.max(from));
                frame.copy_within(from..from + len, at);
            }
        }
    }
    frame.truncate(LONGEST);
}

/// A frame of random bytes; most have headers that lead to deeper ones.
fn noise(random: &mut fastrand::Rng) -> Vec<u8> {
    let len = random.usize(ETHERNET..LONGEST);
    let mut frame: Vec<u8> = (0..len).map(|_| random.u8(..)).collect();
    let likely = PacketBuilder::udp("");
    let likely = match random.u32(..4) {
        0 => return frame,
        1 => likely,
        2 => likely.v6(),
        _ => likely.tag(VLAN, 1),
    };
    // The headers up to a random place.
    let likely = likely.build();
    let kept = random.usize(..likely.len()).min(len);
    frame[..kept].copy_from_slice(&likely[..kept]);
    frame
}

/// Makes sure that `key` and `other` are cached, unless `rx` knows of something against it.
fn refill(path: &mut Datapath) {
    for key in ["key", "other"] {
        let request = path.request(format!("mg {key} v f c k\r\n"));
        let request = request.client_port(2);
        if path.rx(&request) == Verdict::Passed {
            path.tx(&request.reply(format!("VA 5 f0 c1 k{key}\r\nvalue\r\n")));
        }
    }
}

/// Whether a reply is one of those that can be had: one item or several, as memcached shows them.
fn is_right(reply: &[u8]) -> bool {
    match reply {
        [0x81, ..] => is_right_binary(reply),
        [b'V', b'A', b' ', ..] => is_right_meta(reply),
        _ => {
            let shown = |key: &str, rest: &str| format!("VALUE {key} 0 5{rest}\r\nvalue\r\n");
            let items = ["key", "other"].map(|key| [shown(key, ""), shown(key, " 1")]);
            let mut rest = reply;
            while let Some(item) = items
                .as_flattened()
                .iter()
                .find(|item| rest.starts_with(item.as_bytes()))
            {
                rest = &rest[item.len()..];
            }
            rest == b"END\r\n" && rest.len() < reply.len()
        }
    }
}

fn is_right_binary(reply: &[u8]) -> bool {
    let Some(opaque) = reply.get(12..16) else {
        return false;
    };
    let opaque = u32::from_be_bytes(opaque.try_into().expect("four bytes"));
    [GET, GETQ, GETK, GETKQ].iter().any(|opcode| {
        [&b"key"[..], b"other"]
            .iter()
            .any(|key| reply == binary::hit(*opcode, key, 0, 1, b"value", opaque))
    })
}

fn is_right_meta(reply: &[u8]) -> bool {
    let Some(head) = reply.strip_suffix(b"\r\nvalue\r\n") else {
        return false;
    };
    let mut words = head.split(|byte| *byte == b' ');
    words.next() == Some(b"VA")
        && words.next() == Some(b"5")
        && words.all(|word| {
            word.starts_with(b"O") || [&b"f0"[..], b"c1", b"s5", b"kkey", b"kother"].contains(&word)
        })
}

#[test]
fn changed_requests() {
    let mut random = random();
    let requests = requests();
    // Of text, meta and binary requests.
    let mut served = [0; 3];
    let gets = &requests[..GETS];
    for round in 0..volume(80) {
        let mut path = Datapath::with(&setup());
        // What TCP makes of a flow that was changed keeps the cache empty: every other round is
        // without.
        let requests = if round % 2 == 0 { gets } else { &requests };
        for _ in 0..200 {
            refill(&mut path);
            let mut frame = random.choice(requests).expect("a request").build();
            mutate(&mut random, &mut frame);
            if let Verdict::Served(reply) = path.rx_bytes(&frame) {
                assert!(is_right(&reply), "{}", reply.escape_ascii());
                served[match reply[..2] {
                    [0x81, _] => 2,
                    [b'V', b'A'] if reply[2] == b' ' => 1,
                    _ => 0,
                }] += 1;
            }
        }
    }
    println!("{served:?} were answered all the same");
    assert!(!served.contains(&0), "no change left a request good");
}

#[test]
fn random_bytes() {
    let mut random = random();
    let mut path = Datapath::with(&setup());
    for _ in 0..volume(20_000) {
        if random.u32(..20) == 0 {
            refill(&mut path);
        }
        let frame = noise(&mut random);
        assert_eq!(path.rx_bytes(&frame), Verdict::Passed);
    }
}

/// `tx` lets every packet go on as it was; nothing it has learned from a changed one crashes `rx`.
#[test]
fn changed_replies() {
    let mut random = random();
    let mut path = Datapath::with(&setup());
    for _ in 0..volume(10_000) {
        let request = path.get_of("key");
        let request = if random.bool() { request.v6() } else { request };
        let replies = [
            hit("key", "value"),
            item("key", 0, "value"),
            b"END\r\n".to_vec(),
        ];
        let reply = random.choice(&replies).expect("a reply");
        path.rx(&request);
        let mut frame = request.reply(reply).padding([0; 32]).build();
        for _ in 0..random.usize(1..4) {
            let at = random.usize(ETHERNET..frame.len());
            frame[at] = random.u8(..);
        }
        path.tx_bytes(&frame);
    }
}
