use std::collections::BTreeMap;

use super::sample::Rng;
use super::*;

fn choice(cost: f64, children: &[usize]) -> Choice {
    Choice { cost, children: children.to_vec() }
}

fn choices(classes: Vec<Vec<Choice>>) -> Choices {
    Choices { classes, root: 0 }
}

/// A random graph of values and kernels. Values are made by kernels of one to three results (a class of its own each, with up to two
/// templates), by an alternative of their own, or are inputs; with some cycles, and costs that nothing can execute.
fn random_graph(rng: &mut Rng, values: usize, kernels: usize, cyclic: bool) -> Choices {
    let n = values + kernels;
    let mut classes: Vec<Vec<Choice>> = vec![Vec::new(); n];
    let cost = |rng: &mut Rng| match rng.below(10) {
        0 => f64::INFINITY,
        1 => 1.0 + rng.below(3) as f64,
        _ => 1.0 + rng.below(1000) as f64 / 100.0,
    };
    // Values later in the order are deeper; the last ones are inputs.
    let below = |rng: &mut Rng, v: usize| match (cyclic && rng.below(8) == 0, v + 1 < values) {
        (true, _) => rng.below(values),
        (_, true) => (v + 1 + rng.below(4)).min(values - 1),
        _ => values - 1,
    };
    for k in values..n {
        let results = 1 + rng.below(3);
        let first = rng.below(values);
        for r in 0..results {
            let v = (first + r * (1 + rng.below(2))).min(values - 1);
            if !classes[v].iter().any(|c| c.children == [k]) {
                classes[v].push(choice(0.0, &[k]));
            }
        }
        for _ in 0..1 + rng.below(2) {
            let own = cost(rng) * (1.0 + 0.4 * results as f64);
            let children: Vec<usize> = (0..rng.below(4)).map(|_| below(rng, first + results)).collect();
            classes[k].push(choice(own, &children));
        }
    }
    for v in 0..values {
        if v + 2 >= values || rng.below(8) == 0 {
            classes[v].push(choice(0.0, &[]));
        }
        for _ in 0..rng.below(3) {
            let own = if rng.below(6) == 0 { 0.0 } else { cost(rng) };
            let children: Vec<usize> = (0..rng.below(4)).map(|_| below(rng, v)).collect();
            classes[v].push(choice(own, &children));
        }
    }
    choices(classes)
}

/// A layer-like graph: a chain of stages; each has several values that single kernels, pairs and whole-stage kernels make, with or without
/// recomputing a shared value of the stage before.
fn layered(rng: &mut Rng, stages: usize) -> Choices {
    let mut classes: Vec<Vec<Choice>> = vec![vec![choice(0.0, &[])]];
    let push = |classes: &mut Vec<Vec<Choice>>, alternatives: Vec<Choice>| {
        classes.push(alternatives);
        classes.len() - 1
    };
    let cost = |rng: &mut Rng, low: f64| low + rng.below(1000) as f64 / 200.0;
    let mut stream = 0;
    for _ in 0..stages {
        // The norm: its own kernel, or recomputed inside consumers at a price.
        let norm_kernel = vec![choice(cost(rng, 2.0), &[stream])];
        let norm_kernel = push(&mut classes, norm_kernel);
        let norm = push(&mut classes, vec![choice(0.0, &[norm_kernel]), choice(f64::INFINITY, &[stream])]);
        let mut values = Vec::new();
        for _ in 0..3 {
            let alternatives =
                [norm, norm, stream, stream].iter().map(|input| choice(cost(rng, 3.5), &[*input])).collect();
            let kernel = push(&mut classes, alternatives);
            let raw = push(&mut classes, vec![choice(0.0, &[kernel]), choice(f64::INFINITY, &[norm])]);
            let alternatives = (0..2).map(|_| choice(cost(rng, 1.0), &[raw])).collect();
            let bias_kernel = push(&mut classes, alternatives);
            let fused = (0..2).map(|i| choice(cost(rng, 3.5), &[[norm], [stream]][i])).collect();
            let fused = push(&mut classes, fused);
            values.push(push(
                &mut classes,
                vec![choice(0.0, &[bias_kernel]), choice(0.0, &[fused]), choice(f64::INFINITY, &[raw])],
            ));
        }
        for subset in [vec![0, 1], vec![1, 2], vec![0, 1, 2]] {
            for input in [norm, stream] {
                let own = cost(rng, 2.5 * subset.len() as f64);
                let kernel = push(&mut classes, vec![choice(own, &[input]), choice(own + 0.5, &[input])]);
                subset.iter().for_each(|v| classes[values[*v]].push(choice(0.0, &[kernel])));
            }
        }
        let attention = vec![choice(cost(rng, 3.0), &values)];
        let attention = push(&mut classes, attention);
        let partial = push(&mut classes, vec![choice(0.0, &[attention])]);
        let mut alternatives = vec![choice(f64::INFINITY, &[partial, stream])];
        for _ in 0..3 {
            let kernel = vec![choice(cost(rng, 4.0), &[partial, stream])];
            alternatives.push(choice(0.0, &[push(&mut classes, kernel)]));
        }
        stream = push(&mut classes, alternatives);
    }
    Choices { classes, root: stream }
}

