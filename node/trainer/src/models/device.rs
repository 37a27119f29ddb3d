//! Where a model computes and in which precision: what `--device` and `--precision` mean.

use std::fmt;
use std::str::FromStr;

use candle_core::{DType, Device};
use serde::{Deserialize, Serialize};

/// `auto`, `cpu`, `cuda`, `cuda:N` or `metal`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DeviceChoice {
    /// The first GPU if this binary and this machine have one, else the processor.
    #[default]
    Auto,
    Cpu,
    Cuda(usize),
    Metal,
}

/// What activations and frozen weights are held in. Trained weights and moments are f32 always.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    F32,
    Bf16,
    F16,
}

/// Why a device or a precision cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DeviceError {
    #[error("{found:?} is no device: auto, cpu, cuda, cuda:N or metal")]
    Device { found: String },
    #[error("{found:?} is no precision: f32, bf16 or f16")]
    PrecisionName { found: String },
    #[error("this binary was built without the feature {feature}, which {device} needs")]
    NotBuilt { device: DeviceChoice, feature: &'static str },
    #[error("{device} cannot be used: {reason}")]
    Unavailable { device: DeviceChoice, reason: String },
    #[error("{precision} cannot be computed in on {device}: {reason}")]
    Precision { precision: Precision, device: String, reason: &'static str },
}

/// A device's memory, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceMemory {
    pub total: u64,
    pub free: u64,
}

/// A device ready to compute.
#[derive(Debug, Clone)]
pub struct OpenedDevice {
    pub device: Device,
    /// What people call it.
    pub name: String,
    /// When it was opened; of GPUs only.
    pub memory: Option<DeviceMemory>,
    /// Why `auto` took the processor.
    pub fallback: Option<String>,
    /// Whether its units multiply bf16.
    multiplies_bf16: bool,
}

impl FromStr for DeviceChoice {
    type Err = DeviceError;

    fn from_str(text: &str) -> Result<Self, DeviceError> {
        match text {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            "cuda" => Ok(Self::Cuda(0)),
            "metal" => Ok(Self::Metal),
            _ => {
                let number = text.strip_prefix("cuda:").and_then(|number| number.parse().ok());
                number.map(Self::Cuda).ok_or_else(|| DeviceError::Device { found: text.to_owned() })
            }
        }
    }
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(number) => write!(f, "cuda:{number}"),
            Self::Metal => f.write_str("metal"),
        }
    }
}

impl FromStr for Precision {
    type Err = DeviceError;

    fn from_str(text: &str) -> Result<Self, DeviceError> {
        match text {
            "f32" => Ok(Self::F32),
            "bf16" => Ok(Self::Bf16),
            "f16" => Ok(Self::F16),
            _ => Err(DeviceError::PrecisionName { found: text.to_owned() }),
        }
    }
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::F16 => "f16",
        })
    }
}

impl DeviceChoice {
    /// Opens the device. Only `auto` goes on with the processor where a GPU fails.
    pub fn open(self) -> Result<OpenedDevice, DeviceError> {
        match self {
            Self::Cpu => Ok(processor(None)),
            Self::Cuda(number) => open_cuda(number),
            Self::Metal => open_metal(),
            Self::Auto if cfg!(feature = "cuda") => Ok(open_cuda(0).unwrap_or_else(|error| processor(Some(error.to_string())))),
            Self::Auto if cfg!(feature = "metal") => Ok(open_metal().unwrap_or_else(|error| processor(Some(error.to_string())))),
            Self::Auto => Ok(processor(Some("this binary was built without GPU support".to_owned()))),
        }
    }
}

fn processor(fallback: Option<String>) -> OpenedDevice {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let name = format!("CPU with {threads} thread{}", if threads == 1 { "" } else { "s" });
    OpenedDevice { device: Device::Cpu, name, memory: None, fallback, multiplies_bf16: false }
}

#[cfg(feature = "cuda")]
fn open_cuda(number: usize) -> Result<OpenedDevice, DeviceError> {
    use super::kernels::cuda;
    let unavailable =
        |error: candle_core::Error| DeviceError::Unavailable { device: DeviceChoice::Cuda(number), reason: first_line(&error) };
    let device = cuda::open(number).map_err(unavailable)?;
    let about = cuda::about(&device).map_err(unavailable)?;
    Ok(OpenedDevice { device, name: about.name, memory: Some(about.memory), fallback: None, multiplies_bf16: about.capability.0 >= 8 })
}

#[cfg(not(feature = "cuda"))]
fn open_cuda(number: usize) -> Result<OpenedDevice, DeviceError> {
    Err(DeviceError::NotBuilt { device: DeviceChoice::Cuda(number), feature: "cuda" })
}

