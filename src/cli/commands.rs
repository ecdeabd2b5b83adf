//! What each command does: one request to the daemon, and its answer for people or for programs.

use super::args::{
    Cli, Command, ListArgs, LostCommand, MirrorCommand, MountArgs, NodeCommand, NodeInitArgs,
    PeerCommand, VolumeCommand, VolumeCreateArgs,
};
use super::client::{ask, ask_if_running, call, command, get};
use super::exit::Exit;
use super::size::show;
use super::table::Table;
use super::{Failed, demo, say, watch};
use crate::node::catalogue::{CatalogueError, Store};
use crate::node::config::Config;
use crate::node::keys::Identity;
use crate::node::protocol::{MirrorAction, NewPart, Request, VERSION, VolumeStatus};
use crate::node::refusal::{Refusal, check_name};
use crate::node::state_dir::{StateDir, StateDirError};
use crate::node::{daemon, history, peers};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// Carries out the command.
pub fn run(cli: Cli) -> Result<Exit, Failed> {
    let state = StateDir::at(absolute(&cli.state)?);
    match cli.command {
        Command::Node(NodeCommand::Init(args)) => init(&state, &args),
        Command::Node(NodeCommand::Run) => run_daemon(&state),
        Command::Node(NodeCommand::Fingerprint) => fingerprint(&state),
        Command::Peer(command) => peer(&state, command),
        Command::Volume(command) => volume(&state, command),
        Command::Mount(args) => mount(&state, &args),
        Command::Umount(args) => {
            tell(&state, &Request::Umount { name: args.name })?;
            Ok(Exit::Ok)
        }
        Command::Mirror(command) => mirror(&state, command),
        Command::Status(args) => watch::status(&state, &args),
        Command::Progress(args) => watch::progress(&state, &args),
        Command::Events(args) => watch::events(&state, &args),
        Command::Wait(args) => watch::wait(&state, &args),
        Command::Verify(args) => watch::verify(&state, &args),
        Command::Switchover(args) => {
            let (name, peer) = (args.name, args.peer);
            tell(&state, &Request::Switchover { name, peer })?;
            Ok(Exit::Ok)
        }
        Command::Lost(command) => lost(&state, command),
        Command::Promote(args) => {
            let (name, force) = (args.name, args.force);
            tell(&state, &Request::Promote { name, force })?;
            Ok(Exit::Ok)
        }
        Command::Rejoin(args) => {
            let request = Request::Rejoin {
                name: args.name,
                master: args.master,
                discard: args.discard,
            };
            tell(&state, &request)?;
            Ok(Exit::Ok)
        }
        Command::Demo(args) => demo::run(&args),
    }
}

/// The daemon has another working directory than the reader.
fn absolute(path: &Path) -> Result<PathBuf, Failed> {
    std::path::absolute(path).map_err(|e| Failed::here(path.display(), e))
}

/// Gives a request whose answer is a sentence.
fn tell(state: &StateDir, request: &Request) -> Result<(), Failed> {
    match call(state, request)? {
        Value::String(sentence) => say(sentence),
        Value::Null => Ok(()),
        other => say(other),
    }
}

fn init(state: &StateDir, args: &NodeInitArgs) -> Result<Exit, Failed> {
    check_name("node", &args.name)?;
    if state.config().exists() {
        return Err(Failed::new(
            Exit::Refused,
            format!("{} exists: a node is there", state.config().display()),
            command(state, "node run"),
        ));
    }
    let store = match &args.store {
        Some(store) => Some(absolute(store)?),
        None => None,
    };
    let config = Config::new(&args.name, &args.listen, store);
    let failed = |e: &dyn std::fmt::Display| Failed::new(Exit::Failure, e.to_string(), "");
    state.create().map_err(|e| failed(&e))?;
    if let Some(store) = &config.store {
        std::fs::create_dir_all(store).map_err(|e| Failed::here(store.display(), e))?;
    }
    // The configuration comes last: it is what makes the directory a node, and an interrupted init can be repeated.
    let identity = if state.key().exists() {
        Identity::load(&state.key(), &args.name)
    } else {
        Identity::create(&state.key(), &args.name)
    };
    let identity = identity.map_err(|e| failed(&e))?;
    config.create(&state.config()).map_err(|e| {
        Failed::new(
            Exit::Refused,
            e.to_string(),
            "give the command again with a right value",
        )
    })?;
    say(format!(
        "node {} made in {}\nfingerprint {}\nstart it: {}",
        args.name,
        state.path().display(),
        identity.fingerprint(),
        command(state, "node run")
    ))?;
    Ok(Exit::Ok)
}

fn run_daemon(state: &StateDir) -> Result<Exit, Failed> {
    daemon::run(state).map_err(|e| Failed::new(Exit::Failure, e.message, e.remedy))?;
    Ok(Exit::Ok)
}

