//! `gets`, `mg` and the binary protocol: what each shows of an item, and what one teaches the others.

use crate::binary::{GET, GETK, GETKQ, GETQ, get as binary_get, hit as binary_hit};
use crate::bytes::{get, hit, item};
use crate::harness::{Datapath, Setup, Verdict, random};

/// Reply to `gets`.
fn hit_with_cas(key: &str, flags: u32, cas: u64, value: &str) -> Vec<u8> {
    let len = value.len();
    format!("VALUE {key} {flags} {len} {cas}\r\n{value}\r\nEND\r\n").into_bytes()
}

/// The request is answered so.
fn assert_served(path: &mut Datapath, request: impl AsRef<[u8]>, reply: impl AsRef<[u8]>) {
    let text = request.as_ref().escape_ascii().to_string();
    let request = path.request(request);
    let expected = Verdict::Served(reply.as_ref().to_vec());
    assert_eq!(path.rx(&request), expected, "{text}");
}

/// The request passes, and memcached answers.
fn assert_passed(path: &mut Datapath, request: impl AsRef<[u8]>, reply: impl AsRef<[u8]>) {
    path.exchange(request, reply);
}

/// An item that was asked for by `mg` with all that it can show.
fn filled_by_meta(key: &str, value: &str, flags: u32, cas: u64) -> Datapath {
    let mut path = Datapath::new();
    let reply = format!("VA {} f{flags} c{cas} k{key}\r\n{value}\r\n", value.len());
    path.exchange(format!("mg {key} v f c k\r\n"), reply);
    assert_eq!(path.stats().fills, 1);
    path
}

#[test]
fn gets_is_never_answered_without_a_cas_nor_get_with_one() {
    let mut path = Datapath::new();
    path.fill("key", "value");
    assert_passed(
        &mut path,
        "gets key\r\n",
        hit_with_cas("key", 0, 77, "value"),
    );
    assert_served(
        &mut path,
        "gets key\r\n",
        hit_with_cas("key", 0, 77, "value"),
    );
    assert_served(&mut path, "gets key\n", hit_with_cas("key", 0, 77, "value"));
    assert_served(
        &mut path,
        "gets  key \r\n",
        hit_with_cas("key", 0, 77, "value"),
    );
    assert_served(&mut path, "get key\r\n", hit("key", "value"));
}

#[test]
fn every_cas_number_and_all_flags() {
    for cas in [0, 1, 9, 10, 99_999_999, 100_000_000, 1 << 53, u64::MAX] {
        for flags in [0, 1, 10, 99_999_999, 100_000_000, u32::MAX] {
            let gets = hit_with_cas("key", flags, cas, "value");
            let meta = format!("VA 5 c{cas} f{flags}\r\nvalue\r\n");
            let binary = binary_hit(GET, b"key", flags, cas, b"value", 1);
            let teachers = [
                (b"gets key\r\n".to_vec(), gets.clone()),
                (b"mg key v c f\r\n".to_vec(), meta.clone().into_bytes()),
                (binary_get(GET, b"key", 1), binary),
            ];
            for (request, reply) in teachers {
                let mut path = Datapath::new();
                assert_passed(&mut path, &request, &reply);
                assert_served(&mut path, &request, &reply);
                assert_served(&mut path, "gets key\r\n", &gets);
                let text = [item("key", flags, "value"), b"END\r\n".to_vec()].concat();
                assert_served(&mut path, "get key\r\n", text);
                for opcode in [GET, GETQ, GETK, GETKQ] {
                    let reply = binary_hit(opcode, b"key", flags, cas, b"value", 0xdead_beef);
                    assert_served(&mut path, binary_get(opcode, b"key", 0xdead_beef), reply);
                }
                if request.starts_with(b"mg") {
                    assert_served(&mut path, "mg key c v f\r\n", &meta);
                }
            }
        }
    }
}

