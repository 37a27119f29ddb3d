//! Every rule with every kind, clipped or not: any history of arrivals, repetitions and departures gives the bytes of the set
//! that is left, which are the model's.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::model::{Adapter, Model};
use super::*;
use crate::adapter::{AdapterKind, FullShape, Scaling, SubspaceShape, Tensor, TensorList};
use crate::identity::MemberKey;
use crate::round::{Manifest, Round, WeightRule};

pub(super) const MEMBERS: u64 = 7;

/// The rules of rounds of seven.
fn rules() -> [MergeRule; 7] {
    let (trim, faulty) = (2, 2);
    [
        MergeRule::Mean,
        MergeRule::Stack,
        MergeRule::TrimmedMean { trim: 1 },
        MergeRule::TrimmedMean { trim },
        MergeRule::Median,
        MergeRule::MultiKrum { faulty: 1 },
        MergeRule::MultiKrum { faulty },
    ]
}

fn kinds() -> Vec<AdapterKind> {
    let module = |name: &str, inputs, outputs| Module { name: name.to_owned(), inputs, outputs };
    let lora = LoraShape::new(2, 3, [7; 32], vec![module("h.2", 3, 5), module("h.10", 4, 1)]);
    let saved = LoraShape { saved: vec![Tensor::new("head.weight", [2, 3])], ..lora.clone() };
    let weights = vec![Tensor::new("norm", [4]), Tensor::new("h.0.w", [2, 3])];
    vec![
        AdapterKind::Lora(lora.clone()),
        AdapterKind::Lora(LoraShape { scaling: Scaling::Rslora, ..lora.clone() }),
        AdapterKind::Lora(saved),
        AdapterKind::FrozenA(lora.clone()),
        AdapterKind::Subspace(SubspaceShape { seeds: 2, interval: 1, lora }),
        AdapterKind::Full(FullShape { weights }),
    ]
}

/// Every round that there may be of these, with two bounds of norms: one that most break, one that some do.
pub(super) fn rounds() -> Vec<Round> {
    let mut rounds = vec![];
    for kind in kinds() {
        for rule in rules() {
            for clip_millionths in [None, Some(100_000), Some(4_000_000)] {
                let weight = if rule.is_robust() { WeightRule::Equal } else { WeightRule::Examples { cap: 1 << 20 } };
                let basis = crate::round::tests::manifest();
                let manifest = Manifest { kind: kind.clone(), rule, weight, member_max: MEMBERS as u32, clip_millionths, ..basis };
                rounds.extend(Round::new(manifest));
            }
        }
    }
    rounds
}

#[test]
fn every_allowed_rule_and_kind_is_tried() {
    // Without saved tensors six rules and three bounds each, with them one bound; a stack of two kinds.
    assert_eq!(rounds().len(), 5 * 6 * 3 + 6 + 2 * 3);
}

/// The tensors of one adapter of a round: of a stack with ranks of its own.
fn tensors(round: &Round, draw: &mut Draw) -> TensorList {
    if !round.tensors().is_up_to() {
        return round.tensors().clone();
    }
    let mut ranks = BTreeMap::new();
    let mut of = |tensor: &Tensor| {
        let (module, half) = tensor.name.rsplit_once(".lora_").unwrap();
        let rank = *ranks.entry(module.to_owned()).or_insert_with(|| 1 + draw.below(2));
        let dims = if half == "A.weight" { [rank, tensor.dims[1]] } else { [tensor.dims[0], rank] };
        Tensor::new(tensor.name.clone(), dims)
    };
    FullShape { weights: round.tensors().iter().map(&mut of).collect() }.tensors().unwrap()
}

/// What a peer holds: the adapters, and running sums where the rule has them.
pub(super) struct Peer {
    pub plan: Plan,
    round: Round,
    pub running: Option<Accumulator>,
    held: BTreeMap<MemberKey, Adapter>,
}

