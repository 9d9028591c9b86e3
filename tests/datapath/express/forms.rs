//! Random GETs in every form.

use std::time::Duration;

use fastrand::Rng;

use super::both::Both;
use super::datagrams::vary_datagram;
use super::series::{
    SERIES, compare_at_random, garble, is_rare, lasting_difference, one_of, some_value,
};
use crate::binary::{self, GET, GETK, GETKQ, GETQ};
use crate::bytes::{get, item};
use crate::harness::Setup;
use crate::packet::PacketBuilder;

/// An item as memcached has it.
struct Item {
    flags: u32,
    cas: u64,
    value: Vec<u8>,
}

impl Item {
    fn some(random: &mut Rng) -> Self {
        let digits = random.u32(1..=20);
        let cas = random.u64(..) >> random.u32(..64);
        Self {
            flags: *one_of(random, &[0, 7, 10, 12_345_678, 123_456_789, u32::MAX]),
            cas: *one_of(random, &[cas, 10_u64.saturating_pow(digits) - 1]),
            value: some_value(random),
        }
    }

    /// The answer to an `mg` with these flags, of those that it can show.
    fn meta(&self, key: &[u8], flags: &[&str]) -> Vec<u8> {
        let mut reply = format!("VA {}", self.value.len()).into_bytes();
        for flag in flags {
            match &flag[..1] {
                "f" => reply.extend(format!(" f{}", self.flags).bytes()),
                "s" => reply.extend(format!(" s{}", self.value.len()).bytes()),
                "c" => reply.extend(format!(" c{}", self.cas).bytes()),
                "k" => reply.extend([b" k", key].concat()),
                "O" => reply.extend([b" ", flag.as_bytes()].concat()),
                _ => {}
            }
        }
        [&reply[..], b"\r\n", &self.value, b"\r\n"].concat()
    }

    /// Its part of an answer to `gets`.
    fn with_cas(&self, key: &[u8]) -> Vec<u8> {
        let line = format!(" {} {} {}\r\n", self.flags, self.value.len(), self.cas);
        [b"VALUE ", key, line.as_bytes(), &self.value, b"\r\n"].concat()
    }
}

/// A request for these keys, and what memcached answers that has these items.
fn some_request(random: &mut Rng, keys: &[(&Vec<u8>, &Item)]) -> (Vec<u8>, Vec<u8>) {
    const FLAGS: [&str; 10] = ["v", "v", "f", "s", "k", "q", "c", "t", "O12", "b"];
    let names: Vec<_> = keys.iter().map(|(key, _)| *key).collect();
    let (key, first) = keys[0];
    let all = |block: fn(&Item, &[u8]) -> Vec<u8>| {
        let blocks = keys.iter().flat_map(|(key, item)| block(item, key));
        blocks.chain(*b"END\r\n").collect()
    };
    match random.u8(..8) {
        0..3 => {
            let plain = |item_: &Item, key: &[u8]| item(key, item_.flags, &item_.value);
            (get(&names), all(plain))
        }
        3 | 4 => {
            let line = [
                b"gets ",
                &names
                    .iter()
                    .copied()
                    .cloned()
                    .collect::<Vec<_>>()
                    .join(&b' ')[..],
            ];
            ([&line.concat()[..], b"\r\n"].concat(), all(Item::with_cas))
        }
        5 => {
            let opcode = *one_of(random, &[GET, GETK, GET, GETK, GETQ, GETKQ]);
            let opaque = random.u32(..);
            let reply = binary::hit(opcode, key, first.flags, first.cas, &first.value, opaque);
            (binary::get(opcode, key, opaque), reply)
        }
        _ => {
            let mut flags: Vec<_> = (0..random.usize(..6))
                .map(|_| *one_of(random, &FLAGS))
                .collect();
            if !is_rare(random) {
                flags.sort_unstable();
                flags.dedup();
                random.shuffle(&mut flags);
            }
            let line = [b"mg ", &key[..], b" ", flags.join(" ").as_bytes(), b"\r\n"].concat();
            (line, first.meta(key, &flags))
        }
    }
}

