//! What the JSON and the gRPC form of a Pub/Sub message have in common: the view of a message, its
//! attributes, and the structured event inside its data. Never knows how a form is spelled.

use std::borrow::Cow;

use super::base64::{self, Spelling};
use super::cloudevent::EventView;
use super::detect::{ContentMode, content_mode_of};
use super::json::{self, Object, Outline, Scanner, edit_object};
use super::protobuf::Entry;
use super::splice::{Span, Splices};
use super::{Edit, Untouched};

/// What tracing reads of a message.
#[derive(Clone, Debug, Default)]
pub struct MessageView<'a> {
    /// The message's attributes.
    pub attributes: Attributes<'a>,
    /// Where the data stands in the body: base64 text in JSON, the bytes themselves in protobuf.
    pub data: Option<Span>,
    /// The id that the service gave it.
    pub message_id: Option<Cow<'a, str>>,
    /// The ordering key, if not empty.
    pub ordering_key: Option<Cow<'a, str>>,
    /// When the service took it in, in nanoseconds since 1970.
    pub publish_time_unix_ns: Option<u64>,
    /// The delivery attempt, from 1; absent unless the subscription counts them.
    pub delivery_attempt: Option<u32>,
    /// The id by which this delivery is acknowledged.
    pub ack_id: Option<Cow<'a, str>>,
}

/// A message's attributes, wherever they are kept.
#[derive(Clone, Copy, Debug, Default)]
pub enum Attributes<'a> {
    /// The message has none.
    #[default]
    None,
    /// Members of a JSON object.
    Json(&'a str, &'a [json::Member]),
    /// Entries of a protobuf map.
    Protobuf(&'a [u8], &'a [Entry]),
}

impl<'a> Attributes<'a> {
    /// The value of one attribute; of duplicates the last, as every reader of JSON and protobuf maps has it.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<Cow<'a, str>> {
        self.last(|key| key == name)
    }

    fn last(&self, is: impl Fn(&str) -> bool) -> Option<Cow<'a, str>> {
        self.iter().filter(|attribute| is(&attribute.name())).last()?.value()
    }

    /// Every attribute in the order of the message.
    pub fn iter(&self) -> impl Iterator<Item = Attribute<'a>> + use<'a> {
        let (text, members, body, entries): (&'a str, &'a [json::Member], &'a [u8], &'a [Entry]) = match *self
        {
            Self::None => ("", &[], &[], &[]),
            Self::Json(text, members) => (text, members, &[], &[]),
            Self::Protobuf(body, entries) => ("", &[], body, entries),
        };
        let members = members.iter().map(move |member| Attribute(Place::Json(text, member)));
        members.chain(entries.iter().map(move |entry| Attribute(Place::Protobuf(body, entry))))
    }

    /// How many attributes there are, duplicates included.
    #[must_use]
    pub fn len(&self) -> usize {
        match self {
            Self::None => 0,
            Self::Json(_, members) => members.len(),
            Self::Protobuf(_, entries) => entries.len(),
        }
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The CloudEvent that the message's attributes carry (binary mode of the Pub/Sub binding: the
    /// attribute's name with `ce-` before it, its value as it is).
    #[must_use]
    pub fn binary_event(&self) -> Option<EventView<'a>> {
        let mut view = EventView::default();
        for attribute in self.iter() {
            if let Some(name) = attribute.name().strip_prefix("ce-") {
                view.take(name, || attribute.value());
            }
        }
        view.is_event().then_some(view)
    }

    /// Whether the data is a structured event: the attribute `content-type`, in any case, says so.
    #[must_use]
    pub fn announce_structured(&self) -> bool {
        let media = self.last(|name| name.eq_ignore_ascii_case("content-type"));
        media.is_some_and(|media| content_mode_of(media.as_bytes()) == Some(ContentMode::Structured))
    }
}

/// One attribute where it stands.
#[derive(Clone, Copy, Debug)]
pub struct Attribute<'a>(Place<'a>);

#[derive(Clone, Copy, Debug)]
enum Place<'a> {
    Json(&'a str, &'a json::Member),
    Protobuf(&'a [u8], &'a Entry),
}

impl<'a> Attribute<'a> {
    /// The name; empty if it cannot be read.
    #[must_use]
    pub fn name(&self) -> Cow<'a, str> {
        match self.0 {
            Place::Json(text, member) => json::unescape(member.key.text(text)).unwrap_or_default(),
            Place::Protobuf(body, entry) => Cow::Borrowed(entry.key(body)),
        }
    }

    /// The value; `None` if it is not a text.
    #[must_use]
    pub fn value(&self) -> Option<Cow<'a, str>> {
        match self.0 {
            Place::Json(text, member) => member.string(text),
            Place::Protobuf(body, entry) => entry.value(body).map(Cow::Borrowed),
        }
    }
}

