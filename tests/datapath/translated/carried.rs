//! What is done to the segments of a connection on which GETs were answered.

use std::time::Duration;

use prestack_abi::translated::Translated;

use super::connection::Ready;
use super::{filled, setup};
use crate::bytes::hit;
use crate::harness::{Datapath, Setup, Verdict, wait};
use crate::packet::{ACK, FIN, PSH, RST, SYN, URG};
use crate::tcp::connection::Connection;

const GET: &str = "get key\r\n";
const SETTLE: Duration = Duration::from_millis(100);

fn answer() -> Vec<u8> {
    hit("key", "value")
}

/// A connection whose last GET was answered, and how.
fn answered(path: &mut Datapath, port: u16) -> (Ready, crate::translated::connection::Taken) {
    let mut ready = Ready::open(path, port);
    let taken = ready.served(path, GET, answer());
    (ready, taken)
}

/// The same, but the client has not got the answer.
fn behind(ready: &Ready, flags: u8, data: &str) -> crate::packet::PacketBuilder {
    let segment = ready.segment(flags, data);
    let (_, acknowledgement) = segment.numbers();
    segment.acknowledging(acknowledgement.wrapping_sub(answer().len() as u32))
}

#[test]
fn a_lost_answer_is_sent_again() {
    let mut path = filled();
    let (ready, first) = answered(&mut path, 4300);
    let request = behind(&ready, ACK | PSH, GET);
    let (sequence, _) = request.numbers();
    let request = request.sequence(sequence.wrapping_sub(GET.len() as u32));
    let again = ready.resent(&path, &request);
    // What it acknowledges the kernel has; the rest is as it was.
    assert_eq!((&again.data, again.sequence), (&first.data, first.sequence));
    let repeat = behind(&ready, ACK, "");
    ready.passed(&path, &repeat);
    ready.passed(&path, &repeat);
    let again = ready.resent(&path, &repeat);
    assert_eq!((&again.data, again.sequence), (&first.data, first.sequence));
    ready.passed(&path, &repeat);
    assert_eq!(path.stats().tcp_resent, 2);
}

/// Somebody who does not know the connection's numbers would hit the request with fewer of them.
#[test]
fn a_frame_shorter_than_it_says_brings_nothing() {
    let mut path = filled();
    let (ready, _) = answered(&mut path, 4311);
    let request = behind(&ready, ACK | PSH, GET);
    let (sequence, _) = request.numbers();
    for before in [GET.len() as u32, 60_000] {
        let lie = request.clone().sequence(sequence.wrapping_sub(before));
        let lie = lie.ip_length_lie(65_000);
        let ran = path.kernel().programs.rx(&lie.build());
        assert_eq!(ran.action, 2, "{before}");
    }
    assert_eq!(path.stats().tcp_resent, 0);
}

#[test]
fn an_acknowledgement_is_held_back_until_the_answer_is_there() {
    let mut path = filled();
    let (ready, _) = answered(&mut path, 4301);
    let told = ready.passed(&path, &ready.segment(ACK, ""));
    assert_eq!(told.acknowledgement, ready.connection.server);
    let mut ready = ready;
    ready.served(&path, GET, answer());
    let left = ready.leaves(&path, &ready.connection.answer(ACK, ""));
    let held = ready.connection.client.wrapping_add(ready.taken);
    assert_eq!(left.acknowledgement, held.wrapping_sub(GET.len() as u32));
    // Then the client gets it at once.
    let bare = ready.resent(&path, &ready.segment(ACK, ""));
    assert_eq!((bare.acknowledgement, bare.flags), (held, ACK));
    assert!(bare.data.is_empty());
}

