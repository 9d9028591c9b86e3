//! Keys as meta commands write them.

use base64::prelude::{BASE64_STANDARD, Engine as _};

/// Bytes in base64, as memcached reads them with the flag `b`: the standard alphabet, padded (RFC 4648, section 4).
pub fn base64(bytes: impl AsRef<[u8]>) -> String {
    BASE64_STANDARD.encode(bytes)
}
