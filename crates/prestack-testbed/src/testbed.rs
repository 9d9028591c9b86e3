//! Two namespaces, joined.

use std::fs;
use std::net::{IpAddr, Ipv4Addr};

use anyhow::{Context, Result};

use crate::link::{Link, Middle};
use crate::namespace::{Namespace, require_root};
use crate::{cpu::CpuSplit, ethtool, napi};

/// A server and a client namespace joined by veth pairs.
pub struct Testbed {
    /// Where memcached and prestack run.
    pub server: Namespace,
    /// Where the clients are.
    pub client: Namespace,
    /// The veth pairs; there is at least one.
    pub links: Vec<Link>,
}

impl Testbed {
    /// Namespaces joined by one veth pair.
    ///
    /// # Errors
    /// Without root's privileges or `ip`.
    pub fn new() -> Result<Self> {
        Self::with_links(1)
    }

    /// Namespaces joined by `links` veth pairs.
    ///
    /// # Errors
    /// Without root's privileges or `ip`.
    pub fn with_links(links: u8) -> Result<Self> {
        require_root()?;
        let (server, client) = (Namespace::new()?, Namespace::new()?);
        let links = (0..links)
            .map(|n| Link::new(&server, &client, n))
            .collect::<Result<_>>()
            .context("joining the namespaces")?;
        Ok(Self {
            server,
            client,
            links,
        })
    }

    /// Namespaces joined by one veth pair with so many queues for each direction.
    ///
    /// # Errors
    /// Without root's privileges or `ip`.
    pub fn with_queues(queues: u8) -> Result<Self> {
        require_root()?;
        let (server, client) = (Namespace::new()?, Namespace::new()?);
        let link = Link::with_queues(&server, &client, 0, queues)?;
        Ok(Self {
            server,
            client,
            links: vec![link],
        })
    }

    /// Namespaces joined through a third one, whose two devices are not joined yet.
    ///
    /// # Errors
    /// Without root's privileges or `ip`.
    pub fn with_middle() -> Result<(Self, Middle)> {
        require_root()?;
        let (server, client) = (Namespace::new()?, Namespace::new()?);
        let (link, middle) = Link::through_middle(&server, &client, 0)?;
        let links = vec![link];
        let bed = Self {
            server,
            client,
            links,
        };
        Ok((bed, middle))
    }

    /// Has what prestack answers over IPv4 on the `link`-th pair lost on its way, and nothing else.
    ///
    /// # Errors
    /// When the server's time to live cannot be set, or the kernel refuses the program.
    pub fn lose_answers(&mut self, link: usize) -> Result<()> {
        const TTL: &str = "/proc/sys/net/ipv4/ip_default_ttl";
        self.server.run(|| fs::write(TTL, "63")).context(TTL)?;
        self.links[link].lose_answers(&self.client)
    }

    /// Removes both devices of the `link`-th pair.
    ///
    /// # Errors
    /// When `ip` fails.
    pub fn unplug(&self, link: usize) -> Result<()> {
        let dev = &self.links[link].server_dev;
        self.server.ip(["link", "delete", dev]).map(drop)
    }

    /// Makes the devices of the `link`-th pair again, which were [removed](Self::unplug): with the same names and
    /// addresses, and the server's device with this index if one is given.
    ///
    /// # Errors
    /// When `ip` fails.
    pub fn plug(&mut self, link: usize, index: Option<u32>) -> Result<()> {
        let again = self.links[link].again(&self.server, &self.client, link as u8, index)?;
        self.links[link] = again;
        Ok(())
    }

    /// Gives the server one more address on the `link`-th pair.
    ///
    /// # Errors
    /// When `ip` fails.
    pub fn add_server_address(&self, link: usize, address: IpAddr) -> Result<()> {
        add_address(&self.server, &self.links[link].server_dev, address)
    }

    /// Gives the client one more address on the `link`-th pair.
    ///
    /// # Errors
    /// When `ip` fails.
    pub fn add_client_address(&self, link: usize, address: IpAddr) -> Result<()> {
        add_address(&self.client, &self.links[link].client_dev, address)
    }

    /// Puts a VLAN device on each end of the `link`-th pair, with these addresses in a subnet of 24 bits;
    /// returns the server's name, or nothing if the kernel has no such devices.
    ///
    /// # Errors
    /// When `ip` fails.
    pub fn add_vlan(&self, link: usize, id: u16, ends: [Ipv4Addr; 2]) -> Result<Option<String>> {
        let link = &self.links[link];
        let ends = [
            (&self.server, &link.server_dev, ends[0]),
            (&self.client, &link.client_dev, ends[1]),
        ];
        let name = format!("vlan{id}");
        for (namespace, dev, address) in ends {
            ethtool::tag_in_frame(namespace, dev)?;
            let id = id.to_string();
            let add = ["link", "add", "link", dev, "name", &name];
            match namespace.ip(add.into_iter().chain(["type", "vlan", "id", &id])) {
                Err(error) if error.to_string().contains("Unknown device type") => return Ok(None),
                added => added.map(drop)?,
            }
            add_address(namespace, &name, address.into())?;
            namespace.ip(["link", "set", &name, "up"])?;
        }
        Ok(Some(name))
    }

    /// Sets the MTU at both ends of the `link`-th pair.
    ///
    /// # Errors
    /// When `ip` fails.
    pub fn set_mtu(&self, link: usize, mtu: u32) -> Result<()> {
        let (link, mtu) = (&self.links[link], mtu.to_string());
        self.server
            .ip(["link", "set", &link.server_dev, "mtu", &mtu])?;
        self.client
            .ip(["link", "set", &link.client_dev, "mtu", &mtu])?;
        Ok(())
    }

    /// Gives each end a NAPI thread of its own, so that neither end receives packets on the
    /// other's time, and keeps the threads on their side's CPUs. To be called again whenever an
    /// XDP program comes or goes: the kernel makes new threads then.
    ///
    /// # Errors
    /// When the kernel has no threaded NAPI.
    pub fn separate_cpus(&self, split: &CpuSplit) -> Result<()> {
        for link in &self.links {
            napi::set_threaded(&self.server, &link.server_dev)?;
            napi::set_threaded(&self.client, &link.client_dev)?;
            napi::pin(&link.server_dev, &split.server)?;
            napi::pin(&link.client_dev, &split.client)?;
        }
        Ok(())
    }
}

fn add_address(namespace: &Namespace, dev: &str, address: IpAddr) -> Result<()> {
    match address {
        IpAddr::V4(v4) => namespace.ip(["address", "add", &format!("{v4}/24"), "dev", dev])?,
        IpAddr::V6(v6) => {
            namespace.ip(["address", "add", &format!("{v6}/64"), "dev", dev, "nodad"])?
        }
    };
    Ok(())
}
