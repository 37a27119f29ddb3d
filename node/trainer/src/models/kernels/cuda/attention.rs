//! Attention: by the flash kernels, or the softmax between matrix products.

use candle_core::{DType, Result, Tensor, bail};

use super::launch::{Launch, address, unwritten};
use super::{Module, ending};
use crate::models::kernels::attention::{Heads, Mask};
use crate::models::ops::device::upload;

/// Rows that a block of the flash kernels owns, and its threads.
const ROWS: usize = 64;
const THREADS: usize = 128;

/// As kernels count it: how far back a row sees, itself included; 0 stands for all.
fn window(mask: Mask) -> usize {
    match mask {
        Mask::Full => 0,
        Mask::Causal => u32::MAX as usize,
        Mask::Window(window) => window.clamp(1, u32::MAX as usize),
    }
}

/// Over `scores (heads, length, length)`: the softmax of what each row sees.
pub(crate) fn masked_softmax(scores: Tensor, mask: Mask, scale: f32) -> Result<Tensor> {
    let (heads, length, _) = scores.dims3()?;
    let launch = Launch::new(Module::Softmax, format!("masked_softmax_{}", ending(scores.dtype())?)).tensor(&scores);
    let threads = (length / 4).next_power_of_two().clamp(32, 512);
    launch.count(length).count(window(mask)).float(scale).run(scores.device(), [heads * length, 1], threads, 0)?;
    Ok(scores)
}

/// Over `dp`: the gradient of the scores before `scale`.
pub(crate) fn softmax_backward(p: &Tensor, dp: Tensor, scale: f32) -> Result<Tensor> {
    let (heads, rows, length) = p.dims3()?;
    let launch = Launch::new(Module::Softmax, format!("softmax_backward_{}", ending(p.dtype())?)).tensor(p).tensor(&dp);
    let threads = (length / 4).next_power_of_two().clamp(32, 512);
    launch.count(length).float(scale).run(p.device(), [heads * rows, 1], threads, 0)?;
    Ok(dp)
}

/// One call's share in all of its launches.
struct Flash<'a> {
    heads: &'a Heads,
    dtype: &'static str,
    /// What a head's width is filled up to.
    width: usize,
    rows: usize,
    tiles: Tensor,
    blocks: usize,
}

impl<'a> Flash<'a> {
    /// None without the feature `flash-attn`, and where the kernels cannot take it: f32, heads that are no multiple of 8 wide or wider than 256.
    fn of(qkv: &Tensor, sequences: &[usize], heads: &'a Heads) -> Result<Option<Self>> {
        let (rows, total) = qkv.dims2()?;
        if sequences.iter().sum::<usize>() != rows || total != heads.width() {
            bail!(
                "sequences of {} rows and heads {} wide do not make {rows} rows of {total}",
                sequences.iter().sum::<usize>(),
                heads.width()
            )
        }
        let wanted = cfg!(any(feature = "flash-attn", test));
        let fits = wanted && heads.head_dim.is_multiple_of(8) && heads.head_dim <= 256 && address(qkv)?.is_multiple_of(16);
        if qkv.dtype() == DType::F32 || !fits {
            return Ok(None);
        }
        let (mut tiles, mut from) = (Vec::new(), 0);
        for length in sequences {
            for first in (0..*length).step_by(ROWS) {
                tiles.extend([from, *length, first].map(|value| value as u32));
            }
            from += length;
        }
        let blocks = tiles.len() / 3;
        let tiles = upload(&tiles, qkv.device())?;
        let width = [64, 128, 256].into_iter().find(|width| heads.head_dim <= *width).unwrap_or(256);
        Ok(Some(Self { heads, dtype: ending(qkv.dtype())?, width, rows, tiles, blocks }))
    }

