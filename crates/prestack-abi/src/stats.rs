//! What the datapath counts, per CPU.

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// An element of the `STATS` map: one per CPU, added up by user space.
        #[repr(C)]
        #[derive(Clone, Copy, Default, Debug, PartialEq, Eq)]
        pub struct Stats {
            $($(#[$doc])* pub $name: u64,)*
        }

        impl Stats {
            /// Adds the counters of another CPU.
            pub fn add(&mut self, other: &Self) {
                $(self.$name += other.$name;)*
            }

            /// Every counter with its name, in the order of declaration.
            pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> {
                [$((stringify!($name), self.$name),)*].into_iter()
            }
        }
    };
}

counters! {
    /// UDP GETs answered by the cache.
    udp_hits,
    /// UDP GETs let through: a key was not in the cache or is fetched anew, or the request may not be
    /// answered.
    udp_misses,
    /// UDP datagrams to a backend let through for any other reason.
    udp_passed,
    /// GETs on TCP answered by the cache.
    tcp_hits,
    /// GETs on TCP let through because a key was not in the cache, on connections on which they may be answered.
    tcp_misses,
    /// Answers on TCP that their clients have acknowledged.
    tcp_received,
    /// Answers on TCP that were sent again, for the client had not got them, and acknowledgements in their place.
    tcp_resent,
    /// TCP segments with data to a backend that were let through.
    tcp_passed,
    /// GETs over UDP that passed while the datapath stood aside, by the first bytes of datagrams.
    aside_udp_gets,
    /// The same of segments.
    aside_tcp_gets,
    /// What else passed meanwhile: datagrams, and segments with data, to ports of backends.
    aside_others,
    /// Entries stored.
    fills,
    /// GET replies that were not stored: no ticket, or one that a write had cancelled.
    fills_refused,
    /// GET replies that were not stored as they would have evicted an entry, and their key was not missed
    /// of late.
    fills_deferred,
    /// Writes that invalidated their key.
    invalidations,
    /// Times a backend's whole cache was emptied because a packet was not understood.
    forgets,
    /// Live entries that made room for another one.
    evictions,
    /// GETs of a cached key let through to fetch it anew before it is too old.
    refreshes,
    /// GETs not served because their source is not in the allow list.
    not_allowed,
    /// GETs not served because their frame is not for this host, or their source is not one that is
    /// served where it arrived.
    wrong_link,
    /// GETs not served because a reply could be turned against another host: from a reserved port or
    /// a memcached's, or to or from a group address.
    spoof_prone,
    /// GETs not served because their source exceeded the rate limit.
    rate_limited,
    /// GETs not served because a checksum did not hold.
    bad_checksums,
    /// GETs not served because a writer changed the entry under the reader.
    races,
    /// Times a TCP flow's requests were not understood to the byte: its data empties the cache until they
    /// are again.
    doubted_requests,
    /// Times it was not certain to which command of a TCP flow a reply belongs.
    doubted_replies,
    /// TCP flows in doubt that are certain again.
    regained,
    /// TCP flows for which there was no room: all flows of their set are established.
    flows_refused,
    /// TCP connections on which a GET was answered, so that they are translated until they close.
    flows_translated,
    /// Half-open TCP flows that made room for another one.
    flows_displaced,
    /// TCP flows taken up from their first byte on without their handshake.
    flows_adopted,
    /// TCP segments that came out of order and were parsed when what was missing had come.
    holes_closed,
    /// Unacknowledged TCP segments that were sent again and parsed again.
    reparsed,
    /// TCP segments that cannot reach memcached: outside the window, or of no connection.
    strays,
    /// Requests forgotten unanswered because too many were under way.
    requests_lost,
}
