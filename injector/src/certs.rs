//! The life of authority and serving certificate. `step` decides, from what is kept, what is published and the
//! time; the rest makes and reads certificates. Must never sign what is served by an authority that caBundle did
//! not have for a while, nor take one out of caBundle that may still be served.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::ByteString;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};
use time::OffsetDateTime;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use crate::json::{entry, text};
use crate::settings::Lifetimes;

/// Keys of the Secret. The first two are those of Kubernetes' type `kubernetes.io/tls`.
const CERTIFICATE: &str = "tls.crt";
const KEY: &str = "tls.key";
/// All authorities that are trusted, the newest first: what caBundle must be.
const AUTHORITIES: &str = "ca.crt";
const AUTHORITY_KEY: &str = "ca.key";
/// Annotations of the Secret: seconds since 1970.
const PUBLISHED_AT: &str = "throughline.dev/authority-published-at";
const SERVED_AT: &str = "throughline.dev/certificate-made-at";
/// Certificates are valid from a little before they are made: clocks differ.
const CLOCKS_DIFFER: Duration = Duration::from_secs(300);

/// What a Secret holds.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Kept {
    /// PEM of each authority, the newest first.
    pub authorities: Vec<String>,
    /// PEM of the newest one's key.
    pub authority_key: String,
    /// PEM of what is served.
    pub certificate: String,
    /// PEM of its key.
    pub key: String,
    /// When the newest authority was first seen in caBundle; `None` before that.
    pub published_at: Option<u64>,
    /// When the certificate was made.
    pub made_at: u64,
}

/// What is to be done next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    /// All is well.
    Nothing,
    /// Make authority and certificate anew: there are none, or none that can be read.
    Begin,
    /// Put a new authority into caBundle, before the old one.
    Announce,
    /// Write down that caBundle has it.
    Note,
    /// Make a certificate by the newest authority.
    Issue,
    /// Take old authorities out of caBundle.
    Retire,
}

impl Step {
    /// The word for metrics and spans.
    pub fn name(self) -> &'static str {
        match self {
            Step::Nothing => "nothing",
            Step::Begin => "begin",
            Step::Announce => "announce",
            Step::Note => "note",
            Step::Issue => "issue",
            Step::Retire => "retire",
        }
    }
}

/// What of a certificate counts here.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Facts {
    subject: String,
    issuer: String,
    not_after: u64,
    hosts: Vec<String>,
}

/// Reads a certificate.
pub fn facts(pem: &str) -> Result<Facts, String> {
    let der =
        CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|error| format!("no certificate: {error}"))?;
    let (_, read) = X509Certificate::from_der(&der).map_err(|error| format!("no certificate: {error}"))?;
    let names = read.subject_alternative_name().ok().flatten();
    let hosts =
        names.iter().flat_map(|names| names.value.general_names.iter()).filter_map(|name| match name {
            GeneralName::DNSName(name) => Some((*name).to_owned()),
            GeneralName::IPAddress([a, b, c, d]) => Some(format!("{a}.{b}.{c}.{d}")),
            GeneralName::IPAddress(bytes) => {
                let bytes: [u8; 16] = (*bytes).try_into().ok()?;
                Some(std::net::Ipv6Addr::from(bytes).to_string())
            }
            _ => None,
        });
    Ok(Facts {
        subject: read.subject().to_string(),
        issuer: read.issuer().to_string(),
        not_after: u64::try_from(read.validity().not_after.timestamp()).unwrap_or(0),
        hosts: hosts.collect(),
    })
}

impl Facts {
    /// When it ends, in seconds since 1970.
    pub fn not_after(&self) -> u64 {
        self.not_after
    }
}

