//! Where the nodes of a graph stand when it is drawn: layers from left to right, few crossings, edges led around
//! nodes. The same graph gives the same picture, wherever it is drawn. Must never take longer than its bounds allow,
//! and never fail: what is beyond a bound is drawn more plainly.

/// From one layer to the next, in pixels of the drawing.
pub const LAYER_WIDTH: f64 = 280.0;
/// From one node to the next in a layer.
const NODE_HEIGHT: f64 = 84.0;
/// What an edge takes that passes a layer.
const PASSING_HEIGHT: f64 = 30.0;
/// Places where edges pass layers; edges beyond that are drawn straight.
const PASSINGS_MAX: usize = 20_000;
/// Nodes of one layer; more stand in several columns, or the drawing would be a line.
const LAYER_NODES_MAX: usize = 40;
/// How often layers are ordered by their neighbours.
const SWEEPS: usize = 8;
/// How often nodes are moved towards their neighbours.
const MOVES: usize = 6;

/// A place in the drawing: of a node, its middle.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct Place {
    /// To the right.
    pub x: f64,
    /// Downwards.
    pub y: f64,
}

/// Where everything stands, in the order in which it was given.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Layout {
    /// Of each node.
    pub nodes: Vec<Place>,
    /// Of each edge the places between its ends, from its first end to its second.
    pub edges: Vec<Vec<Place>>,
}

/// A node, or the place where an edge passes a layer.
#[derive(Default)]
struct Vertex {
    layer: usize,
    before: Vec<usize>,
    after: Vec<usize>,
    /// Its place in its layer.
    order: f64,
    y: f64,
    passing: bool,
}

/// Lays out `nodes` nodes. Edges name nodes by their places; those that name none have no places of their own.
#[must_use]
pub fn lay_out(nodes: usize, edges: &[(usize, usize)]) -> Layout {
    let forward = forward(nodes, edges);
    let mut vertices: Vec<Vertex> = Vec::new();
    vertices.resize_with(nodes, Vertex::default);
    for (vertex, layer) in vertices.iter_mut().zip(layers(nodes, &forward)) {
        vertex.layer = layer;
    }
    let passings: Vec<Vec<usize>> = forward.iter().map(|edge| lead(&mut vertices, *edge)).collect();
    let count = vertices.iter().map(|vertex| vertex.layer + 1).max().unwrap_or(0);
    let mut layers: Vec<Vec<usize>> = vec![Vec::new(); count];
    for (place, vertex) in vertices.iter().enumerate() {
        if let Some(layer) = layers.get_mut(vertex.layer) {
            layer.push(place);
        }
    }
    order(&mut vertices, &mut layers);
    if let Some(nodes) = in_columns(&vertices, &layers, nodes) {
        return Layout { nodes, edges: vec![Vec::new(); edges.len()] };
    }
    position(&mut vertices, &layers);
    let top = vertices.iter().map(|vertex| vertex.y).fold(f64::INFINITY, f64::min);
    let place_of =
        |vertex: &Vertex| Place { x: vertex.layer as f64 * LAYER_WIDTH, y: (vertex.y - top).round() };
    let turned = |place: usize| {
        let (given, led) = (edges.get(place), forward.get(place).copied().flatten());
        matches!((given, led), (Some(given), Some(led)) if *given != led)
    };
    let edges = passings.iter().enumerate().map(|(place, passed)| {
        let places = passed.iter().filter_map(|passed| vertices.get(*passed)).map(place_of);
        if turned(place) { places.rev().collect() } else { places.collect() }
    });
    Layout { edges: edges.collect(), nodes: vertices.iter().take(nodes).map(place_of).collect() }
}

