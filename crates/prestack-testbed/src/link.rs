//! A veth pair between the two namespaces.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::Result;

use crate::bpf;
use crate::ethtool::{self, Feature};
use crate::namespace::Namespace;

/// Numbers the links of this process, so that no two devices on the host share a name: the
/// kernel threads of threaded NAPI are found by it.
static LINKS: AtomicU32 = AtomicU32::new(0);

/// A veth pair with an IPv4 and an IPv6 address at each end.
pub struct Link {
    /// The server's device.
    pub server_dev: String,
    /// The client's device.
    pub client_dev: String,
    /// The server's address in `10.77.n.0/24`.
    pub server4: IpAddr,
    /// The client's address in `10.77.n.0/24`.
    pub client4: IpAddr,
    /// The server's address in `fd77:n::/64`.
    pub server6: IpAddr,
    /// The client's address in `fd77:n::/64`.
    pub client6: IpAddr,
    /// The XDP program at the client's end, so that it takes packets sent by `XDP_TX`.
    _client_xdp: OwnedFd,
}

impl Link {
    /// Joins the namespaces by the `n`-th link. Segmentation offload is off and packets are
    /// received through NAPI at both ends, as they would be from a real network.
    pub(crate) fn new(server: &Namespace, client: &Namespace, n: u8) -> Result<Self> {
        let id = format!(
            "{}-{}",
            std::process::id(),
            LINKS.fetch_add(1, Ordering::Relaxed)
        );
        let server_dev = format!("vs{id}");
        let client_dev = format!("vc{id}");
        let v4 = |host| IpAddr::from(Ipv4Addr::new(10, 77, n, host));
        let v6 = |host| IpAddr::from(Ipv6Addr::new(0xfd77, u16::from(n), 0, 0, 0, 0, 0, host));

        let add = ["link", "add", &server_dev, "type", "veth"];
        let peer = ["peer", "name", &client_dev, "netns", &client.path()];
        server.ip(add.into_iter().chain(peer))?;
        for (namespace, dev, host) in [(server, &server_dev, 1), (client, &client_dev, 2)] {
            ethtool::set(namespace, dev, Feature::Tso, false)?;
            ethtool::set(namespace, dev, Feature::Gro, true)?;
            // No link-local address: its duplicate detection would be noise on the wire.
            namespace.ip(["link", "set", dev, "addrgenmode", "none"])?;
            namespace.ip(["address", "add", &format!("{}/24", v4(host)), "dev", dev])?;
            let v6 = format!("{}/64", v6(host.into()));
            namespace.ip(["address", "add", &v6, "dev", dev, "nodad"])?;
        }
        let client_xdp = bpf::attach_pass(client, &client_dev)?;
        server.ip(["link", "set", &server_dev, "up"])?;
        client.ip(["link", "set", &client_dev, "up"])?;
        Ok(Self {
            server_dev,
            client_dev,
            server4: v4(1),
            client4: v4(2),
            server6: v6(1),
            client6: v6(2),
            _client_xdp: client_xdp,
        })
    }
}
