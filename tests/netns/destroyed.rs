//! Ending connections from outside: those that are meant, and nothing else of their port.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6, TcpListener};
use std::time::Duration;

use anyhow::{Result, ensure};
use nix::net::if_::if_nametoindex;
use nix::sys::socket::{setsockopt, sockopt};
use prestack::destroy::{Destroyer, check};
use prestack::discovery::procnet::connections;
use prestack_abi::flow::FlowKey;
use prestack_testbed::{MemcachedOptions, Namespace, TcpClient, Testbed, pace};
use prestack_tests::pinned::{carry, nothing_left};
use prestack_tests::stage::{LASTING, PORT, Stage, store};

/// The server's link-local address, once it is added.
const LINK_LOCAL: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);

/// Listens at the server, on every address of the family.
fn listen(bed: &Testbed, address: IpAddr) -> Result<TcpListener> {
    let any: IpAddr = match address {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    Ok(bed.server.run(|| TcpListener::bind((any, PORT)))?)
}

/// Gives both ends a link-local address; returns the server's as the client reaches it.
fn link_local(bed: &Testbed) -> Result<SocketAddr> {
    bed.add_server_address(0, LINK_LOCAL.into())?;
    bed.add_client_address(0, Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 2).into())?;
    let dev = &*bed.links[0].client_dev;
    let scope = bed.client.run(|| if_nametoindex(dev))?;
    Ok(SocketAddrV6::new(LINK_LOCAL, PORT, 0, scope).into())
}

/// The server's connections.
fn all(bed: &Testbed) -> Result<HashSet<FlowKey>> {
    Ok(bed.server.run(|| connections(&[PORT]))?)
}

/// Ends these; returns how many there were.
fn destroy(bed: &Testbed, keys: &HashSet<FlowKey>) -> Result<usize> {
    bed.server.run(|| {
        let destroyer = Destroyer::new()?;
        let mut destroyed = 0;
        for connection in destroyer.find(keys)? {
            destroyed += usize::from(destroyer.destroy(&connection)?);
        }
        Ok(destroyed)
    })
}

#[test]
fn the_kernel_ends_what_it_has_named() -> Result<()> {
    Ok(Namespace::new()?.run(check)?)
}

#[test]
fn a_connection_is_reset_and_no_other() -> Result<()> {
    // The third listener takes both families.
    for (listens_v6, is_v6) in [(false, false), (true, true), (true, false)] {
        let bed = Testbed::new()?;
        let link = &bed.links[0];
        let of = |is_v6| if is_v6 { link.server6 } else { link.server4 };
        let address = of(is_v6);
        let _listener = listen(&bed, of(listens_v6))?;
        let mut client = TcpClient::connect(&bed.client, (address, PORT).into())?;
        let meant = all(&bed)?;
        ensure!(meant.len() == 1, "{meant:?}");
        let mut other = TcpClient::connect(&bed.client, (address, PORT).into())?;
        assert_eq!(destroy(&bed, &meant)?, 1);
        ensure!(client.is_reset()?, "it was closed");
        assert_eq!(all(&bed)?.len(), 1);
        TcpClient::connect(&bed.client, (address, PORT).into())?;
        assert_eq!(destroy(&bed, &all(&bed)?)?, 2);
        ensure!(other.is_reset()?, "it was closed");
    }
    Ok(())
}

/// The kernel takes the listener for a connection that has gone.
#[test]
fn a_listener_outlives_connections_that_are_gone() -> Result<()> {
    for is_v6 in [false, true] {
        let bed = Testbed::new()?;
        let link = &bed.links[0];
        let address = if is_v6 { link.server6 } else { link.server4 };
        let server = (address, PORT).into();
        let listener = listen(&bed, address)?;
        let client = TcpClient::connect(&bed.client, server)?;
        let keys = all(&bed)?;
        let found = bed.server.run(|| Destroyer::new()?.find(&keys))?;
        assert_eq!(found.len(), 1);
        drop(client);
        drop(listener.accept()?);
        pace::wait_for("the end", Duration::from_secs(5), || {
            Ok(all(&bed)?.is_empty().then_some(()))
        })?;
        let destroyed = bed.server.run(|| Destroyer::new()?.destroy(&found[0]))?;
        ensure!(!destroyed, "something else was ended");
        assert_eq!(destroy(&bed, &keys)?, 0);
        TcpClient::connect(&bed.client, server)?;
    }
    Ok(())
}

#[test]
fn a_connection_over_link_local_addresses_is_reset() -> Result<()> {
    let bed = Testbed::new()?;
    let server = link_local(&bed)?;
    let _listener = listen(&bed, server.ip())?;
    let mut client = TcpClient::connect(&bed.client, server)?;
    assert_eq!(destroy(&bed, &all(&bed)?)?, 1);
    ensure!(client.is_reset()?, "it was closed");
    TcpClient::connect(&bed.client, server)?;
    Ok(())
}

#[test]
fn a_connection_of_one_interface_is_reset() -> Result<()> {
    let bed = Testbed::new()?;
    let link = &bed.links[0];
    let listener = listen(&bed, link.server4)?;
    let dev = link.server_dev.clone().into();
    setsockopt(&listener, sockopt::BindToDevice, &dev)?;
    let server = (link.server4, PORT).into();
    let mut client = TcpClient::connect(&bed.client, server)?;
    assert_eq!(destroy(&bed, &all(&bed)?)?, 1);
    ensure!(client.is_reset()?, "it was closed");
    TcpClient::connect(&bed.client, server)?;
    Ok(())
}

/// Stopping resets a carried connection of a link-local client, and memcached goes on to listen.
#[test]
fn memcached_listens_after_a_link_local_client_was_carried() -> Result<()> {
    let more = [
        "--tcp-hits",
        "--drain-timeout",
        "0s",
        "--allow",
        "fe80::/64",
    ];
    let mut stage = Stage::with(MemcachedOptions::default(), &[&LASTING[..], &more].concat())?;
    let server = link_local(&stage.bed)?;
    let connect = || TcpClient::connect(&stage.bed.client, server);
    let mut client = connect()?;
    store(&mut client, b"key", b"value")?;
    carry(&stage.prestack, &mut client)?;
    stage.prestack.stop()?;
    ensure!(client.is_reset()?, "it was closed");
    assert_eq!(connect()?.get(b"key")?.as_deref(), Some(&b"value"[..]));
    nothing_left(stage.prestack.instance())
}
