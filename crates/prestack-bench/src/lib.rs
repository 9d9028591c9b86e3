//! Load generator and benchmark reports for memcached with and without prestack.
