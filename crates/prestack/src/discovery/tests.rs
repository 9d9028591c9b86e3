use super::*;

struct Table {
    candidates: Vec<Candidate>,
    unknown: Vec<Socket>,
    selection: Selection,
}

impl Table {
    fn new(ports: &[u16]) -> Self {
        Self {
            candidates: Vec::new(),
            unknown: Vec::new(),
            selection: Selection {
                ports: ports.to_vec(),
                addresses: Vec::new(),
                tcp_hits: false,
            },
        }
    }

    fn with_tcp_hits(mut self) -> Self {
        self.selection.tcp_hits = true;
        self
    }

    fn at(mut self, address: &str) -> Self {
        self.selection
            .addresses
            .push(address.parse().expect("an address"));
        self
    }

    fn process(mut self, pid: u32, line: &str, sockets: &[&str]) -> Self {
        let arguments: Vec<_> = line.split(' ').collect();
        let sockets = sockets
            .iter()
            .enumerate()
            .map(|(at, text)| Socket::sample(text, u64::from(pid) * 100 + at as u64))
            .collect();
        self.candidates.push(Candidate {
            names: vec![arguments[0].into()],
            features: Features::read(&arguments),
            memcached: Memcached {
                process: ProcessId { pid, start: 7 },
                sockets,
                unix_sockets: Vec::new(),
            },
        });
        self
    }

    /// A socket that no visible process holds.
    fn beside(mut self, socket: Socket) -> Self {
        self.unknown.push(socket);
        self
    }

    fn judge(self) -> (Vec<u32>, Vec<Problem>) {
        let (mut all, mut chosen) = (self.unknown.clone(), self.unknown.clone());
        let mut holders: HashMap<u64, Vec<ProcessId>> = HashMap::new();
        for candidate in &self.candidates {
            all.extend(&candidate.memcached.sockets);
            for socket in &candidate.memcached.sockets {
                if self.selection.chooses(socket) {
                    if !holders.contains_key(&socket.inode) {
                        chosen.push(*socket);
                    }
                    holders
                        .entry(socket.inode)
                        .or_default()
                        .push(candidate.memcached.process);
                }
            }
        }
        let processes = self
            .candidates
            .into_iter()
            .map(|candidate| (candidate.memcached.process.pid, candidate))
            .collect();
        let found = judge(&self.selection, &all, &chosen, &holders, &processes);
        let pids = found.backends.iter().map(|b| b.process.pid).collect();
        (pids, found.problems)
    }
}

const BOTH: [&str; 2] = ["tcp 0.0.0.0:11211", "udp 0.0.0.0:11211"];

#[test]
fn a_memcached_with_udp_is_a_backend_with_all_its_sockets() {
    let table = Table::new(&[11211]).process(
        10,
        "memcached",
        &[
            "tcp 0.0.0.0:11211",
            "udp 0.0.0.0:11211",
            "tcp [::]:11211",
            "tcp 0.0.0.0:11311",
        ],
    );
    assert_eq!(table.judge(), (vec![10], vec![]));
}

#[test]
fn silence_is_a_problem() {
    let (pids, problems) = Table::new(&[11211]).judge();
    assert!(pids.is_empty());
    assert!(matches!(
        problems[..],
        [Problem::NobodyListens { port: 11211, .. }]
    ));
}

#[test]
fn what_takes_other_settings_takes_another_start() {
    const START: &str = "start prestack again";
    let (_, problems) = Table::new(&[11211]).judge();
    let [problem] = &problems[..] else {
        panic!("{problems:?}");
    };
    assert!(!problem.to_string().contains(START));
    assert!(problem.while_running().contains(START));
    let told = Problem::Tls { pid: 1 }.while_running();
    assert!(!told.contains(START), "{told}");
}

#[test]
fn every_chosen_port_needs_a_listener() {
    let (pids, problems) = Table::new(&[11211, 11212])
        .process(10, "memcached", &BOTH)
        .judge();
    assert_eq!(pids, [10]);
    assert!(matches!(
        problems[..],
        [Problem::NobodyListens { port: 11212, .. }]
    ));
}

#[test]
fn other_programs_are_named() {
    let (pids, problems) = Table::new(&[11211]).process(10, "nginx", &BOTH).judge();
    assert!(pids.is_empty());
    assert_eq!(
        problems,
        [Problem::NotMemcached {
            port: 11211,
            pid: 10,
            name: "nginx".into()
        }]
    );
}

#[test]
fn builds_of_memcached_are_memcached() {
    assert_eq!(
        Table::new(&[11211])
            .process(10, "memcached-debug", &BOTH)
            .judge()
            .0,
        [10]
    );
}

