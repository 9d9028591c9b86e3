use super::*;
use crate::discovery::{process::ProcessId, procnet::Socket};

fn memcached(sockets: &[&str]) -> Memcached {
    Memcached {
        process: ProcessId { pid: 1, start: 1 },
        sockets: sockets.iter().map(|text| Socket::sample(text, 0)).collect(),
        unix_sockets: Vec::new(),
    }
}

fn local(list: &[(&str, &str)]) -> Vec<LocalAddress> {
    list.iter()
        .map(|(interface, net)| LocalAddress {
            net: net.parse().expect("a net"),
            interface: (*interface).into(),
            attached: interface.starts_with('v'),
        })
        .collect()
}

fn host() -> Vec<LocalAddress> {
    local(&[
        ("lo", "127.0.0.1/8"),
        ("lo", "::1/128"),
        ("eth0", "192.168.0.9/24"),
        ("eth0", "fe80::9/64"),
        ("vs", "10.0.0.1/24"),
        ("vs", "fe80::1/64"),
    ])
}

fn select(ports: &[u16], addresses: &[&str]) -> Selection {
    Selection {
        ports: ports.to_vec(),
        addresses: addresses
            .iter()
            .map(|a| a.parse().expect("an address"))
            .collect(),
        tcp_hits: false,
    }
}

fn over_tcp(selection: Selection) -> Selection {
    Selection {
        tcp_hits: true,
        ..selection
    }
}

fn show(doors: &[DoorSpec]) -> Vec<String> {
    doors
        .iter()
        .map(|door| {
            let address = door.address.map_or("*".into(), |a| a.to_string());
            let serve = if door.serve_udp { " serve" } else { "" };
            format!("{} {address} {}{serve}", door.backend, door.port)
        })
        .collect()
}

fn one(sockets: &[&str], selection: &Selection) -> Vec<String> {
    let memcached = memcached(sockets);
    let tenant = Tenant {
        number: 0,
        memcached: &memcached,
        alive: true,
    };
    show(
        &doors(&[tenant], &host(), selection, false)
            .expect("few")
            .specs,
    )
}

const ANY4: [&str; 2] = ["tcp 0.0.0.0:11211", "udp 0.0.0.0:11211"];

#[test]
fn wildcards_become_the_hosts_addresses_and_a_wildcard() {
    assert_eq!(
        one(&ANY4, &select(&[11211], &[])),
        [
            "0 10.0.0.1 11211 serve",
            "0 192.168.0.9 11211 serve",
            "0 * 11211"
        ]
    );
    assert_eq!(
        one(
            &["udp [::]:11211", "tcp [::]:11211"],
            &select(&[11211], &[])
        ),
        ["0 fe80::1 11211 serve", "0 * 11211"]
    );
}

#[test]
fn addresses_restrict_what_is_served() {
    // The others are the same memcached's all the same, which may answer from any of them.
    assert_eq!(
        one(&ANY4, &select(&[11211], &["10.0.0.1"])),
        ["0 10.0.0.1 11211 serve", "0 192.168.0.9 11211", "0 * 11211"]
    );
    assert_eq!(
        one(&ANY4, &select(&[11211], &["192.168.0.9"])),
        ["0 192.168.0.9 11211 serve", "0 10.0.0.1 11211", "0 * 11211"]
    );
}

#[test]
fn ports_restrict_what_is_served() {
    assert_eq!(
        one(
            &["udp 0.0.0.0:11211", "udp 0.0.0.0:11300"],
            &select(&[11300], &[])
        ),
        [
            "0 10.0.0.1 11300 serve",
            "0 192.168.0.9 11300 serve",
            "0 10.0.0.1 11211",
            "0 192.168.0.9 11211",
            "0 * 11211",
            "0 * 11300"
        ]
    );
}

