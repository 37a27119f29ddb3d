//! One training example as its author wrote it, and the template that makes one text of it.

use std::path::Path;

use serde::Deserialize;
use serde_json::{Map, Value};

use super::DataError;
use super::fields::FieldMap;

/// An example in one of the known forms.
#[derive(Debug, Clone, PartialEq)]
pub enum Record {
    Instruction {
        instruction: String,
        /// May be empty.
        input: String,
        output: String,
    },
    Messages(Vec<Message>),
    Text(String),
    /// For models with a classification head.
    Classification {
        text: String,
        /// The second text, where two are judged together.
        pair: Option<String>,
        label: Label,
    },
}

/// A class as the data writes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Label {
    Number(u32),
    /// A name that the model's `id2label` knows.
    Name(String),
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Message {
    /// `system`, `user` or `assistant`.
    pub role: String,
    pub content: String,
}

/// A piece of text; only learned pieces carry labels.
#[derive(Debug, Clone, PartialEq)]
pub struct Segment {
    pub text: String,
    /// The model is to say this; the end-of-text token follows it.
    pub learned: bool,
}

/// How an example becomes text.
///
/// `Short` is for small models, whose context is too dear for ceremony:
///
/// ```text
/// {instruction}\n{input}\n{output}         (the input's line only where there is an input)
/// {question}\n{answer}
/// {content}\n per system or user message, {content} per assistant message
/// ```
///
/// `Alpaca` is the prompt that Stanford Alpaca published with its data, which many instruction-tuned Llama models saw;
/// a question is its instruction. Messages and text are as in `Short`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Template {
    #[default]
    Short,
    Alpaca,
}

const ALPACA_WITH_INPUT: &str = "Below is an instruction that describes a task, paired with an input that provides further context. Write a response that appropriately completes the request.\n\n### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n";
const ALPACA_WITHOUT_INPUT: &str = "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n### Instruction:\n{instruction}\n\n### Response:\n";

impl Template {
    fn prompt(self, instruction: &str, input: &str) -> String {
        // The instruction is put in last, so that braces in it are left alone.
        match (self, input.is_empty()) {
            (Self::Short, true) => format!("{instruction}\n"),
            (Self::Short, false) => format!("{instruction}\n{input}\n"),
            (Self::Alpaca, true) => fill(ALPACA_WITHOUT_INPUT, &[("{instruction}", instruction)]),
            (Self::Alpaca, false) => fill(ALPACA_WITH_INPUT, &[("{instruction}", instruction), ("{input}", input)]),
        }
    }
}

/// Replaces each placeholder, in the order of the template, once: what is put in is not searched again.
fn fill(template: &str, fields: &[(&str, &str)]) -> String {
    let (mut text, mut rest) = (String::new(), template);
    for (placeholder, value) in fields {
        if let Some((before, after)) = rest.split_once(placeholder) {
            text += before;
            text += value;
            rest = after;
        }
    }
    text + rest
}

impl Record {
    /// The pieces of the example's text, in order; none for an example with a class, which is nothing to be continued.
    pub fn segments(&self, template: Template) -> Vec<Segment> {
        let piece = |text: String, learned| Segment { text, learned };
        match self {
            Self::Instruction { instruction, input, output } => {
                vec![piece(template.prompt(instruction, input), false), piece(output.clone(), true)]
            }
            Self::Messages(messages) => {
                let one = |message: &Message| match message.role.as_str() {
                    "assistant" => piece(message.content.clone(), true),
                    _ => piece(format!("{}\n", message.content), false),
                };
                messages.iter().map(one).collect()
            }
            Self::Text(text) => vec![piece(text.clone(), true)],
            Self::Classification { .. } => Vec::new(),
        }
    }

    /// What a model is given, and what it should say: the last learned piece, with all before it. `None` for plain text.
    pub fn question_and_answer(&self, template: Template) -> Option<(Vec<Segment>, String)> {
        let mut segments = self.segments(template);
        let answer = segments.iter().rposition(|segment| segment.learned)?;
        if answer == 0 {
            return None;
        }
        segments.truncate(answer + 1);
        segments.pop().map(|last| (segments, last.text))
    }

    /// Recognises one JSON object; the error says what was found and what is known.
    pub fn from_json(json: &Value) -> Result<Self, String> {
        let Some(object) = json.as_object() else { return Err(format!("expected a JSON object, found {}", kind(json))) };
        let text = |field: &str| required_text(object, field);
        if object.contains_key("messages") {
            return messages(object);
        }
        if object.contains_key("instruction") {
            let input = match object.get("input") {
                None | Some(Value::Null) => String::new(),
                Some(_) => text("input")?,
            };
            return Ok(Self::Instruction { instruction: text("instruction")?, input, output: text("output")? });
        }
        if object.contains_key("question") {
            return Ok(Self::Instruction { instruction: text("question")?, input: String::new(), output: text("answer")? });
        }
        if let (Some(label), Some(field)) =
            (object.get("label"), ["text", "sentence"].into_iter().find(|field| object.contains_key(*field)))
        {
            let pair = object.contains_key("text_pair").then(|| text("text_pair")).transpose()?;
            return Ok(Self::Classification { text: text(field)?, pair, label: Label::from_json(label)? });
        }
        if object.contains_key("text") {
            return Ok(Self::Text(text("text")?));
        }
        let found = object.keys().take(8).cloned().collect::<Vec<_>>().join(", ");
        Err(format!(
            "found the fields {{{found}}}, but an example has \"instruction\" and \"output\", \"question\" and \"answer\", \"messages\", \"text\", or \"text\" and \"label\""
        ))
    }
}

