//! Which HTTP clients the variables of reverse mode capture: each real one that is installed asks for a page while
//! it has the variables that the injector sets. The table in docs/injector.md says what is found here.

#![expect(clippy::print_stdout, reason = "says what each client did")]

use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};

use throughline_tests::judges::{installed, python, skipped};
use throughline_tests::sidecar::workspace;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::support::Folder;

/// Answers whatever comes, and remembers the first line of each request.
async fn listener() -> (std::net::SocketAddr, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let lines: Arc<Mutex<Vec<String>>> = Arc::default();
    let seen = Arc::clone(&lines);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let seen = Arc::clone(&seen);
            tokio::spawn(async move {
                let mut head = Vec::new();
                while !head.windows(4).any(|end| end == b"\r\n\r\n") && head.len() < 65536 {
                    let mut piece = [0u8; 4096];
                    match stream.read(&mut piece).await {
                        Ok(0) | Err(_) => return,
                        Ok(bytes) => head.extend_from_slice(&piece[..bytes]),
                    }
                }
                let line = String::from_utf8_lossy(&head).lines().next().unwrap_or_default().to_owned();
                seen.lock().unwrap().push(line);
                let _ = stream
                    .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok")
                    .await;
                let _ = stream.shutdown().await;
            });
        }
    });
    (address, lines)
}

/// Runs a client; whether the proxy saw its request. What it asks for lives nowhere but behind the proxy.
async fn is_captured(name: &str, mut command: Command) -> bool {
    let (proxy, lines) = listener().await;
    for variable in ["HTTP_PROXY", "http_proxy"] {
        command.env(variable, format!("http://{proxy}"));
    }
    for variable in ["NO_PROXY", "no_proxy"] {
        command.env(variable, "localhost,127.0.0.1,::1");
    }
    for variable in ["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"] {
        command.env_remove(variable);
    }
    let run = tokio::task::spawn_blocking(move || command.output().unwrap());
    let output = tokio::time::timeout(std::time::Duration::from_secs(60), run)
        .await
        .expect("the client ends")
        .unwrap();
    let seen = lines.lock().unwrap().clone();
    let captured = seen.iter().any(|line| line.starts_with("GET http://shop.invalid"));
    let error = String::from_utf8_lossy(&output.stderr).lines().last().unwrap_or_default().to_owned();
    println!("{name}: {}", if captured { "captured".to_owned() } else { format!("not captured ({error})") });
    captured
}

fn command(program: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(program);
    command.args(arguments);
    command
}

const URL: &str = "http://shop.invalid/cart";

/// The row of the table in docs/injector.md must say what was found.
fn says(client: &str, captured: bool) {
    let page = std::fs::read_to_string(workspace().join("docs/injector.md")).unwrap();
    let row = page.lines().find(|line| line.starts_with(&format!("| {client} |"))).unwrap_or_else(|| {
        panic!("docs/injector.md has no row for {client}");
    });
    let told = row.split('|').nth(2).unwrap().trim().starts_with("yes");
    assert_eq!(told, captured, "docs/injector.md says otherwise: {row}");
}

#[tokio::test(flavor = "multi_thread")]
async fn curl_is_captured_as_the_page_says() {
    let Some(curl) = installed("curl") else { return };
    says("curl, libcurl", is_captured("curl", command(&curl, &["-sS", "-m", "20", URL])).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_of_python_are_captured_as_the_page_says() {
    let Some(interpreter) = python(&["requests", "urllib3"]) else { return };
    for (client, code) in [
        ("Python `urllib.request`", format!("import urllib.request as u; u.urlopen('{URL}', timeout=20).read()")),
        ("Python `requests`", format!("import requests; requests.get('{URL}', timeout=20)")),
        (
            "Python `http.client`",
            "import http.client as h; c=h.HTTPConnection('shop.invalid', timeout=20); c.request('GET', '/cart')".to_owned(),
        ),
        ("Python `urllib3`", format!("import urllib3; urllib3.PoolManager(retries=False).request('GET', '{URL}', timeout=20)")),
    ] {
        let captured = is_captured(client, command(&interpreter, &["-c", &code])).await;
        says(client, captured);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_of_node_are_captured_as_the_page_says() {
    let Some(node) = installed("node") else { return };
    let get = format!(
        "require('http').get('{URL}', r => r.resume()).on('error', e => {{ console.error(e.message); process.exit(1) }})"
    );
    let fetch = format!(
        "fetch('{URL}').then(r => r.text()).catch(e => {{ console.error(e.cause ?? e); process.exit(1) }})"
    );
    says("Node `http.get`", is_captured("Node http.get", command(&node, &["-e", &get])).await);
    says("Node `fetch`", is_captured("Node fetch", command(&node, &["-e", &fetch])).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_client_of_go_is_captured_as_the_page_says() {
    let Some(go) = installed("go") else { return };
    let folder = Folder::new("go-client");
    let program = format!(
        "package main\nimport (\"fmt\"; \"net/http\"; \"os\")\nfunc main() {{ r, err := http.Get(\"{URL}\"); if err != nil {{ fmt.Fprintln(os.Stderr, err); os.Exit(1) }}; r.Body.Close() }}\n"
    );
    let file = folder.write("main.go", &program);
    let binary = folder.0.join("client");
    let mut build = Command::new(&go);
    build
        .args(["build", "-o"])
        .arg(&binary)
        .arg(&file)
        .env("GOCACHE", folder.0.join("cache"))
        .env("GO111MODULE", "off");
    if !build.env("CGO_ENABLED", "0").status().unwrap().success() {
        return skipped("go does not build here");
    }
    says("Go `net/http`", is_captured("Go net/http", Command::new(binary)).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_client_of_java_is_captured_as_the_page_says() {
    let Some(java) = installed("java") else { return };
    let modules = Command::new(&java).arg("--list-modules").output().unwrap();
    if !String::from_utf8_lossy(&modules.stdout).contains("jdk.compiler@") {
        return skipped("java is a runtime without a compiler: apt-get install openjdk-17-jdk-headless");
    }
    let folder = Folder::new("java-client");
    for (client, code) in [
        ("Java `HttpURLConnection`", format!("new java.net.URL(\"{URL}\").openStream().readAllBytes();")),
        (
            "Java `HttpClient`",
            format!(
                "java.net.http.HttpClient.newHttpClient().send(java.net.http.HttpRequest.newBuilder(java.net.URI.create(\"{URL}\")).build(), java.net.http.HttpResponse.BodyHandlers.ofString());"
            ),
        ),
    ] {
        let program =
            format!("class Client {{ public static void main(String[] a) throws Exception {{ {code} }} }}");
        let file = folder.write("Client.java", &program);
        says(client, is_captured(client, command(&java, &[&file])).await);
    }
}
