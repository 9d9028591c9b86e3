//! Draws commands, and knows what must come back: a client's own keys are written by nobody else.

use std::sync::Arc;

use fastrand::Rng;

use super::answer::{Part, shared_id};
use super::shared::Shared;
use super::value::{VERSION, value};

/// Keys of a client's own that hold values, numbers, and large values.
const VALUES: usize = 10;
const NUMBERS: usize = 2;
const LARGE: usize = 1;
/// Most keys of a GET.
const KEYS: usize = 8;

/// What servers and proxies understand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// Everything that memcached does.
    Memcached,
    /// What a proxy before many of them passes on in the order of the commands.
    Proxy,
}

/// What a key of the client's own holds.
#[derive(Clone, Debug)]
enum Content {
    Nothing,
    Value { flags: u32, len: usize },
    Number { flags: u32, number: u64 },
}

/// A key of the client's own.
#[derive(Clone, Debug)]
struct Own {
    id: u64,
    name: String,
    content: Content,
    /// Counts the writes.
    version: u64,
}

impl Own {
    /// Flags and value.
    fn item(&self) -> Option<(u32, Vec<u8>)> {
        match self.content {
            Content::Nothing => None,
            Content::Value { flags, len } => Some((flags, value(self.id, self.version, len))),
            Content::Number { flags, number } => Some((flags, number.to_string().into_bytes())),
        }
    }
}

/// Commands, and the answers to them.
#[derive(Default)]
pub struct Batch {
    pub requests: Vec<u8>,
    pub answers: Vec<Part>,
    pub commands: u64,
}

impl Batch {
    fn says(&mut self, text: impl AsRef<[u8]>) {
        self.requests.extend_from_slice(text.as_ref());
    }

    fn answered(&mut self, text: impl AsRef<[u8]>) {
        if let Some(Part::Bytes(bytes)) = self.answers.last_mut() {
            bytes.extend_from_slice(text.as_ref());
        } else {
            self.answers.push(Part::Bytes(text.as_ref().to_vec()));
        }
    }
}

/// Draws the commands of one client.
pub struct Source {
    pub random: Rng,
    seed: u64,
    client: usize,
    clients: usize,
    dialect: Dialect,
    largest: usize,
    own: Vec<Own>,
    shared: Arc<Vec<Shared>>,
    /// Shared keys written without a reply, not known yet to be.
    unconfirmed: Vec<(usize, u64)>,
}

impl Source {
    /// The source of one of `clients`; its large values have up to `largest` bytes. Another seed's clients
    /// have other keys.
    pub fn new(
        seed: u64,
        [client, clients]: [usize; 2],
        dialect: Dialect,
        largest: usize,
        shared: Arc<Vec<Shared>>,
    ) -> Self {
        let own = (0..VALUES + NUMBERS + LARGE).map(|key| Own {
            id: (client * 32 + key) as u64,
            name: format!("own-{seed:x}-{client}-{key}{}", "-".repeat(key * key)),
            content: Content::Nothing,
            version: 0,
        });
        Self {
            random: Rng::with_seed(seed ^ client as u64),
            seed,
            client,
            clients,
            dialect,
            largest,
            own: own.collect(),
            shared,
            unconfirmed: Vec::new(),
        }
    }

    /// The shared keys that this client writes.
    pub fn writes(&self) -> impl Iterator<Item = usize> + use<> {
        (self.client..self.shared.len()).step_by(self.clients)
    }

    /// The name of a shared key.
    fn shared_name(&self, key: usize) -> String {
        format!("shared-{:x}-{key}", self.seed)
    }

    /// Any command.
    pub fn any(&mut self, batch: &mut Batch) {
        match self.random.u32(..100) {
            0..55 => self.read(batch),
            55..75 => self.set(batch),
            75..82 => self.delete(batch),
            82..92 => self.increment(batch),
            92..96 => self.write_shared(batch),
            _ => self.large(batch),
        }
    }

    /// A command that reads.
    pub fn read(&mut self, batch: &mut Batch) {
        match (self.dialect, self.random.u32(..100)) {
            (_, 0..35) => self.get(batch, 1),
            (_, 35..50) => self.gets(batch, 1),
            (Dialect::Proxy, _) => self.get(batch, 1),
            (_, 50..70) => {
                let keys = self.random.usize(2..=KEYS);
                self.get(batch, keys);
            }
            (_, 70..78) => {
                let keys = self.random.usize(2..=KEYS);
                self.gets(batch, keys);
            }
            _ => self.meta_get(batch),
        }
    }

