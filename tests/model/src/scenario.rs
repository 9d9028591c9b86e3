//! What the clients of a model do, and how much may go wrong.

/// A command of a scenario: its place among all of them. The commands of one client follow each
/// other.
pub type Op = u8;

/// A client: its place in the scenario. Each has one flow.
pub type Client = u8;

/// Commands of a scenario and network copies of UDP writes, together.
pub const MAX_OPS: usize = 8;

/// A set of commands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ops(u8);

impl Ops {
    /// Whether the command is in the set.
    #[must_use]
    pub fn has(self, op: Op) -> bool {
        self.0 & (1 << op) != 0
    }

    /// Adds a command; false if it was there.
    pub fn add(&mut self, op: Op) -> bool {
        let is_new = !self.has(op);
        self.0 |= 1 << op;
        is_new
    }

    /// Takes a command out; false if it was not there.
    pub fn take(&mut self, op: Op) -> bool {
        let was_there = self.has(op);
        self.0 &= !(1 << op);
        was_there
    }

    /// The commands that are in one of the sets.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether the set has none.
    #[must_use]
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The commands of the set, in order.
    pub fn iter(self) -> impl Iterator<Item = Op> {
        (0..MAX_OPS as Op).filter(move |&op| self.has(op))
    }
}

/// How a client talks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// Datagrams.
    Udp,
    /// One connection.
    Tcp,
}

/// Whether memcached answers a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reply {
    /// Once.
    Always,
    /// `noreply`.
    Never,
    /// Quiet: silent when it succeeds, but with an answer when it is refused, and then writes nothing.
    Failure,
}

/// What a command does. All are for the same key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Reads the key.
    Get,
    /// Writes a value that nobody else writes.
    Set(Reply),
}

/// A command that a client sends.
#[derive(Clone, Copy, Debug)]
pub struct Command {
    /// What it does.
    pub kind: Kind,
    /// Its UDP request id.
    pub id: u8,
    /// Who sends it.
    pub client: Client,
    /// How.
    pub transport: Transport,
}

impl Command {
    /// Whether it writes.
    #[must_use]
    pub fn writes(&self) -> bool {
        matches!(self.kind, Kind::Set(_))
    }

    /// Whether the client waits for a reply.
    #[must_use]
    pub fn is_answered(&self) -> bool {
        matches!(self.kind, Kind::Get | Kind::Set(Reply::Always))
    }

    /// Whether it goes over TCP.
    #[must_use]
    pub fn is_tcp(&self) -> bool {
        self.transport == Transport::Tcp
    }
}

/// The value that a command writes. 0 is there from the start.
#[must_use]
pub fn value_of(op: Op) -> u8 {
    op + 1
}

/// How often each kind of accident may still happen in a run. Delay and reordering are free.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Budget {
    /// A packet comes a second time, or a segment is sent again although it arrived.
    pub copies: u8,
    /// A packet passes `rx` and is dropped behind it.
    pub drops: u8,
    /// A segment shows `rx` something else, and is dropped by the kernel for its checksum.
    pub garbled: u8,
    /// A TCP reply leaves again.
    pub repeats: u8,
    /// A connection is reset, or somebody pretends to.
    pub resets: u8,
    /// A UDP request is forgotten because there are too many.
    pub losses: u8,
}

/// The clients of a model.
#[derive(Clone, Debug, Default)]
pub struct Scenario {
    /// All commands, those of one client together and in the order in which it sends them.
    pub commands: Vec<Command>,
    /// For each client whether it goes on before it is answered.
    pub impatient: Vec<bool>,
    /// For each client whether it may not be served: only its writes are remembered.
    pub strange: Vec<bool>,
    /// What may go wrong.
    pub budget: Budget,
}

impl Scenario {
    /// Nobody yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a UDP client; each command with its request id.
    #[must_use]
    pub fn udp(self, commands: &[(Kind, u8)]) -> Self {
        self.client(Transport::Udp, commands)
    }

    /// Adds a client with a TCP connection.
    #[must_use]
    pub fn tcp(self, kinds: &[Kind]) -> Self {
        let commands: Vec<_> = kinds.iter().map(|&kind| (kind, 0)).collect();
        self.client(Transport::Tcp, &commands)
    }

    /// The client added last does not wait for answers: it pipelines, or gives up.
    #[must_use]
    pub fn impatient(mut self) -> Self {
        if let Some(last) = self.impatient.last_mut() {
            *last = true;
        }
        self
    }

    /// The client added last may not be served.
    #[must_use]
    pub fn strange(mut self) -> Self {
        if let Some(last) = self.strange.last_mut() {
            *last = true;
        }
        self
    }

    /// Sets what may go wrong.
    #[must_use]
    pub fn budget(mut self, budget: Budget) -> Self {
        self.budget = budget;
        self
    }

    fn client(mut self, transport: Transport, commands: &[(Kind, u8)]) -> Self {
        let client = self.impatient.len() as Client;
        self.impatient.push(false);
        self.strange.push(false);
        self.commands
            .extend(commands.iter().map(|&(kind, id)| Command {
                kind,
                id,
                client,
                transport,
            }));
        assert!(self.commands.len() <= MAX_OPS, "too many commands");
        self
    }

    /// A command.
    #[must_use]
    pub fn command(&self, op: Op) -> &Command {
        &self.commands[usize::from(op)]
    }

    /// All commands.
    pub fn ops(&self) -> impl DoubleEndedIterator<Item = Op> {
        0..self.commands.len() as Op
    }

    /// All clients.
    pub fn clients(&self) -> impl Iterator<Item = Client> {
        0..self.impatient.len() as Client
    }

    /// The commands of a client, in order.
    pub fn of(&self, client: Client) -> impl DoubleEndedIterator<Item = Op> {
        self.ops()
            .filter(move |&op| self.command(op).client == client)
    }

    /// The commands that a client sends before this one, in order.
    pub fn before(&self, op: Op) -> impl DoubleEndedIterator<Item = Op> {
        self.of(self.command(op).client)
            .filter(move |&other| other < op)
    }
}
