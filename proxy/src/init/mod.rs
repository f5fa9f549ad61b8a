//! `throughline-proxy init`: sees that the kernel redirects this network namespace's connections to the sidecar. Needs
//! NET_ADMIN, so it is a step of its own before the sidecar, which needs nothing. Changes no rule but ours, and none
//! that is right already.

mod plan;
mod rules;
mod run;

use std::path::Path;

use plan::{Action, Backend, Plan, USAGE};
use rules::Family;
use run::{Failed, run};

/// The bit of NET_ADMIN in a set of capabilities (`linux/capability.h`).
const NET_ADMIN: u32 = 12;
const WANTS_NET_ADMIN: &str = "want the capability NET_ADMIN (securityContext.capabilities.add of the init \
                               container); without it, capture=reverse";

/// Why it did not do what was asked.
#[derive(Debug)]
pub(crate) enum Error {
    /// The command line is wrong; every mistake.
    Usage(Vec<String>),
    /// The machine is in the way, or a check found something missing.
    Failed(String),
}

/// The arguments behind `init`; gives what is to be printed.
pub(crate) fn init(args: impl Iterator<Item = String>) -> Result<String, Error> {
    let plan = Plan::read(args).map_err(Error::Usage)?;
    let done = match plan.action {
        Action::Help => Ok(USAGE.to_owned()),
        Action::Print => Ok(printed(&plan)),
        Action::Apply | Action::Check | Action::Undo if !may_change_rules() => {
            Err(WANTS_NET_ADMIN.to_owned())
        }
        Action::Apply => applied(&plan),
        Action::Check => checked(&plan),
        Action::Undo => undone(plan.backend),
    };
    done.map_err(|why| Error::Failed(format!("init: {why}")))
}

fn printed(plan: &Plan) -> String {
    match plan.backend {
        Backend::Auto | Backend::Nft => rules::nft(plan),
        Backend::Iptables => {
            let of = |name, family| {
                format!("# {name}-restore --noflush\n{}", rules::iptables(plan, family, plan.lease, ""))
            };
            of("iptables", Family::V4) + &of("ip6tables", Family::V6)
        }
    }
}

fn may_change_rules() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let capabilities = effective.and_then(|digits| u64::from_str_radix(digits.trim(), 16).ok());
    capabilities.is_none_or(|all| all >> NET_ADMIN & 1 == 1) // where /proc is not as expected, the kernel will say
}

fn applied(plan: &Plan) -> Result<String, String> {
    match plan.backend {
        Backend::Nft => by_nft(plan),
        Backend::Iptables => by_iptables(plan),
        Backend::Auto => match nft_works() {
            Ok(()) => by_nft(plan),
            Err(why) => by_iptables(plan)
                .map(|said| format!("{why}: used iptables\n{said}"))
                .map_err(|also| format!("{why}; and {also}")),
        },
    }
}

/// Whether there is an nft, and a kernel that understands it.
fn nft_works() -> Result<(), String> {
    run("nft", &["list", "tables"], "").map(drop).map_err(|failed| told("nft", failed))
}

fn by_nft(plan: &Plan) -> Result<String, String> {
    if nft_differs(plan)?.is_none() {
        return Ok("the rules are in place already (nft)\n".to_owned());
    }
    run("nft", &["-f", "-"], &rules::nft(plan)).map_err(|failed| told("nft", failed))?;
    match nft_differs(plan)? {
        None => Ok("the rules are in place (nft)\n".to_owned()),
        Some(how) => Err(format!("nft took the rules, and {how}")),
    }
}

/// How the kernel's rules differ from the plan's; none if they do not.
fn nft_differs(plan: &Plan) -> Result<Option<String>, String> {
    let there = match run("nft", &["-s", "list", "table", "inet", rules::TABLE], "") {
        Ok(there) => there,
        Err(Failed::Refused(why)) if why.contains("No such file") => {
            return Ok(Some(format!("there is no table inet {}", rules::TABLE)));
        }
        Err(failed) => return Err(told("nft", failed)),
    };
    let wanted = rules::nft(plan);
    // Somebody's own rules in our table would have no comment of ours.
    let count = |text: &str| text.lines().filter(|line| line.contains(" comment ") || is_rule(line)).count();
    let hooks = |text: &str| {
        let hooks = text.lines().filter_map(|line| line.trim().strip_prefix("type "));
        let hooks = hooks.filter_map(|hook| hook.split_once(" priority ")).map(|(hook, _)| hook.to_owned());
        hooks.collect::<Vec<_>>()
    };
    let same = rules::comments(&there) == rules::comments(&wanted)
        && count(&there) == count(&wanted)
        && hooks(&there) == hooks(&wanted);
    Ok((!same).then(|| format!("the rules of table inet {} are others", rules::TABLE)))
}

fn is_rule(line: &str) -> bool {
    let line = line.trim();
    let ends = ["return", "drop", "accept"].iter().any(|verdict| line.ends_with(verdict));
    ends || line.contains("redirect to") || line.contains(" dnat ")
}

