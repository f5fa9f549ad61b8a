//! Answers questions: adds up the slots that cover the time, in the scopes that the question is about. Sums of packed
//! slots and whole answers are remembered for as long as they hold. Must never hold the lock of the numbers while it
//! adds up.

use std::any::Any;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, TryLockError};
use std::time::Instant;

use super::answer::*;
use super::graph::{Entered, Sums, World};
use super::keys::{About, Key, Map, NONE, OTHER, Scope, Seeded, Told, Use};
use super::limits;
use super::slots::{Cell, Cells, Minute, Packed, minute_of, sum};
use super::{Numbers, State};

/// What was asked.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Asked {
    Operations,
    Stats,
    Services,
    Graph,
    Propagation,
}

/// A question, as far as its answer depends on it.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct Question {
    asked: Asked,
    texts: [Option<Box<str>>; 4],
    from: Minute,
    to: Minute,
}

/// An answer, when it was given, and for how long it may be given again.
type Given = (u64, u64, Arc<dyn Any + Send + Sync>);

/// Sums of packed slots: of which generation, from where to where.
#[derive(Debug, Default)]
struct Made {
    of: Option<(u64, Minute, Minute)>,
    cells: Arc<Vec<(u32, Cell)>>,
}

/// An answer and the sums that it is made of.
#[derive(Debug, Default)]
struct Place {
    given: Mutex<Option<Given>>,
    made: Mutex<Made>,
    cells: AtomicU64,
}

impl Place {
    /// The answer, if it is younger than `most`, or than what it is good for.
    fn given<T: Send + Sync + 'static>(&self, now: u64, most: Option<u64>) -> Option<Arc<T>> {
        let given = self.given.lock().unwrap_or_else(PoisonError::into_inner);
        let (at, good_for, answer) = given.as_ref()?;
        (now < at + most.unwrap_or(*good_for)).then(|| answer.clone().downcast::<T>().ok()).flatten()
    }
}

/// A question, when it was asked last, and its answer.
type Asking = (Question, u64, Arc<Place>);

/// Answers that may be given again.
#[derive(Debug, Default)]
pub(super) struct Remembered {
    places: Mutex<Vec<Asking>>,
}

/// Cells of all remembered sums.
const CELLS_REMEMBERED: u64 = 400_000;
/// While somebody makes the answer anew, one of this age is good enough for the others.
const OLD_NANOS: u64 = 30_000_000_000;

impl Remembered {
    fn place(&self, question: Question, now: u64) -> Arc<Place> {
        let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, used, place)) = places.iter_mut().find(|(known, _, _)| *known == question) {
            *used = now;
            return place.clone();
        }
        let cells: u64 = places.iter().map(|(_, _, place)| place.cells.load(Ordering::Relaxed)).sum();
        if places.len() >= limits::SUMS_REMEMBERED || cells > CELLS_REMEMBERED {
            // The half that was not asked for longest.
            places.sort_unstable_by_key(|(_, used, _)| std::cmp::Reverse(*used));
            let half = places.len() / 2;
            places.truncate(half);
        }
        let place = Arc::new(Place::default());
        places.push((question, now, place.clone()));
        place
    }

    pub(super) fn bytes(&self) -> u64 {
        let places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        let cells: u64 = places.iter().map(|(_, _, place)| place.cells.load(Ordering::Relaxed)).sum();
        cells * 400
    }
}

fn owned(filter: &Filter<'_>) -> [Option<Box<str>>; 4] {
    [filter.environment, filter.operation, filter.namespace, filter.service].map(|text| text.map(Box::from))
}

/// The minutes of a window.
fn minutes(window: Window) -> (Minute, Minute) {
    let to = minute_of(window.end_unix_nanos.saturating_add(59_999_999_999));
    (minute_of(window.start_unix_nanos), to)
}

impl State {
    /// The scopes that a question is about; every environment when none is named.
    fn scopes(&self, filter: &Filter<'_>, about: impl Fn(&State, u16) -> Vec<About>) -> Vec<Scope> {
        let mut scopes = Vec::new();
        for environment in 0..self.keys.environments.len() as u16 {
            let wanted =
                filter.environment.is_none_or(|text| text == self.keys.environment_text(environment));
            if wanted {
                let all = about(self, environment).into_iter();
                scopes.extend(all.map(|about| Scope { environment, about }));
            }
        }
        scopes
    }

