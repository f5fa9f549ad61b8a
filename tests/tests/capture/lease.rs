//! The kernel's lease: a sidecar that is dead, hung or drained is no outage, and one that is back is used again.

use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use throughline_tests::cluster::{ANOTHER_USER, Cluster, HUB, HUB_V6, LEASE, Pod, SIDECARS_USER};
use throughline_tests::judges::installed;
use throughline_tests::prelude::*;
use tokio::net::TcpListener;

use super::{application, is_traced};

/// An application in a pod, and services in the hub that it calls.
struct Stage {
    app: Service,
    abroad: [Service; 2],
}

impl Stage {
    async fn set(web: &Pod) -> Stage {
        let hub = [IpAddr::from(HUB), HUB_V6.into()];
        let mut abroad = Vec::new();
        for ip in hub {
            let listener = TcpListener::bind((ip, 0)).await.expect("a port");
            abroad.push(Service::on(listener, answer(200, "")));
        }
        let abroad = abroad.try_into().expect("two");
        Stage { app: application(web, 8080, answer(200, "")), abroad }
    }

    /// One request each way, in both families: whether it was captured; none where it failed.
    async fn each_way(&self, web: &Pod) -> [Option<bool>; 4] {
        let inbound = |ip: IpAddr| async move {
            let before = self.app.seen().len();
            let url = format!("http://{}/", SocketAddr::new(ip, 8080));
            let answer = Ask::get(url).try_send().await.ok()?;
            (answer.status == 200).then_some(())?;
            Some(is_traced(self.app.saw(before + 1).await.last()?))
        };
        let outbound = |service: &'_ Service| {
            let (before, there) = (service.seen().len(), service.address);
            let stream = web.connect(there);
            let ask = Ask::get(service.url("/"));
            async move {
                let mut connection = Connection::over(stream.ok()?, Protocol::H1).await.ok()?;
                let answer = connection.try_ask(ask).await.ok()?;
                (answer.status() == 200).then_some(before)
            }
        };
        let mut all = [inbound(web.v4.into()).await, inbound(web.v6.into()).await, None, None];
        for (service, outcome) in self.abroad.iter().zip(&mut all[2..]) {
            if let Some(before) = outbound(service).await {
                *outcome = service.saw(before + 1).await.last().map(is_traced);
            }
        }
        all
    }

    /// Waits until every way is as wanted; how long it took.
    async fn until(&self, web: &Pod, what: &str, wanted: bool) -> std::time::Duration {
        let began = Instant::now();
        eventually(what, || async { (self.each_way(web).await == [Some(wanted); 4]).then_some(()) }).await;
        began.elapsed()
    }
}

/// Killed, and back: with the rules of this program.
async fn killed_and_back(init: &str) {
    let Some(cluster) = Cluster::make().await else { return };
    let web = cluster.pod("web");
    let stage = Stage::set(&web).await;
    assert_eq!(stage.each_way(&web).await, [Some(false); 4], "no rules");
    web.init(init);
    assert_eq!(stage.each_way(&web).await, [Some(false); 4], "rules, and nobody who holds the lease");
    let sidecar = web.sidecar().await;
    assert_eq!(stage.each_way(&web).await, [Some(true); 4]);
    // A connection that was made directly, before, is not touched by what comes.
    sidecar.kill().await;
    let took = stage.until(&web, "connections to go directly", false).await;
    println!("direct again after {took:?}");
    // The kernel's timer, and what the requests of the look itself took on a busy machine.
    assert!(took < LEASE * 2, "{took:?}");
    let mut kept = Wire::to((web.v4, 8080).into()).await;
    kept.send("GET /1 HTTP/1.1\r\nHost: x\r\n\r\n").await;
    kept.head().await;
    let sidecar = web.sidecar().await;
    assert_eq!(stage.each_way(&web).await, [Some(true); 4], "back");
    kept.send("GET /2 HTTP/1.1\r\nHost: x\r\n\r\n").await;
    kept.head().await;
    sidecar.end().await;
}

#[tokio::test]
async fn a_killed_sidecar_is_no_outage_and_one_that_is_back_is_used() {
    killed_and_back("").await;
}

#[tokio::test]
async fn the_same_with_rules_of_iptables() {
    if installed("iptables-restore").is_some() {
        killed_and_back("--backend iptables").await;
    }
}

