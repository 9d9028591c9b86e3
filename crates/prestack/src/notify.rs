//! What the service manager is told, if it asks: the protocol of `sd_notify(3)`.

use std::{
    env,
    ffi::OsStr,
    io,
    os::{
        linux::net::SocketAddrExt as _,
        unix::{
            ffi::OsStrExt as _,
            net::{SocketAddr, UnixDatagram},
        },
    },
};

use tracing::warn;

/// Where systemd wants to be told (`Type=notify`): a path, or an abstract address behind `@`.
const SOCKET: &str = "NOTIFY_SOCKET";

/// Tells the service manager that this serves, and what.
pub fn ready(what: &str) {
    tell(&format!("READY=1\nSTATUS={what}"));
}

/// Tells it what has become of that.
pub fn status(what: &str) {
    tell(&format!("STATUS={what}"));
}

/// Tells it that this ends.
pub fn stopping() {
    tell("STOPPING=1\nSTATUS=ending");
}

fn tell(message: &str) {
    if let Some(socket) = env::var_os(SOCKET)
        && let Err(error) = send(&socket, message)
    {
        warn!("cannot tell the service manager at {SOCKET}: {error}");
    }
}

fn send(socket: &OsStr, message: &str) -> io::Result<()> {
    let address = match socket.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        _ => SocketAddr::from_pathname(socket)?,
    };
    let sender = UnixDatagram::unbound()?;
    // Serving waits for nobody.
    sender.set_nonblocking(true)?;
    sender.send_to_addr(message.as_bytes(), &address).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_kinds_of_sockets_are_written_to() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("notify");
        let name = format!("prestack-notify-{}", std::process::id());
        let of_path = UnixDatagram::bind(&path).expect("bound");
        let address = SocketAddr::from_abstract_name(&name).expect("short");
        let of_name = UnixDatagram::bind_addr(&address).expect("bound");
        let abstract_name = format!("@{name}");
        for (socket, given) in [
            (&of_path, path.as_os_str()),
            (&of_name, abstract_name.as_ref()),
        ] {
            send(given, "READY=1").expect("somebody listens");
            let mut told = [0; 16];
            let len = socket.recv(&mut told).expect("a message");
            assert_eq!(&told[..len], b"READY=1");
        }
        assert!(send(folder.path().join("other").as_os_str(), "READY=1").is_err());
    }
}
