//! `lockstep.toml`: what an administrator decides about a node.
//!
//! Owns the file's keys, their defaults and limits. Never writes a file that exists: people edit it. A key that is not
//! known is an error, so that a misspelt one is not taken for its default.

use super::refusal::check_name;
use crate::mirror::policy::Wishes;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;
use thiserror::Error;

/// Why a configuration can not be used.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// The file can not be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Not TOML, a key that is not known, or a value of the wrong type.
    #[error("{path}: {detail}")]
    Syntax {
        /// The file.
        path: PathBuf,
        /// What the parser said, with the line.
        detail: String,
    },
    /// A value outside its limits.
    #[error("{path}: {key} = {found}: {expected}")]
    Value {
        /// The file.
        path: PathBuf,
        /// The key.
        key: &'static str,
        /// Its value.
        found: String,
        /// What it may be.
        expected: &'static str,
    },
}

/// The keys of `lockstep.toml`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// This node's name, as its peers see it.
    pub name: String,
    /// ADDR:PORT of the port between nodes.
    pub listen: String,
    /// Directory in which mirrors' parts are made, as `VOLUME/part0`, `VOLUME/part1`, ...
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub store: Option<PathBuf>,
    /// Directory for what staged resyncs bring, instead of the state directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub staging: Option<PathBuf>,
    /// Devices or files offered to the mirror of a volume, instead of the store: one for each part, in order.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub devices: BTreeMap<String, Vec<PathBuf>>,
    /// How long a change may stay uncommitted, ms.
    #[serde(default = "commit_interval_ms")]
    pub commit_interval_ms: u64,
    /// Silence after which a peer counts as lost, s.
    #[serde(default = "peer_timeout_s")]
    pub peer_timeout_s: u64,
    /// How long a clean stop waits for mirrors to take what they lack, s.
    #[serde(default = "drain_timeout_s")]
    pub drain_timeout_s: u64,
    /// How long a start waits for peers to say whether one of them was made the master meanwhile, s.
    #[serde(default = "role_query_s")]
    pub role_query_s: u64,
    /// Memory for each volume's cache, MiB.
    #[serde(default = "cache_mib")]
    pub cache_mib: u64,
    /// Threads that serve each mount.
    #[serde(default = "fuse_threads")]
    pub fuse_threads: u64,
    /// Hours between comparisons of a mirror with its master; 0: none unless asked for.
    #[serde(default)]
    pub verify_every_h: u64,
    /// What a comparison by the schedule reads at most, MiB a second.
    #[serde(default = "verify_mib_s")]
    pub verify_mib_s: u64,
    /// ADDR:PORT at which figures are served to Prometheus; none unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metrics: Option<String>,
    /// How mirrors of this node's volumes are treated that do not say otherwise.
    #[serde(default)]
    pub mirror: Wishes,
    /// Whether other users may use a mount. Ordinary users need user_allow_other in /etc/fuse.conf for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allow_other: Option<bool>,
}

fn commit_interval_ms() -> u64 {
    1000
}

fn peer_timeout_s() -> u64 {
    6
}

fn drain_timeout_s() -> u64 {
    10
}

fn role_query_s() -> u64 {
    3
}

fn cache_mib() -> u64 {
    64
}

fn fuse_threads() -> u64 {
    4
}

fn verify_mib_s() -> u64 {
    50
}

impl Config {
    /// A configuration with every default.
    pub fn new(name: &str, listen: &str, store: Option<PathBuf>) -> Config {
        Config {
            name: name.to_owned(),
            listen: listen.to_owned(),
            store,
            staging: None,
            devices: BTreeMap::new(),
            commit_interval_ms: commit_interval_ms(),
            peer_timeout_s: peer_timeout_s(),
            drain_timeout_s: drain_timeout_s(),
            role_query_s: role_query_s(),
            cache_mib: cache_mib(),
            fuse_threads: fuse_threads(),
            verify_every_h: 0,
            verify_mib_s: verify_mib_s(),
            metrics: None,
            mirror: Wishes::default(),
            allow_other: None,
        }
    }

