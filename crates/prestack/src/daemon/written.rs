//! What the daemon writes down for other commands, and tells the service manager.

use tracing::warn;

use super::Daemon;
use crate::{attach::Attachment, notify};

impl Daemon {
    /// Tells the service manager that this serves, and what.
    pub fn tell_ready(&mut self) {
        let summary = self.state.summary();
        notify::ready(&summary);
        self.told = Some(summary);
    }

    /// Writes down what has changed, and tells the service manager. If it cannot be written that is tried again at the
    /// next look.
    pub(super) fn update_state(&mut self) {
        let written = self.write_state();
        if let Err(error) = &written
            && !self.unwritten
        {
            warn!("{error:#}: other commands are told what was so before");
        }
        self.unwritten = written.is_err();
        let summary = self.state.summary();
        if self.told.as_ref().is_some_and(|told| *told != summary) {
            notify::status(&summary);
            self.told = Some(summary);
        }
    }

    /// Whether others have removed, or changed, what was written down: without it other commands do not find this
    /// instance.
    pub(super) fn is_overwritten(&self) -> bool {
        let is_lost = |written| !self.instance.has(written);
        let is_lost = !self.unwritten && self.written.as_ref().is_some_and(is_lost);
        if is_lost {
            warn!("somebody has removed or changed the state file: it is written again");
        }
        is_lost
    }

    pub(super) fn write_state(&mut self) -> anyhow::Result<()> {
        self.state.interfaces = self.attachments.iter().map(Attachment::state).collect();
        self.state.backends = self.watch.backends();
        self.state.allow = self.watch.allowed().to_vec();
        self.state.problems = self.watch.problems().to_vec();
        self.state.problems.extend(self.trouble.clone());
        let missing = self.missing.values();
        let missing = missing.map(|missing| missing.problem.clone());
        self.state.problems.extend(missing);
        let down = self.down.iter();
        let down = down.map(|name| format!("interface {name} is down: nothing arrives there"));
        self.state.problems.extend(down);
        let ends = self.astray.values().chain(self.unseen_ends.values());
        self.state.problems.extend(ends.cloned());
        let unserved = self.unserved().map(|interface| interface.name.clone());
        self.state.unserved = unserved.collect();
        self.state.down = self.down.iter().cloned().collect();
        self.state.lo = match &self.lo {
            Some(Ok(lo)) => Some(lo.state()),
            Some(Err(error)) => {
                self.state.problems.push(error.to_string());
                None
            }
            None => None,
        };
        if let Err(error) = &self.sockets {
            self.state.problems.push(error.to_string());
        }
        self.state.problems.extend(self.unwatched.clone());
        self.state.problems.extend(self.indestructible.clone());
        let unanswered = self.unanswered.into_iter().chain(self.lost_answers);
        self.state.problems.extend(unanswered.map(str::to_owned));
        self.state.unseen = self.watch.unseen().to_vec();
        self.state.aside = self.adaptation.state();
        self.written = Some(self.instance.write(&self.state)?);
        Ok(())
    }
}