#[test]
fn gets_of_several_keys() {
    let mut path = Datapath::new();
    for (key, cas) in [("a", 1), ("bb", 22_222_222_222), ("ccc", 3)] {
        let reply = hit_with_cas(key, 0, cas, "value");
        assert_passed(&mut path, format!("gets {key}\r\n"), reply);
    }
    let expected = "VALUE ccc 0 5 3\r\nvalue\r\nVALUE a 0 5 1\r\nvalue\r\nVALUE bb 0 5 22222222222\r\nvalue\r\nEND\r\n";
    assert_served(&mut path, "gets ccc a bb\r\n", expected);
    let expected = [item("a", 0, "value"), hit("bb", "value")].concat();
    assert_served(&mut path, "get a bb\r\n", expected);
    path.fill("d", "value");
    path.only_pass("gets a d\r\n");
}

#[test]
fn several_items_are_learnt_from_one_gets() {
    let mut path = Datapath::new();
    let request = path.request("gets zz a b\r\n");
    path.pass(&request);
    // memcached says nothing of a first key that is missing in a datagram of its own.
    path.tx(&request.nothing());
    path.tx(&request.reply("VALUE a 0 1 5\r\nx\r\n"));
    path.tx(&request.reply("VALUE b 0 1 6\r\ny\r\nEND\r\n"));
    assert_served(
        &mut path,
        "gets b a\r\n",
        "VALUE b 0 1 6\r\ny\r\nVALUE a 0 1 5\r\nx\r\nEND\r\n",
    );
}

#[test]
fn meta_flags_in_any_order_and_spacing() {
    let mut path = filled_by_meta("key", "value", 7, 99);
    for (flags, head) in [
        ("v", "VA 5"),
        ("v f k s c", "VA 5 f7 kkey s5 c99"),
        ("c s k f v", "VA 5 c99 s5 kkey f7"),
        ("k v q O123", "VA 5 kkey O123"),
        ("Oabc v k", "VA 5 Oabc kkey"),
        (" v   f  ", "VA 5 f7"),
        ("v O", "VA 5 O"),
        ("q v", "VA 5"),
        ("v kx f0 s1 qq", "VA 5 kkey f7 s5"),
        (
            "v O0123456789abcdef0123456789abcde",
            "VA 5 O0123456789abcdef0123456789abcde",
        ),
    ] {
        let reply = format!("{head}\r\nvalue\r\n");
        assert_served(&mut path, format!("mg key {flags}\r\n"), &reply);
        assert_served(&mut path, format!("mg key {flags}\n"), &reply);
    }
}

#[test]
fn meta_gets_that_are_memcacheds() {
    let mut path = filled_by_meta("key", "value", 7, 99);
    for text in [
        "mg key\r\n",
        "mg key k\r\n",
        "mg key f s c\r\n",
        "mg key v t\r\n",
        "mg key v h\r\n",
        "mg key l v\r\n",
        "mg key v v\r\n",
        "mg key v O0123456789abcdef0123456789abcdef\r\n",
        "mg other v\r\n",
        "mg key v b\r\n",
    ] {
        path.only_pass(text);
    }
    assert_eq!(path.stats().invalidations, 0);
    assert_eq!(path.epoch(), 0);
    assert_served(&mut path, "mg key v\r\n", "VA 5\r\nvalue\r\n");
}

#[test]
fn mg_is_answered_only_from_what_mg_has_shown() {
    let mut path = Datapath::new();
    let reply = hit_with_cas("key", 3, 4, "value");
    assert_passed(&mut path, "gets key\r\n", &reply);
    assert_passed(&mut path, "mg key v\r\n", "VA 5\r\nvalue\r\n");
    // Flags and CAS number are known from `gets`; how the key is shown is not.
    assert_served(&mut path, "mg key v f c\r\n", "VA 5 f3 c4\r\nvalue\r\n");
    assert_served(&mut path, "gets key\r\n", &reply);
    assert_passed(&mut path, "mg key v k\r\n", "VA 5 kkey\r\nvalue\r\n");
    assert_served(&mut path, "mg key k c v\r\n", "VA 5 kkey c4\r\nvalue\r\n");
}

