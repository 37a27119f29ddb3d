//! What keys do: they move the place, and never what is shown.

use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyEventKind, KeyModifiers};

/// The panes that can hold more than is seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Pane {
    #[default]
    Members,
    Happened,
}

/// Where somebody looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Place {
    pub focus: Pane,
    /// Rows above the first one that is seen.
    pub members: usize,
    pub happened: usize,
    pub help: bool,
}

/// Rows of a pane, and how many of them are seen at once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Extent {
    pub all: usize,
    pub seen: usize,
}

impl Extent {
    /// The largest number of rows above the first that is seen.
    pub fn last(self) -> usize {
        self.all.saturating_sub(self.seen)
    }
}

/// What was drawn of the panes that can be moved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Extents {
    pub members: Extent,
    pub happened: Extent,
}

/// What a key asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    Stay,
    /// Draw everything anew: another program may have written over it.
    Anew,
    Quit,
}

impl Place {
    /// Stays within what there is.
    pub fn keep_within(&mut self, extents: &Extents) {
        self.members = self.members.min(extents.members.last());
        self.happened = self.happened.min(extents.happened.last());
    }

    pub fn press(&mut self, key: KeyEvent, extents: &Extents) -> Wish {
        if key.kind == KeyEventKind::Release {
            return Wish::Stay;
        }
        if key.modifiers.contains(KeyModifiers::CONTROL) {
            return match key.code {
                KeyCode::Char('c' | 'd') => Wish::Quit,
                KeyCode::Char('l') => Wish::Anew,
                KeyCode::Char('f') => self.scroll(extents, |at, page| at.saturating_add(page)),
                KeyCode::Char('b') => self.scroll(extents, usize::saturating_sub),
                _ => Wish::Stay,
            };
        }
        match key.code {
            KeyCode::Char('q' | 'Q') => return Wish::Quit,
            KeyCode::Char('?' | 'h') | KeyCode::F(1) => self.help = !self.help,
            KeyCode::Esc if self.help => self.help = false,
            KeyCode::Esc => return Wish::Quit,
            KeyCode::Tab | KeyCode::BackTab => {
                self.focus = match self.focus {
                    Pane::Members => Pane::Happened,
                    Pane::Happened => Pane::Members,
                }
            }
            KeyCode::Down | KeyCode::Char('j') => return self.scroll(extents, |at, _| at.saturating_add(1)),
            KeyCode::Up | KeyCode::Char('k') => return self.scroll(extents, |at, _| at.saturating_sub(1)),
            KeyCode::PageDown | KeyCode::Char(' ') => return self.scroll(extents, |at, page| at.saturating_add(page)),
            KeyCode::PageUp => return self.scroll(extents, usize::saturating_sub),
            KeyCode::Home | KeyCode::Char('g') => return self.scroll(extents, |_, _| 0),
            KeyCode::End | KeyCode::Char('G') => return self.scroll(extents, |_, _| usize::MAX),
            _ => {}
        }
        Wish::Stay
    }

    /// Moves the pane that has the focus, by a rule of where it is and how many rows a page has.
    fn scroll(&mut self, extents: &Extents, to: impl Fn(usize, usize) -> usize) -> Wish {
        let (at, extent) = match self.focus {
            Pane::Members => (&mut self.members, extents.members),
            Pane::Happened => (&mut self.happened, extents.happened),
        };
        // A row is seen on both pages, to go on reading from.
        *at = to(*at, extent.seen.saturating_sub(1).max(1)).min(extent.last());
        Wish::Stay
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXTENTS: Extents = Extents { members: Extent { all: 40, seen: 10 }, happened: Extent { all: 3, seen: 5 } };

    fn press(place: &mut Place, code: KeyCode) -> Wish {
        place.press(KeyEvent::new(code, KeyModifiers::NONE), &EXTENTS)
    }

    #[test]
    fn a_pane_is_moved_as_far_as_it_goes() {
        let mut place = Place::default();
        let mut at = |code| {
            assert_eq!(press(&mut place, code), Wish::Stay);
            place.members
        };
        assert_eq!(at(KeyCode::Up), 0);
        assert_eq!(at(KeyCode::Down), 1);
        assert_eq!(at(KeyCode::Char('j')), 2);
        assert_eq!(at(KeyCode::Char('k')), 1);
        assert_eq!(at(KeyCode::PageDown), 10);
        assert_eq!(at(KeyCode::End), 30);
        assert_eq!(at(KeyCode::PageDown), 30);
        assert_eq!(at(KeyCode::PageUp), 21);
        assert_eq!(at(KeyCode::Home), 0);
    }

    #[test]
    fn the_focus_says_which_pane_and_a_pane_that_is_seen_whole_stays() {
        let mut place = Place::default();
        press(&mut place, KeyCode::Tab);
        press(&mut place, KeyCode::PageDown);
        assert_eq!(place, Place { focus: Pane::Happened, ..Place::default() });
        press(&mut place, KeyCode::BackTab);
        press(&mut place, KeyCode::Down);
        assert_eq!((place.focus, place.members), (Pane::Members, 1));
        place.keep_within(&Extents::default());
        assert_eq!(place.members, 0);
    }

    #[test]
    fn escape_leaves_the_help_before_it_leaves() {
        let mut place = Place::default();
        press(&mut place, KeyCode::Char('?'));
        assert!(place.help);
        assert_eq!(press(&mut place, KeyCode::Esc), Wish::Stay);
        assert!(!place.help);
        assert_eq!(press(&mut place, KeyCode::Esc), Wish::Quit);
        assert_eq!(press(&mut place, KeyCode::Char('q')), Wish::Quit);
        assert_eq!(place.press(KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL), &EXTENTS), Wish::Quit);
        assert_eq!(press(&mut place, KeyCode::Char('c')), Wish::Stay);
        let released = KeyEvent { kind: KeyEventKind::Release, ..KeyEvent::new(KeyCode::Char('q'), KeyModifiers::NONE) };
        assert_eq!(place.press(released, &EXTENTS), Wish::Stay);
    }
}
