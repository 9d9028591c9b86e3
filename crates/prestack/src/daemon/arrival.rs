//! Interfaces at which answers do not arrive: nothing is answered there.

use std::collections::BTreeSet;

use tracing::{debug, info};

use super::Daemon;
use crate::{
    attach::Attachment,
    netlink::{Interface, OtherEnd},
};

impl Daemon {
    /// Looks at which interfaces, of those found, what XDP sends back is lost. Returns what there is to tell that was
    /// not so before.
    ///
    /// A look at the host has to follow, which tells the datapath.
    pub(super) fn look_at_arrival(&mut self, found: &[Interface]) -> Vec<String> {
        let mut new = Vec::new();
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
                         one that passes everything, or start prestack with --mode generic"
                    );
                    if self.astray.insert(name.clone(), problem.clone()).as_ref() != Some(&problem)
                    {
                        new.push(problem);
                    }
                }
                Ok(_) => {
                    if self.astray.remove(name).is_some() {
                        info!("requests at {name} are answered again");
                    }
                }
                Err(error) => debug!("cannot look at the other end of {name}: {error}"),
            }
        }
        let attached: BTreeSet<_> = self
            .attachments
            .iter()
            .map(|at| &at.interface().name)
            .collect();
        self.astray.retain(|name, _| attached.contains(name));
        let unserved = self.unserved().map(|interface| interface.index).collect();
        self.watch.withhold(unserved);
        new
    }

    /// The interfaces that are attached to, and at which nothing is answered.
    pub(super) fn unserved(&self) -> impl Iterator<Item = &Interface> {
        let attached = self.attachments.iter().map(Attachment::interface);
        attached.filter(|interface| {
            self.lost_answers.is_some() || self.astray.contains_key(&interface.name)
        })
    }
}
