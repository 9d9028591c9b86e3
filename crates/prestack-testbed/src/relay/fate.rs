//! What becomes of a frame: decided by a seed and by how many came before it, not by time.

use std::time::Duration;

use fastrand::Rng;

/// A frame held back is overtaken by at most so many others.
const OVERTAKEN_BY: u64 = 8;

/// What a direction of the relay does to TCP segments. Frames of anything else go through as they come.
#[derive(Clone, Copy, Debug, Default)]
pub struct Disturbance {
    /// Share of the frames that are lost.
    pub lose: f64,
    /// Share of those left that are held back until others have overtaken them.
    pub reorder: f64,
    /// Share of those left that go out twice.
    pub duplicate: f64,
    /// Share of those left in which two 16-bit words of the payload change places: no checksum tells.
    pub alter: f64,
    /// How long every frame takes.
    pub delay: Duration,
    /// Whether every frame gets a VLAN tag of number 0, which tells a priority: the receiver's stack needs
    /// no VLAN device to take it.
    pub has_tags: bool,
}

/// What becomes of one frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Fate {
    pub(super) is_lost: bool,
    /// How many frames overtake it.
    pub(super) overtaken_by: Option<u64>,
    /// How many frames overtake its copy.
    pub(super) copy_overtaken_by: Option<u64>,
    pub(super) is_altered: bool,
}

/// The fates of the frames of one direction.
pub(super) struct Fates {
    disturbance: Disturbance,
    random: Rng,
}

impl Fates {
    pub(super) fn new(disturbance: Disturbance, seed: u64) -> Self {
        Self {
            disturbance,
            random: Rng::with_seed(seed),
        }
    }

    pub(super) fn next(&mut self) -> Fate {
        // As many draws for every frame, so that one share does not change what another decides.
        let [lose, reorder, duplicate, alter] = [(); 4].map(|()| self.random.f64());
        let [frames, copy_frames] = [(); 2].map(|()| self.random.u64(1..=OVERTAKEN_BY));
        let wanted = &self.disturbance;
        Fate {
            is_lost: lose < wanted.lose,
            overtaken_by: (reorder < wanted.reorder).then_some(frames),
            copy_overtaken_by: (duplicate < wanted.duplicate).then_some(copy_frames - 1),
            is_altered: alter < wanted.alter,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fates(disturbance: Disturbance) -> Vec<Fate> {
        let mut fates = Fates::new(disturbance, 7);
        (0..10_000).map(|_| fates.next()).collect()
    }

    #[test]
    fn shares_are_kept() {
        let fates = fates(Disturbance {
            lose: 0.05,
            reorder: 0.2,
            duplicate: 0.02,
            ..Disturbance::default()
        });
        let count = |is: fn(&Fate) -> bool| fates.iter().filter(|fate| is(fate)).count();
        assert!((450..550).contains(&count(|fate| fate.is_lost)));
        assert!((1_900..2_100).contains(&count(|fate| fate.overtaken_by.is_some())));
        assert!((150..250).contains(&count(|fate| fate.copy_overtaken_by.is_some())));
        assert_eq!(count(|fate| fate.is_altered), 0);
    }

    #[test]
    fn a_share_decides_its_own_alone() {
        let lossy = Disturbance {
            lose: 0.05,
            ..Disturbance::default()
        };
        let both = Disturbance {
            reorder: 0.5,
            ..lossy
        };
        let lost = |disturbance| -> Vec<bool> {
            fates(disturbance).iter().map(|fate| fate.is_lost).collect()
        };
        assert_eq!(lost(lossy), lost(both));
        assert_eq!(fates(both), fates(both));
    }
}