#[test]
fn a_meta_reply_without_flags_does_not_answer_get() {
    let mut path = Datapath::new();
    assert_passed(&mut path, "mg key v s\r\n", "VA 5 s5\r\nvalue\r\n");
    assert_served(&mut path, "mg key v s\r\n", "VA 5 s5\r\nvalue\r\n");
    assert_passed(&mut path, "mg key v f\r\n", "VA 5 f9\r\nvalue\r\n");
    let text = [item("key", 9, "value"), b"END\r\n".to_vec()].concat();
    assert_served(&mut path, "get key\r\n", text);
}

#[test]
fn items_in_a_state_that_only_mg_shows_are_not_cached() {
    for state in ["W", "X", "Z", "W X", "X Z"] {
        let mut path = Datapath::new();
        path.fill("key", "value");
        let reply = format!("VA 5 f0 c1 {state}\r\nvalue\r\n");
        assert_passed(&mut path, "mg key v f c\r\n", &reply);
        assert_passed(&mut path, "mg key v f c\r\n", &reply);
        path.assert_miss("key");
    }
}

#[test]
fn base64_keys_are_the_keys_they_stand_for() {
    let mut path = filled_by_meta("foo", "value", 0, 1);
    assert_served(&mut path, "mg Zm9v b v k\r\n", "VA 5 kfoo\r\nvalue\r\n");
    assert_served(&mut path, "get foo\r\n", hit("foo", "value"));
    // A write by the encoded key.
    path.exchange("ms Zm9v 3 b\r\nnew\r\n", "HD\r\n");
    assert_eq!(path.stats().invalidations, 1);
    assert_eq!(path.epoch(), 0);
    path.assert_miss("foo");
    // Now memcached shows the key in base64.
    assert_passed(&mut path, "mg Zm9v b v k\r\n", "VA 3 kZm9v b\r\nnew\r\n");
    assert_served(&mut path, "mg Zm9v k b v\r\n", "VA 3 kZm9v b\r\nnew\r\n");
    assert_served(&mut path, "mg foo v\r\n", "VA 3\r\nnew\r\n");
    path.only_pass("mg foo v k\r\n");
}

#[test]
fn keys_that_only_base64_and_binary_can_write() {
    let mut path = Datapath::new();
    let reply = binary_hit(GET, b"a b\r\n\0", 5, 6, b"value", 1);
    assert_passed(&mut path, binary_get(GET, b"a b\r\n\0", 1), &reply);
    assert_served(&mut path, binary_get(GET, b"a b\r\n\0", 1), &reply);
    path.exchange("md YSBiDQoA b\r\n", "HD\r\n");
    path.only_pass(binary_get(GET, b"a b\r\n\0", 2));
    assert_eq!(path.epoch(), 0);
}

#[test]
fn base64_that_is_not_strict_is_not_served_and_writes_everything() {
    let mut path = filled_by_meta("a", "value", 0, 1);
    assert_served(&mut path, "mg YQ== b v\r\n", "VA 5\r\nvalue\r\n");
    for key in ["YQ", "YQ=", "YQ===", "Y*==", "Y===", "YQ==YQ==", "=YQ="] {
        path.only_pass(format!("mg {key} b v\r\n"));
        assert_eq!(path.epoch(), 0, "{key}");
    }
    for key in ["YQ", "Y*==", "YQ==YQ=="] {
        let mut path = filled_by_meta("a", "value", 0, 1);
        path.only_pass(format!("md {key} b\r\n"));
        assert_eq!(path.epoch(), 1, "{key}");
    }
}

