//! Fetching a base from the Hugging Face hub into its cache, as far as it is not there.
//!
//! The cache is laid out as `huggingface_hub` lays it out, so each finds what the other fetched. Of a model only what a base
//! consists of is taken: configuration, tokenizer and safetensors, never code or pickles. The weights come first and
//! `config.json` last, so a directory that has one is whole.

mod transfer;

use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use ureq::http::{HeaderMap, Response, StatusCode, header};
use ureq::tls::{RootCerts, TlsConfig};
use ureq::{Agent, Body};

const ENDPOINT: &str = "https://huggingface.co";
const REVISION: &str = "main";
/// What is fetched beside the weights; of the last, in this order.
const BESIDE: [&str; 6] =
    ["generation_config.json", "special_tokens_map.json", "chat_template.jinja", "tokenizer_config.json", "tokenizer.json", "config.json"];
/// Without these it is no base.
const NEEDED: [&str; 2] = ["tokenizer.json", "config.json"];
const WEIGHTS: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
/// A list of a repository's files, or an index of shards, longer than this is refused.
const LIST_BYTES_MAX: u64 = 16 << 20;
/// Shards of a model: those of the largest that are published are some hundreds.
const SHARDS_MAX: usize = 2048;
const CONNECT_MAX: Duration = Duration::from_secs(15);
/// A server that says nothing for so long has gone.
const SILENCE_MAX: Duration = Duration::from_secs(30);

/// Why a model was not fetched.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    #[error("the hub is not asked for \"{name}\", since HF_HUB_OFFLINE is set")]
    Offline { name: String },
    #[error("{endpoint} has no model \"{name}\", or shows it only to some")]
    NotThere { endpoint: String, name: String },
    #[error("{endpoint} refuses the model \"{name}\" to {}", if *.token { "the account of this token" } else { "who shows no token" })]
    Refused { endpoint: String, name: String, token: bool },
    #[error("the model \"{name}\" has no {lacks}")]
    NoBase { name: String, lacks: &'static str },
    #[error("cannot reach {url}: {why}")]
    Unreached { url: String, why: String },
    #[error("{url} answered {why}")]
    Answer { url: String, why: String },
    #[error("{url} answered {why}")]
    Busy { url: String, why: String },
    #[error("what came as {file} is not what the hub promised: {why}")]
    Damaged { file: String, why: String },
    #[error("{path} has {free} left, but {needed} are to be fetched", free = crate::train::estimate::size(*.free), needed = crate::train::estimate::size(*.needed))]
    Disk { path: String, free: u64, needed: u64 },
    #[error("cannot write {path}: {why}")]
    Write { path: String, why: std::io::Error },
    #[error("{0}")]
    Token(String),
}

