//! Loads the programs and attaches them to interfaces: all of them, or none.

pub mod load;
pub mod pins;
pub mod sockets;
pub mod tc;
pub mod xdp;

use std::{
    io,
    path::{Path, PathBuf},
};

use aya::programs::ProgramError;
use prestack_abi::names;
use tracing::info;

use crate::{
    bpffs::{self, BpffsError},
    host::LOOPBACK,
    netlink::{self, Interface},
    settings::{EgressSetting, ModeSetting},
    state::{AttachedState, State},
};

use tc::Order;

pub use load::{Datapath, LoadError};

/// A program cannot be attached to an interface.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum AttachError {
    #[error(
        "cannot attach at XDP to {interface} in native mode: {reason}; try --mode generic, which \
         works on every interface"
    )]
    Native { interface: String, reason: String },
    #[error("cannot attach at XDP to {interface}: {reason}")]
    Xdp { interface: String, reason: String },
    #[error("cannot attach at TC egress to {interface}: {reason}")]
    Egress { interface: String, reason: String },
    #[error("cannot pin the programs of {interface} at {path}: {source}")]
    Pin {
        interface: String,
        path: PathBuf,
        source: Box<aya::pin::PinError>,
    },
    #[error("cannot pin the program for sockets at {path}: {source}")]
    PinSockets {
        path: PathBuf,
        source: Box<aya::pin::PinError>,
    },
    #[error("cannot pin a map at {path}: {source}")]
    PinMap {
        path: PathBuf,
        source: Box<aya::pin::PinError>,
    },
    #[error(transparent)]
    Bpffs(#[from] BpffsError),
}

/// What another run of the instance has left, which goes on until other programs take its place.
#[derive(Clone, Copy, Debug)]
pub struct Left<'a> {
    /// Where it is pinned.
    pub folder: &'a Path,
    /// What that run has written down.
    pub state: &'a State,
}

impl Left<'_> {
    /// Whether a clsact qdisc of the interface of this number was added for the instance.
    fn added_clsact(&self, index: u32) -> bool {
        let mut egresses = self.state.egresses();
        egresses.any(|left| left.index == index && left.added_clsact)
    }
}

/// Has the program that notices the end of memcached's sockets take the place of that of another run, or
/// attaches it.
///
/// # Errors
/// The kernel cannot do that.
pub fn adopt_sockets(
    datapath: &mut Datapath,
    left: Left<'_>,
) -> Result<sockets::Attached, sockets::Unwatched> {
    match sockets::adopt(datapath, &pins::of_sockets(left.folder))? {
        Some(adopted) => Ok(adopted),
        None => sockets::attach(datapath),
    }
}

/// Attaches the program that notices the end of memcached's sockets; it is detached when what is returned
/// is dropped, unless pinned.
///
/// # Errors
/// The kernel cannot do that.
pub fn watch_sockets(datapath: &mut Datapath) -> Result<sockets::Attached, sockets::Unwatched> {
    sockets::attach(datapath)
}

/// The program that watches what this host sends to itself, on the loopback interface: it is detached when
/// this is dropped, unless pinned.
#[derive(Debug)]
pub struct Loopback {
    interface: Interface,
    lo: tc::Attached,
}

impl Loopback {
    /// Attaches `lo`: requests are looked at, and replies watched, from then on.
    ///
    /// # Errors
    /// There is no loopback interface, or the kernel refused.
    pub fn watch(datapath: &mut Datapath, egress: EgressSetting) -> Result<Self, Unwatched> {
        let interface = netlink::interface(LOOPBACK)?.ok_or(Unwatched::Missing)?;
        let lo = tc::attach(datapath, names::LO, &interface, egress, Order::First)?;
        Ok(Self { interface, lo })
    }

