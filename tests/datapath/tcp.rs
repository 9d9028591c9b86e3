//! TCP segments: what they write dies, what is not understood empties the cache.

use crate::bytes::item;
use crate::harness::Datapath;
use crate::packet::{ACK, FIN, PORT, PSH, PacketBuilder, RST, SYN, URG, VLAN};

/// A client's connection: it counts its bytes.
struct Connection {
    next: u32,
    port: u16,
    v6: bool,
}

impl Connection {
    /// A connection from this port, whose handshake the datapath has seen.
    fn open(path: &Datapath, port: u16) -> Self {
        let connection = Self {
            next: 1000,
            port,
            v6: false,
        };
        path.pass(&connection.segment(SYN, ""));
        Self {
            next: 1001,
            ..connection
        }
    }

    fn segment(&self, flags: u8, data: impl AsRef<[u8]>) -> PacketBuilder {
        let segment = PacketBuilder::tcp(self.next, flags, data).client_port(self.port);
        if self.v6 { segment.v6() } else { segment }
    }

    /// Sends data in order.
    fn send(&mut self, path: &Datapath, data: impl AsRef<[u8]>) {
        path.pass(&self.segment(ACK | PSH, &data));
        self.next = self.next.wrapping_add(data.as_ref().len() as u32);
    }
}

fn filled() -> Datapath {
    let mut path = Datapath::new();
    path.fill("key", "value");
    path.fill("other", "value");
    path
}

/// Everything may have changed: the cache is empty and is not filled.
fn assert_forgotten(path: &mut Datapath) {
    assert!(path.epoch() > 0);
    path.assert_miss("key");
    path.assert_miss("other");
    assert!(!path.can_fill("other", "value"));
}

fn assert_untouched(path: &mut Datapath) {
    assert_eq!(path.epoch(), 0);
    path.assert_hit("key", "value");
    path.assert_hit("other", "value");
}

#[test]
fn reads_change_nothing() {
    let mut path = filled();
    let mut connection = Connection::open(&path, 1);
    connection.send(&path, "get key\r\n");
    connection.send(&path, "get key other\r\ngets key\r\nget x\r\n");
    connection.send(&path, "mg key v\r\nmn\r\nversion\r\nstats\r\n");
    assert_untouched(&mut path);
}

#[test]
fn acknowledgements_change_nothing() {
    let mut path = filled();
    // Of a flow that is followed, and of one that is not.
    let mut connection = Connection::open(&path, 1);
    path.pass(&connection.segment(ACK, ""));
    path.pass(&PacketBuilder::tcp(77, ACK, "").client_port(2));
    let stamps = [1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2];
    path.pass(&PacketBuilder::tcp(77, ACK, "").tcp_options(&stamps));
    path.pass(&PacketBuilder::tcp(77, ACK, "").padding([0; 6]));
    connection.send(&path, "get key\r\n");
    assert_untouched(&mut path);
}

/// Every text and meta command that changes one item.
#[test]
fn writes_kill_their_key_alone() {
    for text in [
        "set key 0 0 3\r\nnew\r\n",
        "set key 0 0 3 noreply\r\nnew\r\n",
        "set key 0 0 0\r\n\r\n",
        "add key 0 0 3\r\nnew\r\n",
        "replace key 0 0 3\r\nnew\r\n",
        "append key 0 0 3\r\nnew\r\n",
        "prepend key 0 0 3\r\nnew\r\n",
        "cas key 0 0 3 17\r\nnew\r\n",
        "delete key\r\n",
        "delete key noreply\r\n",
        "incr key 1\r\n",
        "decr key 1\r\n",
        "touch key 100\r\n",
        "gat 100 key\r\n",
        "gats 100 key\r\n",
        "ms key 3\r\nnew\r\n",
        "md key\r\n",
        "md key q\r\n",
        "ma key\r\n",
        "mg key v T30\r\n",
    ] {
        let mut path = filled();
        let mut connection = Connection::open(&path, 1);
        connection.send(&path, text);
        assert_eq!(path.epoch(), 0, "{text:?}");
        path.assert_miss("key");
        path.assert_hit("other", "value");
        assert!(!path.can_fill("key", "value"), "{text:?} may be under way");
        path.fill("new", "value");
        connection.send(&path, "get key\r\n");
        path.assert_hit("other", "value");
    }
}