    fn kernel(&self, op: &str) -> Launch<'_> {
        Launch::new(Module::Flash, format!("flash_{op}_{}_{}", self.dtype, self.width))
    }

    /// Bytes of so many rows in shared memory; 8 elements lie between two.
    fn shared(&self, rows: usize) -> usize {
        rows * (self.width + 8) * 2
    }

    /// Rows of the other side that a block looks at together, in the forward and for dq.
    fn keys(&self) -> usize {
        if self.width == 256 { 32 } else { 64 }
    }

    /// Likewise for dk and dv.
    fn queries(&self) -> usize {
        if self.width == 64 { 64 } else { 32 }
    }

    fn layout<'b>(&'b self, launch: Launch<'b>) -> Launch<'b> {
        let Heads { heads, kv_heads, head_dim, mask, .. } = *self.heads;
        launch.tensor(&self.tiles).count(self.rows).count(heads).count(kv_heads).count(head_dim).count(window(mask))
    }

    fn scale(&self) -> f32 {
        self.heads.scale * std::f32::consts::LOG2_E
    }

    /// The output and, for each head and row, log2 of the sum of its exponentials.
    fn forward(&self, qkv: &Tensor) -> Result<(Tensor, Tensor)> {
        let out = unwritten(&[self.rows, self.heads.query_width()], qkv.dtype(), qkv.device())?;
        let sums = unwritten(&[self.heads.heads, self.rows], DType::F32, qkv.device())?;
        let launch = self.layout(self.kernel("forward").tensor(qkv).tensor(&out).tensor(&sums)).float(self.scale());
        launch.run(qkv.device(), [self.blocks, self.heads.heads], THREADS, self.shared(ROWS + 2 * self.keys()))?;
        Ok((out, sums))
    }

    fn backward(&self, qkv: &Tensor, g: &Tensor) -> Result<Tensor> {
        let Heads { heads, kv_heads, head_dim, .. } = *self.heads;
        let (out, sums) = self.forward(qkv)?;
        let deltas = unwritten(&[heads, self.rows], DType::F32, qkv.device())?;
        let launch = Launch::new(Module::Flash, format!("flash_deltas_{}", self.dtype)).tensor(&out).tensor(g).tensor(&deltas);
        let launch = launch.count(self.rows).count(heads).count(head_dim);
        launch.run(qkv.device(), [(self.rows * heads).div_ceil(THREADS / 32), 1], THREADS, 0)?;

        let d_qkv = unwritten(qkv.dims(), qkv.dtype(), qkv.device())?;
        let run = |op: &str, grid: usize, tile: usize| {
            let launch = self.kernel(op).tensor(qkv).tensor(g).tensor(&sums).tensor(&deltas).tensor(&d_qkv);
            let launch = self.layout(launch).float(self.scale()).float(self.heads.scale);
            launch.run(qkv.device(), [self.blocks, grid], THREADS, self.shared(2 * ROWS + 2 * tile))
        };
        run("queries", heads, self.keys())?;
        if self.width == 256 {
            run("keys", kv_heads, self.queries())?;
            run("values", kv_heads, self.queries())?;
        } else {
            run("keys_values", kv_heads, self.queries())?;
        }
        Ok(d_qkv)
    }
}

/// None where the flash kernels cannot take it.
pub(crate) fn attention(qkv: &Tensor, sequences: &[usize], heads: &Heads) -> Result<Option<Tensor>> {
    let Some(flash) = Flash::of(qkv, sequences, heads)? else { return Ok(None) };
    flash.forward(qkv).map(|(out, _)| Some(out))
}

pub(crate) fn attention_backward(qkv: &Tensor, g: &Tensor, sequences: &[usize], heads: &Heads) -> Result<Option<Tensor>> {
    match Flash::of(qkv, sequences, heads)? {
        // Tiles of the gradient are read 16 bytes at a time too.
        Some(flash) if address(g)?.is_multiple_of(16) => flash.backward(qkv, g).map(Some),
        _ => Ok(None),
    }
}