    /// One GET that is likely to be asked again, byte for byte.
    pub fn hot(&mut self) -> impl Fn(&mut Self, &mut Batch) + use<> {
        let keys = [1, 1, 1, 3][self.random.usize(..4)];
        let keys = if self.dialect == Dialect::Proxy {
            1
        } else {
            keys
        };
        let seed = self.random.u64(..);
        move |source, batch| {
            let random = std::mem::replace(&mut source.random, Rng::with_seed(seed));
            source.get(batch, keys);
            source.random = random;
        }
    }

    fn get(&mut self, batch: &mut Batch, keys: usize) {
        batch.says("get");
        for _ in 0..keys {
            if self.random.u32(..4) == 0 {
                let key = self.random.usize(..self.shared.len());
                let name = self.shared_name(key);
                batch.says(format!(" {name}"));
                let floor = self.shared[key].known();
                batch.answers.push(Part::Item { key, name, floor });
                continue;
            }
            let key = &self.own[self.random.usize(..VALUES + NUMBERS)];
            batch.says(format!(" {}", key.name));
            if let Some((flags, value)) = key.item() {
                batch.answered(format!("VALUE {} {flags} {}\r\n", key.name, value.len()));
                batch.answered(value);
                batch.answered("\r\n");
            }
        }
        batch.says("\r\n");
        batch.answered("END\r\n");
        self.ends(batch);
    }

    fn gets(&mut self, batch: &mut Batch, keys: usize) {
        batch.says("gets");
        for _ in 0..keys {
            let number = self.random.usize(..VALUES + NUMBERS);
            let key = &self.own[number];
            batch.says(format!(" {}", key.name));
            if let Some((flags, value)) = key.item() {
                batch.answered(format!("VALUE {} {flags} {} ", key.name, value.len()));
                batch.answers.push(Part::Cas {
                    key: number,
                    version: key.version,
                });
                batch.answered("\r\n");
                batch.answered(value);
                batch.answered("\r\n");
            }
        }
        batch.says("\r\n");
        batch.answered("END\r\n");
        self.ends(batch);
    }

    fn meta_get(&mut self, batch: &mut Batch) {
        let key = &self.own[self.random.usize(..VALUES + NUMBERS)];
        let is_quiet = self.random.u32(..4) == 0;
        let (flags, tail) =
            [("v", ""), ("k v f", "k f"), ("s v O12 k", "s O12 k")][self.random.usize(..3)];
        batch.says(format!("mg {} {flags}", key.name));
        batch.says(if is_quiet { " q\r\nmn\r\n" } else { "\r\n" });
        let item = key.item();
        if item.is_some() || !is_quiet {
            let len = item.as_ref().map(|(_, value)| value.len());
            batch.answered(len.map_or_else(|| "EN".to_owned(), |len| format!("VA {len}")));
            for flag in tail.split_terminator(' ') {
                match (flag, &item) {
                    ("k", _) => batch.answered(format!(" k{}", key.name)),
                    ("f", Some((flags, _))) => batch.answered(format!(" f{flags}")),
                    ("s", Some((_, value))) => batch.answered(format!(" s{}", value.len())),
                    ("f" | "s", None) => {}
                    (opaque, _) => batch.answered(format!(" {opaque}")),
                }
            }
            batch.answered("\r\n");
        }
        if let Some((_, value)) = item {
            batch.answered(value);
            batch.answered("\r\n");
        }
        if is_quiet {
            batch.answered("MN\r\n");
        }
        self.ends(batch);
    }

    fn set(&mut self, batch: &mut Batch) {
        let number = self.random.usize(..VALUES);
        let len = match self.random.u32(..100) {
            0..10 => 1,
            10..70 => self.random.usize(1..200),
            70..85 => self.random.usize(200..1_400),
            85..95 => self.random.usize(1_400..1_500),
            _ => self.random.usize(1_500..16_000),
        };
        self.store(batch, number, len);
    }