/// The programs of each family of addresses that this network namespace has.
fn families() -> impl Iterator<Item = (&'static str, Family)> {
    let v6 = Path::new("/proc/net/if_inet6").exists();
    [("iptables", Family::V4), ("ip6tables", Family::V6)]
        .into_iter()
        .filter(move |(_, family)| v6 || *family == Family::V4)
}

fn saved(program: &str) -> Result<String, String> {
    let name = format!("{program}-save");
    run(&name, &[], "").map_err(|failed| told(&name, failed))
}

fn restore(program: &str, input: &str) -> Result<(), String> {
    let name = format!("{program}-restore");
    run(&name, &["-w", "5", "--noflush"], input).map(drop).map_err(|failed| told(&name, failed))
}

fn by_iptables(plan: &Plan) -> Result<String, String> {
    let mut said = String::new();
    for (program, family) in families() {
        let before = saved(program)?;
        if iptables_hold(plan, family, &before) == Some(plan.lease) {
            said.push_str(&format!("the rules are in place already ({program})\n"));
            continue;
        }
        let by = |with_lease| restore(program, &rules::iptables(plan, family, with_lease, &before));
        // A kernel without the match `recent` refuses the whole input, and nothing of it holds.
        let with_lease = plan.lease && by(true).is_ok();
        if !with_lease {
            by(false)?;
        }
        if iptables_hold(plan, family, &saved(program)?) != Some(with_lease) {
            return Err(format!("{program}-restore took the rules, and they are others"));
        }
        said.push_str(&format!("the rules are in place ({program}{})\n", lease(plan, with_lease)));
    }
    Ok(said)
}

fn lease(plan: &Plan, with_lease: bool) -> &'static str {
    if with_lease == plan.lease {
        ""
    } else {
        "; no match `recent`, so without a lease: while the sidecar is down, connections fail"
    }
}

/// Whether the plan's rules hold, and if so whether with a lease.
fn iptables_hold(plan: &Plan, family: Family, saved: &str) -> Option<bool> {
    // Ours are those with our comment; whatever else is in our chains is not.
    let ours = |text: &str| {
        let lines = text.lines().filter(|line| line.starts_with("-A ") && line.contains(rules::CHAIN));
        lines.map(str::to_owned).collect::<Vec<_>>().join("\n")
    };
    let there = ours(saved);
    let kinds = if plan.lease { &[true, false][..] } else { &[false] };
    kinds.iter().copied().find(|with_lease| {
        let wanted = ours(&rules::iptables(plan, family, *with_lease, ""));
        let mut sorted = [rules::comments(&there), rules::comments(&wanted)];
        sorted.iter_mut().for_each(|comments| comments.sort_unstable()); // tables are listed in any order
        sorted[0] == sorted[1] && there.lines().count() == wanted.lines().count()
    })
}

fn checked(plan: &Plan) -> Result<String, String> {
    let nft = || match nft_differs(plan)? {
        None => Ok("the rules are in place (nft)\n".to_owned()),
        Some(how) => Err(how),
    };
    let iptables = || {
        let mut said = String::new();
        for (program, family) in families() {
            match iptables_hold(plan, family, &saved(program)?) {
                Some(with_lease) => {
                    said.push_str(&format!(
                        "the rules are in place ({program}{})\n",
                        lease(plan, with_lease)
                    ));
                }
                None => return Err(format!("the rules are not in place ({program})")),
            }
        }
        Ok(said)
    };
    match plan.backend {
        Backend::Nft => nft(),
        Backend::Iptables => iptables(),
        Backend::Auto => nft().or_else(|why| iptables().map_err(|also| format!("{why}; {also}"))),
    }
}

/// Takes away the rules of whichever program wrote them.
fn undone(backend: Backend) -> Result<String, String> {
    let mut trouble = Vec::new();
    if backend != Backend::Iptables
        && let Err(failed) = run("nft", &["-f", "-"], &rules::nft_undo())
        && !(backend == Backend::Auto && matches!(failed, Failed::Missing))
    {
        trouble.push(told("nft", failed));
    }
    if backend != Backend::Nft {
        for (program, _) in families() {
            let there = match run(&format!("{program}-save"), &[], "") {
                Ok(there) => there,
                Err(Failed::Missing) if backend == Backend::Auto => continue,
                Err(failed) => {
                    trouble.push(told(program, failed));
                    continue;
                }
            };
            if rules::any_of_iptables(&there)
                && let Err(why) = restore(program, &rules::iptables_undo(&there))
            {
                trouble.push(why);
            }
        }
    }
    if trouble.is_empty() { Ok("no rule of ours is left\n".to_owned()) } else { Err(trouble.join("; ")) }
}

fn told(program: &str, failed: Failed) -> String {
    match failed {
        Failed::Missing => format!("{program} is not installed"),
        Failed::Refused(why) if why.contains("Operation not permitted") => {
            format!("{program} may not change rules: {WANTS_NET_ADMIN}")
        }
        Failed::Refused(why) => format!("{program} says: {why}"),
        Failed::Broken(why) => why,
    }
}
