//! What the operator decides: one TOML file, environment variables over it, flags over both.
//!
//! Two floors: [`File`] and [`Overrides`] are what was typed; [`Settings`] is what it means, checked,
//! with every default filled in. The rest of the program sees only [`Settings`].
//! `hatchery.toml` beside this crate lists every key with its default; a test keeps it true.

use crate::auth::Keys;
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The configuration file as typed.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct File {
    /// Address and port to listen on. Default `127.0.0.1:3000`.
    pub listen: Option<SocketAddr>,
    /// Folder for all that the server keeps: paused sandboxes, snapshots and checkpoints, which outlive
    /// it; disk layers and notes of what runs, which do not. Made if missing; one server per folder.
    /// Default `hatchery-data`.
    pub data_dir: Option<PathBuf>,
    /// Domain of the sandboxes' host names (`{port}-{id}.{domain}`), told to clients. No default.
    pub domain: Option<String>,
    /// Keys that clients send as `X-API-KEY`.
    #[serde(default)]
    pub api_keys: Vec<String>,
    /// A file with one key per line; `#` begins a comment.
    pub api_keys_file: Option<PathBuf>,
    /// Folder in which the names below are looked up when they are relative. Default: the folder of
    /// the `hatchery` program.
    pub image_dir: Option<PathBuf>,
    /// The program that runs one virtual machine. Default `hatchery-vmm`.
    pub vmm: Option<PathBuf>,
    /// The guest agent. Default `hatchery-agent`.
    pub agent: Option<PathBuf>,
    /// The guest kernel, an ELF `vmlinux`. Default `vmlinux`.
    pub kernel: Option<PathBuf>,
    /// Bounds.
    #[serde(default)]
    pub limits: LimitsFile,
    /// Sandboxes as clones of their template's machine.
    #[serde(default)]
    pub clones: ClonesFile,
    /// Templates by name. Default: `base` with the image `base.ext4`.
    #[serde(default)]
    pub templates: BTreeMap<String, TemplateFile>,
}

/// The `[limits]` table as typed.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LimitsFile {
    /// Most sandboxes at one time; more are refused with 429. Default 64.
    pub max_sandboxes: Option<usize>,
    /// Most checkpoints of one sandbox; more are refused with 409. Default 64.
    pub max_checkpoints: Option<usize>,
    /// Memory that has to be left when a creation, a batch, a warm VM or a resumption begins, MiB; else
    /// it is refused with 503. 0: nobody looks. Default 128.
    pub min_memory_mb: Option<u64>,
    /// Longest time to live a client may ask for, seconds. Default 86400.
    pub max_timeout: Option<u32>,
    /// Longest wait for a new sandbox's agent, seconds. Default 60.
    pub boot_timeout: Option<u32>,
    /// Most client connections at one time. Default 4096.
    pub max_connections: Option<usize>,
    /// Longest time for a request's head to arrive, seconds. Default 10.
    pub header_timeout: Option<u32>,
    /// Longest time a connection may stay without a request, seconds. Default 620.
    pub idle_timeout: Option<u32>,
    /// Most bytes of a control-plane request's body. Default 1048576.
    pub max_json_bytes: Option<usize>,
}

/// The `[clones]` table as typed.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClonesFile {
    /// Whether each template is booted once and cloned from then on. Default true.
    pub enabled: Option<bool>,
    /// Warm VMs of each template: clones that are kept ready for the next sandboxes. Default 2.
    pub husks: Option<usize>,
    /// Whether the memory of stored machines is demand-paged: they begin before it is there, and a pager
    /// brings it while they run. Default false.
    pub lazy: Option<bool>,
}

/// One `[templates.NAME]` table as typed.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TemplateFile {
    /// The root file system, a raw ext4 image.
    pub image: PathBuf,
    /// vCPUs. Default 1.
    pub cpu_count: Option<u8>,
    /// Memory, MiB. Default 512.
    pub memory_mb: Option<u32>,
    /// Root disk, MiB. Default: the size of the image.
    pub disk_size_mb: Option<u64>,
    /// Other names for this template.
    #[serde(default)]
    pub aliases: Vec<String>,
    /// A kernel of its own. Default: the `kernel` above.
    pub kernel: Option<PathBuf>,
    /// Added to the kernel command line. Default: empty.
    pub cmdline_extra: Option<String>,
    /// The user that commands run as when the request names none. Default `user`.
    pub default_user: Option<String>,
    /// The working directory when the request names none. Default: the user's home.
    pub default_workdir: Option<String>,
    /// A command that is running in every copy. Default: none.
    pub start_cmd: Option<String>,
    /// Succeeds once `start_cmd` is ready to be copied. Default: ready at once.
    pub ready_cmd: Option<String>,
}

