//! A GPU of this machine, and what it says about itself.

use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::driver::{result, sys};
use candle_core::{Device, Result};

use crate::models::device::DeviceMemory;

pub(crate) struct About {
    pub name: String,
    /// Major and minor.
    pub capability: (i32, i32),
    pub memory: DeviceMemory,
}

/// The GPU of this number, with one stream for all threads: work is done in the order in which it was asked for, also
/// where one thread goes on with what another began.
pub(crate) fn open(number: usize) -> Result<Device> {
    let device = Device::new_cuda_with_stream(number)?;
    let gpu = device.as_cuda_device()?;
    // SAFETY: events order the streams of a device, and this one has a single stream; memory is freed on it too.
    unsafe { gpu.disable_event_tracking() };
    keep_freed_memory(gpu)?;
    Ok(device)
}

/// Every step allocates and frees the same buffers. Without this the driver gives them back to the system at each
/// synchronisation.
fn keep_freed_memory(gpu: &candle_core::CudaDevice) -> Result<()> {
    let stream = gpu.cuda_stream();
    let context = stream.context();
    if !context.has_async_alloc() {
        return Ok(());
    }
    let mut threshold = u64::MAX;
    let attribute = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
    // SAFETY: the device is one that a context was made of, its pool lives as long as it, and the attribute is a u64.
    unsafe {
        let pool = result::device::get_mem_pool(context.cu_device()).w()?;
        result::mem_pool::set_attribute(pool, attribute, std::ptr::from_mut(&mut threshold).cast()).w()?;
    }
    Ok(())
}

pub(crate) fn about(device: &Device) -> Result<About> {
    let stream = device.as_cuda_device()?.cuda_stream();
    let context = stream.context();
    let (free, total) = context.mem_get_info().w()?;
    let memory = DeviceMemory { total: total as u64, free: free as u64 };
    Ok(About { name: context.name().w()?, capability: context.compute_capability().w()?, memory })
}
