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

use super::{AttachError, Datapath, pins, reason};
use crate::{
    netlink::{Interface, OtherEnd},
    settings::ModeSetting,
};

/// The modes, as they are written down.
const NATIVE: &str = "native";
const GENERIC: &str = "generic";

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

    /// Whether it runs in the driver.
    pub(super) fn is_native(&self) -> bool {
        self.mode == NATIVE
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
            .map(|link| attached(GENERIC, link))
            .map_err(|reason| AttachError::Xdp {
                interface: interface.name.clone(),
                reason,
            })
    };
    if mode == ModeSetting::Generic {
        return Ok((generic(datapath)?, None));
    }
    if mode == ModeSetting::Auto
        && let Some(reason) = interface.other_end.and_then(why_not_native)
    {
        return Ok((generic(datapath)?, Some(reason)));
    }
    match attach_in(datapath, interface, XdpMode::Driver) {
        Ok(link) => Ok((attached(NATIVE, link), None)),
        Err(reason) if mode == ModeSetting::Auto => {
            let reason = format!("it does not do XDP in native mode: {reason}");
            Ok((generic(datapath)?, Some(reason)))
        }
        Err(reason) => Err(AttachError::Native {
            interface: interface.name.clone(),
            reason,
        }),
    }
}

/// Why a veth device of which this is the other end is not attached to in native mode.
fn why_not_native(other_end: OtherEnd) -> Option<String> {
    match other_end.why_lost() {
        Ok(None) => None,
        Ok(Some(reason)) => Some(format!(
            "{reason}, and answers would be lost. For native mode give it one, such as one that passes everything, and \
             start prestack again"
        )),
        Err(error) => Some(format!(
            "the other end of its veth pair cannot be looked at ({error}), and answers may be lost. If it has an XDP \
             program use --mode native"
        )),
    }
}

/// Puts `rx` in the place of the program of another run, which has left its link at `path`, in whichever mode
/// that is. `None` if there is no link.
pub(super) fn adopt(
    datapath: &mut Datapath,
    interface: &Interface,
    path: &Path,
) -> Result<Option<Attached>, AttachError> {
    let failed = |reason: String| AttachError::Xdp {
        interface: interface.name.clone(),
        reason,
    };
    let program = datapath
        .rx_fd()
        .map_err(|error| failed(error.to_string()))?;
    let link = pins::replace(path, program).map_err(|error| failed(error.to_string()))?;
    Ok(link.map(|link| Attached {
        mode: match interface.generic_xdp {
            true => GENERIC,
            false => NATIVE,
        },
        link: None,
        pinned: Some(link),
    }))
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
