//! A saved machine, of which any number of machines can begin.
//!
//! ```text
//! machine ──capture──> image = base memory (all of a memory, sealed, shared)
//!                            + delta layer (what differs from the base memory)
//!                            + state       (devices, processors)
//!                            + disk        (flat: what differs from the root image)
//! ```
//!
//! A machine that began at an image has its delta layer among its private pages, so what is
//! captured of it is again one layer over the same base memory: chains do not grow.

pub mod base_memory;
pub mod capture;
pub mod machine_image;
pub mod pager;
pub mod reset;
