//! The engine: one thread that carries all sequences on, pass by pass.
//!
//! Requests join between two passes and leave when they end, or when nobody listens any more. In a pass those of one model
//! stand side by side, each by one token or by a part of its prompt; sequences of several models take turns. What a sequence
//! gets does not depend on those beside it, so its answer is the one it would get alone.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

use mingle_trainer::models::{KvCache, Step};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use crate::sampling::{Chosen, Sampler, Sampling};
use crate::shelf::Model;

/// How much is done at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Sequences of a pass.
    pub streams: usize,
    /// Sequences that may wait for one of these places; further requests are refused.
    pub waiting: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { streams: 16, waiting: 64 }
    }
}

/// Tokens of prompts that a pass takes in: what others wait for their next token meanwhile. A prompt is cut at multiples of it,
/// whoever stands beside, so that its parts are always the same.
const PROMPT_PART: usize = 256;

/// Why a sequence ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The model ended its text.
    Text,
    /// As many tokens were said as may be.
    Length,
}

/// What the engine says of a sequence.
#[derive(Debug)]
pub enum Word {
    Token(Chosen),
    End(End),
    Failed(String),
}

/// One sequence that is asked for.
pub struct Order {
    pub model: Arc<Model>,
    /// One token at least.
    pub prompt: Vec<u32>,
    pub sampling: Sampling,
    /// Tokens said at most, one at least.
    pub tokens_max: usize,
    /// Tokens that end the text.
    pub ends: BTreeSet<u32>,
    /// Whoever drops the other end has lost interest.
    pub to: mpsc::Sender<Word>,
    #[allow(dead_code)] // It is held, not read.
    pub place: Place,
}

