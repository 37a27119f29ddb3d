//! Matrix products by cuBLAS, which can also scale, add to what is there, and gather narrow factors into f32 sums.

use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::cublas::{result, sys};
use candle_core::{DType, Result, Tensor, bail};

use super::launch::{address, unwritten};

/// Where two factors meet: a trained parameter comes in f32 to narrow activations.
fn common(a: &Tensor, b: &Tensor) -> DType {
    if a.dtype() == DType::F32 { b.dtype() } else { a.dtype() }
}

/// `scale * op(a) op(b)` in the narrower of their dtypes.
pub(crate) fn product(a: &Tensor, transpose_a: bool, b: &Tensor, transpose_b: bool, scale: f32) -> Result<Tensor> {
    let rows = a.dim(usize::from(transpose_a))?;
    let columns = b.dim(usize::from(!transpose_b))?;
    let y = unwritten(&[rows, columns], common(a, b), a.device())?;
    multiply(&y, a, transpose_a, b, transpose_b, scale, 0.0)?;
    Ok(y)
}

/// The same added to `y`, in the dtype of `y`.
pub(crate) fn product_onto(y: Tensor, a: &Tensor, transpose_a: bool, b: &Tensor, transpose_b: bool, scale: f32) -> Result<Tensor> {
    if y.dtype() != DType::F32 && y.dtype() != common(a, b) {
        let product = product(a, transpose_a, b, transpose_b, scale)?;
        return &y + product.to_dtype(y.dtype())?;
    }
    multiply(&y, a, transpose_a, b, transpose_b, scale, 1.0)?;
    Ok(y)
}

fn kind(dtype: DType) -> Result<sys::cudaDataType_t> {
    match dtype {
        DType::F32 => Ok(sys::cudaDataType_t::CUDA_R_32F),
        DType::BF16 => Ok(sys::cudaDataType_t::CUDA_R_16BF),
        DType::F16 => Ok(sys::cudaDataType_t::CUDA_R_16F),
        other => bail!("there is no product of {other:?}"),
    }
}

/// `y = scale * op(a) op(b) + keep * y`. cuBLAS sees columns where we have rows, so it is asked for the transposed product
/// with its factors exchanged.
fn multiply(y: &Tensor, a: &Tensor, transpose_a: bool, b: &Tensor, transpose_b: bool, scale: f32, keep: f32) -> Result<()> {
    let dtype = common(a, b);
    let factor = |t: &Tensor| t.detach().to_dtype(dtype)?.contiguous();
    let (a, b) = (factor(a)?, factor(b)?);
    let (m, n) = y.dims2()?;
    let inner = a.dim(usize::from(!transpose_a))?;
    if (a.dim(usize::from(transpose_a))?, b.dim(usize::from(!transpose_b))?, b.dim(usize::from(transpose_b))?) != (m, n, inner) {
        bail!("{:?} and {:?} do not multiply to {:?}", a.dims(), b.dims(), y.dims())
    }
    if m == 0 || n == 0 {
        return Ok(());
    }
    let gpu = y.device().as_cuda_device()?;
    gpu.cuda_stream().context().bind_to_thread().w()?;
    let operation = |transposed: bool| match transposed {
        true => sys::cublasOperation_t::CUBLAS_OP_T,
        false => sys::cublasOperation_t::CUBLAS_OP_N,
    };
    let (width_a, width_b) = (a.dim(1)? as i32, b.dim(1)? as i32);
    let compute = match candle_core::cuda_backend::gemm_reduced_precision_f32() && dtype == DType::F32 {
        true => sys::cublasComputeType_t::CUBLAS_COMPUTE_32F_FAST_TF32,
        false => sys::cublasComputeType_t::CUBLAS_COMPUTE_32F,
    };
    let blas = gpu.cublas_handle();
    // SAFETY: the factors and `y` are contiguous, of the dimensions checked above, and on this handle's device and stream;
    // sums are f32, so `scale` and `keep` are.
    unsafe {
        result::gemm_ex(
            *blas.handle(),
            operation(transpose_b),
            operation(transpose_a),
            n as i32,
            m as i32,
            inner as i32,
            std::ptr::from_ref(&scale).cast(),
            address(&b)? as *const _,
            kind(dtype)?,
            width_b,
            address(&a)? as *const _,
            kind(dtype)?,
            width_a,
            std::ptr::from_ref(&keep).cast(),
            address(y)? as *mut _,
            kind(y.dtype())?,
            n as i32,
            compute,
            sys::cublasGemmAlgo_t::CUBLAS_GEMM_DEFAULT_TENSOR_OP,
        )
    }
    .w()
}
