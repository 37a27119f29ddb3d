//! Our CUDA kernels: their sources and their PTX lie in `node/trainer/cuda/kernels`, the driver compiles the PTX for its GPU.
//!
//! Only with the feature `cuda`, and in tests: there the same functions can run the kernels' sources on the processor
//! ([`emulator`]), so that arithmetic, indices and arguments are tested without a GPU.

mod attention;
#[cfg(test)]
mod emulator;
mod launch;
#[cfg(feature = "cuda")]
mod open;
mod ops;
#[cfg(feature = "cuda")]
mod product;
#[cfg(test)]
pub(crate) mod tests;

pub(crate) use attention::{attention, attention_backward, masked_softmax, softmax_backward};
#[cfg(feature = "cuda")]
pub(crate) use open::{about, open};
pub(crate) use ops::{
    activate, activate_backward, adamw, column_sums, cross_entropy, dropout, norm, norm_backward, norm_backward_weight, rope, squared_norm,
};
#[cfg(feature = "cuda")]
pub(crate) use product::{product, product_onto};
#[cfg(test)]
pub(crate) use {emulator::emulated, tests::on_a_gpu};

use candle_core::{DType, Result, Tensor, bail};

/// A file of kernels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Module {
    Norm,
    Elements,
    Softmax,
    Flash,
}

impl Module {
    fn name(self) -> &'static str {
        match self {
            Self::Norm => "norm",
            Self::Elements => "elements",
            Self::Softmax => "softmax",
            Self::Flash => "flash",
        }
    }

    fn ptx(self) -> &'static str {
        match self {
            Self::Norm => include_str!("../../../cuda/kernels/norm.ptx"),
            Self::Elements => include_str!("../../../cuda/kernels/elements.ptx"),
            Self::Softmax => include_str!("../../../cuda/kernels/softmax.ptx"),
            Self::Flash => include_str!("../../../cuda/kernels/flash.ptx"),
        }
    }
}

/// Whether the kernels take this tensor's ops.
pub(crate) fn takes(x: &Tensor) -> bool {
    #[cfg(test)]
    if emulator::stands_in_for_the_gpu() {
        return true;
    }
    x.device().is_cuda()
}

/// As kernels' names end.
fn ending(dtype: DType) -> Result<&'static str> {
    match dtype {
        DType::F32 => Ok("f32"),
        DType::BF16 => Ok("bf16"),
        DType::F16 => Ok("f16"),
        other => bail!("there are no kernels for {other:?}"),
    }
}
