//! What the documents say is what happens: README's recipe for two servers, executed as it is written there, and the
//! rules in lockstep-semantics(7).

use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, ChildStdin, Stdio};

use crate::testkit::{
    Namespace, Namespaces, command, e2fsck, need_fuse, need_netns, need_tool, recover_journal, run,
    run_for, said,
};

/// The lines of the fenced block after the heading.
fn recipe() -> String {
    let readme = include_str!("../../README.md");
    let (_, after) = readme
        .split_once("## Two servers")
        .expect("README has the recipe");
    let (_, block) = after.split_once("```sh\n").expect("a block of commands");
    let (block, _) = block.split_once("```").expect("it ends");
    block.to_owned()
}

/// A server: network, /srv, /var/lib, /var/log and /mnt of its own.
struct Server {
    holder: Child,
    _stdin: ChildStdin,
}

impl Server {
    fn new(host: &Namespace, dir: &Path) -> Server {
        let mut script = String::from("set -e\n");
        for part in ["srv", "var/lib", "var/log", "mnt"] {
            std::fs::create_dir_all(dir.join(part)).unwrap();
            script += &format!("mount --bind {}/{part} /{part}\n", dir.display());
        }
        script += "echo ready\nexec cat\n";
        let mut holder = host
            .command("unshare")
            .args(["--mount", "--propagation", "private", "sh", "-c", &script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let stdin = holder.stdin.take().unwrap();
        let mut line = String::new();
        BufReader::new(holder.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        assert_eq!(line, "ready\n");
        Server {
            holder,
            _stdin: stdin,
        }
    }

    /// The words before a command that run it here.
    fn inside(&self) -> String {
        format!("nsenter --target {} --net --mount --", self.holder.id())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Everything of this server that is left: it is in the holder's mount namespace, and nothing else is.
        let mine = std::fs::read_link(format!("/proc/{}/ns/mnt", self.holder.id()));
        for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
            let pid: Option<i32> = entry.file_name().to_str().and_then(|n| n.parse().ok());
            let same = std::fs::read_link(entry.path().join("ns/mnt"));
            if let (Some(pid), Ok(mine), Ok(same)) = (pid, &mine, same)
                && *mine == same
                && let Some(pid) = rustix::process::Pid::from_raw(pid)
            {
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
        }
        let _ = self.holder.wait();
    }
}

#[test]
fn the_recipe_for_two_servers_works_as_it_is_written() {
    if !(need_fuse() && need_netns() && need_tool("mke2fs") && need_tool("unshare")) {
        return;
    }
    let dir = tempfile::Builder::new()
        .prefix("recipe-")
        .tempdir_in(env!("CARGO_TARGET_TMPDIR"))
        .unwrap();
    let hosts = Namespaces::new().unwrap();
    // The addresses of the recipe.
    for (host, device, address) in [
        (&hosts.a, "lsa", "192.0.2.1/24"),
        (&hosts.b, "lsb", "192.0.2.2/24"),
    ] {
        run(
            "ip",
            &["-n", host.name(), "address", "add", address, "dev", device],
        )
        .unwrap();
    }
    let alpha = Server::new(&hosts.a, &dir.path().join("alpha"));
    let beta = Server::new(&hosts.b, &dir.path().join("beta"));
    let bin = dir.path().join("bin");
    std::fs::create_dir(&bin).unwrap();
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_lockstep"), bin.join("lockstep")).unwrap();
    // `ssh beta COMMAND`: a shell on the other server, as ssh gives one.
    let ssh = bin.join("ssh");
    let text = format!(
        "#!/bin/sh\n[ \"$1\" = beta ] || exit 255\nshift\nexec {} sh -c \"$*\" </dev/null\n",
        beta.inside()
    );
    std::fs::File::create(&ssh)
        .unwrap()
        .write_all(text.as_bytes())
        .unwrap();
    std::fs::set_permissions(&ssh, std::fs::Permissions::from_mode(0o755)).unwrap();
    let path = format!(
        "PATH={}:{}:/usr/sbin:/sbin",
        bin.display(),
        std::env::var("PATH").unwrap()
    );
    let script = format!("set -e\n{}", recipe());
    let inside = alpha.inside();
    let mut words = inside.split(' ');
    let out = command("timeout")
        .args(["-k", "5", "180"])
        .args(words.by_ref())
        .args(["env", "-u", "LOCKSTEP_STATE", &path, "sh", "-c", &script])
        .output()
        .unwrap();
    assert!(out.status.success(), "{}\n{}", out.status, said(&out));
    // And it did what it says.
    let text = format!("{} cat /srv/data/hello", beta.inside());
    let words: Vec<&str> = text.split(' ').collect();
    let out = run_for(10, words[0], &words[1..]).unwrap();
    assert_eq!(
        String::from_utf8_lossy(&out.stdout),
        "hello from alpha\n",
        "{}",
        said(&out)
    );
    // The daemons are killed: what their logs hold is brought home first.
    drop((alpha, beta));
    for part in ["alpha/srv/data.img", "beta/srv/lockstep/data/part0"] {
        let part = dir.path().join(part);
        recover_journal(&part).unwrap();
        e2fsck(&part).unwrap();
    }
}

#[test]
fn the_manual_page_has_the_rules_of_reconnecting() {
    let page = include_str!("../../man/lockstep-semantics.7");
    let page = page.split_whitespace().collect::<Vec<_>>().join(" ");
    for rule in states::reconnect::Rule::ALL {
        let text = rule.explanation();
        assert!(page.contains(text), "{text}");
        assert!(page.contains(&format!("{} {} ", rule.number(), rule.word())));
    }
}

#[test]
fn every_case_of_the_manual_page_has_its_tests() {
    let man = include_str!("../../man/lockstep-semantics.7");
    let (_, table) = man.split_once("What happens, case by case:\n").unwrap();
    let (table, _) = table.split_once(".TE").unwrap();
    let cells = table.split("T{\n").skip(1);
    let cells = cells.map(|cell| cell.split_once("\nT}").unwrap().0.replace('\n', " "));
    let cases: Vec<String> = cells.step_by(2).collect();
    let head = include_str!("roles.rs").lines();
    let rows: Vec<(&str, &str)> = head
        .filter_map(|line| {
            line.strip_prefix("//! | ")?
                .strip_suffix(" |")?
                .split_once(" | ")
        })
        .skip(1)
        .collect();
    let listed: Vec<&str> = rows.iter().map(|(case, _)| *case).collect();
    assert_eq!(cases, listed);
    for (case, tests) in rows {
        let names: Vec<&str> = tests.split('`').skip(1).step_by(2).collect();
        assert!(!names.is_empty(), "{case}");
        for name in names {
            let (module, function) = name.split_once("::").unwrap();
            let here = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
            let file = ["cluster", "sim"].map(|dir| here.join(dir).join(format!("{module}.rs")));
            let defined = file.iter().any(|path| {
                let text = std::fs::read_to_string(path).unwrap_or_default();
                text.contains(&format!("#[test]\nfn {function}()"))
            });
            assert!(defined, "{case}: there is no {name}");
        }
    }
}
