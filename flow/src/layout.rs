//! Where the nodes of a graph stand: in layers from callers to called, few crossings, the same picture for the same
//! graph, and close to the picture before when it changes. Pure; never recursive, whatever the graph.

use std::collections::{HashMap, HashSet, VecDeque};

/// Between layers.
const LAYER_WIDTH: f64 = 220.0;
/// Between nodes of a layer.
const ROW_HEIGHT: f64 = 72.0;
/// Sweeps that order layers; more changed nothing on graphs of services.
const SWEEPS: usize = 12;

/// Where a node stands.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct Point {
    /// From callers to called.
    pub x: f64,
    /// Within a layer.
    pub y: f64,
}

/// Places nodes. `edges` are pairs of numbers of `nodes`; others are left out. Where `before` knows a node, its place
/// within its layer starts from there.
#[must_use]
pub fn layout(nodes: &[&str], edges: &[(usize, usize)], before: &HashMap<String, Point>) -> Vec<Point> {
    let count = nodes.len();
    let mut by_name: Vec<usize> = (0..count).collect();
    by_name.sort_by_key(|node| nodes.get(*node));
    let mut rank = vec![0; count];
    for (place, node) in by_name.iter().enumerate() {
        if let Some(rank) = rank.get_mut(*node) {
            *rank = place;
        }
    }
    let mut seen = HashSet::new();
    let mut edges: Vec<(usize, usize)> = edges
        .iter()
        .copied()
        .filter(|(from, to)| from != to && *from < count && *to < count && seen.insert((*from, *to)))
        .collect();
    let of = |node: usize| rank.get(node).copied().unwrap_or(0);
    edges.sort_unstable_by_key(|(from, to)| (of(*from), of(*to)));
    let edges = without_cycles(count, &by_name, &edges);
    let layers = layers(count, &edges);
    let deepest = layers.iter().copied().max().map_or(0, |deepest| deepest + 1);

    let (mut up, mut down) = (vec![Vec::new(); count], vec![Vec::new(); count]);
    for (from, to) in &edges {
        if let Some(list) = down.get_mut(*from) {
            list.push(*to);
        }
        if let Some(list) = up.get_mut(*to) {
            list.push(*from);
        }
    }
    let mut rows: Vec<Vec<usize>> = vec![Vec::new(); deepest];
    for node in &by_name {
        if let Some(row) = layers.get(*node).and_then(|layer| rows.get_mut(*layer)) {
            row.push(*node);
        }
    }
    // The height of each node: as it was, else in the order of names; then by the middle of its neighbours.
    let mut heights = vec![0.0; count];
    for row in &mut rows {
        spread(row, &mut heights);
        for node in row.iter() {
            let known = nodes.get(*node).and_then(|name| before.get(*name));
            if let (Some(height), Some(known)) = (heights.get_mut(*node), known) {
                *height = known.y;
            }
        }
        order(row, &heights, &rank);
        spread(row, &mut heights);
    }
    // What was there before stays in its order: then newcomers alone look for their place.
    let is_known = |node: usize| nodes.get(node).is_some_and(|name| before.contains_key(*name));
    let all_are_known = (0..count).all(is_known);
    for sweep in 0..SWEEPS {
        if all_are_known {
            break;
        }
        let downwards = sweep % 2 == 0;
        let neighbours = if downwards { &up } else { &down };
        let indices: Vec<usize> =
            if downwards { (0..deepest).collect() } else { (0..deepest).rev().collect() };
        for layer in indices {
            let Some(row) = rows.get_mut(layer) else { continue };
            let wanted: Vec<(usize, f64)> = row
                .iter()
                .map(|node| {
                    let own = heights.get(*node).copied().unwrap_or(0.0);
                    let near = neighbours.get(*node).map_or(&[][..], |near| near);
                    let keeps = near.is_empty() || (is_known(*node) && !before.is_empty());
                    let sum: f64 = near.iter().map(|near| heights.get(*near).copied().unwrap_or(0.0)).sum();
                    (*node, if keeps { own } else { sum / near.len() as f64 })
                })
                .collect();
            for (node, height) in wanted {
                if let Some(place) = heights.get_mut(node) {
                    *place = height;
                }
            }
            order(row, &heights, &rank);
            spread(row, &mut heights);
        }
    }
    let place = |node: usize| Point {
        x: layers.get(node).copied().unwrap_or(0) as f64 * LAYER_WIDTH,
        y: heights.get(node).copied().unwrap_or(0.0),
    };
    (0..count).map(place).collect()
}

