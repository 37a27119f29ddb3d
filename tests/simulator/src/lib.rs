//! Many peers' state machines in virtual time, over seeded links with every fault.
//!
//! The rules of `mingle_protocol::machine` run here exactly as in a node. All around them is imitated: the driver with its
//! order of effects, a disk that keeps what was committed and loses the rest in a crash, gossip, questions and answers,
//! connections, blob transfers, the merger. One agenda and one stream of drawn numbers decide everything, so a seed names a
//! history, and the same seed gives the same history again.
//!
//! What a history must show is judged by separate checkers (`checks`), which read only what peers let out and what they hold.

pub mod agenda;
pub mod checks;
mod connections;
mod deeds;
pub mod dice;
mod driver;
mod effects;
mod figures;
mod ground;
mod hostile;
mod merging;
mod overlay;
mod peer;
mod plan;
mod questions;
pub mod setting;
mod strikes;
pub mod summary;
mod trace;
mod transfers;
mod vouching;
mod wire;
mod world;

pub use dice::Dice;
pub use setting::{Class, Planted};
pub use world::{Failure, Outcome, play};

/// Names a peer of a simulation.
pub type Name = usize;
