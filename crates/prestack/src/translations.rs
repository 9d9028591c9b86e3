//! Connections on which requests were answered: they break if their segments are not translated.

use std::fmt;

use aya::{
    Pod,
    maps::{Array, Map, MapData, MapError},
};
use prestack_abi::{flow::FlowKey, names, translated::Translated};

use prestack_translate::Translation;

use crate::{
    maps::{self, LOCKED, MapIds, MapsError, fails},
    receipts::Waiting,
};

#[derive(Clone, Copy)]
#[repr(transparent)]
struct Element(Translated);

// SAFETY: made of integers.
unsafe impl Pod for Element {}

/// The elements of `TRANSLATIONS`, those of flows that are known.
pub struct Translations {
    ids: MapIds,
    elements: Array<MapData, Element>,
}

impl fmt::Debug for Translations {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "Translations({})", self.ids.translations)
    }
}

impl Translations {
    /// Opens `TRANSLATIONS`.
    ///
    /// # Errors
    /// It is gone, or this process may not use it.
    pub fn open(ids: &MapIds) -> Result<Self, MapsError> {
        let map = Map::Array(maps::open(names::TRANSLATIONS, ids.translations)?);
        let elements = Array::try_from(map).map_err(fails::<MapError>(names::TRANSLATIONS))?;
        Ok(Self {
            ids: *ids,
            elements,
        })
    }

    /// How many connections are translated and open.
    ///
    /// # Errors
    /// The maps are gone, or this process may not use them.
    pub fn count(&self) -> Result<usize, MapsError> {
        let mut count = 0;
        self.each(|_, translated| count += usize::from(translated.over_at == 0))?;
        Ok(count)
    }

    /// How many are closed, and translated for what may still be sent again at `now`, a coarse monotonic time
    /// in ns.
    ///
    /// # Errors
    /// As for [`count`](Self::count).
    pub fn lingering(&self, now: u64) -> Result<usize, MapsError> {
        let mut count = 0;
        self.each(|_, translated| count += usize::from(translated.over_at > now))?;
        Ok(count)
    }

    /// Whether some are translated, open or closed, at `now`, a coarse monotonic time in ns.
    ///
    /// # Errors
    /// As for [`count`](Self::count).
    pub fn has_some(&self, now: u64) -> Result<bool, MapsError> {
        for place in maps::flow_places(&self.ids)? {
            let translated = self.get(place)?;
            let is_over = translated.over_at != 0 && translated.over_at <= now;
            if translated.is_translated() && !is_over {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The ends of those that are translated and open.
    ///
    /// # Errors
    /// As for [`count`](Self::count).
    pub fn keys(&self) -> Result<Vec<FlowKey>, MapsError> {
        self.keys_of(|translated| translated.over_at == 0)
    }

    /// The ends of those that are closed, and still translated at `now`, a coarse monotonic time in ns.
    ///
    /// # Errors
    /// As for [`count`](Self::count).
    pub fn closed_keys(&self, now: u64) -> Result<Vec<FlowKey>, MapsError> {
        self.keys_of(|translated| translated.over_at > now)
    }

    fn keys_of(&self, is_meant: impl Fn(&Translated) -> bool) -> Result<Vec<FlowKey>, MapsError> {
        let mut places = Vec::new();
        self.each(|place, translated| {
            if is_meant(translated) {
                places.push(place);
            }
        })?;
        let key = |place| Ok(maps::flow(&self.ids, place)?.key);
        places.into_iter().map(key).collect()
    }

    /// The open ones whose last answer was sent again, and is not acknowledged.
    ///
    /// # Errors
    /// As for [`count`](Self::count).
    pub fn waiting(&self) -> Result<Vec<Waiting>, MapsError> {
        let mut found = Vec::new();
        self.each(|place, translated| {
            let translation = translated.translation;
            let is_lacking = translation.is_unacknowledged() && translation.resends != 0;
            if translated.over_at == 0 && is_lacking {
                found.push((place, translation));
            }
        })?;
        let waiting = |(place, translation): (u32, Translation)| {
            Ok(Waiting {
                key: maps::flow(&self.ids, place)?.key,
                answer_end: translation.answer_end(),
                got: translation.got,
                resends: translation.resends,
                is_first: translation.given == translation.answer_len,
            })
        };
        found.into_iter().map(waiting).collect()
    }

    /// Looks at those that are translated, the closed ones included, and their places.
    fn each(&self, mut look: impl FnMut(u32, &Translated)) -> Result<(), MapsError> {
        for place in maps::flow_places(&self.ids)? {
            let translated = self.get(place)?;
            if translated.is_translated() {
                look(place, &translated);
            }
        }
        Ok(())
    }

    fn get(&self, place: u32) -> Result<Translated, MapsError> {
        let element = self.elements.get(&place, LOCKED);
        let Element(translated) = element.map_err(fails::<MapError>(names::TRANSLATIONS))?;
        Ok(translated)
    }
}
