use super::*;
use crate::doors::Transports;

fn state() -> State {
    State {
        layout: 1,
        version: "0".into(),
        pid: 1,
        started: 0,
        netns: 2,
        interfaces: ["vs", "vt"]
            .map(|name| AttachedState {
                name: name.into(),
                index: 3,
                mode: "native".into(),
                egress: "tcx".into(),
                added_clsact: false,
            })
            .to_vec(),
        unserved: Vec::new(),
        down: Vec::new(),
        lo: None,
        given: None,
        before: None,
        programs: vec![17],
        maps: MapIds::default(),
        memory: 1,
        buckets: 1,
        max_flows: 16,
        tcp_hits: true,
        drain_timeout_ms: 5,
        max_age_ms: 1000,
        ports: vec![11211, 11212],
        pinned: false,
        allow: vec!["10.0.0.0/8".parse().expect("a net")],
        backends: vec![BackendState {
            number: 0,
            pid: 4,
            start: 5,
            alive: true,
            superseded: false,
            doors: vec![DoorSpec {
                address: Some("fd00::1".parse().expect("an address")),
                port: 11211,
                backend: 0,
                serve_tcp: true,
                serve_udp: true,
                transports: Transports {
                    udp: true,
                    ..Transports::default()
                },
            }],
            unix_sockets: vec!["/run/m".into()],
        }],
        problems: Vec::new(),
        unseen: Vec::new(),
        aside: None,
    }
}

fn instance(name: &str, folder: &Path) -> Instance {
    Instance::in_folder(name.parse().expect("a name"), folder)
}

#[test]
fn state_is_read_back() {
    let folder = tempfile::tempdir().expect("a folder");
    let instance = instance("one", folder.path());
    assert_eq!(instance.state().expect("readable"), None);
    instance.write(&state()).expect("written");
    assert_eq!(instance.state().expect("readable"), Some(state()));
    instance.clear().expect("removed");
    instance.clear().expect("already removed");
    assert_eq!(instance.state().expect("readable"), None);
}

#[test]
fn nothing_is_left_of_what_cannot_be_written() {
    let folder = tempfile::tempdir().expect("a folder");
    let instance = instance("one", folder.path());
    // It cannot be put in the place of a folder.
    fs::create_dir(folder.path().join("one.json")).expect("made");
    assert!(instance.write(&state()).is_err());
    assert_eq!(fs::read_dir(folder.path()).expect("readable").count(), 1);
}

#[test]
fn too_little_room_is_found_out_before_there_is_a_state() {
    let folder = tempfile::tempdir().expect("a folder");
    let instance = instance("one", folder.path());
    instance.check_room().expect("enough");
    std::os::unix::fs::symlink("/dev/full", folder.path().join("one.json.new")).expect("made");
    let error = instance.check_room().unwrap_err().to_string();
    assert!(error.contains("make room in /run/prestack"), "{error}");
    assert_eq!(fs::read_dir(folder.path()).expect("readable").count(), 0);
}

#[test]
fn malformed_state_is_an_error() {
    let folder = tempfile::tempdir().expect("a folder");
    let instance = instance("one", folder.path());
    fs::write(folder.path().join("one.json"), "{}").expect("written");
    assert!(matches!(
        instance.state(),
        Err(StateError::Malformed { .. })
    ));
}

#[test]
fn a_state_that_is_cut_off_is_not_taken_for_another_versions() {
    let folder = tempfile::tempdir().expect("a folder");
    let instance = instance("one", folder.path());
    instance.write(&state()).expect("written");
    let path = folder.path().join("one.json");
    let text = fs::read(&path).expect("readable");
    for len in [0, text.len() / 2] {
        fs::write(&path, &text[..len]).expect("written");
        let error = instance.state().unwrap_err().to_string();
        assert!(error.contains("ends in the middle"), "{error}");
        assert!(
            error.contains("remove it, then run `prestack detach --instance one`"),
            "{error}"
        );
    }
}

