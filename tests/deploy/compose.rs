//! docker-compose.yml, alone and merged with config/real-providers.yml.

use std::collections::BTreeMap;

use pushcast::{
    config::{Config, Environment},
    events::topics,
    store::StoreUrl,
};
use sandbox::{Options, Sandbox};
use serde_json::Value;

use super::{list, object, path, schema, text, tree};

const BASE: &str = "docker-compose.yml";
const REAL: &str = "config/real-providers.yml";

#[test]
fn compose_files_fit_the_specification() {
    let specification: Value = serde_json::from_str(&text("tests/deploy/compose-spec.json")).unwrap();
    for name in [BASE, REAL] {
        let errors = schema::errors(&specification, &tree(name));
        assert!(errors.is_empty(), "\n{}", errors.join("\n"));
    }
}

#[test]
fn mounted_files_and_volumes_exist() {
    let base = tree(BASE);
    for (service, name, volume) in volumes(&base) {
        let source = volume.split(':').next().unwrap();
        let exists = if source.starts_with('.') {
            path(source).exists()
        } else {
            base["volumes"].get(source).is_some()
        };
        assert!(exists, "{service} mounts {name}, and {source} does not exist");
    }
    for (volume, _) in object(&base["volumes"]) {
        assert!(
            volumes(&base).iter().any(|(_, _, used)| used.starts_with(&format!("{volume}:"))),
            "no service mounts the volume {volume}"
        );
    }
}

/// Each mount of each service: the service, the mount as written, and with its variables expanded.
fn volumes(compose: &Value) -> Vec<(&str, &str, String)> {
    let mut all = Vec::new();
    for (name, service) in object(&compose["services"]) {
        let volumes = list(&service["volumes"]).filter_map(Value::as_str);
        all.extend(volumes.map(|volume| (name.as_str(), volume, expanded(volume, &[]))));
    }
    all
}

#[test]
fn services_wait_for_health_checks_or_for_the_end_of_a_service() {
    let base = tree(BASE);
    for (name, service) in object(&base["services"]) {
        for (other, how) in object(&service["depends_on"]) {
            let awaited = base["services"]
                .get(other)
                .unwrap_or_else(|| panic!("{name} waits for {other}, which is no service"));
            match how["condition"].as_str().unwrap() {
                "service_healthy" => {
                    assert!(
                        awaited["healthcheck"]["test"].is_array(),
                        "{name} waits for the health of {other}, which is not checked"
                    )
                }
                "service_completed_successfully" => {
                    assert_eq!(awaited["restart"], "no", "{name} waits for the end of {other}")
                }
                condition => panic!("{name} waits for {other} to be {condition}, which does not mean ready"),
            }
        }
    }
    assert_eq!(
        base["services"]["pushcast"]["depends_on"]["init"]["condition"],
        "service_completed_successfully"
    );
}

#[test]
fn ports_are_open_to_this_machine_only_and_each_port_is_used_once() {
    let base = tree(BASE);
    let mut used: BTreeMap<u16, &str> = BTreeMap::new();
    for (name, service) in object(&base["services"]) {
        for port in list(&service["ports"]) {
            let written = expanded(port.as_str().unwrap(), &[]);
            let rest = written
                .strip_prefix("127.0.0.1:")
                .unwrap_or_else(|| panic!("{name} opens {written} to other machines"));
            let (host, _container) = rest.split_once(':').unwrap();
            let (first, last) = host.split_once('-').unwrap_or((host, host));
            for port in first.parse::<u16>().unwrap()..=last.parse().unwrap() {
                assert_eq!(used.insert(port, name), None, "{port}: {name} and another service");
            }
        }
    }
}

#[test]
fn a_service_that_can_be_scaled_has_a_range_of_ports() {
    let base = tree(BASE);
    let pushcast = &base["services"]["pushcast"];
    assert!(pushcast.get("container_name").is_none(), "a container name can be used once");
    assert!(pushcast["ports"][0].as_str().unwrap().contains("-"), "a single port can be used once");
}

#[test]
fn images_have_a_version_and_every_server_a_memory_limit() {
    for (name, service) in object(&tree(BASE)["services"]) {
        let image = service["image"].as_str().unwrap();
        let version = image.rsplit_once(':').map(|(_, version)| version);
        assert!(
            service.get("build").is_some()
                || version
                    .is_some_and(|version| version.starts_with(|c: char| c.is_ascii_digit() || c == 'v')),
            "{name}: {image}"
        );
        if service["restart"] != "no" {
            assert!(
                service["deploy"]["resources"]["limits"]["memory"].is_string(),
                "{name} has no memory limit"
            );
        }
    }
}

// === The settings of pushcast ===

/// The environment of a service in these files merged, with these variables in the shell.
fn settings(service: &str, files: &[&str], shell: &[(&str, &str)]) -> Environment {
    let mut environment = Environment::new();
    for name in files {
        for (variable, value) in object(&tree(name)["services"][service]["environment"]) {
            environment.insert(variable.clone(), expanded(value.as_str().unwrap(), shell));
        }
    }
    environment
}