fn load_config(state: &StateDir) -> Result<Config, Failed> {
    if !state.config().exists() {
        return Err(Failed::new(
            Exit::Refused,
            format!("there is no node at {}", state.path().display()),
            command(state, "node init --name NAME --listen ADDR:PORT"),
        ));
    }
    Config::load(&state.config()).map_err(|e| {
        let remedy = format!("edit {}", state.config().display());
        Failed::new(Exit::Failure, e.to_string(), remedy)
    })
}

fn fingerprint(state: &StateDir) -> Result<Exit, Failed> {
    let config = load_config(state)?;
    let identity = Identity::load(&state.key(), &config.name)
        .map_err(|e| Failed::new(Exit::Failure, e.to_string(), ""))?;
    say(identity.fingerprint())?;
    Ok(Exit::Ok)
}

/// The request to a running daemon, or the same on the catalogue itself.
fn with_or_without<T>(
    state: &StateDir,
    request: &Request,
    without: impl FnOnce(&Store) -> Result<Result<T, Refusal>, CatalogueError>,
) -> Result<Value, Failed>
where
    Value: From<T>,
{
    let failed = |e: &dyn std::fmt::Display| Failed::new(Exit::Failure, e.to_string(), "");
    load_config(state)?;
    if let Some(asked) = ask_if_running(state, request)? {
        return asked.finish(|_| Ok(()));
    }
    let _lock = match state.lock() {
        Ok(lock) => lock,
        // It has just started, or it is about to end.
        Err(StateDirError::InUse { .. }) => return ask(state, request)?.finish(|_| Ok(())),
        Err(e) => return Err(failed(&e)),
    };
    let database = history::open_database(&state.sled());
    let store = Store::open(&state.catalogue(), database.as_ref()).map_err(|e| failed(&e))?;
    let value = without(&store).map_err(|e| failed(&e))??;
    Ok(value.into())
}

fn peer(state: &StateDir, command: PeerCommand) -> Result<Exit, Failed> {
    match command {
        PeerCommand::Add(args) => {
            let request = Request::PeerAdd {
                name: args.name.clone(),
                address: args.address.clone(),
                fingerprint: args.fingerprint.clone(),
            };
            let config = load_config(state)?;
            let done = with_or_without(state, &request, |store| {
                let ours = Identity::load(&state.key(), &config.name).map(|i| i.fingerprint());
                peers::add(
                    store,
                    ours.ok(),
                    &args.name,
                    &args.address,
                    &args.fingerprint,
                )
            })?;
            say(done.as_str().unwrap_or_default())?;
        }
        PeerCommand::List(ListArgs { json }) => {
            let listed = with_or_without(state, &Request::PeerList, |store| {
                Ok(Ok(peers::list(&store.get())))
            })?;
            if json {
                say(json!({"version": VERSION, "peers": listed}))?;
            } else {
                let mut table = Table::new(&["NAME", "ADDRESS", "FINGERPRINT"]);
                for peer in listed.as_array().into_iter().flatten() {
                    let cell = |key: &str| peer[key].as_str().unwrap_or_default().to_owned();
                    table.row(vec![cell("name"), cell("address"), cell("fingerprint")]);
                }
                say(table.text())?;
            }
        }
        PeerCommand::Remove(args) => {
            let request = Request::PeerRemove {
                name: args.name.clone(),
            };
            let done = with_or_without(state, &request, |store| peers::remove(store, &args.name))?;
            say(done.as_str().unwrap_or_default())?;
        }
    }
    Ok(Exit::Ok)
}

fn create(args: VolumeCreateArgs) -> Result<Request, Failed> {
    let mut parts = Vec::new();
    for (path, bytes) in args.parts {
        let path = absolute(&path)?;
        parts.push(NewPart { path, bytes });
    }
    Ok(Request::VolumeCreate {
        name: args.name,
        parts,
        block_size: args.block_size,
        buffer: args.buffer,
    })
}

fn volume(state: &StateDir, command: VolumeCommand) -> Result<Exit, Failed> {
    match command {
        VolumeCommand::Create(args) => tell(state, &create(args)?)?,
        VolumeCommand::Adopt(args) => {
            let parts = args.parts.iter().map(|p| absolute(p));
            let request = Request::VolumeAdopt {
                name: args.name,
                parts: parts.collect::<Result<_, _>>()?,
                buffer: args.buffer,
            };
            tell(state, &request)?;
        }
        VolumeCommand::List(ListArgs { json }) => {
            let volumes: Vec<VolumeStatus> = get(state, &Request::VolumeList)?;
            if json {
                say(json!({"version": VERSION, "volumes": volumes}))?;
            } else {
                say(list(&volumes))?;
            }
        }
        VolumeCommand::Show(args) => {
            let shown = call(state, &Request::VolumeShow { name: args.name })?;
            if args.json {
                say(shown)?;
            } else {
                say(lines(&shown))?;
            }
        }
        VolumeCommand::Check(args) => tell(state, &Request::VolumeCheck { name: args.name })?,
        VolumeCommand::Tune(args) => tell(
            state,
            &Request::VolumeTune {
                name: args.name,
                buffer: args.buffer,
            },
        )?,
        VolumeCommand::Delete(args) => tell(
            state,
            &Request::VolumeDelete {
                name: args.name,
                keep_parts: args.keep_parts,
            },
        )?,
    }
    Ok(Exit::Ok)
}

