//! Examples as tokens with labels: begin-of-text (where the model has one), the prompt unlabelled, what is to be learned
//! labelled and closed by end-of-text.

use std::path::Path;

use tokenizers::Tokenizer;

use super::record::{Record, Segment, Template};
use super::DataError;
use crate::models::ModelConfig;

/// A tokenizer and the special tokens that go around a text.
#[derive(Clone)]
pub struct Tokens {
    tokenizer: Tokenizer,
    bos: Option<u32>,
    eos: Vec<u32>,
    vocabulary: usize,
}

/// One example: `learned[i]` says whether token `i` is something the model should have predicted.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenizedExample {
    pub tokens: Vec<u32>,
    pub learned: Vec<bool>,
}

impl TokenizedExample {
    /// Labels it gives: learned tokens that have one before them.
    pub fn labels(&self) -> usize {
        self.learned.iter().skip(1).filter(|learned| **learned).count()
    }
}

impl Tokens {
    /// Reads `tokenizer.json` of a base's directory.
    pub fn read(dir: &Path, config: &ModelConfig) -> Result<Self, DataError> {
        let path = dir.join("tokenizer.json");
        let refuse = |reason: String| DataError::File { path: path.clone(), reason };
        let mut tokenizer = Tokenizer::from_file(&path).map_err(|error| refuse(error.to_string()))?;
        // A tokenizer.json may ask to truncate or pad: both are done here, by the settings of the training.
        tokenizer.with_truncation(None).map_err(|error| refuse(error.to_string()))?;
        tokenizer.with_padding(None);
        Ok(Self { tokenizer, bos: config.bos, eos: config.eos.clone(), vocabulary: config.vocabulary })
    }

    /// Tokens of a text, without any special token.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, DataError> {
        let encoding = self.tokenizer.encode(text, false);
        let encoding = encoding.map_err(|error| DataError::Tokenize { reason: error.to_string() })?;
        let tokens = encoding.get_ids().to_vec();
        match tokens.iter().find(|token| **token as usize >= self.vocabulary) {
            Some(token) => Err(DataError::Vocabulary { token: *token, vocabulary: self.vocabulary }),
            None => Ok(tokens),
        }
    }

    /// The text of tokens, special ones left out.
    pub fn decode(&self, tokens: &[u32]) -> Result<String, DataError> {
        self.tokenizer.decode(tokens, true).map_err(|error| DataError::Tokenize { reason: error.to_string() })
    }

    pub fn is_end(&self, token: u32) -> bool {
        self.eos.contains(&token)
    }

    /// A prompt's tokens, as training examples begin.
    pub fn prompt(&self, segments: &[Segment]) -> Result<Vec<u32>, DataError> {
        Ok(self.join(segments)?.tokens)
    }

    /// Tokens and labels of one example, cut at `length_max` tokens.
    pub fn example(&self, record: &Record, template: Template, length_max: usize) -> Result<TokenizedExample, DataError> {
        let mut example = self.join(&record.segments(template))?;
        example.tokens.truncate(length_max);
        example.learned.truncate(length_max);
        Ok(example)
    }

    /// All examples that keep at least one label after cutting. Compare lengths to learn how many were dropped.
    pub fn examples(
        &self,
        records: &[Record],
        template: Template,
        length_max: usize,
    ) -> Result<Vec<TokenizedExample>, DataError> {
        let mut examples = Vec::with_capacity(records.len());
        for record in records {
            let example = self.example(record, template, length_max)?;
            if example.labels() > 0 {
                examples.push(example);
            }
        }
        Ok(examples)
    }

    /// Each segment is tokenised by itself, so that a prompt's tokens do not depend on the answer that follows.
    fn join(&self, segments: &[Segment]) -> Result<TokenizedExample, DataError> {
        let mut example = TokenizedExample { tokens: self.bos.into_iter().collect(), learned: Vec::new() };
        example.learned.resize(example.tokens.len(), false);
        for segment in segments {
            example.tokens.extend(self.encode(&segment.text)?);
            if segment.learned {
                example.tokens.extend(self.eos.first());
            }
            example.learned.resize(example.tokens.len(), segment.learned);
        }
        Ok(example)
    }
}
