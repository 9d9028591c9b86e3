//! The whole of it, in simulated time.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::faults::{Fate, Faults};
use super::host::{Host, Way};
use super::memcached::Command;
use super::tcp::{Packet, Settings, Tcp};
use crate::{Policy, Segment};
use prestack_proto::net::{TCP_ACK, TCP_SYN};

/// µs from the client to the host and back.
const LINK: u64 = 50;
/// µs from where requests are answered to the kernel.
const INSIDE: u64 = 5;
/// Simulated µs after which a run counts as hung: more than all timers of a run with as many losses as there are.
const FOREVER: u64 = 3_600_000_000;

/// What the client does next.
#[derive(Clone, Copy, Debug)]
pub struct Step {
    pub command: Command,
    /// Bytes after which the command is cut in two writes, 0 for none.
    pub cut: usize,
    /// Whether all replies are waited for before.
    pub waits: bool,
    /// µs to wait before, after that.
    pub pause: u64,
}

impl Step {
    /// A command that waits for the replies before it.
    pub fn waiting(command: Command) -> Self {
        Self {
            command,
            cut: 0,
            waits: true,
            pause: 0,
        }
    }
}

/// A run.
#[derive(Clone, Debug)]
pub struct Script {
    pub steps: Vec<Step>,
    pub client: Settings,
    pub server: Settings,
    pub faults: Faults,
    /// Packets of the client that pass before the faults start.
    pub warm_up: usize,
    /// µs that memcached takes for a command.
    pub thinks: u64,
    /// Most bytes that the client reads in 100 µs.
    pub reads: usize,
    pub policy: Policy,
    /// How much a packet can grow.
    pub tail_room: usize,
    /// The same when an answer is sent again: it may come another way.
    pub part_room: usize,
    /// Step from which on nothing is answered any more.
    pub drains_at: Option<usize>,
    /// Somebody sends a SYN of the connection's ends at this step.
    pub spoofed_at: Option<usize>,
    /// memcached closes the connection when it is idle and the client has come to this step. What comes later
    /// makes the kernel reset it.
    pub hangs_up_at: Option<usize>,
    /// The client resets the connection at the end, instead of closing it.
    pub resets: bool,
}

enum Event {
    ToHost(Packet),
    ToKernel(Packet),
    ToClient(Packet),
    Wake,
    Client,
    Memcached,
}

struct Scheduled {
    at: u64,
    number: u64,
    event: Event,
}

impl PartialEq for Scheduled {
    fn eq(&self, other: &Self) -> bool {
        self.number == other.number
    }
}
impl Eq for Scheduled {}
impl PartialOrd for Scheduled {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Scheduled {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.number).cmp(&(other.at, other.number))
    }
}

/// How a run went.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// µs from the start to the end.
    pub took: u64,
    /// µs at which the last fault happened.
    pub last_fault: u64,
    /// The longest timeout of either end that ran out, in µs.
    pub longest: u64,
    pub served: usize,
    pub resent: u64,
    pub kernel_retransmissions: u64,
    pub client_retransmissions: u64,
    pub timeouts: u64,
    pub reneged: u64,
    /// The longest that the client waited for something, in µs.
    pub longest_gap: u64,
    /// Timeouts of an end that ran out again although nothing has gone wrong since the last.
    pub idle_timeouts: u64,
}

pub struct World {
    script: Script,
    now: u64,
    number: u64,
    events: BinaryHeap<Reverse<Scheduled>>,
    client: Tcp,
    kernel: Tcp,
    host: Host,
    counts: [usize; 3],
    last_fault: u64,

    step: usize,
    rest: Vec<u8>,
    ready_at: u64,
    replies: Vec<u8>,
    due: Vec<u8>,
    has_ended: bool,
    progress_at: u64,
    longest_gap: u64,
    idle_timeouts: u64,
    timed_out_at: [u64; 2],

    requests: Vec<u8>,
    executed: Vec<Command>,
    busy: bool,
    hangs_up: bool,
    has_hung_up: bool,
}

