use super::*;
use std::process::Command;

const LIMIT: Duration = Duration::from_secs(60);

fn pair(dir: &Path) -> Pair {
    let mut pair = Pair::create(dir, 64 << 20, 4 << 20).unwrap();
    pair.make_dir("docs").unwrap();
    pair.make_link("docs/link", b"one").unwrap();
    pair.write("docs/one", 0, &vec![1; 3 << 20]).unwrap();
    pair.create_mirror().unwrap();
    pair.settle(LIMIT).unwrap();
    pair
}

fn close(pair: Pair) {
    let parts = pair.parts();
    pair.close().unwrap();
    for part in parts {
        let mut e2fsck = Command::new("e2fsck");
        let path = "/usr/sbin:/sbin:/usr/bin:/bin";
        let out = e2fsck.env("PATH", path).arg("-fn").arg(&part).output();
        let out = out.unwrap();
        let said = String::from_utf8_lossy(&out.stdout);
        assert!(out.status.success(), "{}: {said}", part.display());
    }
}

#[test]
fn a_cut_link_is_made_good_by_replay() {
    let dir = tempfile::tempdir().unwrap();
    let mut pair = pair(dir.path());
    let copied = pair.status().unwrap().bytes_bulk;
    assert!(copied > 3 << 20);
    pair.cut().unwrap();
    pair.write("two", 0, b"while it was cut").unwrap();
    pair.sync().unwrap();
    pair.reach(State::LinkDown, LIMIT).unwrap();
    assert_eq!(pair.read_mirror("two").unwrap(), None);
    pair.mend();
    pair.settle(LIMIT).unwrap();
    let there = pair.read_mirror("two").unwrap();
    assert_eq!(there.as_deref(), Some(&b"while it was cut"[..]));
    assert_eq!(pair.status().unwrap().bytes_bulk, copied);
    let extent = pair.compare().unwrap();
    assert_eq!((extent.files, extent.bytes), (2, (3 << 20) + 16));
    assert!(pair.verify(LIMIT).unwrap().differing.is_empty());
    close(pair);
}

#[test]
fn more_than_the_buffer_cracks_and_only_that_is_copied() {
    let dir = tempfile::tempdir().unwrap();
    let mut pair = pair(dir.path());
    pair.write("docs/one", 0, &vec![2; 8 << 20]).unwrap();
    pair.settle(LIMIT).unwrap();
    let copied = pair.status().unwrap().bytes_bulk;
    pair.pause().unwrap();
    for mib in 0..8 {
        pair.write("docs/one", mib << 20, &vec![3; 1 << 20])
            .unwrap();
    }
    pair.sync().unwrap();
    assert!(pair.status().unwrap().cracked);
    pair.resume().unwrap();
    pair.settle(LIMIT).unwrap();
    let again = pair.status().unwrap().bytes_bulk - copied;
    assert!((8 << 20..10 << 20).contains(&again), "{again}");
    pair.compare().unwrap();
    close(pair);
}

#[test]
fn a_busy_mirror_is_tried_again() {
    let dir = tempfile::tempdir().unwrap();
    let mut pair = pair(dir.path());
    pair.set_busy(true);
    pair.cut().unwrap();
    pair.mend();
    pair.reach(State::Reset, LIMIT).unwrap();
    pair.set_busy(false);
    pair.settle(LIMIT).unwrap();
    let states: Vec<State> = pair.changes().iter().map(|c| c.to).collect();
    assert!(states.ends_with(&[
        State::LinkDown,
        State::Init,
        State::Reset,
        State::Init,
        State::MakeParts,
        State::Ready,
        State::InSync
    ]));
    close(pair);
}
