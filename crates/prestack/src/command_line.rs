//! memcached's command line, read as memcached reads it.

/// Whether an option takes a value.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Takes {
    Nothing,
    Value,
    /// Only when written behind `=`, and only under its long name.
    Perhaps,
}

/// The options of memcached 1.6 (`shortopts` and `longopts` in memcached.c): letter, long name (one has
/// none), value.
const OPTIONS: [(u8, &str, Takes); 37] = [
    (b'a', "unix-mask", Takes::Value),
    (b'A', "enable-shutdown", Takes::Nothing),
    (b'Z', "enable-ssl", Takes::Nothing),
    (b'p', "port", Takes::Value),
    (b's', "unix-socket", Takes::Value),
    (b'U', "udp-port", Takes::Value),
    (b'm', "memory-limit", Takes::Value),
    (b'M', "disable-evictions", Takes::Nothing),
    (b'c', "conn-limit", Takes::Value),
    (b'k', "lock-memory", Takes::Nothing),
    (b'h', "help", Takes::Nothing),
    (b'i', "license", Takes::Nothing),
    (b'V', "version", Takes::Nothing),
    (b'r', "enable-coredumps", Takes::Nothing),
    (b'v', "verbose", Takes::Perhaps),
    (b'd', "daemon", Takes::Nothing),
    (b'l', "listen", Takes::Value),
    (b'u', "user", Takes::Value),
    (b'P', "pidfile", Takes::Value),
    (b'f', "slab-growth-factor", Takes::Value),
    (b'n', "slab-min-size", Takes::Value),
    (b't', "threads", Takes::Value),
    (b'D', "", Takes::Value),
    (b'L', "enable-largepages", Takes::Nothing),
    (b'R', "max-reqs-per-event", Takes::Value),
    (b'C', "disable-cas", Takes::Nothing),
    (b'b', "listen-backlog", Takes::Value),
    (b'B', "protocol", Takes::Value),
    (b'I', "max-item-size", Takes::Value),
    (b'S', "enable-sasl", Takes::Nothing),
    (b'F', "disable-flush-all", Takes::Nothing),
    (b'X', "disable-dumping", Takes::Nothing),
    (b'W', "disable-watch", Takes::Nothing),
    (b'Y', "auth-file", Takes::Value),
    (b'e', "memory-file", Takes::Value),
    (b'o', "extended", Takes::Value),
    (b'N', "napi-ids", Takes::Value),
];

/// An option that is given.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Given<'a> {
    /// Its letter, whichever name it was given by.
    pub letter: u8,
    /// Its value without blanks before it, empty if it takes none.
    pub value: &'a [u8],
    /// The word that the value is in, which it ends with.
    pub word: usize,
}

/// The options among `words`, the program's name not included, as `getopt_long` finds them. What it
/// refuses is left out.
pub fn options<W: AsRef<[u8]>>(words: &[W]) -> Vec<Given<'_>> {
    let mut given = Vec::new();
    let mut at = 0;
    while let Some(word) = words.get(at).map(AsRef::as_ref) {
        let first = at;
        at += 1;
        let mut next = || {
            let value = words.get(at)?.as_ref();
            at += 1;
            Some((value, at - 1))
        };
        if word == b"--" {
            break;
        } else if let Some(long) = word.strip_prefix(b"--") {
            given.extend(long_option(long, first, next));
        } else if let Some(cluster) = word.strip_prefix(b"-") {
            for (index, &letter) in cluster.iter().enumerate() {
                let Some((_, _, takes)) = OPTIONS.iter().find(|(l, _, _)| *l == letter) else {
                    continue;
                };
                let rest = &cluster[index + 1..];
                let value = match takes {
                    Takes::Nothing | Takes::Perhaps => Some((&rest[..0], first)),
                    Takes::Value if rest.is_empty() => next(),
                    Takes::Value => Some((rest, first)),
                };
                given.extend(value.map(|(value, word)| Given {
                    letter,
                    value: value.trim_ascii_start(),
                    word,
                }));
                if *takes == Takes::Value {
                    break;
                }
            }
        }
    }
    given
}

/// Reads an option by its long name, behind the dashes; `next` takes the next word.
fn long_option<'a>(
    long: &'a [u8],
    word: usize,
    next: impl FnOnce() -> Option<(&'a [u8], usize)>,
) -> Option<Given<'a>> {
    let end = long.iter().position(|&byte| byte == b'=');
    let (name, behind) = long.split_at(end.unwrap_or(long.len()));
    let behind = end.map(|_| &behind[1..]);
    let (letter, takes) = by_name(name)?;
    let (value, word) = match (takes, behind) {
        (Takes::Nothing, Some(_)) => return None,
        (Takes::Nothing | Takes::Perhaps, None) => (&long[..0], word),
        (Takes::Value, None) => next()?,
        (Takes::Value | Takes::Perhaps, Some(value)) => (value, word),
    };
    Some(Given {
        letter,
        value: value.trim_ascii_start(),
        word,
    })
}

/// The option of this long name, of which an unambiguous beginning will do.
fn by_name(name: &[u8]) -> Option<(u8, Takes)> {
    let known = || OPTIONS.iter().filter(|(_, long, _)| !long.is_empty());
    let mut alike = known().filter(|(_, long, _)| long.as_bytes().starts_with(name));
    let (letter, _, takes) = known()
        .find(|(_, long, _)| long.as_bytes() == name)
        .or_else(|| alike.next().filter(|_| alike.next().is_none()))?;
    Some((*letter, *takes))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Letters with their values and where these are.
    fn read(line: &str) -> Vec<(char, String, usize)> {
        let words: Vec<_> = line.split(' ').collect();
        let show = |given: &Given<'_>| {
            let value = String::from_utf8_lossy(given.value).into_owned();
            (char::from(given.letter), value, given.word)
        };
        options(&words).iter().map(show).collect()
    }

    fn given(letter: char, value: &str, word: usize) -> (char, String, usize) {
        (letter, value.to_owned(), word)
    }

    #[test]
    fn letters_come_alone_or_together() {
        assert_eq!(
            read("-U 11211 -vdt4 -vvl 10.0.0.1 x -- -A"),
            [
                given('U', "11211", 1),
                given('v', "", 2),
                given('d', "", 2),
                given('t', "4", 2),
                given('v', "", 3),
                given('v', "", 3),
                given('l', "10.0.0.1", 4),
            ]
        );
    }

    #[test]
    fn a_value_may_look_like_an_option() {
        assert_eq!(
            read("-u -Z --user -Z --user=-Z"),
            [
                given('u', "-Z", 1),
                given('u', "-Z", 3),
                given('u', "-Z", 4)
            ]
        );
    }

    #[test]
    fn long_names_may_be_cut_short() {
        assert_eq!(
            read("--udp-port=1 --udp 2 --listen 3 --verbose=x --verbose 4"),
            [
                given('U', "1", 0),
                given('U', "2", 2),
                given('l', "3", 4),
                given('v', "x", 5),
                given('v', "", 6),
            ]
        );
    }

    #[test]
    fn what_getopt_refuses_is_left_out() {
        for line in [
            "--enable-s",
            "--nothing",
            "--daemon=x",
            "-U",
            "--listen",
            "-Q",
            "--",
            "-",
        ] {
            assert_eq!(read(line), [], "{line}");
        }
        assert_eq!(read("-Qd"), [given('d', "", 0)]);
    }
}
