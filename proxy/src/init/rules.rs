//! The rules as text, for nft and for iptables. Each carries a comment that says what it is for, with a fingerprint of
//! itself: by that a look at the kernel's rules tells whether they are these. Pure: runs nothing.

use std::fmt::Write as _;

use super::plan::{Network, Plan, Ports};
use crate::capture::{LEASE_SECONDS, RELEASE_PORT, RENEW_PORT};

/// The table of nft, and the beginning of iptables' chains.
pub(super) const TABLE: &str = "throughline";
pub(super) const CHAIN: &str = "THROUGHLINE_";

/// Which addresses iptables' rules are for: it has a program for each.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Family {
    V4,
    V6,
}

impl Family {
    fn has(self, network: &Network) -> bool {
        network.0.is_ipv4() == (self == Self::V4)
    }
}

/// A comment that tells a rule from every other one.
fn comment(rule: &str, why: &str) -> String {
    // FNV-1a: short, and nobody is kept out by it.
    let hash =
        rule.bytes().fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    format!("{TABLE} {hash:08x}: {why}")
}

/// The comments of our rules in a listing, in their order.
pub(super) fn comments(listing: &str) -> Vec<&str> {
    let begin = format!("\"{TABLE} ");
    let quoted = |line| -> Option<&str> {
        let line: &str = line;
        let rest = line.get(line.find(&begin)? + 1..)?;
        rest.get(..rest.find('"')?)
    };
    listing.lines().filter_map(quoted).collect()
}

/// The ruleset for nft, which takes it whole or not at all.
pub(super) fn nft(plan: &Plan) -> String {
    let Plan { proxy_uid, inbound_port, outbound_port, admin_port, .. } = plan;
    let mut out = format!(
        "# One transaction: whatever was in the table is replaced.\n\
         add table inet {TABLE}\ndelete table inet {TABLE}\ntable inet {TABLE} {{\n"
    );
    let lease = if plan.lease { "meta nfproto @lease " } else { "" };
    if plan.lease {
        out.push_str(
            "  # Families that are redirected. The sidecar's heartbeat renews an element; without it that\n",
        );
        let _ = writeln!(out, "  # is gone after {LEASE_SECONDS} seconds, and connections go directly.");
        out.push_str("  set lease {\n    type nf_proto\n    size 16\n    flags dynamic,timeout\n");
        let _ = writeln!(out, "    timeout {LEASE_SECONDS}s\n  }}");
    }
    let mut chain = |name: &str, hook: &str, rules: Vec<(String, &str)>| {
        let _ = write!(out, "  chain {name} {{\n    type {hook}; policy accept;\n");
        for (rule, why) in rules {
            let _ = writeln!(out, "    {rule} comment \"{}\"", comment(&rule, why));
        }
        out.push_str("  }\n");
    };
    let beat =
        |port: u16, does: &str| format!("oifname \"lo\" meta skuid {proxy_uid} udp dport {port} {does} drop");
    if plan.lease {
        chain(
            "lease_holder",
            "filter hook output priority mangle",
            vec![
                (
                    beat(RENEW_PORT, &format!("update @lease {{ meta nfproto timeout {LEASE_SECONDS}s }}")),
                    "heartbeat",
                ),
                (beat(RELEASE_PORT, "delete @lease { meta nfproto }"), "the sidecar lets go"),
            ],
        );
    }
    let mut inbound = vec![
        ("iifname \"lo\" return".to_owned(), "within the pod"),
        ("fib daddr type != local return".to_owned(), "not for the pod"),
        (format!("tcp dport {admin_port} return"), "admin port"),
    ];
    inbound.extend(plan.exclude_inbound.iter().map(|ports| (nft_ports(ports), "excluded port")));
    inbound.push((format!("meta l4proto tcp {lease}redirect to :{inbound_port}"), "to the sidecar"));
    chain("inbound", "nat hook prerouting priority dstnat", inbound);
    let mut outbound = vec![
        (format!("meta skuid {proxy_uid} return"), "of the sidecar itself"),
        ("oifname \"lo\" return".to_owned(), "within the pod"),
        ("fib daddr type local return".to_owned(), "within the pod"),
    ];
    outbound.extend(plan.exclude_outbound.iter().map(|ports| (nft_ports(ports), "excluded port")));
    outbound.extend(plan.exclude_networks.iter().map(|Network(ip, bits)| {
        let family = if ip.is_ipv4() { "ip" } else { "ip6" };
        (format!("{family} daddr {ip}/{bits} return"), "excluded network")
    }));
    outbound.push((format!("meta l4proto tcp {lease}redirect to :{outbound_port}"), "to the sidecar"));
    chain("outbound", "nat hook output priority -100", outbound);
    out.push_str("}\n");
    out
}

fn nft_ports(Ports(first, last): &Ports) -> String {
    if first == last {
        format!("tcp dport {first} return")
    } else {
        format!("tcp dport {first}-{last} return")
    }
}