#[test]
fn many_commands_in_one_segment() {
    let mut path = filled();
    path.fill("third", "value");
    let mut connection = Connection::open(&path, 1);
    connection.send(
        &path,
        "get a\r\nset key 0 0 14\r\ndelete third\r\n\r\nget b\r\ndelete other\r\nmn\r\n",
    );
    assert_eq!(path.epoch(), 0);
    path.assert_miss("key");
    path.assert_miss("other");
    path.assert_hit("third", "value");
}

#[test]
fn sequence_numbers_wrap_around() {
    let mut path = filled();
    let mut connection = Connection {
        next: u32::MAX - 5,
        port: 1,
        v6: false,
    };
    path.pass(&connection.segment(SYN, ""));
    connection.next = connection.next.wrapping_add(1);
    connection.send(&path, "get key\r\n");
    connection.send(&path, "get key\r\n");
    assert_untouched(&mut path);
}

#[test]
fn over_ipv6_and_tagged() {
    let mut path = filled();
    let mut connection = Connection {
        next: 5,
        port: 1,
        v6: true,
    };
    path.pass(&connection.segment(SYN, "").tag(VLAN, 9));
    connection.next = 6;
    path.pass(&connection.segment(ACK, "delete key\r\n").tag(VLAN, 9));
    path.assert_miss("key");
    path.assert_hit("other", "value");
}

#[test]
fn handshake_options_do_not_matter() {
    let mut path = filled();
    let options = [
        2, 4, 5, 0xb4, 4, 2, 8, 10, 0, 0, 0, 1, 0, 0, 0, 0, 1, 3, 3, 7,
    ];
    path.pass(&PacketBuilder::tcp(9, SYN, "").tcp_options(&options));
    let stamps = [1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2];
    let data = PacketBuilder::tcp(10, ACK, "get key\r\n").tcp_options(&stamps);
    path.pass(&data);
    assert_untouched(&mut path);
    path.pass(&PacketBuilder::tcp(19, ACK, "delete key\r\n").tcp_options(&[1; 40]));
    path.assert_miss("key");
    path.assert_hit("other", "value");
}

#[test]
fn what_is_not_understood_empties_the_cache() {
    for text in [
        &b"get ke"[..],
        b"get key",
        b"get key\r",
        b"get key\r\nge",
        b"set key 0 0 3\r\n",
        b"set key 0 0 3\r\nne",
        b"set key 0 0 3\r\nnew",
        b"set key 0 0 3\r\nnew\r",
        b"set key 0 0 3\r\nnewer\r\n",
        b"set key 0 0 3\r\nnewer",
        b"set key 0 0 5\r\nnew\r\n",
        b"get key\r\nset key 0 0 3\r\nnew\r\nget",
        b"set key 0 0 -1\r\n",
        b"set key 0 0 99999999999\r\nx\r\n",
        b"flush_all\r\n",
        b"get key\r\nflush_all 1\r\n",
        b"GET key\r\n",
        b"touch key\r\n",
        b"gat 0 key other\r\n",
        b"md Zm9 b\r\n",
        b"ms key x\r\n",
        b"noise\r\n",
        b"\r\n",
        b"\x80\x01\0\x03\x08\0\0\0\0\0\0\x0e\0\0\0\0\0\0\0\0\0\0\0\0",
        b"get key\r\n\x80\x04\0\x03\0\0\0\0\0\0\0\x03\0\0\0\0\0\0\0\0\0\0\0\0key",
    ] {
        let mut path = filled();
        let mut connection = Connection::open(&path, 1);
        connection.send(&path, text);
        assert!(path.epoch() > 0, "{}", text.escape_ascii());
        assert_forgotten(&mut path);
        // Nobody knows where in its commands the flow is.
        let before = path.epoch();
        connection.send(&path, "get key\r\n");
        assert!(path.epoch() > before, "{}", text.escape_ascii());
    }
}

