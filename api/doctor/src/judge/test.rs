use super::*;
use crate::host::DiskFacts;
use crate::kvm_module::KvmModules;
use crate::probe::{GuestSpeed, ProbeOutcome, ProbeTimes, UserfaultfdFacts, WallFacts};
use crate::verdict;
use control::{CgroupMode, CgroupSite, MissingWall};

#[expect(clippy::unnecessary_wraps, reason = "parameters may be missing")]
fn word(word: &str) -> Option<String> {
    Some(word.to_owned())
}

fn good() -> HostFacts {
    let ok = || ProbeOutcome {
        ok: true,
        error: None,
    };
    let kvm = KvmFacts {
        ok: true,
        times_us: ProbeTimes {
            slot_after_full_irqchip: Some(100.0),
            ..ProbeTimes::default()
        },
        supervisor_speed: GuestSpeed {
            ok: true,
            error: None,
            million_instructions_per_second: Some(3000.0),
        },
        ..KvmFacts::default()
    };
    HostFacts {
        kernel: "6.12.1".into(),
        cpu_virtualizes: true,
        modules: KvmModules {
            ept: word("Y"),
            unrestricted_guest: word("Y"),
            nx_huge_pages: word("N"),
            l1d_flush: word("not required"),
        },
        debugfs: false,
        open_files: Some(1 << 20),
        tasks: Some(1 << 20),
        memory_mb: 64_000,
        available_mb: 60_000,
        overcommit: 0,
        disk: Ok(DiskFacts {
            path: "/x".into(),
            free_mb: 1 << 20,
            unnamed_files: true,
        }),
        config: Ok(()),
        has_key: true,
        tls: None,
        files: vec![("VM program".into(), "/x/vmm".into(), None)],
        jail: JailMode::Required,
        cgroup: CgroupMode::Auto,
        groups: Ok(CgroupSite {
            dir: "/sys/fs/cgroup".into(),
            is_root: true,
            controllers: vec!["memory", "cpu", "pids"],
        }),
        max_sandboxes: 64,
        lazy: None,
        largest_mb: 512,
        name_servers: Ok(2),
        probe: Ok(ProbeReport {
            kvm,
            userfaultfd: UserfaultfdFacts {
                device: ok(),
                features: Some(ok()),
                unprivileged: Some(false),
            },
            io_uring: ok(),
            walls: WallFacts {
                ok: true,
                ..WallFacts::default()
            },
        }),
    }
}

type Change = fn(&mut HostFacts, &mut ProbeReport);

/// Changes one fact; gives the verdict and the one finding that is not fine.
fn one(change: impl FnOnce(&mut HostFacts, &mut ProbeReport)) -> (Level, Finding) {
    let mut facts = good();
    let mut probe = facts.probe.clone().unwrap();
    change(&mut facts, &mut probe);
    if facts.probe.is_ok() {
        facts.probe = Ok(probe);
    }
    let findings = judge(&facts);
    let bad: Vec<_> = findings
        .iter()
        .filter(|f| f.level != Level::Fine)
        .cloned()
        .collect();
    assert_eq!(bad.len(), 1, "{bad:#?}");
    assert!(
        !bad[0].consequence.is_empty() && !bad[0].remedy.is_empty(),
        "{bad:#?}"
    );
    (verdict(&findings), bad[0].clone())
}

#[test]
fn a_good_host_is_fine() {
    let findings = judge(&good());
    assert_eq!(verdict(&findings), Level::Fine, "{findings:#?}");
}

#[test]
fn a_host_without_name_servers_has_sandboxes_without_names() {
    let unreadable = || Err("/etc/resolv.conf: no such file".to_owned());
    for servers in [Ok(0), unreadable()] {
        let (level, finding) = one(|facts, _| facts.name_servers = servers);
        assert_eq!((finding.name, level), ("names", Level::Degraded));
    }
}

#[test]
fn a_missing_wall_stops_sandboxes_unless_the_operator_does_without() {
    let without = |mode| {
        let (level, finding) = one(|facts, probe| {
            facts.jail = mode;
            probe.walls = WallFacts {
                ok: false,
                error: None,
                missing: vec![MissingWall {
                    wall: Wall::User,
                    why: "nobody is root".into(),
                    remedy: "be root".into(),
                }],
            };
        });
        assert_eq!((finding.name, finding.level), ("walls", level));
        assert!(finding.found.contains("user: nobody is root (be root)"));
        level
    };
    assert_eq!(without(JailMode::Required), Level::Unusable);
    assert_eq!(without(JailMode::Degraded), Level::Degraded);
    // A VM program that says nothing of walls is not believed to have them.
    let (level, finding) = one(|_, probe| probe.walls = WallFacts::default());
    assert_eq!((finding.name, level), ("walls", Level::Unusable));
}

