//! An item of which several replies have shown something: what they say together, and when they
//! cannot be taken together.

use std::time::Duration;

use crate::binary::{GET, get as binary_get, hit as binary_hit};
use crate::bytes::hit;
use crate::harness::{Datapath, Setup, Verdict, wait};

/// Lets memcached answer requests one after the other.
fn told(exchanges: &[(&str, &str)]) -> Datapath {
    told_with(&Setup::default(), exchanges)
}

fn told_with(setup: &Setup, exchanges: &[(&str, &str)]) -> Datapath {
    let mut path = Datapath::with(setup);
    for (request, reply) in exchanges {
        path.exchange(request, reply);
    }
    path
}

fn assert_served(path: &mut Datapath, request: impl AsRef<[u8]>, reply: impl AsRef<[u8]>) {
    let request = path.request(request);
    let expected = Verdict::Served(reply.as_ref().to_vec());
    assert_eq!(path.rx(&request), expected, "{request:?}");
}

#[test]
fn what_was_never_shown_is_never_said() {
    let binary = || binary_get(GET, b"key", 1);
    // Neither flags nor CAS number, then the CAS number alone.
    for told_so in [
        ("mg key v\r\n", "VA 5\r\nvalue\r\n"),
        ("mg key v c\r\n", "VA 5 c7\r\nvalue\r\n"),
    ] {
        let mut path = told(&[told_so]);
        for text in [
            "get key\r\n",
            "get  key\r\n",
            "gets key\r\n",
            "mg key v f\r\n",
        ] {
            path.only_pass(text);
        }
        path.only_pass(binary());
    }
    // The other way around.
    let mut path = told(&[("mg key v f\r\n", "VA 5 f7\r\nvalue\r\n")]);
    for text in ["gets key\r\n", "gets  key\r\n", "mg key v c\r\n"] {
        path.only_pass(text);
    }
    path.only_pass(binary());
    // A client that took `get` for the whole truth.
    let mut path = told(&[("get key\r\n", "VALUE key 0 5\r\nvalue\r\nEND\r\n")]);
    path.only_pass("mg key v\r\n");
    path.only_pass(binary());
}

#[test]
fn flags_that_a_text_reply_adds_are_said_by_mg() {
    let mut path = told(&[
        ("mg key v\r\n", "VA 5\r\nvalue\r\n"),
        ("get key\r\n", "VALUE key 7 5\r\nvalue\r\nEND\r\n"),
    ]);
    assert_served(&mut path, "mg key v f\r\n", "VA 5 f7\r\nvalue\r\n");
    let text = "VALUE key 7 5\r\nvalue\r\nEND\r\n";
    assert_served(&mut path, "get key\r\n", text);
    path.only_pass("mg key v c\r\n");
}

/// The item was replaced unseen by one with the same data.
#[test]
fn replies_that_contradict_one_another() {
    let gets = "VALUE key 1 5 2\r\nvalue\r\nEND\r\n";
    let mut path = told(&[
        ("gets key\r\n", gets),
        ("mg key v f\r\n", "VA 5 f9\r\nvalue\r\n"),
    ]);
    path.only_pass("gets key\r\n");
    let mut path = told(&[
        ("gets key\r\n", gets),
        ("mg key v c\r\n", "VA 5 c9\r\nvalue\r\n"),
    ]);
    path.only_pass("get key\r\n");
    let mut path = told(&[
        ("mg foo v k c\r\n", "VA 5 kfoo c7\r\nvalue\r\n"),
        ("mg foo v k f\r\n", "VA 5 kZm9v b f5\r\nvalue\r\n"),
    ]);
    path.only_pass("gets foo\r\n");
}

#[test]
fn data_that_differ() {
    for len in (1..40).chain([127, 128, 1000, 1001]) {
        let old = vec![b'v'; len];
        for at in [0, len / 2, len - 1] {
            let mut new = old.clone();
            new[at] ^= 1;
            assert_apart(&old, &new);
        }
        assert_apart(&old, &old[..len - 1]);
        assert_apart(&old[..len - 1], &old);
    }
}

/// Flags that were shown with the old data are not said to be those of the new.
fn assert_apart(old: &[u8], new: &[u8]) {
    let mut path = Datapath::new();
    path.exchange("get key\r\n", hit("key", old));
    let reply = [format!("VA {}\r\n", new.len()).as_bytes(), new, b"\r\n"].concat();
    path.exchange("mg key v\r\n", reply);
    let request = path.get_of("key");
    assert_eq!(path.rx(&request), Verdict::Passed, "{old:?} and {new:?}");
}

#[test]
fn an_item_is_as_old_as_the_oldest_that_is_known_of_it() {
    let max_age = Duration::from_millis(600);
    let setup = Setup {
        max_age,
        ..Setup::default()
    };
    let mut path = told_with(
        &setup,
        &[("get key\r\n", "VALUE key 0 5\r\nvalue\r\nEND\r\n")],
    );
    wait(max_age * 2 / 3);
    path.exchange("mg key v\r\n", "VA 5\r\nvalue\r\n");
    wait(max_age / 2);
    path.only_pass("get key\r\n");
    path.only_pass("mg key v\r\n");
}

