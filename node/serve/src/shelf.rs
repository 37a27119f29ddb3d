//! The models that can be asked, by name. One is put in another's place as a whole: who was given a model keeps it to the end
//! of its answer, whatever stands on the shelf by then.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{SystemTime, UNIX_EPOCH};

use mingle_trainer::models::Decoder;
use serde_json::{Value, json};

/// What a model is, in the order in which one is taken where a request names none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// The base with what a round has merged.
    Merged,
    /// The base with an adapter that was given.
    Adapter,
    /// The base with this member's own adapter.
    Own,
    Base,
}

impl Kind {
    /// The name that requests use.
    pub fn name(self) -> &'static str {
        match self {
            Self::Merged => "merged",
            Self::Adapter => "adapter",
            Self::Own => "own",
            Self::Base => "base",
        }
    }
}

/// One whole model.
pub struct Model {
    pub kind: Kind,
    /// Which weights these are: the hash of what lies over the base, or `base`.
    pub fingerprint: String,
    pub decoder: Decoder,
    /// When it was put here, in seconds since 1970.
    created: u64,
}

impl Model {
    /// As `/v1/models` shows it.
    pub fn to_json(&self) -> Value {
        json!({ "id": self.kind.name(), "object": "model", "created": self.created, "owned_by": "mingle",
            "fingerprint": self.fingerprint, "max_model_len": self.decoder.config().positions_max })
    }
}

/// All models of one base.
#[derive(Default)]
pub struct Shelf(RwLock<BTreeMap<Kind, Arc<Model>>>);

impl Shelf {
    /// Puts a model in its kind's place: requests from now on are answered by it.
    pub fn put(&self, kind: Kind, fingerprint: impl Into<String>, decoder: Decoder) {
        let created = seconds_now();
        let model = Model { kind, fingerprint: fingerprint.into(), decoder, created };
        self.0.write().unwrap_or_else(PoisonError::into_inner).insert(kind, Arc::new(model));
    }

    /// Takes a kind away: it is not there for requests from now on.
    pub fn remove(&self, kind: Kind) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).remove(&kind);
    }

    /// All models, the one first that is taken where a request names none.
    pub fn all(&self) -> Vec<Arc<Model>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    /// The model of a kind.
    pub fn get(&self, kind: Kind) -> Option<Arc<Model>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).get(&kind).cloned()
    }

    /// The model of a name; without one the first.
    pub fn find(&self, name: Option<&str>) -> Option<Arc<Model>> {
        self.all().into_iter().find(|model| name.is_none_or(|name| model.kind.name() == name))
    }
}

pub(crate) fn seconds_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
