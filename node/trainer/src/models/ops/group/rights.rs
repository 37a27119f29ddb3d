//! The B of low-rank parts as the kernels want it, kept for models that do not change: generation would lay it out anew for
//! every token, which costs as much as a small model's own products.

use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{Result, TensorId};

use super::Linear;
use crate::models::kernels::Values;
use crate::models::kernels::packed::Low;

/// Adapters of one base whose layouts are kept at once: those that take turns.
const KEPT: usize = 4;

/// By low-rank part, in order: panels of the output's columns.
pub(super) type Rights = Arc<Vec<Vec<f32>>>;

/// Layouts by the tensors that they were made of.
#[derive(Debug, Default)]
pub(super) struct KeptRights(Mutex<Vec<(Vec<TensorId>, Rights)>>);

impl KeptRights {
    /// The layouts for the low-rank parts of `parts`, where there are any and they are no variables.
    pub fn of(&self, parts: &[Linear], outputs: usize) -> Result<Option<Rights>> {
        let all = || parts.iter().flat_map(|part| &part.lora);
        // A variable's values change under the same name.
        if all().next().is_none() || all().any(|lora| lora.b.is_variable()) {
            return Ok(None);
        }
        let ids: Vec<TensorId> = all().map(|lora| lora.b.id()).collect();
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, rights)) = kept.iter().find(|(of, _)| *of == ids) {
            return Ok(Some(rights.clone()));
        }
        let (mut rights, mut from) = (Vec::with_capacity(ids.len()), 0);
        for part in parts {
            for lora in &part.lora {
                let (b, rank) = (Values::of(&lora.b)?, lora.b.dim(1)?);
                let low = Low { u: &[], b: &b, rank, from, count: part.outputs(), scale: lora.scale, laid_out: None };
                rights.push(low.right(outputs).into_owned());
            }
            from += part.outputs();
        }
        let rights = Arc::new(rights);
        if kept.len() >= KEPT {
            kept.remove(0);
        }
        kept.push((ids, rights.clone()));
        Ok(Some(rights))
    }
}