#[test]
fn blocks_and_timestamps_are_translated() {
    let mut path = filled();
    let connection = Connection::open(&path, 4302);
    let mut ready = Ready::of(&mut path, connection, Some((500, 900)));
    let got = ready.served(&path, GET, answer());
    let options = [1, 1, 8, 10, 0, 0, 3, 0x84, 0, 0, 1, 0xf4];
    assert_eq!(got.options, options);
    let server = ready.connection.server;
    let given = ready.given;
    let block = |start: u32, end: u32| [start.to_be_bytes(), end.to_be_bytes()].concat();
    for before in [vec![1, 1], vec![1], vec![1, 1, 1]] {
        // The timestamps, then blocks, at even and odd positions.
        let options = |start: u32, end: u32| {
            let mut options = vec![1, 1, 8, 10, 0, 0, 1, 0xf4, 0, 0, 3, 0x84];
            options.extend(&before);
            options.extend([5, 10]);
            options.extend(block(start, end));
            options.resize(options.len().next_multiple_of(4), 0);
            options
        };
        let kernel = options(server.wrapping_add(10), server.wrapping_add(20));
        let wire = options(
            server.wrapping_add(given).wrapping_add(10),
            server.wrapping_add(given).wrapping_add(20),
        );
        let passed = ready.passed(&path, &ready.segment(ACK, "").tcp_options(&wire));
        assert_eq!(passed.options, kernel);
        let client = ready.connection.client;
        let segment = ready.connection.answer(ACK, "");
        let kernel = options(client.wrapping_add(10), client.wrapping_add(20));
        let wire = options(
            client.wrapping_add(ready.taken).wrapping_add(10),
            client.wrapping_add(ready.taken).wrapping_add(20),
        );
        assert_eq!(
            ready.leaves(&path, &segment.tcp_options(&kernel)).options,
            wire
        );
    }
}

/// What was got twice stands first (D-SACK, RFC 2883): it is no loss, and lies before the acknowledgement.
#[test]
fn several_blocks_are_translated() {
    let mut path = filled();
    let connection = Connection::open(&path, 4315);
    let mut ready = Ready::of(&mut path, connection, Some((500, 900)));
    ready.served(&path, GET, answer());
    let (client, server) = (ready.connection.client, ready.connection.server);
    let (taken, given) = (ready.taken, ready.given);
    let options = |timestamps: [u32; 2], blocks: [(u32, u32); 3]| {
        let mut options = vec![1, 1, 8, 10];
        options.extend(timestamps.map(u32::to_be_bytes).concat());
        options.extend([1, 1, 5, 26]);
        for (start, end) in blocks {
            options.extend([start.to_be_bytes(), end.to_be_bytes()].concat());
        }
        options
    };
    // Something from before what was answered, and two pieces of what is behind it.
    let spread = |base: u32, shift: u32| {
        let at = |offset: u32| base.wrapping_add(shift).wrapping_add(offset);
        let old = (base.wrapping_sub(5), base.wrapping_sub(1));
        [old, (at(10), at(20)), (at(30), at(45))]
    };
    let clients = |blocks| options([500, 900], blocks);
    let wire = ready
        .segment(ACK, "")
        .tcp_options(&clients(spread(server, given)));
    let passed = ready.passed(&path, &wire);
    assert_eq!(passed.options, clients(spread(server, 0)));
    // The answer is nothing to the kernel.
    let twice = clients([(server, server.wrapping_add(given)); 3]);
    let passed = ready.passed(&path, &ready.segment(ACK, "").tcp_options(&twice));
    assert_eq!(passed.options, clients([(server, server); 3]));
    let kernels = |blocks| options([900, 500], blocks);
    let kernel = ready
        .connection
        .answer(ACK, "")
        .tcp_options(&kernels(spread(client, 0)));
    let left = ready.leaves(&path, &kernel);
    assert_eq!(left.options, kernels(spread(client, taken)));
    ready.served(&path, GET, answer());
}

/// Its numbers come to their end with the first request, in what is answered, and in what passes behind that.
#[test]
fn the_clients_numbers_may_wrap_anywhere() {
    let mut path = filled();
    for before in 0..45 {
        let mut connection = Connection::new(4330 + before);
        connection.client = u32::MAX.wrapping_sub(before.into());
        connection.shake_hands(&path);
        let mut ready = Ready::of(&mut path, connection, None);
        let first = ready.served(&path, GET, answer());
        let again = behind(&ready, ACK | PSH, GET);
        let (sequence, _) = again.numbers();
        let again = again.sequence(sequence.wrapping_sub(GET.len() as u32));
        assert_eq!(ready.resent(&path, &again).data, first.data);
        ready.sends(&path, "version\r\n");
        ready.replies(&path, "VERSION 1\r\n");
        ready.served(&path, GET, answer());
    }
    assert_eq!(path.stats().doubted_requests, 0);
}

