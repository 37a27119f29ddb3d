//! Some layers of a merged file: how people name them, which tensors they are, where their bytes lie.
//!
//! Everything follows from the round, since a merged file is canonical: nothing of the file itself has to be read, let
//! alone believed, to know which bytes of it are wanted.

use std::collections::BTreeSet;
use std::fmt;
use std::ops::Range;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use thiserror::Error;

use super::header::canonical_header;
use super::kind::MergedFile;
use super::tensors::TensorList;
use crate::number::Dtype;

/// Far more layers than any model has.
pub const LAYER_MAX: u32 = 4095;
/// Every other layer up to the last, written out, with room.
const TEXT_BYTES_MAX: usize = 16 << 10;
/// Strangers' words are cut to this many characters before they go into an error.
const SHOWN_CHARACTERS_MAX: usize = 40;
/// What is in no numbered layer: embeddings, heads.
const REST: &str = "rest";

/// Layers by their numbers, as people write them: `0-3,8`, and `rest` for all that is in no numbered layer.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Layers {
    numbers: BTreeSet<u32>,
    rest: bool,
}

/// Layers that cannot be had.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum LayersError {
    #[error("{found:?} is no layer, no range of layers such as 0-3, and not {REST:?}")]
    Syntax { found: String },
    #[error("the range {first}-{last} runs backwards")]
    Backwards { first: u32, last: u32 },
    #[error("layer {found} is beyond {LAYER_MAX}")]
    Beyond { found: u32 },
    #[error("a list of layers may be {TEXT_BYTES_MAX} bytes long, not {found}")]
    TooLong { found: usize },
    #[error("a round of the rule stack has no layers to fetch alone: where they lie depends on whose adapters are in the merge")]
    Stack,
    #[error("the round's merge has no layers {missing}")]
    Unknown { missing: Layers, there: Layers },
}

impl Layers {
    /// The numbers, ascending.
    pub fn numbers(&self) -> impl Iterator<Item = u32> {
        self.numbers.iter().copied()
    }

    /// Whether what is in no numbered layer is among them.
    pub fn has_rest(&self) -> bool {
        self.rest
    }

    /// Whether a tensor of this name belongs to one of them.
    pub fn hold(&self, tensor: &str) -> bool {
        layer_of(tensor).map_or(self.rest, |layer| self.numbers.contains(&layer))
    }

    fn without(&self, other: &Self) -> Self {
        Self { numbers: self.numbers.difference(&other.numbers).copied().collect(), rest: self.rest && !other.rest }
    }

    fn is_empty(&self) -> bool {
        self.numbers.is_empty() && !self.rest
    }
}

/// The layer a module or tensor is in: the first part of its name that is a number, as PEFT counts. A head may have parts
/// with numbers beyond [`LAYER_MAX`]; it is no layer then.
pub fn layer_of(name: &str) -> Option<u32> {
    name.split('.').find_map(number)
}

fn number(part: &str) -> Option<u32> {
    let digits = (1..=4).contains(&part.len()) && part.bytes().all(|byte| byte.is_ascii_digit());
    part.parse().ok().filter(|found| digits && *found <= LAYER_MAX)
}

impl FromStr for Layers {
    type Err = LayersError;

    fn from_str(text: &str) -> Result<Self, LayersError> {
        if text.len() > TEXT_BYTES_MAX {
            return Err(LayersError::TooLong { found: text.len() });
        }
        let mut layers = Self::default();
        for part in text.split(',').map(str::trim) {
            if part == REST {
                layers.rest = true;
                continue;
            }
            let syntax = || LayersError::Syntax { found: part.chars().take(SHOWN_CHARACTERS_MAX).collect() };
            let bound = |text: &str| {
                let found = text.parse().ok().filter(|_| text.bytes().all(|byte| byte.is_ascii_digit())).ok_or_else(syntax)?;
                if found > LAYER_MAX { Err(LayersError::Beyond { found }) } else { Ok(found) }
            };
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let (first, last) = (bound(first)?, bound(last)?);
            if first > last {
                return Err(LayersError::Backwards { first, last });
            }
            layers.numbers.extend(first..=last);
        }
        Ok(layers)
    }
}