/// Whichever of two replies comes first.
#[test]
fn an_item_is_as_old_as_the_first_request_for_what_is_known_of_it() {
    let max_age = Duration::from_millis(600);
    let mut path = Datapath::with(&Setup {
        max_age,
        ..Setup::default()
    });
    let first = path.get_of("key");
    path.pass(&first);
    wait(max_age / 2);
    path.exchange("mg key v\r\n", "VA 5\r\nvalue\r\n");
    path.tx(&first.reply(hit("key", "value")));
    assert_eq!(path.stats().fills, 2);
    wait(max_age / 2);
    path.only_pass("get key\r\n");
    path.only_pass("mg key v\r\n");
}

/// `key` is cached with all that is known of it, and old enough to be fetched anew.
fn aged() -> Datapath {
    let mut path = told(&[
        ("gets key\r\n", "VALUE key 1 5 2\r\nvalue\r\nEND\r\n"),
        ("mg key v\r\n", "VA 5\r\nvalue\r\n"),
    ]);
    assert_eq!(path.stats().fills, 2);
    path.configure(&Setup {
        refresh_age: Duration::ZERO,
        ..Setup::default()
    });
    wait(Duration::from_millis(1));
    path
}

/// Fetches `key` anew. From then on nothing is old.
fn fetch(path: &mut Datapath, request: impl AsRef<[u8]>, reply: impl AsRef<[u8]>) {
    path.exchange(&request, reply);
    let request = request.as_ref().escape_ascii();
    assert_eq!(path.stats().refreshes, 1, "{request}");
    path.configure(&Setup::default());
}

/// What is fetched anew is all that is known: the rest is as old as before.
#[test]
fn an_old_entry_is_not_built_upon() {
    let mut path = aged();
    fetch(
        &mut path,
        "get key\r\n",
        "VALUE key 1 5\r\nvalue\r\nEND\r\n",
    );
    path.only_pass("gets key\r\n");
    path.only_pass("mg key v\r\n");
}

#[test]
fn every_protocol_fetches_what_is_old() {
    let mut path = aged();
    fetch(&mut path, "mg key v\r\n", "VA 3\r\nnew\r\n");
    assert_served(&mut path, "mg key v\r\n", "VA 3\r\nnew\r\n");
    let mut path = aged();
    let reply = binary_hit(GET, b"key", 3, 4, b"new", 5);
    fetch(&mut path, binary_get(GET, b"key", 5), &reply);
    assert_served(&mut path, binary_get(GET, b"key", 5), &reply);
    // One key, however it is written; memcached answers with one item.
    for text in [
        "gets key\r\n",
        "gets key\n",
        "gets  key \r\n",
        "get  key\r\n",
        "get key\n",
        "get key \r\n",
    ] {
        let mut path = aged();
        let reply = if text.starts_with("gets") {
            "VALUE key 3 3 4\r\nnew\r\nEND\r\n"
        } else {
            "VALUE key 3 3\r\nnew\r\nEND\r\n"
        };
        fetch(&mut path, text, reply);
        assert_served(&mut path, text, reply);
        // What memcached has lost is lost.
        let mut path = aged();
        fetch(&mut path, text, "END\r\n");
        path.only_pass(text);
    }
    // A reply to several does not name those that memcached has lost.
    let mut path = aged();
    let both = "VALUE key 1 5\r\nvalue\r\nVALUE key 1 5\r\nvalue\r\nEND\r\n";
    assert_served(&mut path, "get key key\r\n", both);
    let spaced = ["get key", &" ".repeat(40), "other\r\n"].concat();
    path.only_pass(spaced);
    assert_eq!(path.stats().refreshes, 0);
    // Of several that ask, one fetches.
    let mut path = aged();
    path.only_pass("gets key\r\n");
    assert_served(
        &mut path,
        "gets key\r\n",
        "VALUE key 1 5 2\r\nvalue\r\nEND\r\n",
    );
    let mut path = aged();
    path.only_pass("mg key v\r\n");
    assert_served(&mut path, "mg key v\r\n", "VA 5\r\nvalue\r\n");
}

/// memcached accepts it, and shows the key as it would write it itself.
#[test]
fn base64_that_memcached_would_write_otherwise() {
    let shown = "VA 5 kYQ== b\r\nvalue\r\n";
    let mut path = told(&[("mg YQ== b v k\r\n", shown)]);
    assert_served(&mut path, "mg YQ== b v k\r\n", shown);
    assert_served(&mut path, "mg YR== b v\r\n", "VA 5\r\nvalue\r\n");
    path.only_pass("mg YR== b v k\r\n");
    assert_served(&mut path, "mg YQ== b v k\r\n", shown);
    path.only_pass("mg a v k\r\n");
    path.exchange("md YR== b\r\n", "HD\r\n");
    path.only_pass("mg YQ== b v k\r\n");
    assert_eq!(path.epoch(), 0);
}

/// A reply to a request of one protocol under the name of another's.
#[test]
fn a_reply_in_another_protocol() {
    let replies = [
        hit("key", "value"),
        b"VA 5\r\nvalue\r\n".to_vec(),
        binary_hit(GET, b"key", 3, 4, b"value", 5),
    ];
    let requests = [
        b"get key\r\n".to_vec(),
        b"mg key v\r\n".to_vec(),
        binary_get(GET, b"key", 5),
    ];
    for (i, request) in requests.iter().enumerate() {
        for (j, reply) in replies.iter().enumerate() {
            let mut path = Datapath::new();
            path.exchange(request, reply);
            assert_eq!(path.stats().fills, u64::from(i == j), "{i} by {j}");
        }
    }
}
