//! What the operator decides: one TOML file, environment variables over it, flags over both.
//!
//! [`ConfigFile`] and [`Overrides`] are what was typed; [`Settings`] is what it means, checked,
//! with every default filled in. The rest of the program sees only [`Settings`]. `hatchery.toml`
//! lists every key with its default; a test keeps it true.

mod error;
mod limits;
mod settings;
mod templates;
mod typed;

pub use error::ConfigError;
pub use limits::LimitSettings;
pub use settings::{CloneSettings, Settings};
pub use typed::{
    ClonesFile, ConfigFile, LimitsFile, MetricsFile, Overrides, PoolFile, TemplateFile,
};

#[cfg(test)]
mod test {
    use super::*;
    use std::path::Path;

    const KEY: &str = "e2b_0000000000000000000000000000000000000000";

    fn settings(toml: &str, over: Overrides) -> Result<Settings, ConfigError> {
        let file = toml::from_str(toml).map_err(|e: toml::de::Error| ConfigError::Parse {
            path: "test".into(),
            message: e.to_string(),
        })?;
        Settings::new(file, over, Path::new("/dist"))
    }

    fn with_key() -> Overrides {
        Overrides {
            api_keys: Some(KEY.into()),
            ..Overrides::default()
        }
    }

    #[test]
    fn defaults_make_a_base_template_beside_the_program() {
        let s = settings("", with_key()).unwrap();
        assert_eq!(s.listen.to_string(), "127.0.0.1:3000");
        assert_eq!(s.vmm, Path::new("/dist/hatchery-vmm"));
        let base = &s.templates["base"];
        assert_eq!(base.image, Path::new("/dist/base.ext4"));
        assert_eq!(base.kernel, Path::new("/dist/vmlinux"));
    }

    #[test]
    fn overrides_are_over_the_file() {
        let toml = "listen = '127.0.0.1:1'\ndomain = 'a.b'\nimage_dir = '/x'";
        let over = Overrides {
            listen: Some(([127, 0, 0, 1], 2).into()),
            ..with_key()
        };
        let s = settings(toml, over).unwrap();
        assert_eq!((s.listen.port(), s.domain.as_deref()), (2, Some("a.b")));
        assert_eq!(s.agent, Path::new("/x/hatchery-agent"));
    }

    #[test]
    fn what_cannot_be_right_is_refused() {
        let refused = |toml: &str| settings(toml, with_key()).unwrap_err().to_string();
        assert!(refused("lisen = '127.0.0.1:1'").contains("lisen"));
        assert!(refused("[limits]\nmax_sandbox = 1").contains("max_sandbox"));
        assert!(refused("[limits]\nmax_sandboxes = 0").contains("max_sandboxes"));
        assert!(refused("[clones]\nhusk = 1").contains("husk"));
        assert!(refused("[pool]\nsize = 1025").contains("pool.size"));
        assert!(refused("[templates.A]\nimage = 'x'").contains("\"A\""));
        let twice = "[templates.a]\nimage = 'x'\n[templates.b]\nimage = 'y'\naliases = ['a']";
        assert!(refused(twice).contains("twice"));
        assert!(refused("[templates.a]\nimage='x'\ncpu_count=9").contains("cpu_count"));
        assert!(matches!(
            settings("", Overrides::default()),
            Err(ConfigError::NoKeys)
        ));
        assert!(matches!(
            settings("api_keys=['short']", Overrides::default()),
            Err(ConfigError::BadKey(1))
        ));
    }
}