/// The changes of one message.
#[derive(Debug, Default)]
pub struct MessageEdit<'e, 'd, 's> {
    /// Changes of its attributes.
    pub attributes: &'e [Edit<'e>],
    /// Changes of the structured event in its data.
    pub event: Option<(Inside<'d, 's>, &'e [Edit<'e>])>,
}

/// Memory for the event inside a message's data; reusable from message to message.
#[derive(Debug, Default)]
pub struct InsideScratch {
    digits: Vec<u8>,
    decoded: Vec<u8>,
    outline: Outline,
    splices: Splices,
    edited: Vec<u8>,
}

/// A structured event inside the data of a message.
#[derive(Debug)]
pub struct Inside<'d, 's> {
    data: &'d [u8],
    form: Form,
    text: &'s str,
    object: Object,
    outline: &'s Outline,
    splices: &'s mut Splices,
    edited: &'s mut Vec<u8>,
}

#[derive(Clone, Copy, Debug)]
enum Form {
    Plain,
    Base64(Spelling),
}

impl<'d, 's> Inside<'d, 's> {
    /// What tracing reads of the event.
    #[must_use]
    pub fn view(&self) -> EventView<'_> {
        EventView::of_members(self.text, self.outline.members(&self.object))
    }

    /// Reads data that is the event's JSON itself.
    pub(super) fn plain(data: &'d [u8], scratch: &'s mut InsideScratch) -> Result<Self, Untouched>
    where
        'd: 's,
    {
        let InsideScratch { outline, splices, edited, .. } = scratch;
        let (text, object) = read(data, outline)?;
        Ok(Self { data, form: Form::Plain, text, object, outline, splices, edited })
    }

    /// Reads data that is the event's JSON in base64, as it stands between the quotes of a JSON string.
    pub(super) fn base64(data: &'d str, scratch: &'s mut InsideScratch) -> Result<Self, Untouched> {
        let InsideScratch { digits, decoded, outline, splices, edited } = scratch;
        decoded.clear();
        let spelling = if data.contains('\\') {
            unescape_slashes(data, digits)?;
            base64::decode(digits, decoded)?.with_escaped_slash(data.contains("\\/"))
        } else {
            base64::decode(data.as_bytes(), decoded)?
        };
        let (text, object) = read(decoded, outline)?;
        Ok(Self {
            data: data.as_bytes(),
            form: Form::Base64(spelling),
            text,
            object,
            outline,
            splices,
            edited,
        })
    }

    /// Puts the changed event into the place of `data`; nothing if nothing changes. In base64, only the
    /// digits from the first changed byte on are written anew, and up to the last one when the length stays.
    pub(super) fn edit(
        self,
        data: &[u8],
        place: Span,
        edits: &[Edit<'_>],
        outer: &mut Splices,
    ) -> Result<(), Untouched> {
        if !std::ptr::eq(self.data, data) {
            return Err(Untouched::Order);
        }
        let members = self.outline.members(&self.object);
        let Form::Base64(spelling) = self.form else {
            outer.rebase(place.start());
            let done = edit_object(self.text, &self.object, members, edits, outer);
            outer.rebase(0);
            return done;
        };
        self.splices.clear();
        self.splices.claim(self.text.len(), self.object.span)?;
        edit_object(self.text, &self.object, members, edits, self.splices)?;
        let (Some((first, _)), Some((last, _))) = (self.splices.iter().next(), self.splices.iter().last())
        else {
            return Ok(());
        };
        self.edited.clear();
        self.splices.apply(self.text.as_bytes(), self.edited)?;
        if spelling.escaped_slash() {
            outer.replace(place, |out| base64::encode(self.edited, spelling, out));
            return Ok(());
        }
        let same_length = self.edited.len() == self.text.len();
        let (from, to) = (first.start / 3, last.end.div_ceil(3));
        let (to_digit, to_byte) = if same_length { (to * 4, to * 3) } else { (usize::MAX, usize::MAX) };
        let (to_digit, to_byte) = (to_digit.min(place.len()), to_byte.min(self.edited.len()));
        let changed = self.edited.get(from * 3..to_byte).unwrap_or_default();
        outer.replace(Span::new(place.start() + from * 4, place.start() + to_digit), |out| {
            base64::encode(changed, spelling, out);
        });
        Ok(())
    }
}

