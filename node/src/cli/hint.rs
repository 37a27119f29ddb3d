//! How an error reaches people: its facts as one sentence, and advice, which is added only here.

use mingle_protocol::adapter::LayersError;
use mingle_protocol::link::LinkError;
use mingle_protocol::round::RoundError;
use mingle_serve::{AccessError, TokenError};

use crate::bases::NotFound;
use crate::bases::hub::HubError;
use crate::data::DataError;
use crate::http::HttpError;
use crate::models::ModelError;
use crate::models::device::DeviceError;
use crate::network::NetworkError;
use crate::network::rounds::GetRoundError;
use crate::network::web::WebError;
use crate::store::StoreError;
use crate::train::TrainError;

/// The error and its causes, each said once: some errors speak of their cause themselves.
pub fn sentence(error: &anyhow::Error) -> String {
    error.chain().map(ToString::to_string).fold(String::new(), |said, cause| match said.is_empty() {
        true => cause,
        false if said.ends_with(&cause) => said,
        false => format!("{said}: {cause}"),
    })
}

/// What makes a training smaller; `mingle train --dry-run` shows by how much.
const LESS_MEMORY: &str = "try --recompute, or a lower --max-length, --batch-size, --rank or --precision";

/// One sentence of advice, where there is any.
pub fn hint(error: &anyhow::Error) -> Option<String> {
    for cause in error.chain() {
        let found = |text: &str| Some(text.to_owned());
        if let Some(StoreError::Held { .. }) = cause.downcast_ref() {
            return found("another mingle process uses this home; stop it, or give this one its own --home");
        }
        if let Some(NotFound { .. }) = cause.downcast_ref() {
            return found("give its directory with --base, put it into one of these places, or list the folder it is in in MINGLE_BASES");
        }
        if let Some(error) = cause.downcast_ref::<HubError>() {
            return Some(hub_hint(error).to_owned());
        }
        if let Some(GetRoundError::Unreached(_)) = cause.downcast_ref() {
            return found("ask who sent the link whether that peer runs and can be dialled from here, or for the round file itself");
        }
        if let Some(error) = cause.downcast_ref::<HttpError>() {
            return Some(http_hint(error).to_owned());
        }
        if let Some(error) = cause.downcast_ref::<TokenError>() {
            return found(token_hint(error));
        }
        if let Some(error) = cause.downcast_ref::<WebError>() {
            return Some(web_hint(error).to_owned());
        }
        if let Some(error) = cause.downcast_ref::<LinkError>() {
            return Some(link_hint(error));
        }
        if let Some(LayersError::Unknown { there, .. }) = cause.downcast_ref() {
            return Some(format!("the layers there are: {there}"));
        }
        if let Some(AccessError::Open { .. }) = cause.downcast_ref() {
            return found("make one, such as by `openssl rand -hex 24 > token`, and give it with --token-file token, or in $MINGLE_TOKEN");
        }
        if let Some(NetworkError::Listen { .. }) = cause.downcast_ref() {
            return found("another program may use this port; give another --listen address, or port 0 for any");
        }
        if let Some(DataError::Line { .. }) = cause.downcast_ref() {
            return found(
                "each line is one JSON object with instruction/output, question/answer, messages, text, or text/label; other columns are \
                 named with --map, such as --map instruction=prompt",
            );
        }
        if let Some(DataError::Form { reason, .. }) = cause.downcast_ref()
            && reason.starts_with("found the fields")
        {
            return found("name the columns with --map, such as --map instruction=prompt; `mingle preview` shows what comes of it");
        }
        if let Some(RoundError::Syntax(_)) = cause.downcast_ref() {
            return found("a round file is made by `mingle round new` and must not be edited");
        }
        if let Some(TrainError::OtherCheckpoint { path }) = cause.downcast_ref() {
            return Some(format!("go on with the settings it was begun with, or delete {} to begin anew", path.display()));
        }
        if let Some(TrainError::Diverged { .. }) = cause.downcast_ref() {
            return found("try a lower --learning-rate");
        }
        if let Some(TrainError::NothingToLearn { .. }) = cause.downcast_ref() {
            return found("raise --max-length");
        }
        if let Some(error) = cause.downcast_ref::<DeviceError>() {
            return device_hint(error);
        }
        if let Some(TrainError::NothingHeldOut) = cause.downcast_ref() {
            return found("keep some from training with --held-out");
        }
        if let Some(TrainError::DoesNotFit { .. }) = cause.downcast_ref() {
            return Some(format!("{LESS_MEMORY}; or begin anyway with --ignore-memory"));
        }
        if let Some(TrainError::OutOfMemory(_)) = cause.downcast_ref() {
            return Some(format!("{LESS_MEMORY}; the same command goes on from the last checkpoint"));
        }
    }
    if let Some(ModelError::File { path, .. }) = error.chain().find_map(|cause| cause.downcast_ref())
        && !path.exists()
    {
        return Some(
            "--base is a Hugging Face directory, or the name of a model (org/model) in the Hugging Face cache or on the hub".to_owned(),
        );
    }
    let text = sentence(error);
    let advice = [
        ("cannot read the round file mingle:", "this is a link: `mingle round get LINK` writes the round file"),
        (
            "receipt.json: No such file",
            "a merged directory has one: rounds/ROUND/merged/current in a home, or what `mingle fetch --out` wrote",
        ),
        ("has a label within", "raise --max-length; `mingle preview` shows what the model is given"),
        ("a round file is never overwritten", "name another --out"),
        ("no peer has run in", "name the home of the peer with --home"),
        ("must be given where members judge each other", "list the members with --member"),
        ("exists already; choose another", "remove it or name another --out"),
        (
            "is not a bundle to be used here",
            "ask for the file again, and compare the rounds with `mingle bundle show` and `mingle round show`",
        ),
        ("cannot answer at", "another program may use this port; give another address, or port 0 for any"),
        ("a key is never overwritten", "use `mingle key show`, or another --home for another institution"),
        ("cannot read the key", "make one with `mingle key new`"),
        ("names no peer to ask", "add the address of a peer that runs with --peer"),
        ("is not signed by its founders", "each founder signs it with `mingle round sign FILE`"),
        ("is not a founder of round", "`mingle key show` prints the key of this home; another home may hold a founder's (--home)"),
        ("has not approved", "approve it with `mingle roster sign FILE`"),
        ("approvals that the round asks for", "hand the file to more founders, who each approve it with `mingle roster sign FILE`"),
        ("was superseded", "see `mingle roster show`, and propose it again"),
        ("has no founders", "only a new round (`mingle round new`) can have other members"),
        ("is not in the roster", "ask the round's founders to list the key that `mingle key show` prints"),
        ("holds a base with digest", "every member must use the same base weights; compare with `mingle round show`"),
    ];
    advice.iter().find(|(part, _)| text.contains(part)).map(|(_, advice)| (*advice).to_owned())
}

