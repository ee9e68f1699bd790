//! libgrid
pub mod ids;
pub mod node;
pub mod wire;
