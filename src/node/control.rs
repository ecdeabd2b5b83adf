//! The control socket: a Unix socket in the state directory, mode 0600.
//!
//! Owns the socket's file and its connections. Never carries out a request: a handler does, on a thread where it may
//! block. A client that says nothing, or too much, is dropped; one that goes away while its request is being carried
//! out changes nothing about it.

use super::protocol::{ALIVE_EVERY, Line, MAX_LINE, Request};
use super::refusal::{Code, Refusal};
use super::state_dir::StateDir;
use rustix::fd::AsRawFd;
use std::fs::{File, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::{Instant, timeout};

/// A client has this long to say what it wants.
const REQUEST_WITHIN: Duration = Duration::from_secs(5);
/// A client that takes nothing for this long is gone.
const TAKE_WITHIN: Duration = Duration::from_secs(10);
/// Connections at once; further ones wait in the kernel's backlog.
const MAX_CLIENTS: usize = 128;
/// Lines of an answer that may wait for the client.
const LINES: usize = 256;

/// Where a handler puts the lines of its answer before the last.
#[derive(Clone, Debug)]
pub struct Answer(mpsc::Sender<Line>);

impl Answer {
    /// Sends one line, waiting while the client is slow. `false`: the client is gone, or the deadline has passed.
    pub fn send(&self, line: Line) -> bool {
        self.0.blocking_send(line).is_ok()
    }

    /// The same, for asynchronous handlers.
    pub async fn send_async(&self, line: Line) -> bool {
        self.0.send(line).await.is_ok()
    }

    /// Whether nobody waits for the answer any more.
    pub fn is_gone(&self) -> bool {
        self.0.is_closed()
    }

    /// Resolves when nobody waits for the answer any more.
    pub async fn gone(&self) {
        self.0.closed().await;
    }
}

/// Carries out a request. Called on the runtime; must not block it.
pub trait Handler: Send + Sync + 'static {
    /// The last line of the answer; earlier ones go to `answer`.
    fn handle(
        self: Arc<Self>,
        request: Request,
        answer: Answer,
    ) -> impl Future<Output = Line> + Send;
}

/// A path by which the socket can be reached: Unix sockets take at most 107 bytes, state directories may be deeper.
/// The file, if any, must stay open while the path is used.
pub fn reachable(socket: &Path) -> io::Result<(PathBuf, Option<File>)> {
    if socket.as_os_str().len() <= 107 {
        return Ok((socket.to_owned(), None));
    }
    let (Some(dir), Some(name)) = (socket.parent(), socket.file_name()) else {
        return Ok((socket.to_owned(), None));
    };
    let dir = File::open(dir)?;
    let through = PathBuf::from(format!("/proc/self/fd/{}", dir.as_raw_fd()));
    Ok((through.join(name), Some(dir)))
}

/// Makes the socket, removing one that a dead daemon left. The caller holds the node's lock.
pub fn bind(state: &StateDir) -> io::Result<UnixListener> {
    let path = state.socket();
    match std::fs::remove_file(&path) {
        Ok(()) => tracing::info!("{}: removed, its daemon is gone", path.display()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) => return Err(e),
    }
    let (through, _dir) = reachable(&path)?;
    // Between bind and chmod the directory's mode, 0700, keeps others out.
    let socket = UnixListener::bind(through)?;
    std::fs::set_permissions(&path, Permissions::from_mode(0o600))?;
    Ok(socket)
}

