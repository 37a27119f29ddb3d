//! The scores of every rule under every attack, for people and for programs.

use std::fmt::Write as _;

/// What every rule scores under one attack.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Row {
    pub attackers: u32,
    /// None where nobody attacks.
    pub attack: Option<String>,
    /// In the table's order of rules, of a hundred.
    pub scores: Vec<f64>,
}

/// What was measured.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Table {
    pub method: String,
    pub members: u32,
    pub questions: usize,
    /// Largest norm of an update, where it is clipped.
    pub clip: f64,
    /// What the base scores by itself.
    pub base: f64,
    pub rules: Vec<String>,
    pub rows: Vec<Row>,
}

impl Table {
    pub fn text(&self) -> String {
        let mut text = format!(
            "Held-out questions answered exactly, of a hundred ({} questions; the base alone: {:.1}).\n{} members of a {} round; clip at {:.2}.\n\n{:32}",
            self.questions, self.base, self.members, self.method, self.clip, ""
        );
        for rule in &self.rules {
            let _ = write!(text, "{rule:>20}");
        }
        for row in &self.rows {
            let name =
                row.attack.as_ref().map_or("nobody attacks".into(), |attack| format!("{attack}, {} of {}", row.attackers, self.members));
            let _ = write!(text, "\n{name:32}");
            for score in &row.scores {
                let _ = write!(text, "{score:>20.1}");
            }
        }
        let _ = writeln!(text, "\n\nWorst loss against nobody attacking, by the part of attackers:");
        for attackers in 1..=self.rows.iter().map(|row| row.attackers).max().unwrap_or_default() {
            let _ = write!(text, "{:32}", format!("{attackers} of {}", self.members));
            for (place, _) in self.rules.iter().enumerate() {
                let _ = write!(text, "{:>20.1}", self.worst(place, attackers));
            }
            text.push('\n');
        }
        text
    }

    /// Points that a rule loses to the worst attack of so many.
    pub fn worst(&self, rule: usize, attackers: u32) -> f64 {
        let score = |row: &Row| row.scores.get(rule).copied().unwrap_or_default();
        let clean = self.rows.iter().find(|row| row.attack.is_none()).map_or(0.0, score);
        self.rows.iter().filter(|row| row.attackers == attackers).map(|row| clean - score(row)).fold(f64::NEG_INFINITY, f64::max)
    }
}