impl World {
    /// Runs a script to its end; what goes wrong is an error.
    pub fn run(script: &Script) -> Result<Outcome, String> {
        let mut world = Self::new(script.clone());
        world.go_on()?;
        world.check()?;
        Ok(Outcome {
            took: world.now,
            last_fault: world.last_fault,
            longest: world.client.longest.max(world.kernel.longest),
            served: world.host.served.len(),
            resent: world.host.resent,
            kernel_retransmissions: world.kernel.retransmissions,
            client_retransmissions: world.client.retransmissions,
            timeouts: world.client.timeouts + world.kernel.timeouts,
            reneged: world.kernel.reneged,
            longest_gap: world.longest_gap,
            idle_timeouts: world.idle_timeouts,
        })
    }

    fn new(script: Script) -> Self {
        let (client, server) = (script.client, script.server);
        let mut host = Host::new(script.policy, script.tail_room, script.part_room);
        // The handshake, undisturbed.
        let syn_ack = Segment {
            sequence: server.first,
            acknowledgement: client.first.wrapping_add(1),
            flags: (TCP_SYN | TCP_ACK).into(),
            timestamp: 1,
            has_timestamps: client.has_timestamps.into(),
            ..Segment::default()
        };
        let packet = Packet {
            segment: syn_ack,
            data: Vec::new(),
            blocks: Vec::new(),
            agreement: Some(Tcp::agreement(&client, &server)),
            is_damaged: false,
            is_too_much: false,
        };
        host.leaves(packet, 0);
        let mut world = Self {
            client: Tcp::established(client, server.first, server.buffer),
            kernel: Tcp::established(server, client.first, client.buffer),
            script,
            now: 1_000_000,
            number: 0,
            events: BinaryHeap::new(),
            host,
            counts: [0; 3],
            last_fault: 1_000_000,
            step: 0,
            rest: Vec::new(),
            ready_at: 0,
            replies: Vec::new(),
            due: Vec::new(),
            has_ended: false,
            progress_at: 1_000_000,
            longest_gap: 0,
            idle_timeouts: 0,
            timed_out_at: [0; 2],
            requests: Vec::new(),
            executed: Vec::new(),
            busy: false,
            hangs_up: false,
            has_hung_up: false,
        };
        world.schedule(0, Event::Client);
        world
    }

    fn schedule(&mut self, delay: u64, event: Event) {
        self.number += 1;
        self.events.push(Reverse(Scheduled {
            at: self.now + delay,
            number: self.number,
            event,
        }));
    }

    fn go_on(&mut self) -> Result<(), String> {
        let mut steps = 0;
        while let Some(Reverse(next)) = self.events.pop() {
            self.now = next.at;
            steps += 1;
            if self.now > FOREVER || steps > 200_000 {
                return Err(self.describe("it hangs"));
            }
            match next.event {
                Event::ToHost(packet) => {
                    if let Some(way) = self.host.arrives(packet, self.now * 1000) {
                        match way {
                            Way::Kernel(packet) => self.send(1, packet),
                            Way::Client(packet) => self.send(2, packet),
                        }
                    }
                }
                Event::ToKernel(packet) => {
                    if !packet.is_damaged {
                        self.kernel.arrives(&packet, self.now);
                    }
                    self.memcached_reads();
                }
                Event::ToClient(packet) => self.client.arrives(&packet, self.now),
                Event::Wake => self.wake(),
                Event::Client => {}
                Event::Memcached => {
                    self.busy = false;
                    self.memcached_answers();
                }
            }
            self.client_acts()?;
            self.flush();
            if self.is_over() {
                return Ok(());
            }
            let wakes_at = [self.client.wakes_at(), self.kernel.wakes_at()];
            if let Some(at) = wakes_at.into_iter().flatten().min() {
                let is_known = self
                    .events
                    .iter()
                    .any(|Reverse(next)| next.at <= at && matches!(next.event, Event::Wake));
                if !is_known {
                    self.schedule(at.saturating_sub(self.now), Event::Wake);
                }
            }
        }
        if self.has_hung_up && self.kernel.is_reset {
            // The reset was lost, and with it what was to be sent again.
            return Ok(());
        }
        Err(self.describe("nothing happens any more"))
    }

