//! prestack's control plane: loads, attaches, watches and reports on the datapath.
pub mod object;
