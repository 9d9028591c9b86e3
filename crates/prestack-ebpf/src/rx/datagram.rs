//! What a UDP datagram is to memcached.

use prestack_abi::config::{Config, Door};
use prestack_abi::requests::{Kind, Request};
use prestack_proto::net::UDP_LEN;
use prestack_proto::udp::Frame;
use prestack_proto::verifier::forgotten;
use prestack_proto::window::Source;

use super::allow::{self, Network};
use super::reply::PAYLOAD_AT;
use crate::clock;
use crate::inbound::Inbound;
use crate::ledger::backend::{self, Arrival};
use crate::ledger::requests::{self, Asker};
use crate::packet::{Headers, Packet};

/// A datagram for a backend.
pub struct Datagram<'a> {
    pub config: &'static Config,
    pub door: Arrival,
    pub headers: &'a Headers,
    /// The memcached frame.
    pub frame: Frame,
    /// Position of the payload behind the frame.
    pub payload: u64,
    /// Length of that payload.
    pub len: u64,
    /// Which network of the allow list the source is in, in [bits](Network::bits).
    pub network: u64,
    /// 0, which the verifier does not know.
    pub zero: u64,
}

/// What a UDP datagram is to memcached.
pub enum Reading<'a> {
    /// Nothing: memcached ignores a datagram without payload behind its frame, and parts of several.
    Empty,
    /// Not to be understood.
    Odd,
    /// A request.
    Request(Datagram<'a>),
}

impl<'a> Datagram<'a> {
    #[inline(always)]
    pub fn read<C: Inbound>(
        packet: Packet,
        config: &'static Config,
        door: Arrival,
        headers: &'a Headers,
    ) -> Reading<'a> {
        let Some(udp_len) = packet.read::<u16>(headers.l4 + 4) else {
            return Reading::Odd;
        };
        let udp_len = u64::from(u16::from_be(udp_len));
        // Over IPv6 a length of 0 means all that is there (RFC 2675).
        if udp_len < UDP_LEN as u64 {
            return Reading::Odd;
        }
        if udp_len <= PAYLOAD_AT {
            return Reading::Empty;
        }
        let Some(frame) = packet.read(headers.l4 + 8).map(Frame) else {
            return Reading::Odd;
        };
        // memcached drops what is not one datagram.
        if udp_len == headers.l4_len && frame.count() != 1 {
            return Reading::Empty;
        }
        if udp_len != headers.l4_len || !frame.is_single() {
            return Reading::Odd;
        }
        let (payload, len) = (headers.l4 + PAYLOAD_AT, udp_len - PAYLOAD_AT);
        let network = if C::IS_LOCAL {
            Network::none()
        } else {
            allow::network(config, headers.v6, &headers.addresses.source)
        };
        Reading::Request(Self {
            config,
            door,
            headers,
            frame,
            payload,
            len,
            network: packet.forgotten(network.bits()),
            zero: packet.zero,
        })
    }

    /// The name under which the request is remembered.
    #[inline(always)]
    pub fn name(&self) -> u64 {
        let headers = self.headers;
        requests::name_of_request(
            self.config,
            self.door.backend,
            &headers.addresses,
            headers.ports,
            self.frame.id(),
        )
    }

    /// The network of the allow list that the source is in. Forgotten, so that paths do not part here
    /// that meet again.
    #[inline(always)]
    pub fn network(&self) -> Network {
        Network::from_bits(forgotten(self.network, self.zero))
    }

    /// Whether its answer may be learnt from. At a wildcard door the packet may be for another host behind this one,
    /// where memcached has no UDP for another process, and so at an address that is not served: there nobody has looked
    /// whether one shares it.
    #[inline(always)]
    pub fn may_fill(&self) -> bool {
        forgotten(u64::from(self.door.flags), self.zero) & u64::from(Door::SERVE_UDP) != 0
            && self.network().is_some()
    }

    /// Who asks. A process of this host is no stranger.
    #[inline(always)]
    pub fn asker(&self) -> Asker {
        if self.network().is_some() || self.door.is_local() {
            Asker::Client
        } else {
            Asker::Stranger
        }
    }

    /// Remembers the request, for its answer could be taken for that to another of its name. One that may
    /// change every item is heeded at once, and again when it is answered.
    #[inline(always)]
    pub fn remember(&self, request: &Request) {
        if Kind::may_change_all(request.kind) {
            backend::forget(self.config, self.door.backend);
        }
        requests::remember(self.name(), request, self.asker());
    }
}

/// A request to be remembered of which nothing is known yet.
#[inline(always)]
pub fn request_to(door: Arrival) -> Request {
    Request {
        time: clock::now(),
        kind: Kind::Other as u8,
        unanswered: 1,
        backend: door.backend,
        ..Request::default()
    }
}