#[test]
fn udp_proxy_and_tls_are_checked() {
    let (_, problems) = Table::new(&[11211])
        .process(10, "memcached", &["tcp 0.0.0.0:11211"])
        .judge();
    assert!(matches!(
        problems[..],
        [Problem::NoUdp {
            pid: 10,
            port: 11211,
            ..
        }]
    ));
    assert!(problems[0].to_string().contains("--tcp-hits"));
    let (pids, problems) = Table::new(&[11211])
        .with_tcp_hits()
        .process(10, "memcached", &["tcp 0.0.0.0:11211"])
        .judge();
    assert_eq!((&pids[..], &problems[..]), (&[10][..], &[][..]));
    let (_, problems) = Table::new(&[11211])
        .process(10, "memcached -Z", &BOTH)
        .judge();
    assert_eq!(problems, [Problem::Tls { pid: 10 }]);
    let (_, problems) = Table::new(&[11211])
        .process(10, "memcached -B ascii", &BOTH)
        .judge();
    assert_eq!(problems, [Problem::TextAlone { pid: 10 }]);
    let (_, problems) = Table::new(&[11211])
        .process(10, "memcached -o proxy_config=x", &BOTH)
        .judge();
    assert_eq!(problems, [Problem::Proxy { pid: 10 }]);
}

#[test]
fn another_port_with_udp_is_pointed_out() {
    let sockets = ["tcp 0.0.0.0:11211", "udp 0.0.0.0:11212"];
    let (_, problems) = Table::new(&[11211])
        .process(10, "memcached", &sockets)
        .judge();
    assert!(matches!(
        problems[..],
        [Problem::NoUdp {
            other: Some(11212),
            ..
        }]
    ));
    assert!(problems[0].to_string().contains("--port 11212"));
}

#[test]
fn a_shared_port_is_refused_once() {
    let (pids, problems) = Table::new(&[11211])
        .process(10, "memcached", &BOTH)
        .process(11, "memcached", &BOTH)
        .judge();
    assert!(pids.is_empty());
    assert_eq!(
        problems,
        [Problem::Shared {
            port: 11211,
            first: 10,
            second: 11
        }]
    );
}

/// Who answers there is not known.
#[test]
fn a_port_shared_with_an_unknown_process_is_not_served() {
    let table = Table::new(&[11211]).process(10, "memcached", &BOTH);
    let unknown = Socket::sample("udp 0.0.0.0:11211", 7);
    let (pids, problems) = table.beside(unknown).judge();
    assert!(pids.is_empty());
    assert_eq!(problems, [Problem::UnknownProcess { port: 11211 }]);
    let elsewhere = Socket::sample("udp 10.0.0.1:11211", 7);
    let table = Table::new(&[11211]).process(10, "memcached", &["udp 10.0.0.2:11211"]);
    assert_eq!(table.beside(elsewhere).judge().0, [10]);
}

#[test]
fn several_sockets_of_one_process_share_nothing() {
    let sockets = [
        "udp 0.0.0.0:11211",
        "udp 0.0.0.0:11211",
        "tcp 0.0.0.0:11211",
    ];
    assert_eq!(
        Table::new(&[11211])
            .process(10, "memcached", &sockets)
            .judge(),
        (vec![10], vec![])
    );
}

#[test]
fn processes_on_different_addresses_are_different_backends() {
    let (pids, problems) = Table::new(&[11211])
        .process(10, "memcached", &["udp 10.0.0.1:11211"])
        .process(11, "memcached", &["udp 10.0.0.2:11211"])
        .judge();
    assert_eq!((pids, problems), (vec![10, 11], vec![]));
}

#[test]
fn an_address_chooses_among_them() {
    let (pids, problems) = Table::new(&[11211])
        .at("10.0.0.2")
        .process(10, "memcached", &["udp 10.0.0.1:11211"])
        .process(11, "memcached", &["udp 10.0.0.2:11211"])
        .judge();
    assert_eq!((pids, problems), (vec![11], vec![]));
}

#[test]
fn where_it_listens_instead_is_told() {
    let table = Table::new(&[11211]).at("127.0.0.1");
    let (_, problems) = table
        .process(
            10,
            "memcached",
            &["udp 10.0.0.1:11211", "tcp 10.0.0.1:11211", "tcp 10.0.0.2:1"],
        )
        .judge();
    let said = problems[0].to_string();
    assert!(
        said.contains(
            "at 127.0.0.1, but something does at 10.0.0.1: give its address with --address"
        ),
        "{said}"
    );
    let (_, problems) = Table::new(&[11211]).at("127.0.0.1").judge();
    assert!(!problems[0].to_string().contains("but"));
}

#[test]
fn a_supervisor_that_holds_the_socket_does_not_matter() {
    let mut table =
        Table::new(&[11211])
            .process(1, "systemd", &BOTH)
            .process(10, "memcached", &BOTH);
    // Both hold the same sockets.
    table.candidates[1].memcached.sockets = table.candidates[0].memcached.sockets.clone();
    assert_eq!(table.judge(), (vec![10], vec![]));
}