/// Whoever sends one in the client's name does not know its numbers. Or he does.
#[test]
fn a_syn_in_the_clients_name_changes_nothing() {
    // A new connection's, with and without data (TCP Fast Open, with its cookie).
    let plain = [2, 4, 5, 0xb4, 1, 3, 3, 9];
    let cookie = [34, 10, 1, 2, 3, 4, 5, 6, 7, 8, 1, 1];
    for v6 in [false, true] {
        let mut path = filled();
        let mut connection = Connection::new(4316);
        connection.v6 = v6;
        connection.shake_hands(&path);
        let mut ready = Ready::of(&mut path, connection, None);
        ready.served(&path, GET, answer());
        for offset in [0, 1, u32::MAX, 1000, 1 << 30, 1 << 31] {
            for (options, data) in [
                (&plain[..], ""),
                (&plain, "get nothing\r\n"),
                (&cookie, GET),
            ] {
                let (sequence, _) = ready.segment(ACK, "").numbers();
                let syn = ready
                    .segment(SYN, data)
                    .sequence(sequence.wrapping_add(offset))
                    .acknowledging(0)
                    .tcp_options(options);
                // It is the kernel's to refuse, as it came.
                path.pass(&syn);
                // The kernel says what it has (RFC 5961 4.2).
                let left = ready.leaves(&path, &ready.connection.answer(ACK, ""));
                assert_eq!(left.sequence, ready.segment(ACK, "").numbers().1);
                ready.served(&path, GET, answer());
                ready.sends(&path, "version\r\n");
                ready.replies(&path, "VERSION 1\r\n");
                ready.served(&path, GET, answer());
            }
        }
        assert_eq!(path.stats().tcp_hits, 1 + 2 * 18);
    }
}

/// Its address has been taken off the host and put back, or there are too many.
#[test]
fn a_connection_goes_on_through_a_wildcard() {
    for v6 in [false, true] {
        let mut path = filled();
        let mut connection = Connection::new(4310);
        connection.v6 = v6;
        connection.shake_hands(&path);
        let mut ready = Ready::of(&mut path, connection, None);
        ready.served(&path, GET, answer());
        let usual = setup();
        path.configure(&wildcards());
        let stats = path.stats();
        // All of it is translated, and nothing is answered or learnt.
        for _ in 0..2 {
            ready.sends(&path, GET);
            ready.replies(&path, answer());
        }
        let mut fin = ready.connection.answer(FIN | ACK, "");
        let left = ready.leaves(&path, &fin);
        assert_eq!(left.sequence, fin.numbers().0.wrapping_add(ready.given));
        fin = ready.connection.answer(RST | ACK, "");
        let left = ready.leaves(&path, &fin);
        assert_eq!(left.sequence, fin.numbers().0.wrapping_add(ready.given));
        assert_eq!(path.stats().fills, stats.fills);
        assert_eq!(path.stats().tcp_hits, stats.tcp_hits);
        // Where the address is a door again it goes on as well.
        path.configure(&usual);
        ready.sends(&path, "version\r\n");
        ready.replies(&path, "VERSION 1\r\n");
    }
}

/// `setup` without the doors of addresses.
fn wildcards() -> Setup {
    let mut without = setup();
    without.doors.retain(|door| door.address.is_none());
    without
}

/// Replies are not followed there, and so what the client acknowledges is not known.
#[test]
fn a_write_through_a_wildcard_is_seen() {
    let mut path = filled();
    let (mut ready, _) = answered(&mut path, 4313);
    path.configure(&wildcards());
    ready.connection.server = ready.connection.server.wrapping_add(100_000);
    ready.sends(&path, "set key 0 0 3\r\nnew\r\n");
    path.configure(&setup());
    let request = path.get_of("key");
    assert_eq!(path.rx(&request), Verdict::Passed);
}

/// What it owed is not waited for any more.
#[test]
fn a_connection_ends_through_a_wildcard() {
    let short = |setup| Setup {
        settle: SETTLE,
        ..setup
    };
    let mut path = Datapath::with(&short(setup()));
    path.fill("key", "value");
    let (mut ready, _) = answered(&mut path, 4314);
    ready.sends(&path, "what is this\r\n");
    wait(3 * SETTLE);
    assert!(!path.can_fill("one", "value"));
    path.configure(&short(wildcards()));
    ready.replies(&path, "ERROR\r\n");
    ready.passed(&path, &ready.segment(FIN | ACK, ""));
    ready.connection.client = ready.connection.client.wrapping_add(1);
    ready.connection.acked = ready.connection.client;
    ready.leaves(&path, &ready.connection.answer(FIN | ACK, ""));
    ready.connection.server = ready.connection.server.wrapping_add(1);
    ready.passed(&path, &ready.segment(ACK, ""));
    path.configure(&short(setup()));
    wait(3 * SETTLE);
    assert!(path.can_fill("two", "value"));
}

