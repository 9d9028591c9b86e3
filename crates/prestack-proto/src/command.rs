//! Commands, whatever the protocol they are written in.

/// What a command does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum Effect {
    /// Asks for the value of at least one item, in a [`Form`] in which a cache can answer, and
    /// changes nothing.
    Get,
    /// Changes nothing; over UDP the reply to it is one message (of `mg` in several datagrams, if the
    /// value is long), or none.
    Read,
    /// Changes nothing; its replies cannot be counted (`stats`).
    LongRead,
    /// Changes the item with the command's key, and nothing else.
    Write,
    /// Changes every item (`flush_all`), now or later: its key is the [delay](crate::flush), if it has
    /// one.
    Flush,
    /// The command is not complete within the limit.
    Incomplete,
    /// Anything else.
    Unknown,
}

/// How a [`Effect::Get`] is written and answered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum Form {
    /// `get <key>*`: `VALUE` blocks and `END`. Also every text command that is no `Get`.
    Text,
    /// `gets <key>*`: `VALUE` blocks with a CAS number and `END`.
    TextCas,
    /// `mg <key> <flags>*` that asks for the value: `VA` or `EN`.
    Meta,
    /// A binary request of the GET family. Also every other binary request.
    Binary,
}

/// A command. Positions are those of the window.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Command {
    /// What it does.
    pub effect: Effect,
    /// How it is written and answered.
    pub form: Form,
    /// Start of the first key (`Get`) or of the key (`Write`).
    pub key: u64,
    /// Length of that key.
    pub key_len: u64,
    /// Position behind the key of a meta command: its flags follow, after the data length in
    /// `ms`. 0 for other commands.
    pub flags: u64,
    /// End of the line's content; of a binary request, its end.
    pub line_end: u64,
    /// Bytes of the data block that follows the line, its `\r\n` included; 0 without one, and for
    /// binary requests.
    pub data: u64,
    /// Position behind the line, or behind the binary request.
    pub next: u64,
    /// Whether memcached may not answer (`noreply`, `q`, quiet opcodes), or answers in a way not
    /// understood.
    pub quiet: bool,
    /// Whether the item's key is what the key decodes to by base64 (`b`). memcached skips what
    /// stands for no digit there, so a key that [does not decode](crate::base64::decode) may be
    /// that of any item.
    pub is_base64: bool,
    /// The letters of a meta command's flags, a bit each ([`letters`](crate::text::scan::letters)); all bits if they
    /// were not understood, 0 of other commands.
    pub letters: u64,
}

impl Command {
    /// A command of which no more is known.
    #[inline(always)]
    pub(crate) const fn of(effect: Effect, form: Form) -> Self {
        Self {
            effect,
            form,
            key: 0,
            key_len: 0,
            flags: 0,
            line_end: 0,
            data: 0,
            next: 0,
            quiet: false,
            is_base64: false,
            letters: 0,
        }
    }
}
