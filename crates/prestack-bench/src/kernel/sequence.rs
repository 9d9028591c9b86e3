//! The sequence of requests that the BPF program makes (crates/prestack-bench-ebpf).

use crate::dataset::mix;

/// What the program adds to its state from one request to the next.
const STEP: u64 = 0x9e37_79b9_7f4a_7c15;
/// What it adds to that from one key of a request to the next.
const KEY_STEP: u64 = 0xd1b5_4a32_d192_ed03;

/// Keys that are asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Keys {
    /// Number of the first one.
    pub(super) first: u32,
    pub(super) count: u32,
}

impl Keys {
    /// The numbers of the `keys` keys and the id of the `n`-th request since the program was loaded.
    pub(super) fn request(self, n: u64, keys: usize) -> (Vec<u32>, u16) {
        let state = n.wrapping_mul(STEP);
        let key = |i: u64| {
            let random = mix(state.wrapping_add(i.wrapping_mul(KEY_STEP)));
            self.first + (((random >> 32) * u64::from(self.count)) >> 32) as u32
        };
        // The program stores the id's bytes in the order of the machine.
        (
            (0..keys as u64).map(key).collect(),
            (state as u16).swap_bytes(),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_uniform_and_ids_recur_late() {
        let keys = Keys {
            first: 50,
            count: 100,
        };
        let (mut seen, mut ids) = ([0; 100], vec![false; 1 << 16]);
        for n in 0..1 << 16 {
            let (numbers, id) = keys.request(n, 2);
            for number in numbers {
                seen[(number - 50) as usize] += 1;
            }
            assert!(!std::mem::replace(&mut ids[usize::from(id)], true));
        }
        assert!(
            seen.iter().all(|count| (1_100..1_520).contains(count)),
            "{seen:?}"
        );
    }
}
