//! Keeps Secret, served certificate and caBundle right. Every replica does the same: each write names the version
//! that it replaces, so that of two that write at once one starts over with what the other wrote.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::sync::Arc;

use http::Method;
use k8s_openapi::ByteString;
use serde_json::{Value, json};

use crate::api::{Content, Failure};
use crate::certs::{self, Kept, Step};
use crate::injector::Injector;
use crate::json::{items, text};
use crate::log::{Level, tell};
use crate::serve::Certificate;
use crate::telemetry::Scope;

const CONFIGURATIONS: &str = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/{name}";
const SECRETS: &str = "/api/v1/namespaces/{namespace}/secrets";
const SECRET: &str = "/api/v1/namespaces/{namespace}/secrets/{name}";
/// Steps of one look: each is a write, and the next may follow at once.
const STEPS_MAX: usize = 4;

/// Looks once: serves what the Secret has, takes what steps are due, writes caBundle where it is another.
pub async fn look(injector: &Injector, certificate: &Arc<Certificate>) -> Result<(), String> {
    let scope = injector.telemetry.root("look at certificates");
    let looked = rounds(injector, certificate, &scope).await;
    if let Err(why) = &looked {
        scope.error("certificates", why);
        injector.metrics.count("throughline_injector_certificate_errors_total", &[]);
    }
    looked
}

async fn rounds(injector: &Injector, certificate: &Arc<Certificate>, scope: &Scope) -> Result<(), String> {
    let hosts = hosts(injector);
    let lifetimes = &injector.settings.lifetimes;
    for _ in 0..STEPS_MAX {
        let (kept, version) = read_secret(injector, scope).await?;
        if let Some(kept) = &kept {
            serve(injector, certificate, kept)?;
        }
        let published = match &kept {
            Some(kept) => publish(injector, scope, kept).await,
            None => Ok(false),
        };
        let known = matches!(published, Ok(true));
        let now = super::now();
        let step = certs::step(kept.as_ref(), known, now, &hosts, lifetimes);
        if step == Step::Nothing {
            return published.map(|_| ());
        }
        let rotation = scope.child("rotate");
        rotation.set("throughline.certificates.step", step.name());
        let serial = RandomState::new().build_hasher().finish();
        #[expect(clippy::cast_possible_truncation, reason = "any 32 bits of it will do")]
        let taken = certs::take(step, kept.as_ref(), now, &hosts, lifetimes, serial as u32)?;
        let Some(taken) = taken else { return Ok(()) };
        match write_secret(injector, &rotation, &taken, version.as_deref()).await {
            Ok(()) => {
                injector
                    .metrics
                    .count("throughline_injector_certificate_steps_total", &[("step", step.name())]);
                tell(Level::Info, "a step in the life of the certificates", &[("step", step.name())]);
            }
            Err(Failure::Conflict) => {} // another replica was first: read what it wrote
            Err(failure) => {
                let why = format!("the Secret {}: {failure}", injector.settings.secret);
                rotation.error("secret", &why);
                return Err(why);
            }
        }
    }
    Ok(())
}

/// The names by which API servers call us.
pub fn hosts(injector: &Injector) -> Vec<String> {
    let (service, namespace) = (&injector.settings.service, &injector.settings.namespace);
    let mut hosts = vec![
        format!("{service}.{namespace}.svc"),
        format!("{service}.{namespace}.svc.cluster.local"),
        format!("{service}.{namespace}"),
    ];
    hosts.extend(injector.settings.certificate_hosts.iter().cloned());
    hosts
}

fn serve(injector: &Injector, certificate: &Certificate, kept: &Kept) -> Result<(), String> {
    certificate
        .serve(kept)
        .map_err(|error| format!("the certificate in the Secret can't be served: {error}"))?;
    for (name, pem) in [
        ("throughline_injector_certificate_expiry_timestamp_seconds", Some(&kept.certificate)),
        ("throughline_injector_authority_expiry_timestamp_seconds", kept.authorities.first()),
    ] {
        if let Some(facts) = pem.and_then(|pem| certs::facts(pem).ok()) {
            #[expect(clippy::cast_precision_loss, reason = "seconds since 1970")]
            injector.metrics.set(name, facts.not_after() as f64);
        }
    }
    Ok(())
}

async fn read_secret(injector: &Injector, scope: &Scope) -> Result<(Option<Kept>, Option<String>), String> {
    let parameters =
        [("namespace", injector.settings.namespace.as_str()), ("name", &injector.settings.secret)];
    match injector.api.call(scope, Method::GET, SECRET, &parameters, "", None).await {
        Ok(secret) => {
            let version = text(&secret, "/metadata/resourceVersion").map(str::to_owned);
            Ok((Kept::of_secret(&secret), version))
        }
        Err(Failure::NotFound) => Ok((None, None)),
        Err(failure) => Err(format!("the Secret {}: {failure}", injector.settings.secret)),
    }
}

async fn write_secret(
    injector: &Injector,
    scope: &Scope,
    kept: &Kept,
    version: Option<&str>,
) -> Result<(), Failure> {
    let (namespace, name) = (&injector.settings.namespace, &injector.settings.secret);
    let secret = kept.secret(namespace, name, version);
    let parameters = [("namespace", namespace.as_str()), ("name", name.as_str())];
    let content = Some(Content::Json(&secret));
    let written = match version {
        Some(_) => injector.api.call(scope, Method::PUT, SECRET, &parameters, "", content).await,
        None => injector.api.call(scope, Method::POST, SECRETS, &parameters, "", content).await,
    };
    written.map(|_| ())
}

/// Whether caBundle has what it must have; writes it where it has not, and then it is not known yet.
async fn publish(injector: &Injector, scope: &Scope, kept: &Kept) -> Result<bool, String> {
    let name = &injector.settings.webhook;
    let parameters = [("name", name.as_str())];
    let told = |failure: &Failure| format!("the MutatingWebhookConfiguration {name}: {failure}");
    let configuration = injector
        .api
        .call(scope, Method::GET, CONFIGURATIONS, &parameters, "", None)
        .await
        .map_err(|failure| told(&failure))?;
    let wanted = kept.bundle();
    let wrong: Vec<usize> = certs::bundles(&configuration)
        .iter()
        .enumerate()
        .filter(|(_, bundle)| **bundle != wanted)
        .map(|(index, _)| index)
        .collect();
    if wrong.is_empty() {
        return Ok(!items(&configuration, "/webhooks").is_empty());
    }
    let version = configuration.pointer("/metadata/resourceVersion").cloned().unwrap_or(Value::Null);
    let mut patch = vec![json!({"op": "test", "path": "/metadata/resourceVersion", "value": version})];
    let encoded = json!(ByteString(wanted.into_bytes()));
    patch.extend(wrong.iter().map(
        |index| json!({"op": "add", "path": format!("/webhooks/{index}/clientConfig/caBundle"), "value": encoded}),
    ));
    let repair = scope.child("repair caBundle");
    let content = Value::Array(patch);
    let written = injector
        .api
        .call(&repair, Method::PATCH, CONFIGURATIONS, &parameters, "", Some(Content::Patch(&content)))
        .await;
    match written {
        Ok(_) => {
            injector.metrics.count("throughline_injector_ca_bundle_repairs_total", &[]);
            tell(Level::Info, "caBundle was written", &[("webhook", name)]);
            Ok(true)
        }
        // Somebody else wrote it meanwhile: the next look sees what.
        Err(Failure::Conflict | Failure::Refused(422, _)) => Ok(false),
        Err(failure) => Err(told(&failure)),
    }
}
