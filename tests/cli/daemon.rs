//! Daemons that are really run: start, stop, crash, volumes, events.

use crate::node::Node;
use serde_json::Value;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|e| panic!("{e}: {text}"))
}

#[test]
fn status_works_with_no_volumes() {
    let node = Node::running("alpha");
    let status = json(&node.ok(&["status", "--json"]));
    assert_eq!(status["version"], 1);
    assert_eq!(status["node"], "alpha");
    assert_eq!(status["volumes"], Value::Array(Vec::new()));
    let text = node.ok(&["status"]);
    assert!(text.starts_with("node alpha: no volumes"), "{text}");
    assert_eq!(node.ok(&["progress"]), "no mirrors\n");
}

#[test]
fn a_second_daemon_is_refused_and_a_dead_ones_socket_is_removed() {
    let mut node = Node::running("alpha");
    let error = node.fails(1, &["node", "run"]);
    assert!(error.contains("is in use by the daemon"), "{error}");
    node.crash();
    assert!(node.state().join("control.sock").exists());
    node.fails(7, &["status"]);
    node.start();
    node.stop();
    assert!(!node.state().join("control.sock").exists());
}

#[test]
fn secrets_are_for_the_owner_only() {
    let node = Node::running("alpha");
    let mode = |name: &str| {
        let path = node.state().join(name);
        std::fs::metadata(path).unwrap().permissions().mode() & 0o777
    };
    assert_eq!(mode("node.key"), 0o600);
    assert_eq!(mode("control.sock"), 0o600);
    assert_eq!(mode("."), 0o700);
}

#[test]
fn a_stale_socket_of_another_program_is_replaced() {
    let mut node = Node::init("alpha");
    drop(UnixListener::bind(node.state().join("control.sock")).unwrap());
    node.start();
}

#[test]
fn peers_are_kept_with_and_without_a_daemon() {
    let mut node = Node::init("alpha");
    let other = Node::init("beta");
    let fingerprint = other.ok(&["node", "fingerprint"]);
    let fingerprint = fingerprint.trim();
    let add = [
        "peer",
        "add",
        "beta",
        &other.address(),
        "--fingerprint",
        fingerprint,
    ];
    assert_eq!(node.ok(&add), "peer beta added\n");
    node.start();
    let listed = json(&node.ok(&["peer", "list", "--json"]));
    assert_eq!(listed["peers"][0]["fingerprint"], fingerprint);
    node.crash();
    std::fs::remove_dir_all(node.state().join("sled")).unwrap();
    node.start();
    assert!(node.ok(&["peer", "list"]).contains(fingerprint));
    node.ok(&["peer", "remove", "beta"]);
    node.fails(3, &["peer", "remove", "beta"]);
    node.crash();
    std::fs::write(node.state().join("catalogue"), "garbage").unwrap();
    node.start();
    assert!(!node.ok(&["peer", "list"]).contains(fingerprint));
}

#[test]
fn the_history_survives_a_restart() {
    let mut node = Node::running("alpha");
    let part = format!("{}=32M", node.path("p0").display());
    node.ok(&["volume", "create", "data", "--part", &part]);
    node.stop();
    node.start();
    let events = node.ok(&["events", "--json"]);
    let kinds: Vec<String> = events
        .lines()
        .map(|l| json(l)["kind"].as_str().unwrap().to_owned())
        .collect();
    for kind in [
        "node-started",
        "volume-created",
        "node-stopping",
        "node-stopped",
    ] {
        assert!(
            kinds.iter().any(|k| k == kind),
            "{kind} is not in {kinds:?}"
        );
    }
    assert_eq!(kinds.iter().filter(|k| *k == "node-started").count(), 2);
    let ids: Vec<u64> = events
        .lines()
        .map(|l| json(l)["id"].as_u64().unwrap())
        .collect();
    assert!(ids.windows(2).all(|w| w[0] < w[1]), "{ids:?}");
}