#[test]
fn others_are_told_with_whether_they_run() {
    let folder = tempfile::tempdir().expect("a folder");
    let [one, two, three] = ["one", "two", "three"].map(|name| instance(name, folder.path()));
    two.write(&state()).expect("written");
    three.write(&state()).expect("written");
    let _lock = three.lock().expect("free");
    assert_eq!(
        one.describe_others(),
        ["three", "two, whose daemon has ended"]
    );
}

#[test]
fn places_are_told_with_what_is_attached_there() {
    let vs = &state().interfaces[0];
    assert_eq!(vs.to_string(), "vs: native XDP, replies by tcx");
    let lo = AttachedState {
        name: "lo".into(),
        mode: String::new(),
        ..vs.clone()
    };
    assert_eq!(lo.to_string(), "lo: tcx");
}

#[test]
fn an_instance_runs_while_its_lock_is_held() {
    let folder = tempfile::tempdir().expect("a folder");
    let instance = instance("one", folder.path());
    assert!(!instance.is_running().expect("readable"));
    let lock = instance.lock().expect("free");
    assert!(instance.is_running().expect("readable"));
    assert!(matches!(instance.lock(), Err(StateError::Running { .. })));
    drop(lock);
    assert!(!instance.is_running().expect("readable"));
    drop(instance.lock().expect("free again"));
    assert_eq!(fs::read_dir(folder.path()).expect("readable").count(), 0);
}

#[test]
fn programs_are_traced_to_other_instances() {
    let folder = tempfile::tempdir().expect("a folder");
    let (one, two) = (
        instance("one", folder.path()),
        instance("two", folder.path()),
    );
    one.write(&state()).expect("written");
    assert_eq!(two.other_with_program(17).as_ref(), Some(one.name()));
    assert_eq!(two.other_with_program(18), None);
    assert_eq!(one.other_with_program(17), None);
}

#[test]
fn interfaces_are_listed_by_mode() {
    let mut state = state();
    assert_eq!(state.interface_list(), "vs,vt (native)");
    assert_eq!(state.port_list(), "11211,11212");
    state.interfaces[1].mode = "generic".into();
    assert_eq!(state.interface_list(), "vs (native), vt (generic)");
}

fn attached(name: &str, index: u32) -> AttachedState {
    AttachedState {
        name: name.into(),
        index,
        mode: String::new(),
        egress: String::new(),
        added_clsact: false,
    }
}

/// A run that was given these interfaces, and is attached at those.
fn run(given: Option<&[&str]>, interfaces: &[AttachedState]) -> State {
    State {
        interfaces: interfaces.to_vec(),
        given: given.map(|names| names.iter().map(|name| (*name).to_owned()).collect()),
        ..state()
    }
}

#[test]
fn a_state_of_an_earlier_version_is_read() {
    let folder = tempfile::tempdir().expect("a folder");
    let instance = instance("one", folder.path());
    let mut text = serde_json::to_value(state()).expect("JSON");
    let fields = text.as_object_mut().expect("an object");
    for new in ["given", "before"] {
        fields.remove(new).expect("written");
    }
    fs::write(folder.path().join("one.json"), text.to_string()).expect("written");
    assert_eq!(instance.state().expect("readable"), Some(state()));
}

#[test]
fn segments_may_have_passed_where_an_interface_went_or_came_back() {
    let (one, two) = (attached("eth0", 5), attached("eth1", 9));
    let before = Before::of(&run(Some(&["eth0", "eth1"]), &[one.clone(), two.clone()]));
    let both = [one.clone(), two.clone()];
    assert!(before.is_gapless(&both, &[]));
    // One is there no more, was made anew, or had no programs in whose place others could come.
    assert!(!before.is_gapless(&both[..1], &[]));
    assert!(!before.is_gapless(&both[..1], &[attached("eth1", 10)]));
    assert!(!before.is_gapless(&both[..1], &both[1..]));

    // One that it was given, and had lost, is back: whether it had attached to it or not.
    let before = Before::of(&run(Some(&["eth0", "eth1"]), &both[..1]));
    assert!(before.is_gapless(&both[..1], &[]));
    assert!(!before.is_gapless(&both, &[]));
    assert!(!before.is_gapless(&both[..1], &both[1..]));
}

