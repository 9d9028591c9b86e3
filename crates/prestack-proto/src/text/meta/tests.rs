//! Agreement with slow, obvious versions.

use super::*;
use crate::text::request::{Effect, Form, parse as parse_request};
use proptest::prelude::*;

fn parse(text: &[u8]) -> Option<MetaValue> {
    value(&Window::showing(text), text.len() as u64)
}

fn slow_value(text: &[u8]) -> Option<MetaValue> {
    let line_end = text.windows(2).position(|pair| pair == b"\r\n")?;
    let line = std::str::from_utf8(&text[..line_end]).ok()?;
    let mut words = line.strip_prefix("VA ")?.split(' ');
    let size = words.next().filter(|size| size.len() <= 8)?;
    let size: usize = size
        .bytes()
        .all(|b| b.is_ascii_digit())
        .then(|| size.parse().ok())??;
    let data = line_end + 2;
    if text.len() != data + size + 2 || !text.ends_with(b"\r\n") {
        return None;
    }
    let mut item = MetaValue {
        has_flags: false,
        flags: 0,
        has_cas: false,
        cas: 0,
        has_key: false,
        is_key_base64: false,
        is_stale: false,
        data: data as u64,
        data_len: size as u64,
    };
    let mut seen = vec![];
    for word in words.filter(|word| !word.is_empty()) {
        let (letter, rest) = word.split_at(1);
        let is_number = rest.bytes().all(|b| b.is_ascii_digit()) && rest.len() <= 20;
        item.is_stale |= seen.contains(&letter);
        seen.push(letter);
        match letter {
            "f" => match rest.parse() {
                Ok(flags) if is_number => (item.has_flags, item.flags) = (true, flags),
                _ => (item.has_flags, item.is_stale) = (true, true),
            },
            "c" => match rest.parse() {
                Ok(cas) if is_number => (item.has_cas, item.cas) = (true, cas),
                _ => (item.has_cas, item.is_stale) = (true, true),
            },
            "k" => item.has_key = true,
            "b" => item.is_key_base64 = true,
            "s" | "O" | "t" | "h" | "l" => {}
            _ => item.is_stale = true,
        }
    }
    Some(item)
}

fn item_strategy() -> impl Strategy<Value = (Item, String, String)> {
    let numbers = (any::<u64>(), 0u32..64, any::<u64>(), 0u32..64, any::<u32>());
    let known = (any::<u8>(), any::<bool>());
    (numbers, known, "[!-~]{1,250}", "[a-zA-Z0-9]{1,248}").prop_map(
        |((size, size_bits, cas, cas_bits, flags), (known, is_key_base64), key, token)| {
            let item = Item {
                size: size >> size_bits,
                flags,
                cas: cas >> cas_bits,
                key_len: key.len() as u64,
                token_at: 3,
                token_len: token.len() as u64,
                has_flags: known & 3 != 0,
                has_cas: known & 12 != 0,
                has_key: known & 48 != 0,
                is_key_base64,
            };
            (item, key, token)
        },
    )
}

fn slow_head(flags: &str, item: &Item, key: &str, token: &str) -> Option<String> {
    let mut head = format!("VA {}", item.size);
    for flag in flags.split(' ').filter(|flag| !flag.is_empty()) {
        let printed = match &flag[..1] {
            "v" | "q" | "b" => continue,
            "s" => format!("s{}", item.size),
            "f" if item.has_flags => format!("f{}", item.flags),
            "c" if item.has_cas => format!("c{}", item.cas),
            "k" if item.has_key && item.is_key_base64 => format!("k{token} b"),
            "k" if item.has_key => format!("k{key}"),
            "O" if flag.len() <= 32 => flag.into(),
            _ => return None,
        };
        head = format!("{head} {printed}");
    }
    Some(format!("{head}\r\n"))
}

fn fast_head(flags: &str, item: &Item, key: &str, token: &str) -> Option<String> {
    let line = format!("mg {token}{flags}\r\n");
    let request = Window::showing(line.as_bytes());
    let (flags_at, line_end) = (3 + token.len() as u64, line.len() as u64 - 2);
    let key = Window::showing(key.as_bytes());
    let mut out = Window::showing(&[]);
    let len = head(&request, flags_at, line_end, item, &key, &mut out)?;
    let bytes = (0..len).map(|at| out.byte(at)).collect();
    Some(String::from_utf8(bytes).unwrap())
}

/// More flags than a request that is answered has.
const MAX_FLAGS: usize = 12;

