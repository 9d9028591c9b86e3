//! Answers that are longer than what is kept with a connection, and how they are sent again.

use prestack_tests::kernel;

use super::connection::{Ready, Taken};
use super::{filled, setup};
use crate::bytes::hit;
use crate::harness::Datapath;
use crate::packet::{ACK, PSH, PacketBuilder};
use crate::tcp::connection::Connection;

/// Most bytes that are sent again at once.
const PART: usize = 512;
const GET: &str = "get long\r\n";
/// Position behind a TCP header with timestamps.
const BEHIND_HEADER: usize = 14 + 20 + 32;

/// A value whose answer has so many bytes, no two words of which are the same.
fn value(answer: usize) -> String {
    let around = |len: usize| hit("long", "a".repeat(len)).len() - len;
    let len = (0..answer)
        .find(|&len| len + around(len) == answer)
        .expect("there is one");
    let words = (0..).flat_map(|i| format!("{i:04}").into_bytes());
    String::from_utf8(words.take(len).collect()).expect("digits")
}

/// A cache with a key whose answer has so many bytes.
fn with_answer(len: usize) -> (Datapath, Vec<u8>) {
    let mut path = filled();
    path.fill("long", value(len));
    let answer = hit("long", value(len));
    assert_eq!(answer.len(), len);
    (path, answer)
}

#[test]
fn answers_of_any_length_up_to_a_datagram() {
    let mut port = 4400;
    for len in [250, 256, 257, 263, 264, 265, 300, 1000, 1391, 1392] {
        let (mut path, answer) = with_answer(len);
        for timestamps in [None, Some((500, 900))] {
            port += 1;
            let connection = Connection::open(&path, port);
            let mut ready = Ready::of(&mut path, connection, timestamps);
            ready.served(&path, GET, &answer);
            // By the other steps, too.
            ready.served(&path, "get  long \r\n", &answer);
            ready.sends(&path, "version\r\n");
            ready.replies(&path, "VERSION 1\r\n");
            ready.served(&path, GET, &answer);
        }
    }
}

/// Several commands of a segment have what fits one.
#[test]
fn answers_fill_the_segment_that_the_client_takes() {
    let twice = format!("{GET}{GET}");
    for (len, mss, is_answered) in [(1460, 1460, true), (1462, 1460, false), (1002, 1001, false)] {
        let (mut path, answer) = with_answer(len / 2);
        let mut ready = Ready::open(&mut path, 4430);
        path.kernel_mut()
            .used_translations(|element| element.translation.agreement.mss = mss);
        if is_answered {
            ready.served(&path, &twice, [&answer[..], &answer].concat());
        } else {
            ready.sends(&path, &twice);
            ready.replies(&path, [&answer[..], &answer].concat());
        }
        ready.served(&path, GET, &answer);
    }
}

#[test]
fn no_answer_is_longer_than_the_mtu_or_what_may_be_kept() {
    let (mut path, answer) = with_answer(1000);
    let mut ready = Ready::open(&mut path, 4431);
    for (mtu, room, is_answered) in [(1039, 1472, false), (1040, 999, false), (1040, 1000, true)] {
        let mut changed = setup();
        changed.mtu = mtu;
        changed.policy.room = room;
        path.configure(&changed);
        if is_answered {
            ready.served(&path, GET, &answer);
        } else {
            ready.sends(&path, GET);
            ready.replies(&path, &answer);
        }
    }
}

/// A connection whose last answer, which has so many bytes, is lost.
struct Lost {
    path: Datapath,
    ready: Ready,
    answer: Vec<u8>,
    first: Taken,
}

impl Lost {
    fn of(len: usize, port: u16) -> Self {
        let (mut path, answer) = with_answer(len);
        let mut ready = Ready::open(&mut path, port);
        let first = ready.served(&path, GET, &answer);
        Self {
            path,
            ready,
            answer,
            first,
        }
    }

    /// The client has got so many bytes of the answer, and sends this in place of what it sent last.
    fn segment(&self, got: usize, flags: u8, data: &str) -> PacketBuilder {
        let (sequence, _) = self.ready.segment(ACK, "").numbers();
        self.ready
            .segment(flags, data)
            .sequence(sequence.wrapping_sub(data.len() as u32))
            .acknowledging(self.first.sequence.wrapping_add(got as u32))
    }

