//! Interfaces that go while prestack runs, and come back as others.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
};

use prestack_abi::flow::FlowKey;
use tracing::{error, info, warn};

use super::Daemon;
use crate::{
    attach::{Attachment, Loopback},
    host::{Host, LOOPBACK, from_words},
    netlink::{self, Interface},
    preflight,
    settings::ModeSetting,
};

/// What has become of the interfaces since the last look.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct Moves {
    /// The programs are at one no more.
    lost: bool,
    /// They are at one that has come back.
    regained: bool,
    /// There is something else to tell of one that is missing.
    told: bool,
}

/// An interface that is to be attached to, and is not.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Missing {
    /// Why it is not.
    pub(super) problem: String,
    /// The number of the one of its name that could not be attached to.
    refused: Option<u32>,
    /// Whether XDP was native there.
    was_native: bool,
}

/// What the interfaces that are attached to are called.
fn attached_names(attachments: &[Attachment]) -> impl Iterator<Item = &str> {
    attachments.iter().map(|at| at.interface().name.as_str())
}

impl Daemon {
    /// The interfaces that are to be attached to, as far as they are there.
    ///
    /// # Errors
    /// The kernel does not say.
    pub(super) fn find_interfaces(&self) -> io::Result<Vec<Interface>> {
        let names = self.options.interfaces.iter();
        let found = names.map(|name| netlink::interface(name));
        found.filter_map(Result::transpose).collect()
    }

    /// Follows interfaces that are called otherwise by now: those that are attached to are known by their numbers.
    /// Returns whether there are any.
    ///
    /// # Errors
    /// The kernel does not say.
    pub(super) fn follow_names(&mut self) -> io::Result<bool> {
        let mut names = BTreeMap::new();
        for attachment in &self.attachments {
            if let Some(new) = self.new_name(attachment.interface())? {
                names.insert(attachment.interface().name.clone(), new);
            }
        }
        if names.is_empty() {
            return Ok(false);
        }
        for attachment in &mut self.attachments {
            let name = &attachment.interface().name;
            if let Some(new) = names.get(name) {
                warn!(
                    "interface {name} is called {new} now: it is served on; give that name when prestack is started again"
                );
                attachment.rename(new);
            }
        }
        let given = self.state.given.get_or_insert_default();
        for list in [&mut self.options.interfaces, given] {
            for name in list.iter_mut() {
                if let Some(new) = names.get(name) {
                    name.clone_from(new);
                }
            }
        }
        for (name, new) in &names {
            // What was said of one by its name is looked at anew, and one that was missed by the new one's is so no more.
            for name in [name, new] {
                self.astray.remove(name);
                self.unseen_ends.remove(name);
                self.down.remove(name);
                self.missing.remove(name);
            }
        }
        let mut seen = BTreeSet::new();
        self.options
            .interfaces
            .retain(|name| seen.insert(name.clone()));
        self.watch.rename(&self.options.interfaces);
        Ok(true)
    }

    /// What an interface that is attached to is called by now, if that is another name.
    fn new_name(&self, interface: &Interface) -> io::Result<Option<String>> {
        let found = netlink::interface_at(interface.index)?;
        // Another one may have come in its place, with its number.
        let rx = self.datapath.rx_number();
        let found = found.filter(|found| found.xdp.contains(&rx) && found.name != interface.name);
        Ok(found.map(|found| found.name))
    }

    /// Looks which of the interfaces found, that are attached to, are in use. Returns whether that has changed.
    pub(super) fn look_at_use(&mut self, found: &[Interface]) -> bool {
        let attached = self.attachments.iter().map(Attachment::interface);
        let is_down = |at: &&Interface| {
            let mut found = found.iter();
            found.any(|found| found.index == at.index && !found.is_up)
        };
        let down: BTreeSet<_> = attached.filter(is_down).map(|at| at.name.clone()).collect();
        for name in down.difference(&self.down) {
            warn!("interface {name} is down: nothing arrives there");
        }
        let attached: BTreeSet<_> = attached_names(&self.attachments).collect();
        for name in self.down.difference(&down) {
            if attached.contains(name.as_str()) {
                info!("interface {name} is up again");
            }
        }
        std::mem::replace(&mut self.down, down) != self.down
    }

