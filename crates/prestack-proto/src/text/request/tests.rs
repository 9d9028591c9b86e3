//! Agreement with a slow, obvious parser.

use super::*;
use proptest::prelude::*;

/// What a reader of doc/protocol.txt would write without minding the time.
fn slow_parse(text: &[u8]) -> Command {
    let Some(newline) = text.iter().position(|&b| b == b'\n') else {
        return match text.iter().position(|&b| b < 0x20) {
            Some(at) if at + 1 < text.len() || text[at] != b'\r' => {
                Command::of(Effect::Unknown, Form::Text)
            }
            _ => Command::of(Effect::Incomplete, Form::Text),
        };
    };
    let line = text[..newline]
        .strip_suffix(b"\r")
        .unwrap_or(&text[..newline]);
    if line.iter().any(|&b| b < 0x20) {
        return Command::of(Effect::Unknown, Form::Text);
    }
    let mut command = Command {
        line_end: line.len() as u64,
        next: newline as u64 + 1,
        ..Command::of(Effect::Unknown, Form::Text)
    };
    if line.first() == Some(&b' ') || line.is_empty() {
        return command;
    }
    let mut words = vec![];
    let mut at = 0;
    for word in line.split(|&b| b == b' ') {
        if !word.is_empty() {
            words.push((at, word));
        }
        at += word.len() + 1;
    }
    let verb = std::str::from_utf8(words[0].1).unwrap_or("?");
    let argument = |i: usize| words.get(i).map(|w| w.1);
    let number = |i: usize| -> Option<u64> {
        let word = argument(i)?;
        (word.len() <= 8 && word.iter().all(u8::is_ascii_digit))
            .then(|| std::str::from_utf8(word).ok()?.parse().ok())?
    };
    match verb {
        "flush_all" => {
            return Command {
                effect: Effect::Flush,
                ..command
            };
        }
        "version" | "mn" => {
            return Command {
                effect: Effect::Read,
                ..command
            };
        }
        "stats" | "quit" | "watch" | "lru" | "slabs" | "shutdown" => {
            return Command {
                effect: Effect::LongRead,
                ..command
            };
        }
        _ => {}
    }
    // A first word of nine bytes or more, told by its beginning.
    if line.split(|&b| b == b' ').next().is_some_and(|word| {
        word.len() > 8
            && ["lru_craw", "verbosit", "cache_me"]
                .iter()
                .any(|name| word.starts_with(name.as_bytes()))
    }) {
        return Command {
            effect: Effect::LongRead,
            ..command
        };
    }
    let key = if matches!(verb, "gat" | "gats") { 2 } else { 1 };
    let harmless = [
        "get", "gets", "mg", "md", "ma", "me", "delete", "incr", "decr", "touch",
    ];
    let Some(&(key_at, key_bytes)) = words.get(key).filter(|word| word.1.len() <= MAX_KEY) else {
        if harmless.contains(&verb) {
            command.effect = Effect::Read;
            // What ends in a space is left to the caller.
            command.quiet = matches!(verb, "delete" | "incr" | "decr" | "touch")
                && words.len() > 1
                && (words[words.len() - 1].1 == b"noreply" || line.ends_with(b" "));
        }
        return command;
    };
    command.key = key_at as u64;
    command.key_len = key_bytes.len() as u64;
    match verb {
        "get" => command.effect = Effect::Get,
        "gets" => {
            command.effect = Effect::Get;
            command.form = Form::TextCas;
        }
        "set" | "add" | "replace" | "append" | "prepend" | "cas" => {
            let needed = if verb == "cas" { 6 } else { 5 };
            let digits =
                |word: &[u8]| (1..=18).contains(&word.len()) && word.iter().all(u8::is_ascii_digit);
            let expiry = argument(3).map(|w| w.strip_prefix(b"-").unwrap_or(w));
            let fields = [
                argument(2),
                expiry,
                if verb == "cas" {
                    argument(5)
                } else {
                    Some(b"0".as_slice())
                },
            ];
            command.quiet = words.len() > needed;
            if let (Some(bytes), true) = (
                number(4),
                words.len() == needed || words.len() == needed + 1,
            ) && fields.iter().all(|f| f.is_some_and(digits))
            {
                command.effect = Effect::Write;
                command.data = bytes + 2;
            }
        }
        "incr" | "decr" | "touch" if words.len() >= 3 => {
            command.effect = Effect::Write;
            command.quiet = words.len() > 3 || argument(2) == Some(b"noreply");
        }
        "delete" => {
            command.effect = Effect::Write;
            command.quiet = words.len() > 2;
        }
        "gat" | "gats" if words.len() == 3 => {
            command.effect = Effect::Write;
        }
        "mg" | "ms" | "md" | "ma" | "me" => slow_meta(verb, &words, &mut command),
        _ => {}
    }
    command
}