    fn wake(&mut self) {
        for (i, end) in [&mut self.client, &mut self.kernel].into_iter().enumerate() {
            let timeouts = end.timeouts;
            end.wake(self.now);
            if end.timeouts != timeouts {
                let is_again = end.has_backed_off();
                // What was lost just before a timeout may have been what should have spared the next.
                if is_again && self.last_fault + 4 * LINK < self.timed_out_at[i] {
                    self.idle_timeouts += 1;
                }
                self.timed_out_at[i] = self.now;
            }
        }
    }

    /// Sends off what both ends have sent.
    fn flush(&mut self) {
        for packet in self.client.sent() {
            self.send(0, packet);
        }
        for packet in self.kernel.sent() {
            if let Some(packet) = self.host.leaves(packet, self.now * 1000) {
                self.send(2, packet);
            }
        }
    }

    /// A packet goes on a stretch of its way.
    fn send(&mut self, stretch: usize, mut packet: Packet) {
        let faults = &self.script.faults;
        let fates = [&faults.up, &faults.inside, &faults.down][stretch];
        let mut fate = Fate::Arrives;
        if self.step > self.script.warm_up {
            fate = *fates.get(self.counts[stretch]).unwrap_or(&fate);
            self.counts[stretch] += 1;
        }
        let (delay, event): (_, fn(Packet) -> Event) = match stretch {
            0 => (LINK, Event::ToHost),
            1 => (INSIDE, Event::ToKernel),
            _ => (LINK, Event::ToClient),
        };
        let mut late = 0;
        match fate {
            Fate::Arrives => self.schedule(delay, event(packet)),
            Fate::Damaged(sequence, acknowledgement) if stretch == 0 => {
                let segment = &mut packet.segment;
                segment.sequence = segment.sequence.wrapping_add(sequence);
                segment.acknowledgement = segment.acknowledgement.wrapping_add(acknowledgement);
                packet.is_damaged = true;
                self.schedule(delay, event(packet));
            }
            Fate::Lost | Fate::Damaged(..) => {}
            Fate::Cut(len) => {
                let rest = packet.cut_off(len);
                self.schedule(delay, event(packet));
                if let Some(rest) = rest {
                    self.schedule(delay, event(rest));
                }
            }
            Fate::TooMuch => {
                packet.is_too_much = true;
                self.schedule(delay, event(packet));
            }
            Fate::Twice(more) => {
                self.schedule(delay, event(packet.clone()));
                self.schedule(delay + more, event(packet));
                late = more;
            }
            Fate::Late(more) => {
                self.schedule(delay + more, event(packet));
                late = more;
            }
        }
        if fate != Fate::Arrives {
            self.last_fault = self.last_fault.max(self.now + delay + late);
        }
    }

    /// The client reads what has come, compares it, and goes on with its script.
    fn client_acts(&mut self) -> Result<(), String> {
        let bytes = self.client.read(self.script.reads, self.now);
        if !bytes.is_empty() {
            self.longest_gap = self.longest_gap.max(self.now - self.progress_at);
            self.progress_at = self.now;
        }
        if !self.client.received.is_empty() {
            self.schedule(100, Event::Client);
        }
        self.replies.extend(bytes);
        let known = self.replies.len().min(self.due.len());
        if self.replies[..known] != self.due[..known] || self.replies.len() > self.due.len() {
            return Err(self.describe("the client reads something else"));
        }
        if self.client.is_reset {
            return Ok(());
        }
        while self.step < self.script.steps.len() {
            let step = self.script.steps[self.step];
            if !self.rest.is_empty() {
                let rest = std::mem::take(&mut self.rest);
                self.client.write(&rest, self.now);
                self.step += 1;
                continue;
            }
            if step.waits && self.replies.len() < self.due.len() {
                return Ok(());
            }
            if step.pause != 0 && self.ready_at == 0 {
                self.ready_at = self.now + step.pause;
                self.schedule(step.pause, Event::Client);
                return Ok(());
            }
            if self.now < self.ready_at {
                return Ok(());
            }
            self.ready_at = 0;
            if self.replies.len() == self.due.len() {
                self.progress_at = self.now;
            }
            self.start_step(step);
            let mut bytes = step.command.bytes();
            if step.cut != 0 && step.cut < bytes.len() {
                self.rest = bytes.split_off(step.cut);
                self.client.write(&bytes, self.now);
                self.schedule(20, Event::Client);
                return Ok(());
            }
            self.client.write(&bytes, self.now);
            self.step += 1;
        }
        let is_finished =
            self.step == self.script.steps.len() && self.replies.len() == self.due.len();
        if is_finished && !self.has_ended {
            self.has_ended = true;
            if self.script.resets {
                self.reset();
            } else {
                self.client.close(self.now);
            }
        }
        Ok(())
    }

