//! Virtual time: what happens next, in one total order.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

/// Things that will happen. Those of the same moment happen in the order in which they were put down.
pub struct Agenda<E> {
    heap: BinaryHeap<Entry<E>>,
    now: u64,
    put_down: u64,
}

struct Entry<E> {
    at: u64,
    number: u64,
    event: E,
}

impl<E> Entry<E> {
    fn key(&self) -> (u64, u64) {
        (self.at, self.number)
    }
}

impl<E> PartialEq for Entry<E> {
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key()
    }
}

impl<E> Eq for Entry<E> {}

impl<E> PartialOrd for Entry<E> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<E> Ord for Entry<E> {
    /// The heap gives its greatest first; the earliest is wanted.
    fn cmp(&self, other: &Self) -> Ordering {
        other.key().cmp(&self.key())
    }
}

impl<E> Default for Agenda<E> {
    fn default() -> Self {
        Self { heap: BinaryHeap::new(), now: 0, put_down: 0 }
    }
}

impl<E> Agenda<E> {
    /// Milliseconds since the beginning.
    pub fn now(&self) -> u64 {
        self.now
    }

    /// At `at`, or now when that has passed.
    pub fn at(&mut self, at: u64, event: E) {
        self.put_down += 1;
        self.heap.push(Entry { at: at.max(self.now), number: self.put_down, event });
    }

    pub fn after(&mut self, wait: u64, event: E) {
        self.at(self.now.saturating_add(wait), event);
    }

    /// Lets time pass until the next event.
    pub fn next_event(&mut self) -> Option<E> {
        let Entry { at, event, .. } = self.heap.pop()?;
        self.now = at;
        Some(event)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_earliest_comes_first_and_equals_in_the_order_they_were_put_down() {
        let mut agenda = Agenda::default();
        for (wait, name) in [(5, "c"), (1, "a"), (5, "d"), (2, "b")] {
            agenda.after(wait, name);
        }
        let mut order = Vec::new();
        while let Some(name) = agenda.next_event() {
            order.push((agenda.now(), name));
        }
        assert_eq!(order, [(1, "a"), (2, "b"), (5, "c"), (5, "d")]);
        agenda.at(3, "late");
        assert_eq!((agenda.next_event(), agenda.now()), (Some("late"), 5), "time does not run backwards");
    }
}
