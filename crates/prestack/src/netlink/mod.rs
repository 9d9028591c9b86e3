//! What the kernel says over rtnetlink about interfaces and their traffic control filters.

mod request;
mod veth;

use std::{
    io,
    os::fd::{AsFd, BorrowedFd},
};

use netlink_packet_core::{NLM_F_DUMP, NetlinkPayload};
use netlink_packet_route::{
    RouteNetlinkMessage,
    link::{
        BondPortState, BridgePortState, InfoBondPort, InfoBridge, InfoBridgePort, InfoData,
        InfoKind, InfoPortData, InfoVlan, LinkAttribute, LinkFlags, LinkInfo, LinkLayerType,
        LinkMessage, LinkXdp, VlanProtocol,
    },
    tc::{TcAttribute, TcFilterBpfOption, TcHandle, TcMessage, TcOption},
};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use nix::libc;

use request::{messages, request};

pub use veth::OtherEnd;

/// `ETH_P_ALL` in network byte order, the protocol of filters that see every packet.
const EVERY_PROTOCOL: u16 = 3_u16.to_be();
/// The parent of filters at clsact's egress hook.
const EGRESS: TcHandle = TcHandle {
    major: u16::MAX,
    minor: TcHandle::MIN_EGRESS,
};
/// The parent of filters at clsact's ingress hook.
const INGRESS: TcHandle = TcHandle {
    major: u16::MAX,
    minor: TcHandle::MIN_INGRESS,
};

/// A network interface.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Its index.
    pub index: u32,
    /// Whether it is in use.
    pub is_up: bool,
    /// Whether its frames have an Ethernet header.
    pub ethernet: bool,
    /// Longest IP packet it sends, in bytes.
    pub mtu: u32,
    /// Kernel's numbers of the XDP programs attached to it.
    pub xdp: Vec<u32>,
    /// Whether one of them is attached in generic mode.
    pub generic_xdp: bool,
    /// Where its other end is, if it is one of a veth pair.
    pub other_end: Option<OtherEnd>,
}

/// A VLAN tag.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Tag {
    /// Whether it is a service tag (802.1ad), not a customer tag (802.1Q).
    pub is_service: bool,
    /// Number of the VLAN.
    pub id: u16,
}

/// What a network device is to others.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// It takes the frames of its lower device that have this tag.
    Vlan(Tag),
    /// It takes the frames of its lower device that are sent to its own MAC address.
    MacVlan,
    /// It takes the packets of its lower device that are sent to its own IP addresses.
    IpVlan,
    /// It takes the frames of its ports (also a team).
    Bond,
    /// It takes the frames of its ports that are sent to it.
    Bridge,
    /// It groups devices that take their frames themselves.
    Vrf,
    /// Anything else.
    Other,
}

/// A network device among others.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Device {
    /// Its index.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Its MAC address.
    pub mac: [u8; 6],
    /// Whether it is in use.
    pub is_up: bool,
    /// What it is.
    pub kind: Kind,
    /// Index of the device that it is on top of.
    pub lower: Option<u32>,
    /// Index of the device that it is a port of.
    pub master: Option<u32>,
    /// Whether its master, if it has one, takes its frames.
    pub hands_on: bool,
}

/// Every network device that has, or may have, Ethernet frames.
///
/// # Errors
/// The kernel refused to say.
pub fn devices() -> io::Result<Vec<Device>> {
    let message = RouteNetlinkMessage::GetLink(LinkMessage::default());
    let replies = request(message, NLM_F_DUMP)?;
    let replies = replies.known.into_iter();
    Ok(replies
        .filter_map(|reply| match reply {
            RouteNetlinkMessage::NewLink(link) => read_device(&link),
            _ => None,
        })
        .collect())
}

