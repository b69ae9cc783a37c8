//! E2B's protocol: the control plane, and port 49983 of each sandbox.
//!
//! ```
//! use e2b::ports::{PortServer, server_of};
//! use e2b::route::{Route, route};
//! use hyper::Method;
//!
//! let found = route(&Method::DELETE, "/sandboxes/iabc");
//! assert_eq!(found.unwrap(), Route::Kill("iabc".into()));
//! assert_eq!(server_of(49_983), PortServer::Envd);
//! ```

#![forbid(unsafe_code)]

mod accept;
pub mod auth;
pub mod body;
pub mod budget;
pub mod connect;
pub mod control;
mod dispatch;
pub mod envd;
pub mod error;
mod host;
mod linger;
pub mod metrics;
pub mod options;
mod pace;
mod page;
pub mod ports;
mod proxy;
pub mod query;
pub mod route;
pub mod server;
mod signed;
pub mod signers;
mod slots;
pub mod state;
pub mod tls;

pub use body::{Body, BodyError};
