//! One launch of one kernel.

use candle_core::{DType, Device, Result, Storage, Tensor, bail};

use super::Module;

/// A kernel with its arguments, in their order. Tensors must outlive [`Launch::run`] only: memory is freed on the same
/// stream that kernels run on, so after them.
pub(super) struct Launch<'a> {
    module: Module,
    kernel: String,
    arguments: Vec<Argument<'a>>,
}

enum Argument<'a> {
    Tensor(&'a Tensor),
    /// A number in the low bytes: kernels read as many as their parameter has.
    Number(u64),
}

impl<'a> Launch<'a> {
    pub fn new(module: Module, kernel: impl Into<String>) -> Self {
        Self { module, kernel: kernel.into(), arguments: Vec::with_capacity(12) }
    }

    /// A contiguous tensor, read or written.
    pub fn tensor(mut self, tensor: &'a Tensor) -> Self {
        self.arguments.push(Argument::Tensor(tensor));
        self
    }

    /// A `u32`.
    pub fn count(mut self, value: usize) -> Self {
        // What is larger has been refused by `run`: no kernel takes it.
        self.arguments.push(Argument::Number(u64::from(u32::try_from(value).unwrap_or(u32::MAX))));
        self
    }

    /// A `u64`.
    pub fn wide_count(mut self, value: u64) -> Self {
        self.arguments.push(Argument::Number(value));
        self
    }

    pub fn float(mut self, value: f32) -> Self {
        self.arguments.push(Argument::Number(u64::from(value.to_bits())));
        self
    }

    /// Runs on the device of the tensors, as a grid of blocks of `threads` threads (whole warps) with `shared` bytes of
    /// shared memory each.
    pub fn run(self, device: &Device, grid: [usize; 2], threads: usize, shared: usize) -> Result<()> {
        if grid[0] == 0 || grid[1] == 0 {
            return Ok(());
        }
        if grid[0] > i32::MAX as usize || grid[1] > usize::from(u16::MAX) || threads > 1024 || !threads.is_multiple_of(32) {
            bail!("{}: a grid of {grid:?} blocks of {threads} threads cannot be", self.kernel)
        }
        let mut values = Vec::with_capacity(self.arguments.len());
        for argument in &self.arguments {
            values.push(match argument {
                Argument::Tensor(tensor) => address(tensor)?,
                Argument::Number(number) => *number,
            });
        }
        let grid = grid.map(|blocks| blocks as u32);
        match device {
            #[cfg(test)]
            Device::Cpu => super::emulator::run(&self.kernel, grid, threads as u32, shared as u32, &values),
            #[cfg(feature = "cuda")]
            Device::Cuda(gpu) => launch(gpu, self.module, &self.kernel, grid, threads as u32, shared as u32, &values),
            _ => bail!("{} of {:?} needs a CUDA device", self.kernel, self.module),
        }
    }
}

/// Where a contiguous tensor's values begin.
pub(super) fn address(tensor: &Tensor) -> Result<u64> {
    let (storage, layout) = tensor.storage_and_layout();
    let Some((start, _)) = layout.contiguous_offsets() else { bail!("a kernel needs a contiguous tensor") };
    let base = match &*storage {
        #[cfg(test)]
        Storage::Cpu(storage) => match storage {
            candle_core::CpuStorage::F32(values) => values.as_ptr() as u64,
            candle_core::CpuStorage::BF16(values) => values.as_ptr() as u64,
            candle_core::CpuStorage::F16(values) => values.as_ptr() as u64,
            candle_core::CpuStorage::U32(values) => values.as_ptr() as u64,
            _ => bail!("there are no kernels for {:?}", tensor.dtype()),
        },
        #[cfg(feature = "cuda")]
        Storage::Cuda(storage) => {
            use candle_core::cuda_backend::cudarc::driver::DevicePtr;
            let stream = storage.device.cuda_stream();
            match tensor.dtype() {
                DType::F32 => storage.as_cuda_slice::<f32>()?.device_ptr(&stream).0,
                DType::BF16 => storage.as_cuda_slice::<half::bf16>()?.device_ptr(&stream).0,
                DType::F16 => storage.as_cuda_slice::<half::f16>()?.device_ptr(&stream).0,
                DType::U32 => storage.as_cuda_slice::<u32>()?.device_ptr(&stream).0,
                other => bail!("there are no kernels for {other:?}"),
            }
        }
        _ => bail!("a kernel needs a tensor on a CUDA device"),
    };
    let width = match tensor.dtype() {
        DType::F32 | DType::U32 => 4,
        _ => 2,
    };
    Ok(base + (start * width) as u64)
}

/// A tensor whose values are whatever was there: for results that a kernel writes whole.
pub(super) fn unwritten(dims: &[usize], dtype: DType, device: &Device) -> Result<Tensor> {
    // SAFETY: every dtype of ours has a value for every bit pattern, and the caller's kernel writes all before it is read.
    unsafe { Tensor::empty(dims, dtype, device) }
}

#[cfg(feature = "cuda")]
fn launch(
    gpu: &candle_core::CudaDevice,
    module: Module,
    kernel: &str,
    grid: [u32; 2],
    threads: u32,
    shared: u32,
    values: &[u64],
) -> Result<()> {
    use candle_core::cuda_backend::WrapErr;
    use candle_core::cuda_backend::cudarc::driver::sys::CUfunction_attribute_enum;
    use candle_core::cuda_backend::cudarc::driver::{LaunchConfig, PushKernelArg};

    /// What a block may have without being asked for.
    const SHARED_BYTES: u32 = 48 << 10;

    let function = gpu.get_or_load_custom_func(kernel, module.name(), module.ptx())?;
    if shared > SHARED_BYTES {
        let attribute = CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        function.set_attribute(attribute, shared as i32).w()?;
    }
    let mut arguments = function.builder();
    for value in values {
        arguments.arg(value);
    }
    let config = LaunchConfig { grid_dim: (grid[0], grid[1], 1), block_dim: (threads, 1, 1), shared_mem_bytes: shared };
    // SAFETY: the callers in this folder hand over the arguments that the kernel of this name takes, with tensors as large
    // as it reads and writes; the emulator's tests run each of them with the number of arguments checked.
    unsafe { arguments.launch(config) }.w()?;
    Ok(())
}
