//! Answers as OpenAI's API writes them: whole, and in chunks.

use serde_json::{Map, Value, json};

use super::answer::{Ending, Piece, Told};
use super::request::{Asked, drawn_number};
use crate::refusal::Refusal;
use crate::shelf::seconds_now;

/// Which of the two ways of asking.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// `/v1/completions`
    Text,
    /// `/v1/chat/completions`
    Chat,
}

/// What all parts of an answer have in common.
pub struct Frame {
    form: Form,
    id: String,
    created: u64,
    model: &'static str,
    fingerprint: String,
    prompt_tokens: usize,
    logprobs: bool,
}

/// An answer put together.
#[derive(Default)]
pub struct Whole {
    index: usize,
    text: String,
    tokens: Vec<Told>,
    reason: &'static str,
    said: usize,
}

impl Whole {
    /// # Errors
    /// An answer that failed.
    pub fn add(&mut self, piece: Piece) -> Result<(), Refusal> {
        self.index = piece.index;
        self.text += &piece.text;
        self.tokens.extend(piece.tokens);
        match piece.end {
            None => {}
            Some(Ending::Done { reason, tokens }) => (self.reason, self.said) = (reason, tokens),
            Some(Ending::Failed(why)) => return Err(Refusal::failed(why)),
        }
        Ok(())
    }
}

impl Frame {
    pub fn new(form: Form, asked: &Asked) -> Self {
        let prefix = if form == Form::Chat { "chatcmpl" } else { "cmpl" };
        Self {
            form,
            id: format!("{prefix}-{:016x}", drawn_number()),
            created: seconds_now(),
            model: asked.model.kind.name(),
            fingerprint: asked.model.fingerprint.clone(),
            prompt_tokens: asked.prompts.iter().map(Vec::len).sum(),
            logprobs: asked.sampling.logprobs.is_some(),
        }
    }

    fn outer(&self, object: &str, choices: Vec<Value>) -> Value {
        json!({ "id": self.id, "object": object, "created": self.created, "model": self.model,
            "system_fingerprint": self.fingerprint, "choices": choices })
    }

    fn chunk(&self, choices: Vec<Value>, with_usage: bool) -> Value {
        let mut chunk = self.outer(if self.form == Form::Chat { "chat.completion.chunk" } else { "text_completion" }, choices);
        if with_usage {
            chunk["usage"] = Value::Null;
        }
        chunk
    }

    fn usage_of(&self, said: usize) -> Value {
        json!({ "prompt_tokens": self.prompt_tokens, "completion_tokens": said, "total_tokens": self.prompt_tokens + said })
    }

    /// The chunk before all others: of a chat, who speaks.
    pub fn begin(&self, index: usize, with_usage: bool) -> Option<Value> {
        let delta = json!({ "index": index, "delta": { "role": "assistant", "content": "" }, "logprobs": null, "finish_reason": null });
        (self.form == Form::Chat).then(|| self.chunk(vec![delta], with_usage))
    }

    pub fn piece(&self, piece: Piece, with_usage: bool) -> Value {
        let reason = match piece.end {
            Some(Ending::Done { reason, .. }) => Value::from(reason),
            _ => Value::Null,
        };
        let logprobs = self.told(&piece.tokens);
        let choice = match self.form {
            Form::Text => json!({ "index": piece.index, "text": piece.text, "logprobs": logprobs, "finish_reason": reason }),
            Form::Chat => {
                let delta = if piece.text.is_empty() { json!({}) } else { json!({ "content": piece.text }) };
                json!({ "index": piece.index, "delta": delta, "logprobs": logprobs, "finish_reason": reason })
            }
        };
        self.chunk(vec![choice], with_usage)
    }

    /// The chunk behind all others, where it is asked for.
    pub fn usage(&self, said: usize) -> Value {
        let mut chunk = self.chunk(Vec::new(), true);
        chunk["usage"] = self.usage_of(said);
        chunk
    }

    pub fn whole(&self, mut answers: Vec<Whole>) -> Value {
        answers.sort_by_key(|answer| answer.index);
        let said = answers.iter().map(|answer| answer.said).sum();
        let choice = |answer: &Whole| {
            let logprobs = self.told(&answer.tokens);
            match self.form {
                Form::Text => {
                    json!({ "index": answer.index, "text": answer.text, "logprobs": logprobs, "finish_reason": answer.reason })
                }
                Form::Chat => {
                    let message = json!({ "role": "assistant", "content": answer.text, "refusal": null });
                    json!({ "index": answer.index, "message": message, "logprobs": logprobs, "finish_reason": answer.reason })
                }
            }
        };
        let object = if self.form == Form::Chat { "chat.completion" } else { "text_completion" };
        let mut whole = self.outer(object, answers.iter().map(choice).collect());
        whole["usage"] = self.usage_of(said);
        whole
    }

    fn told(&self, tokens: &[Told]) -> Value {
        if !self.logprobs || tokens.is_empty() {
            return Value::Null;
        }
        match self.form {
            Form::Chat => {
                let one = |text: &str, logprob: f32| {
                    // What is no whole character by itself has bytes that its text does not tell.
                    let bytes = (!text.contains('\u{fffd}')).then_some(text.as_bytes());
                    json!({ "token": text, "logprob": logprob, "bytes": bytes })
                };
                let all = tokens.iter().map(|told| {
                    let mut entry = one(&told.text, told.logprob);
                    entry["top_logprobs"] = told.top.iter().map(|(text, logprob)| one(text, *logprob)).collect();
                    entry
                });
                json!({ "content": all.collect::<Vec<_>>(), "refusal": null })
            }
            Form::Text => {
                // The chosen token is always among those that are told.
                let top = |told: &Told| -> Map<String, Value> {
                    let chosen = std::iter::once((told.text.clone(), told.logprob.into()));
                    chosen.chain(told.top.iter().map(|(text, logprob)| (text.clone(), (*logprob).into()))).collect()
                };
                json!({
                    "tokens": tokens.iter().map(|told| &told.text).collect::<Vec<_>>(),
                    "token_logprobs": tokens.iter().map(|told| told.logprob).collect::<Vec<_>>(),
                    "top_logprobs": tokens.iter().map(top).collect::<Vec<_>>(),
                    "text_offset": tokens.iter().map(|told| told.at).collect::<Vec<_>>(),
                })
            }
        }
    }
}
