//! Load generator and benchmark reports for memcached with and without prestack.

mod batch;
pub mod bench;
mod comparison;
pub mod dataset;
pub mod demo;
mod interrupt;
mod kernel;
pub mod load;
pub mod popularity;
mod progress;
mod report;
pub mod server_cpu;
mod worker;
