//! Other caches at XDP, loaded and pinned by whoever wants them measured beside prestack.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context, Result, bail, ensure};
use aya::programs::links::FdLink;
use aya::programs::tc::{self, SchedClassifierLink};

use aya::programs::{ProgramInfo, SchedClassifier, TcAttachType, Xdp, XdpMode};
use aya_obj::generated::bpf_prog_type;
use aya_obj::programs::XdpAttachType;
use nix::net::if_::if_nametoindex;
use prestack_testbed::Namespace;

/// A cache of somebody else's: `NAME=XDP_PIN[,TC_PIN]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// What it is called in tables.
    pub name: String,
    /// Where its program for XDP is pinned.
    pub xdp: PathBuf,
    /// Where its program for what leaves (TC egress) is pinned, if it has one.
    pub tc: Option<PathBuf>,
}

impl FromStr for Peer {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let split = text.split_once('=');
        let Some((name, pins)) = split.filter(|(name, pins)| !name.is_empty() && !pins.is_empty())
        else {
            bail!(
                "{text:?} is not NAME=XDP_PIN[,TC_PIN], as in bmc=/sys/fs/bpf/bmc_rx,/sys/fs/bpf/bmc_tx"
            );
        };
        let (xdp, tc) = match pins.split_once(',') {
            Some((xdp, tc)) => (xdp, Some(tc.into())),
            None => (pins, None),
        };
        Ok(Self {
            name: name.to_owned(),
            xdp: xdp.into(),
            tc,
        })
    }
}

impl Peer {
    /// Its program for XDP.
    pub(crate) fn program(&self) -> Result<Xdp> {
        let program = Xdp::from_pin(&self.xdp, XdpAttachType::Interface);
        let program = program.with_context(|| self.unusable(&self.xdp))?;
        self.check(
            &self.xdp,
            &program.info()?,
            bpf_prog_type::BPF_PROG_TYPE_XDP,
            "XDP",
        )?;
        Ok(program)
    }

    /// Its program for TC.
    pub(crate) fn tc_program(&self) -> Result<Option<SchedClassifier>> {
        let open = |pin: &PathBuf| {
            let program = SchedClassifier::from_pin(pin).with_context(|| self.unusable(pin))?;
            let wanted = bpf_prog_type::BPF_PROG_TYPE_SCHED_CLS;
            self.check(pin, &program.info()?, wanted, "TC")?;
            Ok(program)
        };
        self.tc.as_ref().map(open).transpose()
    }

    /// Fails when what is pinned at `pin` is no program for `hook`: opening it does not show that, and attaching it would
    /// after minutes of measuring.
    fn check(
        &self,
        pin: &Path,
        info: &ProgramInfo,
        wanted: bpf_prog_type,
        hook: &str,
    ) -> Result<()> {
        ensure!(
            info.program_type() == wanted,
            "what is pinned at {} is no program for {hook}, which the peer {} needs there",
            pin.display(),
            self.name
        );
        Ok(())
    }

    /// Attaches its programs to `dev` in `namespace`, until what is returned is dropped.
    ///
    /// # Errors
    /// When one of them is not there or cannot be attached; then none is.
    pub fn attach(&self, namespace: &Namespace, dev: &str) -> Result<Attached> {
        let (mut xdp, tc) = (self.program()?, self.tc_program()?);
        let links = namespace.run(|| {
            let attached = attach_xdp(&mut xdp, dev).with_context(|| {
                let path = self.xdp.display();
                format!(
                    "attaching {path} of the peer {} to {dev}, natively: it must be an XDP program that no other \
                     device owns",
                    self.name
                )
            });
            let xdp = attached?;
            let tc = match (tc, &self.tc) {
                (Some(mut tc), Some(pin)) => {
                    let attached = attach_tc(&mut tc, dev).with_context(|| {
                        let path = pin.display();
                        format!(
                            "attaching {path} of the peer {} to what leaves {dev}: it must be a program for TC",
                            self.name
                        )
                    });
                    Some(attached?)
                }
                _ => None,
            };
            anyhow::Ok((xdp, tc))
        });
        let (xdp, tc) = links?;
        Ok(Attached {
            _xdp: xdp,
            tc,
            namespace: namespace.clone(),
        })
    }

    fn unusable(&self, path: &Path) -> String {
        format!(
            "the peer {} has no program pinned at {} (load it first, with `bpftool prog load`)",
            self.name,
            path.display()
        )
    }
}

/// A peer's programs on a device.
pub struct Attached {
    _xdp: FdLink,
    tc: Option<SchedClassifierLink>,
    namespace: Namespace,
}

impl Drop for Attached {
    fn drop(&mut self) {
        let tc = self.tc.take();
        // Detaching may name the device by its number, which is another's elsewhere.
        self.namespace.run(|| drop(tc));
    }
}

fn attach_xdp(program: &mut Xdp, dev: &str) -> Result<FdLink> {
    let link = program.attach_to_if_index(if_nametoindex(dev)?, XdpMode::Driver)?;
    Ok(program.take_link(link)?.try_into()?)
}

fn attach_tc(program: &mut SchedClassifier, dev: &str) -> Result<SchedClassifierLink> {
    // There is none where TCX is; and where there is one already that is as good.
    let _ = tc::qdisc_add_clsact(dev);
    let link = program.attach(dev, TcAttachType::Egress)?;
    Ok(program.take_link(link)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peers_are_a_name_and_pins() {
        let peer: Peer = "bmc=/sys/fs/bpf/rx,/sys/fs/bpf/tx".parse().unwrap();
        assert_eq!(peer.name, "bmc");
        assert_eq!(peer.xdp, Path::new("/sys/fs/bpf/rx"));
        assert_eq!(peer.tc.as_deref(), Some(Path::new("/sys/fs/bpf/tx")));
        assert_eq!("a=b".parse::<Peer>().unwrap().tc, None);
        for text in ["", "bmc", "=x", "bmc="] {
            assert!(text.parse::<Peer>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_pin_that_is_not_there_is_named() {
        let peer: Peer = "other=/sys/fs/bpf/nothing".parse().unwrap();
        let error = format!("{:#}", peer.program().unwrap_err());
        assert!(
            error.contains("other") && error.contains("/sys/fs/bpf/nothing"),
            "{error}"
        );
    }
}
