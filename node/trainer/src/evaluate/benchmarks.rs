//! The prompts of published benchmarks, as lm-evaluation-harness 0.4 lays them out, so that scores can be compared.
//!
//! What is not taken over: the harness draws ARC's and GSM8K's shots with Python's random numbers; here shots are the first
//! ones of the file that gives them (as the harness does for MMLU).

use crate::data::{ChoiceForm, ChoiceQuestion, DataError, Record};

/// A question as text: the choices follow the context after one space.
#[derive(Debug, Clone, PartialEq)]
pub struct ChoicePrompt {
    pub group: String,
    pub context: String,
    pub choices: Vec<String>,
    pub answer: usize,
}

const LETTERS: [&str; 4] = ["A", "B", "C", "D"];

/// The prompt of each question, with the first `shots` of `examples` before it: for MMLU, of its own subject.
pub fn choice_prompts(
    form: ChoiceForm,
    questions: &[ChoiceQuestion],
    examples: &[ChoiceQuestion],
    shots: usize,
) -> Result<Vec<ChoicePrompt>, DataError> {
    let one = |asked: &ChoiceQuestion| {
        let same = |example: &&ChoiceQuestion| form == ChoiceForm::Arc || example.group == asked.group;
        let shown: Vec<&ChoiceQuestion> = examples.iter().filter(same).take(shots).collect();
        if shown.len() < shots {
            return Err(DataError::Shots { group: asked.group.clone(), found: shown.len(), wanted: shots });
        }
        let shown: String = shown
            .into_iter()
            .map(|example| format!("{} {}\n\n", question(form, example), choices(form, example)[example.answer]))
            .collect();
        let context = description(form, &asked.group) + &shown + &question(form, asked);
        Ok(ChoicePrompt { group: asked.group.clone(), context, choices: choices(form, asked), answer: asked.answer })
    };
    questions.iter().map(one).collect()
}

fn description(form: ChoiceForm, subject: &str) -> String {
    match form {
        ChoiceForm::Mmlu => format!("The following are multiple choice questions (with answers) about {}.\n\n", subject.replace('_', " ")),
        ChoiceForm::Arc => String::new(),
    }
}

fn question(form: ChoiceForm, asked: &ChoiceQuestion) -> String {
    match form {
        ChoiceForm::Mmlu => {
            let listed: String = LETTERS.iter().zip(&asked.choices).map(|(letter, choice)| format!("{letter}. {choice}\n")).collect();
            format!("{}\n{listed}Answer:", asked.question.trim())
        }
        ChoiceForm::Arc => format!("Question: {}\nAnswer:", asked.question),
    }
}

fn choices(form: ChoiceForm, asked: &ChoiceQuestion) -> Vec<String> {
    match form {
        ChoiceForm::Mmlu => LETTERS.map(String::from).to_vec(),
        ChoiceForm::Arc => asked.choices.clone(),
    }
}

/// What ends an answer to GSM8K, beside the model's end of text.
pub const GSM8K_STOPS: [&str; 3] = ["Question:", "</s>", "<|im_end|>"];

/// GSM8K: `Question: …\nAnswer:`, with the first `shots` of `examples` before it. `None` for a record that is no question.
pub fn gsm8k_prompt(asked: &Record, examples: &[Record], shots: usize) -> Option<(String, String)> {
    let parts = |record: &Record| match record {
        Record::Instruction { instruction, input, output } if input.is_empty() => {
            Some((format!("Question: {instruction}\nAnswer:"), output.clone()))
        }
        _ => None,
    };
    let shown: String =
        examples.iter().filter_map(parts).take(shots).map(|(question, answer)| format!("{question} {answer}\n\n")).collect();
    parts(asked).map(|(question, answer)| (shown + &question, answer))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(group: &str, question: &str, answer: usize) -> ChoiceQuestion {
        ChoiceQuestion { group: group.into(), question: question.into(), choices: ["w", "x", "y", "z"].map(String::from).to_vec(), answer }
    }

    #[test]
    fn mmlu_names_the_subject_and_shows_its_own_examples() {
        let examples = [asked("law", "other?", 0), asked("college_biology", "shown?", 3), asked("college_biology", "second?", 1)];
        let prompts = choice_prompts(ChoiceForm::Mmlu, &[asked("college_biology", " asked? ", 2)], &examples, 1).unwrap();
        assert_eq!(
            prompts[0].context,
            "The following are multiple choice questions (with answers) about college biology.\n\n\
             shown?\nA. w\nB. x\nC. y\nD. z\nAnswer: D\n\n\
             asked?\nA. w\nB. x\nC. y\nD. z\nAnswer:"
        );
        assert_eq!((prompts[0].choices.join(""), prompts[0].answer), ("ABCD".into(), 2));
        let error = choice_prompts(ChoiceForm::Mmlu, &[asked("law", "?", 0)], &examples, 2).unwrap_err().to_string();
        assert_eq!(error, "\"law\" has 1 solved examples to show, but 2 are asked for");
    }

    #[test]
    fn arc_scores_the_choices_themselves() {
        let prompts = choice_prompts(ChoiceForm::Arc, &[asked("t", "asked?", 2)], &[asked("dev", "shown?", 3)], 1).unwrap();
        assert_eq!(prompts[0].context, "Question: shown?\nAnswer: z\n\nQuestion: asked?\nAnswer:");
        assert_eq!(prompts[0].choices, ["w", "x", "y", "z"]);
    }

    #[test]
    fn gsm8k_shows_whole_solutions() {
        let record = |question: &str, answer: &str| Record::Instruction {
            instruction: question.into(),
            input: String::new(),
            output: answer.into(),
        };
        let found = gsm8k_prompt(&record("1+1?", "#### 2"), &[record("0+1?", "It is 1.\n#### 1"), record("no", "no")], 1).unwrap();
        assert_eq!(found, ("Question: 0+1?\nAnswer: It is 1.\n#### 1\n\nQuestion: 1+1?\nAnswer:".into(), "#### 2".into()));
        assert_eq!(gsm8k_prompt(&Record::Text("x".into()), &[], 0), None);
    }
}