/// What takes the rules of nft away, whether they are there or not.
pub(super) fn nft_undo() -> String {
    format!("add table inet {TABLE}\ndelete table inet {TABLE}\n")
}

/// Input for `iptables-restore --noflush`, after what `iptables-save` shows. Rules of others stay as they are. With a
/// lease where the kernel has the match `recent`.
pub(super) fn iptables(plan: &Plan, family: Family, with_lease: bool, saved: &str) -> String {
    let Plan { proxy_uid, inbound_port, outbound_port, admin_port, .. } = plan;
    let (name, mask) = match family {
        Family::V4 => ("throughline4", "0.0.0.0"),
        Family::V6 => ("throughline6", "::"),
    };
    // All addresses are one under this mask, so one entry is the lease.
    let recent = |does: &str| format!("-m recent {does} --name {name} --mask {mask} --rdest");
    let mut mangle = Vec::new();
    if with_lease {
        let beat = |port: u16, does: &str| format!("-p udp --dport {port} {} -j DROP", recent(does));
        mangle = vec![
            ("OUTPUT", format!("-o lo -p udp -m owner --uid-owner {proxy_uid} -j {CHAIN}LEASE"), "heartbeat"),
            ("LEASE", beat(RENEW_PORT, "--set"), "heartbeat"),
            ("LEASE", beat(RELEASE_PORT, "--remove"), "the sidecar lets go"),
        ];
    }
    let captured = |port: &u16| {
        let lease =
            if with_lease { recent(&format!("--rcheck --seconds {LEASE_SECONDS}")) } else { String::new() };
        format!("-p tcp {lease} -j REDIRECT --to-ports {port}")
    };
    let mut nat = vec![
        ("PREROUTING", format!("-p tcp -j {CHAIN}INBOUND"), "inbound"),
        ("INBOUND", "-i lo -j RETURN".to_owned(), "within the pod"),
        ("INBOUND", "-m addrtype ! --dst-type LOCAL -j RETURN".to_owned(), "not for the pod"),
        ("INBOUND", format!("-p tcp --dport {admin_port} -j RETURN"), "admin port"),
    ];
    nat.extend(plan.exclude_inbound.iter().map(|ports| ("INBOUND", iptables_ports(ports), "excluded port")));
    nat.push(("INBOUND", captured(inbound_port), "to the sidecar"));
    nat.extend([
        ("OUTPUT", format!("-p tcp -j {CHAIN}OUTBOUND"), "outbound"),
        ("OUTBOUND", format!("-m owner --uid-owner {proxy_uid} -j RETURN"), "of the sidecar itself"),
        ("OUTBOUND", "-o lo -j RETURN".to_owned(), "within the pod"),
        ("OUTBOUND", "-m addrtype --dst-type LOCAL -j RETURN".to_owned(), "within the pod"),
    ]);
    nat.extend(
        plan.exclude_outbound.iter().map(|ports| ("OUTBOUND", iptables_ports(ports), "excluded port")),
    );
    let networks = plan.exclude_networks.iter().filter(|network| family.has(network));
    nat.extend(
        networks
            .map(|Network(ip, bits)| ("OUTBOUND", format!("-d {ip}/{bits} -j RETURN"), "excluded network")),
    );
    nat.push(("OUTBOUND", captured(outbound_port), "to the sidecar"));
    let mut out = String::new();
    for (table, rules) in [("mangle", mangle), ("nat", nat)] {
        let _ = writeln!(out, "*{table}");
        out.push_str(&removed(table, saved));
        let chains = if table == "nat" { &["INBOUND", "OUTBOUND"][..] } else { &["LEASE"] };
        for chain in chains.iter().filter(|_| !rules.is_empty()) {
            let _ = writeln!(out, ":{CHAIN}{chain} - [0:0]");
        }
        for (chain, rule, why) in rules {
            let prefix = if ["PREROUTING", "OUTPUT"].contains(&chain) { "" } else { CHAIN };
            let rule = rule.split_whitespace().collect::<Vec<_>>().join(" ");
            let said = comment(&rule, why);
            let (matches, target) = rule.split_once(" -j ").unwrap_or((&rule, "RETURN"));
            let _ = writeln!(out, "-A {prefix}{chain} {matches} -m comment --comment \"{said}\" -j {target}");
        }
        out.push_str("COMMIT\n");
    }
    out
}

fn iptables_ports(Ports(first, last): &Ports) -> String {
    if first == last {
        format!("-p tcp --dport {first} -j RETURN")
    } else {
        format!("-p tcp --dport {first}:{last} -j RETURN")
    }
}

/// Input for `iptables-restore --noflush` that takes our rules away, after what `iptables-save` shows.
pub(super) fn iptables_undo(saved: &str) -> String {
    ["mangle", "nat"].map(|table| format!("*{table}\n{}COMMIT\n", removed(table, saved))).concat()
}

