//! Whether anything is served.

use super::Running;

/// What decides whether anything is served.
#[derive(Clone, Copy, Debug)]
pub(super) struct Serving {
    pub(super) has_daemon: bool,
    /// The daemon was heard of lately.
    is_alive: bool,
    /// The datapath was told to serve nothing.
    is_stopped: bool,
    pub(super) is_aside: bool,
    /// Connections are only translated.
    is_draining: bool,
    /// Nothing is answered at any interface.
    is_lost: bool,
}

impl Serving {
    pub(super) fn of(running: &Running) -> Self {
        let (controls, state) = (&running.controls, &running.state);
        let mut names = state.interfaces.iter().map(|interface| &interface.name);
        Self {
            has_daemon: running.has_daemon,
            is_alive: controls.is_serving(),
            is_stopped: controls.has_stopped_serving(),
            is_aside: controls.is_aside(),
            is_draining: state.tcp_hits && controls.is_draining(),
            is_lost: names.all(|name| state.unserved.contains(name)),
        }
    }

    /// Whether there is a daemon that does nothing. While the datapath stands aside that does not show.
    pub(super) fn is_silent(self) -> bool {
        self.has_daemon && !self.is_alive && !self.is_stopped && !self.is_aside
    }

    /// Whether it is ending, and waits for connections.
    pub(super) fn is_ending(self) -> bool {
        self.is_draining && self.is_stopped
    }

    /// Whether answers are given no more, as they do not arrive.
    pub(super) fn is_lost(self) -> bool {
        self.is_lost && !self.is_ending()
    }

    /// Why a memcached that runs is not served, other than that the datapath stands aside.
    pub(super) fn why_not(self) -> Option<&'static str> {
        if !self.has_daemon {
            Some("no daemon watches it")
        } else if self.is_silent() {
            Some("its daemon has not answered for a second or more")
        } else if self.is_lost() {
            Some("requests are answered at no interface, see problem")
        } else if self.is_alive || self.is_aside {
            None
        } else if self.is_ending() {
            Some("prestack is ending, and waits for the connections that it carries")
        } else {
            Some("prestack is starting, ending or taking in a change of the host")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SERVING: Serving = Serving {
        has_daemon: true,
        is_alive: true,
        is_stopped: false,
        is_aside: false,
        is_draining: false,
        is_lost: false,
    };
    const STOPPED: Serving = Serving {
        is_alive: false,
        is_stopped: true,
        ..SERVING
    };

    #[test]
    fn it_is_told_why_nothing_is_served() {
        let (is_draining, is_lost) = (true, true);
        let no_daemon = Serving {
            has_daemon: false,
            ..STOPPED
        };
        let ending = Serving {
            is_draining,
            ..STOPPED
        };
        let silent = Serving {
            is_alive: false,
            ..SERVING
        };
        // No more answers over TCP, as they do not arrive, and then over UDP either.
        let lost = Serving {
            is_draining,
            is_lost,
            ..SERVING
        };
        for (serving, reason) in [
            (no_daemon, "no daemon"),
            (ending, "waits for the connections"),
            (Serving { is_lost, ..ending }, "waits for the connections"),
            (STOPPED, "starting, ending or taking in a change"),
            (silent, "has not answered"),
            (
                Serving {
                    is_draining,
                    ..silent
                },
                "has not answered",
            ),
            (lost, "answered at no interface"),
        ] {
            let said = serving.why_not().expect("nothing is served");
            assert!(said.contains(reason), "{said}");
        }
    }

    #[test]
    fn what_is_served_has_no_reason() {
        assert_eq!(SERVING.why_not(), None);
        let is_draining = true;
        let no_tcp = Serving {
            is_draining,
            ..SERVING
        };
        assert_eq!(no_tcp.why_not(), None);
        // The datapath is stopped while it stands aside.
        let aside = Serving {
            is_aside: true,
            ..STOPPED
        };
        assert_eq!(aside.why_not(), None);
    }
}
