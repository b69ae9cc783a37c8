//! Templates that come and go while the server runs.

use crate::error::{EngineError, chain};
use crate::machine::group_tree::ResourcesView;
use crate::machine::spawner::WallsView;
use crate::registry::sandboxes::SandboxRegistry;
use crate::registry::view::SandboxView;
use crate::store::vault;
use crate::template::{CatalogError, Template, TemplateCatalog};
use snapshot_format::BaseImage;
use std::collections::BTreeMap;
use std::sync::PoisonError;

impl SandboxRegistry {
    /// The walls around sandboxes' VM processes on this host.
    #[must_use]
    pub fn walls(&self) -> WallsView {
        self.launcher.spawner.walls()
    }

    /// What sandboxes' VM processes are limited in on this host.
    #[must_use]
    pub fn resources(&self) -> ResourcesView {
        self.launcher.groups.view()
    }

    /// The templates there are.
    #[must_use]
    pub fn templates(&self) -> &TemplateCatalog {
        &self.templates
    }

    /// Adds a template: its VM is made in the background, and sandboxes can be made of it at once.
    /// Must be called on the runtime.
    ///
    /// # Errors
    /// [`CatalogError`]: nothing is added.
    pub fn add_template(&self, template: Template) -> Result<(), CatalogError> {
        let template = self.templates.add(template)?;
        match vault::look(&template.name, &template.image) {
            Ok(look) => {
                self.images().insert(template.name.clone(), look);
            }
            Err(error) => {
                let (template, error) = (&template.name, chain(&error));
                tracing::warn!(template, error, "sandboxes cannot be paused");
            }
        }
        self.pools.add(&template);
        Ok(())
    }

    /// Takes a template out: its warm VMs end, and no sandbox is made of it any more.
    ///
    /// # Errors
    /// [`EngineError::TemplateNotFound`]; [`EngineError::Conflict`] while a sandbox or snapshot is
    /// of it, whose machines need its kernel and image.
    pub fn remove_template(&self, name: &str) -> Result<(), EngineError> {
        let in_use = |by: &str, id: &str| {
            EngineError::Conflict(format!("Template {name:?} is in use by {by} {id:?}"))
        };
        {
            // Under this lock [`SandboxRegistry::publish`] looks whether the template is there.
            let table = self.table();
            let mut views = table.values().filter_map(SandboxView::of);
            if let Some(view) = views.find(|view| view.facts.origin.base == name) {
                return Err(in_use("sandbox", &view.facts.id));
            }
            let snapshots = self.snapshots.list();
            if let Some(snapshot) = snapshots.iter().find(|s| s.origin.base == name) {
                return Err(in_use("snapshot", &snapshot.id));
            }
            let removed = self.templates.remove(name);
            removed.ok_or_else(|| EngineError::no_template(name))?;
        }
        self.images().remove(name);
        self.pools.remove(name);
        Ok(())
    }

    /// How the image under a sandbox's disk looked when its template was added.
    pub(super) fn base_image_of(&self, name: &str) -> Result<BaseImage, EngineError> {
        self.images().get(name).cloned().ok_or_else(|| {
            EngineError::PauseFailed(format!("The image of {name:?} was not found at the start"))
        })
    }

    fn images(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, BaseImage>> {
        // Nothing panics while it holds the lock.
        self.images.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
