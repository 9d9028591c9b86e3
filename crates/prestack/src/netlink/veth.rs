//! The other end of a veth pair.
//!
//! What XDP sends back at one end arrives only while the other end has an XDP program in native mode: without one its
//! device has no ring for such frames, or leaves them there (`veth_xdp_xmit` and `veth_xdp_flush` in
//! drivers/net/veth.c).

use std::io;

use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkInfo, LinkMessage};

use super::{Interface, link};

/// Where the other end of a veth device is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OtherEnd {
    /// Its index.
    index: u32,
    /// The number that this network namespace has for the one that it is in, if that is another one.
    namespace: Option<i32>,
}

impl OtherEnd {
    /// Where that of this device is; `None` if it is no veth device, or the kernel does not say.
    pub(super) fn of(device: &LinkMessage) -> Option<Self> {
        let (mut is_veth, mut index, mut namespace) = (false, None, None);
        for attribute in &device.attributes {
            match attribute {
                LinkAttribute::LinkInfo(infos) => {
                    is_veth |= infos.contains(&LinkInfo::Kind(InfoKind::Veth));
                }
                LinkAttribute::Link(at) => index = Some(*at),
                LinkAttribute::LinkNetNsId(number) => namespace = Some(*number),
                _ => {}
            }
        }
        let index = index.filter(|_| is_veth)?;
        Some(Self { index, namespace })
    }

    /// Why what XDP sends back in native mode does not arrive there; `None` if it does.
    ///
    /// # Errors
    /// The kernel refused to say.
    pub fn why_lost(self) -> io::Result<Option<String>> {
        let place = match self.namespace {
            Some(_) => ", in another network namespace,",
            None => "",
        };
        Ok(match self.look()? {
            Some(end) if end.xdp.is_empty() || end.generic_xdp => Some(format!(
                "the other end of its veth pair, {}{place} has no XDP program in native mode",
                end.name
            )),
            Some(_) => None,
            None => Some("the other end of its veth pair is gone".into()),
        })
    }

    fn look(self) -> io::Result<Option<Interface>> {
        let mut message = LinkMessage::default();
        message.header.index = self.index;
        let namespace = self.namespace.map(LinkAttribute::IfNetnsId);
        message.attributes.extend(namespace);
        link(message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_veth_device_has_another_end() {
        let device = |kind, namespace: Option<i32>| {
            let mut message = LinkMessage::default();
            let info = LinkAttribute::LinkInfo(vec![LinkInfo::Kind(kind)]);
            message.attributes.extend([LinkAttribute::Link(7), info]);
            let namespace = namespace.map(LinkAttribute::LinkNetNsId);
            message.attributes.extend(namespace);
            OtherEnd::of(&message)
        };
        let end = |namespace| {
            Some(OtherEnd {
                index: 7,
                namespace,
            })
        };
        assert_eq!(device(InfoKind::Veth, None), end(None));
        assert_eq!(device(InfoKind::Veth, Some(0)), end(Some(0)));
        assert_eq!(device(InfoKind::Vlan, None), None);
    }
}
