//! Arguments with which memcached lets all its threads listen on UDP.

use std::{ffi::OsString, os::unix::ffi::OsStringExt as _};

use super::AsItIs;
use crate::command_line::options;

/// memcached's arguments, changed so that every address is served by all threads.
///
/// memcached serves each address by one thread if it has several of them, which it takes from a comma
/// among them, be it written there or put there between several `-l`. It separates them at semicolons
/// as well. So every `-l` is given them all, with semicolons: memcached leaves out what it has already.
///
/// # Errors
/// There is nothing to change: memcached does not listen on UDP.
pub fn spread(words: &[&[u8]]) -> Result<Vec<OsString>, AsItIs> {
    let mut udp = false;
    let mut addresses: Vec<u8> = Vec::new();
    let mut lists = Vec::new();
    for given in options(words) {
        match given.letter {
            b'h' | b'i' | b'V' => return Err(AsItIs::Informs),
            b's' => return Err(AsItIs::UnixSocket),
            b'U' => udp = is_a_number_but_zero(given.value),
            b'l' => {
                lists.push((given.word, given.value.len()));
                // What memcached does, too.
                if !contains(&addresses, given.value) {
                    if !addresses.is_empty() {
                        addresses.push(b',');
                    }
                    addresses.extend(given.value);
                }
            }
            _ => {}
        }
    }
    if !udp {
        return Err(AsItIs::NoUdp);
    }
    let addresses: Vec<u8> = addresses
        .into_iter()
        .map(|byte| if byte == b',' { b';' } else { byte })
        .collect();
    let mut words: Vec<Vec<u8>> = words.iter().map(|word| word.to_vec()).collect();
    for (word, len) in lists {
        let word = &mut words[word];
        word.truncate(word.len() - len);
        word.extend(&addresses);
    }
    Ok(words.into_iter().map(OsString::from_vec).collect())
}

/// Whether `text` occurs in `whole`.
fn contains(whole: &[u8], text: &[u8]) -> bool {
    text.is_empty() || whole.windows(text.len()).any(|window| window == text)
}

/// Whether the C library's `atoi` makes anything but zero of it.
fn is_a_number_but_zero(text: &[u8]) -> bool {
    let digits = text.strip_prefix(b"-").or(text.strip_prefix(b"+"));
    digits
        .unwrap_or(text)
        .iter()
        .take_while(|byte| byte.is_ascii_digit())
        .any(|&digit| digit != b'0')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spread_line(line: &str) -> Result<String, AsItIs> {
        let words: Vec<_> = line.split(' ').map(str::as_bytes).collect();
        let words = spread(&words)?;
        let words: Vec<_> = words
            .iter()
            .map(|word| word.to_str().expect("text"))
            .collect();
        Ok(words.join(" "))
    }

    #[test]
    fn one_address_or_none_stays_as_it_is() {
        for line in [
            "-U 11211",
            "-t 4 -U 11211 -p 11211 -u nobody",
            "-U 11211 -l 10.0.0.1",
            "--udp-port=1 --listen=10.0.0.1:11212 -vv -o modern",
        ] {
            assert_eq!(spread_line(line).expect("UDP"), line);
        }
    }

    #[test]
    fn several_addresses_are_joined_without_commas() {
        for (line, spread) in [
            ("-U 1 -l 10.0.0.1,[::1]", "-U 1 -l 10.0.0.1;[::1]"),
            ("-vl10.0.0.1,10.0.0.2 -U1", "-vl10.0.0.1;10.0.0.2 -U1"),
            (
                "-U 1 -l 10.0.0.1 --listen=10.0.0.2 -t 2 --listen 10.0.0.3",
                "-U 1 -l 10.0.0.1;10.0.0.2;10.0.0.3 --listen=10.0.0.1;10.0.0.2;10.0.0.3 -t 2 \
                 --listen 10.0.0.1;10.0.0.2;10.0.0.3",
            ),
            // memcached takes the latter for a repetition of the former.
            (
                "-U 1 -l 10.0.0.11 -l 10.0.0.1",
                "-U 1 -l 10.0.0.11 -l 10.0.0.11",
            ),
        ] {
            assert_eq!(spread_line(line).expect("UDP"), spread);
        }
    }

    #[test]
    fn without_udp_there_is_nothing_to_spread() {
        for line in ["-p 11211", "-U 0", "-U x", "-U 1 -U 0", "-U", "-- -U 1"] {
            assert!(matches!(spread_line(line), Err(AsItIs::NoUdp)), "{line}");
        }
        let unix = spread_line("-U 1 -s /run/memcached.sock");
        assert!(matches!(unix, Err(AsItIs::UnixSocket)));
        for line in ["-h", "-V", "-U 1 --license", "-vh"] {
            assert!(matches!(spread_line(line), Err(AsItIs::Informs)), "{line}");
        }
    }
}
