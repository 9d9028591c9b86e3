//! What the translation of a number does to a checksum.

use prestack_proto::checksum::fold;

/// What is to be added to a one's-complement sum (of the words as they lie in a packet) when a field of four
/// bytes, in network byte order, goes from `old` to `new`, both in host byte order (RFC 1624). Differences
/// are added like the sums themselves, and folded at the end.
#[inline(always)]
#[must_use]
pub const fn difference(old: u32, new: u32) -> u64 {
    (!old.to_be()) as u64 + new.to_be() as u64
}

/// The checksum that was `checksum` before, as it lies in the packet, after this difference.
#[inline(always)]
#[must_use]
pub const fn apply(checksum: u16, difference: u64) -> u16 {
    !fold(!checksum as u64 + difference)
}

#[cfg(test)]
mod tests {
    use super::*;
    use prestack_proto::checksum::sum;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn is_what_summing_again_gives(mut bytes: [u8; 40], at in 0usize..8, new: [u32; 2]) {
            let checksum = !fold(sum(&bytes));
            let mut total = 0;
            for (i, new) in new.into_iter().enumerate() {
                let place = &mut bytes[at / 4 * 16 + 4 * i..][..4];
                let old = u32::from_be_bytes((&*place).try_into().unwrap());
                total += difference(old, new);
                place.copy_from_slice(&new.to_be_bytes());
            }
            // 0 and its complement are the same number.
            let (changed, again) = (apply(checksum, total), !fold(sum(&bytes)));
            prop_assert!(changed == again || (changed | again == 0xffff && changed & again == 0));
        }
    }
}
