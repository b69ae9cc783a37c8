//! Lives of sandboxes: what exists, in which state, with which machine. No HTTP, no E2B word.
//!
//! ```
//! use engine::environment::IdentityVariables;
//! use engine::ids;
//!
//! let id = ids::sandbox_id()?;
//! assert!(ids::is_sandbox_id(&id));
//! // What every process of the sandbox starts with: who and where it is, then what was asked for.
//! let names = IdentityVariables {
//!     marker: "SANDBOX",
//!     sandbox_id: "SANDBOX_ID",
//!     template_id: "TEMPLATE_ID",
//! };
//! let asked = [("COLOUR".to_owned(), "green".to_owned())].into();
//! let env = names.environment(&id, "base", asked);
//! assert_eq!((&env["SANDBOX_ID"], env["COLOUR"].as_str()), (&id, "green"));
//! # Ok::<(), std::io::Error>(())
//! ```

pub mod admission;
pub mod data_folder;
pub mod disk_reserve;
pub mod environment;
pub mod error;
pub mod facts;
pub(crate) mod files;
pub mod ids;
pub mod image;
pub mod launch;
pub mod machine;
pub mod metrics;
pub mod network;
pub mod options;
pub mod owner;
pub mod pool;
pub mod process;
pub mod quota;
pub mod registry;
pub mod restore_point;
pub mod sandbox;
pub mod sandbox_log;
pub mod store;
pub mod template;
pub mod timings;
