//! Frames that the driver hands over in pieces: the program reads the first in place, and the others
//! with helpers only.

use prestack_tests::kernel;

use crate::binary;
use crate::bytes::{get, hit};
use crate::harness::{Datapath, Verdict};
use crate::packet::{ACK, PSH, PacketBuilder, SERVICE_VLAN, Transport, VLAN};

/// More than the first piece holds: a page.
const MANY: usize = 4096;
/// The shortest piece of a test run.
const ETHERNET: usize = 14;

fn filled() -> Datapath {
    let mut path = Datapath::new();
    path.fill("key", "value");
    path.fill("other", "value");
    let long = long_key();
    path.exchange(
        format!("mg {long} v f c k\r\n"),
        format!("VA 9 f0 c1 k{long}\r\nthe value\r\n"),
    );
    path
}

/// The key of an item some of whose answers are shorter than the request.
fn long_key() -> String {
    "k".repeat(60)
}

/// GETs of cached keys.
fn asked() -> Vec<PacketBuilder> {
    let long = long_key();
    let texts = [
        get(&["key"]),
        get(&["key", "other"]),
        b"get  key\r\n".to_vec(),
        format!("gets {long}\r\n").into_bytes(),
        format!("mg {long} v\r\n").into_bytes(),
        format!("mg {long} k v\r\n").into_bytes(),
        binary::get(binary::GET, long.as_bytes(), 9),
        binary::get(binary::GETK, long.as_bytes(), 9),
    ];
    let asked = texts.map(|text| PacketBuilder::udp(text).id(9));
    asked
        .into_iter()
        .flat_map(|plain| [plain.clone().v6(), plain.clone().tag(VLAN, 5), plain])
        .collect()
}

/// Calls `each` with numbers of bytes, from `shortest` on, that the first piece of a packet can have:
/// every third, which ends in every field of the headers.
fn with_each_piece(shortest: usize, packet: &[u8], mut each: impl FnMut(usize)) {
    // Older kernels choose themselves, and take what fits a page.
    if kernel::version() < (6, 18) {
        return;
    }
    for linear in (shortest..packet.len()).step_by(3) {
        each(linear);
    }
}

#[test]
fn padding_that_begins_another_piece() {
    let path = filled();
    for request in asked() {
        assert_ne!(path.rx(&request), Verdict::Passed, "{request:?}");
        for len in [1, 100, MANY, 8000] {
            let padding = vec![b'x'; len];
            let padded = request.clone().padding(padding).build();
            if padded.len() > MANY {
                assert_eq!(path.rx_bytes(&padded), Verdict::Passed, "{request:?} {len}");
            }
            if len <= 100 {
                with_each_piece(request.build().len(), &padded, |linear| {
                    let verdict = path.rx_in_pieces(&padded, linear);
                    assert_eq!(verdict, Verdict::Passed, "{request:?} {len} {linear}");
                });
            }
        }
    }
    assert_eq!(path.stats().races, 0);
}

/// Where a GET cannot be read, it may as well be a write.
#[test]
fn a_get_that_ends_in_another_piece() {
    for request in asked() {
        let packet = request.build();
        with_each_piece(ETHERNET, &packet, |linear| {
            let path = filled();
            let verdict = path.rx_in_pieces(&packet, linear);
            assert_eq!(verdict, Verdict::Passed, "{request:?} {linear}");
            assert_eq!(path.stats().bad_checksums, 0, "{request:?} {linear}");
            assert_eq!(path.stats().spoof_prone, 0, "{request:?} {linear}");
        });
    }
}

#[test]
fn a_write_whose_end_is_in_another_piece() {
    let writes = ["set key 0 0 3\r\nnew\r\n", "get other\r\ndelete key\r\n"];
    for text in writes {
        for packet in [
            PacketBuilder::udp(text),
            PacketBuilder::udp(text).v6(),
            PacketBuilder::udp(text).tag(SERVICE_VLAN, 7).tag(VLAN, 5),
            PacketBuilder::tcp(2, ACK | PSH, text),
            PacketBuilder::tcp(2, ACK | PSH, text).v6().tag(VLAN, 5),
        ] {
            let opener = packet.clone();
            let packet = packet.build();
            with_each_piece(ETHERNET, &packet, |linear| {
                let mut path = filled();
                accept(&path, &opener);
                assert_eq!(path.rx_in_pieces(&packet, linear), Verdict::Passed);
                assert!(!path.can_fill("key", "value"), "{text:?} {linear}");
            });
        }
    }
}

/// Opens the connection, if it is one, of which this is the first segment.
fn accept(path: &Datapath, first: &PacketBuilder) {
    if matches!(first.transport, Transport::Tcp { .. }) {
        path.accept(first);
    }
}

#[test]
fn writes_that_fill_more_than_a_page() {
    let value = "v".repeat(MANY);
    let set = format!("set key 0 0 {MANY}\r\n{value}\r\n");
    let commands = format!("{}delete key\r\n", "get other\r\n".repeat(MANY / 11));
    for text in [&set, &commands] {
        for packet in [
            PacketBuilder::udp(text),
            PacketBuilder::udp(text).v6(),
            PacketBuilder::tcp(2, ACK | PSH, text),
            PacketBuilder::tcp(2, ACK | PSH, text).v6(),
        ] {
            let mut path = filled();
            accept(&path, &packet);
            path.pass(&packet);
            assert!(!path.can_fill("key", "value"), "{packet:?}");
        }
    }
}

/// What comes before the padding is read as ever.
#[test]
fn a_write_with_padding_in_another_piece() {
    for packet in [
        PacketBuilder::udp("delete key\r\n"),
        PacketBuilder::udp("delete key\r\n").v6(),
        PacketBuilder::tcp(2, ACK | PSH, "delete key\r\n"),
    ] {
        let mut path = filled();
        accept(&path, &packet);
        path.pass(&packet.padding([0; MANY]));
        assert!(!path.can_fill("key", "value"));
        path.assert_hit("other", "value");
    }
}

#[test]
fn a_miss_with_padding_in_another_piece_fills() {
    let path = filled();
    let request = PacketBuilder::udp(get(&["new"])).id(9);
    path.pass(&request.clone().padding([0; MANY]));
    path.tx(&request.reply(hit("new", "value")));
    assert_eq!(
        path.rx(&request.id(10)),
        Verdict::Served(hit("new", "value"))
    );
}

/// The kernel drops what is shorter than its headers, and nothing follows it.
#[test]
fn frames_that_are_only_short_are_harmless() {
    let mut path = filled();
    for packet in [
        PacketBuilder::udp("delete key\r\n"),
        PacketBuilder::udp("delete key\r\n").v6(),
        PacketBuilder::udp("delete key\r\n")
            .tag(SERVICE_VLAN, 7)
            .tag(VLAN, 5),
    ] {
        let header = 14 + 4 * packet.tags.len();
        let packet = packet.build();
        for len in 14..header + 20 {
            assert_eq!(path.rx_bytes(&packet[..len]), Verdict::Passed);
        }
    }
    assert_eq!(path.epoch(), 0);
    path.assert_hit("key", "value");
}
