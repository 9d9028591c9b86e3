use std::num::NonZeroU16;

use prestack_abi::cache::BUCKET_BYTES;

use super::*;

fn file(text: &str) -> Result<Settings, toml::de::Error> {
    toml::from_str(text)
}

fn resolve(text: &str) -> Result<Options, SettingsError> {
    file(text).expect("well-formed").resolve("lo")
}

#[test]
fn the_file_knows_every_flag_by_its_name() {
    let settings = file(
        r#"
        interface = ["vs", "vt"]
        port = 11212
        address = "10.0.0.1"
        mode = "generic"
        memory = "64MiB"
        max-age = "500ms"
        allow = ["10.0.0.0/8", "fd00::1"]
        instance = "two"
        pin = true
        tcp-hits = true
        max-flows = 3000
        tcp-trickle = "1s"
        tcp-answer = 300
        drain-timeout = "0s"
        watch-lo = false
        settle = "2s"
        egress = "clsact"
        "#,
    )
    .expect("well-formed");
    let options = settings.resolve("").expect("in range");
    assert_eq!(options.interfaces, ["vs", "vt"]);
    assert_eq!(options.ports, [11212]);
    assert_eq!(options.addresses, ["10.0.0.1".parse::<IpAddr>().unwrap()]);
    assert_eq!(options.mode, ModeSetting::Generic);
    assert_eq!(options.memory, ByteSize::mib(64));
    assert_eq!(options.max_age, Duration::from_millis(500));
    assert_eq!(options.settle, Duration::from_secs(2));
    assert_eq!(options.allow[1], "fd00::1/128".parse().unwrap());
    assert_eq!(options.instance.as_str(), "two");
    assert!(options.pin && !options.watch_lo);
    assert_eq!(options.egress, EgressSetting::Clsact);
    assert_eq!((options.tcp_hits, options.max_flows()), (true, 4096));
    assert_eq!(options.tcp_trickle, Duration::from_secs(1));
    assert_eq!(
        (options.tcp_answer, options.has_long_answers()),
        (300, true)
    );
    assert_eq!(options.drain_timeout, Duration::ZERO);
}

#[test]
fn defaults_are_those_of_the_manual() {
    let options = resolve("interface = 'vs'").expect("in range");
    assert_eq!(options.ports, [11211]);
    assert_eq!(options.max_age, Duration::from_secs(1));
    assert_eq!(options.settle, options.max_age);
    assert_eq!(options.memory, ByteSize::mib(256));
    assert_eq!(options.instance.as_str(), "default");
    assert!(options.watch_lo && !options.tcp_hits);
    assert_eq!(options.max_flows(), 8192);
    assert_eq!(options.tcp_trickle, Duration::from_secs(5));
    assert_eq!(options.tcp_answer, 1472);
    assert!(!options.has_long_answers());
    assert_eq!(options.drain_timeout, Duration::from_secs(60));
    let bytes = u64::from(options.extent.buckets()) * BUCKET_BYTES as u64;
    assert!(bytes <= 256 << 20 && bytes > 252 << 20, "{bytes}");
}

#[test]
fn tables_of_connections_are_powers_of_two() {
    let flows = |text: &str| resolve(&format!("interface = 'vs'\n{text}")).map(|o| o.max_flows());
    for (given, flows_) in [
        (16, 16),
        (17, 32),
        (8192, 8192),
        (40_000, 65_536),
        (65_536, 65_536),
    ] {
        assert_eq!(
            flows(&format!("max-flows = {given}")).expect("in range"),
            flows_
        );
    }
    for given in [0, 15, 65_537, u32::MAX] {
        let error = flows(&format!("max-flows = {given}")).unwrap_err();
        assert!(
            error.to_string().contains("between 16 and 65536"),
            "{error}"
        );
    }
}

#[test]
fn the_table_of_connections_grows_with_the_memory() {
    let flows = |memory: &str, more: &str| {
        let text = format!("interface = 'vs'\nmemory = '{memory}'\n{more}");
        resolve(&text).expect("in range").max_flows()
    };
    for (memory, most, short) in [
        ("1MiB", 8192, 8192),
        ("256MiB", 8192, 8192),
        ("1GiB", 16_384, 16_384),
        ("1200MiB", 16_384, 32_768),
        ("8GiB", 65_536, 65_536),
    ] {
        assert_eq!(flows(memory, "tcp-hits = true"), most, "{memory}");
        assert_eq!(flows(memory, "tcp-hits = true\ntcp-answer = 256"), short);
        assert_eq!(flows(memory, ""), 8192);
        assert_eq!(flows(memory, "tcp-hits = true\nmax-flows = 64"), 64);
    }
}