fn slow_meta(verb: &str, words: &[(usize, &[u8])], command: &mut Command) {
    command.flags = command.key + command.key_len;
    let mut data = 0;
    let mut flags = &words[2..];
    if verb == "ms" {
        let Some((&(_, bytes), rest)) = flags.split_first() else {
            return;
        };
        if bytes.len() > 8 || !bytes.iter().all(u8::is_ascii_digit) {
            return;
        }
        data = 2 + std::str::from_utf8(bytes).unwrap().parse::<u64>().unwrap();
        flags = rest;
    }
    let letters: Vec<u8> = flags.iter().map(|f| f.1[0]).collect();
    let distinct: std::collections::HashSet<_> = letters.iter().collect();
    // What is no letter may stand for any flag.
    let is_known = letters.iter().all(|f| (b'A'..=b'z').contains(f));
    let has = |flag| !is_known || letters.contains(&flag);
    let only = |known: &[u8]| is_known && letters.iter().all(|f| known.contains(f));
    command.quiet = has(b'q');
    command.is_base64 = has(b'b');
    command.letters = if is_known && letters.len() < 12 {
        letters
            .iter()
            .fold(0, |set, &letter| set | 1 << (letter & 63))
    } else {
        u64::MAX
    };
    let is_whole_key = !has(b'b') || command.key_len.is_multiple_of(4);
    if verb == "me" {
        command.effect = Effect::Read;
    } else if verb == "mg" && only(b"vfksctOqhlb") {
        let is_plain = distinct.len() == letters.len() && flags.iter().all(|f| f.1.len() <= 32);
        command.effect = if only(b"vkfscqOb") && has(b'v') && is_plain && is_whole_key {
            command.form = Form::Meta;
            Effect::Get
        } else {
            Effect::Read
        };
    } else if is_known && is_whole_key {
        command.effect = Effect::Write;
        command.data = data;
    }
}

fn fast_parse(text: &[u8]) -> Command {
    parse(&Window::showing(text), 0, text.len() as u64)
}

/// Equal where the slow parser is exact; the fast one may know less, never more.
fn agree(text: &[u8]) -> Result<(), TestCaseError> {
    let (fast, slow) = (fast_parse(text), slow_parse(text));
    prop_assert_eq!(fast.effect, slow.effect);
    match fast.effect {
        Effect::Unknown | Effect::Incomplete => {}
        Effect::Get | Effect::Write => prop_assert_eq!(fast, slow),
        Effect::Read => prop_assert_eq!(
            (fast.line_end, fast.next, fast.quiet),
            (slow.line_end, slow.next, slow.quiet)
        ),
        _ => prop_assert_eq!((fast.line_end, fast.next), (slow.line_end, slow.next)),
    }
    Ok(())
}

const VERBS: &str = "get|gets|gat|gats|set|add|replace|append|prepend|cas|delete|incr|decr|touch|\
                     flush_all|mg|ms|md|ma|mn|me|mg|version|stats|verbosity|lru_crawler|cache_memlimit|lru_cra|lru|slabs|shutdown|quit|GET|ge|sets|flush_alx|watch";