/// Serves clients for ever; drop the future to stop.
pub async fn serve<H: Handler>(socket: UnixListener, handler: Arc<H>) {
    let clients = Arc::new(Semaphore::new(MAX_CLIENTS));
    loop {
        let place = Arc::clone(&clients)
            .acquire_owned()
            .await
            .expect("never closed");
        match socket.accept().await {
            Ok((stream, _)) => {
                let handler = Arc::clone(&handler);
                tokio::spawn(async move {
                    client(stream, handler).await;
                    drop(place);
                });
            }
            Err(e) => {
                tracing::warn!("control socket: accept: {e}");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn client<H: Handler>(stream: UnixStream, handler: Arc<H>) {
    let (reader, mut writer) = stream.into_split();
    let mut reader = BufReader::new(reader).take(MAX_LINE as u64);
    let mut line = Vec::new();
    match timeout(REQUEST_WITHIN, reader.read_until(b'\n', &mut line)).await {
        Ok(Ok(n)) if n > 0 => {}
        // Nothing, or not in time: a probe whether we are there.
        _ => return,
    }
    let request: Request = match serde_json::from_slice(&line) {
        Ok(request) => request,
        Err(e) => {
            let refusal = Refusal::new(
                Code::Invalid,
                format!("the daemon does not understand the request: {e}"),
                "use the lockstep command of the daemon's version",
            );
            put(&mut writer, &Line::Refused(refusal)).await;
            return;
        }
    };
    let deadline = request.deadline();
    let (lines, mut answer) = mpsc::channel(LINES);
    let handled = handler.handle(request, Answer(lines));
    // A task of its own: a client that goes away, or a deadline, must not cut a change in the middle.
    let mut handled = tokio::spawn(handled);
    let until = deadline.map(|d| Instant::now() + d);
    let late = async {
        match until {
            Some(until) => tokio::time::sleep_until(until).await,
            None => std::future::pending().await,
        }
    };
    tokio::pin!(late);
    // The client's end of the connection is watched too: a follower that left is noticed without an event.
    let mut hung_up = reader.into_inner();
    let mut one = [0; 1];
    let last = loop {
        tokio::select! {
            biased;
            Some(line) = answer.recv() => {
                if !put(&mut writer, &line).await {
                    return;
                }
            }
            last = &mut handled => break last.unwrap_or_else(|e| {
                tracing::error!("a control request failed: {e}");
                Line::Refused(Refusal::new(
                    Code::Unsupported,
                    "the daemon failed to carry the request out",
                    "see the daemon's log; this is an error in lockstep",
                ))
            }),
            () = &mut late => break Line::Refused(Refusal::new(
                Code::Timeout,
                format!("not done within {} s; it goes on", deadline.unwrap_or_default().as_secs()),
                "lockstep status, lockstep events",
            )),
            read = hung_up.read(&mut one) => match read {
                Ok(n) if n > 0 => {}
                _ => return,
            },
            () = tokio::time::sleep(ALIVE_EVERY) => {
                if !put(&mut writer, &Line::Alive).await {
                    return;
                }
            }
        }
    };
    while let Ok(line) = answer.try_recv() {
        if !put(&mut writer, &line).await {
            return;
        }
    }
    put(&mut writer, &last).await;
}

async fn put(writer: &mut (impl AsyncWriteExt + Unpin), line: &Line) -> bool {
    let mut bytes = serde_json::to_vec(line).expect("maps with string keys");
    bytes.push(b'\n');
    matches!(
        timeout(TAKE_WITHIN, writer.write_all(&bytes)).await,
        Ok(Ok(()))
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::os::unix::fs::FileTypeExt;

    struct Echo;

    impl Handler for Echo {
        async fn handle(self: Arc<Self>, request: Request, answer: Answer) -> Line {
            match request {
                Request::PeerList => {
                    for i in 0..3 {
                        answer.send_async(Line::Item(json!(i))).await;
                    }
                    Line::Done(Value::Null)
                }
                Request::Events { follow: true } => {
                    answer.gone().await;
                    Line::Done(Value::Null)
                }
                _ => panic!("planted"),
            }
        }
    }

    use serde_json::Value;

    async fn served(depth: usize) -> (tempfile::TempDir, StateDir) {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::at(dir.path().join("d".repeat(depth)));
        state.create().unwrap();
        std::fs::write(state.socket(), "left over").unwrap();
        let socket = bind(&state).unwrap();
        tokio::spawn(serve(socket, Arc::new(Echo)));
        (dir, state)
    }

    async fn ask(state: &StateDir, text: &str) -> Vec<String> {
        let (path, _dir) = reachable(&state.socket()).unwrap();
        let mut stream = UnixStream::connect(path).await.unwrap();
        stream.write_all(text.as_bytes()).await.unwrap();
        let mut all = String::new();
        stream.read_to_string(&mut all).await.unwrap();
        all.lines().map(str::to_owned).collect()
    }

    #[tokio::test]
    async fn a_request_is_answered_also_in_a_deep_directory() {
        for depth in [1, 150] {
            let (_dir, state) = served(depth).await;
            let meta = std::fs::metadata(state.socket()).unwrap();
            assert!(meta.file_type().is_socket());
            assert_eq!(meta.permissions().mode() & 0o777, 0o600);
            assert_eq!(
                ask(&state, "{\"do\":\"peer-list\"}\n").await,
                [
                    r#"{"item":0}"#,
                    r#"{"item":1}"#,
                    r#"{"item":2}"#,
                    r#"{"done":null}"#
                ]
            );
        }
    }

    #[tokio::test]
    async fn nonsense_and_a_failed_handler_are_answered_with_a_refusal() {
        let (_dir, state) = served(1).await;
        let answer = ask(&state, "{\"do\":\"fly\"}\n").await;
        assert!(answer[0].contains("refused"), "{answer:?}");
        let answer = ask(&state, "{\"do\":\"volume-list\"}\n").await;
        assert!(answer[0].contains("error in lockstep"), "{answer:?}");
        assert_eq!(ask(&state, "{\"do\":\"peer-list\"}\n").await.len(), 4);
    }

    #[tokio::test]
    async fn a_follower_hears_that_the_daemon_is_alive() {
        let (_dir, state) = served(1).await;
        let (path, _dir) = reachable(&state.socket()).unwrap();
        let stream = UnixStream::connect(path).await.unwrap();
        let (reader, mut writer) = stream.into_split();
        writer
            .write_all(b"{\"do\":\"events\",\"follow\":true}\n")
            .await
            .unwrap();
        let mut lines = BufReader::new(reader).lines();
        assert_eq!(lines.next_line().await.unwrap().unwrap(), r#""alive""#);
    }
}
