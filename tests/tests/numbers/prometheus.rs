//! A real Prometheus on loopback that scrapes what a scenario names, and answers its queries.

use std::net::SocketAddr;
use std::process::Command;

use serde_json::Value;
use throughline_tests::judges::{PeerProcess, installed};
use throughline_tests::pki::Folder;
use throughline_tests::prelude::*;
use throughline_tests::sidecar::workspace;

/// The server, ended with the scenario.
pub(crate) struct Prometheus {
    address: SocketAddr,
    _process: PeerProcess,
    _folder: Folder,
}

impl Prometheus {
    /// Starts one that scrapes these admin ports each second and evaluates our rules; `None`, and said so, where it
    /// is not installed.
    pub(crate) async fn scraping(targets: &[SocketAddr]) -> Option<Prometheus> {
        let program = installed("prometheus")?;
        let folder = Folder::fresh();
        let targets: Vec<String> = targets.iter().map(|target| format!("'{target}'")).collect();
        let rules = workspace().join("deploy/grafana/alerts.yaml");
        let settings = format!(
            "global: {{scrape_interval: 1s, evaluation_interval: 1s}}\nrule_files: ['{}']\nscrape_configs:\n\
             - job_name: shop\n  static_configs: [{{targets: [{}]}}]\n",
            rules.display(),
            targets.join(", ")
        );
        let file = folder.file("prometheus.yml");
        std::fs::write(&file, settings).expect("a file in a folder of ours");
        // It has to be told its port: it logs no other. A free one of a moment ago is nearly always free still.
        let free = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = free.local_addr().expect("an address");
        drop(free);
        let mut command = Command::new(program);
        command
            .arg(format!("--config.file={}", file.display()))
            .arg(format!("--storage.tsdb.path={}", folder.file("data").display()))
            .arg(format!("--web.listen-address={address}"))
            .arg("--enable-feature=exemplar-storage")
            .arg("--log.level=warn");
        let process = PeerProcess::start("prometheus", command);
        let prometheus = Prometheus { address, _process: process, _folder: folder };
        eventually("Prometheus to be ready", || async {
            tokio::net::TcpStream::connect(address).await.ok()?;
            let answer = Ask::get(format!("http://{address}/-/ready")).send().await;
            (answer.status == 200).then_some(())
        })
        .await;
        Some(prometheus)
    }

    async fn api(&self, path: &str, query: &str) -> Value {
        let url = format!("http://{}/api/v1/{path}?query={}", self.address, encoded(query));
        let answer = Ask::get(url).send().await;
        let value: Value = serde_json::from_str(&answer.text()).expect("JSON");
        assert_eq!(value["status"], "success", "{query}\n{value}");
        assert!(value.get("warnings").is_none(), "{query}\n{value}");
        value["data"].clone()
    }

    /// The series that a query gives at this moment.
    pub(crate) async fn query(&self, query: &str) -> Vec<Value> {
        let data = self.api("query", query).await;
        data["result"].as_array().expect("a vector").clone()
    }

    /// Exemplars of a series' selector, of the last minutes.
    pub(crate) async fn exemplars(&self, selector: &str) -> Vec<Value> {
        let now =
            std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("a clock").as_secs();
        let url = format!(
            "http://{}/api/v1/query_exemplars?query={}&start={}&end={}",
            self.address,
            encoded(selector),
            now - 600,
            now + 1
        );
        let value: Value = serde_json::from_str(&Ask::get(url).send().await.text()).expect("JSON");
        assert_eq!(value["status"], "success", "{value}");
        value["data"].as_array().expect("a list").clone()
    }

    /// Every rule as Prometheus judges it.
    pub(crate) async fn rules(&self) -> Vec<Value> {
        let url = format!("http://{}/api/v1/rules", self.address);
        let value: Value = serde_json::from_str(&Ask::get(url).send().await.text()).expect("JSON");
        let groups = value["data"]["groups"].as_array().expect("groups").clone();
        groups.iter().flat_map(|group| group["rules"].as_array().expect("rules").clone()).collect()
    }
}

fn encoded(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' => char::from(byte).to_string(),
            other => format!("%{other:02X}"),
        })
        .collect()
}