#[test]
fn shared_value_is_paid_once() {
    let c = choices(vec![
        vec![choice(1.0, &[2, 2, 2]), choice(1.1, &[1])],
        vec![choice(1.1, &[2])],
        vec![choice(1.0, &[])],
    ]);
    let best = extract(&c).unwrap();
    assert_eq!(best, Extraction { chosen: BTreeMap::from([(0, 0), (2, 0)]), total: 2.0, exact: true });
}

#[test]
fn one_kernel_for_three_values() {
    // Root needs q, k, v (1, 2, 3). Each has its own kernel at 4 (4, 5, 6); kernel 7 makes all three at 9, kernel 8 the first two at 7.5.
    // Class by class the own kernel is best; together it is kernel 7.
    let mut classes = vec![vec![choice(1.0, &[1, 2, 3])]];
    for v in 1..=3 {
        classes.push(vec![choice(0.0, &[v + 3]), choice(0.0, &[7])]);
        if v < 3 {
            classes[v].push(choice(0.0, &[8]));
        }
    }
    classes.extend((0..3).map(|_| vec![choice(4.0, &[])]));
    classes.push(vec![choice(9.0, &[])]);
    classes.push(vec![choice(7.5, &[])]);
    let c = choices(classes);
    for limit in [0, frontier::LIMIT] {
        let best = search(&c, limit).unwrap();
        assert_eq!(best.total, 10.0);
        assert_eq!(best.chosen, BTreeMap::from([(0, 0), (1, 1), (2, 1), (3, 1), (7, 0)]));
    }
}

#[test]
fn recompute_or_share_follows_the_cost() {
    // Two consumers read a norm (class 3, made by 4 at `share`) or recompute it at 0.4 each.
    let graph = |share: f64| {
        choices(vec![
            vec![choice(0.0, &[1, 2])],
            vec![choice(5.0, &[3]), choice(5.4, &[])],
            vec![choice(5.0, &[3]), choice(5.4, &[])],
            vec![choice(0.0, &[4])],
            vec![choice(share, &[])],
        ])
    };
    assert_eq!(extract(&graph(0.7)).unwrap().chosen, BTreeMap::from([(0, 0), (1, 0), (2, 0), (3, 0), (4, 0)]));
    assert_eq!(extract(&graph(0.9)).unwrap().chosen, BTreeMap::from([(0, 0), (1, 1), (2, 1)]));
}

#[test]
fn ties_go_to_the_earlier_alternative() {
    let c = choices(vec![
        vec![choice(1.0, &[2]), choice(1.0, &[1]), choice(2.0, &[])],
        vec![choice(1.0, &[]), choice(1.0, &[])],
        vec![choice(1.0, &[]), choice(1.0, &[])],
    ]);
    assert_eq!(extract(&c).unwrap().chosen, BTreeMap::from([(0, 0), (2, 0)]));
}

