//! One mingle peer: all effects (sockets, files, threads, clocks, gradients) live here, every decision that two
//! peers could take differently lives in `mingle_protocol`.

pub mod cli;
pub mod console;
pub mod contribution;
pub mod data;
pub mod driver;
pub mod evaluate;
pub mod files;
pub mod home;
pub mod merged;
pub mod merger;
pub mod models;
pub mod network;
pub mod peft;
pub mod sent;
pub mod store;
pub mod train;
