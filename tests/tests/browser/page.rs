//! Operations of a real browser, from the gesture in a page to the spans at the collector.

use std::time::Duration;

use throughline_tests::feed::fed;
use throughline_tests::judges::Browser;
use throughline_tests::prelude::*;
use throughline_tests::service::{Seen, read, response};

use crate::gateway;

/// No inline script, no other origin, nothing evaluated.
const STRICT: &str = "default-src 'self'";

/// A shop that serves a page and an API; `/api/` calls the stock behind it. `connect` are origins that the page's
/// policy lets it call beside its own.
fn shop(stock: String, allowed: String, foreign: String) -> Script {
    script(move |visit| {
        let (stock, allowed, foreign) = (stock.clone(), allowed.clone(), foreign.clone());
        async move {
            let path = visit.request.uri().path().to_owned();
            match path.as_str() {
                "/" | "/shelf" | "/done" => {
                    let policy = match allowed.as_str() {
                        "" => STRICT.to_owned(),
                        _ => format!("{STRICT}; connect-src 'self' blob: {allowed} {foreign}"),
                    };
                    let page = include_str!("shop/index.html").replace("ORIGINS", &allowed);
                    let page = page.replace("ALLOWED", &allowed).replace("FOREIGN", &foreign);
                    let mut page = response(200, page);
                    let headers = page.headers_mut();
                    headers.insert("content-type", "text/html".parse().expect("a value"));
                    headers.insert("content-security-policy", policy.parse().expect("a value"));
                    headers.insert("set-cookie", "theme=dark; Path=/".parse().expect("a value"));
                    page
                }
                "/app.js" => {
                    let mut code = response(200, include_str!("shop/app.js"));
                    code.headers_mut().insert("content-type", "text/javascript".parse().expect("a value"));
                    code
                }
                "/order" => {
                    let mut moved = response(303, "");
                    moved.headers_mut().insert("location", "/done".parse().expect("a value"));
                    moved
                }
                "/api/drip" => {
                    let (feeder, body) = fed();
                    tokio::spawn(async move {
                        for piece in ["slow", "ly"] {
                            tokio::time::sleep(Duration::from_millis(150)).await; // longer than the window
                            feeder.send(piece).await;
                        }
                    });
                    http::Response::new(body)
                }
                "/api/fail" => response(500, "{}"),
                "/api/never" => std::future::pending().await,
                "/api/one" => {
                    let ask = Ask::get(&stock).copied(Copying::Everything.from(visit.request.headers()));
                    visit.outbound.send(ask).await;
                    response(200, format!("{{\"path\":\"{path}\"}}"))
                }
                _ if path.starts_with("/api/") => response(200, read(visit.request).await),
                _ => response(204, ""),
            }
        }
    })
}

/// A shop behind its gateway, and the stock behind that.
struct World {
    mesh: Mesh,
    gateway: Pod,
    stock: Pod,
}

impl World {
    async fn new() -> World {
        World::beside(String::new(), String::new()).await
    }

    async fn beside(allowed: String, foreign: String) -> World {
        let mesh = Mesh::new().await;
        let stock = mesh.pod("stock").runs(answer(200, "")).await;
        let gateway = gateway(&mesh).runs(shop(stock.url("/items"), allowed, foreign)).await;
        World { mesh, gateway, stock }
    }

    /// The spans of the operation, once the page has told of it.
    async fn operation(&self, name: &str) -> Vec<Span> {
        let is_root =
            |span: &Span| span.service() == "shop-ui" && span.name == name && span.parent.is_empty();
        let what = format!("{name} of a page");
        let spans = self.mesh.collector.spans_when(&what, |spans| spans.iter().any(is_root));
        let root = the_only(&spans.await, is_root);
        self.mesh.collector.accepted().into_iter().filter(|span| span.trace == root.trace).collect()
    }

