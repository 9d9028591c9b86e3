//! Looks at the host again and again, and at no more of it than is needed to see a change.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    io,
};

use super::{
    Candidate, Found, Memcached, Selection,
    arguments::Features,
    judge,
    process::{self, ProcessId},
    procnet::{self, Socket},
};

/// How many looks may find nothing new before everything is looked at again.
const PATIENCE: u32 = 30;

/// Finds backends. Who holds a socket takes long to find out: it is remembered as long as the
/// sockets and the processes are the same.
#[derive(Debug, Default)]
pub struct Scanner {
    holders: HashMap<u64, Vec<ProcessId>>,
    last: Option<Look>,
}

/// What was seen, and what came of it.
#[derive(Debug)]
struct Look {
    sockets: Vec<Socket>,
    found: Found,
    repeated: u32,
}

impl Scanner {
    /// Looks at the host's sockets.
    ///
    /// # Errors
    /// `/proc` cannot be read.
    pub fn scan(&mut self, selection: &Selection) -> io::Result<Found> {
        let all = procnet::sockets()?;
        if let Some(found) = self.repeat(&all, selection) {
            return Ok(found);
        }
        let chosen: Vec<_> = all
            .iter()
            .filter(|socket| selection.chooses(socket))
            .copied()
            .collect();
        self.find_holders(&chosen)?;
        let unix = procnet::unix_sockets()?;
        let candidates: BTreeMap<_, _> = self
            .processes()
            .map(|process| (process.pid, candidate(process, &all, &unix)))
            .collect();
        let found = judge(selection, &all, &chosen, &self.holders, &candidates);
        let mut sockets = chosen;
        for candidate in candidates.values() {
            sockets.extend(&candidate.memcached.sockets);
        }
        sockets.sort_unstable();
        sockets.dedup();
        self.last = Some(Look {
            sockets,
            found: found.clone(),
            repeated: 0,
        });
        Ok(found)
    }

    /// What was found last, if nothing has changed that could change it.
    fn repeat(&mut self, all: &[Socket], selection: &Selection) -> Option<Found> {
        let alive = self.processes().all(ProcessId::is_alive);
        let last = self.last.as_mut().filter(|_| alive)?;
        let mut now: Vec<_> = all
            .iter()
            .filter(|socket| {
                selection.chooses(socket) || last.sockets.binary_search(socket).is_ok()
            })
            .copied()
            .collect();
        now.sort_unstable();
        last.repeated += 1;
        (now == last.sockets && last.repeated <= PATIENCE).then(|| last.found.clone())
    }

    /// Processes that hold chosen sockets.
    fn processes(&self) -> impl Iterator<Item = ProcessId> {
        let all: HashSet<_> = self.holders.values().flatten().copied().collect();
        all.into_iter()
    }

    /// Finds out who holds the chosen sockets: first among those who held some before.
    fn find_holders(&mut self, chosen: &[Socket]) -> io::Result<()> {
        let inodes: HashSet<_> = chosen.iter().map(|socket| socket.inode).collect();
        let mut holders: HashMap<u64, Vec<ProcessId>> = HashMap::new();
        for process in self.processes().filter(|process| process.is_alive()) {
            for inode in process.sockets().intersection(&inodes) {
                holders.entry(*inode).or_default().push(process);
            }
        }
        if inodes.iter().any(|inode| !holders.contains_key(inode)) {
            holders = process::holders(&inodes)?;
        }
        self.holders = holders;
        Ok(())
    }
}

/// Looks at a process.
fn candidate(process: ProcessId, all: &[Socket], unix: &HashMap<u64, String>) -> Candidate {
    let mine = process.sockets();
    let mut sockets: Vec<_> = all
        .iter()
        .filter(|socket| mine.contains(&socket.inode))
        .copied()
        .collect();
    sockets.sort_unstable();
    let mut unix_sockets: Vec<_> = unix
        .iter()
        .filter(|(inode, _)| mine.contains(inode))
        .map(|(_, path)| path.clone())
        .collect();
    unix_sockets.sort_unstable();
    Candidate {
        names: process.names(),
        features: Features::read(&process.arguments()),
        memcached: Memcached {
            process,
            sockets,
            unix_sockets,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::discovery::Problem;
    use std::net::{TcpListener, UdpSocket};

    #[test]
    fn changes_are_seen_and_the_rest_is_remembered() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("bound").port();
        let selection = Selection {
            ports: vec![port],
            addresses: Vec::new(),
            tcp_hits: false,
        };
        let mut scanner = Scanner::default();
        let is_this_process = |found: Found| {
            let pid = std::process::id();
            matches!(&found.problems[..], [Problem::NotMemcached { pid: other, .. }] if *other == pid)
        };
        assert!(is_this_process(scanner.scan(&selection).expect("readable")));
        assert!(is_this_process(scanner.scan(&selection).expect("readable")));
        assert_eq!(scanner.last.as_ref().map(|last| last.repeated), Some(1));

        let udp = UdpSocket::bind(("127.0.0.1", port)).expect("free");
        scanner.scan(&selection).expect("readable");
        assert_eq!(scanner.last.as_ref().map(|last| last.repeated), Some(0));

        drop((listener, udp));
        let found = scanner.scan(&selection).expect("readable");
        assert!(matches!(
            found.problems[..],
            [Problem::NobodyListens { .. }]
        ));
    }
}
