//! Stock memcached in network namespaces, driven over real sockets. These tests need root.

mod testbed;
