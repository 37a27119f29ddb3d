//! One answer as it comes from the engine: tokens in, pieces of text out.

use std::collections::VecDeque;
use std::sync::Arc;

use tokio::sync::mpsc;

use super::Desk;
use crate::engine::{End, Word};
use crate::sampling::Chosen;
use crate::stops::Stops;
use crate::unfolding::Unfolding;

/// What an answer says next.
#[derive(Debug, Default)]
pub struct Piece {
    /// Which of the request's answers.
    pub index: usize,
    pub text: String,
    /// The tokens whose text begins within what has been shown, where probabilities are asked for.
    pub tokens: Vec<Told>,
    pub end: Option<Ending>,
}

/// A token with its probabilities.
#[derive(Debug)]
pub struct Told {
    pub text: String,
    pub logprob: f32,
    pub top: Vec<(String, f32)>,
    /// Characters of the answer before it.
    pub at: usize,
}

/// How an answer ended.
#[derive(Debug, Clone, PartialEq)]
pub enum Ending {
    Done {
        /// `stop` or `length`.
        reason: &'static str,
        /// Tokens that were made for it, the ending one among them.
        tokens: usize,
    },
    Failed(String),
}

pub struct Answer {
    index: usize,
    desk: Arc<Desk>,
    words: mpsc::Receiver<Word>,
    unfolding: Unfolding,
    stops: Stops,
    logprobs: bool,
    told: VecDeque<Told>,
    /// Tokens made so far.
    said: usize,
    /// Characters that tokens have become, and those that were shown.
    written: usize,
    shown: usize,
    over: bool,
}

impl Answer {
    pub fn new(index: usize, desk: Arc<Desk>, words: mpsc::Receiver<Word>, unfolding: Unfolding, stops: Stops, logprobs: bool) -> Self {
        let told = VecDeque::new();
        Self { index, desk, words, unfolding, stops, logprobs, told, said: 0, written: 0, shown: 0, over: false }
    }

    /// The next piece that shows something; `None` behind the one with the end.
    pub async fn next(&mut self) -> Option<Piece> {
        while !self.over {
            let piece = match self.words.recv().await {
                Some(Word::Token(chosen)) => self.token(chosen),
                Some(Word::End(end)) => self.end(end),
                Some(Word::Failed(why)) => self.failed(why),
                None => self.failed("the engine has stopped".to_owned()),
            };
            if piece.end.is_some() || !piece.text.is_empty() || !piece.tokens.is_empty() {
                return Some(piece);
            }
        }
        None
    }

    fn token(&mut self, chosen: Chosen) -> Piece {
        self.said += 1;
        let text = match self.unfolding.push(chosen.token, self.desk.speech.tokens()) {
            Ok(text) => text,
            Err(error) => return self.failed(error.to_string()),
        };
        if self.logprobs {
            let piece = |token| self.desk.speech.piece(token);
            let top = chosen.top.iter().map(|(token, logprob)| (piece(*token), *logprob)).collect();
            self.told.push_back(Told { text: piece(chosen.token), logprob: chosen.logprob, top, at: self.written });
        }
        self.written += text.chars().count();
        let (text, stopped) = self.stops.push(&text);
        let mut piece = self.piece(text, false);
        if stopped {
            self.finish(&mut piece, "stop");
        }
        piece
    }

    fn end(&mut self, end: End) -> Piece {
        let rest = match self.unfolding.rest(self.desk.speech.tokens()) {
            Ok(rest) => rest,
            Err(error) => return self.failed(error.to_string()),
        };
        self.said += usize::from(end == End::Text);
        self.written += rest.chars().count();
        let (mut text, stopped) = self.stops.push(&rest);
        if !stopped {
            text += &self.stops.rest();
        }
        let mut piece = self.piece(text, !stopped);
        self.finish(&mut piece, if stopped || end == End::Text { "stop" } else { "length" });
        piece
    }

    fn piece(&mut self, text: String, all: bool) -> Piece {
        self.shown += text.chars().count();
        let count = if all { self.told.len() } else { self.told.iter().take_while(|told| told.at < self.shown).count() };
        Piece { index: self.index, text, tokens: self.told.drain(..count).collect(), end: None }
    }

    /// The engine hears from the closed queue that no more is wanted.
    fn finish(&mut self, piece: &mut Piece, reason: &'static str) {
        self.over = true;
        self.words.close();
        piece.end = Some(Ending::Done { reason, tokens: self.said });
    }

    fn failed(&mut self, why: String) -> Piece {
        self.over = true;
        Piece { index: self.index, end: Some(Ending::Failed(why)), ..Piece::default() }
    }
}
