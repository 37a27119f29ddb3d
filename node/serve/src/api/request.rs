//! What a request asks for, checked field by field. Fields that this server does not know are passed over, as others of its
//! kind do; those that would change the answer and are not done here are refused.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::SystemTime;

use serde_json::{Map, Value};
use tokio::sync::mpsc;

use super::Desk;
use super::answer::Answer;
use super::shapes::Form;
use crate::engine::Order;
use crate::refusal::Refusal;
use crate::sampling::{Sampling, seed_of};
use crate::shelf::{Model, Shelf};
use crate::speech::Said;
use crate::stops::Stops;
use crate::unfolding::Unfolding;

/// Texts that may end an answer.
const STOPS_MAX: usize = 16;
/// Likeliest tokens that may be told with each.
const LOGPROBS_MAX: u64 = 20;
/// Said at most where a completion does not say how much.
const COMPLETION_TOKENS: usize = 16;
/// They would change the answer, and are not done here.
const NOT_DONE: [&str; 14] = [
    "tools",
    "functions",
    "audio",
    "prediction",
    "web_search_options",
    "suffix",
    "echo",
    "prompt_embeds",
    "structured_outputs",
    "guided_json",
    "guided_regex",
    "guided_choice",
    "guided_grammar",
    "use_beam_search",
];

/// A request that can be answered.
pub struct Asked {
    pub model: Arc<Model>,
    /// One or more, each of one token at least.
    pub prompts: Vec<Vec<u32>>,
    /// Answers to each.
    pub answers: usize,
    /// Streamed; and whether the usage is told at the end.
    pub stream: Option<bool>,
    pub sampling: Sampling,
    tokens_max: Option<usize>,
    stops: Vec<String>,
    ignore_end: bool,
    form: Form,
}

pub fn unknown_model(shelf: &Shelf, name: &str) -> Refusal {
    let known: Vec<&str> = shelf.all().iter().map(|model| model.kind.name()).collect();
    Refusal::no_model(name, &known)
}

impl Asked {
    /// # Errors
    /// The first field at fault.
    pub fn read(desk: &Desk, form: Form, body: &[u8]) -> Result<Self, Refusal> {
        let json: Value = serde_json::from_slice(body).map_err(|error| Refusal::malformed(format!("the request is not JSON: {error}")))?;
        let Value::Object(json) = json else { return Err(Refusal::malformed("the request is not a JSON object")) };
        let fields = Fields(json);
        fields.refuse_what_is_not_done()?;
        let name = fields.text("model")?;
        let model = desk.shelf.find(name).ok_or_else(|| unknown_model(&desk.shelf, name.unwrap_or_default()))?;
        let stream = match (fields.flag("stream")?, fields.get("stream_options")) {
            (true, None) => Some(false),
            (true, Some(options)) => Some(options["include_usage"] == true),
            (false, None) => None,
            (false, Some(_)) => return Err(Refusal::field("stream_options", "stream_options is for streams only")),
        };
        let answers = fields.count("n", 1..=128)?.unwrap_or(1) as usize;
        if fields.count("best_of", 1..=128)?.is_some_and(|best| best as usize != answers) {
            return Err(Refusal::unsupported("best_of", "best_of other than n is not done here"));
        }
        let tokens_max = fields.count("max_completion_tokens", 1..=u64::MAX)?.or(fields.count("max_tokens", 1..=u64::MAX)?);
        let prompts = match form {
            Form::Text => fields.prompts(desk)?,
            Form::Chat => vec![desk.speech.conversation(&fields.messages()?)?],
        };
        Ok(Self {
            model,
            prompts,
            answers,
            stream,
            sampling: fields.sampling(form)?,
            tokens_max: tokens_max.map(|count| usize::try_from(count).unwrap_or(usize::MAX)),
            stops: fields.stops()?,
            ignore_end: fields.flag("ignore_eos")?,
            form,
        })
    }

    /// Hands all sequences to the engine.
    ///
    /// # Errors
    /// A prompt that is too long, or no places.
    pub fn order(&self, desk: &Arc<Desk>) -> Result<Vec<Answer>, Refusal> {
        let rooms = self.prompts.iter().map(|prompt| self.room(desk, prompt)).collect::<Result<Vec<usize>, _>>()?;
        let (count, most) = (self.prompts.len() * self.answers, desk.engine.places_max());
        if count > most {
            return Err(Refusal::field("n", format!("{count} answers are asked for, but {most} places are all there are")));
        }
        let places = desk.engine.places(count).ok_or_else(Refusal::busy)?;
        let mut answers = Vec::with_capacity(count);
        for (index, place) in places.into_iter().enumerate() {
            let (prompt, tokens_max) = (&self.prompts[index / self.answers], rooms[index / self.answers]);
            let (to, words) = mpsc::channel(tokens_max + 1);
            let ends = if self.ignore_end { BTreeSet::new() } else { desk.speech.ends().clone() };
            let sampling = Sampling { seed: seed_of(self.sampling.seed, index), ..self.sampling.clone() };
            let logprobs = sampling.logprobs.is_some();
            let order = Order { model: self.model.clone(), prompt: prompt.clone(), sampling, tokens_max, ends, to, place };
            if !desk.engine.order(order) {
                return Err(Refusal::stopped());
            }
            // A message is a text of its own; a completion goes on where its prompt ends.
            let unfolding = Unfolding::behind(if self.form == Form::Text { prompt } else { &[] });
            answers.push(Answer::new(index, desk.clone(), words, unfolding, Stops::new(&self.stops), logprobs));
        }
        Ok(answers)
    }