/// Decides the next step. `published`: caBundle has all of `kept.authorities`.
pub fn step(kept: Option<&Kept>, published: bool, now: u64, hosts: &[String], lifetimes: &Lifetimes) -> Step {
    let Some(kept) = kept else { return Step::Begin };
    let Some((Ok(newest), Ok(serving))) =
        kept.authorities.first().map(|newest| (facts(newest), facts(&kept.certificate)))
    else {
        return Step::Begin;
    };
    let due = |not_after: u64, lifetime: Duration| now + lifetime.as_secs() / 3 >= not_after;
    if now >= newest.not_after {
        return Step::Begin;
    }
    let by_newest = serving.issuer == newest.subject;
    let serves_nobody = now >= serving.not_after || hosts.iter().any(|host| !serving.hosts.contains(host));
    if serves_nobody {
        return Step::Issue; // nothing worse can come of it
    }
    if !by_newest {
        return match kept.published_at {
            None if published => Step::Note,
            Some(at) if published && now >= at + lifetimes.announce.as_secs() => Step::Issue,
            _ => Step::Nothing,
        };
    }
    if kept.authorities.len() > 1 {
        return if now >= kept.made_at + lifetimes.overlap.as_secs() { Step::Retire } else { Step::Nothing };
    }
    if due(newest.not_after, lifetimes.authority) {
        return Step::Announce;
    }
    if due(serving.not_after, lifetimes.certificate) && serving.not_after < newest.not_after {
        return Step::Issue;
    }
    Step::Nothing
}

/// Does a step. `serial` makes the names of authorities differ.
pub fn take(
    step: Step,
    kept: Option<&Kept>,
    now: u64,
    hosts: &[String],
    lifetimes: &Lifetimes,
    serial: u32,
) -> Result<Option<Kept>, String> {
    let told = |error: rcgen::Error| error.to_string();
    match (step, kept) {
        (Step::Nothing, _) => Ok(None),
        (Step::Begin, _) | (_, None) => {
            let (authority, authority_key) = authority(now, lifetimes, serial).map_err(told)?;
            let (certificate, key) =
                certificate(&authority, &authority_key, now, hosts, lifetimes).map_err(told)?;
            let authorities = vec![authority];
            Ok(Some(Kept {
                authorities,
                authority_key,
                certificate,
                key,
                published_at: Some(now),
                made_at: now,
            }))
        }
        (Step::Announce, Some(kept)) => {
            let (authority, authority_key) = authority(now, lifetimes, serial).map_err(told)?;
            let mut authorities = kept.authorities.clone();
            authorities.insert(0, authority);
            Ok(Some(Kept { authorities, authority_key, published_at: None, ..kept.clone() }))
        }
        (Step::Note, Some(kept)) => Ok(Some(Kept { published_at: Some(now), ..kept.clone() })),
        (Step::Issue, Some(kept)) => {
            let newest = kept.authorities.first().ok_or("no authority")?;
            let (certificate, key) =
                certificate(newest, &kept.authority_key, now, hosts, lifetimes).map_err(told)?;
            Ok(Some(Kept { certificate, key, made_at: now, ..kept.clone() }))
        }
        (Step::Retire, Some(kept)) => {
            let authorities = kept.authorities.first().cloned().into_iter().collect();
            Ok(Some(Kept { authorities, ..kept.clone() }))
        }
    }
}

fn valid(params: &mut CertificateParams, now: u64, until: u64) {
    let at = |seconds: u64| {
        let seconds = i64::try_from(seconds).unwrap_or(i64::MAX);
        OffsetDateTime::from_unix_timestamp(seconds).unwrap_or(OffsetDateTime::UNIX_EPOCH)
    };
    params.not_before = at(now.saturating_sub(CLOCKS_DIFFER.as_secs()));
    params.not_after = at(until);
}

fn authority(now: u64, lifetimes: &Lifetimes, serial: u32) -> Result<(String, String), rcgen::Error> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, format!("throughline-injector {now}-{serial:08x}"));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    valid(&mut params, now, now + lifetimes.authority.as_secs());
    Ok((params.self_signed(&key)?.pem(), key.serialize_pem()))
}

