//! The templates of a configuration, checked.

use crate::config::error::ConfigError;
use crate::config::limits::in_range;
use crate::config::typed::TemplateFile;
use engine::template::Template;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// The templates by name; without any, `base` with the image `base.ext4`.
pub(super) fn templates(
    mut typed: BTreeMap<String, TemplateFile>,
    dir: &Path,
    kernel: &Path,
) -> Result<BTreeMap<String, Template>, ConfigError> {
    if typed.is_empty() {
        typed.insert("base".into(), TemplateFile::image("base.ext4"));
    }
    let mut names = BTreeSet::new();
    let mut templates = BTreeMap::new();
    for (name, t) in typed {
        for name in t.aliases.iter().chain([&name]) {
            let ok = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'_';
            if name.is_empty() || name.len() > 64 || !name.bytes().all(ok) {
                return Err(ConfigError::TemplateName(name.clone()));
            }
            if !names.insert(name.clone()) {
                return Err(ConfigError::TemplateTwice(name.clone()));
            }
        }
        let template = t.check(&name, dir, kernel)?;
        templates.insert(name, template);
    }
    Ok(templates)
}

impl TemplateFile {
    fn image(path: &str) -> Self {
        Self {
            image: path.into(),
            cpu_count: None,
            memory_mb: None,
            disk_size_mb: None,
            aliases: Vec::new(),
            kernel: None,
            cmdline_extra: None,
            default_user: None,
            default_workdir: None,
            start_cmd: None,
            ready_cmd: None,
        }
    }

    fn check(self, name: &str, dir: &Path, kernel: &Path) -> Result<Template, ConfigError> {
        let key = |key: &str| format!("templates.{name}.{key}");
        let cpus = in_range(
            &key("cpu_count"),
            self.cpu_count.unwrap_or(1),
            1..=control::MAX_VCPUS,
        )?;
        let memory = in_range(
            &key("memory_mb"),
            self.memory_mb.unwrap_or(512),
            control::MIN_MEMORY_MIB..=control::MAX_MEMORY_MIB,
        )?;
        if let Some(disk) = self.disk_size_mb {
            in_range(&key("disk_size_mb"), disk, 16..=(16 << 20))?;
        }
        Ok(Template {
            name: name.to_owned(),
            aliases: self.aliases,
            image: dir.join(self.image),
            kernel: self
                .kernel
                .map_or_else(|| kernel.to_owned(), |kernel| dir.join(kernel)),
            cpu_count: cpus,
            memory_mb: memory,
            disk_size_mb: self.disk_size_mb,
            cmdline_extra: self.cmdline_extra.unwrap_or_default(),
            default_user: self.default_user.unwrap_or_else(|| "user".into()),
            default_workdir: self.default_workdir,
            start_cmd: self.start_cmd,
            ready_cmd: self.ready_cmd,
        })
    }
}