    /// Tokens that may be said behind a prompt.
    fn room(&self, desk: &Desk, prompt: &[u32]) -> Result<usize, Refusal> {
        let (found, most) = (prompt.len(), desk.speech.positions_max());
        let param = if self.form == Form::Chat { "messages" } else { "prompt" };
        let room = most.saturating_sub(found);
        match self.tokens_max {
            _ if room == 0 => {
                Err(Refusal::too_long(param, format!("the prompt has {found} tokens, but the model's context ends at {most}")))
            }
            Some(wanted) if wanted > room => Err(Refusal::too_long(
                param,
                format!("the prompt has {found} tokens and {wanted} are asked for, but the model's context ends at {most}"),
            )),
            Some(wanted) => Ok(wanted),
            None if self.form == Form::Text => Ok(room.min(COMPLETION_TOKENS)),
            None => Ok(room),
        }
    }
}

struct Fields(Map<String, Value>);

impl Fields {
    /// `null` is as good as nothing.
    fn get(&self, name: &str) -> Option<&Value> {
        self.0.get(name).filter(|value| !value.is_null())
    }

    fn refuse_what_is_not_done(&self) -> Result<(), Refusal> {
        let says_nothing = |value: &Value| match value {
            Value::Bool(wanted) => !wanted,
            Value::String(text) => text.is_empty(),
            Value::Array(list) => list.is_empty(),
            Value::Object(map) => map.is_empty(),
            _ => false,
        };
        if let Some(name) = NOT_DONE.into_iter().find(|name| self.get(name).is_some_and(|value| !says_nothing(value))) {
            return Err(Refusal::unsupported(name, format!("{name} is not done here")));
        }
        if self.get("response_format").is_some_and(|format| format["type"] != "text") {
            return Err(Refusal::unsupported("response_format", "of response formats only text is done here"));
        }
        Ok(())
    }

    fn number(&self, name: &'static str, range: RangeInclusive<f64>) -> Result<Option<f64>, Refusal> {
        let Some(value) = self.get(name) else { return Ok(None) };
        match value.as_f64().filter(|number| range.contains(number)) {
            Some(number) => Ok(Some(number)),
            None => Err(Refusal::field(name, format!("{name} is {value}, but must be a number from {} to {}", range.start(), range.end()))),
        }
    }

    fn count(&self, name: &'static str, range: RangeInclusive<u64>) -> Result<Option<u64>, Refusal> {
        let Some(value) = self.get(name) else { return Ok(None) };
        match (value.as_u64().filter(|number| range.contains(number)), *range.end()) {
            (Some(number), _) => Ok(Some(number)),
            (None, u64::MAX) => {
                Err(Refusal::field(name, format!("{name} is {value}, but must be a whole number from {} on", range.start())))
            }
            (None, end) => {
                Err(Refusal::field(name, format!("{name} is {value}, but must be a whole number from {} to {end}", range.start())))
            }
        }
    }

    fn flag(&self, name: &'static str) -> Result<bool, Refusal> {
        match self.get(name) {
            None => Ok(false),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(value) => Err(Refusal::field(name, format!("{name} is {value}, but must be true or false"))),
        }
    }

    fn text(&self, name: &'static str) -> Result<Option<&str>, Refusal> {
        match self.get(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(value) => Err(Refusal::field(name, format!("{name} is {value}, but must be a string"))),
        }
    }

    fn stops(&self) -> Result<Vec<String>, Refusal> {
        let refuse = || Refusal::field("stop", format!("stop must be a string, or a list of {STOPS_MAX} at most"));
        match self.get("stop") {
            None => Ok(Vec::new()),
            Some(Value::String(text)) => Ok(vec![text.clone()]),
            Some(Value::Array(list)) if list.len() <= STOPS_MAX => {
                list.iter().map(|text| text.as_str().map(str::to_owned).ok_or_else(refuse)).collect()
            }
            Some(_) => Err(refuse()),
        }
    }

