//! Random commands of every kind.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use fastrand::Rng;
use prestack_tests::base64::base64;

use super::command::{Action, Command, Shape};
use super::keys::{self, KINDS, Kind, REGISTERS};

/// How a command goes to memcached.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Way {
    /// A TCP connection in the text protocol.
    Text,
    /// A TCP connection in the binary protocol.
    Binary,
    /// UDP, in either protocol.
    Udp,
}

/// How often what is done: shares of 1.
#[derive(Clone, Copy)]
pub struct Habits {
    /// Writes, instead of GETs.
    pub writes: f64,
    /// Writes that are not answered, of those.
    pub quiet: f64,
    /// Emptying memcached, of the writes.
    pub flushes: f64,
}

/// A source of commands.
pub struct Source {
    pub random: Rng,
    pub habits: Habits,
    /// The next register value, of all sources.
    pub values: Arc<AtomicU64>,
    /// Unique numbers that the items of registers once had.
    pub cas: Vec<u64>,
    pub opaque: u32,
}

impl Source {
    pub fn new(seed: u64, habits: Habits, values: &Arc<AtomicU64>) -> Self {
        Self {
            random: Rng::with_seed(seed),
            habits,
            values: Arc::clone(values),
            cas: Vec::new(),
            opaque: 0,
        }
    }

    /// The next command; a quiet one of the meta protocol has a `mn` behind it.
    pub fn draw(&mut self, way: Way) -> Vec<Command> {
        let is_write = self.is_one_of(self.habits.writes);
        let is_quiet = is_write && self.is_one_of(self.habits.quiet);
        let is_flush = is_write && self.is_one_of(self.habits.flushes);
        let key = self.random.usize(..KINDS.len());
        let is_binary = way == Way::Binary || (way == Way::Udp && self.random.u8(..5) == 0);
        if is_binary {
            // An empty datagram would answer a quiet one.
            let is_quiet = is_quiet && way == Way::Binary;
            return vec![if is_flush {
                self.binary_flush(is_quiet)
            } else if is_write {
                self.binary_write(key, is_quiet, way)
            } else {
                self.binary_get(key)
            }];
        }
        if is_flush {
            return vec![text_flush(is_quiet)];
        }
        if !is_write {
            return vec![self.text_get(key)];
        }
        if self.random.bool() {
            return vec![self.text_write(key, is_quiet, way)];
        }
        let mut commands = vec![self.meta_write(key, is_quiet, way)];
        if is_quiet && way == Way::Text {
            commands.push(noop());
        }
        commands
    }

    fn is_one_of(&mut self, share: f64) -> bool {
        self.random.f64() < share
    }

    /// The number of a new register value.
    pub fn number(&mut self, way: Way) -> u64 {
        loop {
            let number = self.values.fetch_add(1, Ordering::Relaxed);
            if way != Way::Udp || keys::is_short(number) {
                return number;
            }
        }
    }

    /// So many commands, the last of which is answered unless they go over UDP.
    pub fn script(&mut self, way: Way, count: usize) -> Vec<Command> {
        let mut script: Vec<Command> = (0..count).flat_map(|_| self.draw(way)).collect();
        let is_open = |last: &Command| last.shape == Shape::Silent;
        if way != Way::Udp && script.last().is_some_and(is_open) {
            script.push(self.barrier(way));
        }
        script
    }

    /// A command that is always answered, and does nothing.
    fn barrier(&mut self, way: Way) -> Command {
        match way {
            Way::Binary => self.binary_noop(),
            _ => noop(),
        }
    }

    fn text_get(&mut self, key: usize) -> Command {
        let name = shown(key);
        let meta = |line: String| command(line, Action::Read(vec![key]), Shape::Meta);
        match self.random.u8(..8) {
            0 => meta(format!("mg {name} v")),
            1 => meta(format!("mg {name} s v f k")),
            2 => meta(format!("mg {} b v k", base64(keys::name(key)))),
            3 => items(format!("gets {name}"), vec![key]),
            4 => {
                let more = self.random.usize(1..4);
                let mut asked = vec![key];
                for _ in 0..more {
                    let other = self.random.usize(..KINDS.len());
                    if !asked.contains(&other) {
                        asked.push(other);
                    }
                }
                let names: Vec<String> = asked.iter().map(|&key| shown(key)).collect();
                items(format!("get {}", names.join(" ")), asked)
            }
            _ => items(format!("get {name}"), vec![key]),
        }
    }

