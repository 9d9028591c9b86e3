//! `--tcp-hits`: a router before clients whose link takes no packets as long as the server's.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Result, ensure};
use prestack_testbed::{Memcached, MemcachedOptions, Middle, Prestack, TcpClient, Testbed};
use prestack_tests::pinned::carry;
use prestack_tests::stage::{LASTING, PORT, behind, store};

/// What the link takes; the client itself says that it takes more.
const MTU: &str = "1400";
/// The networks on both sides of the router, and their hosts: the server or the client, and the router.
const NETS: [[(IpAddr, IpAddr); 2]; 2] = [
    [(v4(1, 1), v4(1, 9)), (v6(1, 1), v6(1, 9))],
    [(v4(2, 2), v4(2, 9)), (v6(2, 2), v6(2, 9))],
];

const fn v4(net: u8, host: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(10, 66, net, host))
}

const fn v6(net: u16, host: u16) -> IpAddr {
    IpAddr::V6(Ipv6Addr::new(0xfd66, net, 0, 0, 0, 0, 0, host))
}

/// The network of an address here.
fn net(address: IpAddr) -> String {
    match address {
        IpAddr::V4(v4) => format!("{v4}/24"),
        IpAddr::V6(v6) => format!("{v6}/64"),
    }
}

/// Has what is in the middle route.
fn route(bed: &Testbed, middle: &Middle) -> Result<()> {
    let link = &bed.links[0];
    let router = &middle.namespace;
    let ends = [
        (&bed.server, &link.server_dev),
        (&bed.client, &link.client_dev),
    ];
    for (side, (end, dev)) in ends.into_iter().enumerate() {
        for (family, (host, hop)) in NETS[side].into_iter().enumerate() {
            let (port, far) = (&middle.ports[side], NETS[1 - side][family].0);
            for (namespace, dev, address) in [(end, dev, host), (router, port, hop)] {
                let add = ["address", "add", &net(address), "dev", dev];
                // Duplicate addresses are not looked for.
                let nodad = host.is_ipv6().then_some("nodad");
                namespace.ip(add.into_iter().chain(nodad))?;
            }
            end.ip(["route", "add", &far.to_string(), "via", &hop.to_string()])?;
        }
    }
    for port in &middle.ports {
        // From there it asks for neighbours on others' behalf.
        router.ip(["address", "add", "fe80::9/64", "dev", port, "nodad"])?;
    }
    router.ip(["link", "set", &middle.ports[1], "mtu", MTU])?;
    router.run(|| {
        std::fs::write("/proc/sys/net/ipv4/ip_forward", "1")?;
        std::fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "1")
    })?;
    Ok(())
}

/// The kernel heeds what the router says of packets that are too big, though the connection's numbers on the wire
/// are others than its own.
#[test]
fn it_is_heard_of_on_a_carried_connection() -> Result<()> {
    let (bed, middle) = Testbed::with_middle()?;
    route(&bed, &middle)?;
    let memcached = Memcached::start(&bed.server, MemcachedOptions::default())?;
    let dev = ["--interface", &bed.links[0].server_dev, "--tcp-hits"];
    let allow = ["--no-watch-lo", "--allow", "10.66.0.0/16,fd66::/16"];
    let prestack = Prestack::start(&bed.server, &[&dev[..], &allow, &LASTING].concat())?;

    let mut stores = behind(&bed, Ipv4Addr::LOCALHOST.into(), PORT)?;
    let (short, long) = (vec![b'a'; 180], vec![b'b'; 100_000]);
    store(&mut stores, b"key", &short)?;
    store(&mut stores, b"long", &long)?;
    for (server, _) in NETS[0] {
        let mut client = TcpClient::connect(&bed.client, (server, PORT).into())?;
        carry(&prestack, &mut client)?;
        let hits = || prestack.stats()?.get("tcp.hits");
        let before = hits()?;
        for _ in 0..200 {
            ensure!(client.get(b"key")?.as_ref() == Some(&short));
        }
        // So the numbers differ by more than is on its way at a time.
        ensure!(hits()? > before + 150, "there were hits");
        ensure!(client.get(b"long")?.as_ref() == Some(&long));
    }
    drop(memcached);
    Ok(())
}
