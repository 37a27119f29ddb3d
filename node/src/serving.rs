//! What a server on this machine answers from: a base, and what lies over it in directories that may change while it answers.
//!
//! A merged directory is named by what is in it and never written again, so what is read of one is one merge: it is put in the
//! place of the one before as a whole, once its hash is the receipt's. A directory that goes away takes its model with it: what
//! was withdrawn answers nobody new.

use std::future::Future;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, ensure};
use mingle_serve::{Access, ChatLayout, Kind, Limits, Server, Shelf, Speech};
use serde_json::{Value, json};

use crate::home::RoundHome;
use crate::merged::Proof;
use crate::merger::hash_of;
use crate::models::BaseModel;
use crate::models::device::{DeviceChoice, Precision};
use crate::peft::{self, DIFFERENCE, Update};

/// Where a server answers when nothing else is asked for.
pub const DEFAULT_ADDRESS: &str = "127.0.0.1:8080";
/// How often directories are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// A server, about to run.
pub struct Serving {
    pub base: PathBuf,
    pub device: DeviceChoice,
    pub precision: Option<Precision>,
    pub over: Over,
    pub listener: TcpListener,
    pub access: Access,
    pub limits: Limits,
    pub layout: ChatLayout,
}

/// What lies over the base.
pub enum Over {
    Nothing,
    /// A directory of PEFT's, or of a difference, as it is now.
    Adapter(PathBuf),
    /// What a peer with this home merges, and its own adapter, as they come.
    Round(RoundHome),
}

/// What a server tells of itself.
#[derive(Debug, Clone, PartialEq)]
pub enum Told {
    /// It answers, with these models.
    Answers {
        url: String,
        models: Vec<(&'static str, String)>,
        token: bool,
    },
    /// A model is another from now on.
    Model {
        id: &'static str,
        fingerprint: String,
    },
    /// A model is there no more.
    Gone {
        id: &'static str,
    },
    Trouble {
        why: String,
    },
}

impl Told {
    pub fn to_json(&self) -> Value {
        match self {
            Self::Answers { url, models, token } => {
                let models: Vec<Value> = models.iter().map(|(id, fingerprint)| json!({ "id": id, "fingerprint": fingerprint })).collect();
                json!({ "event": "serving", "url": url, "models": models, "token": token })
            }
            Self::Model { id, fingerprint } => json!({ "event": "serving_model", "id": id, "fingerprint": fingerprint }),
            Self::Gone { id } => json!({ "event": "serving_model_gone", "id": id }),
            Self::Trouble { why } => json!({ "event": "trouble", "why": why }),
        }
    }
}

impl std::fmt::Display for Told {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        match self {
            Self::Answers { url, models, token } => {
                let models: Vec<String> = models.iter().map(|(id, fingerprint)| named(id, fingerprint)).collect();
                let header = if *token { " -H \"Authorization: Bearer $MINGLE_TOKEN\"" } else { "" };
                writeln!(f, "answering at {url} from {}; try:", models.join(", "))?;
                write!(
                    f,
                    "  curl {url}/chat/completions -H 'Content-Type: application/json'{header} -d '{{\"messages\": [{{\"role\": \"user\", \"content\": \"Hello\"}}]}}'"
                )
            }
            Self::Model { id, fingerprint } => write!(f, "answering from {} from now on", named(id, fingerprint)),
            Self::Gone { id } => write!(f, "{id} answers no more: it was taken away"),
            Self::Trouble { why } => f.write_str(why),
        }
    }
}

fn named(id: &str, fingerprint: &str) -> String {
    if id == fingerprint { id.to_owned() } else { format!("{id} ({})", fingerprint.get(..16).unwrap_or(fingerprint)) }
}

