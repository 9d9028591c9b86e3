//! A connection on which one request was answered.

use crate::{Agreement, Ends, Policy, Segment, Translation};
use prestack_proto::net::TCP_ACK;

pub const POLICY: Policy = Policy {
    is_serving: 1,
    forward_after: 100,
    trickle: 1000,
    resend_after: 20,
    room: 1000,
};

/// Bytes of the request and of its answer.
pub const REQUEST: u32 = 50;
pub const ANSWER: u32 = 300;
/// The window field of both ends.
pub const WINDOW: u32 = 100;
/// The shift of the client's window.
pub const SHIFT: u8 = 7;
/// The client's numbers start here, and the kernel's.
pub const CLIENT: u32 = u32::MAX - 20;
pub const KERNEL: u32 = u32::MAX - 200;

#[derive(Clone, Copy)]
pub struct Connection {
    pub translation: Translation,
    pub ends: Ends,
}

impl Connection {
    /// Before anything was answered.
    pub fn fresh() -> Self {
        Self {
            translation: Translation {
                agreement: Agreement {
                    mss: 1460,
                    client_shift: SHIFT,
                    server_shift: 3,
                    flags: Agreement::SERVABLE | Agreement::TIMESTAMPS,
                },
                ..Translation::default()
            },
            ends: Ends {
                next: CLIENT,
                acked: CLIENT,
                sent: KERNEL,
                window: WINDOW,
                timestamp: 7,
                recent: 5,
            },
        }
    }

    /// A request was answered at time 10.
    pub fn answered() -> Self {
        let mut connection = Self::fresh();
        let Self { translation, ends } = &mut connection;
        let request = Segment {
            len: REQUEST,
            ..from_client(CLIENT, KERNEL)
        };
        assert!(translation.may_serve(ends, &POLICY, &request, 10));
        translation
            .serve(ends, &POLICY, &request, ANSWER, 10)
            .expect("it fits");
        connection
    }
}

/// A segment without data from the client.
pub fn from_client(sequence: u32, acknowledgement: u32) -> Segment {
    Segment {
        sequence,
        acknowledgement,
        flags: TCP_ACK.into(),
        window: WINDOW,
        has_timestamps: 1,
        timestamp: 5,
        echo: 7,
        ..Segment::default()
    }
}

/// A segment of the kernel.
pub fn from_kernel(sequence: u32, len: u32) -> Segment {
    Segment {
        sequence,
        acknowledgement: CLIENT,
        len,
        flags: TCP_ACK.into(),
        window: WINDOW,
        has_timestamps: 1,
        timestamp: 7,
        echo: 5,
        ..Segment::default()
    }
}
