//! What is attached to a device.

use anyhow::{Context, Result, ensure};
use aya::programs::tc::{SchedClassifier, TcAttachType};
use prestack_testbed::Namespace;

use crate::kernel;

/// Fails when an XDP program, or a program at TC egress, is attached to `dev` in `namespace`.
///
/// # Errors
/// Then, and when the kernel does not tell.
pub fn nothing_attached(namespace: &Namespace, dev: &str) -> Result<()> {
    nothing_linked(namespace, dev)?;
    let output = namespace
        .command("tc")
        .args(["filter", "show", "dev", dev, "egress"])
        .output();
    let output = output.context("running `tc` (package iproute2)")?;
    let filters = String::from_utf8_lossy(&output.stdout);
    ensure!(
        filters.trim().is_empty(),
        "a TC filter is still there: {filters}"
    );
    Ok(())
}

/// Fails when a program is attached that goes with the process that attached it. A filter of the clsact
/// qdisc, on kernels without TCX, stays when that was killed.
///
/// # Errors
/// Then, and when the kernel does not tell.
pub fn nothing_linked(namespace: &Namespace, dev: &str) -> Result<()> {
    let link = namespace.ip(["-details", "link", "show", "dev", dev])?;
    ensure!(
        !link.contains("xdp"),
        "an XDP program is still there: {link}"
    );
    // Older kernels do not know TCX.
    if kernel::version() >= (6, 6) {
        let query = || SchedClassifier::query_tcx(dev, TcAttachType::Egress);
        let (_, programs) = namespace.run(query).context("asking for TCX programs")?;
        ensure!(
            programs.is_empty(),
            "a TCX program is still there: {programs:?}"
        );
    }
    Ok(())
}
