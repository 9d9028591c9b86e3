//! A veth pair between the two namespaces.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::Result;
use nix::errno::Errno;

use crate::bpf;
use crate::ethtool::Offload;
use crate::namespace::Namespace;
use crate::pace::wait_for;

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
    /// The XDP programs at the devices that take packets sent by `XDP_TX`.
    xdp: Vec<OwnedFd>,
}

/// The devices of a namespace in the middle of a link; what joins them is not there yet.
pub struct Middle {
    /// The namespace.
    pub namespace: Namespace,
    /// The device towards the server, and the one towards the client.
    pub ports: [String; 2],
}

impl Link {
    /// Takes the XDP program off the client's device, for one that is to take its place.
    pub fn free_client_dev(&mut self) {
        self.xdp.clear();
    }

    /// Puts a program in the place of the one at the client's device that loses what prestack answers.
    pub(crate) fn lose_answers(&mut self, client: &Namespace) -> Result<()> {
        self.free_client_dev();
        // The kernel takes its time to remove the one that was there.
        let attached = wait_for(
            "a free device",
            Duration::from_secs(5),
            || match bpf::attach_loss(client, &self.client_dev) {
                Err(error) if error.downcast_ref() == Some(&Errno::EBUSY) => Ok(None),
                attached => attached.map(Some),
            },
        )?;
        self.xdp.push(attached);
        Ok(())
    }

    /// Joins the namespaces by the `n`-th link. Segmentation offload is off and packets are
    /// received through NAPI at both ends, as they would be from a real network.
    pub(crate) fn new(server: &Namespace, client: &Namespace, n: u8) -> Result<Self> {
        let [server_dev, client_dev] = names(["vs", "vc"]);
        add_pair([(server, &server_dev), (client, &client_dev)], &[])?;
        Self::set_up([(server, server_dev), (client, client_dev)], n, Vec::new())
    }

    /// The same with so many queues for each direction: what is sent goes to one or the other by its connection.
    pub(crate) fn with_queues(
        server: &Namespace,
        client: &Namespace,
        n: u8,
        queues: u8,
    ) -> Result<Self> {
        let [server_dev, client_dev] = names(["vs", "vc"]);
        let queues = queues.to_string();
        let settings = ["numrxqueues", &queues, "numtxqueues", &queues];
        add_pair_of(
            [(server, &server_dev), (client, &client_dev)],
            [&settings, &settings],
        )?;
        Self::set_up([(server, server_dev), (client, client_dev)], n, Vec::new())
    }

    /// The link again, after its devices were removed: with the same names and addresses, and the server's
    /// device with this index if one is given.
    pub(crate) fn again(
        &self,
        server: &Namespace,
        client: &Namespace,
        n: u8,
        index: Option<u32>,
    ) -> Result<Self> {
        let [server_dev, client_dev] = [&self.server_dev, &self.client_dev].map(String::clone);
        let index = index.map(|index| index.to_string());
        let index: Vec<_> = index.iter().flat_map(|i| ["index", i.as_str()]).collect();
        add_pair([(server, &server_dev), (client, &client_dev)], &index)?;
        Self::set_up([(server, server_dev), (client, client_dev)], n, Vec::new())
    }

    /// Joins the namespaces by the `n`-th link through a third one.
    pub(crate) fn through_middle(
        server: &Namespace,
        client: &Namespace,
        n: u8,
    ) -> Result<(Self, Middle)> {
        let namespace = Namespace::new()?;
        let [server_dev, to_server, to_client, client_dev] = names(["vs", "ms", "mc", "vc"]);
        add_pair([(server, &server_dev), (&namespace, &to_server)], &[])?;
        add_pair([(client, &client_dev), (&namespace, &to_client)], &[])?;
        let mut xdp = Vec::new();
        for port in [&to_server, &to_client] {
            xdp.push(bpf::attach_pass(&namespace, port)?);
            namespace.ip(["link", "set", port, "up"])?;
        }
        let link = Self::set_up([(server, server_dev), (client, client_dev)], n, xdp)?;
        let ports = [to_server, to_client];
        Ok((link, Middle { namespace, ports }))
    }

    /// Gives the two ends their addresses.
    fn set_up(
        [(server, server_dev), (client, client_dev)]: [(&Namespace, String); 2],
        n: u8,
        mut xdp: Vec<OwnedFd>,
    ) -> Result<Self> {
        let v4 = |host| IpAddr::from(Ipv4Addr::new(10, 77, n, host));
        let v6 = |host| IpAddr::from(Ipv6Addr::new(0xfd77, u16::from(n), 0, 0, 0, 0, 0, host));
        for (namespace, dev, host) in [(server, &server_dev, 1), (client, &client_dev, 2)] {
            namespace.ip(["address", "add", &format!("{}/24", v4(host)), "dev", dev])?;
            let v6 = format!("{}/64", v6(host.into()));
            namespace.ip(["address", "add", &v6, "dev", dev, "nodad"])?;
        }
        xdp.push(bpf::attach_pass(client, &client_dev)?);
        server.ip(["link", "set", &server_dev, "up"])?;
        client.ip(["link", "set", &client_dev, "up"])?;
        Ok(Self {
            server_dev,
            client_dev,
            server4: v4(1),
            client4: v4(2),
            server6: v6(1),
            client6: v6(2),
            xdp,
        })
    }
}

/// Names for devices, with numbers that no others on the host have.
fn names<const N: usize>(prefixes: [&str; N]) -> [String; N] {
    let number = LINKS.fetch_add(1, Ordering::Relaxed);
    prefixes.map(|prefix| format!("{prefix}{}-{number}", std::process::id()))
}

/// Makes a veth pair; `settings` are those of the first device.
fn add_pair(ends: [(&Namespace, &str); 2], settings: &[&str]) -> Result<()> {
    add_pair_of(ends, [settings, &[]])
}

/// Makes a veth pair with settings of both devices.
fn add_pair_of(
    ends: [(&Namespace, &str); 2],
    [settings, peer_settings]: [&[&str]; 2],
) -> Result<()> {
    let [(namespace, dev), (other, peer_dev)] = ends;
    let add = [&["link", "add", dev], settings, &["type", "veth"]].concat();
    let path = other.path();
    let peer = ["peer", "name", peer_dev, "netns", &path];
    namespace.ip(add
        .into_iter()
        .chain(peer)
        .chain(peer_settings.iter().copied()))?;
    ends.into_iter()
        .try_for_each(|(namespace, dev)| ready(namespace, dev))
}

fn ready(namespace: &Namespace, dev: &str) -> Result<()> {
    match Offload::Tso.set(namespace, dev, false) {
        // A daemon has been quick to give the other end an XDP program: then veth has none.
        Err(error) if error.downcast_ref() == Some(&Errno::EOPNOTSUPP) => {}
        done => done?,
    }
    Offload::Gro.set(namespace, dev, true)?;
    // No link-local address: its duplicate detection would be noise on the wire.
    namespace.ip(["link", "set", dev, "addrgenmode", "none"])?;
    Ok(())
}