fn series(random: &mut Rng, both: &mut Both, keys: &[Vec<u8>]) {
    let mut items = Vec::new();
    for (key, id) in keys.iter().zip(2000..) {
        let item = Item::some(random);
        let mut flags = vec!["v", "f", "c", "k"];
        if is_rare(random) {
            flags.remove(random.usize(1..4));
        }
        let line = [b"mg ", &key[..], b" ", flags.join(" ").as_bytes(), b"\r\n"].concat();
        let ask = PacketBuilder::udp(line).id(id);
        let answer = item.meta(key, &flags);
        if both.rx(&ask.build()) && answer.len() < 1400 && !is_rare(random) {
            both.tx(&ask.reply(answer).build());
        }
        items.push(item);
    }
    for id in 0..SERIES {
        let count = if random.bool() { 1 } else { random.usize(2..8) };
        let which: Vec<_> = (0..count).map(|_| random.usize(..keys.len())).collect();
        let asked: Vec<_> = which.iter().map(|&i| (&keys[i], &items[i])).collect();
        let (mut text, reply) = some_request(random, &asked);
        garble(random, &mut text);
        let packet = PacketBuilder::udp(&text).id(id as u16);
        let packet = if random.u8(..4) == 0 {
            vary_datagram(random, packet)
        } else {
            packet
        };
        let mut bytes = packet.build();
        garble(random, &mut bytes);
        let passed = both.rx(&bytes);
        if passed && packet.source.is_ipv4() && random.u8(..8) != 0 && reply.len() < 1400 {
            both.tx(&packet.reply(reply).build());
        }
    }
}

#[test]
fn every_form_is_answered_alike() {
    compare_at_random(series);
}

/// Requests that are answered in place, for `key` and `other`.
fn plain() -> Vec<Vec<u8>> {
    let texts = [
        "get key\r\n",
        "get key other\r\n",
        "gets key\r\n",
        "gets other key\r\n",
        "mg key v\r\n",
        "mg key k f s v\r\n",
        "mg key v q\r\n",
    ];
    let binary = [GET, GETK].map(|opcode| binary::get(opcode, b"key", 9));
    texts.map(Vec::from).into_iter().chain(binary).collect()
}

/// All that a change of one byte makes of a request.
fn changed(request: &[u8]) -> Vec<Vec<u8>> {
    const BYTES: &[u8] = b"\0\x01\x02\x04\x08\x09\n\x0d\x0c 0gsvqfskcOtNb\x7f\x80\x81\xff";
    let mut all = vec![request.to_vec()];
    for at in 0..request.len() {
        let with = |byte| [&request[..at], &[byte], &request[at + 1..]].concat();
        all.extend(BYTES.iter().map(|&byte| with(byte)));
        all.extend([1, 0xff].map(|more| with(request[at].wrapping_add(more))));
        all.extend(
            [b' ', b'v', b'\r'].map(|byte| [&request[..at], &[byte], &request[at..]].concat()),
        );
        all.push([&request[..at], &request[at + 1..]].concat());
        all.push(request[..at].to_vec());
    }
    for more in [&b" "[..], b"x", b"\r\n", b"\0", b" v\r\n"] {
        all.push([request, more].concat());
        all.push([&request[..request.len() - 2], more, b"\r\n"].concat());
    }
    all
}

/// What is done differently with a request and all that a change of one byte makes of it.
fn difference_when_changed(request: &[u8]) -> Option<String> {
    // What is odd does not keep the keys from being cached again.
    let setup = Setup {
        settle: Duration::ZERO,
        ..Setup::default()
    };
    let mut both = Both::with(&setup);
    let mut ids = 1..;
    for text in changed(request) {
        for key in ["key", "other"] {
            let ask = PacketBuilder::udp(format!("mg {key} v f c k\r\n"));
            let ask = ask.id(ids.next().expect("an id"));
            if both.rx(&ask.build()) {
                let answer = format!("VA 9 f12 c77 k{key}\r\nthe value\r\n");
                both.tx(&ask.reply(answer).build());
            }
        }
        let ask = PacketBuilder::udp(&text).id(ids.next().expect("an id"));
        if both.rx(&ask.build()) {
            both.tx(&ask.reply("END\r\n").build());
        }
        if let Some(difference) = both.differences.first() {
            return Some(format!("{}: {difference}", text.escape_ascii()));
        }
    }
    None
}

#[test]
fn what_differs_in_one_byte_is_answered_alike() {
    for request in plain() {
        if let Some(difference) = lasting_difference(|| difference_when_changed(&request)) {
            panic!("{difference}");
        }
    }
}
