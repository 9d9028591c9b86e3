//! A connection on which GETs are answered, both of whose ends are played.

use prestack_abi::translated::Translated;
use prestack_translate::{Agreement, Ends};

use crate::bytes::{ones_complement_sum, pseudo_header};
use crate::harness::Datapath;
use crate::packet::{ACK, PSH, PacketBuilder, TCP};
use crate::tcp::connection::Connection;

/// A TCP segment, taken apart by the book.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Taken {
    pub macs: [u8; 12],
    pub sequence: u32,
    pub acknowledgement: u32,
    pub flags: u8,
    pub window: u16,
    pub options: Vec<u8>,
    pub data: Vec<u8>,
}

/// Takes a segment over IPv4 or IPv6, without tags, apart. Panics unless lengths and checksums are right.
pub fn take(packet: &[u8]) -> Taken {
    let v6 = packet[12..14] == [0x86, 0xdd];
    let ip = &packet[14..];
    let (source, destination, rest): (std::net::IpAddr, std::net::IpAddr, &[u8]) = if v6 {
        let len = usize::from(u16::from_be_bytes([ip[4], ip[5]]));
        let address = |at: usize| <[u8; 16]>::try_from(&ip[at..at + 16]).expect("16 bytes");
        (address(8).into(), address(24).into(), &ip[40..40 + len])
    } else {
        assert_eq!(ones_complement_sum(&ip[..20]), 0xffff, "the IP checksum");
        let len = usize::from(u16::from_be_bytes([ip[2], ip[3]]));
        let address = |at: usize| <[u8; 4]>::try_from(&ip[at..at + 4]).expect("4 bytes");
        (address(12).into(), address(16).into(), &ip[20..len])
    };
    let pseudo = pseudo_header(source, destination, TCP, rest.len() as u16);
    let sum = ones_complement_sum(&[&pseudo[..], rest].concat());
    assert_eq!(sum, 0xffff, "the TCP checksum");
    let header = usize::from(rest[12] >> 4) * 4;
    let word = |at: usize| u32::from_be_bytes(rest[at..at + 4].try_into().expect("4 bytes"));
    Taken {
        macs: packet[..12].try_into().expect("12 bytes"),
        sequence: word(4),
        acknowledgement: word(8),
        flags: rest[13],
        window: u16::from_be_bytes([rest[14], rest[15]]),
        options: rest[20..header].to_vec(),
        data: rest[header..].to_vec(),
    }
}

/// A connection on which GETs are answered.
pub struct Ready {
    /// Counts the bytes of the client and of memcached as the kernel does.
    pub connection: Connection,
    /// Bytes of requests that the kernel has not got, and of answers that it has not sent.
    pub taken: u32,
    pub given: u32,
    /// Timestamps of the client and of the kernel, if segments have them.
    pub timestamps: Option<(u32, u32)>,
}

impl Ready {
    /// A connection on which memcached has answered a GET, and which may be served.
    pub fn open(path: &mut Datapath, port: u16) -> Self {
        let connection = Connection::open(path, port);
        Self::of(path, connection, None)
    }

    /// The same of a connection that is open.
    pub fn of(
        path: &mut Datapath,
        mut connection: Connection,
        timestamps: Option<(u32, u32)>,
    ) -> Self {
        connection.exchange(path, "get nothing\r\n", "END\r\n");
        Self::earned(path, connection, timestamps)
    }

    /// The same of a connection on which memcached has answered a GET, and owes nothing.
    pub fn earned(
        path: &mut Datapath,
        connection: Connection,
        timestamps: Option<(u32, u32)>,
    ) -> Self {
        connection.arrives(path, &connection.segment(ACK, ""));
        let flags = if timestamps.is_some() {
            Agreement::TIMESTAMPS
        } else {
            0
        };
        let (client, port) = (connection.client, connection.port);
        let mut places = 0;
        path.kernel_mut().used_translations(|translated| {
            // It was not said what the ends have agreed to: there is no socket.
            if translated.state != Translated::REFUSED {
                return;
            }
            places += 1;
            translated.state = Translated::READY;
            translated.ends = Ends {
                next: client,
                acked: client,
                sent: connection.server,
                window: 0xffff,
                timestamp: timestamps.map_or(0, |(_, kernel)| kernel),
                recent: timestamps.map_or(0, |(client, _)| client),
            };
            translated.translation.agreement = Agreement {
                mss: 1460,
                client_shift: 0,
                server_shift: 7,
                flags: Agreement::SERVABLE | flags,
            };
        });
        assert_eq!(places, 1, "the connection of port {port} has earned it");
        Self {
            connection,
            taken: 0,
            given: 0,
            timestamps,
        }
    }