impl Label {
    /// A number, or a name; a number may be written as a string.
    pub fn parse(text: &str) -> Self {
        text.trim().parse().map_or_else(|_| Self::Name(text.trim().into()), Self::Number)
    }

    fn from_json(json: &Value) -> Result<Self, String> {
        match json {
            Value::String(text) => Ok(Self::parse(text)),
            Value::Number(_) => {
                let number = json.as_u64().and_then(|number| u32::try_from(number).ok());
                number
                    .map(Self::Number)
                    .ok_or_else(|| format!("\"label\" is {json}, but must be the number of a class, from 0, or its name"))
            }
            other => Err(format!("\"label\" is {}, but must be a number or a name", kind(other))),
        }
    }
}

fn kind(json: &Value) -> &'static str {
    match json {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

fn required_text(object: &Map<String, Value>, field: &str) -> Result<String, String> {
    match object.get(field) {
        Some(Value::String(text)) => Ok(text.clone()),
        Some(other) => Err(format!("\"{field}\" is {}, but must be a string", kind(other))),
        None => Err(format!("\"{field}\" is missing")),
    }
}

fn messages(object: &Map<String, Value>) -> Result<Record, String> {
    let list = object.get("messages").cloned().unwrap_or_default();
    let messages: Vec<Message> =
        serde_json::from_value(list).map_err(|error| format!("\"messages\" must be a list of {{\"role\", \"content\"}}: {error}"))?;
    if let Some(other) = messages.iter().find(|m| !["system", "user", "assistant"].contains(&m.role.as_str())) {
        return Err(format!("the role is \"{}\", but must be \"system\", \"user\" or \"assistant\"", other.role));
    }
    if !messages.iter().any(|message| message.role == "assistant") {
        return Err("\"messages\" holds nothing an assistant says, so there is nothing to learn".into());
    }
    Ok(Record::Messages(messages))
}

/// Reads a file of examples, by the ending of its name: `.parquet`, `.csv` with a header, `.tsv`, and otherwise JSON lines.
pub fn read_records(path: &Path, fields: &FieldMap) -> Result<Vec<Record>, DataError> {
    let ending = path.extension().unwrap_or_default().to_ascii_lowercase();
    match ending.to_str() {
        Some("parquet") => super::parquet::read_parquet(path, fields),
        Some("csv") => read_csv(path, fields),
        Some("tsv") if fields.0.is_empty() => super::tsv::read_tsv(path),
        Some("tsv") => {
            let reason = "columns of a .tsv file cannot be mapped; a .csv file's can".to_owned();
            Err(DataError::File { path: path.into(), reason })
        }
        _ => read_mapped_jsonl(path, fields),
    }
}

/// Reads comma-separated values under a header of names.
fn read_csv(path: &Path, fields: &FieldMap) -> Result<Vec<Record>, DataError> {
    let file = |reason| DataError::File { path: path.into(), reason };
    let text = std::fs::read_to_string(path).map_err(|error| file(error.to_string()))?;
    // Spreadsheets mark their files as UTF-8 by a character of no width.
    let rows = super::csv::rows(text.trim_start_matches('\u{feff}')).map_err(file)?;
    let mut rows = rows.into_iter();
    let header = rows.next().map(|(_, names)| names).unwrap_or_default();
    let mut records = Vec::new();
    for (line, row) in rows {
        let refuse = |reason| DataError::Form { path: path.into(), line, reason };
        if row.len() != header.len() {
            return Err(refuse(format!("{} fields, but the header has {}", row.len(), header.len())));
        }
        let named = header.iter().cloned().zip(row.into_iter().map(Value::String)).collect();
        records.push(fields.record(named).map_err(refuse)?);
    }
    if records.is_empty() {
        return Err(DataError::Empty { path: path.into() });
    }
    Ok(records)
}

/// Reads a file of JSON lines. Empty lines are allowed; a file without an example is not.
pub fn read_jsonl(path: &Path) -> Result<Vec<Record>, DataError> {
    read_mapped_jsonl(path, &FieldMap::default())
}

fn read_mapped_jsonl(path: &Path, fields: &FieldMap) -> Result<Vec<Record>, DataError> {
    let text = std::fs::read_to_string(path).map_err(|error| DataError::File { path: path.into(), reason: error.to_string() })?;
    let mut records = Vec::new();
    for (index, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let refuse = |reason| DataError::Line { path: path.into(), line: index + 1, reason };
        let json: Value = serde_json::from_str(line).map_err(|error| refuse(format!("not JSON: {error}")))?;
        let record = match json {
            Value::Object(row) => fields.record(row),
            other => Record::from_json(&other),
        };
        records.push(record.map_err(refuse)?);
    }
    if records.is_empty() {
        return Err(DataError::Empty { path: path.into() });
    }
    Ok(records)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn text(json: Value, template: Template) -> (String, String) {
        let record = Record::from_json(&json).unwrap();
        let (prompt, answer) = record.question_and_answer(template).unwrap();
        (prompt.into_iter().map(|segment| segment.text).collect(), answer)
    }

    #[test]
    fn every_form_is_recognised() {
        let pair = |a: &str, b: &str| (a.to_string(), b.to_string());
        let alpaca = json!({ "instruction": "Add.", "input": "1 2", "output": "3" });
        assert_eq!(text(alpaca, Template::Short), pair("Add.\n1 2\n", "3"));
        let no_input = json!({ "instruction": "Say hello.", "output": "hello" });
        assert_eq!(text(no_input, Template::Short), pair("Say hello.\n", "hello"));
        assert_eq!(text(json!({ "question": "1+1?", "answer": "2" }), Template::Short), pair("1+1?\n", "2"));
        let messages = json!({ "messages": [
            { "role": "system", "content": "Be kind." }, { "role": "user", "content": "Hi" },
            { "role": "assistant", "content": "Hello" }] });
        assert_eq!(text(messages, Template::Short), pair("Be kind.\nHi\n", "Hello"));
        let classes = json!({ "sentence": "Fine.", "text_pair": "Good.", "label": 1 });
        let expected = Record::Classification { text: "Fine.".into(), pair: Some("Good.".into()), label: Label::Number(1) };
        assert_eq!(Record::from_json(&classes).unwrap(), expected);
        assert_eq!(expected.question_and_answer(Template::Short), None);
        let named = Record::from_json(&json!({ "text": "Fine.", "label": "positive" })).unwrap();
        assert_eq!(named, Record::Classification { text: "Fine.".into(), pair: None, label: Label::Name("positive".into()) });
        let plain = Record::from_json(&json!({ "text": "Once." })).unwrap();
        assert_eq!(plain.segments(Template::Short), [Segment { text: "Once.".into(), learned: true }]);
    }

    #[test]
    fn the_alpaca_prompt_is_the_published_one_and_leaves_braces_alone() {
        let (prompt, _) = text(json!({ "instruction": "use {input}", "input": "x", "output": "y" }), Template::Alpaca);
        assert!(prompt.starts_with("Below is an instruction that describes a task, paired with an input"));
        assert!(prompt.ends_with("### Instruction:\nuse {input}\n\n### Input:\nx\n\n### Response:\n"), "{prompt}");
    }

    #[test]
    fn a_line_that_is_no_example_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("d.jsonl");
        let cases = [
            ("{\"prompt\": 1, \"completion\": 2}", "found the fields {completion, prompt}"),
            ("[1]", "found a list"),
            ("{\"question\": 3, \"answer\": \"x\"}", "\"question\" is a number"),
            ("{\"instruction\": \"x\"}", "\"output\" is missing"),
            ("{\"messages\": [{\"role\": \"user\", \"content\": \"x\"}]}", "nothing an assistant says"),
            ("{\"messages\": [{\"role\": \"bot\", \"content\": \"x\"}]}", "the role is \"bot\""),
            ("{\"text\": \"x\", \"label\": -1}", "\"label\" is -1"),
            ("{\"text\": \"x\", \"label\": null}", "\"label\" is null"),
            ("{\"text\"", "not JSON"),
        ];
        for (line, expected) in cases {
            std::fs::write(&path, format!("{{\"text\": \"fine\"}}\n\n{line}\n")).unwrap();
            let error = read_jsonl(&path).unwrap_err().to_string();
            assert!(error.contains("d.jsonl:3: ") && error.contains(expected), "{error}");
        }
        std::fs::write(&path, "\n").unwrap();
        assert!(read_jsonl(&path).unwrap_err().to_string().ends_with("holds no example"));
    }

    #[test]
    fn csv_has_a_header_of_names() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("d.csv");
        let read = |text: &str, map: &[&str]| {
            std::fs::write(&path, text).unwrap();
            let map = FieldMap(map.iter().map(|field| field.parse().unwrap()).collect());
            read_records(&path, &map).map_err(|error| error.to_string())
        };
        let expected = Record::Instruction { instruction: "Add, \"please\".".into(), input: String::new(), output: "3\n".into() };
        assert_eq!(read("\u{feff}question,answer\n\"Add, \"\"please\"\".\",\"3\n\"\n", &[]).unwrap(), std::slice::from_ref(&expected));
        assert_eq!(read("q,a\n\"Add, \"\"please\"\".\",\"3\n\"\n", &["question=q", "answer=a"]).unwrap(), [expected]);
        assert!(read("q,a\nAdd\n", &[]).unwrap_err().ends_with("d.csv:2: 1 fields, but the header has 2"));
        assert!(read("q,a\n1,2\n", &[]).unwrap_err().contains("d.csv:2: found the fields {a, q}"));
        assert!(read("question,answer\n", &[]).unwrap_err().ends_with("holds no example"));
    }
}
