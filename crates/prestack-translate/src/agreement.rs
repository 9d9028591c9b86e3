//! What the two ends of a connection have agreed to in SYN and SYN-ACK. The kernel's socket tells it.

/// What the two ends have agreed to.
#[repr(C)]
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Agreement {
    /// Largest segment that the client takes, in bytes of data and options.
    pub mss: u16,
    /// log₂ of the unit of the client's window field.
    pub client_shift: u8,
    /// log₂ of the unit of the kernel's.
    pub server_shift: u8,
    /// [`Agreement::SERVABLE`] and the following.
    pub flags: u32,
}

impl Agreement {
    /// The connection may be served.
    pub const SERVABLE: u32 = 1;
    /// Every segment has timestamps.
    pub const TIMESTAMPS: u32 = 2;

    #[inline(always)]
    pub(crate) const fn is_servable(&self) -> bool {
        self.flags & Self::SERVABLE != 0
    }

    /// Whether every segment has timestamps.
    #[inline(always)]
    #[must_use]
    pub const fn has_timestamps(&self) -> bool {
        self.flags & Self::TIMESTAMPS != 0
    }

    #[inline(always)]
    pub(crate) const fn client_scale(&self) -> u32 {
        self.client_shift as u32 & 15
    }

    /// The shift of the window of the kernel's segments.
    #[inline(always)]
    #[must_use]
    pub const fn server_scale(&self) -> u32 {
        self.server_shift as u32 & 15
    }
}
