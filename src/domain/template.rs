//! The texts of notifications are made from templates: how these are filled, and what a placeholder is.
//!
//! A placeholder is a name in braces, `{author_name}`: letters, digits and underscores. Anything else in
//! braces is text.

/// A stretch of a template.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum TemplatePiece<'a> {
    Text(&'a str),
    /// The name, without its braces.
    Placeholder(&'a str),
}

/// What a placeholder stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TemplateValue<'a> {
    /// This text. It is not read as a template again.
    Text(&'a str),
    /// Nothing this time: the placeholder goes, and so does the word before it. Without an author's name "New
    /// Reflection from {author_name}" reads "New Reflection".
    Absent,
    /// There is no such placeholder: it stays as it is written.
    Unknown,
}

/// The template with its placeholders replaced by what `value` returns for their names.
pub fn fill<'a>(template: &str, value: impl Fn(&str) -> TemplateValue<'a>) -> String {
    let mut text = String::with_capacity(template.len());
    // Where the template's own text begins that has come since the last placeholder.
    let mut own_text_at = 0;
    for piece in pieces(template) {
        match piece {
            TemplatePiece::Text(own) => text.push_str(own),
            TemplatePiece::Placeholder(name) => {
                match value(name) {
                    TemplateValue::Text(value) => text.push_str(value),
                    TemplateValue::Absent => drop_last_word(&mut text, own_text_at),
                    TemplateValue::Unknown => {
                        text.push('{');
                        text.push_str(name);
                        text.push('}');
                    }
                }
                own_text_at = text.len();
            }
        }
    }
    text
}

/// The names of a template's placeholders, in order.
pub fn placeholders(template: &str) -> impl Iterator<Item = &str> {
    pieces(template).filter_map(|piece| match piece {
        TemplatePiece::Placeholder(name) => Some(name),
        TemplatePiece::Text(_) => None,
    })
}

fn pieces(template: &str) -> impl Iterator<Item = TemplatePiece<'_>> {
    let mut rest = template;
    std::iter::from_fn(move || {
        if let Some((name, after)) = placeholder(rest) {
            rest = after;
            return Some(TemplatePiece::Placeholder(name));
        }
        // Up to the next brace that may begin a placeholder; one that doesn't is text.
        let from = usize::from(rest.starts_with('{'));
        let end = rest[from..].find('{').map_or(rest.len(), |brace| from + brace);
        let (text, after) = rest.split_at(end);
        rest = after;
        (!text.is_empty()).then_some(TemplatePiece::Text(text))
    })
}

/// The placeholder that the text begins with, and what follows it.
fn placeholder(text: &str) -> Option<(&str, &str)> {
    let (name, after) = text.strip_prefix('{')?.split_once('}')?;
    let is_name = !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
    is_name.then_some((name, after))
}

fn drop_last_word(text: &mut String, own_text_at: usize) {
    let own = text[own_text_at..].trim_end();
    let kept = own.rfind(char::is_whitespace).unwrap_or(0);
    text.truncate(own_text_at + kept);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn filled(template: &str) -> String {
        fill(template, |name| match name {
            "medicine_name" => TemplateValue::Text("{dosage}"),
            "dosage" => TemplateValue::Text("5 mg"),
            "author_name" => TemplateValue::Absent,
            _ => TemplateValue::Unknown,
        })
    }

    #[test]
    fn a_template_is_filled_once_and_unknown_names_stay() {
        assert_eq!(
            filled("Time for {medicine_name}: {dosage}, {colour} {"),
            "Time for {dosage}: 5 mg, {colour} {"
        );
    }

    #[test]
    fn an_absent_value_takes_the_word_before_it_along() {
        assert_eq!(filled("New Reflection from {author_name}"), "New Reflection");
        assert_eq!(filled("{dosage} by {author_name}"), "5 mg");
        assert_eq!(filled("{author_name}"), "");
    }

    #[test]
    fn what_is_no_name_in_braces_is_text() {
        for text in ["{", "}", "{}", "{ dosage }", "{dosage", "{{", "{ö}", "a { b } c"] {
            assert_eq!(filled(text), text);
            assert_eq!(placeholders(text).next(), None);
        }
        assert_eq!(filled("{{dosage}}"), "{5 mg}");
        assert_eq!(placeholders("{a} and {b_2}{c").collect::<Vec<_>>(), ["a", "b_2"]);
    }

    proptest! {
        #[test]
        fn a_template_of_unknown_names_stays_as_it_is(template in "[a-z{} _ö]{0,40}") {
            prop_assert_eq!(fill(&template, |_| TemplateValue::Unknown), template);
        }
    }
}
