//! stand-in
use serde::{Deserialize, Serialize};
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Module {
    pub name: String,
    pub inputs: u64,
    pub outputs: u64,
}
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoraShape {
    pub rank: u32,
    pub alpha: u32,
    pub seed: [u8; 32],
    pub modules: Vec<Module>,
}
impl LoraShape {
    pub fn file_bytes_max(&self) -> u64 {
        1 << 20
    }
}