    /// Reads and checks the file.
    pub fn load(path: &Path) -> Result<Config, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Io {
            path: path.to_owned(),
            source,
        })?;
        let config: Config = toml::from_str(&text).map_err(|e| ConfigError::Syntax {
            path: path.to_owned(),
            detail: e.to_string().trim_end().to_owned(),
        })?;
        config.check(path)?;
        Ok(config)
    }

    /// Writes a new file, with a comment at each key; an existing one is an error.
    pub fn create(&self, path: &Path) -> Result<(), ConfigError> {
        self.check(path)?;
        let io = |source| ConfigError::Io {
            path: path.to_owned(),
            source,
        };
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o644)
            .open(path)
            .map_err(io)?;
        file.write_all(self.text().as_bytes()).map_err(io)?;
        file.sync_all().map_err(io)?;
        if let Some(dir) = path.parent() {
            File::open(dir).and_then(|d| d.sync_all()).map_err(io)?;
        }
        Ok(())
    }

    fn text(&self) -> String {
        let quoted = |s: &str| toml::Value::String(s.to_owned()).to_string();
        let store = match &self.store {
            Some(store) => format!("store = {}", quoted(&store.to_string_lossy())),
            None => "# store = \"/srv/lockstep\"".to_owned(),
        };
        format!(
            "# A lockstep node; lockstep.toml(5) explains every key.\n\
             name = {}\n\
             listen = {}\n\n\
             # Mirrors of other nodes' volumes are made here, as VOLUME/part0, VOLUME/part1, ...\n\
             {store}\n\n\
             # What a resync brings is kept here until all of it has come, instead of the state directory.\n\
             # staging = \"/srv/lockstep-staging\"\n\n\
             # The values below are the defaults.\n\
             # commit_interval_ms = {}\n\
             # peer_timeout_s = {}\n\
             # drain_timeout_s = {}\n\
             # role_query_s = {}\n\
             # cache_mib = {}\n\
             # fuse_threads = {}\n\
             # verify_every_h = {}     # 0: mirrors are compared only when asked for\n\
             # verify_mib_s = {}\n\
             # allow_other = true      # false for ordinary users\n\
             # metrics = \"127.0.0.1:9420\"   # for Prometheus; off unless given\n\n\
             # Devices for the mirror of one volume, one for each part, instead of the store:\n\
             # [devices]\n\
             # data = [\"/dev/vdb\", \"/dev/vdc\"]\n\n\
             # Mirrors of volumes of this node, unless lockstep mirror set says otherwise:\n\
             # [mirror]\n\
             # mode = \"async\"           # sync\n\
             # on_full = \"crack\"        # throttle\n\
             # timeout_ms = 6000\n",
            quoted(&self.name),
            quoted(&self.listen),
            self.commit_interval_ms,
            self.peer_timeout_s,
            self.drain_timeout_s,
            self.role_query_s,
            self.cache_mib,
            self.fuse_threads,
            self.verify_every_h,
            self.verify_mib_s,
        )
    }

    fn check(&self, path: &Path) -> Result<(), ConfigError> {
        let value = |key, found: String, expected| {
            Err(ConfigError::Value {
                path: path.to_owned(),
                key,
                found,
                expected,
            })
        };
        if check_name("node", &self.name).is_err() {
            let expected = "1 to 64 letters, digits, '.', '_' and '-'";
            return value("name", self.name.clone(), expected);
        }
        if !is_address(&self.listen) {
            let expected = "ADDR:PORT, as 0.0.0.0:7420 or [::]:7420";
            return value("listen", self.listen.clone(), expected);
        }
        if self.metrics.as_ref().is_some_and(|at| !is_address(at)) {
            let expected = "ADDR:PORT, as 127.0.0.1:9420";
            return value("metrics", format!("{:?}", self.metrics), expected);
        }
        if let Err(expected) = self.mirror.check() {
            return value("mirror", format!("{:?}", self.mirror), expected);
        }
        if self.store.as_ref().is_some_and(|s| !s.is_absolute()) {
            return value("store", format!("{:?}", self.store), "an absolute path");
        }
        if self.staging.as_ref().is_some_and(|s| !s.is_absolute()) {
            return value("staging", format!("{:?}", self.staging), "an absolute path");
        }
        for paths in self.devices.values() {
            if paths.is_empty() || paths.iter().any(|p| !p.is_absolute()) {
                return value("devices", format!("{paths:?}"), "absolute paths");
            }
        }
        let numbers = [
            ("commit_interval_ms", self.commit_interval_ms, 1, 60_000),
            ("peer_timeout_s", self.peer_timeout_s, 1, 3600),
            ("drain_timeout_s", self.drain_timeout_s, 0, 3600),
            ("role_query_s", self.role_query_s, 1, 60),
            ("cache_mib", self.cache_mib, 1, 1 << 20),
            ("fuse_threads", self.fuse_threads, 1, 64),
            ("verify_every_h", self.verify_every_h, 0, 24 * 366),
            ("verify_mib_s", self.verify_mib_s, 1, 1 << 20),
        ];
        for (key, found, least, most) in numbers {
            if !(least..=most).contains(&found) {
                return value(key, found.to_string(), "outside its limits");
            }
        }
        Ok(())
    }

    /// How long a change may stay uncommitted.
    pub fn commit_interval(&self) -> Duration {
        Duration::from_millis(self.commit_interval_ms)
    }

    /// Silence after which a peer counts as lost.
    pub fn peer_timeout(&self) -> Duration {
        Duration::from_secs(self.peer_timeout_s)
    }

    /// Time between comparisons by the schedule, if there is one.
    pub fn verify_every(&self) -> Option<Duration> {
        (self.verify_every_h > 0).then(|| Duration::from_secs(self.verify_every_h * 3600))
    }

    /// Bytes a second that these read at most.
    pub fn verify_rate(&self) -> Option<u64> {
        Some(self.verify_mib_s << 20)
    }

    /// How long a start waits for peers to say what they are.
    pub fn role_query(&self) -> Duration {
        Duration::from_secs(self.role_query_s)
    }

    /// How long a clean stop waits for mirrors.
    pub fn drain_timeout(&self) -> Duration {
        Duration::from_secs(self.drain_timeout_s)
    }
}

