//! A model's parameters by the names of its family's files: building a model from them, and finding them again.

use std::sync::Arc;

use candle_core::{DType, Device, Tensor, Var};

use super::config::{Head, ModelConfig, NormKind, Positions};
use super::kernels::rope::RopeTable;
use super::ops::{Group, Linear, Norm};
use super::transformer::{Block, Decoder, Embedding};
use super::{LinearModule, ModelError};

/// Gives a parameter by tensor name and shape.
pub(crate) type Source<'a> = &'a mut dyn FnMut(&str, &[usize]) -> Result<Tensor, ModelError>;

impl ModelConfig {
    /// Whether files of the family store this weight (inputs, outputs); a model holds it (outputs, inputs).
    pub(crate) fn stores_transposed(&self, name: &str) -> bool {
        let names = self.family.names();
        let is_map = |part: &str| part == names.output || part == names.down || names.qkv.contains(&part) || names.up.contains(&part);
        let part = || name.strip_prefix(names.block)?.strip_suffix(".weight")?.split_once('.');
        names.transposed && part().is_some_and(|(_, part)| is_map(part))
    }

    /// Whether this is the weight of a head that is the embedding: no parameter of its own.
    pub(crate) fn is_tied_head(&self, name: &str) -> bool {
        self.tied && name.strip_suffix(".weight") == Some(self.family.names().head)
    }

    fn norm(&self, name: &str, read: Source) -> Result<Norm, ModelError> {
        let bias = match self.norm {
            NormKind::Layer => Some(read(&format!("{name}.bias"), &[self.hidden])?),
            NormKind::Rms => None,
        };
        let weight = read(&format!("{name}.weight"), &[self.hidden])?;
        Ok(Norm { weight, bias, kind: self.norm, offset: self.norm_offset, eps: self.norm_eps as f32 })
    }

    fn linear(&self, module: &LinearModule, bias: bool, read: Source) -> Result<Linear, ModelError> {
        let (inputs, outputs) = (module.inputs as usize, module.outputs as usize);
        let name = format!("{}.weight", module.name);
        let weight = match self.stores_transposed(&name) {
            true => read(&name, &[inputs, outputs])?.t()?.contiguous()?,
            false => read(&name, &[outputs, inputs])?,
        };
        let bias = if bias { Some(read(&format!("{}.bias", module.name), &[outputs])?) } else { None };
        Ok(Linear::new(weight, bias))
    }

    fn block(&self, layer: usize, read: Source) -> Result<Block, ModelError> {
        let names = self.family.names();
        let modules = self.block_linears(layer);
        let (qkv, rest) = modules.split_at(names.qkv.len());
        let (output, rest) = rest.split_at(1);
        let (up, down) = rest.split_at(names.up.len());
        let [qkv_bias, output_bias, feed_bias] = self.biases;
        let mut group = |modules: &[LinearModule], bias| -> Result<Group, ModelError> {
            let parts = modules.iter().map(|module| self.linear(module, bias, read)).collect::<Result<_, _>>()?;
            Ok(Group::new(parts))
        };
        let (qkv, output) = (group(qkv, qkv_bias)?, group(output, output_bias)?);
        let (up, down) = (group(up, feed_bias)?, group(down, feed_bias)?);
        let mut norm = |name: &str| self.norm(&format!("{}{layer}.{name}", names.block), read);
        Ok(Block { norms: [norm(names.norms[0])?, norm(names.norms[1])?], qkv, output, up, down })
    }
}

impl Decoder {
    pub(crate) fn build(config: ModelConfig, device: &Device, read: Source) -> Result<Self, ModelError> {
        let names = config.family.names();
        let hidden = config.hidden;
        let mut table = |name: Option<&str>, rows: usize| match name {
            Some(name) => read(&format!("{name}.weight"), &[rows, hidden]).map(Some),
            None => Ok(None),
        };
        let positions = match config.positions {
            Positions::Learned { first } => table(names.positions, config.positions_max + first)?,
            Positions::Rope { .. } => None,
        };
        let types = if config.token_types > 0 { table(names.types, config.token_types)? } else { None };
        let tokens = read(&format!("{}.weight", names.embedding), &[config.vocabulary, hidden])?;
        let norm = names.embedding_norm.map(|name| config.norm(name, read)).transpose()?;
        let embedding = Embedding { tokens, positions, types, norm };
        let blocks = (0..config.layers).map(|layer| config.block(layer, read)).collect::<Result<_, _>>()?;
        let norm = names.norm.map(|name| config.norm(name, read)).transpose()?;
        let module = |name: &str, outputs: usize| LinearModule { name: name.into(), inputs: hidden as u64, outputs: outputs as u64 };
        let one = |linear| Group::new(vec![linear]);
        let pooler = names.pooler.map(|name| config.linear(&module(name, hidden), true, read).map(one)).transpose()?;
        let head = match config.head {
            Head::Classes(classes) => config.linear(&module(names.head, classes), true, read)?,
            Head::Tokens if config.tied => Linear::new(embedding.tokens.clone(), None),
            Head::Tokens => config.linear(&module(names.head, config.vocabulary), false, read)?,
        };
        let rope = config.rope_frequencies().map(|frequencies| Arc::new(RopeTable::new(&frequencies, config.positions_max)));
        let (device, host) = (device.clone(), device.is_cpu());
        Ok(Self { config: Arc::new(config), rope, embedding, blocks, norm, pooler, head: one(head), device, host, dtype: DType::F32 })
    }