/// Linux takes them at every interface.
#[test]
fn link_local_addresses_of_ipv4() {
    let memcached = memcached(&ANY4);
    let tenant = Tenant {
        number: 0,
        memcached: &memcached,
        alive: true,
    };
    let local = local(&[("vs", "10.0.0.1/24"), ("eth0", "169.254.0.9/16")]);
    let doors = doors(&[tenant], &local, &select(&[11211], &[]), false).expect("few");
    assert_eq!(
        show(&doors.specs),
        [
            "0 10.0.0.1 11211 serve",
            "0 169.254.0.9 11211 serve",
            "0 * 11211"
        ]
    );
}

#[test]
fn explicit_addresses_are_doors_served_or_not() {
    assert_eq!(
        one(
            &[
                "udp 10.0.0.1:11211",
                "tcp 10.0.0.1:11211",
                "tcp 192.168.0.9:11300",
                "tcp 127.0.0.1:11211"
            ],
            &select(&[11211], &[])
        ),
        ["0 10.0.0.1 11211 serve", "0 192.168.0.9 11300"]
    );
}

/// As a virtual one that another host has now.
#[test]
fn addresses_that_the_host_has_lost_are_not_served() {
    assert_eq!(
        one(
            &[
                "udp 10.0.0.1:11211",
                "udp 10.0.0.7:11211",
                "udp [fd00::7]:11211"
            ],
            &select(&[11211], &[])
        ),
        [
            "0 10.0.0.1 11211 serve",
            "0 10.0.0.7 11211",
            "0 fd00::7 11211"
        ]
    );
}

#[test]
fn tcp_alone_is_not_served_over_udp() {
    assert_eq!(
        one(
            &["tcp 0.0.0.0:11211", "udp 10.0.0.1:11211"],
            &select(&[11211], &[])
        ),
        ["0 10.0.0.1 11211 serve", "0 192.168.0.9 11211", "0 * 11211"]
    );
    assert_eq!(
        one(
            &["tcp 10.0.0.1:11211", "udp 10.0.0.1:11212"],
            &select(&[11211], &[])
        ),
        ["0 10.0.0.1 11211", "0 10.0.0.1 11212"]
    );
}

/// Another process may have the port over the other transport, or in the other family.
#[test]
fn doors_tell_what_memcached_has_there() {
    let list = |sockets: &[&str]| {
        let memcached = memcached(sockets);
        let tenant = Tenant {
            number: 0,
            memcached: &memcached,
            alive: true,
        };
        let doors = doors(&[tenant], &host(), &select(&[11211], &[]), true).expect("few");
        let has = |door: &DoorSpec| {
            let Transports { udp, tcp4, tcp6 } = door.transports;
            let names = [(udp, " udp"), (tcp4, " tcp4"), (tcp6, " tcp6")];
            let has = names.map(|(has, name)| if has { name } else { "" });
            format!("{door}{}", has.concat())
        };
        doors.specs.iter().map(has).collect::<Vec<_>>()
    };
    assert_eq!(
        list(&["tcp 10.0.0.1:11300", "udp 10.0.0.1:11211"]),
        ["10.0.0.1:11211 udp", "10.0.0.1:11300 tcp4"]
    );
    assert_eq!(
        list(&[
            "tcp 10.0.0.1:11211",
            "udp 10.0.0.1:11211",
            "tcp [::1]:11211"
        ]),
        ["10.0.0.1:11211 udp tcp4", "[::1]:11211 tcp6"]
    );
    assert_eq!(
        list(&["udp 0.0.0.0:11211", "tcp 0.0.0.0:11211"]),
        [
            "10.0.0.1:11211 udp tcp4",
            "192.168.0.9:11211 udp tcp4",
            "*:11211 tcp4"
        ]
    );
    assert_eq!(
        list(&["udp 0.0.0.0:11211", "tcp 10.0.0.1:11211"]),
        [
            "10.0.0.1:11211 udp tcp4",
            "192.168.0.9:11211 udp",
            "*:11211"
        ]
    );
    assert_eq!(
        list(&["udp [::]:11211", "tcp [::]:11211", "tcp 0.0.0.0:11211"]),
        [
            "[fe80::1]:11211 udp tcp6",
            "10.0.0.1:11211 tcp4",
            "192.168.0.9:11211 tcp4",
            "*:11211 tcp4 tcp6"
        ]
    );
}

