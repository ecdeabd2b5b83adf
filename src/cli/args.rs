//! The command table: parsing, help, and each man page's SYNOPSIS and OPTIONS come from it.
//!
//! Owns the names of commands and options. Never does anything. A test compares the man pages with it.

use super::size::{parse_rate, parse_size};
use crate::node::protocol::{Compress, OnFull, Repair, Resync, SyncMode, Wishes};
use clap::{Args, Parser, Subcommand};
use std::path::PathBuf;

/// Replicates ext4 volumes, live, from a master to read-only mirrors.
///
/// Every node runs one daemon (`lockstep node run`); all other commands talk to it over the socket in its state
/// directory. Sizes are binary: 64M is 64 x 1048576 bytes.
#[derive(Debug, Parser)]
#[command(
    name = "lockstep",
    version,
    propagate_version = true,
    disable_help_subcommand = true
)]
pub struct Cli {
    /// State directory of the node.
    #[arg(
        long,
        value_name = "DIR",
        global = true,
        env = "LOCKSTEP_STATE",
        hide_env_values = true,
        default_value = crate::node::state_dir::DEFAULT_STATE_DIR
    )]
    pub state: PathBuf,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make a node, run its daemon, show its fingerprint.
    #[command(subcommand)]
    Node(NodeCommand),
    /// Say which other nodes this one talks to.
    #[command(subcommand)]
    Peer(PeerCommand),
    /// Make, adopt, inspect, tune and delete volumes.
    #[command(subcommand)]
    Volume(VolumeCommand),
    /// Mount a volume: read-write on its master, read-only on a mirror.
    ///
    /// The mount is remembered: it comes back when the daemon is started again, and after somebody's `umount -l`. On a
    /// mirror that is not in sync yet it is accepted, and appears as soon as the copy is consistent. Giving the command
    /// again changes nothing.
    Mount(MountArgs),
    /// Unmount a volume and forget its mount. Replication goes on.
    Umount(UmountArgs),
    /// Create and control the mirrors of a volume.
    #[command(subcommand)]
    Mirror(MirrorCommand),
    /// Show volumes and mirrors: state, reason, what is left to do.
    Status(StatusArgs),
    /// Show what mirrors are doing, with bars on a terminal and lines elsewhere, until they do no more.
    ///
    /// Ends when every mirror shown is in INSYNC, IDLE or ERROR.
    Progress(ProgressArgs),
    /// Print the history of events, and with --follow what happens from then on.
    Events(EventsArgs),
    /// Wait until a mirror is in a state.
    ///
    /// Exits with 0 when the state is reached, with 4 when the time has passed, and with 5 when the mirror is in ERROR
    /// while another state was asked for. INSYNC counts only over a living link.
    Wait(WaitArgs),
    /// Compare a volume with its mirrors, block by block, at one transaction.
    ///
    /// All allocated blocks outside the journal are compared by checksum. Exits with 0 when they are equal and with 6
    /// when they differ; what differs is named: files and bytes of them.
    Verify(VerifyArgs),
    /// Hand a volume over to one of its mirrors, which becomes the master.
    ///
    /// Given on the master, whose mirror on PEER has to be in INSYNC. Nothing is copied again and nothing acknowledged is
    /// lost; each step is shown with its duration, and the pause of writes at the end. If a step fails, this node is the
    /// master as before.
    Switchover(SwitchoverArgs),
    /// Make this node, a mirror, the master of a volume.
    ///
    /// For a master that is gone; while it is there, use switchover. Everything that the mirror has acknowledged is kept;
    /// the mount becomes read-write. Other mirrors follow by themselves, and so does the old master when it comes back.
    /// Giving the command again changes nothing.
    Promote(PromoteArgs),
    /// Make this node, an old master, a mirror of the new one.
    ///
    /// An old master that comes back does so by itself when it is started. This is for the cases that somebody has to
    /// decide: two nodes have been master, each with changes that the other lacks. What only this node has is kept aside
    /// first, as far as it is known; see lost.
    Rejoin(RejoinArgs),
    /// Look at what this node had to give up when another one became the master, and take files out of it.
    #[command(subcommand)]
    Lost(LostCommand),
    /// Show everything on this machine: two nodes, a volume, its mirror, failures and their recovery.
    ///
    /// Works in a temporary directory, as root or as an ordinary user. Where nothing can be mounted (no /dev/fuse, say) it
    /// tells so, and does the same steps without daemons and mounts.
    Demo(DemoArgs),
}