/// The steps one after the other, as the BPF programs go through them: writes the whole line at 0 of
/// `out`, and returns its length; `None` if something that is asked for is not known. The flags of the request are from `flags_at` to `line_end`, the key is at 0 of
/// `key`.
fn head(
    request: &Window,
    flags_at: u64,
    line_end: u64,
    item: &Item,
    key: &Window,
    out: &mut Window,
) -> Option<u64> {
    let mut cursor = head_start(flags_at, line_end, item, out);
    for _ in 0..MAX_FLAGS {
        match head_token(request, &mut cursor, item, key, out) {
            Step::More => {}
            Step::End => return Some(head_end(&cursor, out)),
            Step::Refused => return None,
        }
    }
    None
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn replies_are_understood(
        tokens in "( (f[0-9]{1,11}|c[0-9]{1,21}|k[!-~]{1,250}|b|s[0-9]{1,3}|O[a-z]{0,31}|t-1|h[01]|l[0-9]|[WXZ]|[a-z1][0-9]{0,2})){0,7}",
        data in proptest::collection::vec(any::<u8>(), 0..200),
        error in prop_oneof![Just(0i32), Just(0), Just(0), -2..=2],
    ) {
        let mut text = format!("VA {}{tokens}\r\n", (data.len() as i32 + error).max(0)).into_bytes();
        text.extend(&data);
        text.extend(b"\r\n");
        let (fast, slow) = (parse(&text), slow_value(&text));
        match slow {
            Some(item) if item.is_stale => prop_assert!(fast.is_some_and(|item| item.is_stale)),
            _ => prop_assert_eq!(fast, slow),
        }
        prop_assert_eq!(parse(&text[..text.len() - 1]), None);
    }

    #[test]
    fn arbitrary_bytes(text in proptest::collection::vec(any::<u8>(), 0..100), is_value: bool) {
        let mut text = text;
        if is_value {
            text.splice(..0, b"VA 3 ".iter().copied());
        }
        prop_assert!(text.starts_with(b"VA ") || parse(&text).is_none());
        prop_assert!(parse(&text).is_none() || text.ends_with(b"\r\n"));
    }

    #[test]
    fn heads_answer_flag_by_flag(
        flags in "( {1,2}(v|q|b|k|f|s|c|kx|O[!-~]{0,33}|O|x|t)){0,4}",
        (item, key, token) in item_strategy(),
    ) {
        // No request that repeats a flag is answered, and no head so long is written.
        prop_assume!(flags.matches('k').count() < 2);
        prop_assert_eq!(fast_head(&flags, &item, &key, &token), slow_head(&flags, &item, &key, &token));
    }

    #[test]
    fn every_request_in_this_form_has_a_head(
        flags in "( {1,2}(v|q|k|f|s|c|O[!-~]{0,31})){0,9}",
        (mut item, key, token) in item_strategy(),
    ) {
        (item.has_flags, item.has_cas, item.has_key) = (true, true, true);
        let line = format!("mg {token}{flags}\r\n");
        let command = parse_request(&Window::showing(line.as_bytes()), 0, line.len() as u64);
        if command.effect == Effect::Get {
            prop_assert_eq!(command.form, Form::Meta);
            prop_assert_eq!((command.flags, command.line_end), (3 + token.len() as u64, line.len() as u64 - 2));
            let head = fast_head(&flags, &item, &key, &token);
            prop_assert_eq!(&head, &slow_head(&flags, &item, &key, &token));
            prop_assert!(head.is_some());
        }
    }
}

#[test]
fn heads_are_those_of_memcached() {
    let mut item = Item {
        size: 3,
        flags: 7,
        cas: 5,
        key_len: 1,
        token_at: 3,
        token_len: 4,
        has_flags: true,
        has_cas: true,
        has_key: true,
        is_key_base64: false,
    };
    let head = |item: &Item, flags| fast_head(flags, item, "a", "Zm9v").unwrap();
    assert_eq!(head(&item, " c s k f v"), "VA 3 c5 s3 ka f7\r\n");
    assert_eq!(head(&item, " v k q O123"), "VA 3 ka O123\r\n");
    assert_eq!(head(&item, " v O"), "VA 3 O\r\n");
    item.is_key_base64 = true;
    assert_eq!(
        head(&item, " v b f k O1 s c"),
        "VA 3 f7 kZm9v b O1 s3 c5\r\n"
    );
    item.token_len = 0;
    assert_eq!(fast_head(" k v", &item, "a", "Zm9v"), None);
}

#[test]
fn what_is_not_understood_is_stale() {
    let is_stale = |flags: &str| {
        parse(format!("VA 3{flags}\r\nabc\r\n").as_bytes())
            .unwrap()
            .is_stale
    };
    for flags in ["", " ka f7 c5", " s3 t-1 h1 l0 O", " kZm9v b f0", " "] {
        assert!(!is_stale(flags), "{flags}");
    }
    let many = " O".repeat(13);
    let long = format!(" k{}", "x".repeat(251));
    let spaces = format!(" ka{}W", " ".repeat(40));
    for flags in [
        " W",
        " ka X",
        " Z",
        " f",
        " fx",
        " f4294967296",
        " c-1",
        " f1 f1",
        " 7",
        &many,
        &long,
        &spaces,
    ] {
        assert!(is_stale(flags), "{flags}");
    }
    for text in [
        "HD\r\n",
        "EN\r\n",
        "VA\r\n",
        "VA 3\r\nab\r\n",
        "VA 3 \r\nabcd\r\n",
        "VA x\r\nabc\r\n",
        "VA  3\r\nabc\r\n",
        "",
    ] {
        assert_eq!(parse(text.as_bytes()), None, "{text}");
    }
}