fn command_line() -> impl Strategy<Value = String> {
    let arguments = "( {1,3}([a-z]{1,12}|[0-9]{1,9}|noreply|[vfksctqbTNREOI][a-z0-9]{0,3})){0,6}";
    let pattern = format!("({VERBS}){arguments} ?(\r?\n)?[a-z \r\n]{{0,9}}");
    proptest::string::string_regex(&pattern).expect("a valid pattern")
}

fn meta_line() -> impl Strategy<Value = String> {
    let flags = "( {1,2}([vkfscOqbvkfscOqbthlT]|[Ofs][0-9]{29,36})| {34}v?){0,8}";
    let pattern = format!("m[gggsdae] [a-z=]{{1,9}}( [0-9]{{1,3}})?{flags} ?\r\n");
    proptest::string::string_regex(&pattern).expect("a valid pattern")
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn lines_like_commands(text in command_line()) {
        agree(text.as_bytes())?;
    }

    #[test]
    fn meta_lines(text in meta_line()) {
        let (fast, slow) = (fast_parse(text.as_bytes()), slow_parse(text.as_bytes()));
        if !text.contains(&" ".repeat(32)) {
            prop_assert_eq!(fast, slow);
        } else if fast.effect != slow.effect {
            prop_assert!(matches!(fast.effect, Effect::Unknown | Effect::Write), "{:?} {:?}", fast, slow);
        }
    }

    #[test]
    fn arbitrary_bytes(text in proptest::collection::vec(any::<u8>(), 0..400)) {
        let fast = fast_parse(&text);
        prop_assert_eq!(fast.effect, slow_parse(&text).effect);
    }

    #[test]
    fn long_keys(
        len in 240usize..280,
        verb in "get|set|delete|incr|decr|touch|mg",
        tail in "( 1)?( noreply)?( x)? {0,2}",
    ) {
        let rest = if verb == "set" { " 0 0 1" } else { &tail };
        agree(format!("{verb} {}{rest}\r\n", "k".repeat(len)).as_bytes())?;
    }

    #[test]
    fn every_cut_is_incomplete(key in "[a-z]{1,20}", cut: prop::sample::Index) {
        let text = format!("set {key} 0 0 5\r\n");
        let cut = cut.index(text.len());
        prop_assert_eq!(fast_parse(&text.as_bytes()[..cut]).effect, Effect::Incomplete);
    }
}

#[test]
fn writes_name_key_and_data() {
    let c = fast_parse(b"cas key 1 2 10 99 noreply\r\n");
    assert_eq!(
        (c.effect, c.key, c.key_len, c.data, c.next, c.quiet),
        (Effect::Write, 4, 3, 12, 27, true)
    );
    for refused in [
        "set k x 0 8",
        "set k 0 x 8",
        "set k 0 0 8 noreply extra",
        "cas k 0 0 8",
        "cas k 0 0 8 x",
        "set k -1 0 8",
        "set k 0000000000000000000 0 8",
    ] {
        assert_eq!(
            fast_parse(format!("{refused}\r\n").as_bytes()).effect,
            Effect::Unknown,
            "{refused}"
        );
    }
    assert_eq!(fast_parse(b"set k 0 -1 8\r\n").effect, Effect::Write);
    let c = fast_parse(b"ms key 10 T0 I\r\n");
    assert_eq!(
        (c.effect, c.key, c.key_len, c.data, c.quiet),
        (Effect::Write, 3, 3, 12, false)
    );
    let c = fast_parse(b"gat 100 key\r\n");
    assert_eq!(
        (c.effect, c.key, c.key_len, c.quiet),
        (Effect::Write, 8, 3, false)
    );
}