/// A value with its variables expanded: `${NAME:-default}` and `${NAME:+if it is set}`.
fn expanded(value: &str, shell: &[(&str, &str)]) -> String {
    let Some((before, rest)) = value.split_once("${") else { return value.to_owned() };
    let (variable, after) = rest.split_once('}').unwrap();
    let of =
        |name: &str| shell.iter().find(|(set, text)| *set == name && !text.is_empty()).map(|(_, text)| *text);
    let text = match (variable.split_once(":-"), variable.split_once(":+")) {
        (Some((name, default)), _) => of(name).unwrap_or(default),
        (_, Some((name, text))) => of(name).map_or("", |_| text),
        _ => panic!("{variable} has no default: `docker compose up` alone would warn"),
    };
    format!("{before}{text}{}", expanded(after, shell))
}

fn loaded(environment: &Environment) -> Config {
    Config::load(None, environment).unwrap_or_else(|errors| panic!("\n{errors}"))
}

#[test]
fn the_settings_of_our_services_are_valid_and_equal() {
    let with_accounts = [("EXPO_ACCESS_TOKEN", "secret"), ("FCM_SERVICE_ACCOUNT", "/home/ann/account.json")];
    let ours: Vec<_> = ["init", "pushcast", "hello"].map(|service| settings(service, &[BASE], &[])).into();
    assert!(
        ours.iter().all(|environment| !environment.is_empty() && *environment == ours[0]),
        "init, pushcast and hello have the same settings"
    );
    loaded(&ours[0]);
    assert!(
        loaded(&settings("pushcast", &[BASE, REAL], &[])).fcm.credentials_file.is_empty(),
        "without an account FCM is off"
    );
    let real = loaded(&settings("pushcast", &[BASE, REAL], &with_accounts));
    let defaults = Config::load(None, &Environment::new()).unwrap();
    assert_eq!((&real.expo.url, &real.fcm.url), (&defaults.expo.url, &defaults.fcm.url));
    assert_eq!(real.expo.receipt_delay, defaults.expo.receipt_delay);
    let [account] = &volumes(&tree(REAL))
        .into_iter()
        .map(|(_, volume, _)| expanded(volume, &with_accounts))
        .collect::<Vec<_>>()[..]
    else {
        panic!("one mount: the account");
    };
    assert_eq!(*account, format!("/home/ann/account.json:{}:ro", real.fcm.credentials_file));
}

#[test]
fn with_real_providers_no_setting_refers_to_the_sandbox() {
    let base = tree(BASE);
    let real = tree(REAL);
    assert_ne!(base["name"], real["name"], "the sandbox's tokens are in another store");
    for (variable, value) in settings("pushcast", &[BASE, REAL], &[]) {
        assert!(!value.contains("sandbox"), "{variable}={value}");
    }
    for service in ["sandbox", "hello"] {
        assert!(
            !real["services"][service]["profiles"].as_array().unwrap().is_empty(),
            "{service} is started with its profile only"
        );
    }
    assert_eq!(
        base["services"]["pushcast"]["depends_on"]["sandbox"]["required"], false,
        "pushcast starts without it"
    );
}

#[test]
fn kafka_is_reachable_from_containers_and_from_this_machine() {
    let base = tree(BASE);
    let kafka = &base["services"]["kafka"]["environment"];
    let advertised: BTreeMap<_, _> = pairs(&kafka["KAFKA_ADVERTISED_LISTENERS"], "://");
    let listening: BTreeMap<_, _> = pairs(&kafka["KAFKA_LISTENERS"], "://:");
    let protocols: BTreeMap<_, _> = pairs(&kafka["KAFKA_LISTENER_SECURITY_PROTOCOL_MAP"], ":");
    assert!(listening.keys().eq(protocols.keys()), "each listener has a protocol");
    for (listener, address) in &advertised {
        assert_eq!(address.rsplit(':').next(), Some(listening[listener].as_str()), "{listener}");
    }
    let config = loaded(&settings("pushcast", &[BASE], &[]));
    assert_eq!(config.kafka.bootstrap_servers, advertised["CONTAINERS"]);
    let defaults = Config::load(None, &Environment::new()).unwrap();
    assert_eq!(
        advertised["HOST"], defaults.kafka.bootstrap_servers,
        "the default works for a pushcast on this machine"
    );
    assert_eq!(
        base["services"]["kafka"]["ports"][0],
        format!("{}:{}", advertised["HOST"], listening["HOST"])
    );
    let inner = kafka["KAFKA_INTER_BROKER_LISTENER_NAME"].as_str().unwrap();
    assert!(
        advertised.contains_key(inner)
            && listening.contains_key(kafka["KAFKA_CONTROLLER_LISTENER_NAMES"].as_str().unwrap())
    );
    let check = base["services"]["kafka"]["healthcheck"]["test"].to_string();
    assert!(check.contains(&advertised["CONTAINERS"]), "{check}");
}

