//! Where parsers read from.

/// Bytes that can be read eight at a time.
pub trait Source {
    /// The eight bytes at `at`, little-endian, or `None` if one of them lies outside.
    fn word(&self, at: u64) -> Option<u64>;
}

impl Source for &[u8] {
    #[inline]
    fn word(&self, at: u64) -> Option<u64> {
        let at = usize::try_from(at).ok()?;
        let bytes = self.get(at..at.checked_add(8)?)?;
        Some(u64::from_le_bytes(bytes.try_into().ok()?))
    }
}

/// Bytes that a [`Window`] shows: no request line that is parsed and no datagram is longer.
pub const WINDOW: usize = 2048;
/// Readable bytes behind them, so that a word, or a block that is copied, may start at any byte.
pub const SLACK: usize = 64;

/// A buffer of fixed size that packet bytes are copied to. Positions wrap around, so that every
/// read is within bounds whatever the position, which the verifier sees without following it.
#[repr(C, align(64))]
pub struct Window {
    /// The bytes.
    pub bytes: [u8; WINDOW + SLACK],
}

impl Window {
    /// The eight bytes at `at` (modulo [`WINDOW`]), little-endian.
    #[inline(always)]
    #[must_use]
    pub fn word(&self, at: u64) -> u64 {
        let at = (at & (WINDOW as u64 - 1)) as usize;
        // SAFETY: `at` is below WINDOW, and SLACK is at least 8. BPF reads unaligned words, but
        // compiles `read_unaligned` to eight byte loads.
        unsafe {
            let word = self.bytes.as_ptr().add(at).cast::<u64>();
            #[cfg(target_arch = "bpf")]
            return *word;
            #[cfg(not(target_arch = "bpf"))]
            return word.read_unaligned();
        }
    }

    /// The byte at `at` (modulo [`WINDOW`]).
    #[inline(always)]
    #[must_use]
    pub fn byte(&self, at: u64) -> u8 {
        self.bytes[(at & (WINDOW as u64 - 1)) as usize]
    }
}

impl Source for &Window {
    #[inline(always)]
    fn word(&self, at: u64) -> Option<u64> {
        Some(Window::word(self, at))
    }
}

#[cfg(test)]
impl Window {
    /// A window that shows `bytes`, garbage behind them.
    pub(crate) fn showing(bytes: &[u8]) -> Box<Self> {
        let mut window = Box::new(Self {
            bytes: [0xa5; WINDOW + SLACK],
        });
        window.bytes[..bytes.len()].copy_from_slice(bytes);
        window
    }
}
