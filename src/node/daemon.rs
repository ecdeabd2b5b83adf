//! The daemon's life: start, serve, stop.
//!
//! Owns the order of both. Start: lock, configuration, key, catalogue, volumes, port, control socket. The control
//! socket comes before volumes are open, so that `status` answers while a long recovery runs. Stop, on SIGTERM or
//! SIGINT: no new requests, every volume closed, history flushed, sockets removed.

use super::config::Config;
use super::history::{History, NewEvent, open_database};
use super::keys::Identity;
use super::listen::Listener;
use super::registry::Node;
use super::state_dir::{StateDir, StateDirError};
use super::{catalogue, control, metrics, verify};
use std::fmt::Display;
use std::io::IsTerminal;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

/// How long a stop may take, beside what mirrors are waited for: then the process ends, as after a power cut.
const CLOSE_WITHIN: Duration = Duration::from_secs(120);

/// Threads of the runtime: sockets and timers only; files and volumes have threads of their own.
const RUNTIME_THREADS: usize = 2;

/// Why the daemon did not start, or did not end well.
#[derive(Debug)]
pub struct RunError {
    /// What is wrong.
    pub message: String,
    /// What to do next.
    pub remedy: String,
}

impl RunError {
    fn new(message: impl Display, remedy: impl Into<String>) -> RunError {
        RunError {
            message: message.to_string(),
            remedy: remedy.into(),
        }
    }
}

/// Runs the daemon of the node at `state` until SIGTERM or SIGINT.
pub fn run(state: &StateDir) -> Result<(), RunError> {
    let dir = state.path().display();
    if !state.config().exists() {
        return Err(RunError::new(
            format!("there is no node at {dir}"),
            format!("lockstep --state {dir} node init --name NAME --listen ADDR:PORT"),
        ));
    }
    start_log();
    let lock = state.lock().map_err(|e| {
        let remedy = match &e {
            StateDirError::InUse { .. } => format!("lockstep --state {dir} status"),
            StateDirError::Io { .. } => String::new(),
        };
        RunError::new(e, remedy)
    })?;
    let config = Config::load(&state.config())
        .map_err(|e| RunError::new(e, format!("edit {}", state.config().display())))?;
    let identity = Identity::load(&state.key(), &config.name).map_err(|e| {
        let remedy = "put the key back from a backup; a new one must be added on every peer again";
        RunError::new(e, remedy)
    })?;
    allow_io_flusher();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(RUNTIME_THREADS)
        .enable_all()
        .build()
        .map_err(|e| RunError::new(format!("threads: {e}"), ""))?;
    let database = open_database(&state.sled());
    let store = catalogue::Store::open(&state.catalogue(), database.as_ref()).map_err(|e| {
        RunError::new(
            e,
            "put the catalogue file back from a backup; facts and parts are untouched",
        )
    })?;
    let history = History::open(database.as_ref());
    let node = Node::new(
        state.clone(),
        config,
        identity,
        store,
        history,
        runtime.handle().clone(),
    );
    let ran = runtime.block_on(serve(&node));
    node.history
        .record(NewEvent::node("node-stopped", "stopped"));
    node.history.flush();
    if let Some(db) = database
        && let Err(e) = db.flush()
    {
        tracing::error!("{}: {e}", state.sled().display());
    }
    // Nothing that blocks is left to wait for; what still hangs must not keep the process.
    runtime.shutdown_background();
    drop(lock);
    ran
}

fn start_log() {
    use tracing_subscriber::EnvFilter;
    let filter = EnvFilter::try_from_env("LOCKSTEP_LOG");
    let filter = filter.unwrap_or_else(|_| EnvFilter::new("info,sled=warn"));
    // A second daemon in one process (tests) keeps the first one's log.
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .try_init();
}