fn read_device(link: &LinkMessage) -> Option<Device> {
    let mut device = Device {
        index: link.header.index,
        name: String::new(),
        mac: [0; 6],
        is_up: link.header.flags.contains(LinkFlags::Up),
        kind: Kind::Other,
        lower: None,
        master: None,
        hands_on: true,
    };
    let mut is_lower_elsewhere = false;
    for attribute in &link.attributes {
        match attribute {
            LinkAttribute::IfName(name) => device.name.clone_from(name),
            LinkAttribute::Address(mac) => device.mac = mac.as_slice().try_into().ok()?,
            LinkAttribute::Link(index) => device.lower = Some(*index),
            LinkAttribute::LinkNetNsId(_) => is_lower_elsewhere = true,
            LinkAttribute::Controller(index) => device.master = Some(*index).filter(|i| *i != 0),
            LinkAttribute::LinkInfo(infos) => {
                for info in infos {
                    read_info(info, &mut device);
                }
            }
            _ => {}
        }
    }
    if is_lower_elsewhere {
        device.lower = None;
    }
    Some(device)
}

fn read_info(info: &LinkInfo, device: &mut Device) {
    match info {
        LinkInfo::Kind(InfoKind::MacVlan | InfoKind::MacVtap) => device.kind = Kind::MacVlan,
        LinkInfo::Kind(InfoKind::IpVlan | InfoKind::IpVtap) => device.kind = Kind::IpVlan,
        LinkInfo::Kind(InfoKind::Bond | InfoKind::Team) => device.kind = Kind::Bond,
        LinkInfo::Kind(InfoKind::Vrf) => device.kind = Kind::Vrf,
        LinkInfo::Data(InfoData::Vlan(infos)) => {
            let mut tag = Tag {
                is_service: false,
                id: 0,
            };
            for info in infos {
                match info {
                    InfoVlan::Id(id) => tag.id = *id,
                    InfoVlan::Protocol(protocol) => {
                        tag.is_service = *protocol == VlanProtocol::Ieee8021Ad;
                    }
                    _ => {}
                }
            }
            device.kind = Kind::Vlan(tag);
        }
        LinkInfo::Data(InfoData::Bridge(infos)) => {
            // Which VLANs a bridge takes itself is not asked for.
            let filters = infos.contains(&InfoBridge::VlanFiltering(true));
            device.kind = if filters { Kind::Other } else { Kind::Bridge };
        }
        LinkInfo::PortData(InfoPortData::BondPort(infos)) => {
            let is_backup = InfoBondPort::BondPortState(BondPortState::Backup);
            device.hands_on = !infos.contains(&is_backup);
        }
        LinkInfo::PortData(InfoPortData::BridgePort(infos)) => {
            device.hands_on = infos.contains(&InfoBridgePort::State(BridgePortState::Forwarding));
        }
        _ => {}
    }
}

/// A BPF filter of an interface.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Filter {
    /// Its priority.
    pub priority: u16,
    /// Its handle within the priority.
    pub handle: u32,
    /// Kernel's number of its program.
    pub program: Option<u32>,
}

/// Looks up an interface by its name; `None` if there is none.
///
/// # Errors
/// The kernel refused to say.
pub fn interface(name: &str) -> io::Result<Option<Interface>> {
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::IfName(name.into()));
    link(message)
}

/// Looks up an interface by its index, whatever its name is by now; `None` if there is none.
///
/// # Errors
/// The kernel refused to say.
pub fn interface_at(index: u32) -> io::Result<Option<Interface>> {
    let mut message = LinkMessage::default();
    message.header.index = index;
    link(message)
}

fn link(message: LinkMessage) -> io::Result<Option<Interface>> {
    let replies = match request(RouteNetlinkMessage::GetLink(message), 0) {
        Err(error) if error.raw_os_error() == Some(libc::ENODEV) => return Ok(None),
        replies => replies?,
    };
    Ok(replies.known.into_iter().find_map(|reply| match reply {
        RouteNetlinkMessage::NewLink(link) => Some(read_link(&link)),
        _ => None,
    }))
}

