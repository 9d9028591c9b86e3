//! Stock memcached in network namespaces, driven over real sockets through `prestack run`. These
//! tests need root.

mod allow;
mod answered;
mod aside;
mod backends;
mod before;
mod bench;
mod carried;
mod changes;
mod classic;
mod clients;
mod coherence;
mod daemon;
mod differential;
mod drained;
mod flood;
mod flush;
mod growth;
mod links;
mod lo;
mod loss;
mod max_age;
mod mixed;
mod noreply;
mod overtaking;
mod peers;
mod proxy;
mod races;
mod refusals;
mod restart;
mod reuseport;
mod testbed;
mod values;
mod vanished;
mod writes;
