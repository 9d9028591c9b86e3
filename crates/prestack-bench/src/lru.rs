//! The cache that others are compared with: it forgets what was asked for longest ago, and of its bytes none
//! are lost.

/// Items below a number, in the order in which they were last asked for.
pub(crate) struct Lru {
    /// Bytes left.
    free: u64,
    /// Bytes of each item.
    sizes: Vec<u32>,
    /// Of each item that is there the ones asked for before and after it. One more element closes the ring:
    /// after it comes the oldest, and before it the newest.
    links: Vec<Link>,
    present: Vec<bool>,
}

#[derive(Clone, Copy)]
struct Link {
    older: u32,
    newer: u32,
}

impl Lru {
    /// A cache of so many bytes for items of these sizes.
    pub(crate) fn new(bytes: u64, sizes: Vec<u32>) -> Self {
        let ends = sizes.len() as u32;
        let alone = Link {
            older: ends,
            newer: ends,
        };
        Self {
            free: bytes,
            links: vec![alone; sizes.len() + 1],
            present: vec![false; sizes.len()],
            sizes,
        }
    }

    /// Asks for an item: whether it was there. It is now, if it is not larger than everything.
    pub(crate) fn get(&mut self, item: u32) -> bool {
        let was_there = self.present[item as usize];
        if was_there {
            self.unlink(item);
        } else {
            let size = u64::from(self.sizes[item as usize]);
            while self.free < size {
                let oldest = self.links[self.sizes.len()].newer;
                if oldest == self.sizes.len() as u32 {
                    return false;
                }
                self.unlink(oldest);
                self.present[oldest as usize] = false;
                self.free += u64::from(self.sizes[oldest as usize]);
            }
            self.free -= size;
            self.present[item as usize] = true;
        }
        let ends = self.sizes.len() as u32;
        let newest = self.links[ends as usize].older;
        self.links[item as usize] = Link {
            older: newest,
            newer: ends,
        };
        self.links[newest as usize].newer = item;
        self.links[ends as usize].older = item;
        was_there
    }

    fn unlink(&mut self, item: u32) {
        let Link { older, newer } = self.links[item as usize];
        self.links[older as usize].newer = newer;
        self.links[newer as usize].older = older;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The hits of the obvious way: a list in order.
    fn slow(bytes: u64, sizes: &[u32], asked: &[u32]) -> Vec<bool> {
        let mut list: Vec<u32> = Vec::new();
        let total = |list: &[u32]| {
            list.iter()
                .map(|&n| u64::from(sizes[n as usize]))
                .sum::<u64>()
        };
        let ask = |&item: &u32| {
            let at = list.iter().position(|&n| n == item);
            at.map(|at| list.remove(at));
            list.push(item);
            while total(&list) > bytes {
                list.remove(0);
            }
            at.is_some()
        };
        asked.iter().map(ask).collect()
    }

    #[test]
    fn it_forgets_the_oldest() {
        let mix = |i: u64| crate::dataset::mix(i);
        let sizes: Vec<u32> = (0..50).map(|i| 1 + (mix(i) % 20) as u32).collect();
        let asked: Vec<u32> = (0..5_000).map(|i| (mix(i) % 50) as u32).collect();
        for bytes in [20, 100, 300, 1_000] {
            let mut lru = Lru::new(bytes, sizes.clone());
            let hits: Vec<bool> = asked.iter().map(|&item| lru.get(item)).collect();
            assert_eq!(hits, slow(bytes, &sizes, &asked), "{bytes} bytes");
        }
    }
}
