//! The shipped bootstrap as a file.

use serde_json::Value;
use throughline_tests::envoy::{self, Bootstrap};

#[tokio::test]
async fn the_shipped_bootstrap_is_accepted_as_it_is() {
    if !envoy::is_here() {
        return;
    }
    let ended = Bootstrap::as_shipped().validate("shipped").await;
    assert_eq!(ended.code, Some(0), "{:#?}", ended.stderr);
    let complaints: Vec<_> =
        ended.stderr.iter().filter(|line| line.contains(r#""level":"warning""#)).collect();
    assert!(complaints.is_empty(), "{complaints:#?}");
}

#[test]
fn both_directions_treat_a_users_bytes_alike() {
    let text = std::fs::read_to_string(envoy::shipped()).expect("the shipped file");
    let root: Value = serde_yaml::from_str(&text).expect("YAML");
    let listeners = root["static_resources"]["listeners"].as_array().expect("a list");
    let plain = |side: &str| {
        let mut listener = listeners.iter().find(|one| one["name"] == side).expect(side).clone();
        let own = ["name", "address", "additional_addresses", "traffic_direction"];
        own.iter().for_each(|key| drop(listener.as_object_mut().expect("a listener").remove(*key)));
        let words = [(side, "SIDE"), ("15106", "PORT"), ("15101", "PORT"), ("application", "anywhere")];
        words.iter().fold(listener.to_string(), |text, (from, to)| text.replace(from, to))
    };
    // `application_protocols` is a field's name, and stays one on both sides.
    assert_eq!(plain("inbound"), plain("outbound"));
}

#[test]
fn nothing_shipped_switches_envoys_own_tracer_on() {
    let text = std::fs::read_to_string(envoy::shipped()).expect("the shipped file");
    let mut lines = text.lines().map(str::trim);
    assert!(!lines.any(|line| line.starts_with("tracing:")), "two spans would have one id");
}