/// `lockstep node`
#[derive(Debug, Subcommand)]
pub enum NodeCommand {
    /// Make the state directory: key pair, lockstep.toml, empty catalogue.
    Init(NodeInitArgs),
    /// Run the daemon in the foreground. Mounts that were there before come back.
    ///
    /// SIGTERM and SIGINT close every volume, mounted or not, and end it.
    Run,
    /// Print this node's fingerprint, one bare line, for `peer add` on other nodes.
    Fingerprint,
}

/// `lockstep node init`
#[derive(Debug, Args)]
pub struct NodeInitArgs {
    /// Name of the node, as its peers see it.
    #[arg(long, value_name = "NAME")]
    pub name: String,
    /// Address and port for other nodes.
    #[arg(long, value_name = "ADDR:PORT")]
    pub listen: String,
    /// Directory in which mirrors of other nodes' volumes are made. Without one this node takes no mirrors but on
    /// devices offered in lockstep.toml.
    #[arg(long, value_name = "DIR")]
    pub store: Option<PathBuf>,
}

/// `lockstep peer`
#[derive(Debug, Subcommand)]
pub enum PeerCommand {
    /// Trust another node: it may connect, and mirrors may be made on it. Do the same there.
    Add(PeerAddArgs),
    /// List the peers.
    List(ListArgs),
    /// Trust a node no more.
    Remove(PeerRemoveArgs),
}

/// `lockstep peer add`
#[derive(Debug, Args)]
pub struct PeerAddArgs {
    /// Name of the peer.
    #[arg(value_name = "NAME")]
    pub name: String,
    /// Where it listens.
    #[arg(value_name = "ADDR:PORT")]
    pub address: String,
    /// What `lockstep node fingerprint` prints there.
    #[arg(long, value_name = "FP")]
    pub fingerprint: String,
}

/// `lockstep peer remove`
#[derive(Debug, Args)]
pub struct PeerRemoveArgs {
    /// Name of the peer.
    #[arg(value_name = "NAME")]
    pub name: String,
}

