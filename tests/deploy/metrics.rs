//! The dashboard and the alerts query metrics that exist, by labels and values that these have.

use std::collections::{BTreeMap, BTreeSet};

use pushcast::{domain::Outcome, topology};
use serde_json::Value;

use super::{
    list, object,
    promql::{displayed, parse},
    text, tree,
};

/// A metric as the snapshot of src/metrics.rs has it.
struct Metric {
    labels: BTreeSet<String>,
    is_histogram: bool,
    help: String,
}

fn declared() -> BTreeMap<String, Metric> {
    let snapshot = text(concat!(
        "src/snapshots/pushcast__metrics__tests__",
        "the_metrics_that_others_rely_on_keep_their_names_and_labels.snap",
    ));
    let mut metrics = BTreeMap::new();
    let mut lines = snapshot.lines().skip_while(|line| !line.starts_with("pushcast_"));
    while let (Some(line), Some(help)) = (lines.next(), lines.next()) {
        let (name, rest) = line.split_once('{').unwrap();
        let (labels, kind) = rest.split_once("} ").unwrap();
        let labels = labels.split(',').filter(|label| !label.is_empty()).map(str::to_owned).collect();
        metrics.insert(
            name.to_owned(),
            Metric { labels, is_histogram: kind.starts_with("Histogram"), help: help.to_owned() },
        );
    }
    assert!(metrics.len() > 20, "the snapshot has the metrics");
    metrics
}

/// The errors in an expression, and in the labels of its result that are displayed.
fn errors(expression: &str, displayed: &BTreeSet<String>, metrics: &BTreeMap<String, Metric>) -> Vec<String> {
    let query = parse(expression);
    let mut errors = Vec::new();
    // Prometheus adds these to each series.
    let mut labels: BTreeSet<String> = ["instance", "job"].map(str::to_owned).into();
    for (name, matchers) in &query.metrics {
        let parts = ["_bucket", "_sum", "_count"].map(|part| name.strip_suffix(part));
        let of_histogram = parts
            .into_iter()
            .flatten()
            .find_map(|base| metrics.get(base).filter(|metric| metric.is_histogram));
        let Some(metric) = of_histogram.or_else(|| metrics.get(name).filter(|metric| !metric.is_histogram))
        else {
            errors.push(format!("{name} does not exist"));
            continue;
        };
        labels
            .extend(metric.labels.iter().cloned().chain(name.ends_with("_bucket").then(|| "le".to_owned())));
        for (label, values) in matchers {
            if !metric.labels.contains(label) {
                errors.push(format!("{name} has no label {label}"));
            }
            errors.extend(
                values
                    .iter()
                    .filter(|value| !occurs(label, value, metric))
                    .map(|value| format!("{name} has no {label}={value}")),
            );
        }
    }
    let by = query.by.unwrap_or_else(|| labels.clone());
    errors.extend(by.difference(&labels).map(|label| format!("none of these metrics has a label {label}")));
    errors.extend(displayed.difference(&by).map(|label| format!("the result has no label {label}")));
    errors
}

/// Whether a label can have this value. `.*` stands for anything.
fn occurs(label: &str, value: &str, metric: &Metric) -> bool {
    match label {
        "stage" => {
            topology::STAGES.map(|stage| stage.name).iter().any(|stage| match value.split_once(".*") {
                Some((begin, end)) => stage.starts_with(begin) && stage.ends_with(end),
                None => *stage == value,
            })
        }
        "outcome" => Outcome::ALL.iter().any(|outcome| outcome.label() == value),
        "lane" => ["urgent", "bulk"].contains(&value),
        "operation" => text("src/app/timed.rs").contains(&format!(" {value}(")),
        // The help text lists the values.
        _ => metric.help.split(|c: char| !(c.is_alphanumeric() || c == '_')).any(|word| word == value),
    }
}