#[test]
fn a_host_without_intels_module_hears_nothing_of_it() {
    let mut facts = good();
    facts.modules = KvmModules::default();
    let findings = judge(&facts);
    assert_eq!(verdict(&findings), Level::Fine);
    let names = ["ept", "unrestricted guest", "cache flush"];
    assert!(!findings.iter().any(|f| names.contains(&f.name)));
}

#[test]
fn what_stops_sandboxes_is_unusable() {
    let cases: [(&str, Change); 9] = [
        ("kvm", |_, p| {
            p.kvm = KvmFacts {
                error: Some("/dev/kvm: No such file".into()),
                ..KvmFacts::default()
            };
        }),
        ("kvm", |_, p| {
            p.kvm = KvmFacts {
                missing: vec!["KVM_CAP_IRQFD".into()],
                ..KvmFacts::default()
            };
        }),
        ("guest speed", |_, p| {
            p.kvm.supervisor_speed.million_instructions_per_second = Some(1.1);
        }),
        ("io_uring", |_, p| p.io_uring = ProbeOutcome::default()),
        ("virtualization", |f, _| {
            f.probe = Err("no such program".into());
        }),
        ("configuration", |f, _| f.config = Err("no key".into())),
        ("files", |f, _| f.files[0].2 = Some("No such file".into())),
        ("memory", |f, _| f.available_mb = 600),
        ("disk", |f, _| f.disk = Err("read-only".into())),
    ];
    for (name, change) in cases {
        let (level, finding) = one(change);
        assert_eq!((level, finding.name), (Level::Unusable, name));
    }
}

#[test]
fn what_only_takes_away_is_degraded() {
    let cases: [(&str, Change); 10] = [
        ("userfaultfd", |f, p| {
            f.lazy = Some(Ok(()));
            p.userfaultfd = UserfaultfdFacts::default();
        }),
        ("userfaultfd", |f, p| {
            f.lazy = Some(Ok(()));
            p.userfaultfd.features = Some(ProbeOutcome::default());
        }),
        ("userfaultfd", |f, _| {
            f.lazy = Some(Err("No such file".into()));
        }),
        ("guest speed", |_, p| {
            p.kvm.supervisor_speed = GuestSpeed::default();
        }),
        ("ept", |f, _| f.modules.ept = word("N")),
        ("cache flush", |f, _| f.modules.l1d_flush = word("never")),
        ("open files", |f, _| f.open_files = Some(1024)),
        ("processes", |f, _| f.tasks = Some(512)),
        ("overcommit", |f, _| f.overcommit = 2),
        ("disk", |f, _| f.disk.as_mut().unwrap().free_mb = 1000),
    ];
    for (name, change) in cases {
        let (level, finding) = one(change);
        assert_eq!((level, finding.name), (Level::Degraded, name));
    }
}

#[test]
fn what_is_only_worth_knowing_does_not_spoil_the_verdict() {
    let cases: [(&str, Change); 9] = [
        ("configuration", |f, _| f.has_key = false),
        ("userfaultfd", |_, p| {
            p.userfaultfd = UserfaultfdFacts::default();
        }),
        ("memory slots", |_, p| {
            p.kvm.times_us.slot_after_full_irqchip = Some(6400.0);
        }),
        ("unrestricted guest", |f, _| {
            f.modules.unrestricted_guest = word("N");
        }),
        ("executable huge pages", |f, _| {
            f.modules.nx_huge_pages = word("Y");
        }),
        ("cache flush", |f, _| f.modules.l1d_flush = word("always")),
        ("debugfs", |f, _| f.debugfs = true),
        ("memory", |f, _| f.max_sandboxes = 200),
        ("disk", |f, _| {
            f.disk.as_mut().unwrap().unnamed_files = false;
        }),
    ];
    for (name, change) in cases {
        let (level, finding) = one(change);
        assert_eq!((level, finding.name), (Level::Note, name));
    }
}

#[test]
fn the_remedy_for_a_missing_kvm_depends_on_the_processor() {
    let remedy = |virtualizes| {
        let missing = |f: &mut HostFacts, p: &mut ProbeReport| {
            f.cpu_virtualizes = virtualizes;
            p.kvm = KvmFacts {
                error: Some("cannot open /dev/kvm".into()),
                ..KvmFacts::default()
            };
        };
        one(missing).1.remedy
    };
    assert!(remedy(true).contains("kvm_amd") && remedy(false).contains("firmware"));
}