#[test]
fn cycles_are_refused() {
    // 1 and 2 are the same value reshaped: free from each other, 3 us or 4 us from scratch.
    let c = choices(vec![
        vec![choice(1.0, &[1, 2])],
        vec![choice(0.0, &[2]), choice(4.0, &[])],
        vec![choice(0.0, &[1]), choice(3.0, &[]), choice(0.0, &[2])],
    ]);
    let best = extract(&c).unwrap();
    assert_eq!((best.total, &best.chosen), (4.0, &BTreeMap::from([(0, 0), (1, 0), (2, 1)])));
    assert!(best.exact);
}

#[test]
fn free_root() {
    let best = extract(&choices(vec![vec![choice(3.0, &[]), choice(0.0, &[1])], vec![choice(0.0, &[])]])).unwrap();
    assert_eq!(best, Extraction { chosen: BTreeMap::from([(0, 1), (1, 0)]), total: 0.0, exact: true });
}

#[test]
fn blames_the_deepest() {
    let inf = f64::INFINITY;
    // 0 -> 1 -> {2 infinite, 3 <-> 4 a cycle}; 5 is infinite but not below the root; 6 is fine.
    let c = choices(vec![
        vec![choice(1.0, &[1, 6])],
        vec![choice(1.0, &[2]), choice(2.0, &[3]), choice(inf, &[6])],
        vec![choice(inf, &[6]), choice(inf, &[])],
        vec![choice(0.0, &[4])],
        vec![choice(0.0, &[3]), choice(inf, &[])],
        vec![choice(inf, &[])],
        vec![choice(1.0, &[])],
    ]);
    let error = extract(&c).unwrap_err();
    assert_eq!(error, ExtractError::Unsatisfiable { root: 0, classes: vec![2, 3, 4] });
    assert_eq!(
        error.to_string(),
        "extraction: class 0 has no executable choice because every alternative of class 2, 3, 4 is infinite or part of a cycle; \
         give these a finite one"
    );
    assert_eq!(extract(&choices(vec![vec![]])).unwrap_err(), ExtractError::Unsatisfiable { root: 0, classes: vec![0] });
    assert!(brute_force(&c).is_none() && random(&c, 1).is_none());
}

#[test]
fn malformed_input_is_named() {
    let error = |c: &Choices| extract(c).unwrap_err().to_string();
    assert_eq!(error(&choices(vec![])), "extraction: class 0, alternative 0: the root is outside the 0 classes");
    assert_eq!(
        error(&choices(vec![vec![choice(1.0, &[]), choice(f64::NAN, &[])]])),
        "extraction: class 0, alternative 1: the cost is NaN, expected 0 or more microseconds"
    );
    assert_eq!(
        error(&choices(vec![vec![choice(1.0, &[7])]])),
        "extraction: class 0, alternative 0: child 7 is outside the 1 classes"
    );
}

#[test]
fn total_checks_what_it_is_given() {
    let c =
        choices(vec![vec![choice(1.0, &[1]), choice(2.0, &[])], vec![choice(1.0, &[0]), choice(f64::INFINITY, &[])]]);
    let of = |chosen: &[(usize, usize)]| total(&c, &chosen.iter().copied().collect()).map_err(|e| e.to_string());
    assert_eq!(of(&[(0, 1)]), Ok(2.0));
    assert_eq!(of(&[(0, 0)]), Err("extraction: class 1 is needed but has no choice".into()));
    assert_eq!(of(&[(0, 0), (1, 0)]), Err("extraction: class 0 needs itself".into()));
    assert_eq!(of(&[(0, 0), (1, 1)]), Err("extraction: class 1 has a choice that nothing can execute".into()));
    assert_eq!(of(&[(0, 2)]), Err("extraction: class 0 has a choice that does not exist".into()));
    assert_eq!(of(&[(0, 1), (1, 0)]), Err("extraction: class 1 has a choice but is not needed".into()));
}

