//! Frames that are not for this host, though their packets are: XDP sees them, and the kernel drops
//! them or hands them on.

use prestack_abi::config::Link;

use crate::bytes::{get, hit};
use crate::harness::{Datapath, Setup, Verdict, link_to};
use crate::packet::{CLIENT_MAC, PacketBuilder, SERVER_MAC, SERVICE_VLAN, VLAN};
use prestack::netlink::Tag;

const ALL: u64 = u64::MAX;
/// Another host's, or that of another interface.
const OTHER_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 0x07];

fn customer(id: u16) -> Tag {
    Tag {
        is_service: false,
        id,
    }
}

fn service(id: u16) -> Tag {
    Tag {
        is_service: true,
        id,
    }
}

/// GETs of one and of two cached keys, in both families.
fn asked() -> Vec<PacketBuilder> {
    let texts = [get(&["key"]), get(&["key", "other"])];
    let asked = texts.map(|text| PacketBuilder::udp(text).id(9));
    asked
        .into_iter()
        .flat_map(|plain| [plain.clone().v6(), plain])
        .collect()
}

/// A datapath with these links alone, in which both keys are cached.
fn filled(links: &[Link]) -> Datapath {
    let mut path = Datapath::new();
    path.fill("key", "value");
    path.fill("other", "value");
    path.configure(&Setup {
        links: links.to_vec(),
        ..Setup::default()
    });
    path
}

fn assert_served(path: &Datapath, alter: impl Fn(PacketBuilder) -> PacketBuilder) {
    for request in asked() {
        let request = alter(request);
        let served = path.rx(&request);
        assert!(matches!(served, Verdict::Served(_)), "{request:?}");
    }
}

/// What is asked is passed, and what is written counts.
fn assert_foreign(path: &mut Datapath, alter: impl Fn(PacketBuilder) -> PacketBuilder) {
    let before = path.stats().wrong_link;
    for request in asked() {
        path.pass(&alter(request));
    }
    assert_eq!(path.stats().wrong_link, before + asked().len() as u64);
    for write in ["delete key\r\n", "set key 0 0 1\r\nx\r\n"] {
        let before = path.stats().invalidations;
        path.pass(&alter(PacketBuilder::udp(write)));
        assert_eq!(path.stats().invalidations, before + 1, "{write:?}");
    }
    assert_eq!(path.epoch(), 0);
    path.pass(&PacketBuilder::udp(get(&["key"])));
}

#[test]
fn other_mac_addresses() {
    let macs: Vec<_> = (0..48)
        .map(|bit| {
            let mut mac = SERVER_MAC;
            mac[bit / 8] ^= 1 << (bit % 8);
            mac
        })
        // Groups have tests of their own.
        .filter(|mac| mac[0] & 1 == 0)
        .chain([[0; 6], CLIENT_MAC])
        .collect();
    for mac in macs {
        let mut path = filled(&Setup::default().links);
        assert_served(&path, |request| request);
        assert_foreign(&mut path, |request| request.destined(mac));
    }
}

/// The interface has become a port of Open vSwitch, or its bridge filters VLANs.
#[test]
fn the_last_link_goes_away() {
    let mut path = filled(&Setup::default().links);
    assert_served(&path, |request| request);
    path.configure(&Setup {
        links: Vec::new(),
        ..Setup::default()
    });
    assert_foreign(&mut path, |request| request);
}

#[test]
fn other_vlans() {
    let links = [
        link_to(SERVER_MAC, vec![]),
        link_to(SERVER_MAC, vec![customer(5)]),
        link_to(SERVER_MAC, vec![service(7), customer(9)]),
    ];
    let links = links.map(|link| link.to_abi(ALL));
    let mut path = filled(&links);
    assert_served(&path, |request| request);
    assert_served(&path, |request| request.tag(VLAN, 5));
    // Priority and drop eligibility are no part of the number.
    assert_served(&path, |request| request.tag(VLAN, 0xf005));
    assert_served(&path, |request| request.tag(SERVICE_VLAN, 7).tag(VLAN, 9));
    // The kernel takes no notice of tags of VLAN 0, which tell a priority.
    assert_served(&path, |request| request.tag(VLAN, 0));
    assert_served(&path, |request| request.tag(VLAN, 0xe000));
    assert_served(&path, |request| request.tag(SERVICE_VLAN, 0).tag(VLAN, 0));
    assert_served(&path, |request| request.tag(VLAN, 0).tag(VLAN, 5));
    assert_served(&path, |request| request.tag(VLAN, 5).tag(VLAN, 0));
    let others = [
        vec![(VLAN, 4)],
        vec![(VLAN, 0x105)],
        vec![(VLAN, 0xfff)],
        vec![(SERVICE_VLAN, 5)],
        vec![(VLAN, 5), (VLAN, 5)],
        vec![(VLAN, 7), (VLAN, 9)],
        vec![(SERVICE_VLAN, 7)],
        vec![(SERVICE_VLAN, 7), (SERVICE_VLAN, 9)],
        vec![(VLAN, 9), (SERVICE_VLAN, 7)],
        vec![(SERVICE_VLAN, 7), (VLAN, 8)],
        vec![(SERVICE_VLAN, 7), (VLAN, 0)],
    ];
    for tags in others {
        assert_foreign(&mut path, |request| {
            tags.iter()
                .fold(request, |r, (kind, tag)| r.tag(*kind, *tag))
        });
        path = filled(&links);
    }
    // A VLAN's number is not enough without its MAC address.
    assert_foreign(&mut path, |request| {
        request.tag(VLAN, 5).destined(OTHER_MAC)
    });
}

