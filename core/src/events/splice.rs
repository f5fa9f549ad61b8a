//! Changes of a body, collected first and applied in one copy. Never reorders or repairs: changes that do
//! not fit the body are refused as a whole.

use super::Untouched;

/// A range of bytes in a body of at most [`super::BODY_BYTES_MAX`] bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Span {
    start: u32,
    end: u32,
}

impl Span {
    /// Callers have checked the body's length against [`super::BODY_BYTES_MAX`]; offsets beyond 32 bits
    /// become an empty span at the far end, which no body has.
    pub(super) fn new(start: usize, end: usize) -> Self {
        match (u32::try_from(start), u32::try_from(end)) {
            (Ok(start), Ok(end)) if start <= end => Self { start, end },
            _ => Self { start: u32::MAX, end: u32::MAX },
        }
    }

    /// The first byte's offset.
    #[must_use]
    pub fn start(self) -> usize {
        self.start as usize
    }

    /// The offset after the last byte.
    #[must_use]
    pub fn end(self) -> usize {
        self.end as usize
    }

    /// Bytes spanned.
    #[must_use]
    pub fn len(self) -> usize {
        self.end() - self.start()
    }

    /// Whether it spans nothing.
    #[must_use]
    pub fn is_empty(self) -> bool {
        self.start == self.end
    }

    /// The bytes spanned; empty in a body too short for it.
    #[must_use]
    pub fn of(self, body: &[u8]) -> &[u8] {
        body.get(self.start()..self.end()).unwrap_or_default()
    }

    /// The text spanned; empty in a body too short for it.
    #[must_use]
    pub fn text(self, body: &str) -> &str {
        body.get(self.start()..self.end()).unwrap_or_default()
    }
}

#[derive(Clone, Copy, Debug)]
struct Splice {
    place: Span,
    text: Span,
}

/// Replacements in ascending order. Reusable: [`Splices::clear`] keeps the memory.
#[derive(Debug, Default)]
pub struct Splices {
    list: Vec<Splice>,
    text: Vec<u8>,
    grown_bytes: i64,
    /// Added to every place: where the part being edited begins in the body.
    base: usize,
    /// Where the last edited event ends, and the length of the body it was found in.
    edited_to: usize,
    body_bytes: Option<usize>,
}

/// The state to return to when an edit fails midway.
#[derive(Clone, Copy)]
pub(super) struct Mark {
    list: usize,
    text: usize,
    grown_bytes: i64,
}

/// A place whose replacement is known only after those that follow it.
#[derive(Clone, Copy)]
pub(super) struct Slot(usize);

impl Splices {
    /// Nothing to change.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Forgets all changes, so that another body can be edited.
    pub fn clear(&mut self) {
        self.list.clear();
        self.text.clear();
        (self.grown_bytes, self.base, self.edited_to, self.body_bytes) = (0, 0, 0, None);
    }

    /// Whether the body stays as it is.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// Bytes by which the body grows; negative when it shrinks.
    #[must_use]
    pub fn grown_bytes(&self) -> i64 {
        self.grown_bytes
    }

    /// Each range of the body and the bytes that take its place, in ascending order: for a host that sends
    /// the pieces without copying them together.
    pub fn iter(&self) -> impl Iterator<Item = (std::ops::Range<usize>, &[u8])> {
        self.list.iter().map(|splice| (splice.place.start()..splice.place.end(), splice.text.of(&self.text)))
    }

    /// Appends the changed `body` to `out`, in one copy and at most one allocation.
    ///
    /// # Errors
    /// [`Untouched::Order`] when these are not changes of `body`; `out` is as before.
    pub fn apply(&self, body: &[u8], out: &mut Vec<u8>) -> Result<(), Untouched> {
        let before = out.len();
        let done = self.copy(body, out);
        if done.is_err() {
            out.truncate(before);
        }
        done
    }

    fn copy(&self, body: &[u8], out: &mut Vec<u8>) -> Result<(), Untouched> {
        if self.body_bytes.is_some_and(|bytes| bytes != body.len()) {
            return Err(Untouched::Order);
        }
        out.reserve_exact(body.len().saturating_add_signed(self.grown_bytes as isize));
        let mut at = 0;
        for (place, text) in self.iter() {
            out.extend_from_slice(body.get(at..place.start).ok_or(Untouched::Order)?);
            out.extend_from_slice(text);
            at = place.end;
        }
        out.extend_from_slice(body.get(at..).ok_or(Untouched::Order)?);
        Ok(())
    }

