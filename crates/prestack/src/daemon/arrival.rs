//! Interfaces at which answers do not arrive: nothing is answered there.

use std::collections::BTreeSet;

use tracing::info;

use super::Daemon;
use crate::{
    attach::Attachment,
    netlink::{Interface, OtherEnd},
};

impl Daemon {
    /// Looks at which interfaces, of those found, what XDP sends back is lost. Returns what there is to tell that was
    /// not so before, and whether anything has changed.
    ///
    /// A look at the host has to follow, which tells the datapath where requests are answered again.
    pub(super) fn look_at_arrival(&mut self, found: &[Interface]) -> (Vec<String>, bool) {
        let mut new = Vec::new();
        let before = (self.astray.clone(), self.unseen_ends.clone());
        for attachment in self.attachments.iter().filter(|at| at.is_native()) {
            let Interface { name, index, .. } = attachment.interface();
            // The other end may be elsewhere by now.
            let Some(found) = found.iter().find(|found| found.index == *index) else {
                continue;
            };
            match found.other_end.map(OtherEnd::why_lost).transpose() {
                Ok(Some(Some(reason))) => {
                    let problem = format!(
                        "nothing is answered at {name}, as answers would be lost there: {reason}. Give it one, such as \
                         one that passes everything, or `prestack detach` and start it with --mode generic"
                    );
                    if self.astray.insert(name.clone(), problem.clone()).as_ref() != Some(&problem)
                    {
                        new.push(problem);
                    }
                }
                Ok(_) => {
                    self.unseen_ends.remove(name);
                    if self.astray.remove(name).is_some() {
                        info!("requests at {name} are answered again");
                    }
                }
                Err(error) => {
                    let problem = format!(
                        "whether answers at {name} arrive is not known, as the other end of its veth pair cannot be \
                         looked at ({error}): it must have an XDP program"
                    );
                    if !self.unseen_ends.contains_key(name) {
                        new.push(problem.clone());
                    }
                    self.unseen_ends.insert(name.clone(), problem);
                }
            }
        }
        let native = self.attachments.iter().filter(|at| at.is_native());
        let native: BTreeSet<_> = native.map(|at| &at.interface().name).collect();
        self.astray.retain(|name, _| native.contains(name));
        self.unseen_ends.retain(|name, _| native.contains(name));
        let unserved = self.unserved().map(|interface| interface.index).collect();
        self.watch.withhold(&self.controls, unserved);
        let has_changed = before != (self.astray.clone(), self.unseen_ends.clone());
        (new, has_changed)
    }

    /// The interfaces that are attached to, and at which nothing is answered.
    pub(super) fn unserved(&self) -> impl Iterator<Item = &Interface> {
        let attached = self.attachments.iter().map(Attachment::interface);
        attached.filter(|interface| {
            self.lost_answers.is_some() || self.astray.contains_key(&interface.name)
        })
    }
}
