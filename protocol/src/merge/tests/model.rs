//! A second, slow merge by every rule, from docs/protocol.md: whole matrices in memory, coordinates one by one, grid points in
//! 128 bits. Sums of floats follow the order that the document fixes, by plain loops.

use std::collections::BTreeMap;

use super::reference::{clipped_points_of, mean_bits};
use super::*;
use crate::adapter::{AdapterKind, Scaling, TensorList, canonical_header};
use crate::identity::MemberKey;
use crate::round::{Manifest, Round};

/// A member's file, read by hand: tensors by name, with dimensions, dtype and bytes.
#[derive(Clone)]
pub(super) struct Adapter {
    pub key: MemberKey,
    pub weight: u64,
    pub file: Vec<u8>,
    pub tensors: BTreeMap<String, (Vec<u64>, Dtype, Vec<u8>)>,
}

impl Adapter {
    /// Elements of any dtype, most of them small, so that products cancel little.
    pub fn drawn(draw: &mut Draw, key: MemberKey, weight: u64, tensors: &TensorList) -> Self {
        let dtype = DTYPES[draw.below(3) as usize];
        let (mut file, mut held) = (canonical_header(tensors, dtype), BTreeMap::new());
        for tensor in tensors.iter() {
            let mut bytes = Vec::new();
            for _ in 0..tensor.elements() {
                match draw.below(16) {
                    0 => bytes.extend(any_element(draw, dtype)),
                    _ => {
                        let value = (draw.below(1 << 20) as f32 - (1 << 19) as f32) / (1 << 19) as f32;
                        match dtype {
                            Dtype::F32 => bytes.extend(value.to_le_bytes()),
                            Dtype::Bf16 => bytes.extend(&value.to_le_bytes()[2..]),
                            Dtype::F16 => bytes.extend(((value.to_bits() >> 16) as u16 & 0xbbff).to_le_bytes()),
                        }
                    }
                }
            }
            file.extend(&bytes);
            held.insert(tensor.name.clone(), (tensor.dims.clone(), dtype, bytes));
        }
        Self { key, weight, file, tensors: held }
    }

    pub fn hash(&self) -> ContentHash {
        ContentHash::of(&self.file)
    }

    fn values(&self, name: &str) -> Vec<f64> {
        let (_, dtype, bytes) = &self.tensors[name];
        widened(*dtype, bytes).map(f64::from).collect()
    }

    pub fn rank(&self, a_name: &str) -> usize {
        self.tensors[a_name].0[0] as usize
    }
}

/// The order of every sum of floats: blocks of 1,024, in each eight sums that become one as a tree.
pub(super) fn ordered_dot(left: &[f64], right: &[f64]) -> f64 {
    let mut total = 0.0;
    for start in (0..left.len()).step_by(1024) {
        let mut sums = [0.0; 8];
        for index in start..left.len().min(start + 1024) {
            sums[index % 8] += left[index] * right[index];
        }
        total += ((sums[0] + sums[1]) + (sums[2] + sums[3])) + ((sums[4] + sums[5]) + (sums[6] + sums[7]));
    }
    total
}

/// How a round's update follows from what is sent.
pub(super) struct Model<'a> {
    pub round: &'a Round,
    scale: f64,
    drawn: BTreeMap<String, (usize, Vec<f64>)>,
}

impl<'a> Model<'a> {
    pub fn new(round: &'a Round) -> Self {
        let scale = round.kind().low_rank().map_or(1.0, |shape| {
            let rank = f64::from(shape.rank);
            f64::from(shape.alpha) / if shape.scaling == Scaling::Rslora { rank.sqrt() } else { rank }
        });
        let drawn = match round.kind() {
            AdapterKind::Lora(_) | AdapterKind::Full(_) => vec![],
            kind => kind.drawn(),
        };
        let of = |drawn: &crate::adapter::DrawnTensor| {
            (drawn.tensor.name.clone(), (drawn.tensor.dims[0] as usize, drawn.values().map(f64::from).collect()))
        };
        Self { round, scale, drawn: drawn.iter().map(of).collect() }
    }

