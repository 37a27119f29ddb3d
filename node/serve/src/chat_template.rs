//! A model's own chat template, in Jinja, as transformers renders it: blocks trimmed, Python's methods on strings, lists and
//! maps, `raise_exception` and `strftime_now`, the special tokens by name, and no tools.

use std::path::Path;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Serde};
use minijinja::{Environment, Error, ErrorKind, Value};
use serde_json::{Map, Value as Json};

use crate::calendar;
use crate::speech::SpeechError;

const RECURSION_MAX: usize = 64;
/// Steps a template may take: it comes with a base, whose digest says nothing of it, and none may keep the server busy for ever.
const STEPS_MAX: u64 = 5_000_000;
const NAME: &str = "chat";

/// A template that was read and compiled.
pub struct ChatTemplate {
    environment: Environment<'static>,
    /// Special tokens by name: `bos_token`, `eos_token` and others.
    specials: Map<String, Json>,
}

impl ChatTemplate {
    /// The template of a base's directory: `chat_template.jinja`, or else the one in `tokenizer_config.json`, of several the
    /// one called `default`. `None` where there is none.
    ///
    /// # Errors
    /// Files that cannot be read, and templates that are none.
    pub fn read(folder: &Path) -> Result<Option<Self>, SpeechError> {
        let path = folder.join("tokenizer_config.json");
        let refuse = |reason: String| SpeechError::File { path: path.clone(), reason };
        let config: Json = match std::fs::read(&path) {
            Ok(text) => serde_json::from_slice(&text).map_err(|error| refuse(error.to_string()))?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Json::Null,
            Err(error) => return Err(refuse(error.to_string())),
        };
        let file = folder.join("chat_template.jinja");
        let (source, path) = match std::fs::read_to_string(&file) {
            Ok(source) => (Some(source), file),
            Err(_) => (of_config(&config["chat_template"]), path),
        };
        let template = source.map(|source| Self::new(source, specials(&config)));
        template.transpose().map_err(|error| SpeechError::File { path, reason: format!("its chat template is no template: {error:#}") })
    }

    fn new(source: String, specials: Map<String, Json>) -> Result<Self, Error> {
        let mut environment = Environment::new();
        environment.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
        environment.set_recursion_limit(RECURSION_MAX);
        environment.set_fuel(Some(STEPS_MAX));
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", |message: String| -> Result<Value, Error> {
            Err(Error::new(ErrorKind::InvalidOperation, message))
        });
        environment.add_function("strftime_now", |format: String| calendar::now(&format));
        environment.add_filter("tojson", to_json);
        environment.add_template_owned(NAME, source)?;
        Ok(Self { environment, specials })
    }

    /// The text of a conversation, up to where the assistant speaks next.
    ///
    /// # Errors
    /// What the template refuses, in its own words.
    pub fn render(&self, messages: &[Json]) -> Result<String, SpeechError> {
        let mut context = self.specials.clone();
        context.insert("messages".into(), messages.into());
        context.insert("add_generation_prompt".into(), true.into());
        context.insert("tools".into(), Json::Null);
        context.insert("documents".into(), Json::Null);
        let rendered = self.environment.get_template(NAME).and_then(|template| template.render(Serde(&context)));
        rendered.map_err(|error| SpeechError::Template { reason: error.detail().map_or_else(|| error.to_string(), str::to_owned) })
    }
}

/// A template alone, or several by name.
fn of_config(json: &Json) -> Option<String> {
    match json {
        Json::String(source) => Some(source.clone()),
        Json::Array(named) => {
            let one = named.iter().find(|template| template["name"] == "default")?;
            one["template"].as_str().map(str::to_owned)
        }
        _ => None,
    }
}

/// The special tokens of `tokenizer_config.json`: texts, or objects with their content.
fn specials(config: &Json) -> Map<String, Json> {
    let named = config.as_object().into_iter().flatten().filter(|(name, _)| name.ends_with("_token"));
    let text = |value: &Json| value.as_str().or_else(|| value["content"].as_str()).map(Json::from);
    named.filter_map(|(name, value)| Some((name.clone(), text(value)?))).collect()
}

/// As Python's `json.dumps` with `ensure_ascii=False`, which transformers puts in the place of Jinja's own.
fn to_json(value: Value, options: Kwargs) -> Result<String, Error> {
    let indent: Option<usize> = options.get("indent")?;
    let explain = |error: serde_json::Error| Error::new(ErrorKind::BadSerialization, error.to_string());
    let mut text = Vec::new();
    match indent {
        Some(width) => {
            let spaces = " ".repeat(width);
            let formatter = serde_json::ser::PrettyFormatter::with_indent(spaces.as_bytes());
            serde::Serialize::serialize(&value, &mut serde_json::Serializer::with_formatter(&mut text, formatter)).map_err(explain)?;
        }
        None => serde::Serialize::serialize(&value, &mut serde_json::Serializer::with_formatter(&mut text, Spaced)).map_err(explain)?,
    }
    String::from_utf8(text).map_err(|error| Error::new(ErrorKind::BadSerialization, error.to_string()))
}

/// A space behind each comma and colon.
struct Spaced;

impl serde_json::ser::Formatter for Spaced {
    fn begin_array_value<W: ?Sized + std::io::Write>(&mut self, writer: &mut W, first: bool) -> std::io::Result<()> {
        writer.write_all(if first { b"" } else { b", " })
    }

    fn begin_object_key<W: ?Sized + std::io::Write>(&mut self, writer: &mut W, first: bool) -> std::io::Result<()> {
        writer.write_all(if first { b"" } else { b", " })
    }