fn read<'t>(bytes: &'t [u8], outline: &mut Outline) -> Result<(&'t str, Object), Untouched> {
    let mut scanner = Scanner::new(bytes)?;
    outline.clear();
    let object = scanner.object(outline)?;
    scanner.finish()?;
    Ok((scanner.text(), object))
}

/// Base64 in a JSON string has one escape that writers use, `\/`. Any other one is spelled by nobody, and
/// its data is left alone.
fn unescape_slashes(data: &str, digits: &mut Vec<u8>) -> Result<(), Untouched> {
    digits.clear();
    digits.reserve(data.len());
    for piece in data.split_inclusive("\\/") {
        match piece.strip_suffix("\\/") {
            Some(before) => {
                digits.extend_from_slice(before.as_bytes());
                digits.push(b'/');
            }
            None => digits.extend_from_slice(piece.as_bytes()),
        }
    }
    if digits.contains(&b'\\') { Err(Untouched::NotBase64) } else { Ok(()) }
}

/// Nanoseconds since 1970 of an RFC 3339 time, as the JSON form of protobuf's `Timestamp` spells it.
#[must_use]
pub fn unix_ns(time: &str) -> Option<u64> {
    let time = time.as_bytes();
    let number = |range: std::ops::Range<usize>| -> Option<u64> {
        let digits = time.get(range)?;
        digits.iter().try_fold(0, |sum, byte| Some(sum * 10 + u64::from(char::from(*byte).to_digit(10)?)))
    };
    let is = |at: usize, byte: u8| time.get(at) == Some(&byte);
    let shaped = is(4, b'-') && is(7, b'-') && (is(10, b'T') || is(10, b't')) && is(13, b':') && is(16, b':');
    let (year, month, day) = (number(0..4)?, number(5..7)?, number(8..10)?);
    let (hour, minute, second) = (number(11..13)?, number(14..16)?, number(17..19)?);
    let valid =
        (1..=12).contains(&month) && (1..=31).contains(&day) && hour < 24 && minute < 60 && second <= 60;
    if !shaped || !valid || year < 1970 {
        return None;
    }
    let rest = time.get(19..)?;
    let fraction = rest
        .strip_prefix(b".")
        .map_or(0, |digits| digits.iter().take_while(|byte| byte.is_ascii_digit()).count());
    let nanos = (20..29).try_fold(0, |sum, at| {
        let digit = if at < 20 + fraction { number(at..at + 1)? } else { 0 };
        Some(sum * 10 + digit)
    })?;
    let zone = rest.get(if fraction > 0 { fraction + 1 } else { 0 }..)?;
    let offset_s = match zone {
        b"Z" | b"z" => 0,
        [sign @ (b'+' | b'-'), _, _, b':', _, _] => {
            let at = time.len() - 5;
            let seconds = i64::try_from(number(at..at + 2)? * 3600 + number(at + 3..at + 5)? * 60).ok()?;
            if *sign == b'+' { seconds } else { -seconds }
        }
        _ => return None,
    };
    let seconds = days_since_1970(year, month, day) * 86_400 + hour * 3600 + minute * 60 + second;
    seconds.checked_add_signed(-offset_s)?.checked_mul(1_000_000_000)?.checked_add(nanos)
}

/// Counts the days of the Gregorian calendar, with the year beginning in March so that the leap day is last.
fn days_since_1970(year: u64, month: u64, day: u64) -> u64 {
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let leap_days = year / 4 - year / 100 + year / 400;
    // 719,468 days lie between 1 March of the year 0 and 1 January 1970.
    year * 365 + leap_days + (month * 153 + 2) / 5 + day - 1 - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_as_the_service_writes_them() {
        for (time, ns) in [
            ("1970-01-01T00:00:00Z", Some(0)),
            ("1970-01-01T00:00:00.000000001Z", Some(1)),
            ("2026-11-20T12:34:56.789Z", Some(1_795_178_096_789_000_000)),
            ("2024-02-29T23:59:59.5Z", Some(1_709_251_199_500_000_000)),
            ("2024-03-01T01:00:00+01:00", Some(1_709_251_200_000_000_000)),
            ("1969-12-31T23:59:59Z", None),
            ("2024-02-29T23:59:59", None),
            ("2024-13-29T23:59:59Z", None),
            ("2024-02-29T23:59:59.Z", None),
            ("2024-02-29 23:59:59Z", None),
            ("2024-02-2\u{661}T23:59:59Z", None),
            ("", None),
        ] {
            assert_eq!(unix_ns(time), ns, "{time}");
        }
    }
}
