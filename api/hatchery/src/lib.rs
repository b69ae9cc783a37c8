//! The program: what the operator decides, put together with the engine and E2B's protocol.

pub mod config;
