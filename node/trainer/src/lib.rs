//! Models and how they are trained and measured: everything that computes with tensors. It knows nothing of rounds, peers
//! or records; of the protocol it takes hashes and the tensors an adapter's shape implies.
//!
//! A crate of its own, because it is built and tested far more often than the network it does not need.

pub mod data;
pub mod evaluate;
pub mod files;
pub mod models;
pub mod peft;
pub mod train;