/// What environment variables and flags say; each field is over the file's.
#[derive(Clone, Debug, Default)]
pub struct Overrides {
    /// `listen`.
    pub listen: Option<SocketAddr>,
    /// `data_dir`.
    pub data_dir: Option<PathBuf>,
    /// `domain`.
    pub domain: Option<String>,
    /// `image_dir`.
    pub image_dir: Option<PathBuf>,
    /// `vmm`.
    pub vmm: Option<PathBuf>,
    /// `agent`.
    pub agent: Option<PathBuf>,
    /// `kernel`.
    pub kernel: Option<PathBuf>,
    /// Keys, separated by commas; instead of the file's.
    pub api_keys: Option<String>,
    /// `limits.max_sandboxes`.
    pub max_sandboxes: Option<usize>,
    /// `clones.husks`.
    pub husks: Option<usize>,
}

/// A template, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template {
    /// Its name, E2B's `templateID`.
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
    /// What runs in every copy, by the user's shell.
    pub start_cmd: Option<String>,
    /// What succeeds once that is ready to be copied.
    pub ready_cmd: Option<String>,
}

/// Bounds, with defaults filled in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Most sandboxes at one time.
    pub max_sandboxes: usize,
    /// Most checkpoints of one sandbox.
    pub max_checkpoints: usize,
    /// Memory that has to be left when a creation, a batch, a warm VM or a resumption begins, MiB.
    pub min_memory_mb: u64,
    /// Longest time to live.
    pub max_timeout: Duration,
    /// Longest wait for a new sandbox's agent.
    pub boot_timeout: Duration,
    /// Most client connections.
    pub max_connections: usize,
    /// Longest wait for a request's head.
    pub header_timeout: Duration,
    /// Longest wait for the next request on a connection.
    pub idle_timeout: Duration,
    /// Most bytes of a control-plane body.
    pub max_json_bytes: usize,
}

/// Sandboxes as copies, with defaults filled in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Clones {
    /// Whether there are any; otherwise each sandbox boots.
    pub enabled: bool,
    /// How many of each template are kept ready.
    pub husks: usize,
    /// Whether stored machines begin before their memory is there.
    pub lazy: bool,
}

/// What the program runs with.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where to listen.
    pub listen: SocketAddr,
    /// All that the server keeps.
    pub data_dir: PathBuf,
    /// The sandboxes' domain.
    pub domain: Option<String>,
    /// Who may use the control plane.
    pub keys: Keys,
    /// The VM program.
    pub vmm: PathBuf,
    /// The guest agent.
    pub agent: PathBuf,
    /// Bounds.
    pub limits: Limits,
    /// Copies.
    pub clones: Clones,
    /// Templates by name.
    pub templates: BTreeMap<String, Template>,
}

/// Why a configuration is refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A file cannot be read.
    #[error("Cannot read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Not TOML, an unknown key, or a value of the wrong kind.
    #[error("{path} is not a valid configuration: {message}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// The place and the reason.
        message: String,
    },
    /// No API key from anywhere.
    #[error(
        "No API key is configured, so nobody could use the server. Set HATCHERY_API_KEYS, api_keys \
         or api_keys_file; a key that every SDK accepts is `e2b_` and 40 lowercase hex digits"
    )]
    NoKeys,
    /// A key that cannot be sent as a header value, or too short to be a secret.
    #[error("API key number {0} is shorter than 16 characters or not printable ASCII")]
    BadKey(usize),
    /// A value out of its range.
    #[error("{key} = {value} is out of range: {range}")]
    Range {
        /// Which key.
        key: String,
        /// The value.
        value: String,
        /// What is allowed.
        range: &'static str,
    },
    /// A template name or alias with other characters than E2B allows.
    #[error("Template name {0:?} is not 1 to 64 characters of [a-z0-9_-]")]
    TemplateName(String),
    /// Two templates share a name.
    #[error("The template name {0:?} is given twice")]
    TemplateTwice(String),
}