#[test]
fn an_interface_that_takes_tagged_frames_alone() {
    let link = link_to(OTHER_MAC, vec![customer(5)]).to_abi(ALL);
    let mut path = filled(&[link]);
    assert_served(&path, |request| request.tag(VLAN, 5).destined(OTHER_MAC));
    assert_foreign(&mut path, |request| request.destined(OTHER_MAC));
}

#[test]
fn another_interface() {
    let mut link = link_to(SERVER_MAC, vec![]);
    link.index += 1;
    let mut path = filled(&[link.to_abi(ALL)]);
    assert_foreign(&mut path, |request| request);
}

#[test]
fn without_links_nothing_is_served() {
    let mut path = filled(&[]);
    assert_foreign(&mut path, |request| request);
    // Nor are frames to the address that unused places of the list have.
    let mut path = filled(&[]);
    assert_foreign(&mut path, |request| request.destined([0; 6]));
}

#[test]
fn the_last_of_many_links() {
    let mut links: Vec<_> = (0..63)
        .map(|n| link_to(SERVER_MAC, vec![customer(n + 100)]).to_abi(ALL))
        .collect();
    links.push(link_to(SERVER_MAC, vec![customer(5)]).to_abi(ALL));
    let mut path = filled(&links);
    assert_served(&path, |request| request.tag(VLAN, 5));
    assert_served(&path, |request| request.tag(VLAN, 162));
    assert_foreign(&mut path, |request| request.tag(VLAN, 163));
}

/// The subnet of one link is not served on another.
#[test]
fn subnets_of_other_links() {
    let allow = ["10.0.0.0/24", "10.1.0.0/24", "fd00::/64", "fd01::/64"];
    let allow = allow.map(|net| net.parse().expect("a network"));
    let setup = Setup {
        allow: allow.to_vec(),
        links: vec![
            link_to(SERVER_MAC, vec![]).to_abi(0b01 | 0b10 << 32),
            link_to(SERVER_MAC, vec![customer(5)]).to_abi(0b10 | 0b01 << 32),
        ],
        ..Setup::default()
    };
    let filled = || {
        let mut path = filled(&[]);
        path.configure(&setup);
        path
    };
    let mut path = filled();
    let from = |net: u8, v6: u16| {
        move |request: PacketBuilder| {
            if request.source.is_ipv6() {
                let source = std::net::Ipv6Addr::new(0xfd00 + v6, 0, 0, 0, 0, 0, 0, 9);
                request.from((source, 40_000))
            } else {
                request.from(([10, net, 0, 9], 40_000))
            }
        }
    };
    assert_served(&path, from(0, 1));
    assert_served(&path, |request| from(1, 0)(request).tag(VLAN, 5));
    assert_foreign(&mut path, from(1, 0));
    path = filled();
    assert_foreign(&mut path, |request| from(0, 1)(request).tag(VLAN, 5));
}

/// One network within another, each of a link of its own: the narrower counts, as in routing.
#[test]
fn overlapping_subnets() {
    let allow = ["10.0.1.0/24", "10.0.0.0/16"].map(|net| net.parse().expect("a network"));
    let mut path = filled(&[]);
    path.configure(&Setup {
        allow: allow.to_vec(),
        links: vec![
            link_to(SERVER_MAC, vec![]).to_abi(0b10),
            link_to(SERVER_MAC, vec![customer(5)]).to_abi(0b01),
        ],
        ..Setup::default()
    });
    let ask = |net: u8| PacketBuilder::udp(get(&["key"])).from(([10, 0, net, 9], 40_000));
    let served = Verdict::Served(hit("key", "value"));
    path.pass(&ask(1));
    assert_eq!(path.rx(&ask(2)), served);
    assert_eq!(path.rx(&ask(1).tag(VLAN, 5)), served);
    path.pass(&ask(2).tag(VLAN, 5));
}

/// Wherever it came from, a segment is parsed.
#[test]
fn tcp_writes_to_others_count() {
    let mut path = filled(&Setup::default().links);
    let other = |packet: PacketBuilder| packet.destined(OTHER_MAC).tag(VLAN, 99);
    let segment = other(PacketBuilder::tcp(2, 0x18, "delete key\r\n"));
    path.accept(&segment);
    path.pass(&segment);
    assert_eq!(path.stats().invalidations, 1);
    path.assert_hit("other", "value");
    path.pass(&PacketBuilder::udp(get(&["key"])));
}
