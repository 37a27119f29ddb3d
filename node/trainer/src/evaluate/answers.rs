//! Final answers taken out of worked solutions, as lm-evaluation-harness does for GSM8K: its filters `strict-match` and
//! `flexible-extract`, and its comparison `exact_match` with what that leaves out.

/// The number after the first `#### `: the harness's `#### (\-?[0-9\.\,]+)`.
pub fn strict(text: &str) -> Option<&str> {
    let mut rest = text;
    while let Some((_, after)) = rest.split_once("#### ") {
        let signed = after.strip_prefix('-').unwrap_or(after);
        let digits = signed.find(|c: char| !matches!(c, '0'..='9' | '.' | ',')).unwrap_or(signed.len());
        if digits > 0 {
            return Some(&after[..after.len() - signed.len() + digits]);
        }
        rest = after;
    }
    None
}

/// The last number anywhere: the harness's `(-?[$0-9.,]{2,})|(-?[0-9]+)`.
pub fn flexible(text: &str) -> Option<&str> {
    let bytes = text.as_bytes();
    let run = |from: usize, fits: fn(u8) -> bool| bytes[from..].iter().take_while(|byte| fits(**byte)).count();
    let (mut at, mut last) = (0, None);
    while at < bytes.len() {
        let from = at + usize::from(bytes[at] == b'-');
        let wide = run(from, |byte| matches!(byte, b'$' | b'0'..=b'9' | b'.' | b','));
        let length = if wide >= 2 { wide } else { run(from, |byte| byte.is_ascii_digit()) };
        if length > 0 {
            last = Some(&text[at..from + length]);
            at = from + length;
        } else {
            at += 1;
        }
    }
    last
}

/// What the harness compares: without thousands separators, dollar signs, all up to the last `#### ` and a full stop at
/// the end; letters made small.
pub fn normalised(text: &str) -> String {
    let text = text.replace([',', '$'], "");
    let text = text.rsplit_once("#### ").map_or(text.as_str(), |(_, answer)| answer);
    text.strip_suffix('.').unwrap_or(text).to_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_found_as_the_harness_finds_them() {
        // (text, strict, flexible), as Python's `re.findall` gives them.
        let cases = [
            ("She has 3.\n#### 1,000.", Some("1,000."), Some("1,000.")),
            ("#### x #### -5 and 7", Some("-5"), Some("7")),
            ("about $12.50, then -3", None, Some("-3")),
            ("is 7.", None, Some("7.")),
            ("no number... here", None, Some("...")),
            ("5-3", None, Some("-3")),
            ("####5", None, Some("5")),
            ("yes. no", None, None),
            ("é – nothing", None, None),
        ];
        for (text, expected_strict, expected_flexible) in cases {
            assert_eq!((strict(text), flexible(text)), (expected_strict, expected_flexible), "{text}");
        }
    }

    #[test]
    fn separators_signs_and_full_stops_do_not_count() {
        assert_eq!(normalised("It is 4.\n#### 1,234"), "1234");
        assert_eq!(normalised("#### 1\n#### 2"), "2");
        assert_eq!(normalised("$1,234."), "1234");
        assert_eq!(normalised("-5"), "-5");
    }
}