    /// Gives one of the client's keys a value whose answer fits any packet.
    pub fn set_short(&mut self, batch: &mut Batch) {
        let (number, len) = (self.random.usize(..VALUES), self.random.usize(1..120));
        self.store(batch, number, len);
    }

    fn store(&mut self, batch: &mut Batch, number: usize, len: usize) {
        let flags = [0, 1, self.random.u32(..)][self.random.usize(..3)];
        let key = &mut self.own[number];
        key.version += 1;
        key.content = Content::Value { flags, len };
        let head = format!("set {} {flags} 0 {len}", key.name);
        let data = value(key.id, key.version, len);
        self.write(batch, head, Some(&data), "STORED");
    }

    fn delete(&mut self, batch: &mut Batch) {
        let key = &mut self.own[self.random.usize(..VALUES + NUMBERS)];
        let answer = match key.content {
            Content::Nothing => "NOT_FOUND",
            _ => "DELETED",
        };
        key.content = Content::Nothing;
        key.version += 1;
        let head = format!("delete {}", key.name);
        self.write(batch, head, None, answer);
    }

    fn increment(&mut self, batch: &mut Batch) {
        let number = VALUES + self.random.usize(..NUMBERS);
        let most = u64::from(self.random.u32(1..));
        let by = self.random.u64(1..=most);
        let key = &mut self.own[number];
        let Content::Number { number, .. } = &mut key.content else {
            let first = self.random.u64(..1_000);
            key.content = Content::Number {
                flags: 0,
                number: first,
            };
            key.version += 1;
            let first = first.to_string();
            let head = format!("set {} 0 0 {}", key.name, first.len());
            return self.write(batch, head, Some(first.as_bytes()), "STORED");
        };
        *number += by;
        key.version += 1;
        let answer = number.to_string();
        let head = format!("incr {} {by}", key.name);
        self.write(batch, head, None, &answer);
    }

    /// Writes the large value, or reads it.
    fn large(&mut self, batch: &mut Batch) {
        if self.random.bool() {
            return self.get_large(batch);
        }
        // Most are far from the largest.
        let most = (self.largest >> self.random.u32(..8)).max(2);
        let len = self.random.usize(most / 2..most);
        self.store(batch, VALUES + NUMBERS, len);
    }

    /// Reads the large value.
    pub fn get_large(&mut self, batch: &mut Batch) {
        let key = &self.own[VALUES + NUMBERS];
        batch.says(format!("get {}\r\n", key.name));
        if let Some((flags, value)) = key.item() {
            batch.answered(format!("VALUE {} {flags} {}\r\n", key.name, value.len()));
            batch.answered(value);
            batch.answered("\r\n");
        }
        batch.answered("END\r\n");
        self.ends(batch);
    }

    /// Writes one of the client's shared keys, or anything if it has none.
    fn write_shared(&mut self, batch: &mut Batch) {
        let keys: Vec<usize> = self.writes().collect();
        if keys.is_empty() {
            return self.set(batch);
        }
        let key = keys[self.random.usize(..keys.len())];
        self.store_shared(batch, key);
    }

    /// Writes a shared key.
    pub fn store_shared(&mut self, batch: &mut Batch, key: usize) {
        let version = self.shared[key].begin();
        let len = VERSION + self.random.usize(..200);
        let data = value(shared_id(key), version, len);
        let head = format!("set {} 0 0 {len}", self.shared_name(key));
        self.unconfirmed.push((key, version));
        self.write(batch, head, Some(&data), "STORED");
    }

    /// A command that changes something, with a reply or without.
    fn write(&mut self, batch: &mut Batch, head: String, data: Option<&[u8]>, answer: &str) {
        let is_quiet = self.random.u32(..6) == 0;
        batch.says(head);
        batch.says(if is_quiet { " noreply\r\n" } else { "\r\n" });
        if let Some(data) = data {
            batch.says(data);
            batch.says("\r\n");
        }
        if is_quiet {
            batch.commands += 1;
        } else {
            batch.answered(answer);
            batch.answered("\r\n");
            self.ends(batch);
        }
    }

    /// A command that is answered ends: what came before it has been done by then.
    fn ends(&mut self, batch: &mut Batch) {
        batch.commands += 1;
        let written = self.unconfirmed.drain(..);
        batch
            .answers
            .extend(written.map(|(key, version)| Part::Written { key, version }));
    }
}
