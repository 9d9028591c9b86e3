//! The express ways decide as the general steps do.
//!
//! The same packets go through two datapaths. To one an unrelated door was added, which comes first: the
//! express ways look at the first alone, so that the general steps decide everything there.

mod both;
mod datagrams;
mod forms;
mod races;
mod segments;
mod series;
mod streams;