    /// A model whose every weight is a variable with the value `start` gives for its name and shape.
    ///
    /// # Errors
    /// What `start` refuses.
    pub fn all_variables(config: ModelConfig, device: &Device, start: Source) -> Result<(Self, Vec<(String, Var)>), ModelError> {
        let mut decoder = Self::build(config, device, start)?;
        let mut variables = Vec::new();
        for (name, tensor) in decoder.parameters_mut() {
            let variable = Var::from_tensor(tensor)?;
            *tensor = variable.as_tensor().clone();
            variables.push((name, variable));
        }
        decoder.tie();
        variables.sort_by(|a, b| a.0.cmp(&b.0));
        Ok((decoder, variables))
    }

    /// A tied head is the embedding, whatever has taken its place.
    pub(crate) fn tie(&mut self) {
        if self.config.tied {
            self.head.parts[0].weight = self.embedding.tokens.clone();
        }
    }

    pub(crate) fn multiply_in_bf16(&mut self) {
        self.groups_mut().for_each(Group::multiply_in_bf16);
    }

    pub(crate) fn groups_mut(&mut self) -> impl Iterator<Item = &mut Group> {
        let blocks = self.blocks.iter_mut().flat_map(|Block { qkv, output, up, down, .. }| [qkv, output, up, down]);
        blocks.chain(&mut self.pooler).chain([&mut self.head])
    }

    pub(crate) fn linear_mut(&mut self, module: &str) -> Option<&mut Linear> {
        self.linears_mut().into_iter().find(|(name, _)| name == module).map(|(_, linear)| linear)
    }

    /// Every linear map but the head, by module name.
    fn linears_mut(&mut self) -> Vec<(String, &mut Linear)> {
        let config = self.config.clone();
        let names = config.family.names();
        let mut all: Vec<(String, &mut Linear)> = Vec::new();
        if let (Some(name), Some(pooler)) = (names.pooler, &mut self.pooler) {
            all.extend(pooler.parts.iter_mut().map(|linear| (name.to_string(), linear)));
        }
        for (layer, block) in self.blocks.iter_mut().enumerate() {
            let Block { qkv, output, up, down, .. } = block;
            let linears = [qkv, output, up, down].into_iter().flat_map(|group| &mut group.parts);
            all.extend(config.block_linears(layer).into_iter().map(|module| module.name).zip(linears));
        }
        all
    }

    /// Every parameter by tensor name; a tied head's is the embedding's.
    fn parameters_mut(&mut self) -> Vec<(String, &mut Tensor)> {
        let config = self.config.clone();
        let names = config.family.names();
        let mut all: Vec<(String, &mut Tensor)> = Vec::new();
        fn put<'a>(all: &mut Vec<(String, &'a mut Tensor)>, name: &str, weight: &'a mut Tensor, bias: &'a mut Option<Tensor>) {
            all.push((format!("{name}.weight"), weight));
            all.extend(bias.as_mut().map(|bias| (format!("{name}.bias"), bias)));
        }
        let Self { embedding, blocks, norm, pooler, head, .. } = self;
        let tables = [
            (Some(names.embedding), Some(&mut embedding.tokens)),
            (names.positions, embedding.positions.as_mut()),
            (names.types, embedding.types.as_mut()),
        ];
        all.extend(tables.into_iter().filter_map(|(name, table)| Some((format!("{}.weight", name?), table?))));
        for (name, norm) in [(names.embedding_norm, &mut embedding.norm), (names.norm, norm)] {
            if let (Some(name), Some(norm)) = (name, norm) {
                put(&mut all, name, &mut norm.weight, &mut norm.bias);
            }
        }
        let single = [(names.pooler, pooler.as_mut()), (Some(names.head), Some(head))];
        for (name, group) in single.into_iter().filter_map(|(name, group)| Some((name?, group?))) {
            if name == names.head && config.tied {
                continue;
            }
            for linear in &mut group.parts {
                put(&mut all, name, &mut linear.weight, &mut linear.bias);
            }
        }
        for (layer, block) in blocks.iter_mut().enumerate() {
            let Block { norms, qkv, output, up, down } = block;
            for (name, norm) in names.norms.iter().zip(norms) {
                put(&mut all, &format!("{}{layer}.{name}", names.block), &mut norm.weight, &mut norm.bias);
            }
            let linears = [qkv, output, up, down].into_iter().flat_map(|group| &mut group.parts);
            for (module, linear) in config.block_linears(layer).iter().zip(linears) {
                put(&mut all, &module.name, &mut linear.weight, &mut linear.bias);
            }
        }
        all
    }

    pub(crate) fn parameter_mut(&mut self, name: &str) -> Option<&mut Tensor> {
        self.parameters_mut().into_iter().find(|(known, _)| known == name).map(|(_, tensor)| tensor)
    }

    /// All weights by tensor name, sorted, adapters not among them. A tied head is not listed.
    pub fn weights(&self) -> Vec<(String, Tensor)> {
        let mut copy = self.clone();
        let mut all: Vec<_> = copy.parameters_mut().into_iter().map(|(name, tensor)| (name, tensor.clone())).collect();
        all.sort_by(|a, b| a.0.cmp(&b.0));
        all
    }
}