fn order(row: &mut [usize], heights: &[f64], rank: &[usize]) {
    let height = |node: usize| heights.get(node).copied().unwrap_or(0.0);
    row.sort_by(|one, other| {
        height(*one).total_cmp(&height(*other)).then_with(|| rank.get(*one).cmp(&rank.get(*other)))
    });
}

/// Puts a row's nodes at even distances around the middle, in their order.
fn spread(row: &[usize], heights: &mut [f64]) {
    let middle = row.len().saturating_sub(1) as f64 / 2.0;
    for (place, node) in row.iter().enumerate() {
        if let Some(height) = heights.get_mut(*node) {
            *height = (place as f64 - middle) * ROW_HEIGHT;
        }
    }
}

/// Turns the edges that close a cycle around. Begins at nodes that nobody calls, then in the order of names.
fn without_cycles(count: usize, by_name: &[usize], edges: &[(usize, usize)]) -> Vec<(usize, usize)> {
    let mut out = vec![Vec::new(); count];
    let mut called = vec![false; count];
    for (from, to) in edges {
        if let Some(list) = out.get_mut(*from) {
            list.push(*to);
        }
        if let Some(called) = called.get_mut(*to) {
            *called = true;
        }
    }
    let is_called = |node: &usize| called.get(*node).copied().unwrap_or(false);
    let starts =
        by_name.iter().filter(|node| !is_called(node)).chain(by_name.iter().filter(|node| is_called(node)));
    // 0 not seen, 1 on the way, 2 done.
    let mut state = vec![0_u8; count];
    let mut turned = HashSet::new();
    for start in starts {
        if state.get(*start) != Some(&0) {
            continue;
        }
        let mut way = vec![(*start, 0)];
        if let Some(state) = state.get_mut(*start) {
            *state = 1;
        }
        while let Some((node, next)) = way.last_mut() {
            let to = out.get(*node).and_then(|list| list.get(*next)).copied();
            *next += 1;
            let node = *node;
            match to.map(|to| (to, state.get(to).copied().unwrap_or(2))) {
                Some((to, 0)) => {
                    if let Some(state) = state.get_mut(to) {
                        *state = 1;
                    }
                    way.push((to, 0));
                }
                Some((to, 1)) => {
                    turned.insert((node, to));
                }
                Some(_) => {}
                None => {
                    if let Some(state) = state.get_mut(node) {
                        *state = 2;
                    }
                    way.pop();
                }
            }
        }
    }
    edges
        .iter()
        .map(|(from, to)| if turned.contains(&(*from, *to)) { (*to, *from) } else { (*from, *to) })
        .collect()
}

/// The longest way to each node.
fn layers(count: usize, edges: &[(usize, usize)]) -> Vec<usize> {
    let (mut layers, mut open, mut out) =
        (vec![0_usize; count], vec![0_usize; count], vec![Vec::new(); count]);
    for (from, to) in edges {
        if let Some(open) = open.get_mut(*to) {
            *open += 1;
        }
        if let Some(list) = out.get_mut(*from) {
            list.push(*to);
        }
    }
    let mut ready: VecDeque<usize> = (0..count).filter(|node| open.get(*node) == Some(&0)).collect();
    while let Some(node) = ready.pop_front() {
        let layer = layers.get(node).copied().unwrap_or(0);
        for to in out.get(node).into_iter().flatten() {
            if let Some(below) = layers.get_mut(*to) {
                *below = layer.saturating_add(1).max(*below);
            }
            if let Some(open) = open.get_mut(*to) {
                *open -= 1;
                if *open == 0 {
                    ready.push_back(*to);
                }
            }
        }
    }
    layers
}

