//! Templates, and the catalogue of those there are, which may change while the server runs.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};

/// What sandboxes are made of: a kernel, an image and a size. Checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template {
    /// Its name.
    pub name: String,
    /// Other names.
    pub aliases: Vec<String>,
    /// The root image.
    pub image: PathBuf,
    /// The kernel.
    pub kernel: PathBuf,
    /// vCPUs.
    pub cpu_count: u8,
    /// Memory, MiB.
    pub memory_mb: u32,
    /// Root disk, MiB; `None`: as large as the image.
    pub disk_size_mb: Option<u64>,
    /// Added to the kernel command line.
    pub cmdline_extra: String,
    /// The user when a request names none.
    pub default_user: String,
    /// The working directory when a request names none.
    pub default_workdir: Option<String>,
    /// What runs in every clone, by the user's shell.
    pub start_cmd: Option<String>,
    /// What succeeds once that is ready to be cloned.
    pub ready_cmd: Option<String>,
}

/// Why a template cannot be added.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CatalogError {
    /// Another template has this name or alias.
    #[error("The template name {0:?} is taken")]
    NameTaken(String),
}

/// The templates there are, by name. What is taken out lives on in the sandboxes that were made of
/// it.
#[derive(Debug, Default)]
pub struct TemplateCatalog {
    templates: RwLock<BTreeMap<String, Arc<Template>>>,
}

impl TemplateCatalog {
    /// With these.
    ///
    /// # Errors
    /// [`CatalogError::NameTaken`] if two of them share a name.
    pub fn new(templates: impl IntoIterator<Item = Template>) -> Result<Self, CatalogError> {
        let catalog = Self::default();
        for template in templates {
            catalog.add(template)?;
        }
        Ok(catalog)
    }

    /// The template of this name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<Arc<Template>> {
        self.read().get(name).cloned()
    }

    /// The template of this name or alias.
    #[must_use]
    pub fn find(&self, name: &str) -> Option<Arc<Template>> {
        let templates = self.read();
        let by_alias = || {
            let mut all = templates.values();
            all.find(|template| template.aliases.iter().any(|alias| alias == name))
        };
        templates.get(name).or_else(by_alias).cloned()
    }

    /// All of them, in the order of their names.
    #[must_use]
    pub fn all(&self) -> Vec<Arc<Template>> {
        self.read().values().cloned().collect()
    }

    /// Adds one.
    ///
    /// # Errors
    /// [`CatalogError::NameTaken`]: nothing is added.
    pub fn add(&self, template: Template) -> Result<Arc<Template>, CatalogError> {
        let mut templates = self
            .templates
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        let names = [&template.name].into_iter().chain(&template.aliases);
        let taken = |name: &&String| {
            let mut all = templates.values();
            all.any(|other| other.name == **name || other.aliases.contains(name))
        };
        if let Some(name) = names.into_iter().find(taken) {
            return Err(CatalogError::NameTaken(name.clone()));
        }
        let template = Arc::new(template);
        templates.insert(template.name.clone(), Arc::clone(&template));
        Ok(template)
    }

    /// Takes one out; `None` if there is none of this name.
    pub fn remove(&self, name: &str) -> Option<Arc<Template>> {
        let mut templates = self
            .templates
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        templates.remove(name)
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, BTreeMap<String, Arc<Template>>> {
        // Nothing panics while it holds the lock.
        self.templates
            .read()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod test {
    use super::*;

    fn template(name: &str, aliases: &[&str]) -> Template {
        Template {
            name: name.into(),
            aliases: aliases.iter().map(|&alias| alias.into()).collect(),
            image: "base.ext4".into(),
            kernel: "vmlinux".into(),
            cpu_count: 1,
            memory_mb: 512,
            disk_size_mb: None,
            cmdline_extra: String::new(),
            default_user: "user".into(),
            default_workdir: None,
            start_cmd: None,
            ready_cmd: None,
        }
    }

    #[test]
    fn templates_come_and_go_and_no_name_is_given_twice() {
        let catalog = TemplateCatalog::new([template("a", &["first"])]).unwrap();
        assert_eq!(catalog.find("first").unwrap().name, "a");
        assert!(catalog.get("first").is_none(), "an alias is no name");
        for taken in [
            template("first", &[]),
            template("b", &["a"]),
            template("a", &[]),
        ] {
            assert!(matches!(
                catalog.add(taken),
                Err(CatalogError::NameTaken(_))
            ));
        }
        let kept = catalog.find("a").unwrap();
        assert!(catalog.remove("a").is_some() && catalog.remove("a").is_none());
        assert_eq!(kept.aliases, ["first"], "who has it keeps it");
        catalog.add(template("b", &["a"])).unwrap();
        assert_eq!(catalog.all().len(), 1);
    }
}