/// How far a fetch is.
#[derive(Clone, Copy, Debug)]
pub enum Fetching<'a> {
    /// What will be fetched, in bytes; none where all is there.
    Begins { files: usize, bytes: u64 },
    /// Another process fetches this file; it is waited for.
    Waits { file: &'a str },
    /// Bytes of all that are there.
    Has { file: &'a str, bytes: u64 },
    /// The connection broke; it goes on where it was.
    Again { file: &'a str, why: &'a str },
}

/// One hub and the cache for it.
pub struct Hub {
    endpoint: String,
    cache: PathBuf,
    token: Option<String>,
    agent: Agent,
}

/// A file of a model, as the hub speaks of it.
#[derive(Debug)]
struct Remote {
    file: String,
    etag: String,
    bytes: u64,
}

#[derive(Deserialize)]
struct Listing {
    sha: String,
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
struct Sibling {
    rfilename: String,
}

#[derive(Deserialize)]
struct ShardIndex {
    weight_map: std::collections::BTreeMap<String, String>,
}

impl fmt::Debug for Hub {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hub").field("endpoint", &self.endpoint).field("cache", &self.cache).finish_non_exhaustive()
    }
}

/// Whether a name is of the form `owner/model`, which a hub could know.
pub fn is_name(name: &str) -> bool {
    let part = |part: &str| {
        let letters = part.chars().all(|letter| letter.is_ascii_alphanumeric() || "-_.".contains(letter));
        letters && !part.is_empty() && part.len() <= 96 && !part.starts_with(['.', '-']) && !part.contains("..") && !part.contains("--")
    };
    name.split_once('/').is_some_and(|(owner, model)| part(owner) && part(model))
}

impl Hub {
    /// The hub that this process's environment speaks of (`HF_ENDPOINT`, `HF_TOKEN`), with this cache.
    ///
    /// # Errors
    /// Where the environment says that it is not to be asked, or holds no usable token.
    pub fn of_process(cache: &Path, name: &str) -> Result<Self, HubError> {
        let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.trim().is_empty());
        let switched = |name: &str| variable(name).is_some_and(|value| ["1", "ON", "YES", "TRUE"].contains(&value.to_uppercase().as_str()));
        if switched("HF_HUB_OFFLINE") {
            return Err(HubError::Offline { name: name.to_owned() });
        }
        let endpoint = variable("HF_ENDPOINT").unwrap_or_else(|| ENDPOINT.to_owned()).trim_end_matches('/').to_owned();
        // Where `hf auth login` writes it.
        let file = variable("HF_TOKEN_PATH").map(PathBuf::from).or_else(|| Some(cache.parent()?.join("token")));
        let kept = || file.and_then(|file| std::fs::read_to_string(file).ok()).filter(|_| !switched("HF_HUB_DISABLE_IMPLICIT_TOKEN"));
        let token = variable("HF_TOKEN").or_else(kept).map(|token| token.trim().to_owned()).filter(|token| !token.is_empty());
        if token.as_ref().is_some_and(|token| !token.chars().all(|letter| letter.is_ascii_graphic())) {
            return Err(HubError::Token("the token for the hub (HF_TOKEN) holds characters that no token has".to_owned()));
        }
        Ok(Self::new(endpoint, cache.to_owned(), token))
    }

    fn new(endpoint: String, cache: PathBuf, token: Option<String>) -> Self {
        // The system's certificates: an institution's network may have an authority of its own. Proxies are those of
        // HTTPS_PROXY and NO_PROXY.
        let tls = TlsConfig::builder().root_certs(RootCerts::PlatformVerifier).build();
        let agent = Agent::config_builder()
            .tls_config(tls)
            .http_status_as_error(false)
            .user_agent(concat!("mingle/", env!("CARGO_PKG_VERSION")))
            .redirect_auth_headers(ureq::config::RedirectAuthHeaders::SameHost)
            .timeout_connect(Some(CONNECT_MAX))
            .timeout_resolve(Some(CONNECT_MAX))
            .timeout_recv_response(Some(SILENCE_MAX))
            .timeout_per_read(Some(SILENCE_MAX))
            .build()
            .into();
        Self { endpoint, cache, token, agent }
    }

    /// The directory of a model: fetched, as far as it is not there.
    ///
    /// # Errors
    /// Why it is not here now. What was fetched stays, and the next call goes on from there.
    pub fn fetch(&self, name: &str, tell: &mut dyn FnMut(Fetching<'_>)) -> Result<PathBuf, HubError> {
        let listing = self.listing(name)?;
        let there = |file: &str| listing.siblings.iter().any(|sibling| sibling.rfilename == file);
        if let Some(lacks) = NEEDED.into_iter().find(|file| !there(file)) {
            return Err(HubError::NoBase { name: name.to_owned(), lacks });
        }
        let model = self.cache.join(format!("models--{}", name.replace('/', "--")));
        let place =
            transfer::Place { locks: self.cache.join(".locks").join(model.file_name().unwrap_or_default()), model, commit: &listing.sha };
        let mut files = match (there(WEIGHTS), there(INDEX)) {
            (true, _) => vec![WEIGHTS.to_owned()],
            (false, true) => {
                let index = self.remote(name, &listing.sha, INDEX)?;
                self.bring(name, &place, &index, tell, 0)?;
                let mut shards = shards(&place.file(INDEX), &there)?;
                shards.push(INDEX.to_owned());
                shards
            }
            (false, false) => return Err(HubError::NoBase { name: name.to_owned(), lacks: "weights as safetensors" }),
        };
        files.extend(BESIDE.into_iter().filter(|file| there(file)).map(str::to_owned));
        files.retain(|file| !place.file(file).exists());
        let remotes = files.iter().map(|file| self.remote(name, &listing.sha, file)).collect::<Result<Vec<_>, _>>()?;
        let bytes = remotes.iter().fold(0_u64, |sum, remote| sum.saturating_add(remote.bytes));
        if let Some(free) = crate::disk::free_bytes(&self.cache).filter(|free| *free < bytes) {
            return Err(HubError::Disk { path: self.cache.display().to_string(), free, needed: bytes });
        }
        tell(Fetching::Begins { files: remotes.len(), bytes });
        let mut before = 0;
        for remote in &remotes {
            self.bring(name, &place, remote, tell, before)?;
            before += remote.bytes;
        }
        place.name(REVISION)?;
        Ok(place.folder())
    }

    /// What the hub says of the model's newest state.
    fn listing(&self, name: &str) -> Result<Listing, HubError> {
        let url = format!("{}/api/models/{name}/revision/{REVISION}", self.endpoint);
        let mut answer = self.ask(&url, name, self.agent.get(&url))?;
        let wrong = |why: String| HubError::Answer { url: url.clone(), why };
        let text = answer.body_mut().with_config().limit(LIST_BYTES_MAX).read_to_vec().map_err(|error| wrong(error.to_string()))?;
        let listing: Listing =
            serde_json::from_slice(&text).map_err(|error| wrong(format!("something that is no list of files: {error}")))?;
        match is_word(&listing.sha) {
            true => Ok(listing),
            false => Err(wrong("a commit that is none".to_owned())),
        }
    }

    /// What a file is, without its bytes. What the hub says counts, not what a store of files behind it says.
    fn remote(&self, name: &str, commit: &str, file: &str) -> Result<Remote, HubError> {
        let mut url = self.url(name, commit, file);
        for _ in 0..5 {
            let request = self.agent.head(&url).header(header::ACCEPT_ENCODING, "identity").config().max_redirects(0).build();
            let answer = self.ask(&url, name, request)?;
            let text = |name: &str| answer.headers().get(name).and_then(|value| value.to_str().ok());
            let moved =
                text("location").filter(|place| answer.status().is_redirection() && place.starts_with('/') && !place.starts_with("//"));
            if let (Some(path), None) = (moved, text("x-linked-etag")) {
                url = format!("{}{path}", self.endpoint);
                continue;
            }
            let etag = text("x-linked-etag").or_else(|| text("etag")).map(|etag| etag.trim_start_matches("W/").trim_matches('"'));
            let bytes = text("x-linked-size").or_else(|| text("content-length")).and_then(|bytes| bytes.parse().ok());
            let (Some(etag), Some(bytes)) = (etag.filter(|etag| is_word(etag)), bytes) else {
                return Err(HubError::Answer { url, why: "without saying what the file is".to_owned() });
            };
            return Ok(Remote { file: file.to_owned(), etag: etag.to_owned(), bytes });
        }
        Err(HubError::Answer { url, why: "with one redirection after another".to_owned() })
    }

    fn url(&self, name: &str, commit: &str, file: &str) -> String {
        format!("{}/{name}/resolve/{commit}/{file}", self.endpoint)
    }

    /// Asks, and refuses the answers that bring nothing.
    fn ask(&self, url: &str, name: &str, request: ureq::RequestBuilder<ureq::typestate::WithoutBody>) -> Result<Response<Body>, HubError> {
        let request = match &self.token {
            Some(token) => request.header(header::AUTHORIZATION, format!("Bearer {token}")),
            None => request,
        };
        let answer = request.call().map_err(|error| HubError::Unreached { url: url.to_owned(), why: error.to_string() })?;
        let (endpoint, name) = (self.endpoint.clone(), name.to_owned());
        match answer.status() {
            status if status.is_success() || status.is_redirection() => Ok(answer),
            // The hub does not tell strangers whether there is such a model.
            StatusCode::NOT_FOUND => Err(HubError::NotThere { endpoint, name }),
            StatusCode::UNAUTHORIZED if gated(answer.headers()) => Err(HubError::Refused { endpoint, name, token: self.token.is_some() }),
            StatusCode::UNAUTHORIZED => Err(HubError::NotThere { endpoint, name }),
            StatusCode::FORBIDDEN => Err(HubError::Refused { endpoint, name, token: self.token.is_some() }),
            status if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS => {
                Err(HubError::Busy { url: url.to_owned(), why: status.to_string() })
            }
            status => Err(HubError::Answer { url: url.to_owned(), why: status.to_string() }),
        }
    }
}

fn gated(headers: &HeaderMap) -> bool {
    headers.get("x-error-code").is_some_and(|code| code == "GatedRepo")
}

/// Whether a text from the hub may become a file's name.
fn is_word(text: &str) -> bool {
    (1..=128).contains(&text.len()) && text.chars().all(|letter| letter.is_ascii_alphanumeric() || letter == '-')
}

/// The files of weights that an index names.
fn shards(index: &Path, there: &dyn Fn(&str) -> bool) -> Result<Vec<String>, HubError> {
    let wrong = |why: String| HubError::Damaged { file: INDEX.to_owned(), why };
    let size = std::fs::metadata(index).map_err(|error| wrong(error.to_string()))?.len();
    if size > LIST_BYTES_MAX {
        return Err(wrong(format!("{size} bytes are too many for it")));
    }
    let text = std::fs::read(index).map_err(|error| wrong(error.to_string()))?;
    let index: ShardIndex = serde_json::from_slice(&text).map_err(|error| wrong(error.to_string()))?;
    let shards: BTreeSet<String> = index.weight_map.into_values().collect();
    if let Some(odd) = shards.iter().find(|shard| shard.contains(['/', '\\']) || !shard.ends_with(".safetensors") || !there(shard)) {
        return Err(wrong(format!("it names \"{odd}\", which the model does not have")));
    }
    match shards.len() {
        1..=SHARDS_MAX => Ok(shards.into_iter().collect()),
        count => Err(wrong(format!("it names {count} files of weights"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_an_owner_and_a_model() {
        for name in ["TinyLlama/TinyLlama-1.1B-Chat-v1.0", "meta-llama/Llama-2-7b-hf", "a/b_c"] {
            assert!(is_name(name), "{name}");
        }
        for name in ["gpt2", "./a/b", "../b", "/a/b", "a/b/c", "a/", "/b", "a/..", "a/b--c", "a b/c", "a/b?x", "a/-b", "C:\\a/b"] {
            assert!(!is_name(name), "{name}");
        }
    }

    #[test]
    fn an_index_names_only_files_of_the_model() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join(INDEX);
        let read = |map: serde_json::Value| {
            std::fs::write(&path, serde_json::json!({ "weight_map": map }).to_string()).expect("written");
            shards(&path, &|file| file.starts_with("model-"))
        };
        let two = serde_json::json!({ "a": "model-2.safetensors", "b": "model-1.safetensors", "c": "model-2.safetensors" });
        assert_eq!(read(two).expect("an index"), ["model-1.safetensors", "model-2.safetensors"]);
        for odd in ["model-/../../x.safetensors", "model-1.bin", "other.safetensors"] {
            let error = read(serde_json::json!({ "a": odd })).expect_err(odd);
            assert!(error.to_string().contains(odd), "{error}");
        }
        assert!(read(serde_json::json!({})).is_err());
    }
}