fn read_link(link: &LinkMessage) -> Interface {
    let mut interface = Interface {
        name: String::new(),
        index: link.header.index,
        is_up: link.header.flags.contains(LinkFlags::Up),
        ethernet: matches!(
            link.header.link_layer_type,
            LinkLayerType::Ether | LinkLayerType::Loopback
        ),
        mtu: 0,
        xdp: Vec::new(),
        generic_xdp: false,
        other_end: OtherEnd::of(link),
    };
    for attribute in &link.attributes {
        match attribute {
            LinkAttribute::IfName(name) => interface.name.clone_from(name),
            LinkAttribute::Mtu(mtu) => interface.mtu = *mtu,
            LinkAttribute::Xdp(list) => {
                for xdp in list {
                    interface.generic_xdp |= matches!(xdp, LinkXdp::SkbProgId(_));
                    if let LinkXdp::ProgId(id)
                    | LinkXdp::DrvProgId(id)
                    | LinkXdp::SkbProgId(id)
                    | LinkXdp::HwProgId(id) = xdp
                        && !interface.xdp.contains(id)
                    {
                        interface.xdp.push(*id);
                    }
                }
            }
            _ => {}
        }
    }
    interface
}

/// The filters at a hook of an interface.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Filters {
    /// Those that can be read.
    pub known: Vec<Filter>,
    /// Whether there are others, of which more is said than can be read: they are somebody else's.
    pub has_unknown: bool,
}

impl Filters {
    fn is_empty(&self) -> bool {
        self.known.is_empty() && !self.has_unknown
    }
}

/// The filters at the egress hook of an interface.
///
/// # Errors
/// The kernel refused to say.
pub fn egress_filters(index: u32) -> io::Result<Filters> {
    filters(index, EGRESS)
}

fn filters(index: u32, parent: TcHandle) -> io::Result<Filters> {
    let mut message = tc_message(index);
    message.header.parent = parent;
    let replies = request(RouteNetlinkMessage::GetTrafficFilter(message), NLM_F_DUMP)?;
    let known = replies.known.into_iter();
    Ok(Filters {
        known: known
            .filter_map(|reply| match reply {
                RouteNetlinkMessage::NewTrafficFilter(filter) => read_filter(&filter),
                _ => None,
            })
            .collect(),
        has_unknown: replies.has_unknown,
    })
}

/// `None` for the head of a priority, which has no options.
fn read_filter(message: &TcMessage) -> Option<Filter> {
    let options = message
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            TcAttribute::Options(options) => Some(options),
            _ => None,
        })?;
    Some(Filter {
        priority: (message.header.info >> 16) as u16,
        handle: message.header.handle.into(),
        program: options.iter().find_map(|option| match option {
            TcOption::Bpf(TcFilterBpfOption::ProgId(id)) => Some(*id),
            _ => None,
        }),
    })
}

/// Removes a filter from the egress hook of an interface.
///
/// # Errors
/// The kernel refused, for example because it is gone.
pub fn remove_egress_filter(index: u32, filter: &Filter) -> io::Result<()> {
    let mut message = tc_message(index);
    message.header.parent = EGRESS;
    message.header.handle = filter.handle.into();
    message.header.info = u32::from(filter.priority) << 16 | u32::from(EVERY_PROTOCOL);
    request(RouteNetlinkMessage::DelTrafficFilter(message), 0).map(drop)
}

/// Removes the clsact qdisc of an interface, unless a filter is attached to it.
///
/// # Errors
/// The kernel refused.
pub fn remove_unused_clsact(index: u32) -> io::Result<()> {
    if !filters(index, EGRESS)?.is_empty() || !filters(index, INGRESS)?.is_empty() {
        return Ok(());
    }
    let mut message = tc_message(index);
    message.header.handle = TcHandle {
        major: u16::MAX,
        minor: 0,
    };
    message.header.parent = TcHandle::CLSACT;
    match request(RouteNetlinkMessage::DelQueueDiscipline(message), 0) {
        // It is gone already, or the interface is.
        Err(error)
            if matches!(
                error.raw_os_error(),
                Some(libc::ENOENT | libc::EINVAL | libc::ENODEV)
            ) =>
        {
            Ok(())
        }
        removed => removed.map(drop),
    }
}