/// Tells the kernel that this process writes back what others dirty: its own allocations must not wait for that
/// (prctl(2), PR_SET_IO_FLUSHER). An ordinary user may not, and does without.
fn allow_io_flusher() {
    match rustix::process::configure_io_flusher_behavior(true) {
        Ok(()) => tracing::debug!("PR_SET_IO_FLUSHER is set"),
        Err(e) => tracing::debug!("PR_SET_IO_FLUSHER: {e}; going on without"),
    }
}

async fn serve(node: &Arc<Node>) -> Result<(), RunError> {
    let handler = |e: std::io::Error| RunError::new(format!("signals: {e}"), "");
    let mut terminate = signal(SignalKind::terminate()).map_err(handler)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(handler)?;
    let listen = &node.config.listen;
    let port = TcpListener::bind(listen).await.map_err(|e| {
        let remedy = format!("free the port, or edit {}", node.state.config().display());
        RunError::new(format!("listen on {listen}: {e}"), remedy)
    })?;
    let metrics = match &node.config.metrics {
        None => None,
        Some(at) => Some(TcpListener::bind(at).await.map_err(|e| {
            let remedy = format!("free the port, or edit {}", node.state.config().display());
            RunError::new(format!("metrics on {at}: {e}"), remedy)
        })?),
    };
    let socket = control::bind(&node.state)
        .map_err(|e| RunError::new(format!("{}: {e}", node.state.socket().display()), ""))?;
    let listener = Listener::new(Arc::clone(&node.trunks))
        .map_err(|e| RunError::new(format!("TLS: {e}"), ""))?;
    let name = &node.config.name;
    node.history.record(
        NewEvent::node("node-started", format!("node {name} listens on {listen}"))
            .with("pid", std::process::id()),
    );
    node.list_all();
    let control = tokio::spawn(control::serve(socket, Arc::clone(node)));
    let opener = {
        let node = Arc::clone(node);
        std::thread::Builder::new()
            .name("open".to_owned())
            .spawn(move || node.open_all())
            .map_err(|e| RunError::new(format!("threads: {e}"), ""))?
    };
    let watcher = {
        let node = Arc::clone(node);
        std::thread::Builder::new()
            .name("watch".to_owned())
            .spawn(move || node.watch_volumes())
            .map_err(|e| RunError::new(format!("threads: {e}"), ""))?
    };
    let verifier = {
        let node = Arc::clone(node);
        std::thread::Builder::new()
            .name("verify".to_owned())
            .spawn(move || verify::keep_schedule(&node))
            .map_err(|e| RunError::new(format!("threads: {e}"), ""))?
    };
    let port = tokio::spawn(listener.run(port));
    let metrics = metrics.map(|socket| tokio::spawn(metrics::serve(socket, Arc::clone(node))));
    let which = tokio::select! {
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
    };
    node.history.record(NewEvent::node(
        "node-stopping",
        format!("{which}: closing volumes"),
    ));
    node.begin_stop();
    port.abort();
    if let Some(metrics) = metrics {
        metrics.abort();
    }
    let closing = {
        let node = Arc::clone(node);
        tokio::task::spawn_blocking(move || {
            // An opening under way ends by itself: it sees that the node stops.
            let _ = opener.join();
            let _ = watcher.join();
            let _ = verifier.join();
            node.close_all()
        })
    };
    let within = node.config.drain_timeout() + CLOSE_WITHIN;
    let Ok(closed) = tokio::time::timeout(within, closing).await else {
        return Err(RunError::new(
            format!(
                "not closed within {} s: a disk does not answer",
                within.as_secs()
            ),
            "see the log; the next start recovers from the journal",
        ));
    };
    let closed = closed.map_err(|e| RunError::new(format!("closing: {e}"), "see the log"))?;
    node.trunks.close().await;
    control.abort();
    let _ = std::fs::remove_file(node.state.socket());
    match closed.is_empty() {
        true => Ok(()),
        false => Err(RunError::new(
            format!("not closed cleanly: {}", closed.join(", ")),
            "see the log; the next start recovers from the journal",
        )),
    }
}
