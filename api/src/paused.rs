//! One paused sandbox.

use crate::image::Image;
use crate::sandbox::{Facts, Kept};
use jiff::Timestamp;
use std::sync::Arc;

/// A sandbox without a machine.
#[derive(Debug)]
pub struct Paused {
    /// What it is.
    pub facts: Arc<Facts>,
    /// When it was paused.
    pub paused_at: Timestamp,
    /// What is kept of it.
    pub kept: Kept,
    /// Its machine.
    pub image: Arc<Image>,
}