impl Serving {
    /// Loads what there is and answers until `stopped` is ready. Connections that come before wait.
    ///
    /// # Errors
    /// A base or an adapter that cannot be used.
    pub fn run(self, tell: impl Fn(&Told) + Send + 'static, stopped: impl Future<Output = ()> + Send + 'static) -> Result<()> {
        let Self { base, device, precision, over, listener, access, limits, layout } = self;
        let address = listener.local_addr()?;
        let base = BaseModel::load_on(&base, &device.open()?, precision)?;
        let speech = Speech::read(base.dir(), base.config(), layout)?;
        let shelf = Arc::new(Shelf::default());
        shelf.put(Kind::Base, Kind::Base.name(), base.decoder());
        let mut watch = None;
        match over {
            Over::Nothing => {}
            Over::Adapter(folder) => put(&shelf, &base, Kind::Adapter, &folder)?,
            Over::Round(home) => {
                let mut first = Watch { home, base, shelf: shelf.clone(), merged: Seen::default(), own: Seen::default() };
                for told in first.look().iter().filter(|told| matches!(told, Told::Trouble { .. })) {
                    tell(told);
                }
                watch = Some(first);
            }
        }
        let models = shelf.all().iter().map(|model| (model.kind.name(), model.fingerprint.clone())).collect();
        tell(&Told::Answers { url: format!("http://{address}/v1"), models, token: access.needs_token() });
        let over = Arc::new(AtomicBool::new(false));
        let watching = watch.map(|mut watch| {
            let over = over.clone();
            let look = move || {
                while !over.load(Ordering::Relaxed) {
                    std::thread::sleep(LOOK_EVERY);
                    watch.look().iter().for_each(&tell);
                }
            };
            std::thread::Builder::new().name("merged".into()).stack_size(16 << 20).spawn(look)
        });
        watching.transpose().context("cannot start a thread")?;
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().context("cannot start the runtime")?;
        let done = runtime.block_on(Server { shelf, speech, access, limits }.run(listener, stopped));
        over.store(true, Ordering::Relaxed);
        // An answer that nobody waits for any more does not hold the program up.
        runtime.shutdown_background();
        done.context("cannot answer")
    }
}

/// The file of an adapter that its hash is the hash of.
fn weights_of(folder: &Path) -> PathBuf {
    let difference = folder.join(DIFFERENCE);
    if difference.exists() { difference } else { folder.join(peft::WEIGHTS) }
}

/// Puts an adapter over the base, by the hash of its bytes; that must be the receipt's where one is there.
fn put(shelf: &Shelf, base: &BaseModel, kind: Kind, folder: &Path) -> Result<()> {
    let weights = weights_of(folder);
    let found = hash_of(&weights).with_context(|| format!("cannot read {}", weights.display()))?;
    if kind == Kind::Merged {
        let expected = Proof::read(folder)?.receipt.merged;
        ensure!(found == expected, "{} has hash {found}, but its receipt says {expected}", weights.display());
    }
    let decoder = base.prepared(Update::read(folder)?.apply(base)?);
    shelf.put(kind, found.to_string(), decoder);
    Ok(())
}

/// What was read of a directory last.
#[derive(Default)]
struct Seen {
    /// Where it lay and when its weights were written.
    now: Option<(PathBuf, SystemTime)>,
    /// A state that could not be used: it is not tried again.
    refused: Option<(PathBuf, SystemTime)>,
}

/// Looks after the directories of one peer in one round.
struct Watch {
    home: RoundHome,
    base: BaseModel,
    shelf: Arc<Shelf>,
    merged: Seen,
    own: Seen,
}

impl Watch {
    /// Takes up what has changed since the last look.
    fn look(&mut self) -> Vec<Told> {
        let merged = look_at(&self.base, &self.shelf, Kind::Merged, &self.home.merged_current(), &mut self.merged);
        let own = look_at(&self.base, &self.shelf, Kind::Own, &self.home.adapter(), &mut self.own);
        merged.into_iter().chain(own).collect()
    }
}

fn look_at(base: &BaseModel, shelf: &Shelf, kind: Kind, folder: &Path, seen: &mut Seen) -> Option<Told> {
    let Some(there) = state_of(folder) else {
        seen.refused = None;
        return seen.now.take().map(|_| {
            shelf.remove(kind);
            Told::Gone { id: kind.name() }
        });
    };
    if seen.now.as_ref() == Some(&there) || seen.refused.as_ref() == Some(&there) {
        return None;
    }
    match put(shelf, base, kind, &there.0) {
        Ok(()) => {
            seen.now = Some(there);
            let fingerprint = shelf.get(kind).map(|model| model.fingerprint.clone()).unwrap_or_default();
            Some(Told::Model { id: kind.name(), fingerprint })
        }
        // Another took its place while it was read: the next look finds that.
        Err(_) if state_of(folder).as_ref() != Some(&there) => None,
        Err(error) => {
            let why = format!("{} cannot be served: {error:#}", there.0.display());
            seen.refused = Some(there);
            Some(Told::Trouble { why })
        }
    }
}

/// Where a link leads now, and when the weights there were written.
fn state_of(folder: &Path) -> Option<(PathBuf, SystemTime)> {
    let folder = folder.canonicalize().ok()?;
    let written = std::fs::metadata(weights_of(&folder)).and_then(|data| data.modified()).ok()?;
    Some((folder, written))
}
