//! `throughline-proxy init`: what its rules redirect, what they leave alone, and that they are there once.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use throughline_tests::cluster::{Cluster, ELSEWHERE, HUB, SIDECARS_USER};
use throughline_tests::judges::installed;
use throughline_tests::prelude::*;
use tokio::net::{TcpListener, TcpStream};

use super::{application, is_traced, said_to, seen_from};

#[tokio::test]
async fn excluded_ports_and_networks_are_left_alone() {
    let Some(cluster) = Cluster::make().await else { return };
    let here = TcpListener::bind((HUB, 0)).await.expect("a port");
    let excluded = TcpListener::bind((HUB, 0)).await.expect("a port");
    let abroad = TcpListener::bind((ELSEWHERE, 0)).await.expect("a port");
    let ports = excluded.local_addr().expect("an address").port();
    let init = format!(
        "--exclude-inbound-ports 8081,9000-9010 --exclude-outbound-ports {ports} \
         --exclude-outbound-cidrs 203.0.113.0/24,2001:db8::/32"
    );
    let (web, sidecar) = cluster.captured("web", &init).await;
    let [here, excluded, abroad] = [here, excluded, abroad].map(|at| Service::on(at, answer(200, "")));
    for (service, ip, traced) in [(&here, HUB, true), (&excluded, HUB, false), (&abroad, ELSEWHERE, false)] {
        assert_eq!(is_traced(&seen_from(&web, service, ip).await), traced, "{}", service.address);
    }
    for (port, traced) in [(8080, true), (8081, false), (9005, false)] {
        let app = application(&web, port, answer(200, ""));
        Ask::get(format!("http://{}:{port}/", web.v4)).send().await;
        assert_eq!(is_traced(&app.saw_one()), traced, "{port}");
    }
    sidecar.end().await;
}

#[tokio::test]
async fn traffic_within_the_pod_is_left_alone() {
    let Some(cluster) = Cluster::make().await else { return };
    let (web, sidecar) = cluster.captured("web", "").await;
    let app = application(&web, 8080, answer(200, ""));
    for ip in [
        Ipv4Addr::LOCALHOST.into(),
        web.v4.into(),
        std::net::IpAddr::from(Ipv6Addr::LOCALHOST),
        web.v6.into(),
    ] {
        assert!(!is_traced(&seen_from(&web, &app, ip).await), "{ip}");
    }
    let books = sidecar.books().await;
    assert_eq!(books.sum("throughline_captured_connections_total", &[]), 0);
    sidecar.end().await;
}

#[tokio::test]
async fn a_port_on_loopback_only_stays_unreachable_from_outside() {
    let Some(cluster) = Cluster::make().await else { return };
    let (web, sidecar) = cluster.captured("web", "").await;
    let hidden = Service::on(web.listen((Ipv4Addr::LOCALHOST, 8080)), answer(200, "secret"));
    let hidden_v6 = Service::on(web.listen((Ipv6Addr::LOCALHOST, 8081)), answer(200, "secret"));
    for there in [SocketAddr::from((web.v4, 8080)), SocketAddr::from((web.v6, 8081))] {
        let text = "GET / HTTP/1.1\r\nHost: 127.0.0.1:8080\r\nConnection: close\r\n\r\n";
        assert_eq!(said_to(TcpStream::connect(there).await, text).await, "", "{there}");
    }
    assert!(hidden.seen().is_empty() && hidden_v6.seen().is_empty());
    sidecar.end().await;
}

#[tokio::test]
async fn a_connection_to_the_sidecar_itself_leads_nowhere() {
    let Some(cluster) = Cluster::make().await else { return };
    let (web, sidecar) = cluster.captured("web", "").await;
    let before = sidecar.descriptors();
    let to_itself = "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    let (v4, v6) = (web.v4.into(), web.v6.into());
    let mut refused = 0;
    for round in 0..20 {
        // From outside, and from the application; by every address that leads to it.
        for (ip, port) in [(v4, 15106), (v4, 15101), (v6, 15106), (v6, 15101)] {
            let stream = TcpStream::connect(SocketAddr::new(ip, port)).await;
            assert_eq!(said_to(stream, to_itself).await, "", "{ip} {port} in round {round}");
            refused += 1;
        }
        let loopbacks = [
            (Ipv4Addr::LOCALHOST.into(), 15106),
            (Ipv4Addr::LOCALHOST.into(), 15101),
            (std::net::IpAddr::from(Ipv6Addr::LOCALHOST), 15106),
            (Ipv6Addr::LOCALHOST.into(), 15101),
            (v4, 15106),
        ];
        for (ip, port) in loopbacks {
            let stream = web.connect(SocketAddr::new(ip, port));
            assert_eq!(said_to(stream, to_itself).await, "", "{ip} {port} in round {round}");
            refused += 1;
        }
    }
    let books = sidecar.books().await;
    assert_eq!(books.sum("throughline_captured_connections_total", &[("result", "refused")]), refused);
    assert_eq!(books.sum("throughline_captured_connections_total", &[("result", "ok")]), 0);
    eventually("descriptors to be closed", || async { (sidecar.descriptors() <= before + 5).then_some(()) })
        .await;
    sidecar.end().await;
}

