//! Whether "comes before" makes sense: a graph without a cycle.

/// A cycle of the graph with these edges between nodes below `nodes`, if there is one; each of its nodes comes before the next one.
pub fn cycle(nodes: usize, edges: &[(u32, u32)]) -> Option<Vec<u32>> {
    let mut starts = vec![0_u32; nodes + 1];
    let mut before = vec![0_u32; nodes];
    for (from, to) in edges {
        starts[*from as usize + 1] += 1;
        before[*to as usize] += 1;
    }
    for node in 0..nodes {
        starts[node + 1] += starts[node];
    }
    let (mut next, mut targets) = (starts.clone(), vec![0_u32; edges.len()]);
    for (from, to) in edges {
        let at = &mut next[*from as usize];
        targets[*at as usize] = *to;
        *at += 1;
    }
    let after = |node: u32| &targets[starts[node as usize] as usize..starts[node as usize + 1] as usize];
    let mut free: Vec<u32> = (0..nodes as u32).filter(|node| before[*node as usize] == 0).collect();
    while let Some(node) = free.pop() {
        for &to in after(node) {
            before[to as usize] -= 1;
            if before[to as usize] == 0 {
                free.push(to);
            }
        }
    }
    // Whoever is left has somebody left before it: walking back from anywhere among them ends in a cycle.
    let left = |node: u32| before[node as usize] > 0;
    let first = (0..nodes as u32).find(|node| left(*node))?;
    let mut preceding = vec![u32::MAX; nodes];
    for &(from, to) in edges {
        if left(from) && left(to) {
            preceding[to as usize] = from;
        }
    }
    let (mut seen, mut at, mut path) = (vec![false; nodes], first, Vec::new());
    while !seen[at as usize] {
        seen[at as usize] = true;
        path.push(at);
        at = preceding[at as usize];
    }
    let begins = path.iter().position(|node| *node == at).expect("it was seen");
    let mut found = path.split_off(begins);
    found.reverse();
    Some(found)
}
