//! What the operator decides: one TOML file, environment variables over it, flags over both.
//!
//! [`ConfigFile`] and [`Overrides`] are what was typed; [`Settings`] is what it means, checked,
//! with every default filled in. The rest of the program sees only [`Settings`]. `hatchery.toml`
//! lists every key with its default; a test keeps it true.

mod error;
mod keys;
mod limits;
mod network;
mod resources;
mod settings;
mod templates;
mod tls;
mod typed;

pub use error::ConfigError;
pub use limits::LimitSettings;
pub use resources::ResourceSettings;
pub use settings::{CloneSettings, Settings};
pub use tls::TlsSettings;
pub use typed::{
    ClonesFile, ConfigFile, KeyFile, LimitsFile, MetricsFile, NetworkFile, Overrides, PoolFile,
    ResourcesFile, TemplateFile, TlsFile,
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
        assert!(refused("[network]\nmax_flows = 0").contains("network.max_flows"));
        assert!(refused("[network]\nopenings = ['10.0.0.5:0']").contains("10.0.0.5:0"));
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

    #[test]
    fn tls_has_two_files_and_a_domain_or_is_not_there() {
        let refused = |toml: &str| settings(toml, with_key()).unwrap_err().to_string();
        let (domain, both) = ("domain = 'a.b:8443'", "certificate = 'c'\nkey = 'k'");
        assert!(refused(&format!("[tls]\n{both}")).contains("`domain`"));
        for (some, missing) in [
            ("certificate = 'c'", "tls.key"),
            ("key = 'k'", "tls.certificate"),
            ("listen = '127.0.0.1:1'", "tls.certificate"),
        ] {
            let said = refused(&format!("{domain}\n[tls]\n{some}"));
            assert!(said.starts_with(missing), "{said}");
        }
        assert_eq!(settings("[tls]", with_key()).unwrap().tls, None);
        let over = Overrides {
            tls_key: Some("other".into()),
            ..with_key()
        };
        let s = settings(&format!("{domain}\n[tls]\n{both}"), over).unwrap();
        let tls = s.tls.unwrap();
        assert_eq!(tls.listen.to_string(), "0.0.0.0:443");
        assert_eq!(
            (tls.files.key.as_path(), &*tls.domain),
            (Path::new("other"), "a.b:8443")
        );
        assert_eq!(s.listen.to_string(), "127.0.0.1:3000", "as it was");
    }

    #[test]
    fn keys_have_a_name_once_and_something_to_know_them_by() {
        let hash = "0".repeat(63);
        let named = |rest: &str| format!("[[keys]]\nname = 'a'\n{rest}\n");
        let known = named(&format!("hashes = ['{hash}1']"));
        let refused = |toml: &str| {
            settings(toml, Overrides::default())
                .unwrap_err()
                .to_string()
        };
        assert!(
            settings(&known, Overrides::default()).is_ok(),
            "no other key is needed"
        );
        assert!(refused(&named("")).contains("hashes, key_env or key_file"));
        assert!(refused(&named(&format!("hashes = ['{hash}']"))).contains("sha256sum"));
        assert!(refused(&named("key_env = 'NO_SUCH_VARIABLE'")).contains("NO_SUCH_VARIABLE"));
        assert!(refused(&format!("{known}{known}")).contains("\"a\""));
        let other = known.replace("'a'", "'b'");
        assert!(
            refused(&format!("{known}{other}")).contains("\"b\""),
            "one key, two owners"
        );
        assert!(refused(&known.replace("'a'", "'a b'")).contains("a b"));
        assert!(
            refused(&named(&format!("hashes = ['{hash}1']\nmax_runing = 1"))).contains("runing")
        );
        assert!(
            refused(&format!(
                "api_keys_name = 'a'\napi_keys = ['{KEY}']\n{known}"
            ))
            .contains("twice")
        );
    }

    #[test]
    fn plain_keys_are_owners_each_and_named_ones_are_who_they_were() {
        let [a, b] = ["e2b_aaaaaaaaaaaaaaaa", "e2b_bbbbbbbbbbbbbbbb"];
        let owner = |toml: &str, key: &str| {
            let settings = settings(toml, Overrides::default()).unwrap();
            let caller = settings.keys.caller(key.as_bytes()).unwrap().clone();
            let owners = settings.owners.into_iter();
            let mut options = owners.filter(|options| options.owner == caller.owner);
            let options = options.next().unwrap();
            (caller, options)
        };
        let plain = format!("api_keys = ['{a}', '{b}', '{a}']");
        let ((first, _), (second, _)) = (owner(&plain, a), owner(&plain, b));
        assert_ne!(first.owner, second.owner);
        let shared = format!("api_keys_name = 'team'\n{plain}");
        let ((one, options), (two, _)) = (owner(&shared, a), owner(&shared, b));
        assert_eq!((one.owner.as_str(), &one.owner), ("name:team", &two.owner));
        assert!(one.alone && options.before.contains(&first.owner));
        let hash = "9fc19df2a55b7ec42ec1fb06b8ea3d6a1a26b94bb6fbf5c3b4d22f0b9dd2ac06";
        let named = format!("{plain}\n[[keys]]\nname = 'ops'\nhashes = ['{hash}']\nadmin = true");
        let settings = settings(&named, Overrides::default()).unwrap();
        let ops = &settings
            .owners
            .iter()
            .find(|o| o.owner.as_str() == "name:ops")
            .unwrap();
        assert_eq!(ops.before.len(), 1);
        assert!(!settings.keys.caller(a.as_bytes()).unwrap().admin);
    }
}