    /// A segment of the client's, in wire numbers.
    pub fn segment(&self, flags: u8, data: impl AsRef<[u8]>) -> PacketBuilder {
        let segment = self.connection.segment(flags, data);
        let (sequence, acknowledgement) = segment.numbers();
        let segment = segment
            .sequence(sequence.wrapping_add(self.taken))
            .acknowledging(acknowledgement.wrapping_add(self.given));
        match self.timestamps {
            Some((client, kernel)) => {
                let mut options = vec![1, 1, 8, 10];
                options.extend(client.to_be_bytes());
                options.extend(kernel.to_be_bytes());
                segment.tcp_options(&options)
            }
            None => segment,
        }
    }

    /// The request is answered with this. Returns the answer, in wire numbers.
    pub fn served(
        &mut self,
        path: &Datapath,
        request: impl AsRef<[u8]>,
        answer: impl AsRef<[u8]>,
    ) -> Taken {
        let request = request.as_ref();
        let segment = self.segment(ACK | PSH, request);
        let taken = self.resent(path, &segment);
        let (sequence, acknowledgement) = segment.numbers();
        assert_eq!(
            taken.data.escape_ascii().to_string(),
            answer.as_ref().escape_ascii().to_string()
        );
        assert_eq!(taken.sequence, acknowledgement);
        assert_eq!(
            taken.acknowledgement,
            sequence.wrapping_add(request.len() as u32)
        );
        self.taken = self.taken.wrapping_add(request.len() as u32);
        self.given = self.given.wrapping_add(taken.data.len() as u32);
        taken
    }

    /// Something is sent in the place of a segment.
    pub fn resent(&self, path: &Datapath, segment: &PacketBuilder) -> Taken {
        let packet = segment.build();
        let ran = path.kernel().programs.rx(&packet);
        assert_eq!(ran.action, 3, "it is answered: {:?}", path.stats());
        let taken = take(&ran.packet);
        assert_eq!(
            (&taken.macs[..6], &taken.macs[6..]),
            (&packet[6..12], &packet[..6])
        );
        taken
    }

    /// The segment passes: in which numbers.
    pub fn passed(&self, path: &Datapath, segment: &PacketBuilder) -> Taken {
        let packet = segment.build();
        let ran = path.kernel().programs.rx(&packet);
        assert_eq!(ran.action, 2, "it passes: {:?}", path.stats());
        take(&ran.packet)
    }

    /// The client sends data that passes, in the kernel's numbers.
    pub fn sends(&mut self, path: &Datapath, data: impl AsRef<[u8]>) {
        let data = data.as_ref();
        let passed = self.passed(path, &self.segment(ACK | PSH, data));
        let (sequence, acknowledgement) = self.connection.segment(ACK | PSH, data).numbers();
        assert_eq!(
            (passed.sequence, passed.acknowledgement),
            (sequence, acknowledgement)
        );
        self.connection.client = self.connection.client.wrapping_add(data.len() as u32);
    }

    /// A segment leaves: as what.
    pub fn leaves(&self, path: &Datapath, segment: &PacketBuilder) -> Taken {
        let ran = path.kernel().programs.tx(&segment.build());
        assert_eq!(ran.action, u32::MAX, "it leaves");
        take(&ran.packet)
    }

    /// memcached answers, having got what has come; the client gets that in wire numbers.
    pub fn replies(&mut self, path: &Datapath, data: impl AsRef<[u8]>) {
        let data = data.as_ref();
        self.connection.acked = self.connection.client;
        let segment = self.connection.answer(ACK | PSH, data);
        let (sequence, acknowledgement) = segment.numbers();
        let left = self.leaves(path, &segment);
        assert_eq!(left.sequence, sequence.wrapping_add(self.given));
        assert_eq!(
            left.acknowledgement,
            acknowledgement.wrapping_add(self.taken)
        );
        self.connection.server = self.connection.server.wrapping_add(data.len() as u32);
    }
}
