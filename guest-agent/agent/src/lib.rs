//! agent core