#[test]
fn equals_brute_force_on_random_graphs() {
    let mut rng = Rng(1);
    let (mut solved, mut impossible, mut worst) = (0, 0, 0.0f64);
    for round in 0..6000 {
        let (values, kernels) = (3 + rng.below(4), 3 + rng.below(5));
        let c = random_graph(&mut rng, values, kernels, round % 2 == 1);
        let Some(best) = brute_force(&c) else {
            assert!(matches!(extract(&c), Err(ExtractError::Unsatisfiable { .. })), "round {round}: {c:?}");
            impossible += 1;
            continue;
        };
        let found = extract(&c).unwrap();
        assert!(found.exact, "round {round}: not proved");
        let same = (found.total - best.total).abs() <= 1e-9;
        assert!(same, "round {round}: {} instead of {}: {c:?}", found.total, best.total);
        assert_eq!(total(&c, &found.chosen).unwrap(), found.total);
        assert_eq!(extract(&c).unwrap(), found);
        let local = search(&c, 0).unwrap();
        worst = worst.max((local.total - best.total) / best.total.max(1e-9));
        solved += 1;
    }
    assert!(solved > 4000 && impossible > 300, "{solved} solved, {impossible} impossible: the generator is off");
    assert!(worst < 0.02, "local search alone is {:.1} % off", 100.0 * worst);
}

#[test]
fn layers_are_solved_exactly() {
    let mut rng = Rng(7);
    for _ in 0..10 {
        let c = layered(&mut rng, 14);
        assert!(c.classes.len() > 400);
        let found = extract(&c).unwrap();
        assert!(found.exact);
        let local = search(&c, 0).unwrap();
        assert!(local.total <= found.total * 1.02, "{} instead of {}", local.total, found.total);
    }
}

#[test]
fn a_search_cut_short_still_answers() {
    let mut rng = Rng(11);
    let mut cut_short = 0;
    for _ in 0..20 {
        let c = random_graph(&mut rng, 60, 120, false);
        let Ok(full) = extract(&c) else { continue };
        let short = search(&c, 60).unwrap();
        assert_eq!(total(&c, &short.chosen).unwrap(), short.total);
        assert_eq!(search(&c, 60).unwrap(), short);
        assert!(short.total >= full.total * (1.0 - 1e-9) || !full.exact);
        assert!(short.total <= full.total * 1.05, "{} instead of {}", short.total, full.total);
        cut_short += usize::from(!short.exact);
    }
    assert!(cut_short > 3, "{cut_short}: the graphs are too easy");
}

/// `cargo test --release -p gossamer-passes extraction_time -- --nocapture` prints the times; the limit here is for debug builds.
#[test]
fn extraction_time() {
    let mut rng = Rng(9);
    for (name, c) in [("layers", layered(&mut rng, 17)), ("one region", random_graph(&mut rng, 250, 350, true))] {
        let start = std::time::Instant::now();
        let exact = extract(&c).map(|e| e.exact);
        let time = start.elapsed();
        let nodes: usize = c.classes.iter().map(Vec::len).sum();
        println!("{name}: {} classes, {nodes} nodes: {time:?}, exact {exact:?}", c.classes.len());
        assert!(time.as_secs() < 5, "{name}: {time:?}");
    }
}

#[test]
fn random_answers_are_valid_and_varied() {
    let c = layered(&mut Rng(3), 4);
    let best = extract(&c).unwrap();
    let mut seen = std::collections::BTreeSet::new();
    for seed in 0..50 {
        let answer = random(&c, seed).unwrap();
        assert_eq!(total(&c, &answer.chosen).unwrap(), answer.total);
        assert!(answer.total >= best.total - 1e-9);
        assert_eq!(random(&c, seed).unwrap(), answer);
        seen.insert(answer.chosen.into_iter().collect::<Vec<_>>());
    }
    assert!(seen.len() > 40, "only {} different answers", seen.len());
    let mut rng = Rng(5);
    for seed in 0..500 {
        let c = random_graph(&mut rng, 6, 5, true);
        assert_eq!(random(&c, seed).is_some(), extract(&c).is_ok());
    }
}