#[cfg(feature = "metal")]
fn open_metal() -> Result<OpenedDevice, DeviceError> {
    let unavailable = |error: candle_core::Error| DeviceError::Unavailable { device: DeviceChoice::Metal, reason: first_line(&error) };
    let device = Device::new_metal(0).map_err(unavailable)?;
    Ok(OpenedDevice { device, name: "Apple GPU".to_owned(), memory: None, fallback: None, multiplies_bf16: true })
}

#[cfg(not(feature = "metal"))]
fn open_metal() -> Result<OpenedDevice, DeviceError> {
    Err(DeviceError::NotBuilt { device: DeviceChoice::Metal, feature: "metal" })
}

/// Errors of devices carry a backtrace after their first line, and of a driver that is not there they know its number only.
#[cfg(any(feature = "cuda", feature = "metal"))]
fn first_line(error: &candle_core::Error) -> String {
    let text = error.to_string();
    match text.contains("CUDA_ERROR_NO_DEVICE") {
        true => "no NVIDIA GPU with a driver was found".to_owned(),
        false => text.lines().next().unwrap_or_default().to_owned(),
    }
}

impl OpenedDevice {
    /// Opened for computing on the processor, whatever else there is.
    pub fn cpu() -> Self {
        processor(None)
    }

    /// The dtype of frozen weights and activations: what was asked for, or bf16 where the GPU multiplies it and f32
    /// elsewhere.
    pub fn compute_dtype(&self, precision: Option<Precision>) -> Result<DType, DeviceError> {
        let refuse = |precision, reason| Err(DeviceError::Precision { precision, device: self.name.clone(), reason });
        match precision {
            None if self.multiplies_bf16 && self.device.is_cuda() => Ok(DType::BF16),
            None | Some(Precision::F32) => Ok(DType::F32),
            // Its kernels hold f32; bf16 is how the frozen matrices are multiplied.
            Some(Precision::Bf16) if self.device.is_cpu() => Ok(DType::F32),
            Some(Precision::F16) if self.device.is_cpu() => refuse(Precision::F16, "its kernels know f32 and bf16"),
            Some(Precision::Bf16) if !self.multiplies_bf16 => refuse(Precision::Bf16, "its compute capability is below 8.0"),
            Some(Precision::Bf16) => Ok(DType::BF16),
            Some(Precision::F16) => Ok(DType::F16),
        }
    }

    /// The GPU's memory now.
    pub fn memory_now(&self) -> Option<DeviceMemory> {
        #[cfg(feature = "cuda")]
        if self.device.is_cuda() {
            return super::kernels::cuda::about(&self.device).ok().map(|about| about.memory);
        }
        self.memory
    }

    /// One line for people.
    pub fn line(&self) -> String {
        let gib = |bytes: u64| bytes as f64 / f64::from(1 << 30);
        match self.memory {
            Some(memory) => format!("{}, {:.1} of {:.1} GiB free", self.name, gib(memory.free), gib(memory.total)),
            None => self.name.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_they_are_written() {
        for choice in [DeviceChoice::Auto, DeviceChoice::Cpu, DeviceChoice::Cuda(3), DeviceChoice::Metal] {
            assert_eq!(choice.to_string().parse(), Ok(choice));
        }
        assert_eq!("cuda".parse(), Ok(DeviceChoice::Cuda(0)));
        for wrong in ["", "gpu", "cuda:", "cuda:x", "cuda:-1", "CPU"] {
            assert!(wrong.parse::<DeviceChoice>().is_err(), "{wrong}");
        }
        for precision in [Precision::F32, Precision::Bf16, Precision::F16] {
            assert_eq!(precision.to_string().parse(), Ok(precision));
        }
    }

    /// True with and without GPU features, on machines with and without a GPU.
    #[test]
    fn auto_always_finds_a_device_and_says_why_it_is_the_processor() {
        let opened = DeviceChoice::Auto.open().unwrap();
        assert_eq!(opened.device.is_cpu(), opened.fallback.is_some(), "{:?}", opened.fallback);
        assert!(!opened.line().is_empty());
    }

    #[test]
    fn a_device_asked_for_by_name_is_not_replaced() {
        for choice in [DeviceChoice::Cuda(77), DeviceChoice::Metal] {
            match choice.open() {
                Ok(opened) => assert!(!opened.device.is_cpu()),
                Err(error) => assert!(error.to_string().contains(&choice.to_string()), "{error}"),
            }
        }
    }

    #[test]
    fn the_processor_keeps_its_values_in_f32() {
        let cpu = DeviceChoice::Cpu.open().unwrap();
        assert_eq!(cpu.fallback, None);
        assert_eq!(cpu.compute_dtype(None), Ok(DType::F32));
        assert_eq!(cpu.compute_dtype(Some(Precision::F32)), Ok(DType::F32));
        assert_eq!(cpu.compute_dtype(Some(Precision::Bf16)).unwrap(), DType::F32);
        assert!(cpu.compute_dtype(Some(Precision::F16)).is_err());
    }
}