    /// Looks whether the programs are at every interface, of those found. Those that are gone are given up, and
    /// those that have come back attached to anew.
    ///
    /// # Errors
    /// None is left.
    pub(super) fn look_at_interfaces(&mut self, found: &[Interface]) -> anyhow::Result<Moves> {
        let mut moves = Moves {
            lost: self.give_up_lost(found),
            ..Moves::default()
        };
        self.regain(found, &mut moves);
        // What is there may be attached to at the next look.
        let may_return = found.iter().any(|f| self.missing.contains_key(&f.name));
        if self.attachments.is_empty() && !may_return {
            // Nothing translates them, though their sockets are left: should an interface return they would go
            // on as they are.
            self.reset_astray(|_| true);
            anyhow::bail!(
                "every interface that was served is gone: start prestack again when they are back"
            );
        }
        let is_attached = |found: &&Interface| {
            let mut attached = self.attachments.iter().map(Attachment::interface);
            attached.any(|interface| interface.index == found.index)
        };
        let mtus = found.iter().filter(is_attached).map(|found| found.mtu);
        if let Some(mtu) = mtus.min().filter(|mtu| *mtu != self.mtu) {
            info!("replies are limited to an MTU of {mtu} from now on");
            self.controls.set_mtu(mtu);
            self.mtu = mtu;
        }
        Ok(moves)
    }

    /// Gives up the interfaces that are not among those found, or have lost a program.
    fn give_up_lost(&mut self, found: &[Interface]) -> bool {
        let rx = self.datapath.rx_number();
        let is_found = |attachment: &Attachment| {
            let Interface { name, index, .. } = attachment.interface();
            let mut found = found.iter();
            found.any(|f| f.name == *name && f.index == *index && f.xdp.contains(&rx))
        };
        let programs = self.datapath.programs.clone();
        let attachments = std::mem::take(&mut self.attachments);
        // It may have got another name just now: then the next look follows it.
        let is_renamed = |attachment: &Attachment| {
            let name = self.new_name(attachment.interface());
            name.is_ok_and(|name| name.is_some())
        };
        let is_there = |attachment: &Attachment| {
            is_found(attachment) && attachment.is_watching(&programs) || is_renamed(attachment)
        };
        let (kept, lost): (Vec<_>, Vec<_>) = attachments.into_iter().partition(is_there);
        self.attachments = kept;
        let is_any = !lost.is_empty();
        for attachment in lost {
            let Interface { name, index, .. } = attachment.interface().clone();
            let problem = if found.iter().any(|f| f.name == name && f.index == index) {
                format!(
                    "interface {name} has lost a program of prestack's: somebody has removed it"
                )
            } else {
                format!("interface {name} is gone")
            };
            let missing = Missing {
                problem,
                refused: None,
                was_native: attachment.is_native(),
            };
            // Another one may have got its name.
            if attached_names(&self.attachments).any(|attached| attached == name) {
                warn!("{}", missing.problem);
            } else {
                self.note_missing(&name, missing);
            }
            if let Err(error) = attachment.give_up(&self.instance.pin_folder()) {
                warn!("{error}");
            }
        }
        is_any
    }

    /// Attaches to the loopback interface again if its program is not there any more. Returns whether that was so.
    pub(super) fn look_at_lo(&mut self) -> bool {
        let is_lost = |lo: &Loopback| !lo.is_watching(&self.datapath.programs);
        if !matches!(&self.lo, Some(Ok(lo)) if is_lost(lo)) {
            return false;
        }
        warn!("interface {LOOPBACK} has lost prestack's program: somebody has removed it");
        let folder = self.instance.pin_folder();
        if let Some(Ok(lo)) = self.lo.take()
            && let Err(error) = lo.give_up(&folder)
        {
            warn!("{error}");
        }
        self.watch_lo(self.options.egress);
        if let Some(Ok(lo)) = &mut self.lo
            && self.options.outlives()
            && let Err(error) = lo.pin(&folder)
        {
            warn!("{error}");
        }
        // What came meanwhile went by unseen.
        self.watch.forget_all(&self.controls, self.options.settle);
        true
    }

