//! Decimal numbers.

use crate::window::Window;

/// The number written in `len` digits at `at`; `None` unless there are 1 to 8 digits and nothing
/// else.
#[inline(always)]
pub fn decimal(window: &Window, at: u64, len: u64) -> Option<u64> {
    if len == 0 || len > 8 {
        return None;
    }
    let word = window.word(at);
    let mut value = 0;
    for i in 0..8 {
        if i >= len {
            break;
        }
        let digit = ((word >> (8 * i)) & 0xff).wrapping_sub(u64::from(b'0'));
        if digit > 9 {
            return None;
        }
        value = value * 10 + digit;
    }
    Some(value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn agrees_with_std(text in "[0-9]{0,10}|[0-9 /:a-]{1,8}") {
            let window = Window::showing(text.as_bytes());
            let expected = (text.len() <= 8 && text.bytes().all(|b| b.is_ascii_digit()))
                .then(|| text.parse().ok())
                .flatten();
            prop_assert_eq!(decimal(&window, 0, text.len() as u64), expected);
        }
    }
}