impl fmt::Display for Layers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut runs: Vec<(u32, u32)> = Vec::new();
        for layer in self.numbers() {
            match runs.last_mut() {
                Some((_, last)) if last.saturating_add(1) == layer => *last = layer,
                _ => runs.push((layer, layer)),
            }
        }
        let run = |(first, last): (u32, u32)| if first == last { first.to_string() } else { format!("{first}-{last}") };
        let parts: Vec<String> = runs.into_iter().map(run).chain(self.rest.then(|| REST.to_owned())).collect();
        f.write_str(&parts.join(","))
    }
}

impl Serialize for Layers {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Layers {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// Some layers of a merged file. As a file of its own a slice is canonical like the whole: its tensors in their order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slice {
    layers: Layers,
    tensors: TensorList,
    places: Vec<Range<u64>>,
    header: Vec<u8>,
    size: u64,
}

impl Slice {
    pub fn layers(&self) -> &Layers {
        &self.layers
    }

    pub fn tensors(&self) -> &TensorList {
        &self.tensors
    }

    /// Where the whole file's header and these tensors lie in the whole file, in bytes: ascending, apart from each other.
    pub fn places(&self) -> &[Range<u64>] {
        &self.places
    }

    /// The whole file's header.
    pub fn whole_header(&self) -> &[u8] {
        &self.header
    }

    /// Bytes of the whole file.
    pub fn whole_size(&self) -> u64 {
        self.size
    }

    /// The header of the file that holds the slice alone.
    pub fn own_header(&self) -> Vec<u8> {
        canonical_header(&self.tensors, Dtype::F32)
    }
}

impl MergedFile {
    /// All layers that it has.
    pub fn layers(&self) -> Layers {
        let mut layers = Layers::default();
        for tensor in self.tensors().iter() {
            match layer_of(&tensor.name) {
                Some(layer) => _ = layers.numbers.insert(layer),
                None => layers.rest = true,
            }
        }
        layers
    }

    /// # Errors
    /// A layer that it does not have.
    pub fn slice(&self, layers: &Layers) -> Result<Slice, LayersError> {
        let there = self.layers();
        let missing = layers.without(&there);
        if !missing.is_empty() || layers.is_empty() {
            return Err(LayersError::Unknown { missing, there });
        }
        let header = canonical_header(self.tensors(), Dtype::F32);
        let mut end = header.len() as u64;
        let mut places: Vec<Range<u64>> = std::iter::once(0..end).collect();
        for tensor in self.tensors().iter() {
            let begin = end;
            end = begin.saturating_add(tensor.elements().saturating_mul(Dtype::F32.bytes() as u64));
            if layers.hold(&tensor.name) {
                match places.last_mut() {
                    Some(place) if place.end == begin => place.end = end,
                    _ => places.push(begin..end),
                }
            }
        }
        let tensors = self.tensors().only(|tensor| layers.hold(&tensor.name));
        Ok(Slice { layers: layers.clone(), tensors, places, header, size: end })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::single_range_in_vec_init)]
mod tests {
    use super::*;
    use crate::adapter::{AdapterKind, FullShape, Layout, LoraShape, Module, SubspaceShape, Tensor, header_length};

    fn layers(text: &str) -> Layers {
        text.parse().unwrap()
    }

    #[test]
    fn people_and_machines_write_them_alike() {
        for (given, canonical) in [("0-3,8", "0-3,8"), ("8, 0,1,2,3", "0-3,8"), ("rest,5-5", "5,rest"), ("7", "7"), ("0-1,1-2", "0-2")] {
            assert_eq!(layers(given).to_string(), canonical);
            assert_eq!(layers(canonical), layers(given));
        }
        let text = serde_json::to_string(&layers("2,0-1,rest")).unwrap();
        assert_eq!((text.as_str(), serde_json::from_str::<Layers>(&text).unwrap()), ("\"0-2,rest\"", layers("0-2,rest")));
        for wrong in ["", "a", "1,", "-1", "1-", "1-2-3", "+1", "4294967296", "0x1", "1 2"] {
            assert!(matches!(wrong.parse::<Layers>(), Err(LayersError::Syntax { .. })), "{wrong:?}");
        }
        assert_eq!("3-1".parse::<Layers>(), Err(LayersError::Backwards { first: 3, last: 1 }));
        assert_eq!("0-4096".parse::<Layers>(), Err(LayersError::Beyond { found: 4096 }));
        assert_eq!("1,".repeat(10_000).parse::<Layers>(), Err(LayersError::TooLong { found: 20_000 }));
    }

