//! Cross entropy of rows that all carry a label.

use candle_core::{D, Result, Tensor, bail};

use super::super::upload::upload;
use super::{over, wide};

pub(in super::super) fn cross_entropy(logits: Tensor, labels: &[u32], denominator: f64) -> Result<(f64, Tensor)> {
    let (rows, vocabulary) = logits.dims2()?;
    if labels.len() != rows || labels.iter().any(|label| *label as usize >= vocabulary) {
        bail!("{} labels for {rows} rows of {vocabulary} logits, or one beyond them", labels.len())
    }
    let x = wide(&logits)?;
    let labels = upload(labels, x.device())?.unsqueeze(1)?;
    let x = x.broadcast_sub(&x.max_keepdim(D::Minus1)?)?;
    let e = x.exp()?;
    let sum = e.sum_keepdim(D::Minus1)?;
    let losses = (sum.log()? - x.gather(&labels, 1)?)?.flatten_all()?.to_vec1::<f32>()?;
    let scale = 1.0 / denominator;
    let p = (e.broadcast_div(&sum)? * scale)?;
    let down = Tensor::full(-scale as f32, (rows, 1), x.device())?;
    let dx = p.scatter_add(&labels, &down, 1)?.to_dtype(logits.dtype())?;
    let loss = losses.iter().map(|loss| f64::from(*loss)).sum::<f64>() / denominator;
    Ok((loss, over(&logits, dx)?))
}
