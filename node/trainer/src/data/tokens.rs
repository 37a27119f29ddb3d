//! Examples as tokens with labels: begin-of-text (where the model has one), the prompt unlabelled, what is to be learned
//! labelled and closed by end-of-text. For a model that classifies: one or two texts in its special tokens, and their class.

use std::path::Path;

use rayon::prelude::*;
use tokenizers::Tokenizer;

use super::DataError;
use super::classes::{Classes, PairReader};
use super::record::{Record, Segment, Template};
use crate::models::ModelConfig;

/// A tokenizer and the special tokens that go around a text.
#[derive(Clone)]
pub struct Tokens {
    tokenizer: Tokenizer,
    bos: Option<u32>,
    eos: Vec<u32>,
    vocabulary: usize,
    /// Of a model that classifies.
    classes: Option<Classes>,
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
    /// A text of which every token is learned.
    pub fn all_learned(tokens: Vec<u32>) -> Self {
        Self { learned: vec![true; tokens.len()], tokens, ..Self::default() }
    }

    /// Labels it gives: its class, or learned tokens that have one before them.
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
        let classes = Classes::read(dir, config)?;
        Ok(Self { tokenizer, bos: config.bos, eos: config.eos.clone(), vocabulary: config.vocabulary, classes })
    }

    /// The classes of a model that classifies.
    pub fn classes(&self) -> Option<&Classes> {
        self.classes.as_ref()
    }

    /// Tokens of a text, without any special token.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, DataError> {
        self.encode_text(text, false)
    }

    /// Tokens of a text with the special tokens that the tokenizer itself puts around it, as transformers does unasked.
    pub fn encode_with_specials(&self, text: &str) -> Result<Vec<u32>, DataError> {
        self.encode_text(text, true)
    }

    /// The token that stands for an empty context: begin-of-text, or else end-of-text.
    pub fn prefix(&self) -> Option<u32> {
        self.bos.or(self.eos.first().copied())
    }

    fn encode_text(&self, text: &str, specials: bool) -> Result<Vec<u32>, DataError> {
        let encoding = self.tokenizer.encode(text, specials);
        let encoding = encoding.map_err(|error| DataError::Tokenize { reason: error.to_string() })?;
        self.in_vocabulary(encoding.get_ids().to_vec())
    }

    fn in_vocabulary(&self, tokens: Vec<u32>) -> Result<Vec<u32>, DataError> {
        match tokens.iter().find(|token| **token as usize >= self.vocabulary) {
            Some(token) => Err(DataError::Vocabulary { token: *token, vocabulary: self.vocabulary }),
            None => Ok(tokens),
        }
    }

    /// The text of tokens, special ones left out.
    pub fn decode(&self, tokens: &[u32]) -> Result<String, DataError> {
        self.tokenizer.decode(tokens, true).map_err(|error| DataError::Tokenize { reason: error.to_string() })
    }

    /// The text of tokens, special ones among them.
    pub fn decode_with_specials(&self, tokens: &[u32]) -> Result<String, DataError> {
        self.tokenizer.decode(tokens, false).map_err(|error| DataError::Tokenize { reason: error.to_string() })
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
        self.read_record(record, template, length_max, self.pairs(length_max)?.as_ref())
    }

    /// All examples that keep at least one label after cutting. Compare lengths to learn how many were dropped.
    pub fn examples(&self, records: &[Record], template: Template, length_max: usize) -> Result<Vec<TokenizedExample>, DataError> {
        let pairs = self.pairs(length_max)?;
        let one = |record: &Record| self.read_record(record, template, length_max, pairs.as_ref());
        let all: Vec<_> = records.par_iter().map(one).collect::<Result<_, _>>()?;
        Ok(all.into_iter().filter(|example| example.labels() > 0).collect())
    }

    /// How a model that classifies reads its texts. Copies the tokenizer, so it is made once for many texts.
    fn pairs(&self, length_max: usize) -> Result<Option<PairReader>, DataError> {
        self.classes.is_some().then(|| PairReader::new(&self.tokenizer, length_max)).transpose()
    }

    fn read_record(
        &self,
        record: &Record,
        template: Template,
        length_max: usize,
        pairs: Option<&PairReader>,
    ) -> Result<TokenizedExample, DataError> {
        match (&self.classes, pairs, record) {
            (Some(classes), Some(reader), Record::Classification { text, pair, label }) => {
                let (tokens, types) = reader.read(text, pair.as_deref())?;
                let (tokens, label) = (self.in_vocabulary(tokens)?, Some(classes.number(label)?));
                Ok(TokenizedExample { learned: vec![false; tokens.len()], tokens, types, label })
            }
            (None, _, Record::Classification { .. }) => {
                Err(DataError::Kind { found: "texts with a class", wanted: "is a language model, which continues texts" })
            }
            (Some(_), ..) => Err(DataError::Kind { found: "texts without a class", wanted: "classifies texts" }),
            (None, ..) => {
                let mut example = self.join(&record.segments(template))?;
                example.tokens.truncate(length_max);
                example.learned.truncate(length_max);
                Ok(example)
            }
        }
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
    use crate::data::Label;
    use crate::models::config::Head;
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

    #[test]
    fn a_model_that_classifies_reads_classes_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        write_tokenizer(dir.path());
        let record = Record::Classification { text: "count one".into(), pair: Some("two".into()), label: Label::Name("LABEL_1".into()) };
        std::fs::write(dir.path().join("config.json"), "{}").unwrap();
        let read = |head: Head, record: &Record| {
            let tokens = Tokens::read(dir.path(), &ModelConfig { head, ..config(11) }).unwrap();
            tokens.examples(std::slice::from_ref(record), Template::Short, 6).map_err(|error| error.to_string())
        };
        // This tokenizer has no frame of its own, but <s> and </s>: RoBERTa's. The longer text is cut.
        let expected = TokenizedExample { tokens: vec![1, 3, 2, 2, 6, 2], learned: vec![false; 6], types: vec![], label: Some(1) };
        assert_eq!(expected.labels(), 1);
        assert_eq!(read(Head::Classes(2), &record).unwrap(), [expected]);
        assert!(read(Head::Tokens, &record).unwrap_err().contains("is a language model"));
        assert!(read(Head::Classes(2), &Record::Text("count".into())).unwrap_err().contains("texts without a class"));
        let unknown = Record::Classification { text: "count".into(), pair: None, label: Label::Number(2) };
        assert!(read(Head::Classes(2), &unknown).unwrap_err().contains("\"2\" is no class of this model"));
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
