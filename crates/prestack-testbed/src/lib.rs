//! Network namespaces, veth pairs and stock memcached processes for tests, demo and benchmarks.
