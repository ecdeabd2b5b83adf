//! Why a mirror does not go on. Owns the causes of ERROR (severe: they last until somebody mends them) and of RESET
//! (minor: they pass), each with a stable code, a sentence for its cause and one for its remedy. Never decides which
//! of them a failure is: that is known where it happens.

use crate::spelled::spelled;

spelled! {
    /// A severe failure: the mirror is in ERROR until it is mended and the mirror restarted.
    pub enum Cause as "cause" {
        /// The mirror's node has another volume of this name.
        NameTaken = "name-taken",
        /// The mirror's node has less space than the parts need.
        TooLittleSpace = "too-little-space",
        /// The mirror's node does not accept the description of the parts.
        PartsRefused = "parts-refused",
        /// Parts that the mirror's node made before are not there.
        PartsMissing = "parts-missing",
        /// Another program holds the mirror's parts.
        PartsInUse = "parts-in-use",
        /// The master's volume has no room for the buffer.
        NoRoomForBuffer = "no-room-for-buffer",
        /// The two copies have no history in common.
        Unrelated = "unrelated",
        /// The two copies have a history in common, and each has gone on by itself.
        Diverged = "diverged",
        /// The mirror's disk is full.
        MirrorDiskFull = "mirror-disk-full",
        /// The mirror's disk reports errors.
        MirrorDiskFailing = "mirror-disk-failing",
        /// One node does not know, or does not accept, the key of the other.
        KeyRefused = "key-refused",
        /// The two nodes speak no common version of the protocol.
        VersionMismatch = "version-mismatch",
        /// The volume uses a feature that the mirror's node can not write.
        FeatureUnsupported = "feature-unsupported",
        /// The other node serves this volume as its master.
        TwoMasters = "two-masters",
        /// The volume on the master is damaged.
        MasterDamaged = "master-damaged",
        /// The copy on the mirror is damaged.
        MirrorDamaged = "mirror-damaged",
    }
}

impl Cause {
    /// What happened, in one sentence.
    pub const fn sentence(self) -> &'static str {
        match self {
            Cause::NameTaken => "The mirror's node has another volume of this name.",
            Cause::TooLittleSpace => {
                "The mirror's node has less space than the parts of this volume need."
            }
            Cause::PartsRefused => {
                "The mirror's node does not accept the description of the parts."
            }
            Cause::PartsMissing => {
                "Parts that the mirror's node has made before are not where they were."
            }
            Cause::PartsInUse => "Another program holds the mirror's parts.",
            Cause::NoRoomForBuffer => "The master's volume has no room for the buffer.",
            Cause::Unrelated => {
                "The mirror's copy belongs to another volume, or shares no history with this one."
            }
            Cause::Diverged => {
                "The two copies have a history in common, but each has changes that the other lacks."
            }
            Cause::MirrorDiskFull => "The disk of the mirror's node is full.",
            Cause::MirrorDiskFailing => "The disk of the mirror's node reports errors.",
            Cause::KeyRefused => {
                "One of the two nodes does not know the other, or the other shows a different key."
            }
            Cause::VersionMismatch => "The two nodes have no version of the protocol in common.",
            Cause::FeatureUnsupported => {
                "The volume uses an ext4 feature that the mirror's node can not write."
            }
            Cause::TwoMasters => "The other node serves this volume as its master, too.",
            Cause::MasterDamaged => "The volume on the master is damaged.",
            Cause::MirrorDamaged => "The copy on the mirror is damaged.",
        }
    }

    /// What to do about it, in one sentence. `lockstep mirror restart NAME PEER` follows where it is not said.
    pub const fn remedy(self) -> &'static str {
        match self {
            Cause::NameTaken => {
                "If that volume is not needed, delete it there with `lockstep volume delete NAME`, or use another node; then restart the mirror."
            }
            Cause::TooLittleSpace => {
                "Make space in the store directory of the mirror's node, or name a larger one in its lockstep.toml; then restart the mirror."
            }
            Cause::PartsRefused => {
                "Read the reason in the events of the mirror's node, offer it devices or a store directory that fit; then restart the mirror."
            }
            Cause::PartsMissing => {
                "Mount the store of the mirror's node or bring the devices back; if they are lost for good, use `lockstep volume delete NAME` there; then restart the mirror."
            }
            Cause::PartsInUse => {
                "Unmount the parts on the mirror's node or stop the program that holds them; then restart the mirror."
            }
            Cause::NoRoomForBuffer => {
                "Unmount the volume, give it a buffer with `lockstep volume tune NAME --buffer SIZE`; then restart the mirror."
            }
            Cause::Unrelated => {
                "Check that the right peer was named; to give up what it has, use `lockstep volume delete NAME` there; then restart the mirror."
            }
            Cause::Diverged => {
                "Compare what each side would lose as status shows it, choose the copy to keep, discard the other with the command shown; then restart the mirror."
            }
            Cause::MirrorDiskFull => {
                "Make space on the disk of the mirror's node; then restart the mirror, which goes on with what it has."
            }
            Cause::MirrorDiskFailing => {
                "Replace the disk of the mirror's node; then restart the mirror."
            }
            Cause::KeyRefused => {
                "Compare `lockstep node fingerprint` on each node with `lockstep peer list` on the other, add the peer again if it is the right one; then restart the mirror."
            }
            Cause::VersionMismatch => {
                "Bring both nodes to the same release of Lockstep; then restart the mirror."
            }
            Cause::FeatureUnsupported => {
                "Bring the mirror's node to the release of the master; then restart the mirror."
            }
            Cause::TwoMasters => {
                "Decide which node is to be the master and unmount the volume on the other; then restart the mirror."
            }
            Cause::MasterDamaged => {
                "Unmount the volume, look at it with `lockstep volume check NAME`, repair it with e2fsck(8); then restart the mirror."
            }
            Cause::MirrorDamaged => {
                "Restart the mirror: its copy is compared with the master's by checksums and repaired; look at its disk if it comes up again."
            }
        }
    }
}