/// The edges with those turned round that would close a cycle. `None` for those that lead nowhere.
fn forward(nodes: usize, edges: &[(usize, usize)]) -> Vec<Option<(usize, usize)>> {
    let mut out: Vec<Vec<(usize, usize)>> = vec![Vec::new(); nodes];
    let mut called = vec![false; nodes];
    let mut led: Vec<Option<(usize, usize)>> = Vec::with_capacity(edges.len());
    for (edge, (from, to)) in edges.iter().enumerate() {
        let known = from != to && *from < nodes && *to < nodes;
        led.push(known.then_some((*from, *to)));
        if known {
            out.get_mut(*from).into_iter().for_each(|out| out.push((edge, *to)));
            called.get_mut(*to).into_iter().for_each(|called| *called = true);
        }
    }
    #[derive(Clone, Copy, PartialEq)]
    enum Seen {
        No,
        OnTheWay,
        Done,
    }
    let mut seen = vec![Seen::No; nodes];
    // Those that nobody calls first: a cycle is cut where a walk from them comes back.
    let uncalled = (0..nodes).filter(|node| called.get(*node) == Some(&false));
    for start in uncalled.chain(0..nodes) {
        if seen.get(start) != Some(&Seen::No) {
            continue;
        }
        let mut walk = vec![(start, 0)];
        seen.get_mut(start).into_iter().for_each(|seen| *seen = Seen::OnTheWay);
        while let Some((node, next)) = walk.last_mut() {
            let Some((edge, to)) = out.get(*node).and_then(|out| out.get(*next)).copied() else {
                let done = *node;
                seen.get_mut(done).into_iter().for_each(|seen| *seen = Seen::Done);
                walk.pop();
                continue;
            };
            *next += 1;
            match seen.get(to) {
                Some(Seen::No) => {
                    seen.get_mut(to).into_iter().for_each(|seen| *seen = Seen::OnTheWay);
                    walk.push((to, 0));
                }
                Some(Seen::OnTheWay) => {
                    let turned = led.get(edge).copied().flatten().map(|(from, to)| (to, from));
                    led.get_mut(edge).into_iter().for_each(|led| *led = turned);
                }
                Some(Seen::Done) | None => {}
            }
        }
    }
    led
}

/// The layer of each node: behind all that call it.
fn layers(nodes: usize, edges: &[Option<(usize, usize)>]) -> Vec<usize> {
    let mut out: Vec<Vec<usize>> = vec![Vec::new(); nodes];
    let mut waits = vec![0_usize; nodes];
    for (from, to) in edges.iter().flatten() {
        out.get_mut(*from).into_iter().for_each(|out| out.push(*to));
        waits.get_mut(*to).into_iter().for_each(|waits| *waits += 1);
    }
    let mut layers = vec![0_usize; nodes];
    let mut ready: Vec<usize> = (0..nodes).filter(|node| waits.get(*node) == Some(&0)).collect();
    while let Some(node) = ready.pop() {
        let behind = layers.get(node).copied().unwrap_or(0) + 1;
        for to in out.get(node).into_iter().flatten() {
            layers.get_mut(*to).into_iter().for_each(|layer| *layer = behind.max(*layer));
            if let Some(waits) = waits.get_mut(*to) {
                *waits = waits.saturating_sub(1);
                if *waits == 0 {
                    ready.push(*to);
                }
            }
        }
    }
    layers
}

/// Leads an edge through the layers between its ends, and gives the places where it passes them.
fn lead(vertices: &mut Vec<Vertex>, edge: Option<(usize, usize)>) -> Vec<usize> {
    let Some((from, to)) = edge else { return Vec::new() };
    let layer = |vertices: &[Vertex], place: usize| vertices.get(place).map_or(0, |vertex| vertex.layer);
    let (first, last) = (layer(vertices, from), layer(vertices, to));
    let mut passed = Vec::new();
    let mut before = from;
    let passing = vertices.len() + last.saturating_sub(first) < PASSINGS_MAX;
    for layer in (first + 1..last).filter(|_| passing) {
        let place = vertices.len();
        vertices.push(Vertex { layer, passing: true, ..Vertex::default() });
        join(vertices, before, place);
        passed.push(place);
        before = place;
    }
    join(vertices, before, to);
    passed
}

fn join(vertices: &mut [Vertex], from: usize, to: usize) {
    if let Some(vertex) = vertices.get_mut(from) {
        vertex.after.push(to);
    }
    if let Some(vertex) = vertices.get_mut(to) {
        vertex.before.push(from);
    }
}

fn mean(vertices: &[Vertex], of: &[usize], value: fn(&Vertex) -> f64) -> Option<f64> {
    let sum: f64 = of.iter().filter_map(|place| vertices.get(*place)).map(value).sum();
    (!of.is_empty()).then(|| sum / of.len() as f64)
}