    async fn end(self) -> Vec<Span> {
        let rejected: Vec<_> = {
            let books = self.gateway.books().await;
            let results = books.labels("throughline_browser_spans_total", "result").into_iter();
            let bad = results.filter(|result| !["taken", "unsampled"].contains(&result.as_str()));
            bad.filter(|result| {
                books.sum("throughline_browser_spans_total", &[("result", result.as_str())]) > 0
            })
            .collect()
        };
        assert_eq!(rejected, [""; 0], "spans of an honest page are taken");
        self.mesh.end([self.gateway, self.stock]).await
    }
}

fn root_of(spans: &[Span]) -> Span {
    the_only(spans, |span| span.service() == "shop-ui" && span.parent.is_empty())
}

fn paths(spans: &[Span], service: &str, kind: Kind) -> Vec<String> {
    let of = spans.iter().filter(|span| span.service() == service && span.kind == kind);
    let mut paths: Vec<_> = of.map(|span| span["url.path"].as_str().unwrap_or_default().to_owned()).collect();
    paths.sort();
    paths
}

fn at(seen: &[Seen], path: &str) -> Seen {
    let found: Vec<_> = seen.iter().filter(|seen| seen.uri.path() == path).collect();
    assert_eq!(found.len(), 1, "{path}: {seen:#?}");
    found[0].clone()
}

#[tokio::test]
async fn one_gesture_is_one_trace_across_awaits_timers_bodies_and_xhr() {
    let Some(browser) = Browser::found() else { return };
    let world = World::new().await;
    let url = world.gateway.url("/");
    let values = browser
        .does(&[
            &["goto", &url],
            &["click", "#chain b"],
            &["text", "#out", "/api/one slowly as it was"],
            &["value", "idle()"],
            &["value", "cookies()"],
        ])
        .await;
    assert_eq!(values, ["idle", "theme=dark"], "our own cookie is gone with the operation");
    let spans = world.operation("login").await;
    let root = root_of(&spans);
    assert_eq!(root.kind, Kind::Internal);
    for (key, value) in [
        ("ui.event", "button_click"),
        ("ui.result", "ok"),
        ("app.operation.name", "login"),
        ("app.operation.attribution", "window"),
        ("url.path", "/"),
        ("throughline.sampled.by", "parentbased_traceidratio"),
    ] {
        let expected = if key == "throughline.sampled.by" { "ratio" } else { value };
        assert_eq!(root[key], expected, "{key}");
    }
    assert!(root["user_agent.original"].as_str().is_some_and(|agent| agent.contains("Chrom")));
    let asked = ["/api/drip", "/api/four", "/api/one", "/api/three"];
    assert_eq!(paths(&spans, "shop-ui", Kind::Client), asked);
    assert_eq!(paths(&spans, "gateway", Kind::Server), asked);
    for server in spans.iter().filter(|span| span.service() == "gateway" && span.kind == Kind::Server) {
        let client = the_only(&spans, |span| span.id == server.parent);
        assert_eq!((client.parent.as_str(), client.service()), (root.id.as_str(), "shop-ui"));
        assert_eq!(client["url.path"], server["url.path"]);
        assert!(root.start <= client.start && client.end <= root.end + 1_000_000, "{client:?} {root:?}");
    }
    assert!(spans.iter().any(|span| span.service() == "stock"), "whole behind the edge: {spans:?}");
    assert!(spans.iter().all(|span| span["app.operation.name"] == "login"), "{spans:?}");
    assert_connected(&spans, &[]);
    let seen = world.gateway.app().seen();
    assert_eq!(at(&seen, "/api/drip").header("x-own"), Some("kept"));
    let three = at(&seen, "/api/three");
    assert_eq!(three.header("x-own"), Some("kept"));
    let baggage = three.header("baggage").unwrap_or_default().replace(' ', "");
    assert_eq!(baggage, "user=7,app.operation.name=login");
    for seen in &seen {
        assert!(!seen.header("cookie").unwrap_or_default().contains("_tl_op"), "{seen:?}");
    }
    assert_eq!(at(&seen, "/api/four").header("cookie"), Some("theme=dark"));
    world.end().await;
}