/// As many commands as are looked at, and one more.
#[test]
fn segments_of_many_commands() {
    let mut path = filled();
    let mut connection = Connection::open(&path, 1);
    connection.send(&path, "mn\r\n".repeat(128));
    connection.send(
        &path,
        ["mn\r\n".repeat(127), "delete key\r\n".into()].concat(),
    );
    assert_eq!(path.epoch(), 0);
    path.assert_miss("key");
    path.assert_hit("other", "value");
    connection.send(&path, "mn\r\n".repeat(129));
    assert_forgotten(&mut path);
}

/// As many bytes as are looked at, and more.
#[test]
fn long_segments() {
    let set = |len: usize| format!("set key 0 0 {len}\r\n{}\r\n", "x".repeat(len));
    let around = set(1000).len() - 1000;
    let mut path = filled();
    let mut connection = Connection::open(&path, 1);
    connection.send(&path, set(2040 - around));
    assert_eq!(path.epoch(), 0);
    path.assert_miss("key");
    path.assert_hit("other", "value");
    for len in [2041, 2048, 2100, 3000] {
        let mut path = filled();
        let mut connection = Connection::open(&path, 1);
        connection.send(&path, set(len - around));
        assert_forgotten(&mut path);
    }
}

/// Data that the stack may treat in another way than what comes in order.
#[test]
fn urgent_data_and_data_of_a_reset() {
    for flags in [ACK | URG, RST, ACK | RST] {
        let mut path = filled();
        let connection = Connection::open(&path, 1);
        path.pass(&connection.segment(flags, "get key\r\n"));
        assert_forgotten(&mut path);
    }
}

#[test]
fn flows_that_are_not_known() {
    for segment in [
        PacketBuilder::tcp(1, ACK, "get key\r\n"),
        PacketBuilder::tcp(1, ACK | FIN, "get key\r\n"),
        PacketBuilder::tcp(1, RST, "get key\r\n"),
        PacketBuilder::tcp(1, 0, "get key\r\n"),
        PacketBuilder::tcp(1, SYN, "get key\r\n"),
        PacketBuilder::tcp(1, SYN | ACK, "get key\r\n"),
        PacketBuilder::tcp(1, SYN | ACK, ""),
    ] {
        let mut path = filled();
        path.pass(&segment);
        assert_forgotten(&mut path);
        let mut path = filled();
        path.pass(&segment.v6());
        assert_forgotten(&mut path);
    }
}

#[test]
fn segments_out_of_order() {
    for off in [1_u32, 9, 9_u32.wrapping_neg(), u32::MAX] {
        let mut path = filled();
        let mut connection = Connection::open(&path, 1);
        connection.send(&path, "get key\r\n");
        connection.next = connection.next.wrapping_add(off);
        connection.send(&path, "get key\r\n");
        assert_forgotten(&mut path);
        let before = path.epoch();
        connection.send(&path, "get key\r\n");
        assert!(path.epoch() > before);
    }
}

#[test]
fn retransmissions() {
    let mut path = filled();
    let mut connection = Connection::open(&path, 1);
    let segment = connection.segment(ACK, "get key\r\n");
    connection.send(&path, "get key\r\n");
    assert_untouched(&mut path);
    path.pass(&segment);
    assert_forgotten(&mut path);
}