#[test]
fn a_binary_get_teaches_all_the_others() {
    let mut path = Datapath::new();
    let reply = binary_hit(GET, b"key", 5, 6, b"value", 1);
    assert_passed(&mut path, binary_get(GET, b"key", 1), reply);
    assert_eq!(path.stats().fills, 1);
    let text = [item("key", 5, "value"), b"END\r\n".to_vec()].concat();
    assert_served(&mut path, get(&["key"]), text);
    assert_served(
        &mut path,
        "gets key\r\n",
        hit_with_cas("key", 5, 6, "value"),
    );
    for opcode in [GET, GETQ, GETK, GETKQ] {
        let reply = binary_hit(opcode, b"key", 5, 6, b"value", 0x0102_0304);
        assert_served(&mut path, binary_get(opcode, b"key", 0x0102_0304), reply);
    }
    path.only_pass("mg key v\r\n");
}

#[test]
fn a_binary_miss_drops_the_entry() {
    let mut path = Datapath::new();
    path.fill("key", "value");
    let request = path.request(binary_get(GET, b"key", 1));
    path.pass(&request);
    path.tx(&request.reply(crate::binary::not_found(GET, 1)));
    path.assert_miss("key");
    // A quiet one is told by a datagram without payload.
    path.fill("key", "value");
    let request = path.request(binary_get(GETQ, b"key", 1));
    path.pass(&request);
    path.tx(&request.nothing());
    path.assert_miss("key");
}

#[test]
fn binary_requests_that_are_odd_pass() {
    let reply = binary_hit(GET, b"key", 5, 6, b"value", 1);
    let plain = binary_get(GET, b"key", 1);
    let mut with_extras = plain.clone();
    with_extras[4] = 1;
    let mut with_data_type = plain.clone();
    with_data_type[5] = 1;
    let mut too_long = plain.clone();
    too_long[11] += 1;
    too_long.push(b'x');
    for odd in [with_extras, with_data_type, too_long] {
        let mut path = Datapath::new();
        assert_passed(&mut path, &plain, &reply);
        assert_served(&mut path, &plain, &reply);
        path.only_pass(&odd);
        assert_eq!(path.stats().invalidations, 0);
        assert_eq!(path.stats().udp_hits, 1);
        if path.epoch() == 0 {
            assert_served(&mut path, &plain, &reply);
        }
    }
}

/// memcached minds neither: it has no vbuckets, and reads whatever the CAS number.
#[test]
fn a_vbucket_and_a_cas_number_in_a_binary_get() {
    for opcode in [GET, GETQ, GETK, GETKQ] {
        let mut odd = binary_get(opcode, b"key", 9);
        odd[6..8].copy_from_slice(&[0x12, 0x34]);
        odd[16..24].copy_from_slice(&99_u64.to_be_bytes());
        let reply = binary_hit(opcode, b"key", 5, 6, b"value", 9);
        let mut path = Datapath::new();
        assert_passed(&mut path, &odd, &reply);
        assert_served(&mut path, &odd, &reply);
        assert_served(&mut path, binary_get(opcode, b"key", 9), &reply);
    }
}