/// A new connection, which nothing follows there, has numbers of its own; nor is one of memcached's where it has UDP
/// alone.
#[test]
fn a_connection_that_is_not_followed_is_not_translated() {
    let mut without_tcp = setup();
    for door in &mut without_tcp.doors {
        (door.transports.tcp4, door.transports.tcp6) = (false, false);
    }
    for unfollowed in [wildcards(), without_tcp] {
        let mut path = filled();
        let (ready, _) = answered(&mut path, 4311);
        path.configure(&unfollowed);
        let mut again = Connection::new(4311);
        again.client = ready.connection.client.wrapping_add(1_000);
        again.server = ready.connection.server.wrapping_add(2_000);
        again.acked = again.client;
        again.shake_hands(&path);
        // Both ways as it came: the harness says if not.
        again.exchange(&path, "get x\r\n", "END\r\n");
        // Nor is any other.
        let mut other = Connection::open(&path, 4312);
        other.exchange(&path, "get x\r\n", "END\r\n");
        let mut states = Vec::new();
        path.kernel_mut()
            .used_translations(|translated| states.push(translated.state));
        assert_eq!(states, [Translated::NEW]);
    }
}

#[test]
fn unusual_segments_are_not_answered_but_translated() {
    let mut path = filled();
    let connection = Connection::open(&path, 4303);
    let mut ready = Ready::of(&mut path, connection, Some((500, 900)));
    ready.served(&path, GET, answer());
    let segment = ready.segment(ACK | PSH, GET);
    let (sequence, acknowledgement) = ready.connection.segment(ACK, "").numbers();
    let old = [1, 1, 8, 10, 0, 0, 1, 0xf3, 0, 0, 3, 0x84];
    for unusual in [
        segment.clone().tcp_options(&old),
        segment.clone().tcp_options(&[]),
        segment.clone().flags(ACK | PSH | URG),
    ] {
        let passed = ready.passed(&path, &unusual);
        assert_eq!(
            (passed.sequence, passed.acknowledgement),
            (sequence, acknowledgement)
        );
    }
}

#[test]
fn keepalives_and_ends_are_translated() {
    let mut path = filled();
    let (mut ready, _) = answered(&mut path, 4304);
    ready.passed(&path, &ready.segment(ACK, ""));
    let (client, server) = (ready.connection.client, ready.connection.server);
    // Keepalives: before the next byte, with one or without.
    for data in ["", "\n"] {
        let segment = ready.segment(ACK, data);
        let (sequence, _) = segment.numbers();
        let passed = ready.passed(&path, &segment.sequence(sequence.wrapping_sub(1)));
        assert_eq!(
            (passed.sequence, passed.acknowledgement),
            (client.wrapping_sub(1), server)
        );
    }
    ready.served(&path, GET, answer());
    // The client ends, then the kernel.
    let passed = ready.passed(&path, &ready.segment(FIN | ACK, ""));
    assert_eq!(
        (passed.sequence, passed.acknowledgement, passed.flags),
        (client, server, FIN | ACK)
    );
    ready.connection.client = client.wrapping_add(1);
    ready.connection.acked = ready.connection.client;
    let left = ready.leaves(&path, &ready.connection.answer(FIN | ACK, ""));
    assert_eq!(left.sequence, server.wrapping_add(ready.given));
    assert_eq!(
        left.acknowledgement,
        ready.connection.client.wrapping_add(ready.taken)
    );
    ready.connection.server = server.wrapping_add(1);
    let last = ready.passed(&path, &ready.segment(ACK, ""));
    assert_eq!(
        (last.sequence, last.acknowledgement),
        (client.wrapping_add(1), server.wrapping_add(1))
    );
    // It is sent again: the translation lingers.
    let left = ready.leaves(&path, &ready.connection.answer(ACK, ""));
    assert_eq!(
        left.sequence,
        ready.connection.server.wrapping_add(ready.given)
    );
}

#[test]
fn the_kernel_ends_first_or_resets() {
    for flags in [FIN | ACK, RST | ACK] {
        let mut path = filled();
        let (ready, _) = answered(&mut path, 4305);
        ready.passed(&path, &ready.segment(ACK, ""));
        let left = ready.leaves(&path, &ready.connection.answer(flags, ""));
        assert_eq!(
            left.sequence,
            ready.connection.server.wrapping_add(ready.given)
        );
        assert_eq!(left.flags, flags);
        // No more is answered.
        let passed = ready.passed(&path, &ready.segment(ACK | PSH, GET));
        assert_eq!(passed.sequence, ready.connection.client);
    }
}