#[tokio::test]
async fn parallel_requests_are_one_operation_and_overlapping_ones_are_told_apart() {
    let Some(browser) = Browser::found() else { return };
    let world = World::new().await;
    let url = world.gateway.url("/");
    browser
        .does(&[
            &["goto", &url],
            &["click", "#parallel"],
            &["text", "#out", "#parallel done"],
            &["value", "idle()"],
            &["click", "#overlap"],
            &["text", "#out", "preview_with_blanks RangeError"],
            &["value", "idle()"],
            &["click", "#quiet"],
            &["value", "idle()"],
        ])
        .await;
    let search = world.operation("search").await;
    assert_eq!(
        paths(&search, "gateway", Kind::Server),
        ["/api/a", "/api/after", "/api/b", "/api/c", "/api/d"]
    );
    let upload = world.operation("upload").await;
    assert_eq!(paths(&upload, "gateway", Kind::Server), ["/api/upload/1", "/api/upload/2"]);
    let preview = world.operation("preview_with_blanks").await;
    assert_eq!(paths(&preview, "gateway", Kind::Server), ["/api/preview"]);
    let broken = root_of(&world.operation("broken").await);
    assert_eq!((&broken["ui.result"], &broken["error.type"]), (&"error".into(), &"RangeError".into()));
    assert_eq!(
        (broken.status, broken["app.operation.attribution"].as_str()),
        (SpanStatus::Error, Some("explicit"))
    );
    let spans = world.end().await;
    assert_connected(&spans, &[]);
    let text = format!("{:?}", spans.iter().filter(|span| span.service() == "shop-ui").collect::<Vec<_>>());
    assert!(!text.contains("secret"), "a page tells no query");
    assert!(!spans.iter().any(|span| span.name == "nothing"), "nothing was asked, so there is no trace");
}

#[tokio::test]
async fn forms_links_and_navigations_by_script_carry_their_operation() {
    let Some(browser) = Browser::found() else { return };
    let world = World::new().await;
    let (url, done, shelf) =
        (world.gateway.url("/"), world.gateway.url("/done"), world.gateway.url("/shelf"));
    let values = browser
        .does(&[
            &["goto", &url],
            &["press", "#caught input", "Enter"],
            &["text", "#out", "#caught done"],
            &["value", "idle()"],
            &["click", "#native button"],
            &["at", &done],
            &["value", "cookies()"],
            &["click", "#link"],
            &["at", &shelf],
            &["value", "cookies()"],
            &["goto", &url],
            &["click", "#away"],
            &["at", &shelf],
            &["click", "#plain"],
            &["value", "cookies()"],
        ])
        .await;
    assert_eq!(values, ["idle", "theme=dark", "theme=dark", "theme=dark"]);
    for (name, event, requests) in [
        ("subscribe", "form_submit", &["/api/subscribe"][..]),
        ("checkout", "form_submit", &["/done", "/order"]),
        ("browse", "link_click", &["/shelf"]),
        ("leave", "button_click", &["/api/before", "/shelf"]),
    ] {
        let spans = world.operation(name).await;
        let root = root_of(&spans);
        assert_eq!((&root["ui.event"], &root["ui.result"]), (&event.into(), &"ok".into()), "{name}");
        assert_eq!(paths(&spans, "gateway", Kind::Server), requests, "{name}");
        for server in spans.iter().filter(|span| span.service() == "gateway" && span.kind == Kind::Server) {
            let by_page = spans.iter().any(|span| span.id == server.parent && span.service() == "shop-ui");
            assert!(by_page, "{name}: {server:?}");
        }
        assert!(spans.iter().all(|span| span["app.operation.name"] == name), "{name}: {spans:?}");
        assert_connected(&spans, &[]);
    }
    for seen in world.gateway.app().seen() {
        assert!(!seen.header("cookie").unwrap_or_default().contains("_tl_op"), "{seen:?}");
    }
    world.end().await;
}