/// `A://x,B://y` as a map, with `://` as the separator.
fn pairs(value: &Value, separator: &str) -> BTreeMap<String, String> {
    value
        .as_str()
        .unwrap()
        .split(',')
        .map(|pair| pair.split_once(separator).unwrap())
        .map(|(a, b)| (a.to_owned(), b.to_owned()))
        .collect()
}

#[test]
fn the_store_of_pushcast_is_a_service_of_the_file() {
    let base = tree(BASE);
    let config = loaded(&settings("pushcast", &[BASE], &[]));
    let StoreUrl::Cql(cluster) = config.store.location().unwrap() else {
        panic!("several processes need a shared store")
    };
    let (host, port) = cluster.nodes[0].split_once(':').unwrap();
    assert!(base["services"].get(host).is_some(), "{host}");
    let published = expanded(base["services"][host]["ports"][0].as_str().unwrap(), &[]);
    assert!(published.ends_with(&format!(":{port}")), "{published}");
    // scripts/services starts the same service on another port.
    assert_eq!(
        expanded(base["services"][host]["ports"][0].as_str().unwrap(), &[("SCYLLA_PORT", "20000")]),
        "127.0.0.1:20000:9042"
    );
    assert!(text("scripts/services").contains("SCYLLA_PORT=$port"));
}

#[tokio::test]
async fn the_providers_urls_of_pushcast_are_the_sandboxs() {
    let base = tree(BASE);
    let command: Vec<_> =
        list(&base["services"]["sandbox"]["command"]).map(|word| word.as_str().unwrap()).collect();
    let option = |name: &str| command.iter().skip_while(|word| **word != name).nth(1).copied().unwrap();
    let url = option("--url");
    assert!(
        base["services"].get(url.trim_start_matches("http://").split(':').next().unwrap()).is_some(),
        "{url}"
    );
    assert_eq!(url.rsplit(':').next(), option("--listen").rsplit(':').next());
    let sandbox = Sandbox::start(Options { url: Some(url.to_owned()), ..Options::default() }).await.unwrap();
    let config = loaded(&settings("pushcast", &[BASE], &[]));
    assert_eq!((config.expo.url, config.fcm.url), (sandbox.expo_url(), sandbox.fcm_url()));
    assert_eq!(config.fcm.credentials_file, option("--credentials"));
    for service in ["sandbox", "pushcast"] {
        let (folder, _) = config.fcm.credentials_file.rsplit_once('/').unwrap();
        let mounted = |volume: &Value| volume.as_str().unwrap().starts_with(&format!("sandbox:{folder}"));
        assert!(
            list(&base["services"][service]["volumes"]).any(mounted),
            "{service} shares the folder of the service account"
        );
    }
}

#[test]
fn the_admin_port_is_the_one_that_is_published_scraped_and_checked_for_health() {
    let base = tree(BASE);
    let config = loaded(&settings("pushcast", &[BASE], &[]));
    let port = config.http.admin_listen.strip_prefix("0.0.0.0:").expect("reachable from other containers");
    let pushcast = &base["services"]["pushcast"];
    assert!(pushcast["ports"][0].as_str().unwrap().ends_with(&format!(":{port}")));
    assert!(pushcast["healthcheck"]["test"].to_string().contains(&format!("127.0.0.1:{port}/ready")));
    let scraped = tree("config/prometheus/prometheus.yml");
    let discovered = &scraped["scrape_configs"][0]["dns_sd_configs"][0];
    assert_eq!(
        (&discovered["names"][0], discovered["port"].to_string()),
        (&Value::from("pushcast"), port.to_owned())
    );
    for target in list(&scraped["scrape_configs"])
        .flat_map(|job| list(&job["static_configs"]))
        .flat_map(|group| list(&group["targets"]))
    {
        let (host, _) = target.as_str().unwrap().split_once(':').unwrap();
        assert!(base["services"].get(host).is_some(), "{host} is scraped, and is not a service");
    }
}

#[test]
fn hello_uses_topics_and_services_that_exist() {
    let hello = text("config/hello.sh");
    let base = tree(BASE);
    let topics: Vec<_> =
        hello.lines().filter_map(|line| line.strip_prefix("pushcast produce ")?.split(' ').next()).collect();
    assert_eq!(topics.len(), 3);
    assert!(topics.iter().all(|topic| topics::ALL.contains(topic)), "{topics:?}");
    for address in hello
        .split("http://")
        .skip(1)
        .map(|rest| rest.split('\n').next().unwrap())
        .filter(|rest| !rest.starts_with("127.0.0.1"))
    {
        assert!(base["services"].get(address.split(':').next().unwrap()).is_some(), "{address}");
    }
}
