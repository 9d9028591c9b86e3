//! Many datagrams to or from a connected socket with one system call.

use std::net::UdpSocket;
use std::os::fd::AsRawFd;

use nix::errno::Errno;
use nix::libc;

/// Buffers for datagrams of one capacity. What the kernel is told about them (`headers` pointing
/// to `vectors` pointing to `bytes`) is set up once.
pub(crate) struct Batch {
    capacity: usize,
    bytes: Vec<u8>,
    vectors: Vec<libc::iovec>,
    headers: Vec<libc::mmsghdr>,
}

// SAFETY: the pointers in `headers` and `vectors` lead into the heap blocks that the batch itself
// owns, which do not move with it; nobody else has them.
unsafe impl Send for Batch {}

impl Batch {
    /// Buffers for `count` datagrams of at most `capacity` bytes.
    pub(crate) fn new(count: usize, capacity: usize) -> Self {
        let mut bytes = vec![0; count * capacity];
        let mut vectors: Vec<libc::iovec> = bytes
            .chunks_exact_mut(capacity)
            .map(|chunk| libc::iovec {
                iov_base: chunk.as_mut_ptr().cast(),
                iov_len: capacity,
            })
            .collect();
        let headers = vectors
            .iter_mut()
            .map(|vector| {
                // SAFETY: an mmsghdr of zero bytes is valid: no address, no data, no control.
                let mut header: libc::mmsghdr = unsafe { std::mem::zeroed() };
                header.msg_hdr.msg_iov = vector;
                header.msg_hdr.msg_iovlen = 1;
                header
            })
            .collect();
        Self {
            capacity,
            bytes,
            vectors,
            headers,
        }
    }

    /// Makes the `i`-th datagram this one, of at most the capacity.
    pub(crate) fn set(&mut self, i: usize, datagram: &[u8]) {
        self.bytes[i * self.capacity..][..self.capacity][..datagram.len()]
            .copy_from_slice(datagram);
        self.vectors[i].iov_len = datagram.len();
    }

    /// The `i`-th of the datagrams received last.
    pub(crate) fn received(&self, i: usize) -> &[u8] {
        &self.bytes[i * self.capacity..][..self.headers[i].msg_len as usize]
    }

    /// Sends the datagrams `range`; returns how many of them the kernel took.
    pub(crate) fn send(
        &mut self,
        socket: &UdpSocket,
        range: std::ops::Range<usize>,
    ) -> Result<usize, Errno> {
        let headers = &mut self.headers[range];
        // SAFETY: the headers lead to vectors and bytes that live as long as `self`, and nobody
        // writes to them during the call.
        let sent = unsafe {
            libc::sendmmsg(
                socket.as_raw_fd(),
                headers.as_mut_ptr(),
                headers.len() as u32,
                0,
            )
        };
        Errno::result(sent).map(|sent| sent as usize)
    }

    /// Receives datagrams: waits for the first as long as the socket's time limit allows, then
    /// takes what is there. Returns their number.
    pub(crate) fn receive(&mut self, socket: &UdpSocket) -> Result<usize, Errno> {
        // SAFETY: the headers lead to vectors and bytes that live as long as `self` and that are
        // borrowed for writing by this call.
        let received = unsafe {
            libc::recvmmsg(
                socket.as_raw_fd(),
                self.headers.as_mut_ptr(),
                self.headers.len() as u32,
                libc::MSG_WAITFORONE,
                std::ptr::null_mut(),
            )
        };
        Errno::result(received).map(|received| received as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn datagrams_arrive_in_one_call() {
        let (a, b) = (
            UdpSocket::bind("127.0.0.1:0").unwrap(),
            UdpSocket::bind("127.0.0.1:0").unwrap(),
        );
        a.connect(b.local_addr().unwrap()).unwrap();
        b.connect(a.local_addr().unwrap()).unwrap();
        let mut batch = Batch::new(3, 4);
        for i in 0..3 {
            batch.set(i, &[i as u8; 4][..i + 1]);
        }
        let mut batch = std::thread::spawn(|| batch).join().unwrap();
        assert_eq!(batch.send(&a, 1..3), Ok(2));
        b.send(b"xy").unwrap();
        let mut received = Batch::new(8, 16);
        assert_eq!(received.receive(&b), Ok(2));
        assert_eq!(
            (received.received(0), received.received(1)),
            (&[1; 2][..], &[2; 3][..])
        );
        assert_eq!(received.receive(&a), Ok(1));
        assert_eq!(received.received(0), b"xy");
    }
}