fn list(volumes: &[VolumeStatus]) -> String {
    let mut table = Table::new(&[
        "NAME", "ROLE", "SIZE", "BUFFER", "STATE", "MOUNT", "MIRRORS",
    ]);
    for v in volumes {
        let mirrors = v.mirrors.iter().map(|m| format!("{}={}", m.peer, m.state));
        table.row(vec![
            v.name.clone(),
            v.role.clone(),
            show(v.size),
            show(v.buffer_size),
            v.condition.to_string(),
            watch::mount_cell(v),
            mirrors.collect::<Vec<_>>().join(" "),
        ]);
    }
    table.text()
}

/// An object as `key: value` lines; deeper values as JSON.
fn lines(value: &Value) -> String {
    let Some(object) = value.as_object() else {
        return value.to_string();
    };
    let mut table = Table::new(&[]);
    for (key, value) in object {
        let text = match value {
            Value::String(s) => s.clone(),
            Value::Null => String::new(),
            Value::Array(a) if a.iter().all(Value::is_string) => {
                let texts: Vec<_> = a.iter().filter_map(Value::as_str).collect();
                texts.join(", ")
            }
            other => other.to_string(),
        };
        table.row(vec![key.replace('_', " "), text]);
    }
    table.text().trim_start().to_owned()
}

fn mount(state: &StateDir, args: &MountArgs) -> Result<Exit, Failed> {
    let request = Request::Mount {
        name: args.name.clone(),
        dir: absolute(&args.dir)?,
        read_only: args.read_only,
    };
    tell(state, &request)?;
    Ok(Exit::Ok)
}

fn lost(state: &StateDir, command: LostCommand) -> Result<Exit, Failed> {
    match command {
        LostCommand::List(args) => {
            let kept = call(state, &Request::LostList { name: args.name })?;
            if args.json {
                say(json!({"version": VERSION, "lost": kept}))?;
                return Ok(Exit::Ok);
            }
            let heads = ["VOLUME", "ID", "FOR", "FIRST", "LAST", "BYTES", "FILES"];
            let mut table = Table::new(&heads);
            for entry in kept.as_array().into_iter().flatten() {
                let keys = ["volume", "id", "master", "first", "last", "bytes", "files"];
                let cell = |key: &&str| match &entry[*key] {
                    Value::String(text) => text.clone(),
                    other => other.to_string(),
                };
                table.row(keys.iter().map(cell).collect());
            }
            say(table.text())?;
        }
        LostCommand::Show(args) => {
            let (name, id) = (args.name, args.id);
            let shown = call(state, &Request::LostShow { name, id })?;
            if args.json {
                say(shown)?;
                return Ok(Exit::Ok);
            }
            let mut table = Table::new(&["BLOCK", "BLOCKS", "WHAT"]);
            for run in shown["runs"].as_array().into_iter().flatten() {
                let what = run["what"].as_str().unwrap_or_default().to_owned();
                table.row(vec![
                    run["block"].to_string(),
                    run["blocks"].to_string(),
                    what,
                ]);
            }
            say(table.text())?;
        }
        LostCommand::Extract(args) => {
            let request = Request::LostExtract {
                name: args.name,
                id: args.id,
                dir: absolute(&args.dir)?,
            };
            tell(state, &request)?;
        }
    }
    Ok(Exit::Ok)
}

fn mirror(state: &StateDir, command: MirrorCommand) -> Result<Exit, Failed> {
    let (args, action) = match command {
        MirrorCommand::Create(args) => {
            let mut wishes = args.policy.wishes();
            let request = Request::MirrorCreate {
                rate: wishes.rate.take(),
                wishes,
                name: args.name,
                peer: args.peer,
            };
            tell(state, &request)?;
            return Ok(Exit::Ok);
        }
        MirrorCommand::Set(args) => {
            let request = Request::MirrorSet {
                wishes: args.policy.wishes(),
                name: args.name,
                peer: args.peer,
            };
            tell(state, &request)?;
            return Ok(Exit::Ok);
        }
        MirrorCommand::Compare(args) => {
            let (name, peer) = (args.name, args.peer);
            tell(state, &Request::Compare { name, peer })?;
            return Ok(Exit::Ok);
        }
        MirrorCommand::Pause(args) => ((args.name, args.peer), MirrorAction::Pause),
        MirrorCommand::Continue(args) => ((args.name, args.peer), MirrorAction::Continue),
        MirrorCommand::Delete(args) => ((args.name, args.peer), MirrorAction::Delete),
        MirrorCommand::Restart(args) => ((args.name, args.peer), MirrorAction::Restart),
    };
    let (name, peer) = args;
    tell(state, &Request::Mirror { name, peer, action })?;
    Ok(Exit::Ok)
}
