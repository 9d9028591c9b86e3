//! The translation against one with numbers that do not wrap, which knows of every request and answer.

use proptest::prelude::*;

use crate::{Agreement, Arrival, Block, Departing, Ends, Policy, Segment, Translation};
use prestack_proto::net::{TCP_ACK, TCP_SYN};

const POLICY: Policy = Policy {
    is_serving: 1,
    forward_after: u64::MAX,
    trickle: u64::MAX,
    resend_after: u64::MAX,
    room: 1448,
};

/// What happens on a connection.
#[derive(Clone, Copy, Debug)]
enum Op {
    /// The client sends so many bytes, which pass.
    Pass(u32),
    /// A request of so many bytes is answered with so many.
    Serve(u32, u32),
    /// The kernel sends so many bytes.
    Send(u32),
}

fn op() -> impl Strategy<Value = Op> {
    // The widest window is a little less than 2^30 bytes.
    let len = || prop_oneof![1u32..2000, (1u32 << 28)..(1 << 30) - (1 << 16)];
    prop_oneof![
        len().prop_map(Op::Pass),
        (1u32..1400, 1u32..1400).prop_map(|(request, answer)| Op::Serve(request, answer)),
        len().prop_map(Op::Send),
    ]
}

/// One direction of a connection: what one end has that the other has not, by the position (in the
/// numbers of the end that has less) and length. Positions do not wrap.
#[derive(Default)]
struct Stream {
    first: u32,
    len: u64,
    extra: Vec<(u64, u64)>,
}

impl Stream {
    fn total(&self) -> u64 {
        self.extra.iter().map(|(_, len)| len).sum()
    }

    /// The number with extras of what is at `at`, behind extras there.
    fn with(&self, at: u64) -> u32 {
        let before = self.extra.iter().filter(|(place, _)| *place <= at);
        self.without(at + before.map(|(_, len)| len).sum::<u64>())
    }

    fn without(&self, at: u64) -> u32 {
        self.first.wrapping_add(at as u32)
    }

    fn add(&mut self, len: u32) {
        self.extra.push((self.len, len.into()));
    }

    /// The places of the last extra, and of the one before it.
    fn last(&self) -> (u64, u64) {
        let mut places = self.extra.iter().rev().map(|(place, _)| *place);
        let last = places.next().unwrap_or(0);
        (last, places.next().unwrap_or(0))
    }
}

struct Connection {
    translation: Translation,
    ends: Ends,
    requests: Stream,
    replies: Stream,
}

impl Connection {
    fn new(client: u32, server: u32) -> Self {
        let syn_ack = Segment {
            sequence: server,
            acknowledgement: client.wrapping_add(1),
            flags: (TCP_SYN | TCP_ACK).into(),
            ..Segment::default()
        };
        let translation = Translation {
            agreement: Agreement {
                mss: 1460,
                client_shift: 14,
                server_shift: 14,
                flags: Agreement::SERVABLE,
            },
            ..Translation::default()
        };
        let stream = |first: u32| Stream {
            first: first.wrapping_add(1),
            ..Stream::default()
        };
        let mut ends = Ends::told_by(&syn_ack);
        ends.window = 0xffff;
        Self {
            translation,
            ends,
            requests: stream(client),
            replies: stream(server),
        }
    }

    /// What comes next from the client.
    fn next(&self, len: u32) -> Segment {
        Segment {
            sequence: self.requests.with(self.requests.len),
            acknowledgement: self.replies.with(self.replies.len),
            len,
            flags: TCP_ACK.into(),
            window: 0xffff,
            ..Segment::default()
        }
    }

    fn pass(&mut self, len: u32) {
        let segment = self.next(len);
        let (translation, ends) = (&mut self.translation, &mut self.ends);
        let arrival = translation.arrive(ends, &POLICY, &segment, 0);
        assert_eq!(arrival, Arrival::Go);
        let passing = translation.pass(ends, &segment, true, 0);
        assert_eq!(passing.sequence, self.requests.without(self.requests.len));
        assert_eq!(
            passing.acknowledgement,
            self.replies.without(self.replies.len)
        );
        assert_eq!(passing.window, 0xffff);
        self.requests.len += u64::from(len);
    }

