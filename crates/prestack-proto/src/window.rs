//! Where parsers read from.

use crate::verifier::opaque;

/// Bytes that can be read eight at a time.
pub trait Source {
    /// The eight bytes at `at`, little-endian, or `None` if one of them lies outside.
    fn word(&self, at: u64) -> Option<u64>;

    /// See [`verifier::forgotten`](crate::verifier::forgotten).
    #[inline(always)]
    fn forgotten(&self, value: u64) -> u64 {
        value
    }
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
pub const WINDOW: usize = PERIOD - LEAD;
/// Readable bytes before the first position, so that a key can be read backwards from its end.
pub const LEAD: usize = 8;
/// Positions wrap around after this many bytes (a power of two).
const PERIOD: usize = 2048;
/// Readable bytes behind them, so that a word, or a block that is copied, may start at any byte.
pub const SLACK: usize = 64;

/// A buffer of fixed size that packet bytes are copied to. Positions wrap around, so that every
/// read is within bounds whatever the position, which the verifier sees without following it.
#[repr(C, align(8))]
pub struct Window {
    /// The bytes; position 0 is behind the first [`LEAD`].
    pub bytes: [u8; LEAD + WINDOW + SLACK],
    /// Always 0, which the verifier does not know.
    pub zero: u64,
}

impl Window {
    /// A position within bounds. Opaque: where the compiler knows the bounds it would leave out the
    /// mask, which the verifier of Linux 6.1 needs.
    #[inline(always)]
    fn place(at: u64) -> usize {
        (opaque(at.wrapping_add(LEAD as u64)) & (PERIOD as u64 - 1)) as usize
    }

    /// Where the bytes go: at most [`WINDOW`].
    #[inline(always)]
    pub fn start(&mut self) -> *mut u8 {
        self.bytes[LEAD..].as_mut_ptr()
    }

    /// The length (1 to [`WINDOW`]) of what is loaded to or stored from a window, bounded in the way
    /// that the verifier of Linux 6.1 wants for a helper's argument: never 0.
    #[inline(always)]
    #[must_use]
    pub fn size(len: u64) -> u32 {
        ((opaque(len.wrapping_sub(1)) & (PERIOD as u64 - 1)) + 1) as u32
    }

    /// The eight bytes at `at` (modulo `PERIOD`), little-endian.
    #[inline(always)]
    #[must_use]
    pub fn word(&self, at: u64) -> u64 {
        let at = Self::place(at);
        // SAFETY: the place is below PERIOD, and SLACK is at least 8. BPF reads unaligned words, but
        // compiles `read_unaligned` to eight byte loads.
        unsafe {
            let word = self.bytes.as_ptr().add(at).cast::<u64>();
            #[cfg(target_arch = "bpf")]
            return *word;
            #[cfg(not(target_arch = "bpf"))]
            return word.read_unaligned();
        }
    }

    /// Writes eight bytes at `at` (modulo `PERIOD`), little-endian.
    #[inline(always)]
    pub fn set_word(&mut self, at: u64, word: u64) {
        let at = Self::place(at);
        // SAFETY: as in `word`.
        unsafe {
            let place = self.bytes.as_mut_ptr().add(at).cast::<u64>();
            #[cfg(target_arch = "bpf")]
            place.write(word);
            #[cfg(not(target_arch = "bpf"))]
            place.write_unaligned(word);
        }
    }

    /// The byte at `at` (modulo `PERIOD`).
    #[inline(always)]
    #[must_use]
    pub fn byte(&self, at: u64) -> u8 {
        self.bytes[Self::place(at)]
    }
}

impl Source for Window {
    #[inline(always)]
    fn word(&self, at: u64) -> Option<u64> {
        Some(Window::word(self, at))
    }

    #[inline(always)]
    fn forgotten(&self, value: u64) -> u64 {
        crate::verifier::forgotten(value, self.zero)
    }
}

#[cfg(test)]
impl Window {
    /// A window that shows `bytes`, garbage behind them.
    pub(crate) fn showing(bytes: &[u8]) -> Box<Self> {
        let mut window = Box::new(Self {
            bytes: [0xa5; LEAD + WINDOW + SLACK],
            zero: 0,
        });
        window.bytes[LEAD..LEAD + bytes.len()].copy_from_slice(bytes);
        window
    }
}
