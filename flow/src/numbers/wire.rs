//! Walks an `ExportMetricsServiceRequest` where it lies. Total: bytes of any kind give points or an error that names
//! the message, never a panic. Unknown fields are passed over. Must never copy what it only shows.

use std::fmt;

/// What is broken, by the name of the message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Malformed(pub &'static str);

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "no valid protobuf in {}", self.0)
    }
}

impl std::error::Error for Malformed {}

/// A field's value.
#[derive(Clone, Copy, Debug)]
pub(super) enum Field<'a> {
    Varint(u64),
    Fixed64(u64),
    Bytes(&'a [u8]),
    Fixed32,
}

/// The fields of one message.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fields<'a> {
    rest: &'a [u8],
    name: &'static str,
}

pub(super) fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0_u64;
    for shift in (0..70).step_by(7) {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f).checked_shl(shift).unwrap_or(0);
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

fn take<'a>(bytes: &mut &'a [u8], length: usize) -> Option<&'a [u8]> {
    let (taken, rest) = bytes.split_at_checked(length)?;
    *bytes = rest;
    Some(taken)
}

fn fixed64(bytes: &mut &[u8]) -> Option<u64> {
    let (taken, rest) = bytes.split_first_chunk::<8>()?;
    *bytes = rest;
    Some(u64::from_le_bytes(*taken))
}

impl<'a> Fields<'a> {
    pub(super) fn of(bytes: &'a [u8], name: &'static str) -> Self {
        Self { rest: bytes, name }
    }

    fn one(&mut self) -> Option<(u64, Field<'a>)> {
        let tag = varint(&mut self.rest)?;
        let value = match tag & 7 {
            0 => Field::Varint(varint(&mut self.rest)?),
            1 => Field::Fixed64(fixed64(&mut self.rest)?),
            2 => {
                let length = usize::try_from(varint(&mut self.rest)?).ok()?;
                Field::Bytes(take(&mut self.rest, length)?)
            }
            5 => {
                let (_, rest) = self.rest.split_first_chunk::<4>()?;
                self.rest = rest;
                Field::Fixed32
            }
            _ => return None,
        };
        (tag >> 3 != 0).then_some((tag >> 3, value))
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u64, Field<'a>), Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let field = self.one().ok_or(Malformed(self.name));
        if field.is_err() {
            self.rest = &[];
        }
        Some(field)
    }
}

/// The value of an attribute, as far as numbers need it.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) enum Value<'a> {
    Text(&'a [u8]),
    Int(u64),
    Flag(bool),
    Other(&'a [u8]),
}

/// A `KeyValue`.
pub(super) fn key_value(bytes: &[u8]) -> Result<(&[u8], Value<'_>), Malformed> {
    let (mut key, mut value): (&[u8], _) = (&[], Value::Other(&[]));
    for field in Fields::of(bytes, "KeyValue") {
        match field? {
            (1, Field::Bytes(text)) => key = text,
            (2, Field::Bytes(any)) => {
                for field in Fields::of(any, "AnyValue") {
                    value = match field? {
                        (1, Field::Bytes(text)) => Value::Text(text),
                        (2, Field::Varint(flag)) => Value::Flag(flag != 0),
                        (3, Field::Varint(int)) => Value::Int(int),
                        _ => Value::Other(any),
                    };
                }
            }
            _ => {}
        }
    }
    Ok((key, value))
}

/// What a data point counts.
#[derive(Clone, Copy, Debug)]
pub(super) enum Body<'a> {
    /// Counts and bounds, to be read from the point when they are needed.
    Explicit,
    /// Scale, count of zeroes, positive buckets, negative ones seen.
    Exponential { scale: i32, zeroes: u64, positive: &'a [u8], negative: bool },
    /// A sum.
    Number { int: i64 },
}

/// A data point.
#[derive(Clone, Copy, Debug)]
pub(super) struct Point<'a> {
    pub(super) start: u64,
    pub(super) time: u64,
    pub(super) count: u64,
    pub(super) sum: f64,
    /// `FLAG_NO_RECORDED_VALUE`.
    pub(super) nothing: bool,
    /// The message, to read the attributes of.
    pub(super) raw: &'a [u8],
    /// The field number of the attributes in it.
    pub(super) attributes: u64,
    pub(super) body: Body<'a>,
}