#[test]
fn binary_writes_invalidate_their_key() {
    let body = |extras: &[u8], value: &[u8]| (extras.to_vec(), value.to_vec());
    let with_value = body(&[0; 8], b"new");
    let arithmetic = body(&[0; 20], b"");
    let expiry = body(&[0; 4], b"");
    let nothing = body(b"", b"");
    for (opcode, (extras, value), is_quiet) in [
        (0x01, &with_value, false),
        (0x02, &with_value, false),
        (0x03, &with_value, false),
        (0x04, &nothing, false),
        (0x05, &arithmetic, false),
        (0x06, &arithmetic, false),
        (0x0e, &body(b"", b"new"), false),
        (0x0f, &body(b"", b"new"), false),
        (0x11, &with_value, true),
        (0x12, &with_value, true),
        (0x13, &with_value, true),
        (0x14, &nothing, true),
        (0x15, &arithmetic, true),
        (0x16, &arithmetic, true),
        (0x19, &body(b"", b"new"), true),
        (0x1a, &body(b"", b"new"), true),
        (0x1c, &expiry, false),
        (0x1d, &expiry, false),
        (0x1e, &expiry, true),
        (0x23, &expiry, false),
        (0x24, &expiry, true),
    ] {
        let mut path = Datapath::new();
        path.fill("key", "value");
        path.fill("other", "value");
        let request = crate::binary::request(opcode, extras, b"key", value, 1);
        let write = path.request(request);
        path.pass(&write);
        assert_eq!(path.epoch(), 0, "opcode {opcode:#x}");
        assert_eq!(path.stats().invalidations, 1, "opcode {opcode:#x}");
        path.assert_hit("other", "value");
        path.assert_miss("key");
        assert!(!path.can_fill("key", "value"), "{opcode:#x} is under way");
        path.tx(&write.reply(crate::binary::done(opcode, 1)));
        // What a quiet one says, if anything, does not tell that it is over.
        assert_eq!(path.can_fill("key", "value"), !is_quiet, "{opcode:#x}");
    }
    for opcode in [0x08, 0x18] {
        let mut path = Datapath::new();
        path.fill("key", "value");
        path.only_pass(crate::binary::request(opcode, b"", b"", b"", 1));
        assert_eq!(path.epoch(), 1);
    }
    for opcode in [0x07, 0x0a, 0x0b, 0x10, 0x17] {
        let mut path = Datapath::new();
        path.fill("key", "value");
        path.only_pass(crate::binary::request(opcode, b"", b"", b"", 1));
        path.assert_hit("key", "value");
    }
}

#[test]
fn several_commands_in_one_datagram() {
    let mut path = Datapath::new();
    for key in ["a", "b", "c"] {
        path.fill(key, "value");
    }
    path.only_pass("get a\r\nget b\r\n");
    path.assert_hit("a", "value");
    path.only_pass("get a\r\nset b 0 0 1\r\nx\r\ndelete c\r\n");
    assert_eq!(path.epoch(), 0);
    path.assert_hit("a", "value");
    path.assert_miss("b");
    path.assert_miss("c");
    let run = [
        binary_get(GETQ, b"a", 1),
        crate::binary::request(0x14, b"", b"a", b"", 2),
        crate::binary::request(0x0a, b"", b"", b"", 3),
    ];
    path.only_pass(run.concat());
    assert_eq!(path.epoch(), 0);
    path.assert_miss("a");
    // What cannot be told apart may be anything.
    let mixed = [&b"get a\r\n"[..], &binary_get(GET, b"a", 1)].concat();
    path.only_pass(mixed);
    assert_eq!(path.epoch(), 1);
}

#[test]
fn values_at_the_edge_of_a_datagram() {
    const KEY: &[u8] = b"a-key-of-thirty-bytes-or-so-xx";
    // The longest value that a binary reply holds does not fit the reply to a text get.
    let value = vec![b'v'; 1392 - 28];
    let mut path = Datapath::new();
    let reply = binary_hit(GET, KEY, 5, 6, &value, 1);
    assert_passed(&mut path, binary_get(GET, KEY, 1), &reply);
    assert_eq!(path.stats().fills, 1);
    assert_served(&mut path, binary_get(GET, KEY, 1), &reply);
    path.only_pass(format!("get {}\r\n", KEY.escape_ascii()));
    path.only_pass(format!("gets {}\r\n", KEY.escape_ascii()));
    path.only_pass(binary_get(GETK, KEY, 1));
}

#[test]
fn values_of_all_sizes_in_all_protocols() {
    for len in (0..80).chain([100, 127, 128, 129, 500, 511, 512, 513, 1000, 1200]) {
        let value: String = (0..len)
            .map(|i| char::from(b'!' + (i * 7 % 90) as u8))
            .collect();
        let mut path = filled_by_meta("key", &value, 12, 34);
        let text = [item("key", 12, &value), b"END\r\n".to_vec()].concat();
        assert_served(&mut path, "get key\r\n", text);
        assert_served(
            &mut path,
            "gets key\r\n",
            hit_with_cas("key", 12, 34, &value),
        );
        assert_served(
            &mut path,
            "mg key v c\r\n",
            format!("VA {len} c34\r\n{value}\r\n"),
        );
        for opcode in [GET, GETK] {
            let reply = binary_hit(opcode, b"key", 12, 34, value.as_bytes(), 1);
            assert_served(&mut path, binary_get(opcode, b"key", 1), reply);
        }
    }
}