#[test]
fn a_volume_is_created_checked_tuned_and_deleted() {
    let node = Node::running("alpha");
    let (a, b) = (node.path("a"), node.path("b"));
    let (pa, pb) = (
        format!("{}=48M", a.display()),
        format!("{}=16M", b.display()),
    );
    node.ok(&["volume", "create", "data", "--part", &pa, "--part", &pb]);
    assert_eq!(std::fs::metadata(&a).unwrap().len(), 48 << 20);
    node.fails(3, &["volume", "create", "data", "--part", &pa]);
    node.fails(3, &["volume", "create", "more", "--part", &pb]);
    let shown = json(&node.ok(&["volume", "show", "data", "--json"]));
    assert_eq!(shown["size"], 64 << 20);
    assert_eq!(shown["parts"][1]["bytes"], 16 << 20);
    node.ok(&["volume", "check", "data"]);
    node.ok(&["volume", "tune", "data", "--buffer", "8M"]);
    node.fails(3, &["volume", "tune", "data", "--buffer", "1K"]);
    node.ok(&["volume", "check", "data"]);
    let list = node.ok(&["volume", "list"]);
    assert!(
        list.lines()
            .nth(1)
            .unwrap()
            .starts_with("data  master  64 MiB"),
        "{list}"
    );
    let said = node.ok(&["volume", "delete", "data"]);
    assert!(said.contains("parts deleted"), "{said}");
    assert!(!a.exists() && !b.exists());
    node.fails(3, &["volume", "show", "data"]);
}

#[test]
fn what_is_not_ours_is_neither_overwritten_nor_deleted() {
    let node = Node::running("alpha");
    let path = node.path("image");
    std::fs::write(&path, vec![7; 32 << 20]).unwrap();
    let part = format!("{}=32M", path.display());
    let error = node.fails(3, &["volume", "create", "data", "--part", &part]);
    assert!(error.contains("not empty"), "{error}");
    let name = path.to_str().unwrap();
    let error = node.fails(3, &["volume", "adopt", "data", "--part", name]);
    assert!(error.contains("no ext4 here"), "{error}");
    assert_eq!(std::fs::read(&path).unwrap(), vec![7; 32 << 20]);
    std::fs::File::create(&path)
        .unwrap()
        .set_len(32 << 20)
        .unwrap();
    node.ok(&["volume", "create", "data", "--part", &part]);
    node.ok(&["volume", "delete", "data", "--keep-parts"]);
    node.ok(&["volume", "adopt", "again", "--part", name]);
    node.ok(&["volume", "delete", "again"]);
    assert!(path.exists(), "an adopted part is not lockstep's to delete");
}

#[test]
fn a_part_that_is_gone_fails_one_volume_and_not_the_daemon() {
    let mut node = Node::running("alpha");
    for name in ["one", "two"] {
        let part = format!("{}=32M", node.path(name).display());
        node.ok(&["volume", "create", name, "--part", &part]);
    }
    node.stop();
    std::fs::remove_file(node.path("one")).unwrap();
    node.start();
    let status = loop {
        let status = json(&node.ok(&["status", "--json"]));
        let of = |i: usize| {
            status["volumes"][i]["condition"]
                .as_str()
                .unwrap()
                .to_owned()
        };
        if of(0) == "failed" && of(1) == "open" {
            break status;
        }
        std::thread::yield_now();
    };
    let reason = status["volumes"][0]["reason"].as_str().unwrap();
    assert!(reason.contains("one"), "{reason}");
}

#[test]
fn the_daemon_ends_while_a_client_follows() {
    let mut node = Node::running("alpha");
    let mut follower = crate::node::lockstep();
    let mut follower = follower
        .arg("--state")
        .arg(node.state())
        .args(["events", "--follow"])
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(follower.stdout.take().unwrap()).lines();
    let first = lines.next().unwrap().unwrap();
    assert!(first.contains("node-started"), "{first}");
    node.stop();
    let rest: Vec<String> = lines.map(Result::unwrap).collect();
    assert!(rest[0].contains("node-stopping"), "{rest:?}");
    assert!(follower.wait().unwrap().code().is_some());
}
