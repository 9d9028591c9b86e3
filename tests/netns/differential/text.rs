//! Commands of the classic text protocol.

use super::command::Datagram;
use super::source::Source;

/// A GET of one key, spelled as clients do.
pub fn plain_get(source: &mut Source, verb: &str) -> Datagram {
    let key = source.hot_key();
    Datagram::get([verb.as_bytes(), b" ", &key, b"\r\n"].concat(), 1)
}

/// A GET of several keys, spelled as clients do.
pub fn plain_multi_get(source: &mut Source, verb: &str, keys: usize) -> Datagram {
    let mut payload = verb.as_bytes().to_vec();
    for _ in 0..keys {
        payload.push(b' ');
        payload.extend(source.hot_key());
    }
    payload.extend(b"\r\n");
    Datagram::get(payload, keys)
}

/// A `get`, `gets`, `gat` or `gats` of one to fifty keys, in any spelling that memcached takes. `calm`
/// ones change nothing.
pub fn read(source: &mut Source, calm: bool) -> Datagram {
    let keys = match source.below(12) {
        0 => 1 + source.below(50),
        1..4 => 2 + source.below(4),
        _ => 1,
    };
    let mut payload = match source.below(24) {
        0 if !calm => format!("gat {}", source.expiry()).into_bytes(),
        1 if !calm => format!("gats {}", source.expiry()).into_bytes(),
        2..9 => b"gets".to_vec(),
        _ => b"get".to_vec(),
    };
    let spaced = source.one_in(8);
    for _ in 0..keys {
        spaces(source, &mut payload, spaced);
        payload.extend(source.key());
    }
    if spaced && source.one_in(2) {
        spaces(source, &mut payload, spaced);
    }
    payload.extend(line_end(source));
    Datagram::get(payload, keys)
}

/// One space, or several.
pub fn spaces(source: &mut Source, line: &mut Vec<u8>, many: bool) {
    let count = if many { 1 + source.below(4) } else { 1 };
    line.extend(std::iter::repeat_n(b' ', count));
}

/// CR LF, or rarely LF alone.
pub fn line_end(source: &mut Source) -> &'static [u8] {
    if source.one_in(16) { b"\n" } else { b"\r\n" }
}

/// A command that changes items. `calm` ones are always answered, and by one message.
pub fn write(source: &mut Source, calm: bool) -> Vec<u8> {
    let key = source.key();
    let noreply: &[u8] = if !calm && source.one_in(5) {
        b" noreply"
    } else {
        b""
    };
    let end = line_end(source);
    match source.below(20) {
        0..12 => return store(source, &key, noreply, end),
        12 => return compare_and_store(source, noreply, end),
        _ => {}
    }
    let words = match source.below(8) {
        0..3 => b"delete ".to_vec(),
        3 => {
            return line(&[
                b"touch ",
                &key,
                b" ",
                source.expiry().as_bytes(),
                noreply,
                end,
            ]);
        }
        4 => b"incr ".to_vec(),
        5 => b"decr ".to_vec(),
        6 if !calm => return line(&[b"gat ", source.expiry().as_bytes(), b" ", &key, end]),
        _ => b"incr ".to_vec(),
    };
    let delta = match words[0] {
        b'd' if words[2] == b'l' => String::new(),
        _ => format!(" {}", amount(source)),
    };
    line(&[&words, &key, delta.as_bytes(), noreply, end])
}

/// `flush_all`. With a delay it would bring back what an earlier one has emptied and memcached has
/// not yet reclaimed, which happens at no certain time.
pub fn flush(source: &mut Source) -> Vec<u8> {
    let words: [&[u8]; 5] = [
        b"flush_all\r\n",
        b"flush_all 0\r\n",
        b"flush_all noreply\r\n",
        b"flush_all 0 noreply\r\n",
        b"flush_all\n",
    ];
    source.pick(&words).to_vec()
}

fn amount(source: &mut Source) -> u64 {
    match source.below(6) {
        0 => source.number(),
        1 => u64::MAX,
        _ => source.below(1000) as u64,
    }
}

fn store(source: &mut Source, key: &[u8], noreply: &[u8], end: &[u8]) -> Vec<u8> {
    let verbs: [&[u8]; 9] = [
        b"set", b"set", b"set", b"set", b"add", b"add", b"replace", b"append", b"prepend",
    ];
    let verb = source.pick(&verbs);
    let mut value = source.value();
    if verb.ends_with(b"pend") {
        value.truncate(60);
    }
    storage(source, verb, key, &value, noreply, end)
}

fn compare_and_store(source: &mut Source, noreply: &[u8], end: &[u8]) -> Vec<u8> {
    let (key, number) = source.numbered();
    let value = source.value();
    let noreply = [format!(" {number}").as_bytes(), noreply].concat();
    storage(source, b"cas", &key, &value, &noreply, end)
}

fn storage(
    source: &mut Source,
    verb: &[u8],
    key: &[u8],
    value: &[u8],
    rest: &[u8],
    end: &[u8],
) -> Vec<u8> {
    let numbers = format!(" {} {} {}", source.flags(), source.expiry(), value.len());
    line(&[
        verb,
        b" ",
        key,
        numbers.as_bytes(),
        rest,
        end,
        value,
        b"\r\n",
    ])
}

fn line(parts: &[&[u8]]) -> Vec<u8> {
    parts.concat()
}
