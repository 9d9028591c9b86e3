//! Stock memcached in namespaces.