/// Orders each layer by where its neighbours are, from both sides in turn.
fn order(vertices: &mut [Vertex], layers: &mut [Vec<usize>]) {
    let number = |vertices: &mut [Vertex], layer: &[usize]| {
        for (order, place) in layer.iter().enumerate() {
            if let Some(vertex) = vertices.get_mut(*place) {
                vertex.order = order as f64;
            }
        }
    };
    for layer in layers.iter() {
        number(vertices, layer);
    }
    let count = layers.len();
    for sweep in 0..SWEEPS {
        for step in 0..count {
            let forwards = sweep % 2 == 0;
            let Some(layer) = layers.get_mut(if forwards { step } else { count - 1 - step }) else {
                continue;
            };
            let mut keyed: Vec<(f64, usize)> = layer
                .iter()
                .map(|place| {
                    let key = vertices.get(*place).map(|vertex| {
                        let of = if forwards { &vertex.before } else { &vertex.after };
                        mean(vertices, of, |vertex| vertex.order).unwrap_or(vertex.order)
                    });
                    (key.unwrap_or(0.0), *place)
                })
                .collect();
            // Equal ones stay as they were.
            keyed.sort_by(|(one, _), (other, _)| one.total_cmp(other));
            *layer = keyed.into_iter().map(|(_, place)| place).collect();
            number(vertices, layer);
        }
    }
}

/// Places of nodes where a layer has too many: each layer takes as many columns as it needs, in the order of its nodes,
/// and edges are straight. `None` where no layer does.
fn in_columns(vertices: &[Vertex], layers: &[Vec<usize>], nodes: usize) -> Option<Vec<Place>> {
    let own =
        |layer: &[usize]| -> Vec<usize> { layer.iter().copied().filter(|place| *place < nodes).collect() };
    let layers: Vec<Vec<usize>> = layers.iter().map(|layer| own(layer)).collect();
    if layers.iter().all(|layer| layer.len() <= LAYER_NODES_MAX) {
        return None;
    }
    // As wide as high, more or less.
    let rows = ((vertices.len().min(nodes) as f64 * LAYER_WIDTH / NODE_HEIGHT).sqrt() as usize)
        .max(LAYER_NODES_MAX / 2);
    let mut places = vec![Place::default(); nodes];
    for (column, chunk) in layers.iter().flat_map(|layer| layer.chunks(rows)).enumerate() {
        let above = (rows - chunk.len()) as f64 / 2.0;
        for (row, node) in chunk.iter().enumerate() {
            if let Some(place) = places.get_mut(*node) {
                let y = ((above + row as f64) * NODE_HEIGHT).round();
                *place = Place { x: column as f64 * LAYER_WIDTH, y };
            }
        }
    }
    Some(places)
}

/// Moves vertices of a layer towards their neighbours, as far as those above and below leave room.
fn position(vertices: &mut [Vertex], layers: &[Vec<usize>]) {
    let height = |vertex: &Vertex| if vertex.passing { PASSING_HEIGHT } else { NODE_HEIGHT };
    for layer in layers {
        stack(vertices, layer, height, |vertex| vertex.y);
    }
    for round in 0..MOVES {
        for step in 0..layers.len() {
            let forwards = round % 2 == 0;
            let Some(layer) = layers.get(if forwards { step } else { layers.len() - 1 - step }) else {
                continue;
            };
            let wishes: Vec<(usize, f64)> = layer
                .iter()
                .filter_map(|place| {
                    let vertex = vertices.get(*place)?;
                    let of = if forwards { &vertex.before } else { &vertex.after };
                    Some((*place, mean(vertices, of, |vertex| vertex.y).unwrap_or(vertex.y)))
                })
                .collect();
            for (place, wish) in wishes {
                if let Some(vertex) = vertices.get_mut(place) {
                    vertex.y = wish;
                }
            }
            stack(vertices, layer, height, |vertex| vertex.y);
        }
    }
}

