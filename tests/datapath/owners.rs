//! Ports that memcached has over one transport only, or in one family: over the other any process of
//! its host may have them, and what that answers is not memcached's.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use prestack::doors::{DoorSpec, Transports};

use crate::binary;
use crate::bytes::{get, hit};
use crate::harness::{Datapath, Setup, Verdict, wait_to_settle};
use crate::packet::{PORT, PacketBuilder, SERVER4, SERVER6};
use crate::tcp::connection::Connection;

/// memcached has TCP alone on this port (`-p 11300 -U 11211`).
const TCP_PORT: u16 = 11_300;

/// The doors of a memcached with UDP at one port, and TCP at another.
fn two_ports() -> Setup {
    let door = |address: IpAddr, port, transports| DoorSpec {
        address: Some(address),
        port,
        backend: 0,
        serve_tcp: false,
        serve_udp: port == PORT,
        transports,
    };
    let of = |address: IpAddr| {
        let all = Transports::all(Some(address));
        let none = Transports::default();
        let udp = Transports { udp: true, ..none };
        let tcp = Transports { udp: false, ..all };
        [door(address, PORT, udp), door(address, TCP_PORT, tcp)]
    };
    Setup {
        doors: [of(SERVER4.into()), of(SERVER6.into())].concat(),
        ..Setup::default()
    }
}

/// GETs of every form, in both families, with the answers that would fill the cache.
fn asked() -> Vec<(PacketBuilder, Vec<u8>)> {
    let texts = [
        (get(&["key"]), hit("key", "forged")),
        (get(&["key", "other"]), hit("key", "forged")),
        (b"mg key v\r\n".to_vec(), b"VA 6\r\nforged\r\n".to_vec()),
        (
            binary::get(0, b"key", 1),
            binary::hit(0, b"key", 0, 7, b"forged", 1),
        ),
    ];
    let asked = texts.into_iter().zip(1..);
    asked
        .flat_map(|((text, answer), id)| {
            let packet = PacketBuilder::udp(text).id(id);
            [(packet.clone().v6(), answer.clone()), (packet, answer)]
        })
        .collect()
}

#[test]
fn datagrams_from_a_port_with_tcp_alone_do_not_fill() {
    for (request, answer) in asked() {
        let request = request.server_port(TCP_PORT);
        let mut path = Datapath::with(&two_ports());
        // memcached itself answers, so that what is cached is served.
        path.exchange(get(&["x"]), "END\r\n");
        path.pass(&request);
        path.tx(&request.reply(&answer));
        assert_eq!(path.stats().fills, 0, "{request:?}");
        path.assert_miss("key");
        // At its own port the same is learnt.
        let request = request.server_port(PORT);
        path.pass(&request);
        path.tx(&request.reply(&answer));
        assert_eq!(path.stats().fills, 1, "{request:?}");
    }
}

/// At an address that is not to be served another process may share memcached's port.
#[test]
fn datagrams_from_an_address_that_is_not_served_do_not_fill() {
    for (request, answer) in asked() {
        let mut path = Datapath::new();
        path.exchange(get(&["x"]), "END\r\n");
        let mut setup = Setup::default();
        for door in &mut setup.doors {
            door.serve_udp = false;
        }
        path.configure(&setup);
        path.pass(&request);
        path.tx(&request.reply(&answer));
        assert_eq!(path.stats().fills, 0, "{request:?}");
    }
}

#[test]
fn datagrams_from_a_port_with_tcp_alone_are_no_sign_of_memcached() {
    let mut path = Datapath::with(&two_ports());
    path.fill("key", "value");
    path.kernel().controls.doubt_udp(0);
    let request = path.get_of("x").server_port(TCP_PORT);
    path.pass(&request);
    path.tx(&request.reply("END\r\n"));
    let ask = path.get_of("key");
    assert_eq!(path.rx(&ask), Verdict::Passed);
    path.tx(&ask.reply(hit("key", "value")));
    path.assert_hit("key", "value");
}

/// It may be memcached's, should it have just got a socket there; but no answer ends it.
#[test]
fn writes_to_a_port_with_tcp_alone_settle() {
    let settle = Duration::from_millis(100);
    let mut path = Datapath::with(&Setup {
        settle,
        ..two_ports()
    });
    path.fill("key", "value");
    let write = path.request("set key 0 0 3\r\nnew\r\n");
    let write = write.server_port(TCP_PORT);
    path.pass(&write);
    path.tx(&write.reply("STORED\r\n"));
    assert!(!path.can_fill("key", "old"));
    wait_to_settle(settle);
    assert!(path.can_fill("key", "new"));
}

#[test]
fn connections_to_a_port_with_udp_alone_do_not_fill() {
    for v6 in [false, true] {
        for is_memcached in [false, true] {
            let mut setup = two_ports();
            for door in &mut setup.doors {
                if is_memcached {
                    door.transports = Transports::all(door.address);
                }
            }
            let mut path = Datapath::with(&setup);
            path.exchange(get(&["x"]), "END\r\n");
            let mut connection = Connection {
                v6,
                ..Connection::new(1)
            };
            connection.shake_hands(&path);
            for _ in 0..2 {
                connection.exchange(&path, "get key\r\n", hit("key", "forged"));
            }
            assert_eq!(path.stats().fills > 0, is_memcached, "IPv6: {v6}");
        }
    }
}

/// A connection that was there when memcached had the port.
#[test]
fn connections_do_not_fill_any_more_when_memcached_has_lost_the_port() {
    let mut setup = Setup::default();
    let mut path = Datapath::with(&setup);
    path.exchange(get(&["x"]), "END\r\n");
    let mut connection = Connection::open(&path, 1);
    connection.exchange(&path, "get x\r\n", "END\r\n");
    for door in &mut setup.doors {
        door.transports.tcp4 = false;
    }
    path.configure(&setup);
    for _ in 0..2 {
        connection.exchange(&path, "get key\r\n", hit("key", "forged"));
    }
    assert_eq!(path.stats().fills, 0);
}

/// Beside a memcached that listens at every IPv4 address, another process may listen at `::1`.
#[test]
fn local_connections_fill_where_memcached_listens() {
    let all = Transports::all(None);
    let none = Transports::default();
    let v4 = Transports { tcp6: false, ..all };
    let v6 = Transports { tcp4: false, ..all };
    let locals: [IpAddr; 2] = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
    for (transports, fills) in [
        (all, [true, true]),
        (v4, [true, false]),
        (v6, [false, true]),
        (none, [false, false]),
    ] {
        for (address, fills) in locals.into_iter().zip(fills) {
            let mut setup = Setup {
                settle: Duration::ZERO,
                ..Setup::default()
            };
            for door in &mut setup.doors {
                if door.address.is_none() {
                    door.transports = transports;
                }
            }
            let mut path = Datapath::with(&setup);
            path.exchange(get(&["x"]), "END\r\n");
            let mut connection = Connection::open_locally(&path, 1, address);
            for _ in 0..2 {
                connection.exchange(&path, "get key\r\n", hit("key", "value"));
            }
            assert_eq!(path.stats().fills > 0, fills, "{address} {transports:?}");
        }
    }
}

/// It may be for memcached, should it have just got a socket there.
#[test]
fn datagrams_to_a_port_with_tcp_alone_invalidate() {
    let mut path = Datapath::with(&two_ports());
    path.fill("key", "value");
    path.fill("other", "value");
    path.pass(&PacketBuilder::udp("delete key\r\n").server_port(TCP_PORT));
    path.assert_miss("key");
    path.assert_hit("other", "value");
}
