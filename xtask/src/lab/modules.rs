//! Which kernel modules a set of modules needs, and in which order they must be loaded.

use anyhow::{Result, bail};
use std::collections::{BTreeMap, BTreeSet};

/// The dependencies that `depmod` found: module name → its file and the modules it needs.
pub(super) struct ModuleDependencies {
    modules: BTreeMap<String, KernelModule>,
    builtin: BTreeSet<String>,
}

struct KernelModule {
    path: String,
    needs: Vec<String>,
}

impl ModuleDependencies {
    /// Reads the text of `modules.dep` and `modules.builtin`.
    pub(super) fn parse(dep: &str, builtin: &str) -> Self {
        let modules = dep
            .lines()
            .filter_map(|line| line.split_once(':'))
            .map(|(path, needs)| {
                let needs = needs.split_whitespace().map(name_of).collect();
                (
                    name_of(path),
                    KernelModule {
                        path: path.to_owned(),
                        needs,
                    },
                )
            })
            .collect();
        Self {
            modules,
            builtin: builtin.lines().map(name_of).collect(),
        }
    }

    /// The files of `wanted` and of everything they need, each after what it needs itself.
    ///
    /// # Errors
    /// A module that is neither there nor built into the kernel.
    pub(super) fn load_order(&self, wanted: &[&str]) -> Result<Vec<&str>> {
        let mut order = Vec::new();
        let mut seen = BTreeSet::new();
        for name in wanted {
            self.visit(&name_of(name), &mut seen, &mut order)?;
        }
        Ok(order)
    }

    /// `modules.dep` lists needs transitively, so the depth stays small; `seen` ends any cycle.
    fn visit<'a>(
        &'a self,
        name: &str,
        seen: &mut BTreeSet<String>,
        order: &mut Vec<&'a str>,
    ) -> Result<()> {
        if self.builtin.contains(name) || !seen.insert(name.to_owned()) {
            return Ok(());
        }
        let Some(module) = self.modules.get(name) else {
            bail!("The kernel package has no module {name}");
        };
        for need in &module.needs {
            self.visit(need, seen, order)?;
        }
        order.push(&module.path);
        Ok(())
    }
}

/// `kernel/net/9p/9pnet.ko.xz` → `9pnet`, with `-` and `_` alike as the kernel has it.
pub(super) fn name_of(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or(path);
    file.split(".ko").next().unwrap_or(file).replace('-', "_")
}

#[cfg(test)]
mod test {
    use super::*;

    const DEP: &str = "\
kernel/arch/x86/kvm/kvm-amd.ko.xz: kernel/arch/x86/kvm/kvm.ko.xz kernel/virt/lib/irqbypass.ko.xz kernel/drivers/crypto/ccp/ccp.ko.xz
kernel/arch/x86/kvm/kvm.ko.xz: kernel/virt/lib/irqbypass.ko.xz
kernel/virt/lib/irqbypass.ko.xz:
kernel/drivers/crypto/ccp/ccp.ko.xz:
kernel/a.ko: kernel/b.ko
kernel/b.ko: kernel/a.ko
";

    #[test]
    fn modules_come_after_what_they_need() {
        let deps = ModuleDependencies::parse(DEP, "kernel/drivers/virtio/virtio_pci.ko\n");
        let order = deps.load_order(&["kvm-amd", "virtio-pci", "kvm"]).unwrap();
        let names: Vec<_> = order.iter().map(|path| name_of(path)).collect();
        assert_eq!(names, ["irqbypass", "kvm", "ccp", "kvm_amd"]);
    }

    #[test]
    fn a_cycle_ends_and_an_unknown_module_is_an_error() {
        let deps = ModuleDependencies::parse(DEP, "");
        assert_eq!(deps.load_order(&["a"]).unwrap().len(), 2);
        let error = deps.load_order(&["virtio_pci"]).unwrap_err().to_string();
        assert!(error.contains("virtio_pci"), "{error}");
    }
}