    fn text_write(&mut self, key: usize, is_quiet: bool, way: Way) -> Command {
        let name = shown(key);
        let end = if is_quiet { " noreply" } else { "" };
        let shape = if is_quiet { Shape::Silent } else { Shape::Line };
        let step = |line: String| command(line, Action::Step(key), shape);
        match KINDS[key] {
            Kind::Up => return step(format!("incr {name} 1{end}")),
            Kind::Down => return step(format!("decr {name} 1{end}")),
            Kind::Grown => {
                let verb = ["append", "prepend"][self.random.usize(..2)];
                let line = format!("{verb} {name} 0 0 1{end}");
                return stored(&line, b"+", Action::Step(key), shape);
            }
            Kind::Register => {}
        }
        let remove = Action::Remove { key, shows: false };
        let choice = self.random.u8(..16);
        match choice {
            0 => return command(format!("delete {name}{end}"), remove, shape),
            1 => return command(format!("touch {name} -1{end}"), remove, shape),
            2 => return command(format!("touch {name} 0{end}"), Action::Nothing, shape),
            3 => return items(format!("gat 0 {name}"), vec![key]),
            4 => return items(format!("gats 0 {name}"), vec![key]),
            5 if !is_quiet => {
                let shows = Action::Remove { key, shows: true };
                return command(format!("gat -1 {name}"), shows, Shape::Items);
            }
            _ => {}
        }
        let number = self.number(way);
        let value = keys::value(number);
        let len = value.len();
        let write = Action::Write { key, number };
        match choice {
            6 => stored(&format!("add {name} 0 0 {len}{end}"), &value, write, shape),
            7 | 8 => stored(
                &format!("replace {name} 5 0 {len}{end}"),
                &value,
                write,
                shape,
            ),
            9 | 10 if key < self.cas.len() => {
                let line = format!("cas {name} 0 0 {len} {}{end}", self.cas[key]);
                stored(&line, &value, write, shape)
            }
            11 => stored(
                &format!("set {name} 0 -1 {len}{end}"),
                &value,
                remove,
                shape,
            ),
            _ => stored(&format!("set {name} 0 0 {len}{end}"), &value, write, shape),
        }
    }

    fn meta_write(&mut self, key: usize, is_quiet: bool, way: Way) -> Command {
        let is_base64 = self.random.u8(..4) == 0;
        let name = if is_base64 {
            base64(keys::name(key))
        } else {
            shown(key)
        };
        let mut end = if is_base64 { " b" } else { "" }.to_owned();
        if is_quiet {
            end.push_str(" q");
        }
        let shape = if is_quiet { Shape::Silent } else { Shape::Meta };
        match KINDS[key] {
            Kind::Up | Kind::Down => {
                let mode = if KINDS[key] == Kind::Up { "MI" } else { "MD" };
                let shows = ["", " v"][self.random.usize(..2)];
                let line = format!("ma {name} {mode}{shows}{end}");
                return command(line, Action::Step(key), shape);
            }
            Kind::Grown => {
                let mode = ["MA", "MP"][self.random.usize(..2)];
                let line = format!("ms {name} 1 {mode}{end}");
                return stored(&line, b"+", Action::Step(key), shape);
            }
            Kind::Register => {}
        }
        let choice = self.random.u8(..10);
        match choice {
            0 | 1 => {
                let remove = Action::Remove { key, shows: false };
                return command(format!("md {name}{end}"), remove, shape);
            }
            2 if !is_quiet => {
                let read = Action::Read(vec![key]);
                return command(format!("mg {name} v T0{end}"), read, Shape::Meta);
            }
            _ => {}
        }
        let number = self.number(way);
        let value = keys::value(number);
        let len = value.len();
        let write = Action::Write { key, number };
        let flags = match choice {
            3 => " ME".to_owned(),
            4 => " MR".to_owned(),
            5 if key < self.cas.len() => format!(" C{}", self.cas[key]),
            6 => " T0 F7".to_owned(),
            _ => String::new(),
        };
        stored(
            &format!("ms {name} {len}{flags}{end}"),
            &value,
            write,
            shape,
        )
    }
}

/// `ms` or the like with its data.
fn stored(line: &str, value: &[u8], action: Action, shape: Shape) -> Command {
    Command {
        bytes: [line.as_bytes(), b"\r\n", value, b"\r\n"].concat(),
        action,
        shape,
    }
}

fn command(line: String, action: Action, shape: Shape) -> Command {
    Command {
        bytes: (line + "\r\n").into_bytes(),
        action,
        shape,
    }
}

fn items(line: String, keys: Vec<usize>) -> Command {
    command(line, Action::Read(keys), Shape::Items)
}

fn noop() -> Command {
    command("mn".to_owned(), Action::Nothing, Shape::Noop)
}

fn text_flush(is_quiet: bool) -> Command {
    let (line, shape) = if is_quiet {
        ("flush_all noreply", Shape::Silent)
    } else {
        ("flush_all", Shape::Line)
    };
    command(line.to_owned(), Action::Flush, shape)
}

/// A GET of one key.
pub fn get(key: usize) -> Command {
    items(format!("get {}", shown(key)), vec![key])
}

/// A GET of the meta protocol.
pub fn meta_get(key: usize) -> Command {
    command(
        format!("mg {} v", shown(key)),
        Action::Read(vec![key]),
        Shape::Meta,
    )
}

/// Sets a key to what it starts from.
pub fn start(key: usize, number: u64) -> Command {
    let value = keys::initial(key, number);
    let action = if key < REGISTERS {
        Action::Write { key, number }
    } else {
        Action::Start(key)
    };
    let line = format!("set {} 0 0 {}", shown(key), value.len());
    stored(&line, &value, action, Shape::Line)
}

fn shown(key: usize) -> String {
    String::from_utf8_lossy(&keys::name(key)).into_owned()
}
