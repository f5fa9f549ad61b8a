//! A unified diff of two texts, line by line. Must never take more time than its bound, however long they are.

/// Lines on each side beyond which the middle is shown as removed and added as a whole.
const LINES_MAX: usize = 4000;
const CONTEXT: usize = 3;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Same,
    Gone,
    New,
}

/// The diff; empty where both are the same.
pub fn unified(before: &str, after: &str, name: &str) -> String {
    if before == after {
        return String::new();
    }
    let (old, new): (Vec<&str>, Vec<&str>) = (before.lines().collect(), after.lines().collect());
    let script = script(&old, &new);
    let mut out = format!("--- {name}\n+++ {name}, injected\n");
    let changed: Vec<usize> =
        script.iter().enumerate().filter(|(_, (kind, _))| *kind != Kind::Same).map(|(at, _)| at).collect();
    let mut hunks: Vec<(usize, usize)> = Vec::new();
    for at in changed {
        let (from, to) = (at.saturating_sub(CONTEXT), (at + CONTEXT + 1).min(script.len()));
        match hunks.last_mut() {
            Some((_, end)) if from <= *end => *end = to,
            _ => hunks.push((from, to)),
        }
    }
    for (from, to) in hunks {
        let count = |upto: &[(Kind, &str)], not: Kind| upto.iter().filter(|(kind, _)| *kind != not).count();
        let (Some(head), Some(hunk)) = (script.get(..from), script.get(from..to)) else { continue };
        out.push_str(&format!(
            "@@ -{},{} +{},{} @@\n",
            count(head, Kind::New) + 1,
            count(hunk, Kind::New),
            count(head, Kind::Gone) + 1,
            count(hunk, Kind::Gone)
        ));
        for (kind, line) in hunk {
            out.push(match kind {
                Kind::Same => ' ',
                Kind::Gone => '-',
                Kind::New => '+',
            });
            out.push_str(line);
            out.push('\n');
        }
    }
    out
}

/// The lines of both, in order, by the longest common subsequence of what lies between equal ends.
fn script<'a>(old: &[&'a str], new: &[&'a str]) -> Vec<(Kind, &'a str)> {
    let head = old.iter().zip(new).take_while(|(a, b)| a == b).count();
    let rest = old.len().min(new.len()) - head;
    let tail = old.iter().rev().zip(new.iter().rev()).take(rest).take_while(|(a, b)| a == b).count();
    let a = old.get(head..old.len() - tail).unwrap_or_default();
    let b = new.get(head..new.len() - tail).unwrap_or_default();
    let same = |lines: &[&'a str]| lines.iter().map(|line| (Kind::Same, *line)).collect::<Vec<_>>();
    let mut out = same(old.get(..head).unwrap_or_default());
    if a.len() > LINES_MAX || b.len() > LINES_MAX {
        out.extend(a.iter().map(|line| (Kind::Gone, *line)));
        out.extend(b.iter().map(|line| (Kind::New, *line)));
    } else {
        // longest[i][j]: of a[i..] and b[j..].
        let width = b.len() + 1;
        let mut longest = vec![0u32; (a.len() + 1) * width];
        let at = |table: &[u32], i: usize, j: usize| table.get(i * width + j).copied().unwrap_or(0);
        for (i, x) in a.iter().enumerate().rev() {
            for (j, y) in b.iter().enumerate().rev() {
                let best = if x == y {
                    at(&longest, i + 1, j + 1) + 1
                } else {
                    at(&longest, i + 1, j).max(at(&longest, i, j + 1))
                };
                if let Some(cell) = longest.get_mut(i * width + j) {
                    *cell = best;
                }
            }
        }
        let (mut i, mut j) = (0, 0);
        loop {
            match (a.get(i), b.get(j)) {
                (Some(x), Some(y)) if x == y => {
                    out.push((Kind::Same, *x));
                    (i, j) = (i + 1, j + 1);
                }
                (Some(x), y) if y.is_none() || at(&longest, i + 1, j) >= at(&longest, i, j + 1) => {
                    out.push((Kind::Gone, *x));
                    i += 1;
                }
                (_, Some(y)) => {
                    out.push((Kind::New, *y));
                    j += 1;
                }
                _ => break,
            }
        }
    }
    out.extend(same(old.get(old.len() - tail..).unwrap_or_default()));
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_diff_shows_what_was_added_with_its_surroundings() {
        let diff = unified("a\nb\nc\nd\ne\nf\ng\n", "a\nb\nc\nd\nx\ne\nf\ng\n", "n");
        assert_eq!(diff, "--- n\n+++ n, injected\n@@ -2,6 +2,7 @@\n b\n c\n d\n+x\n e\n f\n g\n");
        assert_eq!(unified("a\n", "a\n", "n"), "");
    }
}