#[test]
fn flows_are_told_apart() {
    let mut path = filled();
    let mut one = Connection::open(&path, 1);
    let mut two = Connection::open(&path, 2);
    one.send(&path, "get key\r\n");
    two.send(&path, "get key\r\nget other\r\n");
    one.send(&path, "get key\r\n");
    assert_untouched(&mut path);
    // The same numbers from elsewhere are another flow.
    path.pass(&two.segment(ACK, "get key\r\n").server_port(PORT + 1));
    assert_untouched(&mut path);
    for other in [
        two.segment(ACK, "get key\r\n").client_port(3),
        two.segment(ACK, "get key\r\n").from(([10, 0, 0, 3], 2)),
        two.segment(ACK, "get key\r\n").to(([10, 0, 0, 77], PORT)),
    ] {
        let before = path.epoch();
        path.pass(&other);
        assert!(path.epoch() > before, "{other:?}");
    }
    assert_forgotten(&mut path);
}

#[test]
fn a_closed_flow_is_not_known_any_more() {
    for flags in [FIN | ACK, RST, RST | ACK] {
        let mut path = filled();
        let mut connection = Connection::open(&path, 1);
        connection.send(&path, "get key\r\n");
        path.pass(&connection.segment(flags, ""));
        assert_untouched(&mut path);
        connection.send(&path, "get key\r\n");
        assert_forgotten(&mut path);
    }
    let mut path = filled();
    let mut connection = Connection::open(&path, 1);
    path.pass(&connection.segment(ACK | FIN, "delete key\r\n"));
    assert_eq!(path.epoch(), 0);
    path.assert_miss("key");
    connection.next += 12;
    connection.send(&path, "get key\r\n");
    assert_forgotten(&mut path);
}

/// The kernel takes no notice of it if it knows the connection.
#[test]
fn a_syn_on_a_flow_that_is_known() {
    let mut path = filled();
    let mut flow = Connection::open(&path, 1);
    // Sent again, for the answer was lost.
    flow.next -= 1;
    path.pass(&flow.segment(SYN, ""));
    flow.next += 1;
    flow.send(&path, "get key\r\n");
    assert_untouched(&mut path);
    // A forged one cannot make the next bytes the first of a connection.
    let mut forged = Connection {
        next: flow.next - 1,
        port: 1,
        v6: false,
    };
    path.pass(&forged.segment(SYN, ""));
    assert_forgotten(&mut path);
    let before = path.epoch();
    let hidden = crate::binary::get(crate::binary::GET, b"x\nset key 0 0 3\r\nnew\r\n", 1);
    flow.send(&path, hidden);
    assert!(path.epoch() > before);
    // What is not known any more may be opened anew.
    forged.next = 555_000;
    path.pass(&forged.segment(SYN, ""));
    forged.next += 1;
    let before = path.epoch();
    forged.send(&path, "get key\r\n");
    assert_eq!(path.epoch(), before);
}

#[test]
fn headers_that_lie() {
    // A data offset below five words, and one behind the end.
    for offset in [0x00, 0x40, 0xf0] {
        let mut path = filled();
        let mut packet = PacketBuilder::tcp(1, ACK, "get key\r\n").build();
        packet[14 + 20 + 12] = offset;
        path.rx_bytes(&packet);
        assert_forgotten(&mut path);
    }
    // Data that the packet does not have.
    let mut path = filled();
    let connection = Connection::open(&path, 1);
    path.pass(&connection.segment(ACK, "get key\r\n").ip_length_lie(10));
    assert_forgotten(&mut path);
    // A segment that is cut within its header.
    let mut path = filled();
    let packet = PacketBuilder::tcp(1, ACK, "").build();
    path.rx_bytes(&packet[..14 + 20 + 12]);
    assert_forgotten(&mut path);
}

#[test]
fn replies_over_tcp_teach_nothing() {
    let mut path = filled();
    let mut connection = Connection::open(&path, 1);
    connection.send(&path, "get new\r\n");
    let reply = [&item("new", 0, "value")[..], b"END\r\n"].concat();
    let segment = connection.segment(ACK, reply);
    let (client, server) = (segment.source, segment.destination);
    path.tx(&segment.from(server).to(client));
    path.assert_miss("new");
    assert_untouched(&mut path);
}
