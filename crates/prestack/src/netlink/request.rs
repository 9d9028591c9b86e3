//! Requests over rtnetlink, and the replies to them.

use std::io;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkBuffer, NetlinkHeader, NetlinkMessage,
    NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

/// The replies to a request.
#[derive(Default, Debug)]
pub(super) struct Replies {
    /// Those that can be read.
    pub(super) known: Vec<RouteNetlinkMessage>,
    /// Whether there are others.
    pub(super) has_unknown: bool,
}

impl Replies {
    /// Takes the replies in a datagram, of a dump or not. Returns whether they are all by then.
    fn take(&mut self, datagram: &[u8], is_dump: bool) -> io::Result<bool> {
        for reply in messages(datagram)? {
            let reply = match reply {
                Ok(reply) => reply,
                // What is listed of which more is said than can be read is one among many.
                Err(_) if is_dump => {
                    self.has_unknown = true;
                    continue;
                }
                Err(error) => return Err(error),
            };
            match reply.payload {
                // A list that could not be made to its end says so there.
                NetlinkPayload::Done(done) if done.code < 0 => {
                    return Err(io::Error::from_raw_os_error(-done.code));
                }
                NetlinkPayload::Error(error) if error.code.is_some() => return Err(error.to_io()),
                NetlinkPayload::Done(_) | NetlinkPayload::Error(_) => return Ok(true),
                NetlinkPayload::InnerMessage(reply) => self.known.push(reply),
                _ => {}
            }
        }
        Ok(false)
    }
}

/// Sends a request and collects the replies to it.
pub(super) fn request(message: RouteNetlinkMessage, flags: u16) -> io::Result<Replies> {
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    let mut header = NetlinkHeader::default();
    // An acknowledgement ends the replies of everything but a dump, which ends by itself.
    let end = if flags == NLM_F_DUMP { 0 } else { NLM_F_ACK };
    header.flags = NLM_F_REQUEST | flags | end;
    header.sequence_number = 1;
    let mut message = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(message));
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    socket.send(&bytes, 0)?;

    let mut replies = Replies::default();
    loop {
        let (datagram, _) = socket.recv_from_full()?;
        if replies.take(&datagram, flags == NLM_F_DUMP)? {
            return Ok(replies);
        }
    }
}

/// A message, if it can be read.
pub(super) type Message = io::Result<NetlinkMessage<RouteNetlinkMessage>>;

/// The messages in a datagram.
pub(super) fn messages(mut datagram: &[u8]) -> io::Result<Vec<Message>> {
    let mut messages = Vec::new();
    while !datagram.is_empty() {
        let length = NetlinkBuffer::new_checked(datagram)
            .map_err(io::Error::other)?
            .length();
        messages.push(NetlinkMessage::deserialize(datagram).map_err(io::Error::other));
        let step = (length as usize).next_multiple_of(4).min(datagram.len());
        datagram = &datagram[step..];
    }
    Ok(messages)
}

#[cfg(test)]
mod tests {
    use nix::libc;

    use super::*;

    /// A message of this type with this payload.
    fn message(kind: u16, payload: &[u8]) -> Vec<u8> {
        let length = 16 + payload.len() as u32;
        let head = [&length.to_ne_bytes()[..], &kind.to_ne_bytes(), &[0; 10]];
        [&head.concat()[..], payload].concat()
    }

    #[test]
    fn what_cannot_be_read_of_a_list_is_there() {
        // The list of a filter's attributes ends amid one.
        let filter = message(
            libc::RTM_NEWTFILTER,
            &[&[0; 20][..], &[200, 0, 1, 0]].concat(),
        );
        let mut replies = Replies::default();
        assert!(!replies.take(&filter, true).expect("one of many"));
        assert!(replies.has_unknown && replies.known.is_empty());
        assert!(Replies::default().take(&filter, false).is_err());
        let done = |code: i32| message(libc::NLMSG_DONE as u16, &code.to_ne_bytes());
        assert!(replies.take(&done(0), true).expect("all"));
        let error = replies.take(&done(-libc::ENOMEM), true).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENOMEM));
    }
}
