//! What memcached's command line tells about it.

use crate::command_line::options;

/// Features of a memcached whose traffic cannot be cached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Features {
    /// It is a proxy for other servers (`-o proxy_config`), which change behind its back.
    pub proxy: bool,
    /// It speaks TLS (`-Z`), so that writes cannot be read.
    pub tls: bool,
    /// It takes everything for text (`-B ascii`, `-l proto[ascii]:…`, `-Y`): what looks like a binary request may hold
    /// lines. With `-Y` the data of what looks like a write may, too, until its client has shown who it is.
    pub text_alone: bool,
}

impl Features {
    /// Reads the command line, the program's name first.
    pub fn read<S: AsRef<[u8]>>(arguments: &[S]) -> Self {
        let mut features = Self::default();
        // The last one counts, for all addresses that say nothing else.
        let mut fixed = false;
        for given in options(arguments.get(1..).unwrap_or_default()) {
            match given.letter {
                b'Z' => features.tls = true,
                b'Y' => features.text_alone = true,
                b'B' => fixed = given.value == b"ascii",
                b'l' => features.text_alone |= fixes_text(given.value),
                b'o' => features.proxy |= names_proxy(given.value),
                _ => {}
            }
        }
        features.text_alone |= fixed;
        features
    }
}

/// Whether a value of `-o` makes memcached a proxy.
fn names_proxy(extended: &[u8]) -> bool {
    extended
        .split(|&byte| byte == b',')
        .any(|option| option.split(|&byte| byte == b'=').next() == Some(b"proxy_config"))
}

/// Whether a value of `-l` has an address at which everything is taken for text. memcached takes any beginning
/// of the word, none of it included.
fn fixes_text(listen: &[u8]) -> bool {
    const PROTOCOL: &[u8] = b"proto[";
    listen
        .split(|byte| b",;".contains(byte))
        .filter_map(|address| {
            // `notls:` may stand before it.
            let at = address
                .windows(PROTOCOL.len())
                .position(|word| word == PROTOCOL)?;
            address[at + PROTOCOL.len()..]
                .split(|&byte| byte == b']')
                .next()
        })
        .any(|name| b"ascii".starts_with(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(line: &str) -> Features {
        Features::read(&line.split(' ').collect::<Vec<_>>())
    }

    const PLAIN: Features = Features {
        proxy: false,
        tls: false,
        text_alone: false,
    };
    const PROXY: Features = Features {
        proxy: true,
        ..PLAIN
    };
    const TLS: Features = Features { tls: true, ..PLAIN };

    #[test]
    fn ordinary_lines_have_neither() {
        for line in [
            "memcached",
            "memcached -m 64 -p 11211 -u nobody -l 127.0.0.1 -U 11211 -t 4 -vv",
            "memcached -o no_lru_crawler,slab_reassign",
            "memcached -u Z -l Z --user=Z -uZ",
            "memcached --enable-sasl --enable-coredumps",
            "memcached -- -Z",
        ] {
            assert_eq!(read(line), PLAIN, "{line}");
        }
    }

    #[test]
    fn proxies_are_recognized() {
        for line in [
            "memcached -o proxy_config=./p.lua",
            "memcached -o ext_path=x,proxy_config=./p.lua",
            "memcached -oproxy_config=p.lua -p 1",
            "memcached --extended=proxy_config=p.lua",
            "memcached --extended proxy_config=p.lua",
            "memcached -vvo proxy_config=p.lua",
        ] {
            assert_eq!(read(line), PROXY, "{line}");
        }
    }

    #[test]
    fn a_fixed_protocol_is_recognized() {
        for line in [
            "memcached -B ascii",
            "memcached -vBascii",
            "memcached --protocol=ascii",
            "memcached --proto ascii -p 1",
            "memcached -l proto[ascii]:10.0.0.1",
            "memcached -l 127.0.0.1,proto[ascii]:10.0.0.1:11212",
            "memcached --listen=127.0.0.1;proto[a]:10.0.0.1",
            "memcached -lproto[]:10.0.0.1 -B auto",
            "memcached -Y /etc/memcached.auth -B auto",
            "memcached --auth-file=/etc/memcached.auth",
            "memcached -Bauto -l notls:proto[ascii]:10.0.0.1 -l 127.0.0.1",
        ] {
            assert!(read(line).text_alone, "{line}");
        }
        for line in [
            "memcached -B auto",
            "memcached -B binary",
            "memcached -B ascii -B auto",
            "memcached -l proto[binary]:10.0.0.1,proto[negotiating]:ascii",
            "memcached -l proto[asciis]:10.0.0.1",
            "memcached -l 10.0.0.1,ascii",
            "memcached -u ascii",
        ] {
            assert_eq!(read(line), PLAIN, "{line}");
        }
    }

    #[test]
    fn tls_is_recognized() {
        for line in [
            "memcached -Z",
            "memcached -vZ -p 1",
            "memcached --enable-ssl -o ssl_key=k",
        ] {
            assert_eq!(read(line), TLS, "{line}");
        }
    }
}