/// Whether memcached has UDP there as well or not; not where prestack was not asked to serve.
#[test]
fn tcp_is_served_where_it_was_chosen() {
    let served = |sockets: &[&str], selection: &Selection, alive| {
        let memcached = memcached(sockets);
        let tenant = Tenant {
            number: 0,
            memcached: &memcached,
            alive,
        };
        let doors = doors(&[tenant], &host(), selection, true).expect("few");
        let served = doors.specs.iter().filter(|door| door.serve_tcp);
        served.map(ToString::to_string).collect::<Vec<_>>()
    };
    let any = over_tcp(select(&[11211], &[]));
    let one = over_tcp(select(&[11211], &["10.0.0.1"]));
    for sockets in [&ANY4[..], &["tcp 0.0.0.0:11211"]] {
        assert_eq!(
            served(sockets, &any, true),
            ["10.0.0.1:11211", "192.168.0.9:11211"]
        );
        assert_eq!(served(sockets, &one, true), ["10.0.0.1:11211"]);
        assert!(served(sockets, &one, false).is_empty());
        let without = select(&[11211], &[]);
        assert!(served(sockets, &without, true).is_empty());
    }
    let explicit = [
        "tcp 10.0.0.1:11211",
        "udp 10.0.0.1:11211",
        "tcp 192.168.0.9:11211",
        "tcp 10.0.0.1:11300",
        "tcp 127.0.0.1:11211",
    ];
    assert_eq!(
        served(&explicit, &any, true),
        ["10.0.0.1:11211", "192.168.0.9:11211"]
    );
    assert_eq!(served(&explicit, &one, true), ["10.0.0.1:11211"]);
    assert_eq!(
        served(&explicit, &over_tcp(select(&[11300], &[])), true),
        ["10.0.0.1:11300"]
    );
}

#[test]
fn loopback_counts_when_prestack_is_attached_to_it() {
    let memcached = memcached(&["udp 127.0.0.1:11211"]);
    let tenant = Tenant {
        number: 0,
        memcached: &memcached,
        alive: true,
    };
    let attached = [LocalAddress {
        attached: true,
        ..host().swap_remove(0)
    }];
    let doors = doors(&[tenant], &attached, &select(&[11211], &[]), false).expect("few");
    assert_eq!(show(&doors.specs), ["0 127.0.0.1 11211 serve"]);
}

/// They are not served: nobody reaches them over the interface that is.
#[test]
fn loopback_counts_when_it_is_watched() {
    let memcached = memcached(&[
        "udp 127.0.0.1:11211",
        "tcp [::1]:11211",
        "udp 10.0.0.1:11211",
    ]);
    let tenant = Tenant {
        number: 0,
        memcached: &memcached,
        alive: true,
    };
    let doors = doors(&[tenant], &host(), &select(&[11211], &[]), true).expect("few");
    assert_eq!(
        show(&doors.specs),
        ["0 10.0.0.1 11211 serve", "0 127.0.0.1 11211", "0 ::1 11211"]
    );
}

#[test]
fn the_dead_keep_their_place_and_are_not_served() {
    let (first, second) = (
        memcached(&["udp 10.0.0.1:11211"]),
        memcached(&["udp 10.0.0.1:11212"]),
    );
    let selection = select(&[11211, 11212], &[]);
    let tenants = |alive| {
        [
            Tenant {
                number: 0,
                memcached: &first,
                alive,
            },
            Tenant {
                number: 1,
                memcached: &second,
                alive: true,
            },
        ]
    };
    let before = doors(&tenants(true), &host(), &selection, false).expect("few");
    let after = doors(&tenants(false), &host(), &selection, false).expect("few");
    assert_eq!(
        show(&after.specs),
        ["0 10.0.0.1 11211", "1 10.0.0.1 11212 serve"]
    );
    assert!(
        before
            .specs
            .iter()
            .zip(&after.specs)
            .all(|(one, other)| one.is_same_place(other))
    );
}

