//! The scores of every rule under every attack, for people and for programs.

use std::fmt::Write as _;

/// What every rule scores under one attack.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Row {
    pub attackers: u32,
    /// None where nobody attacks.
    pub attack: Option<String>,
    /// In the table's order of rules: what is kept of the honest gain, of a hundred; none where there is no merge.
    pub scores: Vec<Option<f64>>,
}

/// What was measured.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Table {
    pub method: String,
    pub members: u32,
    pub questions: usize,
    /// Largest norm of an update, where it is clipped.
    pub clip: f64,
    /// Held-out losses in nats a token, with the base alone and with the mean of honest adapters.
    pub base: f64,
    pub honest: f64,
    pub rules: Vec<String>,
    pub rows: Vec<Row>,
}

impl Table {
    pub fn text(&self) -> String {
        let mut text = format!(
            "Kept of what the honest mean gains, of a hundred (held-out loss over {} questions: base {:.3}, honest mean {:.3}).\n\
             {} members of a {} round; clip at {:.2}; - where too few adapters are left for the rule.\n\n{:32}",
            self.questions, self.base, self.honest, self.members, self.method, self.clip, ""
        );
        for rule in &self.rules {
            let _ = write!(text, "{rule:>20}");
        }
        for row in &self.rows {
            let name =
                row.attack.as_ref().map_or("nobody attacks".into(), |attack| format!("{attack}, {} of {}", row.attackers, self.members));
            let _ = write!(text, "\n{name:32}");
            for score in &row.scores {
                let _ = match score {
                    Some(score) => write!(text, "{score:>20.1}"),
                    None => write!(text, "{:>20}", "-"),
                };
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

    /// Points that a rule loses to the worst attack of so many, where there is a merge.
    pub fn worst(&self, rule: usize, attackers: u32) -> f64 {
        let score = |row: &Row| row.scores.get(rule).copied().flatten();
        let clean = self.rows.iter().find(|row| row.attack.is_none()).and_then(score).unwrap_or_default();
        let attacked = self.rows.iter().filter(|row| row.attackers == attackers).filter_map(score);
        attacked.map(|score| clean - score).fold(f64::NEG_INFINITY, f64::max)
    }
}