impl File {
    /// Reads a configuration file.
    ///
    /// # Errors
    /// [`ConfigError::Read`], [`ConfigError::Parse`].
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let text = read_text(path)?;
        toml::from_str(&text).map_err(|error| ConfigError::Parse {
            path: path.to_owned(),
            message: error.to_string(),
        })
    }
}

impl Settings {
    /// Puts the file, the overrides and the defaults together. `program_dir` is where relative
    /// image names are looked up when `image_dir` is not set.
    ///
    /// # Errors
    /// The first thing that cannot be right.
    pub fn new(file: File, over: Overrides, program_dir: &Path) -> Result<Self, ConfigError> {
        let keys = Keys::new(&key_list(&file, over.api_keys.as_deref())?)?;
        let dir = over
            .image_dir
            .or(file.image_dir)
            .unwrap_or_else(|| program_dir.to_owned());
        let find = |typed: Option<PathBuf>, default: &str| {
            dir.join(typed.unwrap_or_else(|| PathBuf::from(default)))
        };
        let kernel = find(over.kernel.or(file.kernel), "vmlinux");
        let default_listen = SocketAddr::from(([127, 0, 0, 1], 3000));
        let mut limits = Limits::new(&file.limits)?;
        if let Some(max) = over.max_sandboxes {
            limits.max_sandboxes = in_range("max_sandboxes", max, 1..=65_536, "1 to 65536")?;
        }
        Ok(Self {
            listen: over.listen.or(file.listen).unwrap_or(default_listen),
            data_dir: over
                .data_dir
                .or(file.data_dir)
                .unwrap_or_else(|| "hatchery-data".into()),
            domain: over.domain.or(file.domain),
            keys,
            vmm: find(over.vmm.or(file.vmm), "hatchery-vmm"),
            agent: find(over.agent.or(file.agent), "hatchery-agent"),
            limits,
            clones: Clones::new(&file.clones, over.husks)?,
            templates: templates(file.templates, &dir, &kernel)?,
        })
    }

    /// The template of this name or alias. E2B's `namespace/` and `:tag` are accepted when they say
    /// nothing: any namespace, and the tag `default` or `latest`.
    #[must_use]
    pub fn template(&self, name: &str) -> Option<&Template> {
        let name = match name.split_once('/') {
            Some((namespace, name)) if !namespace.is_empty() => name,
            Some(_) => return None,
            None => name,
        };
        let name = match name.split_once(':') {
            Some((name, "default" | "latest")) => name,
            Some(_) => return None,
            None => name,
        };
        self.templates.get(name).or_else(|| {
            self.templates
                .values()
                .find(|t| t.aliases.iter().any(|alias| alias == name))
        })
    }
}

impl Clones {
    fn new(file: &ClonesFile, husks: Option<usize>) -> Result<Self, ConfigError> {
        let husks = husks.or(file.husks).unwrap_or(2);
        Ok(Self {
            enabled: file.enabled.unwrap_or(true),
            husks: in_range("clones.husks", husks, 0..=1024, "0 to 1024")?,
            lazy: file.lazy.unwrap_or(false),
        })
    }
}

impl Limits {
    fn new(file: &LimitsFile) -> Result<Self, ConfigError> {
        let seconds = |key, value: Option<u32>, default: u32| {
            let value = in_range(
                key,
                value.unwrap_or(default),
                1..=31_536_000,
                "1 to 31536000",
            )?;
            Ok(Duration::from_secs(value.into()))
        };
        let count = |key, value: Option<usize>, default, most, range| {
            in_range(key, value.unwrap_or(default), 1..=most, range)
        };
        Ok(Self {
            max_sandboxes: count(
                "limits.max_sandboxes",
                file.max_sandboxes,
                64,
                65_536,
                "1 to 65536",
            )?,
            max_checkpoints: count(
                "limits.max_checkpoints",
                file.max_checkpoints,
                64,
                4096,
                "1 to 4096",
            )?,
            min_memory_mb: in_range(
                "limits.min_memory_mb",
                file.min_memory_mb.unwrap_or(128),
                0..=1 << 24,
                "0 to 16777216",
            )?,
            max_timeout: seconds("limits.max_timeout", file.max_timeout, 86_400)?,
            boot_timeout: seconds("limits.boot_timeout", file.boot_timeout, 60)?,
            max_connections: count(
                "limits.max_connections",
                file.max_connections,
                4096,
                1 << 20,
                "1 to 1048576",
            )?,
            header_timeout: seconds("limits.header_timeout", file.header_timeout, 10)?,
            idle_timeout: seconds("limits.idle_timeout", file.idle_timeout, 620)?,
            max_json_bytes: count(
                "limits.max_json_bytes",
                file.max_json_bytes,
                1 << 20,
                1 << 28,
                "1 to 268435456",
            )?,
        })
    }
}