#[test]
fn the_client_resets() {
    let mut path = filled();
    let (ready, _) = answered(&mut path, 4306);
    let passed = ready.passed(&path, &ready.segment(RST | ACK, ""));
    assert_eq!(passed.sequence, ready.connection.client);
    assert_eq!(passed.acknowledgement, ready.connection.server);
}

#[test]
fn a_new_connection_of_the_same_name_starts_anew() {
    let mut path = filled();
    let (ready, _) = answered(&mut path, 4307);
    ready.passed(&path, &ready.segment(RST | ACK, ""));
    let mut again = Connection::new(4307);
    again.client = again.client.wrapping_add(1_000_000);
    again.server = again.server.wrapping_add(2_000_000);
    again.acked = again.client;
    again.shake_hands(&path);
    let mut states = Vec::new();
    path.kernel_mut().used_translations(|translated| {
        states.push((translated.state, translated.translation.is_active));
    });
    assert_eq!(states, [(Translated::NEW, 0)]);
    // Nothing is translated, and nothing answered.
    again.exchange(&path, "set a 0 0 1\r\nb\r\n", "STORED\r\n");
    again.send(&path, GET);
}

#[test]
fn while_it_drains_all_is_translated_and_nothing_answered() {
    let mut path = filled();
    let (mut ready, _) = answered(&mut path, 4308);
    let mut draining = setup();
    draining.policy.is_serving = 0;
    path.configure(&draining);
    ready.sends(&path, GET);
    ready.replies(&path, answer_text());
    ready.sends(&path, GET);
    ready.replies(&path, answer_text());
}

fn answer_text() -> &'static str {
    "VALUE key 0 5\r\nvalue\r\nEND\r\n"
}

#[test]
fn what_may_not_be_served_is_translated() {
    let settings: [fn(&mut Setup); 2] = [
        |setup| setup.serve_for = Duration::ZERO,
        |setup| setup.allow = vec!["10.0.1.0/24".parse().expect("a network")],
    ];
    for change in settings {
        let mut path = filled();
        let (mut ready, _) = answered(&mut path, 4309);
        let mut changed = setup();
        change(&mut changed);
        path.configure(&changed);
        ready.sends(&path, GET);
    }
}

#[test]
fn it_is_so_over_ipv6_and_vlans_too() {
    let mut path = filled();
    let mut connection = Connection::new(4310);
    connection.v6 = true;
    connection.shake_hands(&path);
    let mut ready = Ready::of(&mut path, connection, None);
    ready.served(&path, GET, answer());
    ready.sends(&path, "version\r\n");
    ready.replies(&path, "VERSION 1\r\n");
    ready.served(&path, GET, answer());

    let mut path = filled();
    let mut connection = Connection::open(&path, 4311);
    connection.tags = vec![(crate::packet::VLAN, 5)];
    let ready = Ready::of(&mut path, connection, None);
    let packet = ready.segment(ACK | PSH, GET).build();
    let ran = path.kernel().programs.rx(&packet);
    assert_eq!(ran.action, 3);
    assert_eq!(ran.packet[12..16], packet[12..16]);
    let plain = [&ran.packet[..12], &ran.packet[16..]].concat();
    assert_eq!(super::connection::take(&plain).data, answer());
}

#[test]
fn padding_is_none_of_the_request() {
    let mut path = filled();
    path.fill("a", "1");
    let ready = Ready::open(&mut path, 4312);
    let segment = ready.segment(ACK | PSH, "get a\r\n").padding([0; 6]);
    assert_eq!(ready.resent(&path, &segment).data, hit("a", "1"));
}

#[test]
fn what_the_kernel_drops_does_not_bar_the_connection() {
    let mut path = filled();
    let mut ready = Ready::open(&mut path, 4313);
    let (sequence, _) = ready.segment(ACK, "").numbers();
    // Before anything was answered, and after.
    for _ in 0..2 {
        let stray = ready
            .segment(ACK | PSH, "x")
            .sequence(sequence.wrapping_add(1 << 30));
        ready.passed(&path, &stray);
        ready.served(&path, GET, answer());
    }
}
