//! memcached is stopped while commands come in, and goes on.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use fastrand::Rng;

use super::command::{Action, Command, Shape};
use super::field::{Field, SETTLE};
use super::keys::{KINDS, REGISTERS};
use super::record::{self, Done};
use super::source::{self, Way};
use super::wire::{Piece, Sent, Wire, cut};

/// How memcached is stopped.
pub struct Freeze {
    /// For how many ms.
    pub millis: Range<u64>,
    /// Whether writes come that are not answered, and connections that close before they are: with
    /// memcached, these may stay for no longer than the settle time.
    pub has_quiet: bool,
}

/// What a round has done.
pub struct Tally {
    pub operations: usize,
    pub writes: usize,
    /// Whether a write that was not answered may have been executed after the settle time: nothing is
    /// promised then, and nothing was checked.
    pub is_void: bool,
}

/// What is sent where, in this order.
type Queues = Vec<VecDeque<Piece>>;

/// Two clients that read without pause while memcached comes back.
const HOT: usize = 2;

/// Stops memcached, queues commands on all sockets, lets it go on, waits for the answers, and checks what
/// every key reads afterwards, and all that was seen.
pub fn round(field: &mut Field, freeze: &Freeze) -> Result<Tally> {
    if field.source.random.u8(..8) == 0 {
        let place = field.source.random.usize(..field.wires.len());
        field.renew(place)?;
    }
    let mut all = field.prepare()?;
    let mut queues = Queues::new();
    for wire in &field.wires {
        let count = field.source.random.usize(1..6);
        let script = field.source.script(wire.way, count);
        let pieces = cut(&mut field.source.random, wire.way, script);
        queues.push(pieces.into());
    }
    let mut fleeting = None;
    if freeze.has_quiet && field.source.random.u8(..4) == 0 {
        fleeting = Some((field.connect(Way::Text)?, fleeting_script(field)));
    }
    let span = Duration::from_millis(field.source.random.u64(freeze.millis.clone()));
    let random = &mut field.source.random;
    // What is left goes out while memcached goes on.
    let left = if random.bool() { 0 } else { random.usize(..8) };

    let stop = AtomicBool::new(false);
    let hot = [(); HOT].map(|()| random.fork());
    let (memcached, readers) = (&field.stage.memcached, &field.hot);
    memcached.pause()?;
    let begin = Instant::now();
    let done: Vec<Done> = thread::scope(|scope| {
        let (mut senders, mut receivers) = (Vec::new(), Vec::new());
        for wire in &field.wires {
            let (sender, receiver) = channel();
            senders.push(sender);
            receivers.push(scope.spawn(move || wire.receive(&receiver)));
        }
        let hot: Vec<_> = readers
            .iter()
            .zip(hot)
            .map(|(wire, random)| scope.spawn(|| read_on(wire, random, &stop)))
            .collect();
        let sent = (|| {
            drain(&field.wires, &mut queues, &senders, left, random)?;
            let mut unanswered = Vec::new();
            if let Some((wire, script)) = fleeting {
                unanswered = cut_off(&wire, script)?;
            }
            thread::sleep(span.saturating_sub(begin.elapsed()));
            anyhow::Ok(unanswered)
        })();
        memcached.resume()?;
        let rest = drain(&field.wires, &mut queues, &senders, 0, random);
        drop(senders);
        let mut done: Vec<Done> = sent?;
        rest?;
        let received: Vec<_> = receivers.into_iter().map(join).collect();
        stop.store(true, Ordering::Relaxed);
        let read: Vec<_> = hot.into_iter().map(join).collect();
        for part in received.into_iter().chain(read) {
            done.extend(part?);
        }
        anyhow::Ok(done)
    })?;
    let has_quiet = done.iter().any(|done| done.answer.is_none());
    all.extend(done);
    // What is not answered may be executed late on a busy machine, and must not be taken for the doing of
    // the next round.
    field
        .stage
        .memcached
        .wait_until_idle(field.stage.server4().port())?;
    let mut tally = Tally {
        operations: all.len(),
        writes: all.iter().filter(|done| is_write(&done.command)).count(),
        is_void: has_quiet && begin.elapsed() > SETTLE * 9 / 10,
    };
    if !tally.is_void {
        let read = field.verify();
        if read.is_err() {
            // What was seen before says more.
            record::check(&all)?;
        }
        all.extend(read?);
        if field.source.random.u8(..4) == 0 {
            thread::sleep(SETTLE);
            all.extend(field.verify()?);
        }
        record::check(&all)?;
        tally.operations = all.len();
    }
    if tally.is_void || all.iter().any(|done| done.command.action == Action::Flush) {
        // Until then nothing is cached.
        thread::sleep(SETTLE + SETTLE / 5);
    }
    Ok(tally)
}

fn join<T>(thread: thread::ScopedJoinHandle<'_, T>) -> T {
    thread.join().expect("no panic")
}

fn is_write(command: &Command) -> bool {
    !matches!(command.action, Action::Read(_) | Action::Nothing)
}

/// Sends pieces in random order until so many are left, those of each socket in their own.
fn drain(
    wires: &[Wire],
    queues: &mut Queues,
    senders: &[Sender<Sent>],
    left: usize,
    random: &mut Rng,
) -> Result<()> {
    loop {
        let waiting: Vec<usize> = (0..queues.len())
            .filter(|&i| !queues[i].is_empty())
            .collect();
        if queues.iter().map(VecDeque::len).sum::<usize>() <= left {
            return Ok(());
        }
        let place = waiting[random.usize(..waiting.len())];
        if let Some(piece) = queues[place].pop_front() {
            wires[place].send(piece, &senders[place])?;
        }
    }
}

/// Reads one key after the other.
fn read_on(wire: &Wire, mut random: Rng, stop: &AtomicBool) -> Result<Vec<Done>> {
    let mut done = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let key = random.usize(..KINDS.len());
        done.push(wire.ask(source::get(key)).context("reading on")?);
        thread::sleep(Duration::from_micros(50));
    }
    Ok(done)
}

/// Sets of a client that does not wait for the answers.
fn fleeting_script(field: &mut Field) -> Vec<Command> {
    let count = field.source.random.usize(1..4);
    let mut set = || {
        let number = field.source.number(Way::Text);
        let mut command = source::start(field.source.random.usize(..REGISTERS), number);
        command.shape = Shape::Silent;
        command
    };
    (0..count).map(|_| set()).collect()
}

/// Sends commands and closes the connection.
fn cut_off(wire: &Wire, script: Vec<Command>) -> Result<Vec<Done>> {
    wire.exchange(script.into_iter().map(Piece::of).collect())
}
