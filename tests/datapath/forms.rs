//! Every form in which a GET is answered.

use crate::binary::{self, GET, GETK};
use crate::bytes::{hit, item};
use crate::harness::{Datapath, Setup};

/// Lets memcached show all that can be known of `key`.
pub fn learn(path: &mut Datapath) {
    path.exchange("mg key v f c k\r\n", "VA 5 f0 c1 kkey\r\nvalue\r\n");
}

/// `key` is cached with all that can be known of it.
pub fn known(setup: &Setup) -> Datapath {
    let mut path = Datapath::with(setup);
    learn(&mut path);
    assert_eq!(path.stats().fills, 1);
    path
}

/// A request in every form in which one is answered, and the answer.
pub fn forms() -> [(Vec<u8>, Vec<u8>); 7] {
    let value = hit("key", "value");
    let text = |request: &str, reply: &[u8]| (request.as_bytes().to_vec(), reply.to_vec());
    let binary = |opcode| {
        let reply = binary::hit(opcode, b"key", 0, 1, b"value", 9);
        (binary::get(opcode, b"key", 9), reply)
    };
    [
        text("get key\r\n", &value),
        text("get  key\r\n", &value),
        text(
            "get key key\r\n",
            &[item("key", 0, "value"), value.clone()].concat(),
        ),
        text("gets key\r\n", b"VALUE key 0 5 1\r\nvalue\r\nEND\r\n"),
        text("mg key v\r\n", b"VA 5\r\nvalue\r\n"),
        binary(GET),
        binary(GETK),
    ]
}