/// Whether `text` is HOST:PORT, HOST being a name or an address (IPv6 in brackets).
pub fn is_address(text: &str) -> bool {
    let Some((host, port)) = text.rsplit_once(':') else {
        return false;
    };
    let bare = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
    let host_good = match bare {
        Some(v6) => v6.parse::<std::net::Ipv6Addr>().is_ok(),
        None => {
            !host.is_empty()
                && host
                    .chars()
                    .all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_'))
        }
    };
    host_good && port.parse::<u16>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_init_writes_is_what_the_daemon_reads() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lockstep.toml");
        for store in [None, Some(PathBuf::from("/srv/it's \"here\""))] {
            let config = Config::new("alpha", "127.0.0.1:7420", store);
            config.create(&path).unwrap();
            assert_eq!(Config::load(&path).unwrap(), config);
            assert!(config.create(&path).is_err(), "a file is never overwritten");
            std::fs::remove_file(&path).unwrap();
        }
    }

    #[test]
    fn a_misspelt_key_or_a_bad_value_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lockstep.toml");
        let load = |text: &str| {
            std::fs::write(&path, text).unwrap();
            Config::load(&path).unwrap_err().to_string()
        };
        let head = "name = \"a\"\nlisten = \"[::]:7420\"\n";
        assert!(load(&format!("{head}comit_interval_ms = 5\n")).contains("comit_interval_ms"));
        assert!(load(&format!("{head}peer_timeout_s = 0\n")).contains("peer_timeout_s"));
        assert!(load(&format!("{head}store = \"relative\"\n")).contains("store"));
        assert!(load("name = \"a/b\"\nlisten = \"x:1\"\n").contains("name"));
        assert!(load("name = \"a\"\nlisten = \"7420\"\n").contains("listen"));
    }

    #[test]
    fn addresses() {
        for good in ["127.0.0.1:1", "[::1]:7420", "host-a.example:65535"] {
            assert!(is_address(good), "{good}");
        }
        for bad in ["", "host", ":1", "::1:7420", "[x]:1", "h:65536", "h h:1"] {
            assert!(!is_address(bad), "{bad}");
        }
    }
}
