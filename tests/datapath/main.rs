//! Packets through the programs.