fn certificate(
    authority: &str,
    authority_key: &str,
    now: u64,
    hosts: &[String],
    lifetimes: &Lifetimes,
) -> Result<(String, String), rcgen::Error> {
    let issuer = Issuer::from_ca_cert_pem(authority, KeyPair::from_pem(authority_key)?)?;
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::new(hosts)?;
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, "throughline-injector");
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth];
    params.use_authority_key_identifier_extension = true;
    let ends = facts(authority).map_or(u64::MAX, |facts| facts.not_after);
    valid(&mut params, now, ends.min(now + lifetimes.certificate.as_secs()));
    Ok((params.signed_by(&key, &issuer)?.pem(), key.serialize_pem()))
}

impl Kept {
    /// Reads a Secret; `None` where a part is missing or is none.
    pub fn of_secret(secret: &Value) -> Option<Self> {
        let part = |key: &str| {
            let encoded = secret.pointer("/data")?.get(key)?.clone();
            let ByteString(bytes) = serde_json::from_value(encoded).ok()?;
            String::from_utf8(bytes).ok()
        };
        let moment = |key: &str| entry(secret, "/metadata/annotations", key)?.parse().ok();
        let kept = Self {
            authorities: certificates(&part(AUTHORITIES)?),
            authority_key: part(AUTHORITY_KEY)?,
            certificate: part(CERTIFICATE)?,
            key: part(KEY)?,
            published_at: moment(PUBLISHED_AT),
            made_at: moment(SERVED_AT).unwrap_or(0),
        };
        KeyPair::from_pem(&kept.authority_key).ok()?;
        kept.chain().ok()?;
        (!kept.authorities.is_empty()).then_some(kept)
    }

    /// The Secret that holds it. `version`: the resourceVersion that it replaces, so that of two replicas one wins.
    pub fn secret(&self, namespace: &str, name: &str, version: Option<&str>) -> Value {
        let mut annotations = BTreeMap::from([(SERVED_AT, self.made_at.to_string())]);
        if let Some(at) = self.published_at {
            annotations.insert(PUBLISHED_AT, at.to_string());
        }
        let encoded = |text: &str| json!(ByteString(text.as_bytes().to_vec()));
        let mut metadata = json!({
            "name": name,
            "namespace": namespace,
            "labels": {"app.kubernetes.io/managed-by": crate::names::MANAGER},
            "annotations": annotations
        });
        if let (Some(version), Some(metadata)) = (version, metadata.as_object_mut()) {
            metadata.insert("resourceVersion".to_owned(), json!(version));
        }
        json!({
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": metadata,
            "type": "kubernetes.io/tls",
            "data": {
                CERTIFICATE: encoded(&self.certificate),
                KEY: encoded(&self.key),
                AUTHORITIES: encoded(&self.bundle()),
                AUTHORITY_KEY: encoded(&self.authority_key)
            }
        })
    }

    /// What caBundle must be.
    pub fn bundle(&self) -> String {
        self.authorities.concat()
    }

    /// What is served.
    pub fn chain(&self) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), String> {
        let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(self.certificate.as_bytes()).collect();
        let all = all.map_err(|error| error.to_string())?;
        let key = PrivateKeyDer::from_pem_slice(self.key.as_bytes()).map_err(|error| error.to_string())?;
        if all.is_empty() { Err("no certificate".to_owned()) } else { Ok((all, key)) }
    }
}

/// The certificates of a PEM text, each as text.
fn certificates(bundle: &str) -> Vec<String> {
    const END: &str = "-----END CERTIFICATE-----";
    let parts = bundle.split_inclusive(END).filter(|part| part.contains("-----BEGIN CERTIFICATE-----"));
    let whole = parts.filter(|part| part.ends_with(END));
    whole.map(|part| format!("{}\n", part.trim_start())).filter(|part| facts(part).is_ok()).collect()
}