/// A sequence's right to be here: given back when it is dropped.
pub struct Place(#[allow(dead_code)] OwnedSemaphorePermit);

/// The door to the thread.
#[derive(Clone)]
pub struct Engine {
    orders: mpsc::Sender<Order>,
    places: Arc<Semaphore>,
    /// Of all of these.
    places_max: usize,
}

impl Engine {
    /// Starts the thread; it ends when no door to it is left.
    ///
    /// # Errors
    /// A thread that cannot be started.
    pub fn start(limits: Limits) -> std::io::Result<Self> {
        let streams = limits.streams.max(1);
        let places_max = streams + limits.waiting;
        let (sender, orders) = mpsc::channel(places_max);
        let run = move || Loop { orders, streams, waiting: VecDeque::new(), running: Vec::new() }.run();
        std::thread::Builder::new().name("engine".into()).stack_size(16 << 20).spawn(run)?;
        Ok(Self { orders: sender, places: Arc::new(Semaphore::new(places_max)), places_max })
    }

    /// Places for so many sequences, all or none.
    pub fn places(&self, count: usize) -> Option<Vec<Place>> {
        let mut all = self.places.clone().try_acquire_many_owned(u32::try_from(count).ok()?).ok()?;
        let mut places: Vec<Place> = (1..count).filter_map(|_| all.split(1)).map(Place).collect();
        places.push(Place(all));
        Some(places)
    }

    /// How many sequences there can be at once, those that wait among them.
    pub fn places_max(&self) -> usize {
        self.places_max
    }

    /// Hands a sequence over; whether the engine still runs.
    pub fn order(&self, order: Order) -> bool {
        // There is room for whoever holds a place.
        self.orders.try_send(order).is_ok()
    }

    pub fn runs(&self) -> bool {
        !self.orders.is_closed()
    }
}

struct Loop {
    orders: mpsc::Receiver<Order>,
    streams: usize,
    waiting: VecDeque<Order>,
    running: Vec<Sequence>,
}

struct Sequence {
    order: Order,
    cache: KvCache,
    sampler: Sampler,
    /// The last token said, which the model has not seen yet.
    last: [u32; 1],
    said: usize,
    /// Heard to the end, or not listened to any more.
    over: bool,
}

impl Loop {
    fn run(mut self) {
        while self.take_orders() {
            let mut models: Vec<Arc<Model>> = Vec::new();
            for sequence in &self.running {
                if !models.iter().any(|model| Arc::ptr_eq(model, &sequence.order.model)) {
                    models.push(sequence.order.model.clone());
                }
            }
            for model in models {
                self.pass(&model);
                self.running.retain(|sequence| !sequence.over);
            }
        }
    }

    /// Lets requests in; waits where there are none. Whether there can be any more.
    fn take_orders(&mut self) -> bool {
        if self.running.is_empty() && self.waiting.is_empty() {
            match self.orders.blocking_recv() {
                Some(order) => self.waiting.push_back(order),
                None => return false,
            }
        }
        while let Ok(order) = self.orders.try_recv() {
            self.waiting.push_back(order);
        }
        self.waiting.retain(|order| !order.to.is_closed());
        self.running.retain(|sequence| !sequence.order.to.is_closed());
        while self.running.len() < self.streams
            && let Some(order) = self.waiting.pop_front()
        {
            let sampler = Sampler::new(order.sampling.clone());
            self.running.push(Sequence { order, cache: KvCache::default(), sampler, last: [0], said: 0, over: false });
        }
        true
    }

    /// Carries the sequences of one model on.
    fn pass(&mut self, model: &Model) {
        let (mut taken, mut asked, mut steps, mut prompts) = (Vec::new(), Vec::new(), Vec::new(), 0);
        for (index, sequence) in self.running.iter_mut().enumerate().filter(|(_, sequence)| sequence.is_of(model)) {
            let Sequence { order, cache, last, .. } = sequence;
            let rest = order.prompt.get(cache.tokens()..).unwrap_or_default();
            let (tokens, wanted): (&[u32], bool) = match rest.len() {
                0 => (&last[..], true),
                left => (&rest[..left.min(PROMPT_PART)], left <= PROMPT_PART),
            };
            if !rest.is_empty() {
                if prompts > 0 && prompts + tokens.len() > PROMPT_PART {
                    continue;
                }
                prompts += tokens.len();
            }
            taken.push(index);
            asked.extend(wanted.then_some(index));
            steps.push(Step { tokens, cache, wanted });
        }
        // On the threads that its products are split over, so that none of them is called from outside.
        let (logits, ()) = rayon::join(|| model.decoder.advance(&mut steps), || ());
        drop(steps);
        match logits {
            Err(error) => taken.into_iter().for_each(|index| self.running[index].fail(&error.to_string())),
            Ok(mut logits) => {
                let rows = logits.chunks_exact_mut(model.decoder.config().vocabulary);
                asked.into_iter().zip(rows).for_each(|(index, logits)| self.running[index].say(logits));
            }
        }
    }
}

impl Sequence {
    fn is_of(&self, model: &Model) -> bool {
        std::ptr::eq(&*self.order.model, model)
    }

    fn fail(&mut self, why: &str) {
        self.over = true;
        let _ = self.order.to.try_send(Word::Failed(why.to_owned()));
    }

    /// Chooses the next token and tells it.
    fn say(&mut self, logits: &mut [f32]) {
        let Some(choice) = self.sampler.choose(logits) else { return self.fail("the model gave something that is no number") };
        self.last = [choice.token];
        self.said += 1;
        let end = match (self.order.ends.contains(&choice.token), self.said >= self.order.tokens_max) {
            (true, _) => Some(End::Text),
            (false, true) => Some(End::Length),
            (false, false) => None,
        };
        if end != Some(End::Text) {
            // The queue holds all that may be said: who cannot be sent to has gone.
            self.over = self.order.to.try_send(Word::Token(choice)).is_err();
        }
        if let Some(end) = end {
            self.over = true;
            let _ = self.order.to.try_send(Word::End(end));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::sampling::tests::greedy;
    use crate::shelf::{Kind, Shelf};
    use crate::speech::testing;

    /// The same base under two names, the other with its last norm turned: it says something else.
    fn shelf() -> (tempfile::TempDir, Shelf) {
        let (folder, base) = testing::base();
        let shelf = Shelf::default();
        shelf.put(Kind::Base, "base", base.decoder());
        let norm = base.parameter("model.norm.weight").unwrap();
        let replaced = [("model.norm.weight".to_owned(), (norm * -1.0).unwrap())].into();
        let parts = mingle_trainer::models::Attached { replaced, ..Default::default() };
        shelf.put(Kind::Merged, "turned", base.prepared(base.attach(&parts).unwrap()));
        (folder, shelf)
    }

    fn order(engine: &Engine, shelf: &Shelf, kind: Kind, seed: u64) -> mpsc::Receiver<Word> {
        let prompt = (0..3 + seed * 97 % 60).map(|i| (i * 13 + seed) as u32 % 256).collect();
        let tokens_max = 4 + seed as usize % 9;
        let sampling = Sampling { seed, temperature: if seed.is_multiple_of(2) { 0.0 } else { 1.0 }, ..greedy() };
        let (to, words) = mpsc::channel(tokens_max + 1);
        let place = engine.places(1).expect("a place").remove(0);
        let model = shelf.get(kind).unwrap();
        assert!(engine.order(Order { model, prompt, sampling, tokens_max, ends: BTreeSet::new(), to, place }));
        words
    }

    fn heard(mut words: mpsc::Receiver<Word>) -> Vec<u32> {
        let mut tokens = Vec::new();
        loop {
            match words.blocking_recv() {
                Some(Word::Token(chosen)) => tokens.push(chosen.token),
                Some(Word::End(end)) => {
                    assert_eq!(end, End::Length);
                    return tokens;
                }
                other => panic!("{other:?} after {tokens:?}"),
            }
        }
    }

    /// More sequences than there are streams, of two models, joining at any time: each says what it says alone.
    #[test]
    fn nobody_hears_who_stands_beside() {
        let (_folder, shelf) = shelf();
        let engine = Engine::start(Limits { streams: 5, waiting: 100 }).unwrap();
        let kind = |seed: u64| if seed.is_multiple_of(3) { Kind::Merged } else { Kind::Base };
        let alone: Vec<Vec<u32>> = (0..24).map(|seed| heard(order(&engine, &shelf, kind(seed), seed))).collect();
        let together: Vec<_> = (0..24).map(|seed| order(&engine, &shelf, kind(seed), seed)).collect();
        let together: Vec<Vec<u32>> = together.into_iter().map(heard).collect();
        assert_eq!(alone, together);
        assert_ne!(heard(order(&engine, &shelf, Kind::Base, 6)), alone[6], "the models differ");
    }

    #[test]
    fn places_are_bounded_and_come_back() {
        let (_folder, shelf) = shelf();
        let engine = Engine::start(Limits { streams: 1, waiting: 2 }).unwrap();
        assert!(engine.places(4).is_none());
        let places = engine.places(3).unwrap();
        assert!(places.len() == 3 && engine.places(1).is_none());
        drop(places);
        // Nobody listens: the places are free again without anything being said.
        (0..3).for_each(|seed| drop(order(&engine, &shelf, Kind::Base, seed)));
        for _ in 0..1000 {
            if engine.places(3).is_some() {
                return assert!(engine.runs());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        panic!("the places of requests that went away are not given back");
    }

    #[test]
    fn a_pass_that_fails_is_told_and_survived() {
        let (_folder, shelf) = shelf();
        let engine = Engine::start(Limits::default()).unwrap();
        let (to, mut words) = mpsc::channel(9);
        let place = engine.places(1).unwrap().remove(0);
        let model = shelf.get(Kind::Base).unwrap();
        engine.order(Order { model, prompt: vec![9999], sampling: greedy(), tokens_max: 3, ends: BTreeSet::new(), to, place });
        assert!(matches!(words.blocking_recv(), Some(Word::Failed(why)) if why.contains("9999")));
        assert_eq!(heard(order(&engine, &shelf, Kind::Base, 1)).len(), 5);
    }
}
