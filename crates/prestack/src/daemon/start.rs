//! The start: checks, loading, attaching.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    time::Instant,
};

use tracing::{debug, info, warn};

use super::{Daemon, Signals, initial};
use crate::{
    adopt,
    attach::{AttachError, Attachment, Datapath, LoadError, pins, sockets, watch_sockets},
    attention::Adaptation,
    bpffs, destroy, leftovers,
    maps::Controls,
    netlink::{Interface, Notices},
    preflight,
    receipts::Receipts,
    settings::Options,
    socket_fields,
    state::Instance,
    sweep::Sweep,
    watch::Watch,
};

impl Daemon {
    /// Checks, loads and attaches; `None` if a signal has come before anything was attached.
    ///
    /// # Errors
    /// Something stands in the way; nothing is left attached.
    pub fn start(
        options: &Options,
        instance: Instance,
        signals: &Signals,
    ) -> anyhow::Result<Option<Self>> {
        // From before anything is looked at, so that no change is missed.
        let notices = Notices::subscribe()?;
        let interfaces = preflight::interfaces(options)?;
        // From here on they are known by the names that the kernel lists, whichever were given.
        let options = &options.with_interfaces(preflight::kernel_names(&interfaces)?);
        preflight::not_stacked(&options.interfaces)?;
        let host = preflight::addresses(options, &interfaces)?;
        let left = adopt::find(options, &instance)?;
        let earlier = left.as_ref().map_or(&[][..], |left| &left.backends);
        let watch = Watch::new(options, &host, earlier)?;
        let folder = instance.pin_folder();
        if left.is_none() {
            let removed = leftovers::remove(&instance)?;
            if !removed.is_empty() {
                let removed = removed.join(", ");
                info!(
                    "removed what an earlier run of instance {} has left: {removed}",
                    instance.name()
                );
            }
            preflight::memory(options.memory)?;
        }
        if options.outlives() {
            bpffs::mounted(options.why_pinned())?;
        }
        let interfaces = preflight::interfaces(options)?;
        let own = left.as_ref().map_or(&[][..], |left| &left.programs);
        preflight::no_other_xdp(&instance, &interfaces, own)?;

        info!("loading the programs, which takes some seconds");
        let adopted = left.as_ref().map(|_| folder.as_path());
        let datapath = match Datapath::load(options, adopted, &|| !signals.received()) {
            Err(LoadError::Interrupted) => return Ok(None),
            loaded => loaded?,
        };
        let controls = Controls::open(&datapath.maps)?;
        let mtu = interfaces.iter().map(|i| i.mtu).min().unwrap_or(0);
        let mut daemon = Self {
            sockets: Err(sockets::Unwatched::default()),
            unwatched: None,
            state: initial::state(options, &datapath, &interfaces)?,
            instance,
            attachments: Vec::new(),
            lo: None,
            datapath,
            controls,
            watch,
            notices,
            sweep: Sweep::default(),
            swept: Instant::now(),
            adaptation: Adaptation::new(options, false),
            receipts: Receipts::default(),
            extent: options.extent,
            mtu,
            options: options.clone(),
            missing: BTreeMap::new(),
            indestructible: None,
            unanswered: None,
            astray: BTreeMap::new(),
            unseen_ends: BTreeMap::new(),
            lost_answers: None,
            unwritten: false,
            written: None,
            told: None,
            down: BTreeSet::new(),
            trouble: None,
        };
        if let Some(left) = left {
            // After an error what is left goes on: nothing is removed.
            daemon.adopt(options, interfaces, &left)?;
        } else if let Err(error) = daemon.attach(options, interfaces) {
            let error = initial::why_not_attached(error, options, &daemon);
            if let Err(also) = daemon.stop(false) {
                warn!("{also:#}");
            }
            return Err(error);
        }
        for at in daemon.state.attached() {
            debug!("attached to {at}");
        }
        Ok(Some(daemon))
    }

    fn attach(&mut self, options: &Options, interfaces: Vec<Interface>) -> anyhow::Result<()> {
        let mut config = initial::config(options, self.mtu)?;
        self.watch.configure(&mut config);
        self.controls.init(&config);
        self.sockets = watch_sockets(&mut self.datapath).inspect_err(|error| warn!("{error}"));
        // Written before anything is attached, so that whatever a crash leaves can be found.
        self.instance.write(&self.state)?;
        let folder = self.instance.pin_folder();
        if options.pin {
            bpffs::make_folder(&folder, "--pin")?;
        }
        if options.tcp_hits {
            bpffs::make_folder(&folder, "--tcp-hits")?;
            pins::pin_maps(&self.datapath, &folder)?;
        }
        // Replies are watched before the first request is noted: one whose reply goes unseen would
        // count as unanswered.
        for interface in interfaces {
            let attachment =
                Attachment::watch_replies(&mut self.datapath, interface, options.egress)?;
            self.attachments.push(attachment);
        }
        if options.watch_lo {
            self.watch_lo(options.egress);
        }
        self.write_state()?;
        for attachment in &mut self.attachments {
            attachment.take_requests(&mut self.datapath, options.mode)?;
        }
        self.watch_sockets();
        if options.outlives() {
            self.pin_links(&folder)?;
        }
        // Before this point writes went by unseen.
        self.watch.forget_all(&self.controls, options.settle);
        self.begin(options)
    }

    /// Pins the links, so that they outlive this process.
    pub(super) fn pin_links(&mut self, folder: &Path) -> anyhow::Result<()> {
        if let Ok(sockets) = &mut self.sockets {
            let path = pins::of_sockets(folder);
            sockets
                .pin(&path)
                .map_err(|source| AttachError::PinSockets {
                    path,
                    source: Box::new(source),
                })?;
        }
        if let Some(Ok(lo)) = &mut self.lo {
            lo.pin(folder)?;
        }
        for attachment in &mut self.attachments {
            attachment.pin(folder)?;
        }
        Ok(())
    }

    /// Begins to serve.
    pub(super) fn begin(&mut self, options: &Options) -> anyhow::Result<()> {
        self.look_at_sums();
        if options.tcp_hits
            && let Err(error) = destroy::check()
        {
            self.indestructible = Some(format!(
                "this kernel does not end connections for others ({error}; CONFIG_INET_DIAG_DESTROY): when \
                 --drain-timeout is over, connections that are left keep prestack's programs in place"
            ));
        }
        if options.tcp_hits {
            self.unanswered = socket_fields::of_this_kernel().why_unanswered();
        }
        let unanswered = self.unanswered.into_iter();
        for problem in unanswered.chain(self.indestructible.as_deref()) {
            warn!("{problem}");
        }
        let found = self.find_interfaces()?;
        self.look_at_use(&found);
        let (astray, _) = self.look_at_arrival(&found);
        for problem in &astray {
            warn!("{problem}");
        }
        if !astray.is_empty() {
            self.look()?;
        }
        self.heartbeat();
        self.write_state()?;
        for backend in self.state.backends.iter().filter(|b| b.alive) {
            info!(
                "memcached (pid {}) {}",
                backend.pid,
                backend.describe_doors()
            );
        }
        Ok(())
    }
}