#[cfg(test)]
mod tests {
    use super::*;

    fn crossings(points: &[Point], edges: &[(usize, usize)]) -> usize {
        let mut found = 0;
        for (number, (a, b)) in edges.iter().enumerate() {
            for (c, d) in edges.get(number + 1..).unwrap_or_default() {
                let same = points[*a].x == points[*c].x && points[*b].x == points[*d].x;
                found +=
                    usize::from(same && (points[*a].y - points[*c].y) * (points[*b].y - points[*d].y) < 0.0);
            }
        }
        found
    }

    #[test]
    fn callers_stand_before_the_called_and_no_two_nodes_on_one_place() {
        let nodes = ["user", "web", "orders", "stock", "mail"];
        let edges = [(0, 1), (1, 2), (1, 3), (2, 3), (2, 4), (3, 3)];
        let points = layout(&nodes, &edges, &HashMap::new());
        for (from, to) in edges.iter().filter(|(from, to)| from != to) {
            assert!(points[*from].x < points[*to].x);
        }
        for (number, one) in points.iter().enumerate() {
            assert!(points.iter().skip(number + 1).all(|other| one != other));
        }
        assert_eq!(points, layout(&nodes, &edges, &HashMap::new()));
    }

    #[test]
    fn a_ladder_has_no_crossings() {
        let nodes = ["a1", "a2", "a3", "z1", "y2", "x3"];
        let edges = [(0, 3), (1, 4), (2, 5)];
        assert_eq!(crossings(&layout(&nodes, &edges, &HashMap::new()), &edges), 0);
    }

    #[test]
    fn cycles_loops_and_nothing_are_placed() {
        assert!(layout(&[], &[], &HashMap::new()).is_empty());
        let points = layout(&["a", "b", "c"], &[(0, 1), (1, 2), (2, 0), (7, 9), (1, 1)], &HashMap::new());
        let across: Vec<f64> = points.iter().map(|point| point.x).collect();
        assert_eq!(across, [0.0, LAYER_WIDTH, 2.0 * LAYER_WIDTH]);
    }

    #[test]
    fn a_graph_that_grows_keeps_its_order() {
        let nodes = ["w", "a", "b", "c", "d"];
        let edges = [(0, 1), (0, 2), (0, 3), (0, 4)];
        let before: HashMap<String, Point> =
            [("a", 300.0), ("b", 100.0), ("c", 200.0), ("d", 0.0), ("w", 0.0)]
                .into_iter()
                .map(|(name, y)| (name.to_owned(), Point { x: 0.0, y }))
                .collect();
        let with_new = ["w", "a", "b", "c", "d", "e"];
        let points = layout(&with_new, &[&edges[..], &[(0, 5)]].concat(), &before);
        assert!(points[4].y < points[2].y && points[2].y < points[3].y && points[3].y < points[1].y);
        assert_eq!(layout(&nodes, &edges, &before).len(), 5);
    }

    #[test]
    fn a_thousand_nodes_take_no_time_and_a_long_chain_no_stack() {
        let names: Vec<String> = (0..1000).map(|number| format!("n{number}")).collect();
        let nodes: Vec<&str> = names.iter().map(String::as_str).collect();
        let mut random = 7_u64;
        let edges: Vec<(usize, usize)> = (0..2500)
            .map(|_| {
                random =
                    random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                ((random >> 33) as usize % 1000, (random >> 45) as usize % 1000)
            })
            .collect();
        let began = std::time::Instant::now();
        assert_eq!(layout(&nodes, &edges, &HashMap::new()).len(), 1000);
        let chain: Vec<(usize, usize)> = (0..999).map(|number| (number, number + 1)).collect();
        assert_eq!(layout(&nodes, &chain, &HashMap::new())[999].x, 999.0 * LAYER_WIDTH);
        // Unoptimised and on a busy machine: the goal of 100 ms is held by far where it runs.
        assert!(began.elapsed().as_secs() < 5);
    }
}
