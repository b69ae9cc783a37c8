//! E2B's protocol: the control plane, and port 49983 of each sandbox.

#![forbid(unsafe_code)]

pub mod auth;
pub mod body;
pub mod connect;
pub mod control;
mod dispatch;
pub mod envd;
pub mod error;
mod linger;
pub mod metrics;
pub mod options;
mod pace;
pub mod ports;
pub mod query;
pub mod route;
pub mod server;
pub mod state;

pub use body::{Body, BodyError};