#[tokio::test]
async fn what_failed_or_was_left_is_told_as_such() {
    let Some(browser) = Browser::found() else { return };
    let world = World::new().await;
    let url = world.gateway.url("/");
    // The browser itself tells the console of a status from 400 on, so these pages are looked at apart.
    let values = browser
        .tries(&[
            &["goto", &url],
            &["click", "#fail"],
            &["text", "#out", "pay 500"],
            &["value", "idle()"],
            &["click", "#slow"],
            &["text", "#out", "asked"],
            &["goto", &url],
        ])
        .await;
    let errors = values.1;
    assert!(errors.len() == 1 && errors[0].contains("/api/fail"), "{errors:?}");
    let pay = world.operation("pay").await;
    let root = root_of(&pay);
    assert_eq!((&root["ui.result"], &root["error.type"]), (&"error".into(), &"500".into()));
    let client = the_only(&pay, |span| span.kind == Kind::Client && span.service() == "shop-ui");
    assert_eq!((&client["http.response.status_code"], client.status), (&500.into(), SpanStatus::Error));
    let report = root_of(&world.operation("report").await);
    assert_eq!(report["ui.result"], "abandoned");
    world.end().await;
}

#[tokio::test]
async fn other_origins_get_nothing_unless_they_are_listed() {
    let Some(browser) = Browser::found() else { return };
    // Origins that let any page ask them anything.
    let open = || {
        script(|visit| async move {
            let asked = visit.request.headers().get("access-control-request-headers").cloned();
            let mut answer = response(200, "");
            let headers = answer.headers_mut();
            headers.insert("access-control-allow-origin", "*".parse().expect("a value"));
            if let Some(asked) = asked {
                headers.insert("access-control-allow-headers", asked);
            }
            answer
        })
    };
    let (listed, foreign) = (Service::playing(open()).await, Service::playing(open()).await);
    let world = World::beside(listed.url(""), foreign.url("")).await;
    let url = world.gateway.url("/");
    browser
        .does(&[
            &["goto", &url],
            &["click", "#cross"],
            &["text", "#out", "#cross done"],
            &["value", "idle()"],
            &["click", "#own"],
            &["text", "#out", "#own done"],
            &["value", "idle()"],
        ])
        .await;
    let ours = ["traceparent", "x-operation-name", "baggage"];
    for seen in foreign.seen() {
        assert!(ours.iter().all(|name| seen.header(name).is_none()), "{seen:?}");
        assert_ne!(seen.method, "OPTIONS", "nothing was added, so nobody had to be asked: {seen:?}");
        assert_eq!(seen.header("cookie").unwrap_or_default(), "");
    }
    assert_eq!(foreign.seen().len(), 3);
    let seen = listed.seen();
    let get = seen.iter().find(|seen| seen.method == "GET").expect("asked");
    assert_eq!(get.header("x-operation-name"), Some("cross"));
    let spans = world.operation("cross").await;
    assert_eq!(root_of(&spans).trace, get.traceparent().trace);
    assert_eq!(paths(&spans, "gateway", Kind::Server), ["/api/home"]);
    assert_eq!(paths(&spans, "shop-ui", Kind::Client), ["/api/home", "/listed"]);
    // A context of the page's own stays, and is not ours to go on with or to tell of.
    let seen = world.gateway.app().seen();
    assert!(at(&seen, "/api/no-cors").header("x-operation-name").is_none());
    let own: Vec<_> = seen.iter().filter(|seen| seen.uri.path() == "/api/own").collect();
    let operations: Vec<_> = own.iter().map(|seen| seen.header("x-operation-name")).collect();
    assert_eq!(operations, [Some("its-own"), Some("own")]);
    assert!(own.iter().all(|seen| seen.traceparent().trace == "1".repeat(32)), "{own:?}");
    let spans = world.operation("own").await;
    assert_eq!(paths(&spans, "gateway", Kind::Server), ["/api/ours"]);
    assert_eq!(paths(&spans, "shop-ui", Kind::Client), ["/api/ours"]);
    world.end().await;
}
