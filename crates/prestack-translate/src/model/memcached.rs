//! Commands and replies: as much of the text protocol as matters here.

/// Keys with numbers from here on are missing.
pub const MISSING: u16 = 900;

/// A command of a client.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Command {
    /// `get` of a key, whose number says how long it and its value are.
    Get(u16),
    /// `set` of so many bytes.
    Set(u16),
    /// `set` with `noreply`.
    SetQuiet(u16),
}

impl Command {
    /// What the client sends.
    pub fn bytes(self) -> Vec<u8> {
        match self {
            Self::Get(key) => format!("get {}\r\n", key_name(key)).into_bytes(),
            Self::Set(len) => storage(len, ""),
            Self::SetQuiet(len) => storage(len, " noreply"),
        }
    }

    /// What memcached answers.
    pub fn reply(self) -> Vec<u8> {
        match self {
            Self::Get(key) if key >= MISSING => b"END\r\n".to_vec(),
            Self::Get(key) => {
                let len = value_len(key);
                let mut reply = format!("VALUE {} 0 {len}\r\n", key_name(key)).into_bytes();
                reply.extend(data(key, len));
                reply.extend(b"\r\nEND\r\n");
                reply
            }
            Self::Set(_) => b"STORED\r\n".to_vec(),
            Self::SetQuiet(_) => Vec::new(),
        }
    }

    /// The first command of a stream, and its length, if it is whole.
    pub fn parse(stream: &[u8]) -> Option<(Self, usize)> {
        let line_len = stream.windows(2).position(|end| end == b"\r\n")? + 2;
        let line = std::str::from_utf8(&stream[..line_len - 2]).expect("a line of text");
        let words: Vec<&str> = line.split(' ').collect();
        let number = |word: &str| word.trim_matches(|c| c == 'k' || c == '_').parse().unwrap();
        let (command, data_len) = match words[0] {
            "get" => (Self::Get(number(words[1])), 0),
            "set" if words.len() == 5 => (Self::Set(number(words[4])), number(words[4]) + 2),
            "set" => (Self::SetQuiet(number(words[4])), number(words[4]) + 2),
            other => panic!("not a command: {other:?}"),
        };
        let len = line_len + usize::from(data_len);
        if stream.len() < len {
            return None;
        }
        assert_eq!(&stream[..len], command.bytes(), "a command arrives garbled");
        Some((command, len))
    }
}

fn key_name(key: u16) -> String {
    // Some keys are long, so that their requests are.
    let fill = if key % 7 == 3 { 200 } else { 0 };
    format!("k{key:05}{}", "_".repeat(fill))
}

fn value_len(key: u16) -> usize {
    usize::from(key % 300) * if key >= 600 { 40 } else { 1 }
}

fn storage(len: u16, option: &str) -> Vec<u8> {
    let mut bytes = format!("set k 0 0 {len}{option}\r\n").into_bytes();
    bytes.extend(data(len, len.into()));
    bytes.extend(b"\r\n");
    bytes
}

/// Bytes that are nowhere the same.
fn data(seed: u16, len: usize) -> impl Iterator<Item = u8> {
    let mut state = u32::from(seed) << 8 | 0x5a;
    (0..len).map(move |_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        b'a' + (state >> 24) as u8 % 26
    })
}

/// Replies in a stream: how many are whole, and what follows them.
#[derive(Default)]
pub struct Replies {
    rest: Vec<u8>,
}

impl Replies {
    /// Adds bytes, and returns how many replies have become whole, and of these how many have a value.
    pub fn add(&mut self, bytes: &[u8]) -> (u64, u64) {
        self.rest.extend(bytes);
        let (mut whole, mut values) = (0, 0);
        while let Some(line_len) = self.rest.windows(2).position(|end| end == b"\r\n") {
            let mut len = line_len + 2;
            let has_value = self.rest.starts_with(b"VALUE");
            if has_value {
                let line = std::str::from_utf8(&self.rest[..line_len]).expect("text");
                let size: usize = line.rsplit(' ').next().unwrap().parse().unwrap();
                len += size + 7;
            }
            if self.rest.len() < len {
                break;
            }
            self.rest.drain(..len);
            whole += 1;
            values += u64::from(has_value);
        }
        (whole, values)
    }
}