    /// The scopes of one operation, or of everything.
    fn scopes_of_operation(&self, filter: &Filter<'_>) -> Vec<Scope> {
        self.scopes(filter, |state, environment| match filter.operation {
            None => vec![About::Everything],
            Some(text) => {
                let known = state.keys.known(Use::Operation(environment), text);
                known.filter(|name| *name != NONE).map(About::Operation).into_iter().collect()
            }
        })
    }
}

impl Numbers {
    fn time(&self) -> u64 {
        self.now.load(Ordering::Relaxed)
    }

    /// Answers from memory, or by `make` of the sums of the scopes that `scopes` names.
    fn answer<T: Send + Sync + 'static>(
        &self,
        asked: Asked,
        filter: &Filter<'_>,
        window: Window,
        scopes: impl Fn(&State, &[Arc<Packed>]) -> Vec<Scope>,
        make: impl FnOnce(&Sums, &World) -> T,
    ) -> Arc<T> {
        let now = self.time();
        let (from, to) = minutes(window);
        // A window that ends now is the same question a minute later.
        let is_live = to > minute_of(now);
        let times = if is_live { (to - from.min(to), Minute::MAX) } else { (from, to) };
        let question = Question { asked, texts: owned(filter), from: times.0, to: times.1 };
        let place = self.remembered.place(question, now);
        if let Some(answer) = place.given::<T>(now, None) {
            return answer;
        }
        let mut made = match place.made.try_lock() {
            Ok(made) => made,
            Err(TryLockError::Poisoned(made)) => made.into_inner(),
            Err(TryLockError::WouldBlock) => {
                if let Some(answer) = place.given::<T>(now, Some(OLD_NANOS)) {
                    return answer;
                }
                let made = place.made.lock().unwrap_or_else(PoisonError::into_inner);
                if let Some(answer) = place.given::<T>(now, None) {
                    return answer;
                }
                made
            }
        };
        let began = Instant::now();
        let (packed, open, scopes, generation, seed) = {
            let mut state = self.state();
            let State { slots, keys, .. } = &mut *state;
            let (packed, open) = slots.cover(from, to, keys, now);
            let all: Vec<Arc<Packed>> = packed.iter().chain(&open).cloned().collect();
            let scopes = scopes(&state, &all);
            (packed, open, scopes, state.slots.generation, state.seed)
        };
        if made.of != Some((generation, from, to)) {
            let mut cells = Map::with_hasher(seed);
            sum(&packed, &scopes, &mut cells);
            let mut cells: Vec<(u32, Cell)> = cells.into_iter().collect();
            cells.sort_unstable_by_key(|(series, _)| *series);
            place.cells.store(cells.len() as u64, Ordering::Relaxed);
            *made = Made { of: Some((generation, from, to)), cells: Arc::new(cells) };
        }
        let mut newer = Map::with_hasher(seed);
        sum(&open, &scopes, &mut newer);
        let sums = self.resolve(&made.cells, newer);
        let world = World::of(&self.state(), self.options.health, window, &sums, asked == Asked::Services);
        let answer = Arc::new(make(&sums, &world));
        let good_for = limits::fresh_for(began);
        *place.given.lock().unwrap_or_else(PoisonError::into_inner) = Some((now, good_for, answer.clone()));
        answer
    }

    /// Operations by environment, those asked for most first.
    #[must_use]
    pub fn operations(&self, environment: Option<&str>, window: Window) -> Arc<Vec<OperationRow>> {
        let filter = Filter { environment, ..Filter::default() };
        let scopes = |state: &State, slots: &[Arc<Packed>]| {
            let all = state.scopes(&filter, |_, _| vec![About::Propagation]);
            let mut found: Vec<Scope> = Vec::new();
            for packed in slots {
                for scope in packed.scopes().filter_map(unpacked) {
                    let is_operation = matches!(scope.about, About::Operation(name) if name != NONE);
                    let is_wanted = all.iter().any(|one| one.environment == scope.environment);
                    if is_operation && is_wanted && !found.contains(&scope) {
                        found.push(scope);
                    }
                }
            }
            found
        };
        self.answer(Asked::Operations, &filter, window, scopes, |sums, world| {
            let mut by_scope: Map<Scope, Sums> = Map::with_hasher(Seeded(1));
            for row in sums {
                by_scope.entry(row.0.scope).or_default().push(row.clone());
            }
            let rows = by_scope.into_iter().map(|(scope, sums)| {
                let entered = Entered::of(&world.edges(&sums));
                let About::Operation(name) = scope.about else { return None };
                Some(OperationRow {
                    name: world.text(name).to_owned(),
                    environment: world.environment(scope.environment).to_owned(),
                    figures: world.figures(&entered.figures),
                    last_seen_unix_nanos: world.last_seen(sums.iter()),
                })
            });
            let mut rows: Vec<OperationRow> = rows.flatten().collect();
            rows.sort_unstable_by(|one, other| {
                let by_count = other.figures.requests.cmp(&one.figures.requests);
                by_count.then_with(|| (&one.name, &one.environment).cmp(&(&other.name, &other.environment)))
            });
            rows
        })
    }

    /// Numbers of an operation, or of everything when the filter names none. None when nothing was counted.
    #[must_use]
    pub fn stats(&self, filter: &Filter<'_>, window: Window) -> Option<Arc<OperationStats>> {
        let scopes = |state: &State, _: &[Arc<Packed>]| state.scopes_of_operation(filter);
        let answer = self.answer(Asked::Stats, filter, window, scopes, |sums, world| {
            (!sums.is_empty()).then(|| Arc::new(world.stats(sums)))
        });
        (*answer).clone()
    }

    /// The graph of an operation, or of everything when the filter names none.
    #[must_use]
    pub fn graph(&self, filter: &Filter<'_>, window: Window) -> Arc<Graph> {
        let scopes = |state: &State, _: &[Arc<Packed>]| state.scopes_of_operation(filter);
        self.answer(Asked::Graph, filter, window, scopes, |sums, world| world.graph(sums, filter))
    }

    /// Services by environment, in the order of their names. Those that sent something in the window are there even
    /// when nobody asked them for anything.
    #[must_use]
    pub fn services(&self, filter: &Filter<'_>, window: Window) -> Arc<Vec<ServiceRow>> {
        let scopes = |state: &State, _: &[Arc<Packed>]| state.scopes_of_operation(filter);
        self.answer(Asked::Services, filter, window, scopes, |sums, world| world.services(sums, filter))
    }

    /// What sidecars report of the context, by service.
    #[must_use]
    pub fn propagation(&self, filter: &Filter<'_>, window: Window) -> Arc<Vec<Propagation>> {
        let scopes = |state: &State, _: &[Arc<Packed>]| state.scopes(filter, |_, _| vec![About::Propagation]);
        self.answer(Asked::Propagation, filter, window, scopes, |sums, world| world.propagation(sums, filter))
    }

    /// Environments that were ever named.
    #[must_use]
    pub fn environments(&self) -> Vec<String> {
        let state = self.state();
        let known = 0..state.keys.environments.len() as u16;
        known.map(|environment| state.keys.environment_text(environment).to_owned()).collect()
    }
}