spelled! {
    /// A minor failure: the step is tried again by itself.
    pub enum MinorCause as "minor cause" {
        /// No answer came in time.
        TimedOut = "timed-out",
        /// The mirror's node is up, but not yet ready.
        PeerStarting = "peer-starting",
        /// A frame was damaged or out of place.
        BadFrame = "bad-frame",
        /// The mirror's parts are in use by a step that has not ended yet.
        PartsBusy = "parts-busy",
        /// The master's log is busy.
        BufferBusy = "buffer-busy",
        /// A read or write failed that may succeed next time.
        TransientIo = "transient-io",
        /// The mirror's node has no room, or no room left, to stage a resync.
        NoStaging = "no-staging",
    }
}

impl MinorCause {
    /// What happened, in one sentence.
    pub const fn sentence(self) -> &'static str {
        match self {
            MinorCause::TimedOut => "The mirror's node did not answer in time.",
            MinorCause::PeerStarting => "The mirror's node is up, but not ready yet.",
            MinorCause::BadFrame => "A frame arrived damaged or out of place.",
            MinorCause::PartsBusy => {
                "The mirror's parts are still held by something that is about to end."
            }
            MinorCause::BufferBusy => "The master's log could not register the mirror just now.",
            MinorCause::TransientIo => "A read or a write failed in a way that may pass.",
            MinorCause::NoStaging => "The mirror's node has no room to stage this resync.",
        }
    }

    /// What to do if it does not pass by itself, in one sentence.
    pub const fn remedy(self) -> &'static str {
        match self {
            MinorCause::TimedOut => {
                "None is needed; if it lasts, look at the load of the mirror's node and of the network."
            }
            MinorCause::PeerStarting => {
                "None is needed; if it lasts, look at the log of the mirror's node."
            }
            MinorCause::BadFrame => {
                "None is needed; if it lasts, look for a device on the way that changes packets."
            }
            MinorCause::PartsBusy => {
                "None is needed; if it lasts, look for a program on the mirror's node that holds the parts."
            }
            MinorCause::BufferBusy => {
                "None is needed; if it lasts, look at the load of the master's disk."
            }
            MinorCause::TransientIo => {
                "None is needed; if it lasts, look at the kernel's log on both nodes."
            }
            MinorCause::NoStaging => {
                "None is needed: the next resync goes home directly; to have it staged, make room where `staging` in lockstep.toml points."
            }
        }
    }
}
