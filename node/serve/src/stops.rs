//! Texts that end an answer, found across the borders of tokens. What may be the beginning of one is held back until it is
//! known whether it is: nothing of a stop is ever shown.

/// Looks for stops in an answer's text as it comes.
#[derive(Debug, Default)]
pub struct Stops {
    texts: Vec<String>,
    held: String,
}

impl Stops {
    /// Empty texts stop nothing.
    pub fn new(texts: &[String]) -> Self {
        Self { texts: texts.iter().filter(|text| !text.is_empty()).cloned().collect(), held: String::new() }
    }

    /// What of the text so far can be shown now; and whether a stop has come, before which that text ends.
    pub fn push(&mut self, text: &str) -> (String, bool) {
        self.held += text;
        if let Some(at) = self.texts.iter().filter_map(|stop| self.held.find(stop)).min() {
            self.held.truncate(at);
            return (std::mem::take(&mut self.held), true);
        }
        let begins = |at: &usize| self.texts.iter().any(|stop| stop.starts_with(&self.held[*at..]));
        let from = self.held.char_indices().map(|(at, _)| at).find(begins).unwrap_or(self.held.len());
        let rest = self.held.split_off(from);
        (std::mem::replace(&mut self.held, rest), false)
    }

    /// What is held back, once nothing follows.
    pub fn rest(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is shown of parts that come one after the other, and whether a stop came.
    fn shown(stops: &[&str], parts: &[&str]) -> (String, bool) {
        let mut finder = Stops::new(&stops.iter().map(ToString::to_string).collect::<Vec<_>>());
        let mut all = String::new();
        for part in parts {
            let (text, stopped) = finder.push(part);
            assert!(stops.iter().all(|stop| stop.is_empty() || !text.contains(stop)));
            all += &text;
            if stopped {
                return (all, true);
            }
        }
        (all + &finder.rest(), false)
    }

    /// However the text is cut, the same is shown.
    #[test]
    fn stops_are_found_across_any_borders() {
        let cases: [(&[&str], &str, &str); 8] = [
            (&["\n\n"], "one\ntwo\n\nthree", "one\ntwo"),
            (&["STOP"], "go STOSTOP on", "go STO"),
            (&["aab"], "aaaab!", "aa"),
            (&["é…"], "naïve é… more", "naïve "),
            (&["xyz", "b"], "aaxyb", "aaxy"),
            (&["", "end"], "no e nd", "no e nd"),
            (&["abcd", "bc"], "zabce", "za"),
            (&[], "all", "all"),
        ];
        for (stops, text, expected) in cases {
            let characters: Vec<String> = text.chars().map(String::from).collect();
            let singly: Vec<&str> = characters.iter().map(String::as_str).collect();
            for cut in text.char_indices().map(|(at, _)| at) {
                assert_eq!(shown(stops, &[&text[..cut], &text[cut..]]).0, expected, "{text:?} cut at {cut}");
            }
            let (found, stopped) = shown(stops, &singly);
            assert_eq!((found.as_str(), stopped), (expected, expected.len() < text.len()), "{text:?}");
        }
    }

    #[test]
    fn only_what_may_become_a_stop_is_held_back() {
        let mut finder = Stops::new(&["</answer>".to_owned()]);
        assert_eq!(finder.push("yes</ans"), ("yes".to_owned(), false));
        assert_eq!(finder.push("w"), (String::new(), false));
        assert_eq!(finder.push(" <"), ("</answ ".to_owned(), false));
        assert_eq!(finder.rest(), "<");
    }
}
