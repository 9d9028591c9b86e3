//! The TC egress hook: by a TCX link where the kernel has it, else by a filter of the clsact qdisc,
//! which the kernel keeps until someone removes it.

use std::{mem, path::Path};

use aya::{
    pin::PinError,
    programs::{
        LinkOrder, TcAttachType,
        links::{FdLink, PinnedLink},
        tc::{
            NlOptions, SchedClassifier, SchedClassifierLink, TcAttachOptions, TcError, TcHandle,
            qdisc_add_clsact,
        },
    },
};
use nix::libc;
use tracing::warn;

use super::{AttachError, Datapath, Left, error_number, pins, reason};
use crate::{
    netlink::{self, Interface},
    settings::EgressSetting,
};

/// A program on an interface.
#[derive(Debug)]
pub enum Attached {
    /// By a link.
    Tcx {
        /// The link, until it is pinned.
        link: Option<FdLink>,
        /// The link, once it is pinned.
        pinned: Option<PinnedLink>,
    },
    /// By a filter.
    Clsact(ClsactFilter),
}

/// A filter, removed when this is dropped unless it is to stay.
#[derive(Debug)]
pub struct ClsactFilter {
    interface: Interface,
    programs: Vec<u32>,
    added_clsact: bool,
    stays: bool,
}

impl Attached {
    /// `tcx` or `clsact`.
    #[must_use]
    pub fn hook(&self) -> &'static str {
        match self {
            Self::Tcx { .. } => "tcx",
            Self::Clsact(_) => "clsact",
        }
    }

    /// Whether the clsact qdisc was added for this.
    #[must_use]
    pub fn added_clsact(&self) -> bool {
        matches!(
            self,
            Self::Clsact(ClsactFilter {
                added_clsact: true,
                ..
            })
        )
    }

    /// Whether one of `programs` is still at the interface, as far as the kernel says: somebody may have removed it.
    #[must_use]
    pub fn is_there(&self, interface: &Interface, programs: &[u32]) -> bool {
        let is_there = match self {
            Self::Tcx { .. } => {
                let at = SchedClassifier::query_tcx(&interface.name, TcAttachType::Egress);
                at.map(|(_, at)| at.iter().any(|info| programs.contains(&info.id())))
                    .ok()
            }
            Self::Clsact(_) => {
                let filters = netlink::egress_filters(interface.index).ok();
                filters.map(|filters| {
                    let mut programs_at = filters.known.iter().filter_map(|at| at.program);
                    filters.has_unknown || programs_at.any(|program| programs.contains(&program))
                })
            }
        };
        is_there.unwrap_or(true)
    }

    /// Makes it outlive the process.
    ///
    /// # Errors
    /// The BPF file system refused.
    pub fn pin(&mut self, path: &Path) -> Result<(), PinError> {
        match self {
            Self::Tcx { link, pinned } => {
                if let Some(link) = link.take() {
                    *pinned = Some(link.pin(path)?);
                }
            }
            Self::Clsact(filter) => filter.stays = true,
        }
        Ok(())
    }

    /// Makes it go with the process again. (The pin of a link has to be removed besides.)
    pub fn unpin(&mut self) {
        if let Self::Clsact(filter) = self {
            filter.stays = false;
        }
    }
}

impl Drop for ClsactFilter {
    fn drop(&mut self) {
        if self.stays {
            return;
        }
        let removed = remove_filters(self.interface.index, &self.programs, self.added_clsact);
        if let Err(error) = removed {
            warn!(
                "cannot remove the TC filter of {}: {error}",
                self.interface.name
            );
        }
    }
}

/// Removes the egress filters that run one of `programs`, and the qdisc if it was added for them
/// and nothing else uses it. Returns how many filters there were.
///
/// # Errors
/// The kernel refused.
pub fn remove_filters(index: u32, programs: &[u32], added_clsact: bool) -> std::io::Result<usize> {
    let mut removed = 0;
    for filter in netlink::egress_filters(index)?.known {
        if filter
            .program
            .is_some_and(|program| programs.contains(&program))
        {
            netlink::remove_egress_filter(index, &filter)?;
            removed += 1;
        }
    }
    if added_clsact {
        netlink::remove_unused_clsact(index)?;
    }
    Ok(removed)
}

/// Where a program comes among those of its hook.
#[derive(Clone, Copy, Debug)]
pub(super) enum Order {
    /// Before those that are there, for any of them may end the matter: it sees what they drop, too.
    First,
    /// After them, to see what goes onto the wire: what they drop it does not see.
    Last,
}

/// Attaches the program of this name.
pub(super) fn attach(
    datapath: &mut Datapath,
    name: &'static str,
    interface: &Interface,
    egress: EgressSetting,
    order: Order,
) -> Result<Attached, AttachError> {
    let mut tcx = || attach_tcx(datapath, name, interface, order);
    let attached = match egress {
        EgressSetting::Tcx => tcx().map_err(|(reason, _)| reason),
        EgressSetting::Clsact => attach_clsact(datapath, name, interface, order),
        EgressSetting::Auto => match tcx() {
            // A kernel without TCX does not know the attach type.
            Err((_, Some(libc::EINVAL))) => attach_clsact(datapath, name, interface, order),
            attached => attached.map_err(|(reason, _)| reason),
        },
    };
    attached.map_err(|reason| AttachError::Egress {
        interface: interface.name.clone(),
        reason,
    })
}