    fn sampling(&self, form: Form) -> Result<Sampling, Refusal> {
        let top_k = self.get("top_k").map(|value| value.as_i64().ok_or_else(|| Refusal::field("top_k", "top_k must be a whole number")));
        // A request that names no seed gets another each time.
        let seed = match self.get("seed") {
            None => drawn_number(),
            Some(value) => {
                let seed = value.as_i64().map(|seed| seed as u64).or(value.as_u64());
                seed.ok_or_else(|| Refusal::field("seed", format!("seed is {value}, but must be a whole number")))?
            }
        };
        Ok(Sampling {
            temperature: self.number("temperature", 0.0..=2.0)?.unwrap_or(1.0) as f32,
            top_p: self.number("top_p", 0.0..=1.0)?.unwrap_or(1.0),
            top_k: top_k.transpose()?.and_then(|count| usize::try_from(count).ok()).filter(|count| *count > 0),
            seed,
            presence_penalty: self.number("presence_penalty", -2.0..=2.0)?.unwrap_or(0.0) as f32,
            frequency_penalty: self.number("frequency_penalty", -2.0..=2.0)?.unwrap_or(0.0) as f32,
            bias: self.bias()?,
            logprobs: match form {
                Form::Text => self.count("logprobs", 0..=LOGPROBS_MAX)?.map(|count| count as usize),
                Form::Chat => {
                    let top = self.count("top_logprobs", 0..=LOGPROBS_MAX)?;
                    if top.is_some() && !self.flag("logprobs")? {
                        return Err(Refusal::field("top_logprobs", "top_logprobs needs logprobs to be true"));
                    }
                    self.flag("logprobs")?.then_some(top.unwrap_or(0) as usize)
                }
            },
        })
    }

    fn bias(&self) -> Result<Vec<(u32, f32)>, Refusal> {
        let refuse = || Refusal::field("logit_bias", "logit_bias must be an object of numbers from -100 to 100 by token");
        let Some(value) = self.get("logit_bias") else { return Ok(Vec::new()) };
        let one = |(token, bias): (&String, &Value)| {
            let bias = bias.as_f64().filter(|bias| bias.abs() <= 100.0)?;
            Some((token.parse().ok()?, bias as f32))
        };
        value.as_object().ok_or_else(refuse)?.iter().map(|entry| one(entry).ok_or_else(refuse)).collect()
    }

    /// A text, tokens, or a list of either.
    fn prompts(&self, desk: &Desk) -> Result<Vec<Vec<u32>>, Refusal> {
        let refuse = || Refusal::field("prompt", "prompt must be a string, a list of tokens, or a list of either");
        let value = self.get("prompt").ok_or_else(refuse)?;
        let tokens =
            |list: &[Value]| -> Option<Vec<u32>> { list.iter().map(|id| id.as_u64().and_then(|id| u32::try_from(id).ok())).collect() };
        let one = |value: &Value| match value {
            Value::String(text) => Ok(desk.speech.prompt(text)?),
            Value::Array(list) => Ok(desk.speech.given(tokens(list).ok_or_else(refuse)?)?),
            _ => Err(refuse()),
        };
        let prompts: Vec<Vec<u32>> = match value {
            Value::Array(list) if list.first().is_some_and(|first| !first.is_number()) => list.iter().map(one).collect::<Result<_, _>>()?,
            value => vec![one(value)?],
        };
        match prompts.iter().any(Vec::is_empty) {
            true => Err(Refusal::field("prompt", "a prompt is empty")),
            false => Ok(prompts),
        }
    }

    fn messages(&self) -> Result<Vec<Said>, Refusal> {
        let refuse = |message: &str| Refusal::field("messages", message);
        let list = self.get("messages").and_then(Value::as_array).filter(|list| !list.is_empty());
        let list = list.ok_or_else(|| refuse("messages must be a list of one message at least"))?;
        let one = |message: &Value| {
            let role = message["role"].as_str().ok_or_else(|| refuse("a message has no role"))?;
            let content = match &message["content"] {
                Value::String(text) => text.clone(),
                Value::Null => String::new(),
                Value::Array(parts) => {
                    let text = |part: &Value| part["text"].as_str().filter(|_| part["type"] == "text").map(str::to_owned);
                    let texts: Option<Vec<String>> = parts.iter().map(text).collect();
                    texts.ok_or_else(|| refuse("of a message's parts only text can be read here"))?.concat()
                }
                _ => return Err(refuse("a message's content must be a string, or a list of parts")),
            };
            Ok(Said { role: role.to_owned(), content })
        };
        list.iter().map(one).collect()
    }
}

/// A number that is another every time: for seeds and names that nobody asked for, not for secrets.
pub fn drawn_number() -> u64 {
    use std::hash::BuildHasher;
    std::hash::RandomState::new().hash_one(SystemTime::now())
}