    #[test]
    fn a_layer_is_the_first_number_of_a_name() {
        for (name, layer) in [
            ("base_model.model.model.layers.11.self_attn.q_proj.lora_A.weight", Some(11)),
            ("model.layers.2.mlp.experts.7.w1", Some(2)),
            ("transformer.h.0.attn.c_attn", Some(0)),
            ("model.embed_tokens.weight", None),
            ("score.weight", None),
            ("head.99999.weight", None),
        ] {
            assert_eq!(layer_of(name), layer, "{name}");
        }
    }

    fn kinds() -> Vec<AdapterKind> {
        let module = |name: String| Module { name, inputs: 5, outputs: 3 };
        let mut modules: Vec<Module> = (0..12).map(|layer| module(format!("model.layers.{layer}.q_proj"))).collect();
        modules.push(module("lm_head".into()));
        let lora = LoraShape::new(2, 4, [1; 32], modules);
        let weight = |name: &str| Tensor::new(name, [4, 2]);
        let weights =
            vec![weight("model.embed.weight"), weight("model.layers.0.w"), weight("model.layers.1.w"), weight("model.layers.8.w")];
        vec![
            AdapterKind::Lora(lora.clone()),
            AdapterKind::FrozenA(lora.clone()),
            AdapterKind::Subspace(SubspaceShape { seeds: 2, interval: 1, lora }),
            AdapterKind::Full(FullShape { weights }),
        ]
    }

    #[test]
    fn the_places_are_those_of_the_tensors() {
        for kind in kinds() {
            let merged = kind.merged().unwrap();
            // Every tensor's elements are its number.
            let file = |tensors: &TensorList, number: &dyn Fn(&Tensor) -> f32| {
                let mut file = canonical_header(tensors, Dtype::F32);
                for tensor in tensors.iter() {
                    (0..tensor.elements()).for_each(|_| file.extend(number(tensor).to_le_bytes()));
                }
                file
            };
            let number = |tensor: &Tensor| merged.tensors().position(&tensor.name).unwrap() as f32 / 100.0;
            let whole = file(merged.tensors(), &number);
            for text in ["1", "0-1,8", "rest", "0,rest", "8,1"] {
                let slice = merged.slice(&layers(text)).unwrap();
                assert_eq!((slice.whole_size(), slice.places()[0].start), (whole.len() as u64, 0));
                assert!(slice.places().windows(2).all(|pair| pair[0].end < pair[1].start), "{:?}", slice.places());
                assert!(whole.starts_with(slice.whole_header()));
                let held: Vec<u8> =
                    slice.places().iter().flat_map(|place| whole[place.start as usize..place.end as usize].to_vec()).collect();
                let own = [slice.own_header(), held[slice.whole_header().len()..].to_vec()].concat();
                assert_eq!(own, file(slice.tensors(), &number), "{text} of {}", kind.name());
                assert!(slice.tensors().iter().all(|tensor| slice.layers().hold(&tensor.name)));
                let first = header_length(&own, own.len() as u64).unwrap();
                assert!(Layout::parse(&own[..first], own.len() as u64, slice.tensors()).is_ok());
            }
            let all = merged.layers();
            assert_eq!(merged.slice(&all).unwrap().tensors(), merged.tensors());
            assert_eq!(merged.slice(&all).unwrap().places(), [0..whole.len() as u64]);
        }
    }

    #[test]
    fn a_layer_that_is_not_there_is_named() {
        let merged = kinds()[0].merged().unwrap();
        let refused = merged.slice(&layers("10-13")).unwrap_err();
        assert_eq!(refused, LayersError::Unknown { missing: layers("12-13"), there: layers("0-11,rest") });
        assert_eq!(refused.to_string(), "the round's merge has no layers 12-13");
    }
}
