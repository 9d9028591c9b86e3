//! What memcached's command line tells about it.

/// memcached's short options that take a value (`shortopts` in memcached.c, 1.6).
const WITH_VALUE: &str = "apsUmcluPfntDRbBIYeoN";

/// Features of a memcached whose traffic cannot be cached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Features {
    /// It is a proxy for other servers (`-o proxy_config`), which change behind its back.
    pub proxy: bool,
    /// It speaks TLS (`-Z`), so that writes cannot be read.
    pub tls: bool,
    /// It takes everything for text (`-B ascii`): what looks like a binary request may hold lines.
    pub text_alone: bool,
}

impl Features {
    /// Reads the command line, the program's name first, as `getopt_long` does.
    pub fn read<S: AsRef<str>>(arguments: &[S]) -> Self {
        let mut features = Self::default();
        let mut words = arguments.iter().map(AsRef::as_ref).skip(1);
        while let Some(word) = words.next() {
            if word == "--" {
                break;
            } else if let Some(long) = word.strip_prefix("--") {
                let (name, value) = match long.split_once('=') {
                    Some((name, value)) => (name, Some(value)),
                    None => (long, None),
                };
                // getopt_long takes every unambiguous beginning of a name.
                if name.len() >= 2 && "extended".starts_with(name) {
                    features.extended(value.or_else(|| words.next()).unwrap_or_default());
                } else if name.len() > "enable-s".len() && "enable-ssl".starts_with(name) {
                    features.tls = true;
                } else if name.len() >= 2 && "protocol".starts_with(name) {
                    features.protocol(value.or_else(|| words.next()).unwrap_or_default());
                }
            } else if let Some(cluster) = word.strip_prefix('-') {
                for (at, letter) in cluster.char_indices() {
                    let rest = &cluster[at + letter.len_utf8()..];
                    if letter == 'Z' {
                        features.tls = true;
                    } else if WITH_VALUE.contains(letter) {
                        let value = if rest.is_empty() {
                            words.next()
                        } else {
                            Some(rest)
                        };
                        match letter {
                            'o' => features.extended(value.unwrap_or_default()),
                            'B' => features.protocol(value.unwrap_or_default()),
                            _ => {}
                        }
                        break;
                    }
                }
            }
        }
        features
    }

    /// Reads the value of `-B`.
    fn protocol(&mut self, value: &str) {
        self.text_alone = value == "ascii";
    }

    /// Reads the value of `-o`.
    fn extended(&mut self, value: &str) {
        self.proxy |= value
            .split(',')
            .any(|option| option.split('=').next() == Some("proxy_config"));
    }
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
        ] {
            assert!(read(line).text_alone, "{line}");
        }
        for line in [
            "memcached -B auto",
            "memcached -B binary",
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