impl<'a> Point<'a> {
    /// Visits the attributes.
    pub(super) fn attributes(
        &self,
        mut visit: impl FnMut(&'a [u8], &'a [u8], Value<'a>),
    ) -> Result<(), Malformed> {
        for field in Fields::of(self.raw, "NumberDataPoint") {
            if let (number, Field::Bytes(pair)) = field?
                && number == self.attributes
            {
                let (key, value) = key_value(pair)?;
                visit(pair, key, value);
            }
        }
        Ok(())
    }

    /// The explicit bounds and counts of a histogram.
    pub(super) fn explicit(&self, bounds: &mut Vec<f64>, counts: &mut Vec<u64>) -> Result<(), Malformed> {
        const NAME: &str = "HistogramDataPoint";
        bounds.clear();
        counts.clear();
        for field in Fields::of(self.raw, NAME) {
            match field? {
                (6, Field::Bytes(mut packed)) => {
                    while !packed.is_empty() {
                        counts.push(fixed64(&mut packed).ok_or(Malformed(NAME))?);
                    }
                }
                (6, Field::Fixed64(count)) => counts.push(count),
                (7, Field::Bytes(mut packed)) => {
                    while !packed.is_empty() {
                        bounds.push(f64::from_bits(fixed64(&mut packed).ok_or(Malformed(NAME))?));
                    }
                }
                (7, Field::Fixed64(bound)) => bounds.push(f64::from_bits(bound)),
                _ => {}
            }
        }
        Ok(())
    }
}

/// Buckets of an exponential histogram: visits index and count of those that are not empty.
pub(super) fn buckets(message: &[u8], mut visit: impl FnMut(i64, u64)) -> Result<(), Malformed> {
    const NAME: &str = "Buckets";
    let mut offset = 0;
    for field in Fields::of(message, NAME) {
        if let (1, Field::Varint(zigzag)) = field? {
            offset = unzigzag(zigzag);
        }
    }
    let mut index = offset;
    let mut one = |count: u64| {
        if count > 0 {
            visit(index, count);
        }
        index = index.saturating_add(1);
    };
    for field in Fields::of(message, NAME) {
        match field? {
            (2, Field::Bytes(mut packed)) => {
                while !packed.is_empty() {
                    one(varint(&mut packed).ok_or(Malformed(NAME))?);
                }
            }
            (2, Field::Varint(count)) => one(count),
            _ => {}
        }
    }
    Ok(())
}

fn unzigzag(value: u64) -> i64 {
    i64::from((value as u32 >> 1) as i32 ^ -((value & 1) as i32))
}

/// How a metric's points relate to each other.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Temporality {
    Unknown,
    Delta,
    Cumulative,
}

/// A metric whose points are counts or histograms.
#[derive(Clone, Copy, Debug)]
pub(super) struct Metric<'a> {
    pub(super) name: &'a [u8],
    /// `s`, `ms`, …
    pub(super) unit: &'a [u8],
    /// 5 gauge, 7 sum, 9 histogram, 10 exponential histogram, 11 summary.
    pub(super) kind: u64,
    data: &'a [u8],
    pub(super) temporality: Temporality,
    pub(super) monotonic: bool,
}

pub(super) fn metric(bytes: &[u8]) -> Result<Metric<'_>, Malformed> {
    let mut metric = Metric {
        name: &[],
        unit: &[],
        kind: 0,
        data: &[],
        temporality: Temporality::Unknown,
        monotonic: false,
    };
    for field in Fields::of(bytes, "Metric") {
        match field? {
            (1, Field::Bytes(name)) => metric.name = name,
            (3, Field::Bytes(unit)) => metric.unit = unit,
            (kind @ (5 | 7 | 9 | 10 | 11), Field::Bytes(data)) => (metric.kind, metric.data) = (kind, data),
            _ => {}
        }
    }
    for field in Fields::of(metric.data, "Metric.data") {
        match field? {
            (2, Field::Varint(1)) => metric.temporality = Temporality::Delta,
            (2, Field::Varint(2)) => metric.temporality = Temporality::Cumulative,
            (3, Field::Varint(flag)) => metric.monotonic = flag != 0,
            _ => {}
        }
    }
    Ok(metric)
}

impl<'a> Metric<'a> {
    /// How many points there are.
    pub(super) fn len(&self) -> Result<u64, Malformed> {
        let mut count = 0;
        for field in Fields::of(self.data, "Metric.data") {
            count += u64::from(matches!(field?, (1, Field::Bytes(_))));
        }
        Ok(count)
    }

