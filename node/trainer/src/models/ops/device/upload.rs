//! Small host values on the device: token and row indices, positions, lengths. A step hands the same ones to every layer,
//! so the last few stay there.

use std::cell::RefCell;

use candle_core::{Device, DeviceLocation, Result, Tensor};

/// As many lists as one pass over a model has, and some more.
const KEPT: usize = 8;

thread_local! {
    static LAST: RefCell<Vec<(DeviceLocation, Vec<u32>, Tensor)>> = const { RefCell::new(Vec::new()) };
}

/// The values as a tensor of the device, u32.
pub(crate) fn upload(values: &[u32], device: &Device) -> Result<Tensor> {
    LAST.with_borrow_mut(|last| {
        let location = device.location();
        if let Some(at) =
            last.iter().position(|(at, held, tensor)| *at == location && held == values && tensor.device().same_device(device))
        {
            // The latest is last: the one that goes first is the one unused for longest.
            let found = last.remove(at);
            let tensor = found.2.clone();
            last.push(found);
            return Ok(tensor);
        }
        let tensor = Tensor::from_slice(values, values.len(), device)?;
        if last.len() == KEPT {
            last.remove(0);
        }
        last.push((location, values.to_vec(), tensor.clone()));
        Ok(tensor)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_values_are_sent_once_and_others_anew() {
        let device = Device::Cpu;
        let first = upload(&[1, 2], &device).unwrap();
        assert_eq!(first.id(), upload(&[1, 2], &device).unwrap().id());
        let other = upload(&[1, 3], &device).unwrap();
        assert_eq!(other.to_vec1::<u32>().unwrap(), [1, 3]);
        for value in 10..10 + KEPT as u32 {
            upload(&[value], &device).unwrap();
        }
        assert_ne!(first.id(), upload(&[1, 2], &device).unwrap().id(), "it was the oldest");
    }
}