    /// Names of B and A, or of a whole tensor alone.
    fn parts(&self) -> Vec<(String, Option<String>)> {
        let names = self.round.tensors().iter().map(|tensor| tensor.name.clone());
        let part = |name: String| match name.strip_suffix(".lora_B.weight") {
            Some(module) => Some((name.clone(), Some(format!("{module}.lora_A.weight")))),
            None if name.ends_with(".lora_A.weight") => None,
            None => Some((name, None)),
        };
        names.filter_map(part).collect()
    }

    fn a(&self, adapter: &Adapter, name: &str) -> (usize, Vec<f64>) {
        self.drawn.get(name).cloned().unwrap_or_else(|| (adapter.rank(name), adapter.values(name)))
    }

    /// The product of two updates; `one` is the one with the lesser key.
    pub fn product(&self, one: &Adapter, other: &Adapter) -> f64 {
        let mut sum = 0.0;
        for (b, a) in self.parts() {
            let (left, right) = (one.values(&b), other.values(&b));
            let Some(a) = a else {
                sum += 1.0 * ordered_dot(&left, &right);
                continue;
            };
            let ((rows, left_a), (columns, right_a)) = (self.a(one, &a), self.a(other, &a));
            let column = |values: &[f64], rank: usize, at: usize| values.iter().skip(at).step_by(rank).copied().collect::<Vec<f64>>();
            let row = |values: &[f64], rank: usize, at: usize| {
                let length = values.len() / rank;
                values[at * length..(at + 1) * length].to_vec()
            };
            let (mut by_b, mut by_a) = (vec![], vec![]);
            for i in 0..rows {
                for j in 0..columns {
                    by_b.push(ordered_dot(&column(&left, rows, i), &column(&right, columns, j)));
                    by_a.push(ordered_dot(&row(&left_a, rows, i), &row(&right_a, columns, j)));
                }
            }
            sum += self.scale * self.scale * ordered_dot(&by_b, &by_a);
        }
        sum
    }

    /// The updates themselves, formed: of each module `scale * B A`, or the tensor.
    pub fn updates(&self, adapter: &Adapter) -> Vec<f64> {
        let mut update = vec![];
        for (b, a) in self.parts() {
            let own = adapter.values(&b);
            let Some(a) = a else {
                update.extend(own);
                continue;
            };
            let (rank, a) = self.a(adapter, &a);
            update.extend(formed(&own, &a, rank, self.scale));
        }
        update
    }

    /// So many 2^-24.
    pub fn clip(&self, adapter: &Adapter) -> u32 {
        let Some(millionths) = self.round.manifest().clip_millionths else { return 1 << 24 };
        let ratio = (millionths as f64 / 1e6) / self.product(adapter, adapter).max(0.0).sqrt();
        (ratio.min(1.0) * f64::from(1 << 24)).floor() as u32
    }

