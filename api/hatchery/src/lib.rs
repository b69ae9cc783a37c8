//! The program: what the operator decides, put together with the engine and E2B's protocol.
//!
//! ```
//! use hatchery::config::{ConfigFile, Overrides, Settings};
//! use std::path::Path;
//!
//! let over = Overrides {
//!     api_keys: Some("e2b_0123456789abcdef0123456789abcdef01234567".into()),
//!     ..Overrides::default()
//! };
//! let settings = Settings::new(ConfigFile::default(), over, Path::new("/usr/lib/hatchery"))?;
//! assert_eq!(settings.vmm, Path::new("/usr/lib/hatchery/hatchery-vmm"));
//! assert_eq!(settings.clones.pool_size, 2);
//! # Ok::<(), hatchery::config::ConfigError>(())
//! ```

pub mod config;
