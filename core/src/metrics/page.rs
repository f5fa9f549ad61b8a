//! The numbers of one moment as a page for Prometheus, written in pieces: a page with every series that there may be
//! is some megabytes, and nobody should have to hold it whole.

use super::graph::Graph;
use super::messages::{Count, FAMILIES};
use super::{DURATIONS, OVERFLOW, Requests, Row, Shown};
use crate::classify::Direction;
use crate::names::attribute;
use crate::prometheus::table::{CLIENT_DURATION, SERVER_DURATION};
use crate::prometheus::{Text, label};
use crate::route::Routes;

/// A copy of the request metrics, and how far it is written.
#[derive(Debug)]
pub struct Numbers {
    requests: Requests,
    routes: Routes,
    service: Box<str>,
    with_graph: bool,
    stage: Stage,
}

#[derive(Debug)]
enum Stage {
    /// Series of this direction, from this row on.
    Durations(Direction, usize),
    /// Series of this metric of messages, from this row on.
    Messages(usize, usize),
    Graph(Box<Graph>),
    Over,
}

impl Numbers {
    pub(crate) fn new(requests: Requests, routes: Routes, service: &str, with_graph: bool) -> Self {
        let stage = Stage::Durations(Direction::Inbound, 0);
        Self { requests, routes, service: service.into(), with_graph, stage }
    }

    /// Writes on from where it stopped until `text` holds about `most` bytes. Says whether there is more.
    pub fn write(&mut self, text: &mut Text, most: usize) -> bool {
        while text.len() < most {
            self.stage = match std::mem::replace(&mut self.stage, Stage::Over) {
                Stage::Durations(direction, from) => match self.durations(direction, from, text, most) {
                    Some(row) => Stage::Durations(direction, row),
                    None if direction == Direction::Inbound => Stage::Durations(Direction::Outbound, 0),
                    None => Stage::Messages(0, 0),
                },
                Stage::Messages(family, from) => match self.messages(family, from, text, most) {
                    Some(row) => Stage::Messages(family, row),
                    None if family + 1 < FAMILIES.len() => Stage::Messages(family + 1, 0),
                    None if self.with_graph => {
                        Stage::Graph(Box::new(Graph::of(&self.requests, &self.routes, &self.service)))
                    }
                    None => Stage::Over,
                },
                Stage::Graph(mut graph) => {
                    if graph.write(text, most) {
                        Stage::Graph(graph)
                    } else {
                        Stage::Over
                    }
                }
                Stage::Over => return false,
            };
        }
        !matches!(self.stage, Stage::Over)
    }

    /// The next row, if there is one.
    fn durations(&self, direction: Direction, from: usize, text: &mut Text, most: usize) -> Option<usize> {
        let metric = match direction {
            Direction::Inbound => &SERVER_DURATION,
            Direction::Outbound => &CLIENT_DURATION,
        };
        if from == 0 {
            text.head(metric);
        }
        let mut labels = String::new();
        let rows = self.requests.rows.iter().enumerate().skip(from);
        for (place, row) in rows.filter(|(_, row)| row.key.direction() == direction) {
            if text.len() >= most {
                return Some(place);
            }
            let Row { key, histogram, exemplar } = row;
            self.requests.shown(key, &|number| self.routes.name(number)).labels_into(&mut labels);
            text.histogram(metric.name, &labels, &DURATIONS, histogram, exemplar.as_ref());
        }
        if let Some(histogram) = self.requests.overflow(direction) {
            OVERFLOW.labels_into(&mut labels);
            text.histogram(metric.name, &labels, &DURATIONS, histogram, None);
        }
        None
    }

    /// The next row of the metric, if there is one.
    fn messages(&self, family: usize, from: usize, text: &mut Text, most: usize) -> Option<usize> {
        let family = FAMILIES.get(family)?;
        if from == 0 {
            text.head(&family.metric);
        }
        let (name, mut labels) = (family.metric.name, String::new());
        self.requests.each_of_messages(family, from, |shown, count| {
            if text.len() >= most {
                return false;
            }
            shown.labels_into(&mut labels);
            match count {
                Count::Sum(count) => text.line(name, "", &labels, count),
                Count::Histogram(bounds, histogram) => text.histogram(name, &labels, bounds, histogram, None),
            }
            true
        })
    }
}

impl Shown<'_> {
    fn labels_into(&self, text: &mut String) {
        text.clear();
        for (key, value) in &self.labels {
            label(text, key, value);
            if *key == attribute::SERVER_ADDRESS
                && let Some(port) = self.port
            {
                label(text, attribute::SERVER_PORT, &port.to_string());
            }
        }
        if let Some(status) = self.status {
            label(text, attribute::HTTP_RESPONSE_STATUS_CODE, &status.to_string());
        }
        if self.overflow {
            label(text, attribute::METRIC_OVERFLOW, "true");
        }
    }
}
