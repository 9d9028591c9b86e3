//! The sequence of requests that the BPF program makes (crates/prestack-bench-ebpf).

use crate::dataset::mix;

/// What the program adds to its state from one request to the next.
const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// Keys that are asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Keys {
    /// Number of the first one.
    pub(super) first: u32,
    pub(super) count: u32,
}

impl Keys {
    /// Key number and id of the `n`-th request since the program was loaded.
    pub(super) fn request(self, n: u64) -> (u32, u16) {
        let state = n.wrapping_mul(STEP);
        let key = ((mix(state) >> 32) * u64::from(self.count)) >> 32;
        // The program stores the id's bytes in the order of the machine.
        (self.first + key as u32, (state as u16).swap_bytes())
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
            let (key, id) = keys.request(n);
            seen[(key - 50) as usize] += 1;
            assert!(!std::mem::replace(&mut ids[usize::from(id)], true));
        }
        assert!(
            seen.iter().all(|count| (500..820).contains(count)),
            "{seen:?}"
        );
    }
}
