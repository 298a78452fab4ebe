//! As much of PromQL as tells which metrics an expression asks for, and which labels.

use std::collections::BTreeSet;

/// A label, and the values that it may have.
pub type Matcher = (String, Vec<String>);

/// What an expression asks for.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Asked {
    /// Each metric of ours, by its name in the expression, with its matchers.
    pub metrics: Vec<(String, Vec<Matcher>)>,
    /// The labels that `by` leaves; `None` = no aggregation names any.
    pub by: Option<BTreeSet<String>>,
}

pub fn asked(expression: &str) -> Asked {
    let mut asked = Asked::default();
    let mut rest = expression;
    while let Some(start) = rest.find("pushcast_") {
        let from = &rest[start..];
        let (name, after) = from
            .split_at(from.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).unwrap_or(from.len()));
        let selector =
            after.strip_prefix('{').map(|inside| inside.split_once('}').expect("a selector ends").0);
        let matchers =
            selector.map(|selector| selector.split(',').map(matcher).collect()).unwrap_or_default();
        asked.metrics.push((name.to_owned(), matchers));
        rest = after;
    }
    for group in expression.split(" by (").skip(1) {
        let labels =
            group.split_once(')').expect("a group ends").0.split(',').map(|label| label.trim().to_owned());
        asked.by.get_or_insert_default().extend(labels);
    }
    asked
}

/// `label=~"a|b"`
fn matcher(text: &str) -> (String, Vec<String>) {
    let (label, value) = text.split_once('=').or_else(|| text.split_once("!~")).expect("label and value");
    let value = value.trim_start_matches('~').trim_matches('"');
    (label.trim_end_matches('!').trim().to_owned(), value.split('|').map(str::to_owned).collect())
}

/// The labels that a legend or a summary shows: `{{name}}`, `{{ $labels.name }}`.
pub fn shown(text: &str) -> BTreeSet<String> {
    let names = text.split("{{").skip(1).map(|rest| rest.split_once("}}").expect("a label ends").0.trim());
    names.map(|name| name.trim_start_matches("$labels.").to_owned()).collect()
}

#[test]
fn metrics_matchers_and_groups_are_found() {
    let found = asked(
        r#"histogram_quantile(0.9, sum by (le, lane) (rate(pushcast_a_bucket{lane!="x", of=~"y|z",s!~"v"}[5m]))) / pushcast_b"#,
    );
    let matcher = |label: &str, values: &[&str]| {
        (label.to_owned(), values.iter().map(|value| (*value).to_owned()).collect::<Vec<_>>())
    };
    let a = vec![matcher("lane", &["x"]), matcher("of", &["y", "z"]), matcher("s", &["v"])];
    assert_eq!(found.metrics, [("pushcast_a_bucket".to_owned(), a), ("pushcast_b".to_owned(), vec![])]);
    assert_eq!(found.by, Some(["lane".to_owned(), "le".to_owned()].into()));
    assert_eq!(asked("sum(pushcast_b)").by, None);
    assert_eq!(shown("{{a}} x {{ $labels.b }}"), ["a".to_owned(), "b".to_owned()].into());
}
