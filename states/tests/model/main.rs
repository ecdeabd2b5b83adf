//! The protocol of two and three nodes, every interleaving of it: writes in sync mode, crashes with and without what was
//! under way, links that are cut, promotions, old masters that return. The state machine and the reconnect function are the
//! real ones; nodes, logs and links are reduced to what these look at.

mod nodes;

use nodes::{Budget, Nodes};
use stateright::{Checker, Model};

fn check(nodes: usize, budget: Budget, at_least: usize) {
    let checker = Nodes { nodes, budget }
        .checker()
        .threads(2)
        .spawn_bfs()
        .join();
    checker.assert_properties();
    let states = checker.unique_state_count();
    println!("{nodes} nodes: {states} states");
    assert!(states > at_least, "only {states} states were reached");
}

#[test]
fn two_nodes() {
    let budget = Budget {
        writes: 2,
        crashes: 2,
        cuts: 2,
        promotions: 1,
        cracks: 1,
    };
    check(2, budget, 1000);
}

#[test]
fn three_nodes() {
    let budget = Budget {
        writes: 2,
        crashes: 2,
        cuts: 0,
        promotions: 1,
        cracks: 0,
    };
    check(3, budget, 1000);
}

#[test]
fn three_nodes_and_a_cut() {
    let budget = Budget {
        writes: 2,
        crashes: 1,
        cuts: 1,
        // Two promotions make two histories; that they are never merged is enumerated beside `reconnect`.
        promotions: 1,
        cracks: 0,
    };
    check(3, budget, 1000);
}
