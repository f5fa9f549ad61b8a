//! The images: linted, with the names, users and ports that the manifests count on. There is no registry here, so only
//! the one that stands on nothing is built, and only where buildah is.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use throughline_injector::names;
use throughline_tests::judges::{installed, skipped};
use throughline_tests::pki::Folder;
use throughline_tests::sidecar::workspace;

use crate::render::{everything, list, objects, pod, text};

fn dockerfile() -> String {
    std::fs::read_to_string(workspace().join("deploy/docker/Dockerfile")).expect("a Dockerfile")
}

/// The lines of a stage.
fn stage(name: &str) -> Vec<String> {
    let text = dockerfile();
    let end = format!(" AS {name}");
    let lines = text.lines().skip_while(move |line| !line.ends_with(&end)).skip(1);
    lines.take_while(|line| !line.starts_with("FROM ")).map(str::to_owned).collect()
}

fn instruction(name: &str, which: &str) -> String {
    let lines = stage(name);
    let line =
        lines.iter().find_map(|line| line.strip_prefix(which)).unwrap_or_else(|| panic!("{name}: {which}"));
    line.trim().to_owned()
}

#[test]
fn hadolint_finds_nothing() {
    let linter = workspace().join("target/judges/bin/hadolint");
    if !linter.is_file() {
        skipped(&format!("{} is missing: scripts/setup test installs it from PyPI", linter.display()));
        return;
    }
    let files = ["deploy/docker/Dockerfile", "deploy/istio/Dockerfile"];
    let output = Command::new(linter).args(files).current_dir(workspace()).output().expect("hadolint runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

#[test]
fn every_image_of_ours_is_a_stage() {
    for (name, rendered) in everything() {
        for object in objects(&rendered) {
            let Some(template) = pod(&object) else { continue };
            for container in list(template, "/spec/containers") {
                let image = text(container, "/image");
                let Some((_, ours)) = image.split_once("throughline-") else { continue };
                let target = ours.split([':', '@']).next().unwrap_or("");
                assert!(!stage(target).is_empty(), "{name}: {image}");
                assert!(image.ends_with(&format!(":{}", names::VERSION)), "{name}: {image}");
                let user = format!("{0}:{0}", template["spec"]["securityContext"]["runAsUser"]);
                assert_eq!(instruction(target, "USER"), user, "{name}: {image}");
                let ports: Vec<String> =
                    list(container, "/ports").map(|port| port["containerPort"].to_string()).collect();
                assert_eq!(instruction(target, "EXPOSE"), ports.join(" "), "{name}: {image}");
            }
        }
    }
}

#[test]
fn what_is_injected_runs_as_its_user_on_its_ports() {
    for target in ["proxy", "envoy"] {
        assert_eq!(instruction(target, "USER"), format!("{0}:{0}", names::PROXY_UID));
        let ports = format!("{} {} {}", names::INBOUND_PORT, names::OUTBOUND_PORT, names::ADMIN_PORT);
        assert_eq!(instruction(target, "EXPOSE"), ports);
    }
    let defaults = throughline_injector::settings::defaults().expect("defaults");
    assert_eq!(defaults.injecting.sidecar_image, format!("throughline-proxy:{}", names::VERSION));
    assert_eq!(defaults.injecting.envoy_image, format!("throughline-envoy:{}", names::VERSION));
    assert!(stage("proxy").join("\n").contains(" nftables"), "the rules need nft");
    assert!(stage("envoy").iter().any(|line| line.ends_with(" /etc/throughline/throughline.wasm")));
}

#[test]
fn the_compiler_is_the_one_that_the_workspace_asks_for() {
    let manifest = std::fs::read_to_string(workspace().join("Cargo.toml")).expect("a manifest");
    let manifest: toml::Table = toml::from_str(&manifest).expect("TOML");
    let version = manifest["workspace"]["package"]["rust-version"].as_str().expect("a version");
    assert!(dockerfile().contains(&format!("ARG RUST_IMAGE=docker.io/library/rust:{version}-")), "{version}");
    for member in manifest["workspace"]["members"].as_array().expect("members") {
        let member = member.as_str().expect("a path");
        let ignore = std::fs::read_to_string(workspace().join(".dockerignore")).expect("a list");
        assert!(ignore.lines().any(|line| line == format!("!{member}")), ".dockerignore leaves {member} out");
    }
}

/// Files that the sources take in by `include_bytes!` and `include_str!` must reach the build too.
#[test]
fn what_the_programs_include_is_in_what_the_images_are_built_from() {
    let ignore = std::fs::read_to_string(workspace().join(".dockerignore")).expect("a list");
    let taken: Vec<_> = ignore.lines().filter_map(|line| line.strip_prefix('!')).map(PathBuf::from).collect();
    let mut folders: Vec<_> = ["core", "rim", "proxy", "injector", "flow", "wasm-filter"]
        .iter()
        .map(|name| workspace().join(name).join("src"))
        .collect();
    let mut seen = 0;
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).expect("a folder").flatten() {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let text = std::fs::read_to_string(&path).unwrap_or_default();
            for part in text.split("include_").skip(1) {
                let Some(name) = part.strip_prefix("bytes!(\"").or_else(|| part.strip_prefix("str!(\""))
                else {
                    continue;
                };
                let name = name.split('"').next().unwrap_or_default();
                let whole = folder.join(name).canonicalize().expect("a file that is included");
                let within = whole.strip_prefix(workspace().canonicalize().expect("a path")).expect("ours");
                assert!(
                    taken.iter().any(|root| within.starts_with(root)),
                    "{} is left out",
                    within.display()
                );
                seen += 1;
            }
        }
    }
    assert!(seen > 5, "{seen}");
}

