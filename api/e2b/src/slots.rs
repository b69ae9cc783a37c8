//! Who has a connection. Clients that have shown nothing yet, *strangers*, give way to each other
//! and cannot take the last quarter of the places; a place that an accepted key or token has made
//! *known* is kept.
//!
//! ```text
//!               a place is free ──────────────────────────────> stranger ── key, token ──> known
//! newcomer ──┬─ three quarters are strangers ─ a stranger goes ──^
//!            ├─ all are taken ─ a known one that rests goes ─────^
//!            └─ all are taken and busy ─ waits in the listen queue
//! ```
//!
//! Who goes is the oldest of the address that has most of them: a flood pushes out its own.

use crate::pace::{BusyConnection, ConnectionPace};
use hyper::{Request, Version};
use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use tokio::sync::Notify;

/// The share of all places that strangers cannot take.
const RESERVE: usize = 4;
/// The share of all places that strangers may take from known connections that rest.
const FLOOR: usize = 16;

/// How many connections there may be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SlotLimits {
    /// In all.
    pub(crate) all: usize,
    /// From one address; 0: as many as there are.
    pub(crate) peer: usize,
}

/// Why a newcomer has no place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SlotRefusal {
    /// All are taken by known clients with requests under way.
    Full,
    /// Its address has as many as it may, all of them known.
    Peer,
}

/// All connections.
#[derive(Debug)]
pub(crate) struct ConnectionTable {
    limits: SlotLimits,
    inner: Mutex<TableInner>,
    freed: Notify,
}

#[derive(Debug, Default)]
struct TableInner {
    next: u64,
    strangers: usize,
    all: usize,
    peers: HashMap<IpAddr, PeerSlots>,
}

/// The connections of one address, the oldest first.
#[derive(Debug, Default)]
struct PeerSlots {
    strangers: BTreeMap<u64, Arc<ConnectionSlot>>,
    known: BTreeMap<u64, Arc<ConnectionSlot>>,
}

/// One connection in the table, for as long as it is served.
#[derive(Debug)]
pub(crate) struct ConnectionSlot {
    id: u64,
    peer: IpAddr,
    /// The client's own, where `peer` is its network's.
    address: IpAddr,
    pub(crate) pace: Arc<ConnectionPace>,
    closed: Notify,
}

impl ConnectionSlot {
    /// Ready when it has to give way.
    pub(crate) async fn given_up(&self) {
        self.closed.notified().await;
    }
}

/// A connection's place in the table, until it has ended, and what it was upgraded to.
#[derive(Debug)]
pub(crate) struct ConnectionPlace {
    pub(crate) table: Arc<ConnectionTable>,
    pub(crate) slot: Arc<ConnectionSlot>,
    /// The client speaks TLS.
    pub(crate) tls: bool,
}

impl Drop for ConnectionPlace {
    fn drop(&mut self) {
        self.table.leave(&self.slot);
    }
}

/// What a request knows of its connection.
#[derive(Clone, Debug)]
pub(crate) struct RequestConnection(Weak<ConnectionPlace>);

impl RequestConnection {
    pub(crate) fn new(place: &Arc<ConnectionPlace>) -> Self {
        Self(Arc::downgrade(place))
    }

    /// Its place; `None` once the connection has ended.
    fn of(extensions: &hyper::http::Extensions) -> Option<Arc<ConnectionPlace>> {
        extensions.get::<Self>()?.0.upgrade()
    }
}

/// Where a request came from.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ClientFacts {
    pub(crate) address: IpAddr,
    pub(crate) tls: bool,
}

/// Where a request came from, if its connection is still there.
pub(crate) fn client<B>(request: &Request<B>) -> Option<ClientFacts> {
    let place = RequestConnection::of(request.extensions())?;
    Some(ClientFacts {
        address: place.slot.address,
        tls: place.tls,
    })
}

/// A connection that goes on as something else than HTTP, in the place that it has, and busy.
#[derive(Debug)]
pub(crate) struct UpgradedConnection {
    place: Arc<ConnectionPlace>,
    _busy: BusyConnection,
}

impl UpgradedConnection {
    /// Ready when it has to give way.
    pub(crate) async fn given_up(&self) {
        self.place.slot.given_up().await;
    }
}

/// The connection of a request that may be upgraded, if it is still there.
pub(crate) fn upgradable<B>(request: &Request<B>) -> Option<UpgradedConnection> {
    let place = RequestConnection::of(request.extensions())?;
    let busy = BusyConnection::begin(&place.slot.pace, Version::HTTP_11);
    Some(UpgradedConnection { place, _busy: busy })
}

/// A key, token or signature of this request was accepted: its connection is known from now on.
pub(crate) fn accepted<B>(request: &Request<B>) {
    accepted_parts(request.extensions());
}