#[test]
fn the_living_take_the_place_of_the_dead() {
    let gone = memcached(&["udp 10.0.0.1:11211", "tcp 10.0.0.1:11300"]);
    let here = memcached(&["udp 10.0.0.1:11211"]);
    let tenants = [
        Tenant {
            number: 0,
            memcached: &gone,
            alive: false,
        },
        Tenant {
            number: 1,
            memcached: &here,
            alive: true,
        },
    ];
    let doors = doors(&tenants, &host(), &select(&[11211], &[]), false).expect("few");
    assert_eq!(
        show(&doors.specs),
        ["1 10.0.0.1 11211 serve", "0 10.0.0.1 11300"]
    );
}

#[test]
fn too_many_doors_are_refused_but_unattached_addresses_are_left_to_the_wildcard() {
    let addresses: Vec<_> = (0..100)
        .map(|n| LocalAddress {
            net: format!("10.1.0.{n}/24").parse().expect("a net"),
            interface: "eth0".into(),
            attached: n < 3,
        })
        .collect();
    let memcached = memcached(&ANY4);
    let tenant = Tenant {
        number: 0,
        memcached: &memcached,
        alive: true,
    };
    let list = doors(&[tenant], &addresses, &select(&[11211], &[]), false).expect("enough");
    assert_eq!(list.specs.len(), MAX_DOORS);
    assert_eq!(list.specs.last().expect("some").address, None);
    assert_eq!(list.left_out.len(), 101 - MAX_DOORS);
    assert_eq!(list.left_out[0].to_string(), "10.1.0.63:11211");
    let left_out = LeftOut(list.left_out).to_string();
    let shown = "at 10.1.0.63:11211, 10.1.0.64:11211, 10.1.0.65:11211, 34 more: 64 addresses";
    assert!(left_out.contains(shown), "{left_out}");
    let attached: Vec<_> = addresses
        .iter()
        .cloned()
        .map(|a| LocalAddress {
            attached: true,
            ..a
        })
        .collect();
    assert_eq!(
        doors(&[tenant], &attached, &select(&[11211], &[]), false),
        Err(TooManyDoors { needed: 101 })
    );
}

/// Of two backends on two ports, the second's place was taken by the first's successor.
#[test]
fn the_doors_of_the_dead_do_not_stand_before_those_of_the_living() {
    let gone = memcached(&["udp 0.0.0.0:11212", "tcp 0.0.0.0:11212", "udp [::]:11212"]);
    let here = memcached(&["udp 0.0.0.0:11211", "tcp 0.0.0.0:11212"]);
    let tenants = [
        Tenant {
            number: 0,
            memcached: &here,
            alive: true,
        },
        Tenant {
            number: 1,
            memcached: &gone,
            alive: false,
        },
    ];
    let selection = select(&[11211, 11212], &[]);
    let doors = doors(&tenants, &host(), &selection, false).expect("few");
    assert_eq!(
        show(&doors.specs),
        [
            "0 10.0.0.1 11211 serve",
            "1 fe80::1 11212",
            "0 10.0.0.1 11212",
            "0 192.168.0.9 11211 serve",
            "0 192.168.0.9 11212",
            "0 * 11211",
            "0 * 11212"
        ]
    );
}

/// What comes by TCP is followed at every address: at a wildcard door nobody knows whose it is.
#[test]
fn tcp_alone_has_doors_where_it_is_not_served() {
    let selection = over_tcp(select(&[11211], &["10.0.0.1"]));
    let memcached = memcached(&["tcp 0.0.0.0:11211", "tcp 0.0.0.0:11300"]);
    let tenant = Tenant {
        number: 0,
        memcached: &memcached,
        alive: true,
    };
    let doors = doors(&[tenant], &host(), &selection, true).expect("few");
    assert_eq!(
        show(&doors.specs),
        [
            "0 10.0.0.1 11211",
            "0 192.168.0.9 11211",
            "0 10.0.0.1 11300",
            "0 192.168.0.9 11300",
            "0 * 11211",
            "0 * 11300"
        ]
    );
    let served = doors.specs.iter().filter(|door| door.is_served());
    assert_eq!(served.count(), 1);
}