#[test]
fn one_more_interface_is_no_gap() {
    let both = [attached("eth0", 5), attached("eth1", 9)];
    let before = Before::of(&run(Some(&["eth0"]), &both[..1]));
    assert!(before.is_gapless(&both[..1], &both[1..]));
    // An earlier version has not written down what it was given.
    let before = Before::of(&run(None, &both[..1]));
    assert!(!before.is_gapless(&both[..1], &both[1..]));
}

#[test]
fn what_was_given_once_may_come_back() {
    let both = [attached("eth0", 5), attached("eth1", 9)];
    let mut next = run(Some(&["eth0"]), &both[..1]);
    next.remember(&Before::of(&run(Some(&["eth0", "eth1"]), &both[..1])));
    next.before = None;
    assert!(!Before::of(&next).is_gapless(&both[..1], &both[1..]));
}

#[test]
fn a_run_that_is_cut_short_leaves_what_it_knew() {
    let one = AttachedState {
        mode: "generic".into(),
        egress: "clsact".into(),
        added_clsact: true,
        ..attached("eth0", 5)
    };
    let lo = attached("lo", 1);
    let served = State {
        lo: Some(lo.clone()),
        ..run(Some(&["eth0"]), std::slice::from_ref(&one))
    };
    // It has written down where it was to attach, and nothing of how.
    let two = attached("eth1", 9);
    let mut cut_short = State {
        ports: vec![11213],
        ..run(Some(&["eth0", "eth1"]), &[attached("eth0", 5), two.clone()])
    };
    cut_short.remember(&Before::of(&served));
    assert_eq!(cut_short.served(), served.served());
    // So has the next one.
    let mut next = run(Some(&["eth0"]), &[attached("eth0", 5)]);
    next.remember(&Before::of(&cut_short));
    assert_eq!(next.served(), served.served());
    for known in [&one, &two, &lo] {
        assert!(next.egresses().any(|at| at == known), "{known:?}");
        assert!(next.filters().any(|at| at == known), "{known:?}");
    }
    let before = Before::of(&next);
    assert!(before.is_gapless(std::slice::from_ref(&one), std::slice::from_ref(&two)));
    assert!(!before.is_gapless(&[], &[one]));
}

#[test]
fn doors_are_told_in_words() {
    let mut backend = state().backends.remove(0);
    assert_eq!(backend.describe_doors(), "served at [fd00::1]:11211");
    let door = backend.doors[0];
    backend.doors.push(DoorSpec {
        address: None,
        serve_tcp: false,
        serve_udp: false,
        ..door
    });
    assert_eq!(
        backend.describe_doors(),
        "served at [fd00::1]:11211; watched at *:11211"
    );
    backend.doors.remove(0);
    assert_eq!(backend.describe_doors(), "watched at *:11211");
    backend.doors.clear();
    assert_eq!(backend.describe_doors(), "served nowhere");
}

#[test]
fn a_summary_says_what_is_served_and_what_is_amiss() {
    let served = "serving 11211,11212 on ";
    let with = |change: fn(&mut State)| {
        let mut state = state();
        change(&mut state);
        state.summary()
    };
    assert!(with(|_| {}).starts_with(served));
    let amiss = with(|state| state.problems = vec!["one\nthing".into(), "another".into()]);
    let words = "): one thing (and 1 more, see `prestack status`)";
    assert!(
        amiss.starts_with(served) && amiss.ends_with(words),
        "{amiss}"
    );
    let dead = |state: &mut State| state.backends[0].alive = false;
    assert_eq!(with(dead), "serving nothing: memcached 4 is gone");
    assert_eq!(
        with(|state| {
            state.backends[0].alive = false;
            state.backends[0].superseded = true;
        }),
        "serving nothing"
    );
    let withheld = |state: &mut State| {
        state.unserved = state.interfaces.iter().map(|at| at.name.clone()).collect();
    };
    assert_eq!(with(withheld), "serving nothing");
    let aside = |state: &mut State| {
        state.aside = Some(AsideState {
            hit_share: None,
            next_trial: None,
        });
    };
    assert!(with(aside).ends_with("): standing aside"));
}
