//! The four verbs through which `core` sees a message's headers. A host implements them over its own header
//! map, so neither `http` nor `proxy-wasm` types enter this crate.

/// Header fields by lower-case name, values as bytes.
pub trait Carrier {
    /// The first value of the field.
    fn get(&self, name: &str) -> Option<&[u8]>;

    /// Replaces every value of the field by this one.
    fn set(&mut self, name: &'static str, value: &[u8]);

    /// Removes every value of the field.
    fn remove(&mut self, name: &'static str);

    /// Every field in the order received, one call per value; names in lower case.
    fn for_each<'a>(&'a self, visit: &mut dyn FnMut(&'a str, &'a [u8]));
}

/// A plain list of fields: what tests and fuzz targets carry.
impl Carrier for Vec<(String, Vec<u8>)> {
    fn get(&self, name: &str) -> Option<&[u8]> {
        self.iter().find(|(field, _)| field == name).map(|(_, value)| value.as_slice())
    }

    fn set(&mut self, name: &'static str, value: &[u8]) {
        match self.iter_mut().find(|(field, _)| field == name) {
            Some((_, old)) => old.splice(.., value.iter().copied()).for_each(drop),
            None => self.push((name.to_owned(), value.to_vec())),
        }
        let mut seen = false;
        self.retain(|(field, _)| field != name || !std::mem::replace(&mut seen, true));
    }

    fn remove(&mut self, name: &'static str) {
        self.retain(|(field, _)| field != name);
    }

    fn for_each<'a>(&'a self, visit: &mut dyn FnMut(&'a str, &'a [u8])) {
        for (name, value) in self {
            visit(name, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn set_leaves_one_value_where_the_first_stood() {
        let mut carrier = vec![
            ("a".to_owned(), b"1".to_vec()),
            ("b".to_owned(), b"2".to_vec()),
            ("a".to_owned(), b"3".to_vec()),
        ];
        carrier.set("a", b"9");
        assert_eq!(carrier, [("a".to_owned(), b"9".to_vec()), ("b".to_owned(), b"2".to_vec())]);
    }
}
