//! What the fuzz targets share: stores to begin with, edits of their files, and what has to hold
//! afterwards.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

pub mod edits;
pub mod holds;
pub mod memory_disk;
pub mod seeds;
pub mod state_files;

#[path = "../../store/damage.rs"]
pub mod damage;
#[path = "../../store/rig.rs"]
pub mod rig;
#[path = "../../store/sim_disk.rs"]
pub mod sim_disk;