/// The same, of what is left of a request.
pub(crate) fn accepted_parts(extensions: &hyper::http::Extensions) {
    let Some(place) = RequestConnection::of(extensions) else {
        return;
    };
    if !place.slot.pace.make_known() {
        place.table.recognise(&place.slot);
    }
}

impl ConnectionTable {
    pub(crate) fn new(limits: SlotLimits) -> Arc<Self> {
        Arc::new(Self {
            limits,
            inner: Mutex::default(),
            freed: Notify::new(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, TableInner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until a connection has ended, if it has not since the last call.
    pub(crate) async fn freed(&self) {
        self.freed.notified().await;
    }

    /// A place for a newcomer, if need be that of another one.
    pub(crate) fn admit(&self, peer: SocketAddr) -> Result<Arc<ConnectionSlot>, SlotRefusal> {
        let address = peer.ip().to_canonical();
        let (peer, limits) = (peer_key(peer), self.limits);
        let mut inner = self.lock();
        let own = inner.peers.get(&peer).map_or(0, PeerSlots::len);
        if limits.peer != 0 && own >= limits.peer && !inner.oust_stranger(Some(peer)) {
            return Err(SlotRefusal::Peer);
        }
        let most_strangers = limits.all - limits.all / RESERVE;
        let floor = (limits.all / FLOOR).max(1);
        let room = inner.all < limits.all && inner.strangers < most_strangers;
        let room = room
            || inner.all >= limits.all && inner.strangers < floor && inner.oust_resting()
            || inner.oust_stranger(None);
        if !room {
            return Err(SlotRefusal::Full);
        }
        let slot = Arc::new(ConnectionSlot {
            id: inner.next,
            peer,
            address,
            pace: Arc::default(),
            closed: Notify::new(),
        });
        inner.next += 1;
        inner.all += 1;
        inner.strangers += 1;
        let slots = inner.peers.entry(peer).or_default();
        slots.strangers.insert(slot.id, Arc::clone(&slot));
        Ok(slot)
    }

    /// It is a stranger no more.
    fn recognise(&self, slot: &Arc<ConnectionSlot>) {
        let mut inner = self.lock();
        let Some(slots) = inner.peers.get_mut(&slot.peer) else {
            return;
        };
        if let Some(known) = slots.strangers.remove(&slot.id) {
            slots.known.insert(slot.id, known);
            inner.strangers -= 1;
        }
    }

    /// It has ended.
    pub(crate) fn leave(&self, slot: &ConnectionSlot) {
        self.lock().remove(slot.peer, slot.id);
        self.freed.notify_one();
    }
}

impl TableInner {
    fn remove(&mut self, peer: IpAddr, id: u64) -> Option<Arc<ConnectionSlot>> {
        let slots = self.peers.get_mut(&peer)?;
        let stranger = slots.strangers.remove(&id);
        self.strangers -= usize::from(stranger.is_some());
        let removed = stranger.or_else(|| slots.known.remove(&id));
        self.all -= usize::from(removed.is_some());
        if slots.len() == 0 {
            self.peers.remove(&peer);
        }
        removed
    }

    fn oust(&mut self, found: Option<(IpAddr, u64)>) -> bool {
        let removed = found.and_then(|(peer, id)| self.remove(peer, id));
        if let Some(slot) = &removed {
            slot.closed.notify_one();
        }
        removed.is_some()
    }

    /// Ends the oldest stranger of `peer`, or of whoever has most; false if there is none.
    fn oust_stranger(&mut self, peer: Option<IpAddr>) -> bool {
        let peer = peer.or_else(|| {
            let most = self.peers.iter().max_by_key(|(_, s)| s.strangers.len());
            most.map(|(peer, _)| *peer)
        });
        let oldest = |peer| {
            let (id, _) = self.peers.get(&peer)?.strangers.first_key_value()?;
            Some((peer, *id))
        };
        self.oust(peer.and_then(oldest))
    }

    /// Ends a known connection without a request under way, the oldest of whoever has most; false
    /// if there is none.
    fn oust_resting(&mut self) -> bool {
        let resting = |slots: &PeerSlots| {
            let mut known = slots.known.iter();
            known.find(|(_, s)| !s.pace.is_busy()).map(|(id, _)| *id)
        };
        let found = self
            .peers
            .iter()
            .filter_map(|(peer, slots)| Some((slots.known.len(), *peer, resting(slots)?)))
            .max_by_key(|(length, _, _)| *length);
        self.oust(found.map(|(_, peer, id)| (peer, id)))
    }
}

impl PeerSlots {
    fn len(&self) -> usize {
        self.strangers.len() + self.known.len()
    }
}

/// Whom an address stands for: itself, or for IPv6 its network of 64 bits, any of whose addresses
/// one host may take.
fn peer_key(peer: SocketAddr) -> IpAddr {
    match peer.ip().to_canonical() {
        IpAddr::V6(v6) if !v6.is_loopback() => {
            IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() >> 64 << 64))
        }
        other => other,
    }
}

#[cfg(test)]
mod test;