fn hub_hint(error: &HubError) -> &'static str {
    match error {
        HubError::Offline { .. } => "give the directory of the base, fetch it once without HF_HUB_OFFLINE, or bring it with `hf download`",
        HubError::NotThere { .. } => {
            "see how the name is spelled (org/model); a private model needs $HF_TOKEN of an account that may read it"
        }
        HubError::Refused { .. } => "its page on the hub says how access is granted; then give the account's token in $HF_TOKEN",
        HubError::NoBase { .. } => {
            "a base is a directory with config.json, tokenizer.json and weights as safetensors; transformers' `save_pretrained` writes one"
        }
        HubError::Unreached { .. } | HubError::Busy { .. } | HubError::Answer { .. } => {
            "the same command goes on where it was; proxies are those of $HTTPS_PROXY, certificates those of the system or $SSL_CERT_FILE. Or \
             fetch the model elsewhere and give its directory"
        }
        HubError::Damaged { .. } => "the same command fetches that file anew",
        HubError::Disk { .. } => "make room, or name another cache in $HF_HOME",
        HubError::Write { .. } => "see whether this account may write there, or name another cache in $HF_HOME",
        HubError::Token(_) => "copy it again from the account's settings on the hub",
    }
}

fn http_hint(error: &HttpError) -> &'static str {
    match error {
        HttpError::NoToken { .. } => {
            "make a token (`openssl rand -hex 32 > http-token`) and give it with --http-token-file or $MINGLE_HTTP_TOKEN; or stay at 127.0.0.1"
        }
        HttpError::Token(error) => token_hint(error),
        HttpError::Listen { .. } => "another program may use this port; give another address to --http, or port 0 for any",
    }
}

fn token_hint(error: &TokenError) -> &'static str {
    match error {
        TokenError::Unfit { .. } => "`openssl rand -hex 32` makes a good one",
        TokenError::File { .. } => "see whether the file is there and whether this user may read it",
    }
}

fn web_hint(error: &WebError) -> &'static str {
    match error {
        WebError::Unreadable { .. } => "see whether the file is there and whether this user may read it",
        WebError::NoCertificate { .. } => {
            "the file must hold blocks that begin with -----BEGIN CERTIFICATE-----; `openssl x509` converts others"
        }
        WebError::NoKey { .. } => {
            "the file must hold a block that begins with -----BEGIN PRIVATE KEY-----, without a passphrase; `openssl pkey` converts others"
        }
        WebError::Mismatch { .. } => "give the key that the certificate was made with; in the chain the host's own certificate comes first",
        WebError::Certificate { .. } => "see what it is with `openssl x509 -text`, or ask the authority for it again",
    }
}

fn link_hint(error: &LinkError) -> String {
    match error {
        LinkError::One { .. } => "copy it again; if that is all there is, try it with that character changed".to_owned(),
        LinkError::Incomplete { .. } => "copy the whole line: a link may have been broken by the chat".to_owned(),
        _ => "copy it again from where `mingle round link` printed it, in quotation marks".to_owned(),
    }
}

fn device_hint(error: &DeviceError) -> Option<String> {
    match error {
        DeviceError::Device { .. } | DeviceError::PrecisionName { .. } => None,
        DeviceError::NotBuilt { feature, .. } => Some(format!(
            "install it with `cargo install --locked --path node --features {feature}` (docs/gpu.md says what that needs), or use --device cpu"
        )),
        DeviceError::Unavailable { .. } => {
            Some("see whether the GPU and its driver answer (for CUDA: `nvidia-smi`), or use --device auto or cpu".to_owned())
        }
        DeviceError::Precision { .. } => Some("leave --precision out, or use f32".to_owned()),
    }
}