#[test]
fn keys_of_all_lengths_in_all_protocols() {
    for len in (1..=250).step_by(3).chain([250]) {
        let key: String = (0..len)
            .map(|i| char::from(b'a' + (i % 26) as u8))
            .collect();
        let mut path = filled_by_meta(&key, "value", 12, 34);
        let expected = hit_with_cas(&key, 12, 34, "value");
        assert_served(&mut path, format!("gets {key}\r\n"), expected);
        let expected = format!("VA 5 k{key} Oq\r\nvalue\r\n");
        assert_served(&mut path, format!("mg {key} v k Oq\r\n"), expected);
        for opcode in [GET, GETK] {
            let reply = binary_hit(opcode, key.as_bytes(), 12, 34, b"value", 1);
            assert_served(&mut path, binary_get(opcode, key.as_bytes(), 1), reply);
        }
    }
}

#[test]
fn entries_at_the_end_of_their_block() {
    let mut random = random();
    let mut path = Datapath::with(&Setup {
        buckets: 1,
        ..Setup::default()
    });
    // Round and round the one block there is.
    for i in 0..100 {
        let (key, value) = (format!("{i:07}"), "v".repeat(random.usize(0..80)));
        let reply = hit_with_cas(&key, 12, 34, &value);
        let deferred = path.stats().fills_deferred;
        assert_passed(&mut path, format!("gets {key}\r\n"), &reply);
        if path.stats().fills_deferred > deferred {
            assert_passed(&mut path, format!("gets {key}\r\n"), &reply);
        }
        assert_served(&mut path, format!("gets {key}\r\n"), &reply);
        let text = [item(&key, 12, &value), b"END\r\n".to_vec()].concat();
        assert_served(&mut path, format!("get  {key}\r\n"), text);
        let reply = binary_hit(GETK, key.as_bytes(), 12, 34, value.as_bytes(), 1);
        assert_served(&mut path, binary_get(GETK, key.as_bytes(), 1), reply);
    }
    assert!(path.stats().evictions > 0);
}

#[test]
fn a_write_between_two_protocols_ends_what_was_known() {
    let mut path = Datapath::new();
    path.exchange("gets key\r\n", hit_with_cas("key", 1, 2, "value"));
    path.exchange("set key 1 0 5\r\nvalue\r\n", "STORED\r\n");
    // The same value with another CAS number.
    path.fill("key", "value");
    path.only_pass("gets key\r\n");
    path.only_pass(binary_get(GET, b"key", 1));
}

/// Network cards and switches drop frames that are shorter than the shortest.
#[test]
fn the_shortest_replies_fill_a_frame() {
    for value in ["", "x", "xy"] {
        let mut path = Datapath::new();
        let reply = format!("VA {}\r\n{value}\r\n", value.len());
        path.exchange("mg k v\r\n", &reply);
        let request = path.request("mg k v\r\n");
        // As they come from a network card, with anything behind them, and from a local stack.
        for (padding, len) in [(&b"zz"[..], 60), (b"zzzzzzzz", 60), (b"z", 59), (b"", 58)] {
            let packet = request.clone().padding(padding).build();
            let ran = path.kernel().programs.rx(&packet);
            let payload = reply.len() + 50;
            assert_eq!(ran.packet.len(), len.max(payload), "{value:?} {padding:?}");
            let expected = Verdict::Served(reply.clone().into_bytes());
            assert_eq!(path.rx_bytes(&packet), expected);
        }
    }
}
