//! Resource managers.
mod resource_manager;
pub use resource_manager::*;
