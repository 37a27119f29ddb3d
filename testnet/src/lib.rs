//! Many mingle peers on one machine: real processes on loopback, real training, one report.

pub mod base;
pub mod corpus;
pub mod pretrain;
pub mod tasks;