    /// Changes `body` where it lies if no replacement changes its length (a valid `traceparent` is always
    /// 55 bytes). `false`: nothing was done, [`Splices::apply`] is needed.
    #[must_use]
    pub fn apply_in_place(&self, body: &mut [u8]) -> bool {
        let fits = |(place, text): (std::ops::Range<usize>, &[u8])| {
            body.get(place).is_some_and(|old| old.len() == text.len())
        };
        if self.body_bytes.is_some_and(|bytes| bytes != body.len()) || !self.iter().all(fits) {
            return false;
        }
        for (place, text) in self.iter() {
            if let Some(old) = body.get_mut(place) {
                old.copy_from_slice(text);
            }
        }
        true
    }

    /// Opens the edit of one event. Events are edited once each, front to back: so no two edits can meet.
    pub(super) fn claim(&mut self, body_bytes: usize, event: Span) -> Result<(), Untouched> {
        let same_body = self.body_bytes.is_none_or(|bytes| bytes == body_bytes);
        if !same_body || event.start() < self.edited_to || event.is_empty() {
            return Err(Untouched::Order);
        }
        self.body_bytes = Some(body_bytes);
        self.edited_to = event.end();
        self.base = 0;
        Ok(())
    }

    /// Places that follow are offsets from here.
    pub(super) fn rebase(&mut self, base: usize) {
        self.base = base;
    }

    /// Puts what `write` appends in the place of `place`.
    pub(super) fn replace(&mut self, place: Span, write: impl FnOnce(&mut Vec<u8>)) {
        let slot = self.reserve(place);
        self.fill(slot, write);
    }

    /// Takes `place` out.
    pub(super) fn cut(&mut self, place: Span) {
        self.replace(place, |_| ());
    }

    /// Keeps a place for [`Splices::fill`], which must follow.
    pub(super) fn reserve(&mut self, place: Span) -> Slot {
        let place = Span::new(self.base + place.start(), self.base + place.end());
        self.list.push(Splice { place, text: Span::default() });
        Slot(self.list.len() - 1)
    }

    pub(super) fn fill(&mut self, slot: Slot, write: impl FnOnce(&mut Vec<u8>)) {
        let start = self.text.len();
        write(&mut self.text);
        let text = Span::new(start, self.text.len());
        if let Some(splice) = self.list.get_mut(slot.0) {
            splice.text = text;
            self.grown_bytes += text.len() as i64 - splice.place.len() as i64;
        }
    }

    pub(super) fn mark(&self) -> Mark {
        Mark { list: self.list.len(), text: self.text.len(), grown_bytes: self.grown_bytes }
    }

    pub(super) fn count_since(&self, mark: Mark) -> usize {
        self.list.len() - mark.list
    }

    pub(super) fn rollback(&mut self, mark: Mark) {
        self.list.truncate(mark.list);
        self.text.truncate(mark.text);
        self.grown_bytes = mark.grown_bytes;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_are_applied_in_one_pass() {
        let mut splices = Splices::new();
        splices.claim(6, Span::new(0, 6)).unwrap();
        splices.replace(Span::new(1, 2), |text| text.extend(b"XYZ"));
        splices.cut(Span::new(3, 4));
        splices.replace(Span::new(6, 6), |text| text.push(b'!'));
        let mut out = b">".to_vec();
        splices.apply(b"abcdef", &mut out).unwrap();
        assert_eq!(out.escape_ascii().to_string(), ">aXYZcef!");
        assert_eq!(splices.grown_bytes(), 2);
        assert!(!splices.apply_in_place(&mut b"abcdef".to_vec()));
    }

    #[test]
    fn changes_of_another_body_are_refused() {
        let mut splices = Splices::new();
        splices.claim(6, Span::new(0, 6)).unwrap();
        splices.replace(Span::new(5, 6), |text| text.push(b'x'));
        let mut out = b"kept".to_vec();
        assert_eq!(splices.apply(b"abc", &mut out), Err(Untouched::Order));
        assert_eq!(out, b"kept");
        assert!(!splices.apply_in_place(&mut b"abc".to_vec()));
        let mut same = b"abcdef".to_vec();
        assert!(splices.apply_in_place(&mut same));
        assert_eq!(same, b"abcdex");
    }

    #[test]
    fn an_event_is_edited_once_and_after_those_before_it() {
        let mut splices = Splices::new();
        splices.claim(9, Span::new(3, 6)).unwrap();
        assert_eq!(splices.claim(9, Span::new(3, 6)), Err(Untouched::Order));
        assert_eq!(splices.claim(9, Span::new(0, 3)), Err(Untouched::Order));
        assert_eq!(splices.claim(8, Span::new(6, 8)), Err(Untouched::Order));
        assert_eq!(splices.claim(9, Span::new(6, 9)), Ok(()));
    }
}