    fn send(&mut self, len: u32) {
        let segment = Segment {
            sequence: self.replies.without(self.replies.len),
            acknowledgement: self.requests.without(self.requests.len),
            len,
            flags: TCP_ACK.into(),
            window: 0xffff,
            ..Segment::default()
        };
        let (translation, ends) = (&mut self.translation, &mut self.ends);
        let departure = translation.leave(ends, &segment, true, 0);
        assert_eq!(departure.departing, Departing::Go);
        assert_eq!(departure.sequence, self.replies.with(self.replies.len));
        assert_eq!(
            departure.acknowledgement,
            self.requests.with(self.requests.len)
        );
        self.replies.len += u64::from(len);
    }

    fn serve(&mut self, len: u32, answer_len: u32) {
        let segment = self.next(len);
        let (translation, ends) = (&mut self.translation, &mut self.ends);
        if translation.is_active != 0 {
            let arrival = translation.arrive(ends, &POLICY, &segment, 0);
            assert_eq!(arrival, Arrival::Go);
        }
        assert!(translation.may_serve(ends, &POLICY, &segment, 0));
        let reply = translation
            .serve(ends, &POLICY, &segment, answer_len, 0)
            .expect("it fits");
        assert_eq!(reply.sequence, self.replies.with(self.replies.len));
        self.requests.add(len);
        self.replies.add(answer_len);
        assert_eq!(reply.acknowledgement, self.requests.with(self.requests.len));
    }

    /// What either end may send again, or say that it has, comes to the right place.
    fn look_back(&self, back: u64) {
        const FAR: u64 = (1 << 30) - (1 << 16);
        let translation = &self.translation;
        // Of the kernel, up to what came before the last answer but one.
        let (last, older) = self.replies.last();
        let at = self.replies.len.saturating_sub(back % FAR);
        if at > older || at >= last {
            let number = self.replies.without(at);
            let wire = self.replies.with(at);
            assert_eq!(number.wrapping_add(translation.lag_of(number)), wire);
            // What the client has is told in wire numbers; the last answer itself is nothing to the kernel.
            let block = Block {
                start: wire,
                end: self.replies.with(self.replies.len),
            };
            let passed = translation.pass_block(&self.next(0), block);
            assert_eq!(passed.end, self.replies.without(self.replies.len));
            assert!(passed.start == number || at == self.replies.len);
        } else {
            // Older bytes are somewhere among what the client has.
            let number = self.replies.without(at);
            let wire = number.wrapping_add(translation.lag_of(number));
            let behind = self.replies.with(last).wrapping_sub(wire);
            assert!(behind < 1 << 31, "it overtakes what the client lacks");
        }
        // Of the client.
        let (last, older) = self.requests.last();
        let at = self.requests.len.saturating_sub(back % FAR);
        if at > older || at >= last {
            let wire = self.requests.with(at);
            assert_eq!(
                wire.wrapping_sub(translation.lead_of(wire)),
                self.requests.without(at)
            );
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn numbers_agree_with_those_that_do_not_wrap(
        (client, server) in any::<(u32, u32)>(),
        ops in prop::collection::vec((op(), any::<u32>()), 1..60),
    ) {
        let mut connection = Connection::new(client, server);
        connection.send(0);
        connection.serve(10, 100);
        for (op, back) in ops {
            match op {
                Op::Pass(len) => {
                    connection.pass(len);
                    connection.send(0);
                }
                Op::Serve(len, answer_len) => {
                    connection.serve(len, answer_len);
                    connection.look_back(back.into());
                    // The client acknowledges it.
                    connection.pass(0);
                }
                Op::Send(len) => {
                    connection.send(len);
                    connection.pass(0);
                }
            }
            connection.look_back(back.into());
        }
        prop_assert!(connection.requests.total() > 0);
    }
}