#[tokio::test]
async fn the_admin_port_is_reached_and_not_captured() {
    let Some(cluster) = Cluster::make().await else { return };
    let web = cluster.pod("web");
    web.init("");
    let app = application(&web, 5432, answer(200, ""));
    let hidden = web.listen((Ipv4Addr::LOCALHOST, 5433));
    let plan = web.plan().flag("probes", "tcp:5432,tcp:5433,http:5432/");
    let sidecar = web.redirected(plan.start().await).await;
    // As the kubelet asks: from outside, at the pod's address. A port that it could not reach is not ready.
    for (number, status) in [(0, 200), (1, 503), (2, 200)] {
        let answer = Ask::get(sidecar.admin_url(&format!("/probe/{number}"))).send().await;
        assert_eq!(answer.status, status, "{number}: {}", answer.text());
    }
    assert!(!is_traced(&app.saw_one()), "a probe is no request");
    let books = sidecar.books().await;
    assert_eq!(books.sum("throughline_captured_connections_total", &[]), 0);
    assert!(cluster.collector.accepted().is_empty());
    drop(hidden);
    sidecar.end().await;
}

#[tokio::test]
async fn twice_is_once_and_undone_is_gone() {
    let Some(cluster) = Cluster::make().await else { return };
    let web = cluster.pod("web");
    let nothing = web.rules();
    let dry = web.init("--dry-run --exclude-outbound-ports 1");
    assert!(dry.contains("redirect to :15101") && dry.contains("tcp dport 1 return"), "{dry}");
    assert_eq!(web.rules(), nothing, "a dry run changes nothing");
    assert!(!web.try_init("--check").status.success());

    assert!(web.init("").contains("in place (nft)"));
    let once = web.rules();
    assert!(web.init("").contains("in place already"));
    assert_eq!(web.rules(), once);
    web.init("--check");
    // Another wish replaces the rules, all at once.
    assert!(!web.try_init("--check --exclude-inbound-ports 22").status.success());
    web.init("--exclude-inbound-ports 22");
    assert_eq!(web.rules().matches("redirect to :15106").count(), 1);
    web.init("--check --exclude-inbound-ports 22");
    // A foreign hand is seen, and mended.
    web.said(&["nft", "add", "rule", "inet", "throughline", "outbound", "tcp", "dport", "80", "return"]);
    let check = web.try_init("--check --exclude-inbound-ports 22");
    assert!(String::from_utf8_lossy(&check.stderr).contains("are others"), "{check:?}");
    web.init("");
    assert_eq!(web.rules(), once);
    // So is one that took away from them.
    web.said(&["nft", "flush", "chain", "inet", "throughline", "outbound"]);
    assert!(!web.try_init("--check").status.success());
    web.init("");

    assert!(web.init("--undo").contains("no rule of ours is left"));
    assert_eq!(web.rules(), nothing);
    web.init("--undo");
}

#[tokio::test]
async fn iptables_does_the_same_where_nft_is_missing() {
    if installed("iptables-restore").is_none() {
        return;
    }
    let Some(cluster) = Cluster::make().await else { return };
    let web = cluster.pod("web");
    let rules = || {
        let of = |program: &str| {
            let said = web.said(&[program]);
            let lines = said.lines().filter(|line| line.starts_with("-A") || line.contains("THROUGHLINE"));
            lines.map(|line| format!("{line}\n")).collect::<String>()
        };
        of("iptables-save") + &of("ip6tables-save")
    };
    web.said(&["iptables", "-t", "nat", "-A", "OUTPUT", "-p", "tcp", "--dport", "81", "-j", "RETURN"]);
    let theirs = rules();
    web.init("--backend iptables --exclude-outbound-ports 9999 --exclude-outbound-cidrs 203.0.113.0/24");
    let once = rules();
    web.init("--backend iptables --exclude-outbound-ports 9999 --exclude-outbound-cidrs 203.0.113.0/24");
    assert_eq!(rules(), once, "twice is once");
    assert!(
        !web.try_init("--backend iptables --check").status.success(),
        "without exclusions they are others"
    );
    web.init(
        "--backend iptables --check --exclude-outbound-ports 9999 --exclude-outbound-cidrs 203.0.113.0/24",
    );

    let sidecar = web.sidecar().await;
    let here = Service::on(TcpListener::bind((HUB, 0)).await.expect("a port"), answer(200, ""));
    let abroad = Service::on(TcpListener::bind((ELSEWHERE, 0)).await.expect("a port"), answer(200, ""));
    assert!(is_traced(&seen_from(&web, &here, HUB).await));
    assert!(!is_traced(&seen_from(&web, &abroad, ELSEWHERE).await));
    let app = application(&web, 8080, answer(200, ""));
    for ip in [std::net::IpAddr::from(web.v4), web.v6.into()] {
        let before = app.seen().len();
        Ask::get(format!("http://{}/", SocketAddr::new(ip, 8080))).send().await;
        assert!(is_traced(&app.saw(before + 1).await[before]), "{ip}");
    }
    assert!(!is_traced(&seen_from(&web, &app, Ipv4Addr::LOCALHOST).await));
    sidecar.end().await;
    web.init("--undo");
    assert_eq!(rules(), theirs, "rules of others stay");
}

#[tokio::test]
async fn what_stands_in_the_way_is_said() {
    let Some(cluster) = Cluster::make().await else { return };
    let web = cluster.pod("web");
    let refused = web.try_init_as(SIDECARS_USER, "");
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(1), "{said}");
    assert!(said.contains("want the capability NET_ADMIN") && said.contains("capture=reverse"), "{said}");
    assert!(web.try_init_as(SIDECARS_USER, "--dry-run").status.success(), "reading needs nothing");
    let wrong = web.try_init("--exclude-outbound-cidrs 10.0.0.0/99 --proxy-uid 0");
    let said = String::from_utf8_lossy(&wrong.stderr).into_owned();
    assert_eq!(wrong.status.code(), Some(2), "{said}");
    assert!(said.contains("want networks such as") && said.contains("other than root"), "{said}");
    assert_eq!(web.rules(), "");
}