impl Peer {
    pub fn new(round: &Round) -> Self {
        let plan = Plan::of(round);
        let running = plan.rule().runs().then(|| Accumulator::of(&plan));
        Self { plan, round: round.clone(), running, held: BTreeMap::new() }
    }

    fn layout(&self, adapter: &Adapter) -> Layout {
        crate::adapter::check(&adapter.file, self.round.tensors()).unwrap()
    }

    pub fn clip(&self, adapter: &Adapter) -> Factor {
        self.plan.clip(&self.layout(adapter), self.plan.updates(), &adapter.file).unwrap()
    }

    fn fold(&mut self, adapter: &Adapter, direction: Direction, pieces: usize) {
        let (layout, clip) = (self.layout(adapter), self.clip(adapter));
        let Some(running) = &mut self.running else { return };
        let mut fold = running.begin_clipped(&layout, clip, adapter.weight, direction).unwrap();
        layout.data_of(&adapter.file).chunks(pieces).for_each(|piece| fold.push(piece).unwrap());
        fold.finish().unwrap();
    }

    pub fn arrive(&mut self, adapter: &Adapter, pieces: usize) {
        self.leave(adapter.key, pieces);
        self.fold(adapter, Direction::Add, pieces);
        self.held.insert(adapter.key, adapter.clone());
    }

    fn leave(&mut self, key: MemberKey, pieces: usize) {
        let Some(gone) = self.held.remove(&key) else { return };
        if self.plan.rule() == MergeRule::Mean {
            return self.fold(&gone, Direction::Retract, pieces);
        }
        if let Some(running) = &mut self.running {
            let layout = crate::adapter::check(&gone.file, self.round.tensors()).unwrap();
            assert!(matches!(running.begin(&layout, gone.weight, Direction::Retract), Err(MergeError::InsertOnly)));
            *running = Accumulator::of(&self.plan);
            let rest: Vec<Adapter> = self.held.values().cloned().collect();
            rest.iter().for_each(|adapter| self.fold(adapter, Direction::Add, pieces));
        }
    }

    pub fn recomputed(&self, draw: &mut Draw) -> Result<(Vec<u8>, Made), MergeError> {
        let mut held: Vec<(&Adapter, Layout)> = self.held.values().map(|adapter| (adapter, self.layout(adapter))).collect();
        for index in (1..held.len()).rev() {
            held.swap(index, draw.below(index as u64 + 1) as usize);
        }
        let member = |(adapter, layout): &'_ (&'_ Adapter, Layout)| -> Factor {
            self.plan.clip(layout, self.plan.updates(), &adapter.file).unwrap()
        };
        let clips: Vec<Factor> = held.iter().map(member).collect();
        let members = held.iter().zip(clips).map(|((held, layout), clip)| Member {
            key: held.key,
            adapter: held.hash(),
            weight: held.weight,
            clip,
            layout,
            updates: self.plan.updates(),
            data: &held.file,
        });
        let mut file = vec![];
        let made = self.plan.recompute(&members.collect::<Vec<_>>(), |piece| {
            file.extend_from_slice(piece);
            Ok::<(), MergeError>(())
        })?;
        Ok((file, made))
    }

    /// The merged bytes, both ways where there are two, which must be the model's; or how many adapters are missing.
    pub fn check(&self, draw: &mut Draw) -> Result<Vec<u8>, u64> {
        let model = Model::new(&self.round);
        let adapters: Vec<&Adapter> = self.held.values().collect();
        let expected = if adapters.is_empty() { Err(0) } else { model.merge(&adapters) };
        let named = format!("{:?} of {} adapters, kind {}", self.plan.rule(), adapters.len(), self.round.kind().name());
        let missing = |error: MergeError| match error {
            MergeError::Empty => 0,
            MergeError::TooFew { needs, .. } => needs,
            other => panic!("{named}: {other}"),
        };
        let recomputed = self.recomputed(draw);
        if let Some(running) = &self.running {
            let running = running.finalise_as(self.round.merged()).map_err(missing);
            assert!(running == expected, "running {named}");
        }
        if let Ok((_, made)) = &recomputed {
            let clips = adapters.iter().map(|adapter| (adapter.key, Factor::try_from(model.clip(adapter)).unwrap()));
            let mut account = Account::of_clips(clips);
            if let MergeRule::MultiKrum { faulty } = self.plan.rule() {
                let kept = model.kept(&adapters, faulty as usize);
                account.left_out =
                    adapters.iter().map(|adapter| adapter.key).filter(|key| kept.iter().all(|kept| kept.key != *key)).collect();
                assert_eq!(account.left_out.len(), faulty as usize);
            }
            assert_eq!(made.account, account, "{named}");
        }
        let recomputed = recomputed.map(|(file, _)| file).map_err(missing);
        assert!(recomputed == expected, "recomputed {named}");
        expected
    }
}