/// Lines that take out what is ours in one table: the jumps to our chains, then the chains.
fn removed(table: &str, saved: &str) -> String {
    let (mut jumps, mut flushed, mut chains) = (String::new(), String::new(), String::new());
    let mut here = false;
    for line in saved.lines() {
        if let Some(name) = line.strip_prefix('*') {
            here = name == table;
        } else if !here {
        } else if let Some(chain) = line.strip_prefix(':').and_then(|line| line.split(' ').next()) {
            if chain.starts_with(CHAIN) {
                let _ = writeln!(flushed, "-F {chain}");
                let _ = writeln!(chains, "-X {chain}");
            }
        } else if let Some(rule) = line.strip_prefix("-A ")
            && !rule.starts_with(CHAIN)
            && rule.contains(&format!("-j {CHAIN}"))
        {
            let _ = writeln!(jumps, "-D {rule}");
        }
    }
    jumps + &flushed + &chains
}

/// Whether any rule or chain of ours is in what `iptables-save` shows.
pub(super) fn any_of_iptables(saved: &str) -> bool {
    saved.contains(CHAIN)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(args: &str) -> Plan {
        Plan::read(args.split_whitespace().map(str::to_owned)).unwrap()
    }

    #[test]
    fn what_is_exempt_stands_before_what_is_redirected() {
        let rules = nft(&plan(
            "--exclude-inbound-ports 22 --exclude-outbound-ports 9000-9010 --exclude-outbound-cidrs \
             10.0.0.0/8,fd00::/8",
        ));
        let inbound = rules.find("chain inbound").unwrap();
        let outbound = rules.find("chain outbound").unwrap();
        let at =
            |from: usize, text: &str| from + rules[from..].find(text).unwrap_or_else(|| panic!("{text}"));
        let to_inbound = at(inbound, "redirect to :15106");
        for exempt in ["iifname \"lo\" return", "tcp dport 15190 return", "tcp dport 22 return"] {
            assert!(at(inbound, exempt) < to_inbound, "{exempt}: {rules}");
        }
        assert!(to_inbound < outbound);
        let to_outbound = at(outbound, "redirect to :15101");
        for exempt in [
            "meta skuid 15100 return",
            "oifname \"lo\" return",
            "fib daddr type local return",
            "tcp dport 9000-9010 return",
            "ip daddr 10.0.0.0/8 return",
            "ip6 daddr fd00::/8 return",
        ] {
            assert!(at(outbound, exempt) < to_outbound, "{exempt}: {rules}");
        }
    }

    #[test]
    fn every_rule_has_a_comment_of_its_own_that_changes_with_it() {
        let one = nft(&plan(""));
        let comments_of_one = comments(&one);
        assert_eq!(comments_of_one.len(), one.lines().filter(|line| line.contains(" comment ")).count());
        let other = nft(&plan("--proxy-uid 7"));
        assert_ne!(comments_of_one, comments(&other));
        assert_eq!(comments(&nft(&plan(""))), comments_of_one);
    }

    #[test]
    fn iptables_rules_replace_ours_and_leave_those_of_others() {
        let first = iptables(&plan(""), Family::V4, true, "");
        assert!(!first.contains("-D ") && !first.contains("-X "), "{first}");
        let saved = "*nat\n:OUTPUT ACCEPT [0:0]\n:THROUGHLINE_OUTBOUND - [0:0]\n-A OUTPUT -p tcp -j OTHERS\n\
                     -A OUTPUT -p tcp -m comment --comment \"x\" -j THROUGHLINE_OUTBOUND\n\
                     -A THROUGHLINE_OUTBOUND -p tcp -j REDIRECT --to-ports 1\nCOMMIT\n";
        let undone = iptables_undo(saved);
        assert_eq!(
            undone,
            "*mangle\nCOMMIT\n*nat\n-D OUTPUT -p tcp -m comment --comment \"x\" -j THROUGHLINE_OUTBOUND\n\
             -F THROUGHLINE_OUTBOUND\n-X THROUGHLINE_OUTBOUND\nCOMMIT\n"
        );
        let again = iptables(&plan(""), Family::V4, true, saved);
        assert!(again.contains("-D OUTPUT -p tcp -m comment") && !again.contains("OTHERS"), "{again}");
        assert_eq!(comments(&again), comments(&first));
    }

    #[test]
    fn a_family_has_its_own_networks_and_a_kernel_without_recent_no_lease() {
        let plan = plan("--exclude-outbound-cidrs 10.0.0.0/8,fd00::/8");
        let v6 = iptables(&plan, Family::V6, false, "");
        assert!(v6.contains("-d fd00::/8") && !v6.contains("10.0.0.0"), "{v6}");
        assert!(!v6.contains("recent") && !v6.contains("LEASE"), "{v6}");
    }
}
