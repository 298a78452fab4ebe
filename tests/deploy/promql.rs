//! The metrics and labels of a PromQL expression: as much of the grammar as the dashboard and the alerts use.

use std::collections::BTreeSet;

/// A label, and the values that it is matched with.
pub type Matcher = (String, Vec<String>);

/// What an expression queries.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Query {
    /// Each metric of pushcast's, by its name in the expression, with its matchers.
    pub metrics: Vec<(String, Vec<Matcher>)>,
    /// The labels of `by`; `None` = no aggregation has one.
    pub by: Option<BTreeSet<String>>,
}

pub fn parse(expression: &str) -> Query {
    let mut query = Query::default();
    let mut rest = expression;
    while let Some(start) = rest.find("pushcast_") {
        let from = &rest[start..];
        let (name, after) = from
            .split_at(from.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).unwrap_or(from.len()));
        let selector =
            after.strip_prefix('{').map(|inside| inside.split_once('}').expect("a selector ends").0);
        let matchers =
            selector.map(|selector| selector.split(',').map(matcher).collect()).unwrap_or_default();
        query.metrics.push((name.to_owned(), matchers));
        rest = after;
    }
    for group in expression.split(" by (").skip(1) {
        let labels =
            group.split_once(')').expect("a group ends").0.split(',').map(|label| label.trim().to_owned());
        query.by.get_or_insert_default().extend(labels);
    }
    query
}

/// `label=~"a|b"`
fn matcher(text: &str) -> (String, Vec<String>) {
    let (label, value) = text.split_once('=').or_else(|| text.split_once("!~")).expect("label and value");
    let value = value.trim_start_matches('~').trim_matches('"');
    (label.trim_end_matches('!').trim().to_owned(), value.split('|').map(str::to_owned).collect())
}

/// The labels that a legend or a summary displays: `{{name}}`, `{{ $labels.name }}`.
pub fn displayed(text: &str) -> BTreeSet<String> {
    let names = text.split("{{").skip(1).map(|rest| rest.split_once("}}").expect("a label ends").0.trim());
    names.map(|name| name.trim_start_matches("$labels.").to_owned()).collect()
}

#[test]
fn metrics_matchers_and_groups_are_found() {
    let found = parse(concat!(
        r#"histogram_quantile(0.9, sum by (le, lane) "#,
        r#"(rate(pushcast_a_bucket{lane!="x", of=~"y|z",s!~"v"}[5m]))) / pushcast_b"#,
    ));
    let matcher = |label: &str, values: &[&str]| {
        (label.to_owned(), values.iter().map(|value| (*value).to_owned()).collect::<Vec<_>>())
    };
    let a = vec![matcher("lane", &["x"]), matcher("of", &["y", "z"]), matcher("s", &["v"])];
    assert_eq!(found.metrics, [("pushcast_a_bucket".to_owned(), a), ("pushcast_b".to_owned(), vec![])]);
    assert_eq!(found.by, Some(["lane".to_owned(), "le".to_owned()].into()));
    assert_eq!(parse("sum(pushcast_b)").by, None);
    assert_eq!(displayed("{{a}} x {{ $labels.b }}"), ["a".to_owned(), "b".to_owned()].into());
}
