//! The peers: whom this node trusts.
//!
//! Owns the rules for adding and removing one. Works on the catalogue alone, so that the command line can do it while
//! no daemon runs.

use super::catalogue::{Catalogue, CatalogueError, Peer, Role, Store};
use super::config::is_address;
use super::keys::Fingerprint;
use super::refusal::{Code, Refusal, check_name};
use serde_json::{Value, json};

/// Trusts a node. Adding the same one again changes its address; another key under a known name is refused.
pub fn add(
    store: &Store,
    ours: Option<Fingerprint>,
    name: &str,
    address: &str,
    fingerprint: &str,
) -> Result<Result<String, Refusal>, CatalogueError> {
    store.update(|catalogue| {
        check_name("peer", name)?;
        let invalid = |message: String, remedy: &str| Refusal::new(Code::Invalid, message, remedy);
        if !is_address(address) {
            let message = format!("{address:?} is no address");
            return Err(invalid(
                message,
                "give ADDR:PORT, as in the peer's lockstep.toml",
            ));
        }
        let fingerprint: Fingerprint = fingerprint.parse().map_err(|e| {
            let e: super::keys::NotAFingerprint = e;
            invalid(
                e.to_string(),
                "copy what `lockstep node fingerprint` prints on the peer",
            )
        })?;
        if ours == Some(fingerprint) {
            return Err(invalid(
                "this is the fingerprint of this very node".to_owned(),
                "run `lockstep node fingerprint` on the other node",
            ));
        }
        if let Some(other) = catalogue.peer_of(&fingerprint)
            && other != name
        {
            return Err(Refusal::new(
                Code::Exists,
                format!("the key is that of the peer {other}"),
                format!("lockstep peer remove {other}, then give the command again"),
            ));
        }
        match catalogue.peers.get_mut(name) {
            Some(known) if known.fingerprint != fingerprint => Err(Refusal::new(
                Code::Exists,
                format!("the peer {name} has another key ({})", known.fingerprint),
                format!("if its key was replaced: lockstep peer remove {name}, then add it again"),
            )),
            Some(known) => {
                known.address = address.to_owned();
                Ok(format!("peer {name} is known; its address is {address}"))
            }
            None => {
                let peer = Peer {
                    address: address.to_owned(),
                    fingerprint,
                };
                catalogue.peers.insert(name.to_owned(), peer);
                Ok(format!("peer {name} added"))
            }
        }
    })
}

/// Trusts a node no more; refused while a volume needs it.
pub fn remove(store: &Store, name: &str) -> Result<Result<String, Refusal>, CatalogueError> {
    store.update(|catalogue| {
        if !catalogue.peers.contains_key(name) {
            return Err(Refusal::no_peer(name));
        }
        for (volume, entry) in &catalogue.volumes {
            if entry.mirrors.contains(name) {
                return Err(Refusal::new(
                    Code::NotAllowed,
                    format!("volume {volume} has a mirror on {name}"),
                    format!("lockstep mirror delete {volume} {name}"),
                ));
            }
            if matches!(&entry.role, Role::Mirror { master } if master == name) {
                return Err(Refusal::new(
                    Code::NotAllowed,
                    format!("volume {volume} is a mirror of the one on {name}"),
                    format!("lockstep volume delete {volume} [--keep-parts]"),
                ));
            }
        }
        catalogue.peers.remove(name);
        Ok(format!("peer {name} removed"))
    })
}

/// Every peer, as JSON.
pub fn list(catalogue: &Catalogue) -> Value {
    let peers = catalogue.peers.iter().map(|(name, peer)| {
        json!({
            "name": name,
            "address": peer.address,
            "fingerprint": peer.fingerprint,
        })
    });
    peers.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store() -> (tempfile::TempDir, Store) {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("catalogue"), None).unwrap();
        (dir, store)
    }

    fn key(seed: &str) -> Fingerprint {
        Fingerprint::of_public_key(seed.as_bytes())
    }

    fn code(result: Result<Result<String, Refusal>, CatalogueError>) -> Option<Code> {
        result.unwrap().err().map(|r| r.code)
    }

    #[test]
    fn a_peer_is_its_key() {
        let (_dir, store) = store();
        let ours = Some(key("ours"));
        let add = |name: &str, address: &str, fp: Fingerprint| {
            code(super::add(&store, ours, name, address, &fp.to_string()))
        };
        assert_eq!(add("beta", "h:1", key("b")), None);
        assert_eq!(add("beta", "h:2", key("b")), None);
        assert_eq!(store.get().peers["beta"].address, "h:2");
        assert_eq!(add("beta", "h:2", key("other")), Some(Code::Exists));
        assert_eq!(add("gamma", "h:2", key("b")), Some(Code::Exists));
        assert_eq!(add("me", "h:2", key("ours")), Some(Code::Invalid));
        assert_eq!(add("x", "nowhere", key("x")), Some(Code::Invalid));
        assert_eq!(add("x/y", "h:1", key("x")), Some(Code::Invalid));
        assert_eq!(code(super::remove(&store, "beta")), None);
        assert_eq!(code(super::remove(&store, "beta")), Some(Code::NotFound));
    }
}