    fn begin_object_value<W: ?Sized + std::io::Write>(&mut self, writer: &mut W) -> std::io::Result<()> {
        writer.write_all(b": ")
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// Qwen2.5's and Llama 3's templates, without their parts about tools.
    const CHATML: &str = "{%- if messages[0]['role'] == 'system' %}\n    {{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}\n{%- else %}\n    {{- '<|im_start|>system\\nYou are kind.<|im_end|>\\n' }}\n{%- endif %}\n{%- for message in messages %}\n    {%- if (message.role == \"user\") or (message.role == \"system\" and not loop.first) or (message.role == \"assistant\" and not message.tool_calls) %}\n        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}\n    {%- endif %}\n{%- endfor %}\n{%- if add_generation_prompt %}\n    {{- '<|im_start|>assistant\\n' }}\n{%- endif %}\n";
    const LLAMA: &str = "{{- bos_token }}\n{%- if not date_string is defined %}\n    {%- if strftime_now is defined %}\n        {%- set date_string = strftime_now(\"%d %b %Y\") %}\n    {%- endif %}\n{%- endif %}\n{%- if messages[0]['role'] == 'system' %}\n    {%- set system_message = messages[0]['content']|trim %}\n    {%- set messages = messages[1:] %}\n{%- else %}\n    {%- set system_message = \"\" %}\n{%- endif %}\n{%- if tools is not none %}\n    {{- raise_exception(\"no tools\") }}\n{%- endif %}\n{{- \"<|start_header_id|>system<|end_header_id|>\\n\\n\" + system_message + \"<|eot_id|>\" }}\n{%- for message in messages %}\n    {%- if message.role not in ['user', 'assistant'] %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}\n    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'].strip() + '<|eot_id|>' }}\n{%- endfor %}\n{%- if add_generation_prompt %}\n    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}\n{%- endif %}\n";

    #[test]
    fn a_template_ends() {
        let many = "{% for a in range(9999) %}{% for b in range(9999) %}{{ b }}{% endfor %}{% endfor %}";
        let template = ChatTemplate::new(many.to_owned(), Map::new()).unwrap();
        let error = template.render(&[]).unwrap_err();
        assert!(error.to_string().contains("fuel"), "{error}");
        // And one of use gets through a long conversation.
        let messages: Vec<Json> = (0..1000).map(|_| json!({ "role": "user", "content": "Hi" })).collect();
        let template = ChatTemplate::new(LLAMA.to_owned(), Map::from_iter([("bos_token".into(), "<s>".into())])).unwrap();
        assert_eq!(template.render(&messages).unwrap().matches("Hi<|eot_id|>").count(), 1000);
    }

    fn folder(files: &[(&str, String)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in files {
            std::fs::write(folder.path().join(name), text).unwrap();
        }
        folder
    }

    fn render(files: &[(&str, String)], messages: Json) -> Result<String, String> {
        let template = ChatTemplate::read(folder(files).path()).unwrap().unwrap();
        template.render(messages.as_array().unwrap()).map_err(|error| error.to_string())
    }

    #[test]
    fn templates_of_well_known_models_render_as_transformers_does() {
        let config = ("tokenizer_config.json", json!({ "chat_template": CHATML }).to_string());
        let messages = json!([{ "role": "user", "content": "Hi <b> & \"you\"" }, { "role": "assistant", "content": "Hello" },
            { "role": "user", "content": "Bye" }]);
        let expected = "<|im_start|>system\nYou are kind.<|im_end|>\n<|im_start|>user\nHi <b> & \"you\"<|im_end|>\n<|im_start|>assistant\nHello<|im_end|>\n<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n";
        assert_eq!(render(&[config], messages).unwrap(), expected);
        let bos = json!({ "content": "<|begin_of_text|>", "special": true });
        let config = ("tokenizer_config.json", json!({ "bos_token": bos, "chat_template": "unused" }).to_string());
        let files = [config, ("chat_template.jinja", LLAMA.to_owned())];
        let messages = json!([{ "role": "system", "content": " Be brief. " }, { "role": "user", "content": " Hi " }]);
        let expected = "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n";
        assert_eq!(render(&files, messages).unwrap(), expected);
        let refused = render(&files, json!([{ "role": "tool", "content": "x" }])).unwrap_err();
        assert!(refused.contains("Only user and assistant roles are supported!"), "{refused}");
    }

    #[test]
    fn of_several_templates_the_default_is_taken() {
        let named = json!({ "chat_template": [{ "name": "tool_use", "template": "no" },
            { "name": "default", "template": "{% for m in messages %}\n  {{ m | tojson }}{{ m.content.split(',')[0].upper() }}\n{% endfor %}" }] });
        let text = render(&[("tokenizer_config.json", named.to_string())], json!([{ "role": "user", "content": "é,<" }])).unwrap();
        assert_eq!(text, "  {\"content\": \"é,<\", \"role\": \"user\"}É\n");
    }

    #[test]
    fn what_is_no_template_is_refused_and_none_is_none() {
        assert!(ChatTemplate::read(folder(&[]).path()).unwrap().is_none());
        assert!(ChatTemplate::read(folder(&[("tokenizer_config.json", "{}".into())]).path()).unwrap().is_none());
        let broken = folder(&[("chat_template.jinja", "{% if %}".into())]);
        let error = ChatTemplate::read(broken.path()).err().unwrap().to_string();
        assert!(error.contains("chat_template.jinja: its chat template is no template"), "{error}");
        assert!(ChatTemplate::read(folder(&[("tokenizer_config.json", "{".into())]).path()).is_err());
    }
}