pub(super) fn key(number: u64) -> MemberKey {
    MemberKey([number as u8; 32])
}

pub(super) fn adapter(round: &Round, draw: &mut Draw, member: u64) -> Adapter {
    let weight = if round.manifest().rule.is_robust() { 1 } else { 1 + draw.below(1 << 20) };
    let tensors = tensors(round, draw);
    Adapter::drawn(draw, key(member), weight, &tensors)
}

/// One history of a round: every few steps, and at its end, the merge is the model's.
fn history(round: &Round, seed: u64) {
    let mut draw = Draw(seed);
    let mut peer = Peer::new(round);
    let first = draw.below(MEMBERS);
    for member in 0..first {
        peer.arrive(&adapter(round, &mut draw, member), 1 << 20);
    }
    for _ in 0..1 + draw.below(6) {
        let (member, pieces) = (draw.below(MEMBERS), [5, 64, 1 << 20][draw.below(3) as usize]);
        match draw.below(4) {
            0 => peer.leave(key(member), pieces),
            1 => {
                let again = peer.held.get(&key(member)).cloned();
                again.into_iter().for_each(|adapter| peer.arrive(&adapter, pieces));
            }
            _ => peer.arrive(&adapter(round, &mut draw, member), pieces),
        }
    }
    // Several members with one and the same file, for ties.
    if draw.below(4) == 0
        && let Some(one) = peer.held.values().next().cloned()
    {
        for member in [5, 6] {
            peer.arrive(&Adapter { key: key(member), ..one.clone() }, 64);
        }
    }
    _ = peer.check(&mut draw);
}

/// 10,000 histories, or as many as `MINGLE_HISTORIES` says, over all rounds in turn.
#[test]
fn any_history_by_any_rule_merges_to_the_bytes_of_its_last_state() {
    let histories = std::env::var("MINGLE_HISTORIES").ok().and_then(|text| text.parse().ok()).unwrap_or(10_000);
    let rounds = rounds();
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get) as u64;
    std::thread::scope(|scope| {
        for thread in 0..threads {
            let rounds = &rounds;
            scope.spawn(move || {
                for seed in (thread..histories).step_by(threads as usize) {
                    history(&rounds[seed as usize % rounds.len()], seed);
                }
            });
        }
    });
}

/// Every rule merges seven adapters that are each within the bound to one file, whatever the order they came in.
#[test]
fn every_rule_gives_one_hash_in_every_order_of_arrival() {
    for round in rounds() {
        let mut draw = Draw(3);
        let mut adapters: Vec<Adapter> = (0..MEMBERS).map(|member| adapter(&round, &mut draw, member)).collect();
        let mut hashes = std::collections::BTreeSet::new();
        for _ in 0..4 {
            adapters.rotate_left(2);
            let mut peer = Peer::new(&round);
            adapters.iter().for_each(|adapter| peer.arrive(adapter, 100));
            hashes.insert(ContentHash::of(&peer.check(&mut draw).unwrap()));
        }
        assert_eq!(hashes.len(), 1);
    }
}

