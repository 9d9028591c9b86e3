//! The forms of GET that are counted: which of them the cache answers.

use std::fmt;

use super::command::Datagram;
use super::source::Source;
use super::{binary, meta, text};

/// A way to ask for one or more items.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// `get` of one key.
    Get,
    /// `get` of a few keys.
    MultiGet,
    /// `gets` of one key.
    Gets,
    /// `gets` of a few keys.
    MultiGets,
    /// `mg` for the value alone.
    Meta,
    /// `mg` with every flag that the cache may know the answer to.
    MetaFull,
    /// `mg` with the key in base64.
    MetaBase64,
    /// The binary protocol's GET.
    Binary,
    /// GETQ.
    BinaryQuiet,
    /// GETK.
    BinaryKey,
    /// GETKQ.
    BinaryKeyQuiet,
}

/// All of them.
pub const FORMS: [Form; 11] = [
    Form::Get,
    Form::MultiGet,
    Form::Gets,
    Form::MultiGets,
    Form::Meta,
    Form::MetaFull,
    Form::MetaBase64,
    Form::Binary,
    Form::BinaryQuiet,
    Form::BinaryKey,
    Form::BinaryKeyQuiet,
];

impl Form {
    /// Whether it is one of the binary protocol.
    pub fn is_binary(self) -> bool {
        matches!(
            self,
            Self::Binary | Self::BinaryQuiet | Self::BinaryKey | Self::BinaryKeyQuiet
        )
    }

    /// Whether it is answered only if the item is there.
    pub fn is_quiet(self) -> bool {
        matches!(self, Self::BinaryQuiet | Self::BinaryKeyQuiet)
    }

    /// A GET of this form.
    pub fn ask(self, source: &mut Source) -> Datagram {
        match self {
            Self::Get => text::plain_get(source, "get"),
            Self::MultiGet => text::plain_multi_get(source, "get", 3),
            Self::Gets => text::plain_get(source, "gets"),
            Self::MultiGets => text::plain_multi_get(source, "gets", 3),
            Self::Meta => meta::plain_get(source, &["v"]),
            Self::MetaFull => meta::plain_get(source, &["v", "k", "f", "s", "c", "Oopaque"]),
            Self::MetaBase64 => meta::plain_get(source, &["v", "b", "k"]),
            Self::Binary => binary::plain_get(source, binary::GETS[0]),
            Self::BinaryQuiet => binary::plain_get(source, binary::GETS[1]),
            Self::BinaryKey => binary::plain_get(source, binary::GETS[2]),
            Self::BinaryKeyQuiet => binary::plain_get(source, binary::GETS[3]),
        }
    }
}

/// How many items were found by GETs of each form, and how many of these the cache has answered.
#[derive(Default)]
pub struct Tally([(u64, u64); FORMS.len()]);

impl Tally {
    /// Counts items that the bare memcached has found, and those that the one behind prestack had
    /// to look for.
    pub fn count(&mut self, form: Form, found: u64, looked_for: u64) {
        let (all, served) = &mut self.0[form as usize];
        *all += found;
        *served += found.saturating_sub(looked_for);
    }

    /// Fails unless of the items asked for in each of these forms at least a share of `least` came from
    /// the cache.
    pub fn check(&self, forms: &[Form], least: f64) {
        for form in forms {
            let (found, served) = self.0[*form as usize];
            assert!(
                served as f64 > least * found as f64,
                "only {served} of {found} items asked for by {form:?} came from the cache\n{self}"
            );
        }
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (form, (found, served)) in FORMS.iter().zip(self.0) {
            let share = 100.0 * served as f64 / found.max(1) as f64;
            writeln!(
                f,
                "{form:<15?} {found:>9} found {served:>9} from the cache {share:5.1} %"
            )?;
        }
        Ok(())
    }
}