/// `lockstep peer list`, `lockstep volume list`
#[derive(Debug, Args)]
pub struct ListArgs {
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// `lockstep volume`
#[derive(Debug, Subcommand)]
pub enum VolumeCommand {
    /// Make a volume: its parts, and an ext4 file system over them.
    Create(VolumeCreateArgs),
    /// Take an existing ext4 file system as a volume and leave it as it is.
    Adopt(VolumeAdoptArgs),
    /// List the volumes of this node, as master or as mirror.
    List(ListArgs),
    /// Show everything about a volume.
    Show(VolumeShowArgs),
    /// Check a volume that is not mounted, with lockstep's own checks and with e2fsck -fn. Changes nothing.
    Check(VolumeCheckArgs),
    /// Change the size of a volume's buffer, which is its journal. The volume must not be mounted.
    Tune(VolumeTuneArgs),
    /// Forget a volume and delete the parts that lockstep made.
    ///
    /// Parts that were there before, and block devices, are never deleted. A volume that is mounted or has mirrors is
    /// not deleted.
    Delete(VolumeDeleteArgs),
}

/// `lockstep volume create`
#[derive(Debug, Args)]
pub struct VolumeCreateArgs {
    /// Name of the volume.
    #[arg(value_name = "NAME")]
    pub name: String,
    /// A part: a file, created if missing, or a block device. Several make one address space, in this order.
    #[arg(long = "part", value_name = "PATH=SIZE", required = true, value_parser = parse_part)]
    pub parts: Vec<(PathBuf, u64)>,
    /// Bytes of a block: 1024, 2048 or 4096; 4096 unless given.
    #[arg(long, value_name = "N")]
    pub block_size: Option<u32>,
    /// Size of the buffer. 10 % of the volume unless given, at least 100M from 1G upwards, at most 4G.
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub buffer: Option<u64>,
}

/// `lockstep volume adopt`
#[derive(Debug, Args)]
pub struct VolumeAdoptArgs {
    /// Name of the volume.
    #[arg(value_name = "NAME")]
    pub name: String,
    /// A part: a file or a block device. Several make one address space, in this order.
    #[arg(long = "part", value_name = "PATH", required = true)]
    pub parts: Vec<PathBuf>,
    /// New size of the buffer. Unless given, the journal stays as it is.
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub buffer: Option<u64>,
}

/// `lockstep volume show`
#[derive(Debug, Args)]
pub struct VolumeShowArgs {
    /// Name of the volume.
    #[arg(value_name = "NAME")]
    pub name: String,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// `lockstep volume check`
#[derive(Debug, Args)]
pub struct VolumeCheckArgs {
    /// Name of the volume.
    #[arg(value_name = "NAME")]
    pub name: String,
}

/// `lockstep volume tune`
#[derive(Debug, Args)]
pub struct VolumeTuneArgs {
    /// Name of the volume.
    #[arg(value_name = "NAME")]
    pub name: String,
    /// New size of the buffer.
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub buffer: u64,
}

/// `lockstep volume delete`
#[derive(Debug, Args)]
pub struct VolumeDeleteArgs {
    /// Name of the volume.
    #[arg(value_name = "NAME")]
    pub name: String,
    /// Only forget the volume; its parts stay.
    #[arg(long)]
    pub keep_parts: bool,
}

/// `lockstep mount`
#[derive(Debug, Args)]
pub struct MountArgs {
    /// Name of the volume.
    #[arg(value_name = "NAME")]
    pub name: String,
    /// An existing directory.
    #[arg(value_name = "DIR")]
    pub dir: PathBuf,
    /// Refuse writes, on a master too.
    #[arg(long)]
    pub read_only: bool,
}

/// `lockstep umount`
#[derive(Debug, Args)]
pub struct UmountArgs {
    /// Name of the volume.
    #[arg(value_name = "NAME")]
    pub name: String,
}

/// `lockstep mirror`
#[derive(Debug, Subcommand)]
pub enum MirrorCommand {
    /// Make a mirror of a volume on a peer. The volume may be mounted or not.
    Create(MirrorTreatedArgs),
    /// Change how a mirror is treated, while it lives. What is not given stays as it is.
    ///
    /// Unless changed here, lockstep.toml decides, and what it leaves open is as said below.
    Set(MirrorTreatedArgs),
    /// Stop shipping to a mirror (IDLE). The buffer fills; writers are unaffected.
    Pause(MirrorArgs),
    /// Go on after a pause.
    Continue(MirrorArgs),
    /// Walk again from NEW and reuse what the mirror has; the way out of ERROR once its cause is mended.
    Restart(MirrorArgs),
    /// Show what would be done if the mirror called now, and why: which rule decides, what would be copied, and where
    /// histories diverged what each side would lose. Nothing is done.
    Compare(MirrorArgs),
    /// Forget a mirror. Its parts stay on the peer until `volume delete` is given there.
    Delete(MirrorArgs),
}

/// `lockstep mirror create` and `lockstep mirror set`
#[derive(Debug, Args)]
pub struct MirrorTreatedArgs {
    /// Name of the volume.
    #[arg(value_name = "NAME")]
    pub name: String,
    /// Name of the peer.
    #[arg(value_name = "PEER")]
    pub peer: String,
    /// How it is to be treated.
    #[command(flatten)]
    pub policy: PolicyArgs,
}

/// How a mirror is treated.
#[derive(Debug, Args)]
pub struct PolicyArgs {
    /// When fsync returns: once the change is durable here (async), or also in the mirror's journal (sync). [unless
    /// changed: async]
    #[arg(long, value_name = "async|sync", value_parser = parse_mode)]
    pub mode: Option<SyncMode>,
    /// In sync mode: writers wait while the mirror is away, until it is back or is let go (pause, delete, --strict no).
    /// [unless changed: no]
    #[arg(long, value_name = "yes|no", value_parser = parse_yes)]
    pub strict: Option<bool>,
    /// When the buffer gets full: the mirror falls to its dirty map (crack), or writers are slowed before that, as long
    /// as the mirror is in INSYNC (throttle). [unless changed: crack]
    #[arg(long, value_name = "crack|throttle", value_parser = parse_on_full)]
    pub on_full: Option<OnFull>,
    /// With throttle: when the mirror lacks more transactions than this, fsync waits for it as in sync mode, until it
    /// lacks half as many. [unless changed: 4096]
    #[arg(long, value_name = "N")]
    pub async_limit: Option<u64>,
    /// With throttle: bytes of the buffer that the mirror may hold before writers are slowed; auto: three quarters of it.
    #[arg(long, value_name = "BYTES|auto", value_parser = parse_water)]
    pub high_water: Option<u64>,
    /// With throttle: bytes at which writers are no longer slowed; auto: half of the buffer.
    #[arg(long, value_name = "BYTES|auto", value_parser = parse_water)]
    pub low_water: Option<u64>,
    /// Seconds without an acknowledgement after which the mirror counts as lost. [unless changed: 6]
    #[arg(long, value_name = "SECONDS", value_parser = parse_timeout)]
    pub timeout: Option<u64>,
    /// Cap for copying, bytes a second (K M G T), or none. Unless given, copying takes what the line has left.
    #[arg(long, value_name = "BYTES_PER_S|none", value_parser = parse_cap)]
    pub rate: Option<u64>,
    /// How payloads are packed on their way; auto: as is found to pay. [unless changed: auto]
    #[arg(long, value_name = "auto|lz4|zstd|off", value_parser = parse_compress)]
    pub compress: Option<Compress>,
    /// Where a resync writes: home (direct), or beside the copy, which stays readable meanwhile (staged, where space
    /// allows). [unless changed: staged]
    #[arg(long, value_name = "direct|staged", value_parser = parse_resync)]
    pub resync: Option<Resync>,
}

impl PolicyArgs {
    /// As the daemon takes them.
    pub fn wishes(&self) -> Wishes {
        Wishes {
            mode: self.mode,
            strict: self.strict,
            on_full: self.on_full,
            async_limit: self.async_limit,
            high_water: self.high_water,
            low_water: self.low_water,
            timeout_ms: self.timeout,
            rate: self.rate,
            compress: self.compress,
            resync: self.resync,
        }
    }
}

fn one_of<T: Copy>(text: &str, words: &[(&str, T)]) -> Result<T, String> {
    let found = words.iter().find(|(word, _)| *word == text);
    found.map(|(_, value)| *value).ok_or_else(|| {
        let words: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
        format!("it is one of {}", words.join(", "))
    })
}

fn parse_mode(text: &str) -> Result<SyncMode, String> {
    one_of(
        text,
        &[("async", SyncMode::Async), ("sync", SyncMode::Sync)],
    )
}

fn parse_yes(text: &str) -> Result<bool, String> {
    one_of(text, &[("yes", true), ("no", false)])
}

fn parse_on_full(text: &str) -> Result<OnFull, String> {
    one_of(
        text,
        &[("crack", OnFull::Crack), ("throttle", OnFull::Throttle)],
    )
}

fn parse_compress(text: &str) -> Result<Compress, String> {
    let words = [
        ("auto", Compress::Auto),
        ("lz4", Compress::Lz4),
        ("zstd", Compress::Zstd),
        ("off", Compress::Off),
    ];
    one_of(text, &words)
}

fn parse_resync(text: &str) -> Result<Resync, String> {
    one_of(
        text,
        &[("direct", Resync::Direct), ("staged", Resync::Staged)],
    )
}

fn parse_water(text: &str) -> Result<u64, String> {
    match text {
        "auto" => Ok(0),
        _ => parse_size(text),
    }
}

fn parse_cap(text: &str) -> Result<u64, String> {
    match text {
        "none" => Ok(0),
        _ => parse_rate(text),
    }
}

/// Milliseconds of seconds.
fn parse_timeout(text: &str) -> Result<u64, String> {
    let seconds: f64 = text
        .trim_end_matches('s')
        .parse()
        .map_err(|_| "a number of seconds, as 6 or 0.5".to_owned())?;
    match (0.1..=3600.0).contains(&seconds) {
        true => Ok((seconds * 1000.0).round() as u64),
        false => Err("from 0.1 to 3600 seconds".to_owned()),
    }
}

/// `lockstep mirror pause`, `continue`, `restart`, `delete`
#[derive(Debug, Args)]
pub struct MirrorArgs {
    /// Name of the volume.
    #[arg(value_name = "NAME")]
    pub name: String,
    /// Name of the peer.
    #[arg(value_name = "PEER")]
    pub peer: String,
}

/// `lockstep status`
#[derive(Debug, Args)]
pub struct StatusArgs {
    /// Only this volume.
    #[arg(value_name = "NAME")]
    pub name: Option<String>,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
    /// Show it again every second, until interrupted.
    #[arg(long)]
    pub watch: bool,
}

/// `lockstep progress`
#[derive(Debug, Args)]
pub struct ProgressArgs {
    /// Only this volume.
    #[arg(value_name = "NAME")]
    pub name: Option<String>,
    /// Only the mirror on this peer.
    #[arg(value_name = "PEER", requires = "name")]
    pub peer: Option<String>,
}

/// `lockstep events`
#[derive(Debug, Args)]
pub struct EventsArgs {
    /// Go on with what happens, until interrupted.
    #[arg(long)]
    pub follow: bool,
    /// Print one JSON object a line.
    #[arg(long)]
    pub json: bool,
}

/// `lockstep wait`
#[derive(Debug, Args)]
pub struct WaitArgs {
    /// Name of the volume.
    #[arg(value_name = "NAME")]
    pub name: String,
    /// Name of the peer; on the mirror's node, the master's.
    #[arg(value_name = "PEER")]
    pub peer: String,
    /// The state, as lockstep-states(7) lists them.
    #[arg(value_name = "STATE", ignore_case = true, value_parser = state_names())]
    pub wanted: String,
    /// Give up after this many seconds. For ever unless given.
    #[arg(long, value_name = "S", value_parser = parse_seconds)]
    pub timeout: Option<std::time::Duration>,
}

/// `lockstep verify`
#[derive(Debug, Args)]
pub struct VerifyArgs {
    /// Name of the volume.
    #[arg(value_name = "NAME")]
    pub name: String,
    /// Only the mirror on this peer; all mirrors unless given.
    #[arg(value_name = "PEER")]
    pub peer: Option<String>,
    /// Repair what differs: the mirror's copy unless the master's is named.
    #[arg(long, value_name = "COPY", value_enum, num_args = 0..=1, require_equals = true, default_missing_value = "mirror")]
    pub repair: Option<Repair>,
    /// Read no faster than this many bytes a second.
    #[arg(long, value_name = "BYTES_PER_S", value_parser = parse_rate)]
    pub rate: Option<u64>,
}

/// `lockstep switchover`
#[derive(Debug, Args)]
pub struct SwitchoverArgs {
    /// Name of the volume.
    #[arg(value_name = "NAME")]
    pub name: String,
    /// The peer that is to be the master.
    #[arg(value_name = "PEER")]
    pub peer: String,
}

/// `lockstep promote`
#[derive(Debug, Args)]
pub struct PromoteArgs {
    /// Name of the volume.
    #[arg(value_name = "NAME")]
    pub name: String,
    /// Promote also a copy that is incomplete, inconsistent or changed from outside, or whose master is connected. What
    /// is lost is said first.
    #[arg(long)]
    pub force: bool,
}

/// `lockstep rejoin`
#[derive(Debug, Args)]
pub struct RejoinArgs {
    /// Name of the volume.
    #[arg(value_name = "NAME")]
    pub name: String,
    /// The peer that is its master.
    #[arg(value_name = "MASTER")]
    pub master: String,
    /// Give up what only this node has, whatever it is. This node's own name, so that nobody gives up the wrong copy.
    #[arg(long, value_name = "THISNODE")]
    pub discard: Option<String>,
}

/// `lockstep lost`
#[derive(Debug, Subcommand)]
pub enum LostCommand {
    /// List what was kept aside.
    List(LostListArgs),
    /// Show which files, and which of their bytes, were kept aside.
    Show(LostShowArgs),
    /// Write the files of which contents were kept aside below a directory.
    ///
    /// Only what was changed is there; the rest of each file is a hole.
    Extract(LostExtractArgs),
}

/// `lockstep lost list`
#[derive(Debug, Args)]
pub struct LostListArgs {
    /// Only of this volume.
    #[arg(value_name = "NAME")]
    pub name: Option<String>,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// `lockstep lost show`
#[derive(Debug, Args)]
pub struct LostShowArgs {
    /// Name of the volume.
    #[arg(value_name = "NAME")]
    pub name: String,
    /// As list names it.
    #[arg(value_name = "ID")]
    pub id: String,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// `lockstep lost extract`
#[derive(Debug, Args)]
pub struct LostExtractArgs {
    /// Name of the volume.
    #[arg(value_name = "NAME")]
    pub name: String,
    /// As list names it.
    #[arg(value_name = "ID")]
    pub id: String,
    /// Where the files go; a file that is there already is not written over.
    #[arg(value_name = "DIR")]
    pub dir: PathBuf,
}

/// `lockstep demo`
#[derive(Debug, Args)]
pub struct DemoArgs {
    /// How much is copied in, at most; each copy takes a little more.
    #[arg(long, value_name = "SIZE", default_value = "200M", value_parser = parse_size)]
    pub size: u64,
    /// Leave both nodes running and both mounts up, and say what to try; without mounts, leave both copies.
    #[arg(long)]
    pub keep: bool,
}

fn parse_part(text: &str) -> Result<(PathBuf, u64), String> {
    let (path, size) = text
        .rsplit_once('=')
        .ok_or("a part is PATH=SIZE, as /srv/data.img=20G")?;
    if path.is_empty() {
        return Err("a part is PATH=SIZE, and the path is empty".to_owned());
    }
    Ok((PathBuf::from(path), parse_size(size)?))
}

fn parse_seconds(text: &str) -> Result<std::time::Duration, String> {
    let seconds: f64 = text
        .parse()
        .map_err(|_| "a number of seconds is expected")?;
    // A year: longer waits are no waits, and an f64 of any size does not fit a Duration.
    if !(0.0..=31_536_000.0).contains(&seconds) {
        return Err("between 0 and 31536000 seconds".to_owned());
    }
    Ok(std::time::Duration::from_secs_f64(seconds))
}

fn state_names() -> clap::builder::PossibleValuesParser {
    states::State::ALL
        .iter()
        .map(|s| s.word())
        .collect::<Vec<_>>()
        .into()
}
