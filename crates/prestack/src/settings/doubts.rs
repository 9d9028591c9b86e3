//! Settings that can be used, and yet hardly do what they are given for.

use ipnet::IpNet;

use super::Settings;
use crate::host::LOOPBACK;

impl Settings {
    /// What to tell the operator about them, each with its reason.
    #[must_use]
    pub fn doubts(&self) -> Vec<String> {
        let mut doubts = Vec::new();
        let tcp_alone = [
            ("--tcp-answer", self.tcp_answer.is_some()),
            ("--tcp-trickle", self.tcp_trickle.is_some()),
            ("--drain-timeout", self.drain_timeout.is_some()),
        ];
        for (name, _) in tcp_alone.iter().filter(|(_, is_given)| *is_given) {
            if self.tcp_hits != Some(true) {
                doubts.push(format!("{name} has no effect without --tcp-hits"));
            }
        }
        if self.no_watch_lo == Some(true) && self.interface.iter().any(|name| name == LOOPBACK) {
            doubts.push(format!(
                "--no-watch-lo has no effect where {LOOPBACK} is served (--interface {LOOPBACK})"
            ));
        }
        for network in self.allow.iter().map(|network| network.0) {
            if network.prefix_len() == 0 {
                doubts.push(unbounded(network));
            }
        }
        doubts
    }
}

fn unbounded(network: IpNet) -> String {
    let family = match network {
        IpNet::V4(_) => "IPv4",
        IpNet::V6(_) => "IPv6",
    };
    format!(
        "--allow {network} has everybody served who reaches the interface over {family}, past this host's firewall: \
         give the networks of the clients alone (see Security in docs/operations.md)"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn doubts(text: &str) -> Vec<String> {
        toml::from_str::<Settings>(text)
            .expect("well-formed")
            .doubts()
    }

    #[test]
    fn settings_without_effect_are_told() {
        let tcp = "tcp-answer = 256\ntcp-trickle = '1s'\ndrain-timeout = '1s'";
        let told = doubts(tcp);
        for (told, name) in told
            .iter()
            .zip(["--tcp-answer", "--tcp-trickle", "--drain-timeout"])
        {
            assert_eq!(*told, format!("{name} has no effect without --tcp-hits"));
        }
        assert_eq!(told.len(), 3);
        assert_eq!(doubts(&format!("{tcp}\ntcp-hits = false")), told);
        assert!(doubts(&format!("{tcp}\ntcp-hits = true")).is_empty());
        assert!(doubts("max-flows = 64\npin = true").is_empty());
        let lo = doubts("interface = ['lo', 'vs']\nwatch-lo = false");
        assert!(lo[0].starts_with("--no-watch-lo has no effect"), "{lo:?}");
        assert!(doubts("interface = ['vs']\nwatch-lo = false").is_empty());
        assert!(doubts("interface = ['lo']\nwatch-lo = true").is_empty());
    }

    #[test]
    fn an_allow_list_that_allows_everybody_is_told() {
        let told = doubts("allow = ['0.0.0.0/0', '10.0.0.0/8', '::/0']");
        assert_eq!(told.len(), 2);
        assert!(
            told[0].contains("--allow 0.0.0.0/0") && told[0].contains("IPv4"),
            "{told:?}"
        );
        assert!(
            told[1].contains("--allow ::/0") && told[1].contains("Security"),
            "{told:?}"
        );
    }
}
