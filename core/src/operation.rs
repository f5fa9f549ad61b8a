//! The user's business operation: a name that cannot be wrong. Never logs or counts; who parses decides.

use crate::limits::OPERATION_BYTES_MAX;

/// Printable ASCII without separators, 1 to [`OPERATION_BYTES_MAX`] bytes, held in place so that carrying it
/// along allocates nothing.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Operation {
    len: u8,
    bytes: [u8; OPERATION_BYTES_MAX],
}

/// Characters that headers, baggage or label values give a meaning of their own.
const SEPARATORS: &[u8] = b",;=\"\\";

impl Operation {
    /// The name as it stands in a header, white space around it cut off; `None` when it breaks the rule.
    #[must_use]
    pub fn parse(value: &[u8]) -> Option<Self> {
        let value = value.trim_ascii();
        let allowed = |byte: &u8| byte.is_ascii_graphic() && !SEPARATORS.contains(byte);
        if value.is_empty() || value.len() > OPERATION_BYTES_MAX || !value.iter().all(allowed) {
            return None;
        }
        let mut bytes = [0; OPERATION_BYTES_MAX];
        bytes.get_mut(..value.len())?.copy_from_slice(value);
        Some(Self { len: u8::try_from(value.len()).ok()?, bytes })
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        let bytes = self.bytes.get(..usize::from(self.len)).unwrap_or_default();
        std::str::from_utf8(bytes).unwrap_or_default()
    }
}

impl std::fmt::Debug for Operation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn printable_names_without_separators_are_operations() {
        let longest = "x".repeat(OPERATION_BYTES_MAX);
        for good in ["checkout", "create-vm", "cart/add:item", " padded\t", "a", &longest] {
            assert_eq!(Operation::parse(good.as_bytes()).unwrap().as_str(), good.trim(), "{good}");
        }
        let too_long = "x".repeat(OPERATION_BYTES_MAX + 1);
        for bad in
            ["", "  ", "two words", "a,b", "a;b", "a=b", "a\"b", "caf\u{e9}", "a\u{7f}", "a\nb", &too_long]
        {
            assert!(Operation::parse(bad.as_bytes()).is_none(), "{bad:?}");
        }
    }
}