    /// Has `lo` take the place of that of another run, or attaches it.
    ///
    /// # Errors
    /// There is no loopback interface, or the kernel refused.
    pub fn adopt(
        datapath: &mut Datapath,
        egress: EgressSetting,
        left: Left<'_>,
    ) -> Result<Self, Unwatched> {
        let interface = netlink::interface(LOOPBACK)?.ok_or(Unwatched::Missing)?;
        let path = pins::of_loopback(left.folder);
        if let Some(lo) = tc::adopt(datapath, names::LO, &interface, &path, left)? {
            return Ok(Self { interface, lo });
        }
        Self::watch(datapath, egress)
    }

    /// Whether one of `programs` is there still, as far as the kernel says.
    #[must_use]
    pub fn is_watching(&self, programs: &[u32]) -> bool {
        self.lo.is_there(&self.interface, programs)
    }

    /// Detaches the program, pinned or not, if it is still there.
    ///
    /// # Errors
    /// The BPF file system refused to remove a pin.
    pub fn give_up(mut self, folder: &Path) -> Result<(), BpffsError> {
        self.lo.unpin();
        bpffs::remove(&Self::pinned_at(folder))
    }

    /// Where its link is pinned.
    #[must_use]
    pub fn pinned_at(folder: &Path) -> PathBuf {
        pins::of_loopback(folder)
    }

    /// Pins the link in `folder`, so that it outlives the process.
    ///
    /// # Errors
    /// The BPF file system refused.
    pub fn pin(&mut self, folder: &Path) -> Result<(), AttachError> {
        let path = Self::pinned_at(folder);
        self.lo.pin(&path).map_err(|source| AttachError::Pin {
            interface: self.interface.name.clone(),
            path,
            source: Box::new(source),
        })
    }

    /// What other commands need to know.
    #[must_use]
    pub fn state(&self) -> AttachedState {
        AttachedState {
            name: self.interface.name.clone(),
            index: self.interface.index,
            mode: String::new(),
            egress: self.lo.hook().into(),
            added_clsact: self.lo.added_clsact(),
        }
    }
}