/// Of more addresses than there is room for, those that are not served are left to the wildcard.
#[test]
fn what_is_served_goes_before_what_is_not() {
    let addresses: Vec<_> = (0..100)
        .map(|n| LocalAddress {
            net: format!("10.1.0.{n}/24").parse().expect("a net"),
            interface: "eth0".into(),
            attached: n == 0,
        })
        .collect();
    let memcached = memcached(&ANY4);
    for alive in [true, false] {
        let tenant = Tenant {
            number: 0,
            memcached: &memcached,
            alive,
        };
        let selection = select(&[11211], &["10.1.0.0", "10.1.0.98", "10.1.0.99"]);
        let doors = doors(&[tenant], &addresses, &selection, false).expect("enough");
        let served: Vec<_> = doors.specs.iter().filter(|door| door.serve_udp).collect();
        assert_eq!(served.len(), if alive { 3 } else { 0 });
        let first: Vec<_> = doors.specs[..3].iter().map(ToString::to_string).collect();
        assert_eq!(
            first,
            ["10.1.0.0:11211", "10.1.0.98:11211", "10.1.0.99:11211"]
        );
        assert_eq!((doors.specs.len(), doors.left_out.len()), (MAX_DOORS, 0));
    }
}

/// The datapath looks at the first one first.
#[test]
fn the_first_door_is_one_that_is_served() {
    assert_eq!(
        one(
            &["tcp 10.0.0.1:11200", "udp 10.0.0.1:11211"],
            &select(&[11211], &[])
        ),
        ["0 10.0.0.1 11211 serve", "0 10.0.0.1 11200"]
    );
}

#[test]
fn the_datapath_reads_network_byte_order() {
    let spec = DoorSpec {
        address: Some("10.0.0.1".parse().expect("an address")),
        port: 11211,
        backend: 3,
        serve_tcp: true,
        serve_udp: true,
        transports: Transports {
            udp: true,
            tcp4: true,
            tcp6: false,
        },
    };
    let door = spec.to_abi();
    assert_eq!(door.address[2], prestack_abi::config::MAPPED_V4);
    assert_eq!(door.address[3].to_ne_bytes(), [10, 0, 0, 1]);
    assert_eq!(door.port.to_ne_bytes(), [0x2b, 0xcb]);
    assert_eq!(
        (door.backend, door.flags),
        (
            3,
            Door::SERVE_TCP | Door::SERVE_UDP | Door::HAS_UDP | Door::HAS_TCP4
        )
    );
    let any = DoorSpec {
        address: None,
        serve_tcp: false,
        serve_udp: false,
        transports: Transports {
            udp: false,
            tcp4: false,
            tcp6: true,
        },
        ..spec
    };
    assert_eq!(any.to_abi().flags, Door::ANY_ADDRESS | Door::HAS_TCP6);
}

/// memcached was started again at other ports.
#[test]
fn the_dead_leave_room_for_the_living() {
    let at = |port: u16| {
        let sockets: Vec<_> = (1..=40).map(|n| format!("udp 10.1.0.{n}:{port}")).collect();
        memcached(&sockets.iter().map(String::as_str).collect::<Vec<_>>())
    };
    let addresses: Vec<_> = (1..=40).map(|n| ("vs", format!("10.1.0.{n}/24"))).collect();
    let addresses: Vec<_> = addresses
        .iter()
        .map(|(at, net)| (*at, net.as_str()))
        .collect();
    let (gone, here) = (at(11211), at(11212));
    let tenants = |alive| {
        [(0, &gone, alive), (1, &here, true)].map(|(number, memcached, alive)| Tenant {
            number,
            memcached,
            alive,
        })
    };
    let selection = select(&[11211, 11212], &[]);
    let doors = |alive| doors(&tenants(alive), &local(&addresses), &selection, false);
    let found = doors(false).expect("enough");
    let served = found.specs.iter().filter(|door| door.serve_udp);
    assert_eq!(served.count(), 40);
    assert_eq!((found.specs.len(), found.left_out), (MAX_DOORS, vec![]));
    assert_eq!(doors(true), Err(TooManyDoors { needed: 80 }));
}