#[test]
fn loopback_is_watched_unless_it_is_served_or_that_is_switched_off() {
    let watches = |text| resolve(text).expect("in range").watch_lo;
    assert!(watches("interface = 'vs'\nwatch-lo = true"));
    assert!(!watches("interface = 'vs'\nwatch-lo = false"));
    assert!(!watches("interface = ['vs', 'lo']"));
    let flag = Settings {
        no_watch_lo: Some(true),
        ..Settings::default()
    };
    let merged = flag.over(file("watch-lo = true").unwrap());
    assert_eq!(merged.no_watch_lo, Some(true));
}

#[test]
fn a_flag_undoes_what_the_file_says() {
    let no = Some(false);
    let flags = Settings {
        tcp_hits: no,
        always_on: no,
        pin: no,
        serve_reserved_ports: no,
        no_watch_lo: no,
        ..Settings::default()
    };
    let text = "interface = 'vs'\ntcp-hits = true\nalways-on = true\npin = true\n\
                serve-reserved-ports = true\nwatch-lo = false";
    let options = flags.over(file(text).unwrap()).resolve("");
    let options = options.expect("in range");
    assert!(!options.tcp_hits && !options.always_on && !options.pin);
    assert!(!options.serve_reserved_ports && options.watch_lo);
}

#[test]
fn flags_win_over_the_file() {
    let flags = Settings {
        port: vec![Port(NonZeroU16::MIN)],
        max_age: Some(Span(Duration::from_secs(2))),
        ..Settings::default()
    };
    let merged = flags.over(file("port = [2, 3]\nmax-age = '9s'\ninterface = 'vs'").unwrap());
    assert_eq!(merged.port, [Port(NonZeroU16::MIN)]);
    assert_eq!(merged.max_age, Some(Span(Duration::from_secs(2))));
    assert_eq!(merged.interface, ["vs"]);
}

#[test]
fn values_out_of_range_are_refused() {
    use SettingsError::*;
    let error = |text: &str| resolve(text).unwrap_err();
    assert!(matches!(error(""), NoInterface { .. }));
    assert!(matches!(
        error("interface=['a','a']"),
        RepeatedInterface { .. }
    ));
    assert!(matches!(
        error("interface='a'\nmemory='64KiB'"),
        TooLittleMemory { .. }
    ));
    assert!(matches!(
        error("interface='a'\nmemory='1EiB'"),
        TooMuchMemory { .. }
    ));
    assert!(matches!(
        error("interface='a'\nmax-age='1ms'"),
        DurationOutOfRange {
            name: "max-age",
            ..
        }
    ));
    assert!(matches!(
        error("interface='a'\nsettle='2days'"),
        DurationOutOfRange { name: "settle", .. }
    ));
    for (name, text) in [
        ("tcp-trickle", "tcp-trickle='10ms'"),
        ("drain-timeout", "drain-timeout='2days'"),
    ] {
        let error = error(&format!("interface='a'\n{text}"));
        assert!(matches!(error, DurationOutOfRange { name: n, .. } if n == name));
    }
    for text in ["tcp-answer=0", "tcp-answer=1473"] {
        let error = error(&format!("interface='a'\n{text}"));
        assert!(matches!(error, AnswerOutOfRange { .. }));
    }
    for given in ["0", "1000000001", "5000000000"] {
        let error = error(&format!("interface='a'\nrate-limit={given}")).to_string();
        let said = format!("--rate-limit {given} is out of range: it must lie between 1 and");
        assert!(error.contains(&said), "{error}");
    }
    assert!(resolve("interface='a'\nrate-limit=1000000000").is_ok());
}

#[test]
fn malformed_values_are_refused() {
    for text in [
        "max-age = '1'",
        "max-age = 'soon'",
        "memory = 'much'",
        "allow = '10.0.0.0/33'",
        "port = 70000",
        "port = 0",
        "port = -1",
        "allow = '10.0.0.1/8'",
        "instance = 'a.b'",
        "instance = ''",
        "mode = 'fast'",
    ] {
        assert!(file(text).is_err(), "{text}");
    }
}

#[test]
fn values_of_the_wrong_kind_are_told_how_they_are_written() {
    for (text, said) in [
        (
            "port = '11211'",
            "a port is a number from 1 to 65535, without quotes",
        ),
        (
            "port = ['11211']",
            "a port is a number from 1 to 65535, without quotes",
        ),
        ("port = true", "a value or a list of values"),
        (
            "max-age = 1",
            "a duration is written in quotes, such as \"500ms\" or \"1s\"",
        ),
        (
            "max-age = 0.5",
            "a duration is written in quotes, such as \"500ms\" or \"1s\"",
        ),
        ("max-age = 'soon'", "such as 500ms or 1s"),
    ] {
        let error = file(text).unwrap_err().to_string();
        assert!(error.contains(said), "{text}: {error}");
    }
}
