//! Kubernetes' quantities (`100m`, `64Mi`): whether a text is one, and which is more. Must never rewrite one.

/// A quantity as a number of thousandths, to compare.
pub fn thousandths(text: &str) -> Option<u128> {
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, suffix) = text.split_at(digits);
    let (whole, part) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() && part.is_empty() || number.len() > 18 || part.contains('.') {
        return None;
    }
    // (numerator, denominator) of the suffix, in thousandths.
    let (times, over): (u128, u128) = match suffix {
        "n" => (1, 1_000_000),
        "u" => (1, 1000),
        "m" => (1, 1),
        "" => (1000, 1),
        "k" => (1_000_000, 1),
        "M" => (1_000_000_000, 1),
        "G" => (1_000_000_000_000, 1),
        "T" => (1_000_000_000_000_000, 1),
        "Ki" => (1000 << 10, 1),
        "Mi" => (1000 << 20, 1),
        "Gi" => (1000 << 30, 1),
        "Ti" => (1000 << 40, 1),
        _ => return None,
    };
    let scale = 10u128.checked_pow(u32::try_from(part.len()).ok()?)?;
    let digits: u128 = format!("{whole}{part}").parse().ok()?;
    digits.checked_mul(times).map(|all| all / (scale * over))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_compare_as_kubernetes_reads_them() {
        for (less, more) in
            [("100m", "0.2"), ("64Mi", "1Gi"), ("999M", "1G"), ("1", "1001m"), ("1Ki", "1.5Ki")]
        {
            assert!(thousandths(less).unwrap() < thousandths(more).unwrap(), "{less} < {more}");
        }
        assert_eq!(thousandths("1000m"), thousandths("1"));
        assert_eq!(thousandths("1.5"), Some(1500));
    }

    #[test]
    fn what_is_no_quantity_is_none() {
        for text in ["", "lots", "1 giga", "-1", "1.2.3", "Mi", "1mi", "99999999999999999999"] {
            assert_eq!(thousandths(text), None, "{text:?}");
        }
    }
}
