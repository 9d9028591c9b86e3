//! What is sent when.

use super::command::Datagram;
use super::forms::{FORMS, Form};
use super::source::Source;
use super::{binary, meta, odd, text};

/// Longest request in calm stretches: it needs no fragments and no second segment, and what it stores
/// is answered by one datagram.
const CALM_REQUEST: usize = 1_200;

/// A while in which commands of some kinds are sent: where everything is sent at any time, hardly
/// anything stays in the cache long enough to be served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stretch {
    /// Text GETs over UDP, and a few writes that are answered.
    Text,
    /// GETs of all protocols over UDP, and a few writes that are answered.
    Calm,
    /// All good commands, also quiet ones and over TCP.
    Busy,
    /// Anything.
    Wild,
}

impl Stretch {
    /// One of them, where so much of the time since prestack was started is over. Requests that may
    /// never be answered are remembered for half a minute, and while many are, nothing is learnt: so
    /// the wildest stretches come last.
    pub fn any(source: &mut Source, progress: f64) -> Self {
        let stretches: &[&Self] = match progress {
            ..0.1 => &[&Self::Text],
            ..0.8 => &[&Self::Text, &Self::Calm, &Self::Calm, &Self::Busy],
            _ => &[&Self::Calm, &Self::Busy, &Self::Wild],
        };
        *source.pick(stretches)
    }

    /// About how many commands it takes, where a calm one takes so many.
    pub fn length(self, calm: u64) -> u64 {
        match self {
            Self::Text | Self::Calm => calm,
            Self::Busy | Self::Wild => 500,
        }
    }

    /// One in so many times a TCP connection is used.
    pub fn datagrams_per_segment(self) -> usize {
        match self {
            Self::Text => 200,
            Self::Calm => 50,
            Self::Busy | Self::Wild => 3,
        }
    }

    /// Whether nothing is sent that may empty the cache.
    pub fn is_calm(self) -> bool {
        matches!(self, Self::Text | Self::Calm)
    }

    /// The forms of GET of which hits are counted.
    pub fn counted(self) -> &'static [Form] {
        match self {
            Self::Text => &FORMS[..2],
            Self::Calm => &FORMS,
            Self::Busy | Self::Wild => &[],
        }
    }

    /// One datagram.
    pub fn datagram(self, source: &mut Source) -> Datagram {
        match self {
            Self::Text | Self::Calm => loop {
                let datagram = self.calm_datagram(source);
                if datagram.payload.len() <= CALM_REQUEST {
                    return datagram;
                }
            },
            Self::Busy => good_datagram(source),
            Self::Wild => match source.below(16) {
                0..3 => odd::datagram(source),
                3 if source.one_in(60) => Datagram::new(flush(source)),
                _ => good_datagram(source),
            },
        }
    }

    fn calm_datagram(self, source: &mut Source) -> Datagram {
        let is_write = source.one_in(50);
        match (self, source.below(3)) {
            (Self::Text, _) if is_write => Datagram::new(text::write(source, true)),
            (Self::Text, _) => {
                let keys = 1 + source.below(2) * source.below(6);
                text::plain_multi_get(source, "get", keys)
            }
            (_, 0) if is_write => Datagram::new(binary::write(source, true)),
            (_, 1) if is_write => Datagram::new(meta::write(source, true)),
            _ if is_write => Datagram::new(text::write(source, true)),
            (_, 0) => Datagram::new(binary::read(source)),
            (_, 1) => meta::read(source, true),
            _ => text::read(source, true),
        }
    }

    /// What is sent over a text connection at once.
    pub fn text_segment(self, source: &mut Source) -> Vec<u8> {
        if self.is_calm() {
            return loop {
                let write = text::write(source, true);
                if write.len() <= CALM_REQUEST {
                    break write;
                }
            };
        }
        // A GET that is refused drops the answers to what came before it, if they have not been sent.
        if self == Self::Wild && source.one_in(8) {
            return odd::line(source);
        }
        let commands = [1, 1, 2 + source.below(6)][source.below(3)];
        // A number is counted down in place only while no answer with it is still to be sent: that
        // depends on how much memcached has read at once.
        let writes = source.one_in(2);
        let mut segment = Vec::new();
        for _ in 0..commands {
            segment.extend(match source.below(20) {
                1 if self == Self::Wild && source.one_in(30) => text::flush(source),
                0..6 if writes => meta::write(source, false),
                _ if writes => text::write(source, false),
                0..8 => meta::read(source, false).payload,
                _ => text::read(source, false).payload,
            });
        }
        segment
    }

    /// What is sent over a binary connection at once.
    pub fn binary_segment(self, source: &mut Source) -> Vec<u8> {
        let commands = [1, 1, 2 + source.below(6)][source.below(3)];
        let writes = source.one_in(2);
        let mut segment = Vec::new();
        for _ in 0..commands {
            segment.extend(match source.below(600) {
                0 if self == Self::Wild => binary::flush(source),
                _ if writes => binary::write(source, false),
                _ => binary::read(source),
            });
        }
        segment
    }
}

fn good_datagram(source: &mut Source) -> Datagram {
    let is_write = source.one_in(6);
    match source.below(3) {
        0 if is_write => Datagram::new(binary::write(source, false)),
        1 if is_write => Datagram::new(meta::write(source, false)),
        _ if is_write => Datagram::new(text::write(source, false)),
        0 => Datagram::new(binary::read(source)),
        1 => meta::read(source, false),
        _ => text::read(source, false),
    }
}

fn flush(source: &mut Source) -> Vec<u8> {
    if source.one_in(2) {
        binary::flush(source)
    } else {
        text::flush(source)
    }
}
