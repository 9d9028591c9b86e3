//! Going on with the programs and maps that another run has left.

use prestack_abi::{backend::MAX_BACKENDS, config::Attention};
use tracing::{info, warn};

use super::{Daemon, initial};
use crate::{
    attach::{Attachment, Left, Loopback, adopt_sockets, pins, tc::remove_filters},
    attention::Adaptation,
    bpffs,
    grace::await_programs,
    maps,
    netlink::Interface,
    settings::{ModeSetting, Options},
    state::{AttachedState, Before, State},
};

/// What to say of a program that stays attached in another mode than is asked for.
fn kept_mode(at: &AttachedState, options: &Options) -> Option<String> {
    let asked = match options.mode {
        ModeSetting::Auto => return None,
        ModeSetting::Native => "native",
        ModeSetting::Generic => "generic",
    };
    (at.mode != asked).then(|| {
        format!(
            "XDP stays {} at {}, where an earlier run has attached it, though --mode {asked} is given: to change \
             that use `prestack detach --instance {}` first",
            at.mode, at.name, options.instance
        )
    })
}

impl Daemon {
    /// Puts the programs in the place of those that another run has left, whose maps they go on with. No packet
    /// is missed.
    pub(super) fn adopt(
        &mut self,
        options: &Options,
        interfaces: Vec<Interface>,
        state: &State,
    ) -> anyhow::Result<()> {
        let folder = self.instance.pin_folder();
        let left = Left {
            folder: &folder,
            state,
        };
        info!(
            "goes on with what an earlier run has left (pid {})",
            state.pid
        );
        bpffs::make_folder(&folder, "--tcp-hits")?;
        pins::pin_maps(&self.datapath, &folder)?;
        let left_by = Before::of(state);
        self.state.remember(&left_by);
        // Whichever programs a crash leaves can be found.
        let programs = self.state.programs.clone();
        self.state.programs.extend(&state.programs);
        self.instance.write(&self.state)?;

        let before = self.controls.config();
        let mut config = initial::config(options, self.mtu)?;
        self.watch.configure(&mut config);
        // What is named by hashes keeps its names, and what is in use stays so.
        config.seed = before.seed;
        config.parts = before.parts;
        config.has_fast_open |= before.has_fast_open;
        // What went by unseen while the datapath stood aside, flows above all, is to be forgotten first.
        let is_aside = before.attention == Attention::Aside as u32;
        if is_aside {
            config.attention = before.attention;
        }
        self.adaptation = Adaptation::new(options, is_aside);
        self.controls.replace(|current| *current = config);
        let stats = maps::counters(&self.datapath.maps)?;
        let extent = options.extent;
        self.extent = extent.resumed(before.parts, &stats);

        self.sockets = adopt_sockets(&mut self.datapath, left).inspect_err(|e| warn!("{e}"));
        for interface in interfaces {
            let attachment =
                Attachment::adopt_replies(&mut self.datapath, interface, options.egress, left)?;
            self.attachments.push(attachment);
        }
        if options.watch_lo {
            let lo = Loopback::adopt(&mut self.datapath, options.egress, left);
            self.have_lo(lo);
        }
        self.write_state()?;
        for attachment in &mut self.attachments {
            attachment.adopt_requests(&mut self.datapath, options.mode, left)?;
            if let Some(doubt) = kept_mode(&attachment.state(), options) {
                warn!("{doubt}");
            }
        }
        self.watch_sockets();
        if let Ok(sockets) = &mut self.sockets
            && self.unwatched.is_none()
        {
            sockets.forget_others();
        }
        self.pin_links(&folder)?;
        // Programs in whose place others have come may still be at work: those that they hand packets to stay as long.
        await_programs();
        let mut kept = vec![pins::of_sockets(&folder), Loopback::pinned_at(&folder)];
        if self.lo.is_none() {
            kept.pop();
        }
        kept.extend(self.attachments.iter().flat_map(|at| at.pinned_at(&folder)));
        pins::remove_others(&self.datapath, &folder, &kept)?;
        self.remove_other_filters(state);
        self.state.programs = programs;
        // All writes were seen, but numbers may have changed hands.
        for number in 0..MAX_BACKENDS as u8 {
            self.controls.empty_and_settle(number, options.settle);
        }
        // Segments may have passed as they were where one has gone meanwhile, or was made anew, or where that run
        // was not attached any more: one that it had given up may have come back since.
        let (taken_over, new): (Vec<_>, Vec<_>) =
            (self.attachments.iter()).partition(|at| at.has_taken_over());
        let states = |attachments: Vec<&Attachment>| -> Vec<_> {
            attachments.into_iter().map(Attachment::state).collect()
        };
        if !left_by.is_gapless(&states(taken_over), &states(new)) {
            self.reset_astray(|_| true);
        }
        // From here on it is this run from which the next one takes over.
        self.state.before = None;
        self.write_state()?;
        self.begin(options)
    }

    /// Removes the filters that the other run has left where this one is not attached: no pin goes with them.
    fn remove_other_filters(&self, state: &State) {
        let is_attached = |index| self.state.attached().any(|now| now.index == index);
        for left in state.filters().filter(|left| !is_attached(left.index)) {
            if let Err(error) = remove_filters(left.index, &state.programs, left.added_clsact) {
                warn!("cannot remove the TC filter of {}: {error}", left.name);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::Settings;

    #[test]
    fn a_mode_that_is_not_taken_is_told() {
        let said = |mode, at: &str| {
            let settings = Settings {
                interface: vec!["vs".into()],
                mode,
                ..Settings::default()
            };
            let at = AttachedState {
                name: "vs".into(),
                index: 3,
                mode: at.into(),
                egress: "tcx".into(),
                added_clsact: false,
            };
            kept_mode(&at, &settings.resolve("").expect("in range"))
        };
        let told = said(Some(ModeSetting::Native), "generic").expect("a doubt");
        assert!(told.contains("stays generic at vs") && told.contains("--mode native"));
        assert!(
            told.contains("prestack detach --instance default"),
            "{told}"
        );
        assert!(said(Some(ModeSetting::Generic), "native").is_some());
        for (mode, at) in [
            (Some(ModeSetting::Native), "native"),
            (Some(ModeSetting::Auto), "generic"),
            (None, "native"),
        ] {
            assert_eq!(said(mode, at), None);
        }
    }
}