/// Gives the vertices of a layer, in their order, the places nearest to their wishes at which none covers another: by
/// pooling neighbours that are too near (isotonic regression).
fn stack(vertices: &mut [Vertex], layer: &[usize], height: fn(&Vertex) -> f64, wish: fn(&Vertex) -> f64) {
    struct Pool {
        sum: f64,
        count: f64,
        members: usize,
    }
    let mut pools: Vec<Pool> = Vec::new();
    let mut offsets = Vec::with_capacity(layer.len());
    let mut below = 0.0;
    for vertex in layer.iter().filter_map(|place| vertices.get(*place)) {
        let half = height(vertex) / 2.0;
        let offset = below + half;
        below = offset + half;
        offsets.push(offset);
        pools.push(Pool { sum: wish(vertex) - offset, count: 1.0, members: 1 });
        while let [.., above, last] = pools.as_mut_slice() {
            if above.sum / above.count <= last.sum / last.count {
                break;
            }
            *above = Pool {
                sum: above.sum + last.sum,
                count: above.count + last.count,
                members: above.members + last.members,
            };
            pools.pop();
        }
    }
    let starts = pools.iter().flat_map(|pool| std::iter::repeat_n(pool.sum / pool.count, pool.members));
    for ((place, offset), start) in layer.iter().zip(offsets).zip(starts) {
        if let Some(vertex) = vertices.get_mut(*place) {
            vertex.y = start + offset;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// No two nodes of a layer nearer than a node is high.
    fn apart(layout: &Layout) {
        let mut nodes = layout.nodes.clone();
        nodes.sort_by(|one, other| one.x.total_cmp(&other.x).then(one.y.total_cmp(&other.y)));
        for pair in nodes.windows(2) {
            assert!(pair[0].x != pair[1].x || pair[1].y - pair[0].y >= NODE_HEIGHT - 1.0, "{pair:?}");
        }
    }

    #[test]
    fn a_caller_stands_left_of_whom_it_calls_and_a_long_edge_passes_around() {
        let layout = lay_out(4, &[(0, 1), (1, 2), (2, 3), (0, 3)]);
        let x: Vec<f64> = layout.nodes.iter().map(|place| place.x / LAYER_WIDTH).collect();
        assert_eq!(x, [0.0, 1.0, 2.0, 3.0]);
        assert_eq!(layout.edges[3].len(), 2, "it passes two layers");
        for (passing, node) in layout.edges[3].iter().zip(&layout.nodes[1..3]) {
            assert!((passing.y - node.y).abs() >= (NODE_HEIGHT + PASSING_HEIGHT) / 2.0 - 1.0);
        }
        apart(&layout);
    }

    #[test]
    fn a_cycle_is_cut_and_its_edge_goes_back_from_its_first_end() {
        let layout = lay_out(3, &[(0, 1), (1, 2), (2, 0), (1, 1), (7, 0)]);
        let x: Vec<f64> = layout.nodes.iter().map(|place| place.x / LAYER_WIDTH).collect();
        assert_eq!(x, [0.0, 1.0, 2.0]);
        assert_eq!(layout.edges[2].len(), 1);
        assert_eq!(layout.edges[3..], [vec![], vec![]]);
        let long = lay_out(4, &[(0, 1), (1, 2), (2, 3), (3, 0)]);
        assert!(long.edges[3][0].x > long.edges[3][1].x, "from its first end on: {:?}", long.edges[3]);
    }

    #[test]
    fn a_layer_of_hundreds_stands_in_columns() {
        let edges: Vec<_> = (1..=400).map(|node| (0, node)).collect();
        let layout = lay_out(401, &edges);
        let across = |of: fn(&Place) -> f64| layout.nodes.iter().map(of).fold(0.0, f64::max);
        let (wide, high) = (across(|place| place.x), across(|place| place.y));
        assert!(wide < 4.0 * high && high < 4.0 * wide, "{wide} {high}");
        assert!(layout.nodes[1..].iter().all(|place| place.x > layout.nodes[0].x));
        apart(&layout);
    }

    #[test]
    fn nothing_gives_nothing() {
        assert_eq!(lay_out(0, &[]), Layout::default());
    }

    #[test]
    fn a_thousand_services_are_laid_out_at_once_and_always_alike() {
        let (mut seed, mut edges) = (7_u64, Vec::new());
        for node in 1..1000_usize {
            for _ in 0..2 + node % 2 {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                edges.push(((seed >> 33) as usize % node, node));
            }
        }
        let took = |_| {
            let began = std::time::Instant::now();
            let layout = lay_out(1000, &edges);
            (began.elapsed(), layout)
        };
        let runs: Vec<_> = (0..5).map(took).collect();
        apart(&runs[0].1);
        assert!(runs.iter().all(|run| run.1 == runs[0].1));
        let best = runs.iter().map(|run| run.0).min().unwrap();
        // 100 ms as it is shipped; without optimisation ten times that.
        let limit = if cfg!(debug_assertions) { 1000 } else { 100 };
        assert!(best.as_millis() <= limit, "{best:?}");
    }
}
