//! What the network does to packets.

/// What becomes of a packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fate {
    /// It arrives.
    Arrives,
    /// It is lost.
    Lost,
    /// It arrives twice, the second time after so many µs more.
    Twice(u64),
    /// It arrives after so many µs more.
    Late(u64),
    /// It arrives with other numbers: sequence and acknowledgement are so much higher. The kernel drops it, for its
    /// checksum is wrong. To others than the host it is lost.
    Damaged(u32, u32),
    /// It arrives as two, of which the first has so many bytes of its data: something on the way cuts segments anew. A
    /// shorter one arrives as it is.
    Cut(usize),
    /// It arrives at an end that has no memory for its data, if what came before has not been read.
    TooMuch,
}

/// What becomes of the first packets on each stretch of the way; those that follow arrive.
#[derive(Clone, Default, Debug)]
pub struct Faults {
    /// From the client to the host.
    pub up: Vec<Fate>,
    /// From where requests are answered to the kernel.
    pub inside: Vec<Fate>,
    /// To the client.
    pub down: Vec<Fate>,
}