/// The norm that is clipped is that of the formed update, and what is left of it is within the bound.
#[test]
fn a_clipped_update_is_within_its_bound() {
    let mut clipped = 0;
    for round in rounds().iter().filter(|round| round.manifest().clip_millionths.is_some()) {
        let (mut draw, model) = (Draw(11), Model::new(round));
        for member in 0..6 {
            let adapter = adapter(round, &mut draw, member);
            let formed = model.updates(&adapter);
            let norm = formed.iter().map(|x| x * x).sum::<f64>().sqrt();
            let norm_squared = model.product(&adapter, &adapter);
            assert!((norm_squared.sqrt() - norm).abs() <= 1e-9 * norm, "{norm} {norm_squared}");
            let tau = round.manifest().clip_millionths.unwrap() as f64 / 1e6;
            let factor = Peer::new(round).clip(&adapter);
            assert!(factor.value() * norm <= tau * (1.0 + 1e-12));
            assert!(factor == Factor::ONE || (factor.value() + 1.0 / f64::from(1 << 24)) * norm > tau * (1.0 - 1e-12));
            assert_eq!(factor == Factor::ONE, norm <= tau, "{norm} of {tau}");
            clipped += usize::from(factor != Factor::ONE);
        }
    }
    assert!(clipped > 100, "only {clipped} were clipped");
}

proptest! {
    /// Widths beyond a block, both ways a matrix may lie, and ranks that differ.
    #[test]
    fn products_are_summed_in_the_order_that_is_written_down(seed in any::<u64>(), inputs in 1u64..3000, outputs in 1u64..3000, rank in 1u32..4) {
        let module = Module { name: "m".into(), inputs, outputs };
        let kind = AdapterKind::Lora(LoraShape::new(rank, 2, [1; 32], vec![module]));
        let manifest = Manifest { kind, clip_millionths: Some(1_000), ..crate::round::tests::manifest() };
        let round = Round::new(manifest).unwrap();
        let (mut draw, model, plan) = (Draw(seed), Model::new(&round), Plan::of(&round));
        let adapter = adapter(&round, &mut draw, 1);
        let layout = crate::adapter::check(&adapter.file, round.tensors()).unwrap();
        let factor = plan.clip(&layout, plan.updates(), &adapter.file).unwrap();
        prop_assert_eq!(u32::from(factor), model.clip(&adapter));
        let squared = super::super::products::norm_squared(&layout, plan.updates(), &adapter.file).unwrap();
        prop_assert_eq!(squared.to_bits(), model.product(&adapter, &adapter).to_bits());
    }
}

/// More rows than are multiplied at once: members in several groups, of a rank that a group has no whole number of.
#[test]
fn products_do_not_depend_on_how_members_are_grouped() {
    for kind in [AdapterKind::Lora as fn(LoraShape) -> AdapterKind, AdapterKind::FrozenA] {
        let module = Module { name: "m".into(), inputs: 3, outputs: 4 };
        let kind = kind(LoraShape::new(300, 2, [1; 32], vec![module]));
        let round = Round::new(Manifest { kind, ..crate::round::tests::manifest() }).unwrap();
        let (mut draw, model, peer) = (Draw(8), Model::new(&round), Peer::new(&round));
        let adapters: Vec<Adapter> = (0..5).map(|member| adapter(&round, &mut draw, member)).collect();
        let layouts: Vec<Layout> = adapters.iter().map(|adapter| peer.layout(adapter)).collect();
        let members = adapters.iter().zip(&layouts).map(|(adapter, layout)| Member {
            key: adapter.key,
            adapter: adapter.hash(),
            weight: 1,
            clip: Factor::ONE,
            layout,
            updates: peer.plan.updates(),
            data: &adapter.file,
        });
        let updated: Vec<_> = members.collect::<Vec<Member<'_>>>().iter().map(Into::into).collect();
        let products = super::super::products::products(&updated).unwrap();
        for (i, one) in adapters.iter().enumerate() {
            for (j, other) in adapters.iter().enumerate().skip(i) {
                assert_eq!(products[i * 5 + j].to_bits(), model.product(one, other).to_bits(), "{i} {j}");
            }
        }
    }
}
