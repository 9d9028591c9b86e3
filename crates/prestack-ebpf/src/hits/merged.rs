//! Segments that the host has put together of several before XDP has seen them (GRO, in generic mode). An answer in the
//! place of one would be taken apart again, with a wrong checksum, so none is given.
//!
//! An answer that was lost is sent again all the same: a client whose timer has run out sends one segment at a time, and
//! where partial checksums have another reason its connection would hang.

use prestack_abi::config::Config;
use prestack_proto::checksum::fold;

/// Whether the checksum field has a partial checksum that is all right: the sum of the pseudo header alone, `pseudo`
/// before it is folded, as a stack on this host leaves it.
#[inline(always)]
pub fn is_partial_sum(config: &Config, field: u16, pseudo: u64) -> bool {
    field == fold(pseudo) && config.whole_sums == 0
}
