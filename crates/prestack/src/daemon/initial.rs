//! What the datapath, and other commands, are told at the start.

use std::{
    fs::File,
    io::{self, Read as _},
    num::NonZeroU32,
    time::Duration,
};

use prestack_abi::{LAYOUT, config::Config, control::CONTROLS};
use prestack_translate::Policy;

use super::Daemon;
use crate::{
    attach::{AttachError, Datapath},
    clock,
    host::LOOPBACK,
    maps::covering_ns,
    netlink::{self, Interface},
    preflight,
    settings::Options,
    state::{AttachedState, State, current_netns, unix_time},
};

/// How long the datapath remembers a request that memcached does not answer.
const REMEMBER: Duration = Duration::from_secs(30);
/// For how long the kernel may wait for an acknowledgement that it does not see.
const FORWARD_AFTER: Duration = Duration::from_millis(100);
/// How often an answer is sent again at most because of the client's acknowledgements.
const RESEND_AFTER: Duration = Duration::from_millis(20);

/// The configuration but for what `Watch` finds.
pub(super) fn config(options: &Options, mtu: u32) -> io::Result<Config> {
    let mut seed = [0; 8];
    File::open("/dev/urandom")?.read_exact(&mut seed)?;
    // An entry's age is measured with a clock that may lag behind.
    let max_age_ns = clock::nanoseconds(options.max_age) - clock::resolution_ns();
    let (rate_interval_ns, rate_burst_ns) = rate(options.rate_limit);
    Ok(Config {
        seed: u64::from_ne_bytes(seed),
        max_age_ns,
        refresh_age_ns: max_age_ns / 4 * 3,
        settle_ns: covering_ns(options.settle),
        remember_ns: covering_ns(REMEMBER),
        base: options.extent.base,
        parts: options.extent.parts,
        controls: CONTROLS as u32,
        mtu,
        wall_offset_ns: clock::wall_offset_ns(),
        policy: policy(options),
        flow_sets: options.flow_sets.into(),
        serve_reserved_ports: options.serve_reserved_ports.into(),
        has_fast_open: crate::host::has_fast_open().into(),
        // Until it is known what is attached.
        whole_sums: 1,
        rate_interval_ns,
        rate_burst_ns,
        ..Config::empty()
    })
}

/// When requests are answered over TCP.
fn policy(options: &Options) -> Policy {
    if !options.tcp_hits {
        return Config::empty().policy;
    }
    Policy {
        is_serving: 1,
        forward_after: clock::nanoseconds(FORWARD_AFTER),
        trickle: clock::nanoseconds(options.tcp_trickle),
        resend_after: clock::nanoseconds(RESEND_AFTER),
        room: options.tcp_answer,
    }
}

/// A rate limit as the datapath has it: the time between two hits, and how far one may be ahead. A
/// burst is a tenth of a second's worth: much more than a step of the datapath's clock.
fn rate(limit: Option<NonZeroU32>) -> (u64, u64) {
    const BURST: Duration = Duration::from_millis(100);
    match limit {
        None => (0, 0),
        Some(limit) => (
            Duration::from_secs(1).as_nanos() as u64 / u64::from(limit.get()),
            BURST.as_nanos() as u64,
        ),
    }
}

/// Why a start has failed: what the kernel said, or who else has come to an interface since it was looked at first.
pub(super) fn why_not_attached(
    error: anyhow::Error,
    options: &Options,
    daemon: &Daemon,
) -> anyhow::Error {
    if !matches!(
        error.downcast_ref(),
        Some(AttachError::Native { .. } | AttachError::Xdp { .. })
    ) {
        return error;
    }
    let there = preflight::interfaces(options);
    let taken = there.and_then(|interfaces| {
        preflight::no_other_xdp(&daemon.instance, &interfaces, &daemon.state.programs)
    });
    match taken {
        Err(taken) => taken.into(),
        Ok(()) => error,
    }
}

/// What is known before anything is attached.
pub(super) fn state(
    options: &Options,
    datapath: &Datapath,
    interfaces: &[Interface],
) -> anyhow::Result<State> {
    let unattached = |interface: &Interface| AttachedState {
        name: interface.name.clone(),
        index: interface.index,
        mode: String::new(),
        egress: String::new(),
        added_clsact: false,
    };
    let lo = if options.watch_lo {
        netlink::interface(LOOPBACK)?
    } else {
        None
    };
    Ok(State {
        layout: LAYOUT,
        version: env!("CARGO_PKG_VERSION").into(),
        pid: std::process::id(),
        started: unix_time().as_secs(),
        netns: current_netns()?,
        interfaces: interfaces.iter().map(unattached).collect(),
        unserved: Vec::new(),
        down: Vec::new(),
        lo: lo.as_ref().map(unattached),
        given: Some(options.interfaces.clone()),
        before: None,
        programs: datapath.programs.clone(),
        maps: datapath.maps,
        memory: options.memory.as_u64(),
        buckets: options.extent.buckets(),
        max_flows: options.max_flows(),
        tcp_hits: options.tcp_hits,
        drain_timeout_ms: u64::try_from(options.drain_timeout.as_millis())?,
        max_age_ms: u64::try_from(options.max_age.as_millis())?,
        ports: options.ports.clone(),
        pinned: options.outlives(),
        allow: Vec::new(),
        backends: Vec::new(),
        problems: Vec::new(),
        unseen: Vec::new(),
        aside: None,
    })
}