fn in_range<T: PartialOrd + ToString>(
    key: &str,
    value: T,
    range: std::ops::RangeInclusive<T>,
    text: &'static str,
) -> Result<T, ConfigError> {
    if range.contains(&value) {
        return Ok(value);
    }
    Err(ConfigError::Range {
        key: key.to_owned(),
        value: value.to_string(),
        range: text,
    })
}

fn read_text(path: &Path) -> Result<String, ConfigError> {
    std::fs::read_to_string(path).map_err(|source| ConfigError::Read {
        path: path.to_owned(),
        source,
    })
}

/// The keys of the environment if it has any, else those of the file and of the key file.
fn key_list(file: &File, env: Option<&str>) -> Result<Vec<String>, ConfigError> {
    if let Some(env) = env.filter(|env| !env.trim().is_empty()) {
        return Ok(env
            .split(',')
            .map(str::trim)
            .filter(|k| !k.is_empty())
            .map(Into::into)
            .collect());
    }
    let mut keys = file.api_keys.clone();
    if let Some(path) = &file.api_keys_file {
        let text = read_text(path)?;
        let lines = text
            .lines()
            .map(|line| line.split('#').next().unwrap_or_default().trim());
        keys.extend(lines.filter(|key| !key.is_empty()).map(Into::into));
    }
    Ok(keys)
}

fn templates(
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
            "1 to 8",
        )?;
        let memory = in_range(
            &key("memory_mb"),
            self.memory_mb.unwrap_or(512),
            control::MIN_MEMORY_MIB..=control::MAX_MEMORY_MIB,
            "128 to 16384",
        )?;
        if let Some(disk) = self.disk_size_mb {
            in_range(
                &key("disk_size_mb"),
                disk,
                16..=(16 << 20),
                "16 to 16777216",
            )?;
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

#[cfg(test)]
mod test {
    use super::*;

    const KEY: &str = "e2b_0000000000000000000000000000000000000000";
    const EXAMPLE: &str = include_str!("../hatchery.toml");

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
        let base = s.template("base").unwrap();
        assert_eq!(base.image, Path::new("/dist/base.ext4"));
        assert_eq!(base.kernel, Path::new("/dist/vmlinux"));
        assert_eq!(s.template("team/base:default").unwrap().name, "base");
        assert!(s.template("base:other").is_none() && s.template("other").is_none());
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
        assert!(refused("[clones]\nhusks = 1025").contains("clones.husks"));
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

    /// Every key stands in the example, commented out, with its default; with the comment signs
    /// taken away the file must be accepted.
    #[test]
    fn the_example_file_holds_every_key() {
        let live: String = EXAMPLE
            .lines()
            .map(|line| line.strip_prefix("#: ").unwrap_or(line))
            .fold(String::new(), |text, line| text + line + "\n");
        settings(&live, Overrides::default()).unwrap();
        let keys = |text: &str| -> BTreeSet<String> {
            let key = |line: &str| Some(line.split_once('=')?.0.trim().to_owned());
            text.lines()
                .filter(|l| !l.starts_with('#'))
                .filter_map(key)
                .collect()
        };
        let source = include_str!("config.rs");
        let structs = source.split("pub struct Overrides").next().unwrap();
        for line in structs.lines().filter_map(|l| l.strip_prefix("    pub ")) {
            let name = line.split(':').next().unwrap();
            let table = ["limits", "clones", "templates"].contains(&name);
            assert!(
                table || keys(&live).contains(name),
                "{name} is not in hatchery.toml"
            );
        }
    }
}