/// The caBundles of a webhook configuration, decoded; empty where one is missing.
pub fn bundles(configuration: &Value) -> Vec<String> {
    crate::json::items(configuration, "/webhooks")
        .iter()
        .map(|webhook| {
            let encoded = text(webhook, "/clientConfig/caBundle").unwrap_or_default();
            let decoded = serde_json::from_value::<ByteString>(json!(encoded)).map(|bytes| bytes.0);
            String::from_utf8(decoded.unwrap_or_default()).unwrap_or_default()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: u64 = 86_400;

    fn lifetimes() -> Lifetimes {
        let days = |days: u64| Duration::from_secs(days * DAY);
        Lifetimes { certificate: days(30), authority: days(90), announce: days(1), overlap: days(1) }
    }

    fn hosts() -> Vec<String> {
        vec!["throughline-injector.throughline-system.svc".to_owned(), "127.0.0.1".to_owned()]
    }

    fn next(kept: &mut Option<Kept>, published: bool, day: u64) -> Step {
        let now = 1_800_000_000 + day * DAY;
        let step = step(kept.as_ref(), published, now, &hosts(), &lifetimes());
        if let Some(taken) = take(step, kept.as_ref(), now, &hosts(), &lifetimes(), 7).unwrap() {
            *kept = Some(taken);
        }
        step
    }

    /// Each step of a year, day by day: whoever trusts what was published a day ago can always verify what is served.
    #[test]
    fn what_is_served_is_always_by_an_authority_that_was_published_a_day_before() {
        let mut kept = None;
        assert_eq!(next(&mut kept, true, 0), Step::Begin);
        let mut published_before = kept.clone().unwrap().bundle();
        let mut seen = std::collections::BTreeSet::new();
        for day in 1..400 {
            let published = kept.clone().unwrap().bundle();
            seen.insert(next(&mut kept, true, day).name());
            let now = kept.clone().unwrap();
            let serving = facts(&now.certificate).unwrap();
            let trusted = certificates(&published_before)
                .iter()
                .any(|one| facts(one).unwrap().subject == serving.issuer);
            assert!(trusted, "day {day}: {serving:?}");
            assert!(serving.not_after > 1_800_000_000 + day * DAY, "day {day}");
            assert!(now.authorities.len() <= 2);
            published_before = published;
        }
        let all = ["announce", "issue", "note", "nothing", "retire"];
        assert_eq!(seen.into_iter().collect::<Vec<_>>(), all);
    }

    #[test]
    fn nothing_is_signed_by_an_authority_that_nobody_published() {
        let mut kept = None;
        next(&mut kept, true, 0);
        assert_eq!(next(&mut kept, true, 61), Step::Issue, "the certificate first");
        let mut announced = kept.clone();
        for day in 62..75 {
            next(&mut announced, false, day);
        }
        let announced = announced.unwrap();
        assert_eq!(announced.authorities.len(), 2);
        assert_eq!(announced.published_at, None);
        let old = facts(announced.authorities.last().unwrap()).unwrap();
        assert_eq!(facts(&announced.certificate).unwrap().issuer, old.subject);
    }

    #[test]
    fn a_certificate_for_other_names_is_made_anew() {
        let mut kept = None;
        next(&mut kept, true, 0);
        let other = vec!["elsewhere.svc".to_owned()];
        assert_eq!(step(kept.as_ref(), true, 1_800_000_000 + 60, &other, &lifetimes()), Step::Issue);
    }

    #[test]
    fn a_secret_keeps_what_was_made_and_a_spoilt_one_is_none() {
        let mut kept = None;
        next(&mut kept, true, 0);
        let kept = kept.unwrap();
        let secret = kept.secret("ns", "name", Some("5"));
        assert_eq!(Kept::of_secret(&secret), Some(kept));
        for key in [CERTIFICATE, KEY, AUTHORITIES, AUTHORITY_KEY] {
            let mut spoilt = secret.clone();
            spoilt["data"][key] = json!("bm9uc2Vuc2U=");
            assert_eq!(Kept::of_secret(&spoilt), None, "{key}");
        }
    }
}
