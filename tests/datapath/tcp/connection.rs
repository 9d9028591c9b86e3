//! A connection, both of whose ends are played.

use std::net::IpAddr;

use crate::harness::Datapath;
use crate::packet::{ACK, PORT, PSH, PacketBuilder, SYN};

/// Options of a SYN-ACK: a window scale of 7, and other things before it.
const OPTIONS: [u8; 20] = [
    2, 4, 5, 0xb4, 4, 2, 8, 10, 0, 0, 0, 1, 0, 0, 0, 0, 1, 3, 3, 7,
];

/// Counts the bytes of both ends.
#[derive(Clone, Debug)]
pub struct Connection {
    /// The client's next byte.
    pub client: u32,
    /// memcached's next byte.
    pub server: u32,
    /// What memcached's host has acknowledged.
    pub acked: u32,
    pub port: u16,
    pub v6: bool,
    /// VLAN tags, EtherType and number.
    pub tags: Vec<(u16, u16)>,
    /// The address of both ends, if the host talks to itself.
    pub local: Option<IpAddr>,
}

impl Connection {
    /// A connection from this port that has not been opened.
    pub fn new(port: u16) -> Self {
        Self {
            client: 1000,
            server: 0xffff_fff0,
            acked: 1000,
            port,
            v6: false,
            tags: Vec::new(),
            local: None,
        }
    }

    /// A connection from this port.
    pub fn open(path: &Datapath, port: u16) -> Self {
        let mut connection = Self::new(port);
        connection.shake_hands(path);
        connection
    }

    /// A connection from this port, of a host that talks to itself.
    pub fn open_locally(path: &Datapath, port: u16, address: impl Into<IpAddr>) -> Self {
        let mut connection = Self {
            local: Some(address.into()),
            ..Self::new(port)
        };
        connection.shake_hands(path);
        connection
    }

    /// A packet from the client is seen.
    pub fn arrives(&self, path: &Datapath, packet: &PacketBuilder) {
        match self.local {
            Some(_) => path.lo(packet),
            None => path.pass(packet),
        }
    }

    /// A packet from memcached's host is seen.
    fn leaves(&self, path: &Datapath, packet: &PacketBuilder) {
        match self.local {
            Some(_) => path.lo(packet),
            None => path.tx(packet),
        }
    }

    fn between_ends(&self, segment: PacketBuilder) -> PacketBuilder {
        match self.local {
            Some(address) => segment.from((address, self.port)).to((address, PORT)),
            None if self.v6 => segment.v6(),
            None => segment,
        }
    }

    pub fn shake_hands(&mut self, path: &Datapath) {
        self.arrives(path, &self.segment(SYN, ""));
        self.client = self.client.wrapping_add(1);
        self.acked = self.client;
        self.leaves(path, &self.answer(SYN | ACK, "").tcp_options(&OPTIONS));
        self.server = self.server.wrapping_add(1);
    }

    /// A segment from the client, with its next byte.
    pub fn segment(&self, flags: u8, data: impl AsRef<[u8]>) -> PacketBuilder {
        let segment = PacketBuilder::tcp(self.client, flags, data)
            .client_port(self.port)
            .acknowledging(self.server);
        let segment = self.between_ends(segment);
        self.tags
            .iter()
            .fold(segment, |segment, tag| segment.tag(tag.0, tag.1))
    }

    /// A segment from memcached, with its next byte.
    pub fn answer(&self, flags: u8, data: impl AsRef<[u8]>) -> PacketBuilder {
        let segment = PacketBuilder::tcp(self.server, flags, data)
            .client_port(self.port)
            .acknowledging(self.acked);
        self.between_ends(segment).reversed()
    }

    /// The client sends data in order. Returns the segment.
    pub fn send(&mut self, path: &Datapath, data: impl AsRef<[u8]>) -> PacketBuilder {
        let segment = self.segment(ACK | PSH, &data);
        self.arrives(path, &segment);
        self.client = self.client.wrapping_add(data.as_ref().len() as u32);
        segment
    }

    /// The client sends data in several segments.
    pub fn send_in_pieces(&mut self, path: &Datapath, data: impl AsRef<[u8]>, len: usize) {
        for piece in data.as_ref().chunks(len) {
            self.send(path, piece);
        }
    }

    /// A segment of the client's is lost on its way.
    pub fn lose(&mut self, data: impl AsRef<[u8]>) -> PacketBuilder {
        let segment = self.segment(ACK | PSH, &data);
        self.client = self.client.wrapping_add(data.as_ref().len() as u32);
        segment
    }

    /// memcached's host acknowledges what has come.
    pub fn acknowledge(&mut self, path: &Datapath) {
        self.acked = self.client;
        self.leaves(path, &self.answer(ACK, ""));
    }

    /// memcached answers, having got what has come.
    pub fn reply(&mut self, path: &Datapath, data: impl AsRef<[u8]>) {
        self.acked = self.client;
        self.send_back(path, data);
    }

    /// memcached sends data without acknowledging anything new.
    pub fn send_back(&mut self, path: &Datapath, data: impl AsRef<[u8]>) {
        self.leaves(path, &self.answer(ACK | PSH, &data));
        self.server = self.server.wrapping_add(data.as_ref().len() as u32);
    }

    /// One request and its reply.
    pub fn exchange(
        &mut self,
        path: &Datapath,
        request: impl AsRef<[u8]>,
        reply: impl AsRef<[u8]>,
    ) {
        self.send(path, request);
        self.reply(path, reply);
    }
}