#[test]
fn the_dashboard_queries_all_metrics_and_only_existing_ones() {
    let metrics = declared();
    let dashboard = tree("config/grafana/pushcast.json");
    let mut wrong = Vec::new();
    let mut used = BTreeSet::new();
    for panel in list(&dashboard["panels"]) {
        for target in list(&panel["targets"]) {
            let expression = target["expr"].as_str().unwrap();
            let legend = displayed(target["legendFormat"].as_str().unwrap());
            wrong.extend(
                errors(expression, &legend, &metrics)
                    .iter()
                    .map(|error| format!("{}: {error} in {expression}", panel["title"])),
            );
            used.extend(parse(expression).metrics.into_iter().map(|(name, _)| name));
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
    let unused: Vec<_> =
        metrics.keys().filter(|name| !used.iter().any(|used| used.starts_with(*name))).collect();
    assert!(unused.is_empty(), "no panel shows {unused:?}");
}

#[test]
fn alerts_query_existing_metrics_and_have_a_description() {
    let metrics = declared();
    let mut wrong = Vec::new();
    let mut names = BTreeSet::new();
    for rule in list(&tree("config/prometheus/alerts.yml")["groups"])
        .flat_map(|group| list(&group["rules"]).cloned().collect::<Vec<_>>())
    {
        let name = rule["alert"].as_str().unwrap();
        assert!(names.insert(name.to_owned()), "{name} twice");
        assert!(["page", "ticket"].contains(&rule["labels"]["severity"].as_str().unwrap()), "{name}");
        assert!(
            rule["annotations"]["summary"].is_string() && rule["annotations"]["description"].is_string(),
            "{name}"
        );
        let labels: BTreeSet<_> =
            object(&rule["annotations"]).flat_map(|(_, text)| displayed(text.as_str().unwrap())).collect();
        wrong.extend(
            errors(rule["expr"].as_str().unwrap(), &labels, &metrics)
                .iter()
                .map(|error| format!("{name}: {error}")),
        );
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
    assert!(names.len() > 10);
}

#[test]
fn a_wrong_expression_is_found() {
    let metrics = declared();
    let wrong = |expression: &str, displayed: &[&str]| {
        errors(expression, &displayed.iter().map(|label| (*label).to_owned()).collect(), &metrics)
    };
    assert_eq!(
        wrong("rate(pushcast_notification_total[1m])", &[]),
        ["pushcast_notification_total does not exist"]
    );
    assert_eq!(
        wrong("pushcast_store_seconds", &[]),
        ["pushcast_store_seconds does not exist"],
        "a histogram has only its parts"
    );
    assert_eq!(
        wrong("pushcast_dead_letters_total_count", &[]),
        ["pushcast_dead_letters_total_count does not exist"]
    );
    assert_eq!(
        wrong(r#"pushcast_records_total{lane="bulk"}"#, &[]),
        ["pushcast_records_total has no label lane"]
    );
    assert_eq!(
        wrong(r#"pushcast_route_state{state="closed"}"#, &[]),
        ["pushcast_route_state has no state=closed"]
    );
    assert_eq!(
        wrong(r#"pushcast_stage_lag_seconds{stage=~"delivery.*slow"}"#, &[]),
        ["pushcast_stage_lag_seconds has no stage=delivery.*slow"]
    );
    assert_eq!(
        wrong("sum by (lane) (pushcast_records_total)", &[]),
        ["none of these metrics has a label lane"]
    );
    assert_eq!(wrong("sum by (stage) (pushcast_records_total)", &["fate"]), ["the result has no label fate"]);
    assert_eq!(wrong("sum by (le) (pushcast_store_seconds_bucket)", &["le"]), [""; 0]);
}

#[test]
fn grafana_finds_the_dashboard_and_the_dashboard_prometheus() {
    let compose = tree("docker-compose.yml");
    let dashboard = tree("config/grafana/pushcast.json");
    let source = &tree("config/grafana/datasources.yml")["datasources"][0];
    for panel in list(&dashboard["panels"]).filter(|panel| panel["type"] != "row") {
        assert_eq!(panel["datasource"]["uid"], source["uid"], "{}", panel["title"]);
    }
    let host = source["url"].as_str().unwrap().trim_start_matches("http://").split(':').next().unwrap();
    assert!(compose["services"].get(host).is_some(), "{host}");
    let grafana = &compose["services"]["grafana"];
    let home = grafana["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"].as_str().unwrap();
    let mounts: Vec<_> = list(&grafana["volumes"]).filter_map(Value::as_str).collect();
    assert!(mounts.contains(&format!("./config/grafana/pushcast.json:{home}:ro").as_str()), "{mounts:?}");
    let folder =
        tree("config/grafana/dashboards.yml")["providers"][0]["options"]["path"].as_str().unwrap().to_owned();
    assert_eq!(home.rsplit_once('/').unwrap().0, folder);
    let ids: BTreeSet<_> = list(&dashboard["panels"]).map(|panel| panel["id"].as_i64()).collect();
    assert_eq!(ids.len(), list(&dashboard["panels"]).count(), "panel ids are unique");
}