fn buildah(buildah: &Path, folder: &Folder, arguments: &[&str]) -> String {
    let root = folder.file("storage");
    let mut command = Command::new(buildah);
    command.args(["--storage-driver", "vfs", "--root"]).arg(&root).arg("--runroot").arg(folder.file("run"));
    let output = command.args(arguments).output().expect("buildah runs");
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// What Istio's agent fetches: one layer, and in it one file at the root.
#[test]
fn the_modules_image_has_one_layer_with_the_module_in_it() {
    let module = workspace().join("target/wasm/throughline.wasm");
    if !module.is_file() {
        skipped("target/wasm/throughline.wasm is missing: scripts/wasm builds it");
        return;
    }
    let Some(program) = installed("buildah") else { return };
    let folder = Folder::fresh();
    let context = folder.file("context");
    std::fs::create_dir(&context).expect("a folder");
    std::fs::copy(&module, context.join("throughline.wasm")).expect("the module");
    let file = workspace().join("deploy/istio/Dockerfile");
    let text = |path: &Path| path.to_str().expect("UTF-8").to_owned();
    buildah(
        &program,
        &folder,
        &["bud", "--isolation", "chroot", "-f", &text(&file), "-t", "filter:1", &text(&context)],
    );
    let archive = folder.file("image");
    buildah(&program, &folder, &["push", "filter:1", &format!("oci:{}", text(&archive))]);
    let blob = |digest: &str| archive.join("blobs/sha256").join(digest.trim_start_matches("sha256:"));
    let json = |path: &Path| -> Value {
        serde_json::from_slice(&std::fs::read(path).expect("a file")).expect("JSON")
    };
    let index = json(&archive.join("index.json"));
    let manifest = json(&blob(crate::render::text(&index, "/manifests/0/digest")));
    let layers: Vec<&str> =
        list(&manifest, "/layers").map(|layer| crate::render::text(layer, "/digest")).collect();
    assert_eq!(layers.len(), 1, "{manifest}");
    let layer = blob(layers[0]);
    let listed = Command::new("tar").args(["-tzf", &text(&layer)]).output().expect("tar runs");
    let listed = String::from_utf8_lossy(&listed.stdout).trim().to_owned();
    assert_eq!(listed.trim_start_matches("./").trim_start_matches('/'), "plugin.wasm");
    let unpacked = Command::new("tar").args(["-xzOf", &text(&layer)]).output().expect("tar runs");
    assert!(unpacked.stdout == std::fs::read(&module).expect("the module"), "the module, byte for byte");
}