    fn start_step(&mut self, step: Step) {
        self.due.extend(step.command.reply());
        let at = Some(self.step);
        if self.script.hangs_up_at == at {
            self.hangs_up = true;
            self.memcached_reads();
        }
        if self.script.drains_at == at {
            self.host.policy.is_serving = 0;
        }
        if self.script.spoofed_at == at {
            let packet = Packet {
                segment: Segment {
                    sequence: self.script.client.first ^ 0x1234_5678,
                    flags: TCP_SYN.into(),
                    ..Segment::default()
                },
                data: Vec::new(),
                blocks: Vec::new(),
                agreement: None,
                is_damaged: false,
                is_too_much: false,
            };
            self.schedule(0, Event::ToHost(packet));
        }
    }

    /// The client resets the connection.
    fn reset(&mut self) {
        let packet = self.client.reset();
        self.schedule(LINK, Event::ToHost(packet));
    }

    fn memcached_reads(&mut self) {
        let bytes = self.kernel.read(usize::MAX, self.now);
        self.requests.extend(bytes);
        if !self.busy && Command::parse(&self.requests).is_some() {
            self.busy = true;
            self.schedule(self.script.thinks, Event::Memcached);
        }
        if self.has_hung_up && !self.requests.is_empty() && !self.kernel.is_reset {
            let reset = self.kernel.reset();
            if let Some(packet) = self.host.leaves(reset, self.now * 1000) {
                self.send(2, packet);
            }
            return;
        }
        let is_idle = self.requests.is_empty() && !self.busy;
        let is_wanted = self.kernel.is_at_end() || self.hangs_up;
        if is_idle && is_wanted && !self.has_hung_up {
            self.has_hung_up = true;
            self.kernel.close(self.now);
        }
    }

    fn memcached_answers(&mut self) {
        if let Some((command, len)) = Command::parse(&self.requests) {
            self.requests.drain(..len);
            self.executed.push(command);
            self.kernel.write(&command.reply(), self.now);
        }
        self.memcached_reads();
    }

    fn is_over(&self) -> bool {
        if self.has_hung_up && self.client.is_reset {
            return true;
        }
        if self.script.resets {
            // A reset is sent once, and may be lost.
            let is_quiet = self
                .events
                .iter()
                .all(|Reverse(next)| matches!(next.event, Event::Wake));
            return self.has_ended && (self.kernel.is_reset || is_quiet);
        }
        let client_done = self.client.is_done() && self.client.is_at_end();
        self.has_ended && client_done && self.kernel.is_done()
    }

    /// memcached has executed what was not answered before it, in order.
    fn check(&self) -> Result<(), String> {
        let mut at = self.script.client.first.wrapping_add(1);
        let mut passed = Vec::new();
        for step in &self.script.steps {
            if !self.host.served.contains(&(at, step.command)) {
                passed.push(step.command);
            }
            at = at.wrapping_add(step.command.bytes().len() as u32);
        }
        if self.script.resets || self.kernel.is_reset {
            // What memcached has not got to is lost.
            passed.truncate(self.executed.len());
        }
        if passed != self.executed {
            return Err(self.describe("memcached executes something else"));
        }
        if self.host.dropped != 0 {
            return Err(self.describe("something could not be sent"));
        }
        Ok(())
    }

    fn describe(&self, what: &str) -> String {
        format!(
            "{what}: at {} µs, step {}, {} of {} bytes, served {:?}, executed {:?}, {:?}, {:?}",
            self.now,
            self.step,
            self.replies.len(),
            self.due.len(),
            self.host.served.len(),
            self.executed.len(),
            self.host.translation,
            self.host.ends,
        )
    }
}
