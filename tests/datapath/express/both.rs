//! Two datapaths that are to do the same.

use std::cell::RefCell;

use prestack::doors::{DoorSpec, Transports};
use prestack_abi::flow::{Flow, MAX_ASKED, Mode};
use prestack_abi::requests::{Request, RequestSet};

use crate::bytes::{get, hit};
use crate::harness::{Datapath, Setup};
use crate::kernel::{Programs, Ran};
use crate::packet::PacketBuilder;

/// Two datapaths that are to do the same.
pub(super) struct Both {
    pub(super) express: Datapath,
    pub(super) general: Datapath,
    /// What they have done differently.
    pub(super) differences: Vec<String>,
}

impl Both {
    pub(super) fn with(setup: &Setup) -> Self {
        let mut other = setup.clone();
        other.doors.insert(
            0,
            DoorSpec {
                // No packet goes there, for one that may be for any port would count twice.
                address: Some([10, 0, 0, 79].into()),
                port: 11999,
                backend: 7,
                serve_tcp: true,
                serve_udp: true,
                transports: Transports::all(Some([10, 0, 0, 79].into())),
            },
        );
        Self {
            express: Datapath::with(setup),
            general: Datapath::with(&other),
            differences: Vec::new(),
        }
    }

    fn run(&mut self, name: &str, program: fn(&Programs, &[u8]) -> Ran, packet: &[u8]) -> bool {
        let [express, general] = [&self.express, &self.general].map(|path| {
            let ran = program(&path.kernel().programs, packet);
            (ran.action, ran.packet, path.stats())
        });
        let passed = express.1 == packet;
        if express != general {
            self.differences.push(format!(
                "{name} \"{}\":\nexpress {:?}\ngeneral {:?}",
                packet.escape_ascii(),
                (express.0, express.1.escape_ascii().to_string(), express.2),
                (general.0, general.1.escape_ascii().to_string(), general.2),
            ));
        }
        passed
    }

    /// A packet arrives. Whether it is passed.
    pub(super) fn rx(&mut self, packet: &[u8]) -> bool {
        self.run("rx", Programs::rx, packet)
    }

    /// A packet leaves.
    pub(super) fn tx(&mut self, packet: &[u8]) {
        self.run("tx", Programs::tx, packet);
    }

    /// memcached answers a GET.
    pub(super) fn fill(&mut self, id: u16, key: &[u8]) {
        let ask = PacketBuilder::udp(get(&[key])).id(id);
        if self.rx(&ask.build()) {
            self.tx(&ask.reply(hit(key, "value")).build());
        }
    }

    /// Compares what is known of the flows and of requests, and what is cached and may be.
    pub(super) fn compare(&mut self, keys: &[Vec<u8>]) {
        let [express, general] = [&mut self.express, &mut self.general].map(|path| {
            let requests = RefCell::new(Vec::new());
            path.kernel_mut()
                .alter_requests(|set| requests.borrow_mut().push(remembered(set)));
            requests.into_inner()
        });
        for (express, general) in express.iter().zip(&general) {
            if express != general {
                self.differences
                    .push(format!("express {express}\ngeneral {general}"));
            }
        }
        let mut flows = [Vec::new(), Vec::new()];
        for (path, flows) in [&mut self.express, &mut self.general]
            .into_iter()
            .zip(&mut flows)
        {
            path.kernel_mut().used_flows(|flow| flows.push(known(flow)));
        }
        for (express, general) in flows[0].iter().zip(&flows[1]) {
            if express != general {
                self.differences
                    .push(format!("express {express}\ngeneral {general}"));
            }
        }
        for (i, key) in keys.iter().enumerate() {
            for id in [1, 2] {
                let ask = PacketBuilder::udp(get(&[key])).id(60_000 + 2 * i as u16 + id);
                if self.rx(&ask.build()) {
                    self.tx(&ask.reply(hit(key, "probe")).build());
                }
            }
        }
    }
}

/// What is known of requests, but for times, and for versions: how often one was raised depends on whether
/// the clock has moved on between a write and its end.
fn remembered(set: &RequestSet) -> String {
    if set.serial == 0 {
        return String::new();
    }
    let requests = set.requests.map(|request| {
        let Request {
            key,
            epoch,
            kind,
            unanswered,
            tickets,
            backend,
            ..
        } = request;
        (key, epoch, kind, unanswered, tickets, backend)
    });
    let stamps: Vec<_> = set
        .stamps
        .iter()
        .map(|stamps| [stamps.lost, stamps.unsure, stamps.strange].map(|stamp| stamp != 0))
        .collect();
    format!("{} {:?} {requests:?} {stamps:?}", set.serial, set.names)
}

/// What is known of a flow, but for times.
fn known(flow: &Flow) -> String {
    let unanswered: Vec<u8> = (flow.counted..flow.asked)
        .map(|number| flow.asks[number as usize & (MAX_ASKED - 1)])
        .collect();
    let tickets = flow.tickets.map(|ticket| {
        let Some(_) = (ticket.key != 0).then_some(()) else {
            return (0, 0, 0, 0);
        };
        (ticket.key, ticket.number, ticket.version, ticket.epoch)
    });
    let snapshots: Vec<_> = (0..flow.snapshots_taken.min(8))
        .map(|i| flow.snapshots[(flow.snapshots_taken - 1 - i) as usize & 7])
        .map(|s| (s.asked, s.sequence, s.mode, s.carried, s.protocol, s.quiets))
        .collect();
    let data = (flow.mode == Mode::Data as u32).then_some((flow.data_from, flow.data_until));
    format!(
        "asked {} counted {} answered {} busy {} owes {} owed {} crowding {} next {} acked {} repeat {} \
         edge {} sent {} doubt {} exchanges {} tentative {} state {} mode {} data {data:?} protocol {} \
         carried {} quiets {} hole {} given {} reply carried {} reply data {} over {} all acked {} \
         unacked {} quiet {} due {}\nunanswered {unanswered:?}\ntickets {tickets:?}\n\
         snapshots {snapshots:?}",
        flow.asked,
        flow.counted,
        flow.answered,
        flow.busy,
        flow.owes,
        flow.owed_number,
        flow.is_crowding,
        flow.next,
        flow.acked,
        flow.is_repeat,
        flow.edge,
        flow.sent,
        flow.doubt,
        flow.exchanges,
        flow.is_tentative,
        flow.state,
        flow.mode,
        flow.protocol,
        flow.carried,
        flow.quiets,
        flow.has_hole,
        flow.tickets_given,
        flow.reply_carried,
        flow.is_reply_data,
        flow.over_at != 0,
        flow.acked_before == u64::MAX,
        flow.unacked_since != 0,
        flow.quiet_at != 0,
        flow.flush_due != 0,
    )
}
