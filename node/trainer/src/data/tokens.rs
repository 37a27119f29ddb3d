//! Examples as tokens with labels: begin-of-text (where the model has one), the prompt unlabelled, what is to be learned
//! labelled and closed by end-of-text.

use std::path::Path;

use rayon::prelude::*;
use tokenizers::Tokenizer;

use super::DataError;
use super::record::{Record, Segment, Template};
use crate::models::ModelConfig;

/// A tokenizer and the special tokens that go around a text.
#[derive(Clone)]
pub struct Tokens {
    tokenizer: Tokenizer,
    bos: Option<u32>,
    eos: Vec<u32>,
    vocabulary: usize,
}

/// One example: `learned[i]` says whether token `i` is something the model should have predicted; or a text and its class.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct TokenizedExample {
    pub tokens: Vec<u32>,
    pub learned: Vec<bool>,
    /// Each token's type (BERT's segments); empty where all are 0.
    pub types: Vec<u32>,
    /// The class of the whole text, for classifiers.
    pub label: Option<u32>,
}

impl TokenizedExample {
    /// Labels it gives: learned tokens that have one before them, or its class.
    pub fn labels(&self) -> usize {
        if self.label.is_some() {
            return 1;
        }
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
    pub fn examples(&self, records: &[Record], template: Template, length_max: usize) -> Result<Vec<TokenizedExample>, DataError> {
        let all: Vec<_> = records.par_iter().map(|record| self.example(record, template, length_max)).collect::<Result<_, _>>()?;
        Ok(all.into_iter().filter(|example| example.labels() > 0).collect())
    }

    /// Each segment is tokenised by itself, so that a prompt's tokens do not depend on the answer that follows.
    fn join(&self, segments: &[Segment]) -> Result<TokenizedExample, DataError> {
        let mut example = TokenizedExample { tokens: self.bos.into_iter().collect(), ..TokenizedExample::default() };
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

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::models::families::tiny_llama;

    /// Words of a counting language; `truncation` asks for what the trainer must not do.
    pub fn write_tokenizer(dir: &Path) {
        let words = ["<unk>", "<s>", "</s>", "count", "from", "one", "two", "three", "four", "five", "\n"];
        let vocabulary: serde_json::Map<_, _> = words.iter().enumerate().map(|(id, word)| (word.to_string(), id.into())).collect();
        let special = |id: u32, word: &str| {
            serde_json::json!({ "id": id, "content": word, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": true })
        };
        let json = serde_json::json!({
            "version": "1.0", "padding": null, "normalizer": null, "post_processor": null, "decoder": null,
            "truncation": { "direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0 },
            "added_tokens": [special(0, "<unk>"), special(1, "<s>"), special(2, "</s>")],
            "pre_tokenizer": { "type": "Split", "pattern": { "String": " " }, "behavior": "Removed", "invert": false },
            "model": { "type": "WordLevel", "vocab": vocabulary, "unk_token": "<unk>" },
        });
        std::fs::write(dir.join("tokenizer.json"), json.to_string()).unwrap();
    }

    pub fn config(vocabulary: usize) -> ModelConfig {
        ModelConfig {
            hidden: 16,
            intermediate: 24,
            layers: 2,
            heads: 4,
            kv_heads: 2,
            head_dim: 4,
            vocabulary,
            positions_max: 64,
            tied: true,
            ..tiny_llama()
        }
    }

    fn record(instruction: &str, output: &str) -> Record {
        Record::Instruction { instruction: instruction.into(), input: String::new(), output: output.into() }
    }

    #[test]
    fn the_prompt_carries_no_label_and_the_end_does() {
        let dir = tempfile::tempdir().unwrap();
        write_tokenizer(dir.path());
        let tokens = Tokens::read(dir.path(), &config(11)).unwrap();
        // The template's line end sticks to the word before it here, which this vocabulary does not know.
        let example = tokens.example(&record("count from one", "two three four"), Template::Short, 64).unwrap();
        assert_eq!(example.tokens, [1, 3, 4, 0, 6, 7, 8, 2]);
        assert_eq!(example.learned, [false, false, false, false, true, true, true, true]);
        assert_eq!(example.labels(), 4);
        let (prompt, _) = record("count from one", "two").question_and_answer(Template::Short).unwrap();
        assert_eq!(tokens.prompt(&prompt).unwrap(), [1, 3, 4, 0], "as in training");
        assert!(tokens.is_end(2) && !tokens.is_end(1));
    }

    #[test]
    fn long_examples_are_cut_and_those_without_a_label_left_out() {
        let dir = tempfile::tempdir().unwrap();
        write_tokenizer(dir.path());
        let tokens = Tokens::read(dir.path(), &config(11)).unwrap();
        let records = [record("count from one", "two three four"), record("count", "two")];
        let examples = tokens.examples(&records, Template::Short, 4).unwrap();
        assert_eq!(examples.len(), 1);
        assert_eq!(examples[0].tokens, [1, 0, 6, 2]);
    }

    #[test]
    fn several_turns_are_learnt_where_the_assistant_speaks() {
        let dir = tempfile::tempdir().unwrap();
        write_tokenizer(dir.path());
        let tokens = Tokens::read(dir.path(), &config(11)).unwrap();
        let json = serde_json::json!({ "messages": [
            { "role": "user", "content": "count" }, { "role": "assistant", "content": "one two" },
            { "role": "user", "content": "from" }, { "role": "assistant", "content": "three" }] });
        let example = tokens.example(&Record::from_json(&json).unwrap(), Template::Short, 64).unwrap();
        assert_eq!(example.tokens, [1, 0, 5, 6, 2, 0, 7, 2]);
        assert_eq!(example.learned, [false, false, true, true, true, false, true, true]);
    }

    #[test]
    fn a_tokenizer_of_another_model_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        write_tokenizer(dir.path());
        let tokens = Tokens::read(dir.path(), &config(6)).unwrap();
        assert!(tokens.encode("count five").unwrap_err().to_string().contains("gives token 9"));
        std::fs::remove_file(dir.path().join("tokenizer.json")).unwrap();
        assert!(Tokens::read(dir.path(), &config(6)).is_err());
    }
}
