//! What each node has, in its newest version, and what is known about who may speak.
//!
//! foca owns its codec and its broadcast handler, so what they and the overlay share is behind a lock that is
//! never contended: all of it runs within [`Overlay::handle`](crate::Overlay::handle).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use foca::{BroadcastHandler, Invalidates};
use libgrid::ids::NodeId;
use libgrid::node::NodeInfo;
use libgrid::wire;
use serde::{Deserialize, Serialize};

use crate::identity::Id;

/// Limits of a [`NodeInfo`], as its documentation promises them.
const MAX_NAME: usize = 64;
const MAX_VERSION: usize = 32;
const MAX_ADDRS: usize = 8;

/// A version of a node's information: the agent's start, then a counter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Version {
    pub(crate) start: u64,
    pub(crate) count: u64,
}

/// What a node said about itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Told {
    pub(crate) version: Version,
    pub(crate) info: NodeInfo,
}

/// What the overlay, the codec and the broadcast handler share.
#[derive(Clone)]
pub(crate) struct Shared(Arc<Mutex<Facts>>);

pub(crate) struct Facts {
    me: NodeId,
    told: BTreeMap<NodeId, Told>,
    /// Nodes whose information changed since it was last asked.
    changed: BTreeSet<NodeId>,
    pub(crate) evicted: BTreeSet<NodeId>,
    /// The highest incarnation of ours that others know: we must not be below it.
    pub(crate) outbid: u64,
    /// The start of a life of ours whose information others take for newer than ours.
    pub(crate) outtold: Option<u64>,
}

/// Our own text is no information, or not one that a node can have said.
#[derive(Debug, thiserror::Error)]
#[error("a node's information could not be understood: {0}")]
pub(crate) struct InfoError(String);

/// A broadcast about a node replaces those about the same node.
pub(crate) struct About(NodeId);

impl Invalidates for About {
    fn invalidates(&self, other: &Self) -> bool {
        self.0 == other.0
    }
}

impl Told {
    pub(crate) fn is_sound(&self) -> bool {
        let info = &self.info;
        info.node != NodeId(0)
            && info.name.len() <= MAX_NAME
            && info.version.len() <= MAX_VERSION
            && info.addrs.len() <= MAX_ADDRS
    }
}

/// Cuts what is over the limits, which a host's name may be.
pub(crate) fn trim(mut info: NodeInfo) -> NodeInfo {
    let cut = |text: &mut String, max: usize| text.truncate(text.floor_char_boundary(max));
    cut(&mut info.name, MAX_NAME);
    cut(&mut info.version, MAX_VERSION);
    info.addrs.truncate(MAX_ADDRS);
    info
}

// === impl Shared ===

impl Shared {
    pub(crate) fn new(me: NodeId) -> Self {
        Self(Arc::new(Mutex::new(Facts {
            me,
            told: BTreeMap::new(),
            changed: BTreeSet::new(),
            evicted: BTreeSet::new(),
            outbid: 0,
            outtold: None,
        })))
    }

    pub(crate) fn facts(&self) -> MutexGuard<'_, Facts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Facts {
    pub(crate) fn told(&self, node: NodeId) -> Option<&Told> {
        self.told.get(&node)
    }

    /// Keeps what a node said if it is newer than what is known.
    pub(crate) fn learn(&mut self, told: Told) -> bool {
        let node = told.info.node;
        if self.evicted.contains(&node) {
            return false;
        }
        if self.told.get(&node).is_some_and(|known| known.version >= told.version) {
            return false;
        }
        self.told.insert(node, told);
        self.changed.insert(node);
        true
    }

    /// The same for what others say: nobody tells us what we are.
    pub(crate) fn learn_from_others(&mut self, told: Told) -> bool {
        if told.info.node == self.me {
            if self.told.get(&self.me).is_some_and(|ours| told.version > ours.version) {
                self.outtold = self.outtold.max(Some(told.version.start));
            }
            return false;
        }
        self.learn(told)
    }

    /// Notes what others believe of an identity; ours may be of a life that we forgot.
    pub(crate) fn note(&mut self, id: &Id) {
        if id.node == self.me {
            self.outbid = self.outbid.max(id.incarnation);
        }
    }

    pub(crate) fn forget(&mut self, node: NodeId) {
        self.told.remove(&node);
        self.changed.remove(&node);
    }

    pub(crate) fn take_changed(&mut self) -> BTreeSet<NodeId> {
        std::mem::take(&mut self.changed)
    }
}

impl BroadcastHandler<Id> for Shared {
    type Key = About;
    type Error = InfoError;

    fn receive_item(&mut self, data: &[u8], sender: Option<&Id>) -> Result<Option<About>, InfoError> {
        let told: Told = wire::decode(data).map_err(|error| InfoError(error.to_string()))?;
        if !told.is_sound() {
            return Err(InfoError("it is over the limits".to_owned()));
        }
        let node = told.info.node;
        // Without a sender it is our own, stored already: it has only to be spread.
        let spread = sender.is_none() || self.facts().learn_from_others(told);
        Ok(spread.then_some(About(node)))
    }
}