fn tc_message(index: u32) -> TcMessage {
    // Interface numbers are positive `int`s in the kernel.
    TcMessage::with_index(index.cast_signed())
}

/// The kernel's notices that interfaces or addresses have changed; the descriptor is readable when
/// there is one.
#[derive(Debug)]
pub struct Notices(Socket);

impl Notices {
    /// Every change from now on is noted.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn subscribe() -> io::Result<Self> {
        let groups = libc::RTMGRP_LINK | libc::RTMGRP_IPV4_IFADDR | libc::RTMGRP_IPV6_IFADDR;
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.set_non_blocking(true)?;
        socket.bind(&SocketAddr::new(0, groups.cast_unsigned()))?;
        Ok(Self(socket))
    }

    /// Takes the notices that have come, and returns whether one may be about an address, about one of
    /// these interfaces, or about one on top of them.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn concern(&self, interfaces: &[u32]) -> io::Result<bool> {
        let mut concern = false;
        loop {
            match self.0.recv_from_full() {
                // What cannot be read may be about anything.
                Ok((datagram, _)) => {
                    concern |= messages(&datagram).map_or(true, |notices| {
                        notices
                            .iter()
                            .any(|notice| match notice.as_ref().map(|n| &n.payload) {
                                Ok(NetlinkPayload::InnerMessage(
                                    RouteNetlinkMessage::NewLink(link)
                                    | RouteNetlinkMessage::DelLink(link),
                                )) => is_about(link, interfaces),
                                _ => true,
                            })
                    });
                }
                Err(error) => match error.raw_os_error() {
                    Some(libc::EAGAIN) => return Ok(concern),
                    // Some were dropped for want of room.
                    Some(libc::ENOBUFS) => concern = true,
                    Some(libc::EINTR) => {}
                    _ => return Err(error),
                },
            }
        }
    }
}

/// Whether a notice is about one of these interfaces, or one that is joined to them.
fn is_about(link: &LinkMessage, interfaces: &[u32]) -> bool {
    interfaces.contains(&link.header.index)
        || link.attributes.iter().any(|attribute| match attribute {
            LinkAttribute::Link(index) | LinkAttribute::Controller(index) => {
                interfaces.contains(index)
            }
            _ => false,
        })
}

impl AsFd for Notices {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_interface_is_described() {
        let lo = interface("lo").expect("an answer").expect("there is one");
        assert_eq!(lo.name, "lo");
        assert!(lo.index > 0 && lo.ethernet && lo.mtu >= 1500);
    }

    #[test]
    fn the_loopback_interface_is_a_device() {
        let devices = devices().expect("an answer");
        let lo = devices.iter().find(|device| device.name == "lo");
        let lo = lo.expect("there is one");
        assert_eq!((lo.mac, lo.kind, lo.lower), ([0; 6], Kind::Other, None));
    }

    #[test]
    fn only_some_interfaces_have_ethernet_headers() {
        for (link_layer_type, ethernet) in [
            (LinkLayerType::Ether, true),
            (LinkLayerType::Tunnel, false),
            (LinkLayerType::None, false),
        ] {
            let mut link = LinkMessage::default();
            link.header.link_layer_type = link_layer_type;
            assert_eq!(read_link(&link).ethernet, ethernet, "{link_layer_type:?}");
        }
    }

    #[test]
    fn there_is_no_such_interface() {
        assert_eq!(interface("no-such-if").expect("an answer"), None);
    }
}