/// Puts the program of this name in the place of one that another run has left at the interface: by its link at `path`,
/// or by its filter. `None` if there is neither.
pub(super) fn adopt(
    datapath: &mut Datapath,
    name: &'static str,
    interface: &Interface,
    path: &Path,
    left: Left<'_>,
) -> Result<Option<Attached>, AttachError> {
    let failed = |reason: String| AttachError::Egress {
        interface: interface.name.clone(),
        reason,
    };
    let text = |error: &dyn std::error::Error| failed(error.to_string());
    let program = datapath.classifier_fd(name).map_err(|error| text(&error))?;
    if let Some(link) = pins::replace(path, program).map_err(|error| text(&error))? {
        return Ok(Some(Attached::Tcx {
            link: None,
            pinned: Some(link),
        }));
    }
    let programs = &left.state.programs;
    let filters = netlink::egress_filters(interface.index).map_err(|error| text(&error))?;
    let mut filters = filters.known.into_iter();
    let Some(filter) = filters.find(|filter| filter.program.is_some_and(|p| programs.contains(&p)))
    else {
        return Ok(None);
    };
    let link = SchedClassifierLink::attached(
        &interface.name,
        TcAttachType::Egress,
        filter.priority,
        TcHandle::from(filter.handle),
        None,
    );
    let link = link.map_err(|error| text(&error))?;
    let program = datapath.classifier(name).map_err(|error| text(&error))?;
    let id = program
        .attach_to_link(link)
        .map_err(|error| failed(reason(&error)))?;
    let link = program
        .take_link(id)
        .map_err(|error| failed(reason(&error)))?;
    // As in `attach_clsact`.
    mem::forget(link);
    Ok(Some(Attached::Clsact(ClsactFilter {
        interface: interface.clone(),
        programs: datapath.programs.clone(),
        added_clsact: left.added_clsact(interface.index),
        stays: true,
    })))
}

/// The error number, if there is one, comes with the reason.
fn attach_tcx(
    datapath: &mut Datapath,
    name: &'static str,
    interface: &Interface,
    order: Order,
) -> Result<Attached, (String, Option<i32>)> {
    let failed = |error| (reason(&error), error_number(&error));
    let program = datapath.classifier(name);
    let program = program.map_err(|error| (error.to_string(), None))?;
    let options = TcAttachOptions::TcxOrder(match order {
        Order::First => LinkOrder::first(),
        Order::Last => LinkOrder::last(),
    });
    let id = program
        .attach_with_options(&interface.name, TcAttachType::Egress, options)
        .map_err(failed)?;
    let link = program.take_link(id).map_err(failed)?;
    let link = FdLink::try_from(link).map_err(|_| ("the kernel gave no BPF link".into(), None))?;
    Ok(Attached::Tcx {
        link: Some(link),
        pinned: None,
    })
}

fn attach_clsact(
    datapath: &mut Datapath,
    name: &'static str,
    interface: &Interface,
    order: Order,
) -> Result<Attached, String> {
    let added_clsact = match qdisc_add_clsact(&interface.name) {
        Ok(()) => true,
        Err(TcError::NetlinkError(error)) if error.raw_os_error() == Some(libc::EEXIST) => false,
        Err(error) => return Err(format!("cannot add the clsact qdisc: {error}")),
    };
    // From here on the qdisc goes when this does.
    let filter = ClsactFilter {
        interface: interface.clone(),
        programs: datapath.programs.clone(),
        added_clsact,
        stays: false,
    };
    let program = datapath.classifier(name);
    let program = program.map_err(|error| error.to_string())?;
    let priority = match order {
        Order::First => foremost_priority(interface.index),
        Order::Last => Ok(AUTOMATIC),
    };
    let options = TcAttachOptions::Netlink(NlOptions {
        priority: priority.map_err(|error| format!("cannot list its filters: {error}"))?,
        ..NlOptions::default()
    });
    let id = program
        .attach_with_options(&interface.name, TcAttachType::Egress, options)
        .map_err(|error| reason(&error))?;
    let link: SchedClassifierLink = program.take_link(id).map_err(|error| reason(&error))?;
    // The filter is known by its program: this link would remove it, also when it is to stay.
    mem::forget(link);
    Ok(Attached::Clsact(filter))
}

/// The kernel chooses a priority: behind those that users choose, as a rule.
const AUTOMATIC: u16 = 0;
/// The priority of what comes first.
const FOREMOST: u16 = 1;

/// The priority for a filter that is to come first, if that is still to be had.
fn foremost_priority(index: u32) -> std::io::Result<u16> {
    let filters = netlink::egress_filters(index)?;
    let mut known = filters.known.iter();
    let is_taken = filters.has_unknown || known.any(|filter| filter.priority == FOREMOST);
    Ok(if is_taken { AUTOMATIC } else { FOREMOST })
}
