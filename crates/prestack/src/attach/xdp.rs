//! The XDP hook, by a BPF link: the kernel detaches it when the last descriptor and pin are gone.

use std::path::Path;

use aya::{
    pin::PinError,
    programs::{
        XdpMode,
        links::{FdLink, PinnedLink},
        xdp::XdpLinkId,
    },
};

use super::{AttachError, Datapath, reason};
use crate::{netlink::Interface, settings::ModeSetting};

/// `rx` on an interface.
#[derive(Debug)]
pub struct Attached {
    mode: &'static str,
    link: Option<FdLink>,
    pinned: Option<PinnedLink>,
}

impl Attached {
    /// `native` or `generic`.
    #[must_use]
    pub fn mode(&self) -> &'static str {
        self.mode
    }

    /// Pins the link.
    ///
    /// # Errors
    /// The BPF file system refused.
    pub fn pin(&mut self, path: &Path) -> Result<(), PinError> {
        if let Some(link) = self.link.take() {
            self.pinned = Some(link.pin(path)?);
        }
        Ok(())
    }
}

/// Attaches `rx`. In `auto` mode returns why it is not native, if it is not.
pub(super) fn attach(
    datapath: &mut Datapath,
    interface: &Interface,
    mode: ModeSetting,
) -> Result<(Attached, Option<String>), AttachError> {
    let attached = |mode, link| Attached {
        mode,
        link: Some(link),
        pinned: None,
    };
    let generic = |datapath: &mut Datapath| {
        attach_in(datapath, interface, XdpMode::Skb)
            .map(|link| attached("generic", link))
            .map_err(|reason| AttachError::Xdp {
                interface: interface.name.clone(),
                reason,
            })
    };
    if mode == ModeSetting::Generic {
        return Ok((generic(datapath)?, None));
    }
    match attach_in(datapath, interface, XdpMode::Driver) {
        Ok(link) => Ok((attached("native", link), None)),
        Err(reason) if mode == ModeSetting::Auto => Ok((generic(datapath)?, Some(reason))),
        Err(reason) => Err(AttachError::Native {
            interface: interface.name.clone(),
            reason,
        }),
    }
}

fn attach_in(
    datapath: &mut Datapath,
    interface: &Interface,
    mode: XdpMode,
) -> Result<FdLink, String> {
    let program = datapath.rx().map_err(|error| error.to_string())?;
    let id: XdpLinkId = program
        .attach_to_if_index(interface.index, mode)
        .map_err(|error| reason(&error))?;
    let link = program.take_link(id).map_err(|error| reason(&error))?;
    // Every supported kernel has links; what is attached otherwise would outlive a crash.
    link.try_into()
        .map_err(|_| "the kernel gave no BPF link".into())
}
