//! `promote --force` of a copy that is no state of its master: half made, half repaired, or changed by something else.
//!
//! Owns what an operator does then, e2fsck included, and what is expected afterwards. What the new master has is where a history
//! begins of which nothing before is known: from there on every invariant holds, and for what was forced away none.

use std::sync::Arc;

use lockstepfs::fs::{Fs, FsError, RenameFlags};
use lockstepfs::mirror::open::OpenMaster;
use lockstepfs::mirror::roles::{self, Doubt};
use lockstepfs::units::Ino;
use lockstepfs::volume::facts::{Copy, Facts, Role};
use parking_lot::Mutex;

use super::files;
use super::golden::{Files, Golden};
use super::image;
use super::world::World;

const ROOT: Ino = Ino(2);
/// Longer than any file that an application makes here.
const TOO_LONG: u64 = 16 << 20;
/// Rounds in which some copy may begin to be repaired.
const PATIENCE: usize = 60;

/// Whether a copy is what its name says.
pub fn is_doubtful(facts: &Facts) -> bool {
    facts.tainted || !roles::is_whole(facts)
}

impl World {
    /// A copy that is half made, or half repaired, is to be the master's all the same.
    pub fn force_some(&mut self) -> bool {
        let v = self.some_volume();
        for _ in 0..PATIENCE {
            let doubtful = |n: &usize| {
                let node = &self.nodes[*n];
                let facts = node.homes[&v].facts.stored();
                let facts = facts.filter(|f| f.role == Role::Mirror && f.copy != Copy::Blank);
                node.is_up() && facts.is_some_and(|facts| is_doubtful(&facts))
            };
            let found: Vec<usize> = (0..self.nodes.len()).filter(doubtful).collect();
            if !found.is_empty() {
                let n = found[self.random.below(found.len() as u64) as usize];
                return self.promote(n, v, true);
            }
            let ms = self.random.below(10) + 1;
            self.round(ms);
        }
        false
    }

    /// Whoever forces a promotion is told first what it costs.
    pub fn told_the_loss(&self, n: usize, v: usize, facts: &Facts, doubts: &[Doubt]) {
        let said = doubts.iter().any(|doubt| {
            matches!(
                doubt,
                Doubt::Partial { .. } | Doubt::Inconsistent { .. } | Doubt::Tainted
            )
        });
        assert!(
            said == is_doubtful(facts),
            "roles: the promotion of n{n}'s copy of v{v} says that it costs {doubts:?}: {facts:?}"
        );
    }

    /// As the daemon: e2fsck makes a file system of what is there. `false`: it can not, or a disk failed.
    pub fn repair(&mut self, n: usize, v: usize, facts: &mut Facts) -> bool {
        self.volumes[v].forced.insert(n);
        // What e2fsck wrote is nobody's: should it come to nothing, the copy is trusted in nothing.
        self.volumes[v].excused.insert(n);
        let home = &self.nodes[n].homes[&v];
        let volume = home.volume();
        let begun = roles::before_repair(&volume, facts, &*home.facts);
        let mended = match begun {
            Ok(()) => {
                image::mend(volume.parts(), volume.block_size()).map_err(|error| error.to_string())
            }
            Err(error) => Err(error.to_string()),
        };
        match mended {
            Ok(None) => {
                self.tally.check("half a copy that e2fsck mended", 1);
                true
            }
            Ok(Some(text)) => {
                self.note(|| format!("v{v} n{n}: e2fsck can not make a file system of it: {text}"));
                self.tally
                    .check("half a copy that e2fsck could not mend", 1);
                false
            }
            Err(error) => {
                self.error(n, &format!("v{v}: repairing: {error}"));
                false
            }
        }
    }

    /// The master of such a copy was opened: its history begins here.
    pub fn begins_anew(&mut self, v: usize, n: usize, open: &OpenMaster) -> Result<(), String> {
        let shared = &open.shared;
        super::drive::sound(&shared.journal, &format!("the forced master n{n} of v{v}"));
        let mut golden = Golden::new(shared.volume.block_size() as usize);
        golden.files().files = tidied(&shared.fs).map_err(|e| e.to_string())?;
        let free = shared.fs.statfs().map_err(|e| e.to_string())?;
        let free = free.bfree * u64::from(shared.volume.block_size());
        golden.begin(&shared.journal, shared.volume.blocks_count(), &shared.log);
        let used: u64 = golden.files().files.values().map(|b| b.len() as u64).sum();
        let volume = &mut self.volumes[v];
        // What e2fsck found and nobody knows takes room, too.
        volume.room_left = volume.room_left.min(used + free / 3);
        let line = volume.lines.of_mut(n);
        line.acked = shared.journal.last_committed();
        line.golden = Arc::new(Mutex::new(golden));
        volume.forced.remove(&n);
        volume.promised.remove(&n);
        volume.durable.remove(&n);
        self.knows_nobody(v, n);
        self.tally
            .check("forced promotion of what was no state of a master", 1);
        Ok(())
    }

    /// Every other copy is compared with that of a forced master.
    pub fn knows_nobody(&mut self, v: usize, n: usize) {
        let others = self.others(n, v).into_iter();
        self.volumes[v]
            .new_to
            .extend(others.map(|other| (n, other)));
    }
}

/// The files that applications know; what is there and can not be one of them is put out of their way, and directories that
/// are gone are made again.
fn tidied(fs: &Fs) -> Result<Files, FsError> {
    let mut moved = 0;
    let mut put_away = |dir: Ino, name: &[u8]| loop {
        moved += 1;
        let away = format!("odd-{moved}");
        match fs.lookup(ROOT, away.as_bytes()) {
            Err(FsError::Refused(libc::ENOENT)) => {
                let flags = RenameFlags::default();
                return fs.rename(dir, name, ROOT, away.as_bytes(), flags);
            }
            Ok(_) => {}
            Err(error) => return Err(error),
        }
    };
    for dir in files::all_dirs() {
        match fs.lookup(ROOT, dir.as_bytes()) {
            Ok(attr) if attr.mode & 0o170_000 == 0o040_000 => continue,
            Ok(_) => put_away(ROOT, dir.as_bytes())?,
            Err(FsError::Refused(libc::ENOENT)) => {}
            Err(error) => return Err(error),
        }
        files::make_dir(fs, &dir)?;
    }
    let mut found = Files::new();
    for path in files::all_names() {
        let (dir, name) = files::parent(fs, &path)?;
        let attr = match fs.lookup(dir, &name) {
            Ok(attr) => attr,
            Err(FsError::Refused(libc::ENOENT)) => continue,
            Err(error) => return Err(error),
        };
        let plain = attr.mode & 0o170_000 == 0o100_000 && attr.nlink == 1;
        match plain && attr.size <= TOO_LONG {
            true => {
                let bytes = files::read(fs, &path)?;
                found.extend(bytes.map(|bytes| (path, Arc::new(bytes))));
            }
            false => put_away(dir, &name)?,
        }
    }
    fs.sync()?;
    Ok(found)
}