#[test]
fn what_may_write_is_no_read() {
    for line in [
        "mg k v T30",
        "mg k N10",
        "mg k R5 v",
        "mg k E7",
        "mg k v x",
        "mg Zm9v b v N1",
    ] {
        assert_eq!(
            fast_parse(format!("{line}\r\n").as_bytes()).effect,
            Effect::Write,
            "{line}"
        );
    }
    for line in [
        "gat 1 a b",
        "md Zm9 b",
        "ms Zm9vY 2 b",
        "mg foo b N1",
        "md k 1",
        " set a 0 0 1",
        "set a 0 0 -1",
        "set a 0 0",
        "nonsense",
        "",
    ] {
        assert_eq!(
            fast_parse(format!("{line}\r\n").as_bytes()).effect,
            Effect::Unknown,
            "{line}"
        );
    }
    for line in [
        "mg k",
        "mg k f k",
        "mg Zm9v b",
        "mg foo b v",
        "mg k v v",
        "mg k v t",
        "me Zm9v b",
        "mn",
        "version",
    ] {
        assert_eq!(
            fast_parse(format!("{line}\r\n").as_bytes()).effect,
            Effect::Read,
            "{line}"
        );
    }
}

/// memcached looks for `noreply` before it looks at the key or the number.
#[test]
fn what_is_refused_may_be_quiet() {
    let long = "k".repeat(251);
    let longer = "k".repeat(300);
    for (line, quiet) in [
        (format!("delete {long}"), false),
        (format!("delete {long} noreply"), true),
        (format!("delete {longer}"), false),
        (format!("delete {longer} noreply"), true),
        (format!("incr {long} 1"), false),
        (format!("incr {long} 1 noreply"), true),
        (format!("decr {long} noreply"), true),
        (format!("touch {long} 1 noreply"), true),
        // Whether a word before the space is it is not looked at.
        (format!("touch {long} 1 noreply "), true),
        // The meta protocol does not know the word.
        (format!("md {long} noreply"), false),
        (format!("md {long} q"), false),
        ("incr a noreply".into(), true),
        ("decr a noreply".into(), true),
        ("touch  a  noreply ".into(), true),
        ("incr a norepl".into(), false),
        // It is the key.
        ("delete noreply".into(), false),
    ] {
        let c = fast_parse(format!("{line}\r\n").as_bytes());
        assert!(matches!(c.effect, Effect::Read | Effect::Write), "{line}");
        assert_eq!(c.quiet, quiet, "{line}");
    }
}

#[test]
fn gets_have_forms() {
    let form = |line: &str| {
        let c = fast_parse(format!("{line}\r\n").as_bytes());
        (c.effect == Effect::Get).then_some((c.form, c.is_base64, c.flags))
    };
    assert_eq!(form("get a b"), Some((Form::Text, false, 0)));
    assert_eq!(form("gets a b"), Some((Form::TextCas, false, 0)));
    assert_eq!(form("gets"), None);
    assert_eq!(form("mg a v"), Some((Form::Meta, false, 4)));
    assert_eq!(form("mg  foo kx s b"), None);
    assert_eq!(
        form("mg Zm9v  kx f s c v b q O1"),
        Some((Form::Meta, true, 7))
    );
    let opaque = |len: usize| form(&format!("mg a v O{}", "x".repeat(len)));
    assert_eq!(opaque(31), Some((Form::Meta, false, 4)));
    assert_eq!(opaque(32), None);
    // A flag that is split where it is too long to be looked at in one piece.
    assert_eq!(form(&format!("mg a k{}v", "x".repeat(39))), None);
}

#[test]
fn base64_keys_are_left_to_the_caller() {
    let c = fast_parse(b"ms Zm9v 2 b q\r\n");
    assert_eq!(
        (c.effect, c.key, c.key_len, c.data),
        (Effect::Write, 3, 4, 4)
    );
    assert!(c.is_base64 && c.quiet);
    for line in ["md Zm9v b", "ma Zm9v b", "mg Zm9v b T0"] {
        let c = fast_parse(format!("{line}\r\n").as_bytes());
        assert_eq!((c.effect, c.is_base64), (Effect::Write, true), "{line}");
    }
}

#[test]
fn no_flag_hides_behind_spaces() {
    let line = format!("mg k v{}T30\r\n", " ".repeat(40));
    assert_eq!(fast_parse(line.as_bytes()).effect, Effect::Unknown);
}