    /// Bytes of the answer are sent again in the place of a segment.
    fn part(&self, segment: &PacketBuilder, from: usize, to: usize) {
        let part = self.ready.resent(&self.path, segment);
        let sequence = self.first.sequence.wrapping_add(from as u32);
        assert_eq!(
            (part.sequence, part.data.escape_ascii().to_string()),
            (sequence, self.answer[from..to].escape_ascii().to_string())
        );
        let (request_end, _) = self.ready.segment(ACK, "").numbers();
        let held = if to == self.answer.len() {
            0
        } else {
            GET.len() as u32
        };
        assert_eq!(part.acknowledgement, request_end.wrapping_sub(held));
    }
}

#[test]
fn a_long_answer_that_was_lost_comes_back_part_by_part() {
    for len in [513, 1000, 1030, 1392] {
        let mut lost = Lost::of(len, 4440);
        let request = lost.segment(0, ACK | PSH, GET);
        lost.part(&request, 0, PART);
        // The client says what it has got.
        let mut got = PART;
        while got < len {
            let to = len.min(got + PART);
            lost.part(&lost.segment(got, ACK, ""), got, to);
            // The part is lost: it asks again.
            lost.part(&lost.segment(got, ACK | PSH, GET), got, to);
            got = to;
        }
        lost.ready.sends(&lost.path, "version\r\n");
    }
}

#[test]
fn repeated_acknowledgements_bring_a_long_answer_back() {
    let lost = Lost::of(1000, 4441);
    let repeat = lost.segment(0, ACK, "");
    lost.ready.passed(&lost.path, &repeat);
    lost.ready.passed(&lost.path, &repeat);
    lost.part(&repeat, 0, PART);
    lost.ready.passed(&lost.path, &repeat);
    // Of a part that does not end with a word the client gets the beginning of that again.
    lost.part(&lost.segment(PART + 5, ACK, ""), PART, 1000);
}

/// What comes in several pieces of memory is cut before the answer takes its place.
#[test]
fn an_answer_takes_the_place_of_a_segment_in_pieces() {
    let lost = Lost::of(1000, 4442);
    let packet = lost.segment(0, ACK | PSH, GET).build();
    let ran = lost
        .path
        .kernel()
        .programs
        .rx_in_pieces(&packet, packet.len() - 4);
    assert_eq!(ran.action, 3);
    let part = super::connection::take(&ran.packet);
    assert_eq!(part.data, lost.answer[..PART]);
    assert_eq!(ran.packet.len(), 54 + PART);
}

/// Its header ends behind the first piece, so that without room at the head nothing fits for sure.
#[test]
fn a_segment_that_may_not_hold_any_of_the_answer_passes_whole() {
    if kernel::version() < (6, 18) {
        return;
    }
    let (mut path, answer) = with_answer(1000);
    let connection = Connection::open(&path, 4444);
    let mut ready = Ready::of(&mut path, connection, Some((500, 900)));
    let first = ready.served(&path, GET, &answer);
    let (sequence, _) = ready.segment(ACK, "").numbers();
    let request = ready
        .segment(ACK | PSH, GET)
        .sequence(sequence.wrapping_sub(GET.len() as u32))
        .acknowledging(first.sequence);
    let packet = request.build();
    // No new answer is tried then.
    let mut draining = setup();
    draining.policy.is_serving = 0;
    path.configure(&draining);
    let programs = &path.kernel().programs;
    let ran = programs.rx_in_pieces_without_head(&packet, BEHIND_HEADER - 4);
    assert_eq!(ran.action, 2);
    let passed = super::connection::take(&ran.packet);
    assert_eq!(passed.data, GET.as_bytes());
    assert_eq!(ran.packet.len(), packet.len());
    // With a little more in the first piece it is cut.
    let ran = programs.rx_in_pieces_without_head(&packet, BEHIND_HEADER + 1);
    assert_eq!(ran.action, 3);
    assert_eq!(
        super::connection::take(&ran.packet).data,
        answer[..PART],
        "the first part"
    );
}

#[test]
fn long_answers_that_are_always_lost_are_given_up() {
    let (mut path, answer) = with_answer(600);
    let mut ready = Ready::open(&mut path, 4443);
    for _ in 0..3 {
        let first = ready.served(&path, GET, &answer);
        let (sequence, _) = ready.segment(ACK, "").numbers();
        let again = ready
            .segment(ACK | PSH, GET)
            .sequence(sequence.wrapping_sub(GET.len() as u32))
            .acknowledging(first.sequence);
        ready.resent(&path, &again);
    }
    ready.sends(&path, GET);
    ready.replies(&path, &answer);
    ready.served(&path, "get key\r\n", hit("key", "value"));
}