/// What this host sends to itself cannot be watched: what its clients change shows after max-age at most.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum Unwatched {
    #[error("writes of clients on this host are not seen: there is no interface named {LOOPBACK}")]
    Missing,
    #[error("writes of clients on this host are not seen: cannot ask about {LOOPBACK}: {0}")]
    Io(#[from] io::Error),
    #[error("writes of clients on this host are not seen: {0}")]
    Attach(#[from] AttachError),
}

/// The programs' place on one interface: they are detached when this is dropped, unless pinned.
#[derive(Debug)]
pub struct Attachment {
    interface: Interface,
    // Fields are dropped in this order: nothing is answered any more before replies go unwatched.
    rx: Option<xdp::Attached>,
    tx: tc::Attached,
    /// Whether the programs have taken the places of others, so that no packet was missed.
    taken_over: bool,
}

impl Attachment {
    /// Attaches `tx` to an interface: replies are watched from then on.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn watch_replies(
        datapath: &mut Datapath,
        interface: Interface,
        egress: EgressSetting,
    ) -> Result<Self, AttachError> {
        let tx = tc::attach(datapath, names::TX, &interface, egress, Order::Last)?;
        Ok(Self {
            interface,
            rx: None,
            tx,
            taken_over: false,
        })
    }

    /// Has `tx` take the place of that of another run, or attaches it.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn adopt_replies(
        datapath: &mut Datapath,
        interface: Interface,
        egress: EgressSetting,
        left: Left<'_>,
    ) -> Result<Self, AttachError> {
        // Written down or not: a run may have ended between the two.
        let path = pins::of_interface(left.folder, "tx", interface.index);
        if let Some(tx) = tc::adopt(datapath, names::TX, &interface, &path, left)? {
            return Ok(Self {
                interface,
                rx: None,
                tx,
                taken_over: true,
            });
        }
        Self::watch_replies(datapath, interface, egress)
    }

    /// Has `rx` take the place of that of another run, or attaches it.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn adopt_requests(
        &mut self,
        datapath: &mut Datapath,
        mode: ModeSetting,
        left: Left<'_>,
    ) -> Result<(), AttachError> {
        let path = pins::of_interface(left.folder, "rx", self.interface.index);
        self.rx = xdp::adopt(datapath, &self.interface, &path)?;
        if self.rx.is_some() {
            return Ok(());
        }
        self.taken_over = false;
        self.take_requests(datapath, mode)
    }

    /// Where its links are pinned.
    #[must_use]
    pub fn pinned_at(&self, folder: &Path) -> [PathBuf; 2] {
        ["tx", "rx"].map(|hook| pins::of_interface(folder, hook, self.interface.index))
    }

    /// Attaches `rx` to the interface: requests are looked at from then on. Tells why native mode is not used, if it
    /// could have been.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn take_requests(
        &mut self,
        datapath: &mut Datapath,
        mode: ModeSetting,
    ) -> Result<(), AttachError> {
        let (rx, reason) = xdp::attach(datapath, &self.interface, mode)?;
        self.rx = Some(rx);
        if let Some(reason) = reason {
            info!("XDP is generic at {}: {reason}", self.interface.name);
        }
        Ok(())
    }

    /// Whether the kernel hands frames to `rx` before it makes socket buffers of them.
    #[must_use]
    pub fn is_native(&self) -> bool {
        self.rx.as_ref().is_some_and(xdp::Attached::is_native)
    }

    /// Whether the programs have taken the places of others, so that no packet was missed.
    #[must_use]
    pub fn has_taken_over(&self) -> bool {
        self.taken_over
    }

    /// Whether replies are watched still, by one of `programs`, as far as the kernel says.
    #[must_use]
    pub fn is_watching(&self, programs: &[u32]) -> bool {
        self.tx.is_there(&self.interface, programs)
    }

    /// The interface as it was when it was attached to.
    #[must_use]
    pub fn interface(&self) -> &Interface {
        &self.interface
    }

    /// Notes that the interface is called so by now.
    pub fn rename(&mut self, name: &str) {
        self.interface.name = name.into();
    }

    /// Pins the links in `folder`, so that they outlive the process.
    ///
    /// # Errors
    /// The BPF file system refused.
    pub fn pin(&mut self, folder: &Path) -> Result<(), AttachError> {
        let failed = |path: PathBuf, source| AttachError::Pin {
            interface: self.interface.name.clone(),
            path,
            source: Box::new(source),
        };
        let [tx_path, rx_path] = self.pinned_at(folder);
        self.tx.pin(&tx_path).map_err(|e| failed(tx_path, e))?;
        if let Some(rx) = &mut self.rx {
            rx.pin(&rx_path).map_err(|e| failed(rx_path, e))?;
        }
        Ok(())
    }

    /// Detaches the programs, pinned or not, if they are still there: the interface is to be seen no more.
    ///
    /// # Errors
    /// The BPF file system refused to remove a pin.
    pub fn give_up(mut self, folder: &Path) -> Result<(), BpffsError> {
        self.tx.unpin();
        for path in self.pinned_at(folder) {
            bpffs::remove(&path)?;
        }
        Ok(())
    }

    /// What other commands need to know.
    #[must_use]
    pub fn state(&self) -> AttachedState {
        AttachedState {
            name: self.interface.name.clone(),
            index: self.interface.index,
            mode: self.rx.as_ref().map_or("", xdp::Attached::mode).into(),
            egress: self.tx.hook().into(),
            added_clsact: self.tx.added_clsact(),
        }
    }
}

/// The reason that a program could not be attached, in few words.
fn reason(error: &ProgramError) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(error) = source {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        source = error.source();
    }
    text
}

/// The error number behind an error, if there is one.
fn error_number(error: &ProgramError) -> Option<i32> {
    let mut source: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = source {
        if let Some(error) = error.downcast_ref::<io::Error>() {
            return error.raw_os_error();
        }
        source = error.source();
    }
    None
}
