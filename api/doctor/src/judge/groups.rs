//! What it means whether VM processes can have control groups.

use crate::{Finding, Level};
use control::{CgroupMode, CgroupSite, NoCgroups};

/// One finding.
pub(super) fn judge(mode: CgroupMode, groups: &Result<CgroupSite, NoCgroups>) -> Finding {
    let why = match (groups, mode) {
        (Ok(site), CgroupMode::Auto | CgroupMode::Required) => {
            let (what, path) = (site.controllers.join(", "), site.dir.display());
            return Finding::fine("resources", format!("{what} of each sandbox, under {path}"));
        }
        (_, CgroupMode::Off) => "resources.cgroup = \"off\"".to_owned(),
        (Err(why), _) => why.why.clone(),
    };
    let (level, consequence) = match mode {
        CgroupMode::Required => (
            Level::Unusable,
            "No sandbox starts: resources.cgroup = \"required\".",
        ),
        CgroupMode::Auto | CgroupMode::Off => (
            Level::Degraded,
            "Sandboxes can take processor and memory from each other and from this host.",
        ),
    };
    let remedy = groups.as_ref().map_or_else(
        |no| no.remedy,
        |_| "Write resources.cgroup = \"auto\" into the configuration.",
    );
    Finding::bad(level, "resources", why, consequence, remedy)
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn missing_groups_are_as_bad_as_the_operator_says() {
        let site = || CgroupSite {
            dir: "/sys/fs/cgroup".into(),
            is_root: true,
            controllers: vec!["memory", "cpu", "pids"],
        };
        let none = || NoCgroups {
            why: "nothing is mounted".into(),
            remedy: "mount it",
        };
        let level = |mode, groups: &_| judge(mode, groups).level;
        assert_eq!(level(CgroupMode::Auto, &Ok(site())), Level::Fine);
        assert_eq!(level(CgroupMode::Auto, &Err(none())), Level::Degraded);
        assert_eq!(level(CgroupMode::Required, &Err(none())), Level::Unusable);
        let off = judge(CgroupMode::Off, &Ok(site()));
        assert_eq!(off.level, Level::Degraded);
        assert!(format!("{off:?}").contains("auto"), "{off:?}");
    }
}