impl Numbers {
    /// The keys of summed cells, in an order that does not depend on chance.
    fn resolve(&self, packed: &[(u32, Cell)], mut newer: Cells) -> Sums {
        let mut cells: Vec<(u32, Cell)> = Vec::with_capacity(packed.len() + newer.len());
        for (series, cell) in packed {
            let mut cell = cell.clone();
            if let Some(more) = newer.remove(series) {
                cell.add(&more);
            }
            cells.push((*series, cell));
        }
        cells.extend(newer);
        cells.sort_unstable_by_key(|(series, _)| *series);
        let state = self.state();
        let named = cells.into_iter().filter_map(|(series, cell)| {
            let last = state.last.get(series as usize).copied().unwrap_or(0);
            state.keys.key(series).map(|key| (*key, cell, last, series))
        });
        named.collect()
    }
}

fn unpacked(scope: u64) -> Option<Scope> {
    let about = match scope & 0xff_ffff_ffff {
        0 => About::Everything,
        1 => About::Propagation,
        name => About::Operation(u32::try_from(name - 2).ok()?),
    };
    Some(Scope { environment: u16::try_from(scope >> 40).ok()?, about })
}

/// Whether a failure is one that took too long.
pub(super) fn is_timeout(error: &str) -> bool {
    matches!(error, "timeout" | "504" | "DEADLINE_EXCEEDED" | "4" | "deadline_exceeded")
}

/// Whether a call failed before it reached the other side: nobody there can have counted it.
pub(super) fn is_unreached(error: &str) -> bool {
    matches!(
        error,
        "connection_refused"
            | "dns_failure"
            | "unreachable"
            | "tls_error"
            | "overload"
            | "destination_refused"
    )
}

/// Whether a call may have reached the other side although it brought no answer.
pub(super) fn is_unanswered(key: &Key, error: &str) -> bool {
    key.told == Told::Client
        && key.class == 0
        && key.error != NONE
        && key.error != OTHER
        && !is_unreached(error)
}