    /// Visits the points. Gauges and summaries have none that are read here.
    pub(super) fn points(
        &self,
        mut visit: impl FnMut(Point<'a>) -> Result<(), Malformed>,
    ) -> Result<(), Malformed> {
        for field in Fields::of(self.data, "Metric.data") {
            let (1, Field::Bytes(raw)) = field? else { continue };
            match self.kind {
                7 => visit(number(raw)?)?,
                9 => visit(explicit(raw)?)?,
                10 => visit(exponential(raw)?)?,
                _ => {}
            }
        }
        Ok(())
    }
}

fn blank(raw: &[u8], attributes: u64) -> Point<'_> {
    Point {
        start: 0,
        time: 0,
        count: 0,
        sum: 0.0,
        nothing: false,
        raw,
        attributes,
        body: Body::Number { int: 0 },
    }
}

fn number(raw: &[u8]) -> Result<Point<'_>, Malformed> {
    let mut point = blank(raw, 7);
    for field in Fields::of(raw, "NumberDataPoint") {
        match field? {
            (2, Field::Fixed64(start)) => point.start = start,
            (3, Field::Fixed64(time)) => point.time = time,
            (4, Field::Fixed64(double)) => {
                point.body = Body::Number { int: f64::from_bits(double).round() as i64 };
            }
            (6, Field::Fixed64(int)) => point.body = Body::Number { int: int.cast_signed() },
            (8, Field::Varint(flags)) => point.nothing = flags & 1 != 0,
            _ => {}
        }
    }
    if let Body::Number { int } = point.body {
        point.count = u64::try_from(int).unwrap_or(0);
    }
    Ok(point)
}

fn explicit(raw: &[u8]) -> Result<Point<'_>, Malformed> {
    let mut point = Point { body: Body::Explicit, ..blank(raw, 9) };
    for field in Fields::of(raw, "HistogramDataPoint") {
        match field? {
            (2, Field::Fixed64(start)) => point.start = start,
            (3, Field::Fixed64(time)) => point.time = time,
            (4, Field::Fixed64(count)) => point.count = count,
            (5, Field::Fixed64(sum)) => point.sum = f64::from_bits(sum),
            (10, Field::Varint(flags)) => point.nothing = flags & 1 != 0,
            _ => {}
        }
    }
    Ok(point)
}

fn exponential(raw: &[u8]) -> Result<Point<'_>, Malformed> {
    let mut point = blank(raw, 1);
    let (mut scale, mut zeroes, mut positive, mut negative): (_, _, &[u8], _) = (0, 0, &[], false);
    for field in Fields::of(raw, "ExponentialHistogramDataPoint") {
        match field? {
            (2, Field::Fixed64(start)) => point.start = start,
            (3, Field::Fixed64(time)) => point.time = time,
            (4, Field::Fixed64(count)) => point.count = count,
            (5, Field::Fixed64(sum)) => point.sum = f64::from_bits(sum),
            (6, Field::Varint(zigzag)) => scale = unzigzag(zigzag) as i32,
            (7, Field::Fixed64(count)) => zeroes = count,
            (8, Field::Bytes(buckets)) => positive = buckets,
            (9, Field::Bytes(buckets)) => negative = !buckets.is_empty(),
            (10, Field::Varint(flags)) => point.nothing = flags & 1 != 0,
            _ => {}
        }
    }
    point.body = Body::Exponential { scale, zeroes, positive, negative };
    Ok(point)
}

/// One `ResourceMetrics` message: the `Resource` and what its scopes hold.
pub(super) fn resource_metrics(
    bytes: &[u8],
    mut visit: impl FnMut(&[u8], &[u8], &[u8]) -> Result<(), Malformed>,
) -> Result<(), Malformed> {
    for field in Fields::of(bytes, "ExportMetricsServiceRequest") {
        let (1, Field::Bytes(of_resource)) = field? else { continue };
        let mut resource: &[u8] = &[];
        for field in Fields::of(of_resource, "ResourceMetrics") {
            if let (1, Field::Bytes(found)) = field? {
                resource = found;
            }
        }
        for field in Fields::of(of_resource, "ResourceMetrics") {
            let (2, Field::Bytes(of_scope)) = field? else { continue };
            let mut scope: &[u8] = &[];
            for field in Fields::of(of_scope, "ScopeMetrics") {
                if let (1, Field::Bytes(found)) = field? {
                    scope = found;
                }
            }
            let mut name: &[u8] = &[];
            for field in Fields::of(scope, "InstrumentationScope") {
                if let (1, Field::Bytes(found)) = field? {
                    name = found;
                }
            }
            for field in Fields::of(of_scope, "ScopeMetrics") {
                if let (2, Field::Bytes(metric)) = field? {
                    visit(resource, name, metric)?;
                }
            }
        }
    }
    Ok(())
}
