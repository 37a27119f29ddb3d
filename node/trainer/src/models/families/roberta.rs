//! RoBERTa with a classification head: a BERT whose positions begin behind the padding token's index, and whose head makes
//! its own map of the first position.

use super::{Family, Names, bert};
use crate::models::ModelError;
use crate::models::config::{Fields, ModelConfig, Positions};

pub(super) const NAMES: Names = Names {
    embedding: "roberta.embeddings.word_embeddings",
    positions: Some("roberta.embeddings.position_embeddings"),
    types: Some("roberta.embeddings.token_type_embeddings"),
    embedding_norm: Some("roberta.embeddings.LayerNorm"),
    block: "roberta.encoder.layer.",
    pooler: Some("classifier.dense"),
    head: "classifier.out_proj",
    others: &[],
    ..bert::NAMES
};

pub(super) fn config(fields: &Fields) -> Result<ModelConfig, ModelError> {
    let config = bert::config(fields)?;
    let first = fields.token("pad_token_id").unwrap_or(1) as usize + 1;
    if config.positions_max <= first {
        return Err(ModelError::file(
            fields.path,
            format!("max_position_embeddings is {}, but positions begin at {first}", config.positions_max),
        ));
    }
    Ok(ModelConfig {
        family: Family::Roberta,
        positions: Positions::Learned { first },
        positions_max: config.positions_max - first,
        bos: fields.token("bos_token_id"),
        ..config
    })
}
