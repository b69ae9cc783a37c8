//! Lives of sandboxes: what exists, in which state, with which machine. No HTTP, no E2B word.
//!
//! ```
//! use engine::facts::environment;
//! use engine::ids;
//!
//! let id = ids::sandbox_id()?;
//! assert!(ids::is_sandbox_id(&id));
//! // What every process of the sandbox starts with: who and where it is, then what was asked for.
//! let env = environment(&id, "base", [("COLOUR".to_owned(), "green".to_owned())].into());
//! assert_eq!((&env["E2B_SANDBOX_ID"], env["COLOUR"].as_str()), (&id, "green"));
//! # Ok::<(), std::io::Error>(())
//! ```

pub mod admission;
pub mod data_folder;
pub mod error;
pub mod facts;
pub(crate) mod files;
pub mod ids;
pub mod image;
pub mod launch;
pub mod machine;
pub mod metrics;
pub mod options;
pub mod pool;
pub mod process;
pub mod registry;
pub mod restore_point;
pub mod sandbox;
pub mod store;
pub mod template;
pub mod timings;