    /// Attaches to interfaces that have come back.
    fn regain(&mut self, found: &[Interface], moves: &mut Moves) {
        for Interface { name, index, .. } in found {
            let Some(Missing { was_native, .. }) = self.missing.get(name).cloned() else {
                continue;
            };
            match self.attach_anew(name, was_native) {
                Ok(()) => {
                    info!("interface {name} is attached to again");
                    self.missing.remove(name);
                    moves.regained = true;
                }
                Err(error) => {
                    let problem = format!("interface {name} is back, and not served: {error:#}");
                    let missing = Missing {
                        problem,
                        refused: Some(*index),
                        was_native,
                    };
                    moves.told |= self.note_missing(name, missing);
                }
            }
        }
    }

    /// Notes why an interface is not attached to. Returns whether that is new.
    fn note_missing(&mut self, name: &str, missing: Missing) -> bool {
        let before = self.missing.insert(name.to_owned(), missing.clone());
        let is_new = before.is_none_or(|before| before.problem != missing.problem);
        if is_new {
            warn!("{}", missing.problem);
        }
        is_new
    }

    /// Whether there is a missing interface that was not there when the host was looked at.
    pub(super) fn has_come_back(&self) -> bool {
        self.missing.iter().any(|(name, missing)| {
            let found = netlink::interface(name).ok().flatten();
            found.is_some_and(|found| missing.refused != Some(found.index))
        })
    }

    /// Attaches to an interface that has come back: natively, if XDP was so there before and may be. The program at the
    /// other end of a veth pair may be late.
    fn attach_anew(&mut self, name: &str, was_native: bool) -> anyhow::Result<()> {
        let interface = preflight::interface(name)?;
        let attached = self.attachments.iter().map(Attachment::interface);
        let names = attached.chain([&interface]).map(|at| at.name.clone());
        preflight::not_stacked(&names.collect::<Vec<_>>())?;
        let interfaces = std::slice::from_ref(&interface);
        preflight::no_other_xdp(&self.instance, interfaces, &[])?;
        let (mode, egress) = (self.options.mode, self.options.egress);
        let mut attachment = Attachment::watch_replies(&mut self.datapath, interface, egress)?;
        // Requests may have gone by unseen, and are answered from here on.
        self.watch.forget_all(&self.controls, self.options.settle);
        let is_again = was_native && mode == ModeSetting::Auto;
        let native = ModeSetting::Native;
        if !is_again
            || attachment
                .take_requests(&mut self.datapath, native)
                .is_err()
        {
            attachment.take_requests(&mut self.datapath, mode)?;
        }
        if self.options.outlives() {
            attachment.pin(&self.instance.pin_folder())?;
        }
        self.attachments.push(attachment);
        Ok(())
    }

    /// Forgets what may have changed unseen, and resets connections that would not be translated: where it cannot
    /// be told, all of them. `before` is the host as it was at the look before. Returns whether there is something
    /// to tell.
    pub(super) fn follow(&mut self, moves: Moves, before: &Host) -> bool {
        if !moves.lost && !moves.regained {
            return moves.told;
        }
        self.watch.forget_all(&self.controls, self.options.settle);
        match Host::look(&self.attached()) {
            // Segments may have passed before the programs were there again, whatever their way.
            Ok(host) if !moves.regained => self.reset_astray(|key| {
                let address = from_words(key.server);
                // What is for an address elsewhere comes over interfaces that are left.
                let stays = before.has_elsewhere(address) && host.has_elsewhere(address);
                !host.sees(address) && !stays
            }),
            _ => self.reset_astray(|_| true),
        }
        true
    }

    /// Resets connections, of those that are carried, whose segments may go by untranslated.
    pub(super) fn reset_astray(&mut self, is_meant: impl Fn(&FlowKey) -> bool) {
        if self.options.tcp_hits
            && let Err(error) = self.reset_carried(is_meant)
        {
            error!("connections could not be reset: {error:#}");
        }
    }
}