#[tokio::test]
async fn a_sidecar_that_hangs_is_no_outage() {
    let Some(cluster) = Cluster::make().await else { return };
    let (web, sidecar) = cluster.captured("web", "").await;
    let stage = Stage::set(&web).await;
    assert_eq!(stage.each_way(&web).await, [Some(true); 4]);
    sidecar.freeze();
    // What is redirected into its queue meanwhile waits there: asked is only when the lease is over.
    eventually("the lease to be over", || async {
        web.said(&["nft", "list", "set", "inet", "throughline", "lease"])
            .contains("elements")
            .eq(&false)
            .then_some(())
    })
    .await;
    assert_eq!(stage.each_way(&web).await, [Some(false); 4]);
    sidecar.thaw();
    stage.until(&web, "connections to be captured again", true).await;
    sidecar.end().await;
}

#[tokio::test]
async fn a_sidecar_that_drains_lets_go_before_it_closes() {
    let Some(cluster) = Cluster::make().await else { return };
    let (web, mut sidecar) = cluster.captured("web", "").await;
    let stage = Stage::set(&web).await;
    // One that is captured holds the drain; it is served to its end.
    let mut kept = Wire::to((web.v4, 8080).into()).await;
    kept.send("GET /1 HTTP/1.1\r\nHost: x\r\n\r\n").await;
    kept.head().await;
    sidecar.terminate();
    sidecar.logged(|line| line["message"] == "draining").await;
    let began = Instant::now();
    while began.elapsed() < LEASE / 2 {
        let ways = stage.each_way(&web).await;
        assert!(ways.iter().all(Option::is_some), "nobody is refused: {ways:?}");
    }
    stage.until(&web, "connections to go directly", false).await;
    assert_eq!(sidecar.exit().await, Some(0));
}

#[tokio::test]
async fn nobody_else_holds_the_lease() {
    let Some(cluster) = Cluster::make().await else { return };
    let web = cluster.pod("web");
    web.init("");
    for (user, held) in [(ANOTHER_USER, false), (SIDECARS_USER, true)] {
        for loopback in ["127.0.0.1", "::1"] {
            let beat = format!("echo beat >/dev/udp/{loopback}/15199");
            let words = Pod::as_user(user);
            let words: Vec<&str> = words.iter().map(String::as_str).chain(["bash", "-c", &beat]).collect();
            web.run(&words); // the kernel tells the sidecar's user that it was not sent
        }
        let lease = web.said(&["nft", "list", "set", "inet", "throughline", "lease"]);
        assert_eq!(lease.contains("elements"), held, "{user}: {lease}");
    }
}

#[tokio::test]
async fn a_sidecar_that_is_full_lets_go() {
    let Some(cluster) = Cluster::make().await else { return };
    let web = cluster.pod("web");
    web.init("");
    let stage = Stage::set(&web).await;
    let sidecar = web.redirected(web.plan().flag("connections-max", 2).start().await).await;
    assert_eq!(stage.each_way(&web).await, [Some(true); 4]);
    let silent = [Wire::to((web.v4, 8080).into()).await, Wire::to((web.v4, 8080).into()).await];
    eventually("the lease to be over", || async {
        let lease = web.said(&["nft", "list", "set", "inet", "throughline", "lease"]);
        (!lease.contains("elements")).then_some(())
    })
    .await;
    assert_eq!(stage.each_way(&web).await, [Some(false); 4], "whoever finds no place goes directly");
    drop(silent);
    stage.until(&web, "connections to be captured again", true).await;
    sidecar.end().await;
}

#[tokio::test]
async fn a_proxy_that_cannot_beat_is_redirected_to_without_a_lease() {
    let Some(cluster) = Cluster::make().await else { return };
    let web = cluster.pod("web");
    let stage = Stage::set(&web).await;
    for backend in ["nft", "iptables"] {
        let init = format!("--no-lease --backend {backend}");
        web.init(&init);
        web.init(&format!("{init} --check"));
        assert_eq!(stage.each_way(&web).await, [None; 4], "{backend}: nobody is there to take them");
        // Where the kernel has no lease for iptables, these are what can be had.
        let leased = web.try_init(&format!("--check --backend {backend}")).status.success();
        assert_eq!(leased, backend == "iptables");
        let sidecar = web.plan().start().await;
        assert_eq!(stage.each_way(&web).await, [Some(true); 4], "{backend}");
        sidecar.end().await;
        web.init("--undo");
        assert_eq!(stage.each_way(&web).await, [Some(false); 4], "{backend}");
    }
}
