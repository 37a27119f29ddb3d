//! Plain texts as language-model training takes them: one after the other, each between begin- and end-of-text, cut into
//! blocks of one length, of which every one but the last is full.

use super::record::{Record, Template};
use super::tokens::{TokenizedExample, Tokens};
use super::{DataError, batches::split_held_out};

/// Training and held-out examples of records whose plain texts are packed into blocks of `length_max` tokens. Other
/// records become one example each, and are cut there. Documents are held out whole, so that no block has a part in both.
pub fn packed(
    tokens: &Tokens,
    records: Vec<Record>,
    template: Template,
    length_max: usize,
    held_out: usize,
    seed: u64,
) -> Result<(Vec<TokenizedExample>, Vec<TokenizedExample>), DataError> {
    let (train, held_out) = split_held_out(records, held_out, seed);
    let blocks = |records: &[Record]| -> Result<Vec<TokenizedExample>, DataError> {
        let (texts, others): (Vec<_>, Vec<_>) = records.iter().cloned().partition(|record| matches!(record, Record::Text(_)));
        let mut examples = tokens.examples(&others, template, length_max)?;
        examples.extend(cut(&tokens.examples(&texts, template, usize::MAX)?, length_max));
        Ok(examples)
    };
    Ok((blocks(&train)?, blocks(&held_out)?))
}

/// Blocks of `length` tokens of all examples laid one after the other. The first token of a block is predicted by nothing,
/// so a last block of one token is left out.
fn cut(examples: &[TokenizedExample], length: usize) -> Vec<TokenizedExample> {
    let tokens: Vec<u32> = examples.iter().flat_map(|example| example.tokens.iter().copied()).collect();
    let learned: Vec<bool> = examples.iter().flat_map(|example| example.learned.iter().copied()).collect();
    let blocks = tokens.chunks(length.max(2)).zip(learned.chunks(length.max(2)));
    let block = |(tokens, learned): (&[u32], &[bool])| TokenizedExample {
        tokens: tokens.to_vec(),
        learned: learned.to_vec(),
        ..TokenizedExample::default()
    };
    blocks.map(block).filter(|example| example.labels() > 0).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::tokens::tests::{config, write_tokenizer};

    #[test]
    fn texts_become_full_blocks_and_nothing_is_lost() {
        let dir = tempfile::tempdir().unwrap();
        write_tokenizer(dir.path());
        let tokens = Tokens::read(dir.path(), &config(11)).unwrap();
        let text = |text: &str| Record::Text(text.into());
        let records = vec![text("one two three four five"), text("two three"), text("one")];
        let (train, held_out) = packed(&tokens, records.clone(), Template::Short, 6, 0, 1).unwrap();
        assert!(held_out.is_empty());
        let blocks: Vec<&[u32]> = train.iter().map(|example| &example.tokens[..]).collect();
        assert_eq!(blocks, [&[1, 5, 6, 7, 8, 9][..], &[2, 1, 6, 7, 2, 1], &[5, 2]]);
        assert_eq!(train[1].learned, [true, false, true, true, true, false], "a begin-of-text is not learned");
        let (train, held_out) = packed(&tokens, records, Template::Short, 5, 1, 1).unwrap();
        let count = |examples: &[TokenizedExample]| examples.iter().map(|example| example.tokens.len()).sum::<usize>();
        assert_eq!(count(&train) + count(&held_out), 14);
        assert!(!held_out.is_empty() && held_out[0].tokens[0] == 1, "documents are held out whole");
    }

    #[test]
    fn answers_keep_examples_of_their_own() {
        let dir = tempfile::tempdir().unwrap();
        write_tokenizer(dir.path());
        let tokens = Tokens::read(dir.path(), &config(11)).unwrap();
        let question = Record::Instruction { instruction: "count".into(), input: String::new(), output: "one two".into() };
        let records = vec![Record::Text("one two".into()), question.clone(), Record::Text("three".into())];
        let (train, _) = packed(&tokens, records, Template::Short, 64, 0, 1).unwrap();
        assert_eq!(train.len(), 2);
        assert_eq!(train[0], tokens.example(&question, Template::Short, 64).unwrap());
        assert_eq!(train[1].tokens, [1, 5, 6, 2, 1, 7, 2]);
    }
}