    /// The adapters that multi-Krum keeps, of those given in the order of their keys.
    pub fn kept<'b>(&self, adapters: &[&'b Adapter], faulty: usize) -> Vec<&'b Adapter> {
        let part = |adapter: &Adapter| f64::from(self.clip(adapter)) / f64::from(1 << 24);
        let distance = |one: &Adapter, other: &Adapter| {
            let (one, other) = if one.key < other.key { (one, other) } else { (other, one) };
            let (c, d) = (part(one), part(other));
            (c * c * self.product(one, one) + d * d * self.product(other, other) - 2.0 * (c * d * self.product(one, other))).max(0.0)
        };
        let mut scores: Vec<(f64, MemberKey)> = vec![];
        for one in adapters {
            let mut to: Vec<f64> = adapters.iter().filter(|other| other.key != one.key).map(|other| distance(one, other)).collect();
            to.sort_by(f64::total_cmp);
            scores.push((to[..adapters.len() - faulty - 2].iter().fold(0.0, |sum, distance| sum + distance), one.key));
        }
        scores.sort_by(|one, other| one.0.total_cmp(&other.0).then(one.1.cmp(&other.1)));
        let keys: Vec<MemberKey> = scores[..adapters.len() - faulty].iter().map(|(_, key)| *key).collect();
        adapters.iter().copied().filter(|adapter| keys.contains(&adapter.key)).collect()
    }

    /// The merged file, or how many adapters are missing; adapters in the order of their keys.
    pub fn merge(&self, adapters: &[&Adapter]) -> Result<Vec<u8>, u64> {
        let Manifest { rule, .. } = self.round.manifest();
        if (adapters.len() as u64) < rule.needs() {
            return Err(rule.needs());
        }
        let merged = match rule {
            MergeRule::Stack => return Ok(self.stack(adapters)),
            MergeRule::MultiKrum { faulty } => self.kept(adapters, *faulty as usize),
            _ => adapters.to_vec(),
        };
        let drawn: BTreeMap<String, Vec<f32>> =
            self.drawn.iter().map(|(name, (_, values))| (name.clone(), values.iter().map(|value| *value as f32).collect())).collect();
        let mut file = canonical_header(self.round.merged().tensors(), Dtype::F32);
        for tensor in self.round.merged().tensors().iter() {
            if let Some(values) = drawn.get(&tensor.name) {
                values.iter().for_each(|value| file.extend(value.to_le_bytes()));
                continue;
            }
            let clips = !tensor.name.ends_with("lora_A.weight");
            for index in 0..tensor.elements() as usize {
                let mut column: Vec<(i128, u64)> = merged
                    .iter()
                    .map(|adapter| {
                        let (_, dtype, bytes) = &adapter.tensors[&tensor.name];
                        let element = &bytes[index * dtype.bytes()..(index + 1) * dtype.bytes()];
                        (clipped_points_of(*dtype, element, if clips { self.clip(adapter) } else { 1 << 24 }), adapter.weight)
                    })
                    .collect();
                column.sort_unstable();
                let count = column.len();
                let middle = match rule {
                    MergeRule::TrimmedMean { trim } => *trim as usize..count - *trim as usize,
                    MergeRule::Median => (count - 1) / 2..count / 2 + 1,
                    _ => 0..count,
                };
                let sum = column[middle.clone()].iter().map(|(points, weight)| points * i128::from(*weight)).sum();
                let weight = column[middle].iter().map(|(_, weight)| weight).sum();
                file.extend(mean_bits(sum, weight).to_le_bytes());
            }
        }
        Ok(file)
    }

    fn stack(&self, adapters: &[&Adapter]) -> Vec<u8> {
        let mut adapters = adapters.to_vec();
        adapters.sort_by_key(|adapter| (adapter.hash(), adapter.key));
        let total: u64 = adapters.iter().map(|adapter| adapter.weight).sum();
        let rank_of = |a: &str| adapters.iter().map(|adapter| adapter.rank(a)).sum::<usize>();
        let rank = self.parts().iter().map(|(_, a)| rank_of(a.as_ref().unwrap())).max().unwrap();
        let tensors = self.round.tensors().stacked(rank as u64).unwrap();
        let mut file = canonical_header(&tensors, Dtype::F32);
        for tensor in tensors.iter() {
            let (rows, columns) = (tensor.dims[0] as usize, tensor.dims[1] as usize);
            let mut out = vec![0.0f32; rows * columns];
            let mut at = 0;
            for adapter in &adapters {
                let values = adapter.values(&tensor.name);
                if tensor.name.ends_with("lora_A.weight") {
                    values.iter().enumerate().for_each(|(index, value)| out[at * columns + index] = *value as f32);
                    at += values.len() / columns;
                } else {
                    let rank = values.len() / rows;
                    let factor = adapter.weight as f64 * self.scale * (f64::from(self.clip(adapter)) / f64::from(1 << 24)) / total as f64;
                    let place = |index: usize| index / rank * columns + at + index % rank;
                    values.iter().enumerate().for_each(|(index, value)| out[place(index)] = (value * factor) as f32);
                    at += rank;
                }
            }
            out.iter().for_each(|value| file.extend(value.to_le_bytes()));
        }
        file
    }
}

/// `scale * B A`, in `f64`.
pub(super) fn formed(b: &[f64], a: &[f64], rank: usize, scale: f64) -> Vec<f64> {
    let (outputs, inputs) = (b.len() / rank, a.len() / rank);
    let element = |o: usize, i: usize| (0..rank).map(|r| b[o * rank + r] * a[r * inputs + i]).sum::<f64>() * scale;
    (0..outputs).flat_map(|o| (0..inputs).map(move |i| (o, i))).map(|(o, i)| element(o, i)).collect()
}
