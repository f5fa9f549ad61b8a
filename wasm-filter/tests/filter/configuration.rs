//! Configurations, good and bad. A bad one is refused with every mistake in Envoy's log, and hurts nobody else.

use crate::host::*;
use crate::orders::Dice;
use crate::scene::*;

#[test]
fn a_bad_configuration_is_refused_with_every_mistake() {
    let mut vm = Envoy::new().worker();
    let bad = "direction: sideways\notel-traces-sampler-arg: 2\ninbound-listen: 127.0.0.1:1\notel-traces-samplr: x\n";
    assert_eq!(vm.try_plugin(bad.as_bytes()), None);
    let said = vm.logged(4);
    assert_eq!(said.len(), 4, "{said:?}");
    for part in ["sideways", "want a ratio", "inbound-listen", "did you mean otel-traces-sampler?"] {
        assert!(said.iter().any(|line| line.contains(part)), "{part}: {said:?}");
    }
    // The same VM takes a good one.
    let root = vm.plugin(&configuration("inbound", ""));
    exchange(&mut vm, root, request("GET", "/", &[]), "200");
    assert_eq!(collect(&mut vm).len(), 1);
}

#[test]
fn what_is_no_configuration_is_refused() {
    let deep = "[".repeat(100_000);
    let large = format!("routes: /{}", "x".repeat(1024 * 1024));
    for bad in
        [&b"\xff\xfe"[..], b"a list, no mapping", b"- 1\n", b"{\"a\":", deep.as_bytes(), large.as_bytes()]
    {
        let mut vm = Envoy::new().worker();
        assert_eq!(vm.try_plugin(bad), None, "{:?}", &bad[..bad.len().min(20)]);
        assert!(!vm.logged(4).is_empty());
    }
}

#[test]
fn no_configuration_is_a_good_one() {
    for good in ["", "{}", "# nothing\n"] {
        let mut vm = Envoy::new().worker();
        assert!(vm.try_plugin(good.as_bytes()).is_some(), "{good:?}: {:?}", vm.logged(4));
    }
}

#[test]
fn json_and_the_environment_say_the_same_as_yaml() {
    let json = r#"{"direction": "inbound", "otel-service-name": "a", "otel-metrics-exporter": "none"}"#;
    let env =
        [("THROUGHLINE_DIRECTION", "inbound"), ("OTEL_SERVICE_NAME", "a"), ("OTEL_METRICS_EXPORTER", "none")];
    for (env, text) in [(&env[..0], json), (&env[..], "")] {
        let mut vm = Envoy::new().worker_with(env);
        let root = vm.plugin(text);
        exchange(&mut vm, root, request("GET", "/", &[]), "200");
        assert_eq!(only(collect(&mut vm)).resource("service.name"), "a");
    }
}

#[test]
fn a_broken_configuration_never_traps() {
    let good = configuration(
        "inbound",
        "routes: [\"/a/{id}\", /b]\nmesh-hosts: .svc, 10.0.0.0/8\nhold-headers: on\n",
    );
    let mut vm = Envoy::new().worker();
    for seed in 0..1_000 {
        let mut dice = Dice(seed);
        let mut text = good.clone().into_bytes();
        for _ in 0..=dice.below(3) {
            let at = dice.below(text.len());
            match dice.below(4) {
                0 => text[at] = dice.below(256) as u8,
                1 => drop(text.remove(at)),
                2 => text.insert(at, b"\n\"'[]{}:,- #&*!|>%@`"[dice.below(20)]),
                _ => text.truncate(at.max(1)),
            }
        }
        if let Some(root) = vm.try_plugin(&text) {
            vm.shut(root);
            vm.delete_root(root);
        }
        vm.state().logs.clear();
    }
    let root = vm.plugin(&configuration("inbound", ""));
    exchange(&mut vm, root, request("GET", "/", &[]), "200");
    assert_eq!(collect(&mut vm).len(), 1);
}
