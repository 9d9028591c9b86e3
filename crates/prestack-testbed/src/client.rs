//! A plain, blocking memcached client.

pub(crate) mod tcp;
pub(crate) mod udp;
