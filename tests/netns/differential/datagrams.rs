//! Batches of datagrams to both servers, and their answers.

use std::collections::HashMap;
use std::io::ErrorKind;
use std::net::UdpSocket;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use prestack_testbed::pace;

use super::command::{Comparison, Datagram};
use super::server::Server;

/// How long the last answers of the cache may come after memcached's.
const GRACE: Duration = Duration::from_secs(1);
/// Bytes of the frame before every datagram's payload.
const FRAME: usize = 8;

/// One datagram of an answer, without its request's id.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Part {
    frame: [u16; 3],
    payload: Vec<u8>,
}

impl std::fmt::Debug for Part {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [sequence, count, reserved] = self.frame;
        write!(
            f,
            "[{sequence}/{count} {reserved}] \"{}\"",
            self.payload.escape_ascii()
        )
    }
}

/// The answers of both servers to one command.
#[derive(Debug, Default)]
pub struct Answers {
    /// With prestack, and without.
    pub parts: [Vec<Part>; 2],
}

impl Answers {
    /// Whether they are the same to a client.
    pub fn agree(&self, comparison: Comparison) -> bool {
        let [a, b] = &self.parts;
        match comparison {
            // UDP promises no order: see `is_reordered`.
            Comparison::Exact => a == b || in_any_order(a) == in_any_order(b),
            Comparison::Joined => a == b || joined(a) == joined(b),
        }
    }

    /// Whether they are in another order. On a busy machine datagrams of one answer of memcached's were seen to
    /// overtake each other, once in millions of commands.
    pub fn is_reordered(&self) -> bool {
        let [a, b] = &self.parts;
        a != b && in_any_order(a) == in_any_order(b)
    }

    /// The first datagram of memcached's own.
    pub fn first(&self) -> &[u8] {
        self.parts[1].first().map_or(&[], |part| &part.payload)
    }
}

fn in_any_order(parts: &[Part]) -> Vec<&Part> {
    let mut parts: Vec<_> = parts.iter().collect();
    parts.sort();
    parts
}

fn joined(parts: &[Part]) -> Vec<u8> {
    parts.iter().flat_map(|part| part.payload.clone()).collect()
}

/// Sockets to both servers on which the same is said.
pub struct Sockets {
    sockets: [UdpSocket; 2],
}

impl Sockets {
    /// Opens them.
    pub fn open(servers: &[Server; 2], v6: bool) -> Result<Self> {
        let [a, b] = servers;
        Ok(Self {
            sockets: [a.udp(v6)?, b.udp(v6)?],
        })
    }

    /// Sends a batch to both servers, each datagram with an id of its own, and `mn` as `last`;
    /// returns the answers in the batch's order.
    ///
    /// memcached answers in order, and `mn` always: what has not come by then is never to come,
    /// save what prestack has answered itself.
    pub fn exchange(&mut self, batch: &[(u16, Datagram)], last: u16) -> Result<Vec<Answers>> {
        let end = Datagram::new(b"mn\r\n".to_vec());
        for socket in &self.sockets {
            for (id, datagram) in batch {
                send(socket, *id, datagram)?;
            }
            send(socket, last, &end)?;
        }
        let ids: HashMap<u16, usize> = batch.iter().map(|(id, _)| *id).zip(0..).collect();
        let mut answers: Vec<Answers> = batch.iter().map(|_| Answers::default()).collect();
        for side in [1, 0] {
            self.receive(side, &ids, last, &mut answers)?;
        }
        let agree = |answers: &[Answers]| {
            let mut pairs = answers.iter().zip(batch);
            pairs.all(|(answers, (_, datagram))| answers.agree(datagram.comparison))
        };
        // The cache's answers may come later than memcached's last one.
        let deadline = Instant::now() + pace::patience(GRACE);
        self.sockets[0].set_nonblocking(true)?;
        while !agree(&answers) && Instant::now() < deadline {
            self.receive_one(0, &ids, last, &mut answers)?;
        }
        self.sockets[0].set_nonblocking(false)?;
        Ok(answers)
    }

    fn receive(
        &self,
        side: usize,
        ids: &HashMap<u16, usize>,
        last: u16,
        answers: &mut [Answers],
    ) -> Result<()> {
        loop {
            match self.receive_one(side, ids, last, answers)? {
                Received::Last => return Ok(()),
                Received::Part => {}
                Received::Nothing => bail!("server {side} does not answer mn"),
            }
        }
    }

    fn receive_one(
        &self,
        side: usize,
        ids: &HashMap<u16, usize>,
        last: u16,
        answers: &mut [Answers],
    ) -> Result<Received> {
        let mut buffer = [0; 2_048];
        let len = match self.sockets[side].recv(&mut buffer) {
            Ok(len) => len,
            Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(Received::Nothing),
            Err(e) => return Err(e).context("receiving a datagram"),
        };
        if len < FRAME {
            bail!("server {side} sent a datagram of {len} bytes");
        }
        let word = |at: usize| u16::from_be_bytes([buffer[at], buffer[at + 1]]);
        let part = Part {
            frame: [word(2), word(4), word(6)],
            payload: buffer[FRAME..len].into(),
        };
        if word(0) == last {
            if part.payload != b"MN\r\n" {
                bail!("server {side} answered mn with {part:?}");
            }
            return Ok(Received::Last);
        }
        let Some(&at) = ids.get(&word(0)) else {
            bail!(
                "server {side} answered what was not asked, {}: {part:?}",
                word(0)
            );
        };
        answers[at].parts[side].push(part);
        Ok(Received::Part)
    }
}

/// What one look at a socket brought.
#[derive(PartialEq, Eq)]
enum Received {
    Nothing,
    Part,
    Last,
}

fn send(socket: &UdpSocket, id: u16, datagram: &Datagram) -> Result<()> {
    let mut bytes = Vec::with_capacity(FRAME + datagram.payload.len());
    bytes.extend(id.to_be_bytes());
    for word in datagram.frame {
        bytes.extend(word.to_be_bytes());
    }
    bytes.extend(&datagram.payload);
    socket.send(&bytes).context("sending a datagram")?;
    Ok(())
}
