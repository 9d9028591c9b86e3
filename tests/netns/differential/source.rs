//! Where the stream's keys, values and numbers come from.

use fastrand::Rng;

/// What a value is made of when it is to be taken for protocol.
const HOSTILE: [&[u8]; 18] = [
    b"\r\n",
    b"\r",
    b"\n",
    b"\0",
    b"\0\0\0\0\0\0\0\0",
    b"END\r\n",
    b"\r\nEND\r\n",
    b"VALUE x 0 3\r\n",
    b"VALUE x 0 3\r\nabc\r\nEND\r\n",
    b"VA 2 f0\r\nab\r\n",
    b"HD\r\n",
    b"EN\r\n",
    b"STORED\r\n",
    b"set END 0 0 1\r\nX\r\n",
    b"flush_all\r\n",
    b"get END\r\n",
    b"\x80\x00\x00\x03\x00\x00\x00\x00\x00\x00\x00\x03\0\0\0\0\0\0\0\0\0\0\0\0END",
    b"\x81\x00\x00\x00\x04\x00\x00\x00",
];

/// Lengths of keys at which words and limits end.
const KEY_LENGTHS: [usize; 20] = [
    1, 2, 3, 4, 7, 8, 9, 12, 15, 16, 17, 23, 31, 32, 33, 64, 100, 200, 249, 250,
];

/// Keys that look like something else.
const KEY_WORDS: [&str; 8] = [
    "END",
    "VALUE",
    "noreply",
    "0",
    "k",
    "get",
    "Zm9v",
    "\u{fc}\u{f1}\u{ef}",
];

/// Keys that only the binary protocol, or base64, can name.
const BINARY_KEYS: [&[u8]; 6] = [
    b"with space",
    b"line\r\nend",
    b"\0",
    b"nul\0within",
    b" ",
    b"\xff\xfe\x00\x80binary",
];

/// Keys that are asked for rarely.
const COLD_KEYS: usize = 3_000;

/// How many unique numbers are remembered to be used.
const NUMBERS: usize = 16;

/// Keys, values and numbers, all from one seed.
pub struct Source {
    rng: Rng,
    hot: Vec<Vec<u8>>,
    noise: Vec<u8>,
    numbers: Vec<(Vec<u8>, u64)>,
}

impl Source {
    /// The source that grows from `seed`.
    pub fn new(seed: u64) -> Self {
        let mut rng = Rng::with_seed(seed);
        let mut hot: Vec<Vec<u8>> = KEY_LENGTHS
            .iter()
            .map(|&len| (0..len).map(|_| rng.u8(b'!'..=b'~')).collect())
            .collect();
        hot.extend(KEY_WORDS.iter().map(|word| word.as_bytes().to_vec()));
        // Nothing in a value ends like the answer to a sentinel.
        let noise = (0..16_384)
            .map(|_| rng.u8(..))
            .map(|b| if b == b'M' { b'm' } else { b });
        let noise = noise.collect();
        Self {
            rng,
            hot,
            noise,
            numbers: Vec::new(),
        }
    }

    /// A number below `n`.
    pub fn below(&mut self, n: usize) -> usize {
        self.rng.usize(..n)
    }

    /// Any number.
    pub fn number(&mut self) -> u64 {
        self.rng.u64(..)
    }

    /// Whether something happens that happens one time in `n`.
    pub fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    /// One of several.
    pub fn pick<'a, T: ?Sized>(&mut self, from: &[&'a T]) -> &'a T {
        from[self.below(from.len())]
    }

    /// Puts things into any order.
    pub fn shuffle<T>(&mut self, things: &mut [T]) {
        self.rng.shuffle(things);
    }

    /// All keys that are asked for often and that text can name.
    pub fn hot_keys(&self) -> &[Vec<u8>] {
        &self.hot
    }

    /// One of those.
    pub fn hot_key(&mut self) -> Vec<u8> {
        // The product of two numbers below one is small rather than large.
        let at = self.rng.f64() * self.rng.f64() * self.hot.len() as f64;
        self.hot[at as usize].clone()
    }

    /// A key that text can name.
    pub fn key(&mut self) -> Vec<u8> {
        if self.one_in(20) {
            format!("cold-{}", self.below(COLD_KEYS)).into_bytes()
        } else {
            self.hot_key()
        }
    }

    /// A key of any bytes.
    pub fn any_key(&mut self) -> Vec<u8> {
        if self.one_in(6) {
            self.pick(&BINARY_KEYS).to_vec()
        } else {
            self.key()
        }
    }

    /// A value of up to 5,000 bytes; most are short enough to be answered by the cache.
    pub fn value(&mut self) -> Vec<u8> {
        let limit = match self.below(40) {
            0..20 => 40,
            20..36 => 180,
            36..39 => 1_500,
            _ => 5_001,
        };
        let len = self.below(limit);
        match self.below(4) {
            0 => self.hostile(len),
            1 => self.below(1 << 40).to_string().into_bytes(),
            _ => {
                let from = self.below(self.noise.len() - len);
                self.noise[from..from + len].to_vec()
            }
        }
    }

    fn hostile(&mut self, len: usize) -> Vec<u8> {
        let mut value = Vec::new();
        while value.len() < len {
            value.extend(self.pick(&HOSTILE));
        }
        if self.one_in(2) {
            value.truncate(len);
        }
        value
    }

    /// Flags as text.
    pub fn flags(&mut self) -> String {
        let flags = match self.below(4) {
            0 => self.rng.u32(..),
            1 => self.rng.u32(..1000),
            _ => 0,
        };
        flags.to_string()
    }

    /// When an item expires: never, much later, or at once.
    pub fn expiry(&mut self) -> &'static str {
        match self.below(60) {
            0 => "-1",
            1..4 => "1000000",
            4..6 => "4102444800",
            _ => "0",
        }
    }

    /// The same in the binary protocol.
    pub fn expiry_number(&mut self) -> u32 {
        match self.expiry() {
            // A point of time before memcached was started.
            "-1" => 100_000_000,
            other => other.parse().unwrap_or(0),
        }
    }

    /// Remembers the unique number of an item.
    pub fn learn(&mut self, key: &[u8], number: u64) {
        if self.numbers.len() == NUMBERS {
            self.numbers.remove(0);
        }
        self.numbers.push((key.to_vec(), number));
    }

    /// A key and the unique number that it had lately, or another one.
    pub fn numbered(&mut self) -> (Vec<u8>, u64) {
        if self.numbers.is_empty() || self.one_in(6) {
            let number = self.rng.u64(1..1000);
            return (self.hot_key(), number);
        }
        let at = self.below(self.numbers.len());
        self.numbers[at].clone()
    }
}
