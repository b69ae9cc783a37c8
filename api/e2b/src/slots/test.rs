use super::*;
use futures_util::FutureExt as _;

fn table(all: usize, peer: usize) -> Arc<ConnectionTable> {
    ConnectionTable::new(SlotLimits { all, peer })
}

fn at(host: u8) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, host], 1))
}

fn place(table: &Arc<ConnectionTable>, slot: &Arc<ConnectionSlot>) -> Arc<ConnectionPlace> {
    let (table, slot) = (Arc::clone(table), Arc::clone(slot));
    let tls = false;
    Arc::new(ConnectionPlace { table, slot, tls })
}

/// A connection that has shown its key.
fn known(table: &Arc<ConnectionTable>, host: u8) -> Arc<ConnectionSlot> {
    let slot = table.admit(at(host)).unwrap();
    let mut request = Request::new(());
    let place = place(table, &slot);
    let connection = RequestConnection::new(&place);
    request.extensions_mut().insert(connection);
    accepted(&request);
    // Its connection is served on.
    std::mem::forget(place);
    slot
}

fn is_out(slot: &ConnectionSlot) -> bool {
    slot.given_up().now_or_never().is_some()
}

#[test]
fn strangers_push_out_each_other_and_nobody_who_is_known() {
    let table = table(8, 0);
    let clients = [known(&table, 1), known(&table, 1)];
    let first = table.admit(at(2)).unwrap();
    let other = table.admit(at(3)).unwrap();
    for _ in 0..10_000 {
        table.admit(at(2)).unwrap();
    }
    assert!(is_out(&first), "the oldest of the many goes");
    assert!(!is_out(&other), "one of another address stays");
    assert!(!clients.iter().any(|client| is_out(client)));
    let inner = table.lock();
    assert_eq!((inner.strangers, inner.all), (6, 8));
}

#[test]
fn the_reserve_is_for_who_is_known() {
    let table = table(8, 0);
    let strangers: Vec<_> = (0..6).map(|_| table.admit(at(1)).unwrap()).collect();
    assert_eq!(table.lock().all, 6);
    // One place is enough to come in by, and it is empty again once its client is known.
    let all: Vec<_> = (0..8).map(|_| known(&table, 2)).collect();
    assert!(strangers.iter().all(|stranger| is_out(stranger)));
    let inner = table.lock();
    assert_eq!((inner.strangers, inner.all), (0, 8));
    assert!(!all.iter().any(|client| is_out(client)));
}

#[test]
fn a_newcomer_takes_the_place_of_a_known_one_that_rests_and_of_no_busy_one() {
    let table = table(4, 0);
    let resting = known(&table, 1);
    let all: Vec<_> = (0..3).map(|_| known(&table, 1)).collect();
    let busy: Vec<_> = all
        .iter()
        .map(|slot| BusyConnection::begin(&slot.pace, Version::HTTP_11))
        .collect();
    let newcomer = table.admit(at(2)).unwrap();
    assert!(is_out(&resting) && !all.iter().any(|slot| is_out(slot)));
    // The next one takes the newcomer's.
    let another = table.admit(at(3)).unwrap();
    assert!(is_out(&newcomer) && !all.iter().any(|slot| is_out(slot)));
    let _busy = BusyConnection::begin(&known_again(&table, &another).pace, Version::HTTP_11);
    assert_eq!(table.admit(at(4)).unwrap_err(), SlotRefusal::Full);
    table.leave(&another);
    assert!(table.freed().now_or_never().is_some());
    table.admit(at(4)).unwrap();
    drop(busy);
}

fn known_again(table: &Arc<ConnectionTable>, slot: &Arc<ConnectionSlot>) -> Arc<ConnectionSlot> {
    let mut extensions = hyper::http::Extensions::new();
    let place = place(table, slot);
    extensions.insert(RequestConnection::new(&place));
    accepted_parts(&extensions);
    std::mem::forget(place);
    Arc::clone(slot)
}

#[test]
fn an_address_has_no_more_than_it_may() {
    let table = table(8, 2);
    let stranger = table.admit(at(1)).unwrap();
    known(&table, 1);
    known(&table, 1);
    assert!(is_out(&stranger), "its own stranger gives way first");
    assert_eq!(table.admit(at(1)).unwrap_err(), SlotRefusal::Peer);
    table.admit(at(2)).unwrap();
}

#[test]
fn an_ipv6_network_is_one_peer() {
    let of = |text: &str| peer_key(SocketAddr::new(text.parse().unwrap(), 1));
    assert_eq!(of("2001:db8:1:2:3:4:5:6"), of("2001:db8:1:2::1"));
    assert_ne!(of("2001:db8:1:2::1"), of("2001:db8:1:3::1"));
    assert_eq!(of("::ffff:10.0.0.1"), of("10.0.0.1"));
    assert_eq!(of("::1"), "::1".parse::<IpAddr>().unwrap());
}

#[test]
fn an_upgraded_connection_keeps_its_place_is_busy_and_gives_way() {
    let table = table(8, 0);
    let slot = table.admit(at(1)).unwrap();
    let place = place(&table, &slot);
    let mut request = Request::new(());
    let connection = RequestConnection::new(&place);
    request.extensions_mut().insert(connection);
    assert_eq!(client(&request).unwrap().address, at(1).ip());
    let upgraded = upgradable(&request).unwrap();
    drop(place);
    assert!(slot.pace.is_busy());
    assert_eq!(table.lock().all, 1);
    table.lock().oust_stranger(None);
    assert!(upgraded.given_up().now_or_never().is_some());
    drop(upgraded);
    assert_eq!(table.lock().all, 0);
    assert!(client(&request).is_none() && upgradable(&request).is_none());
}
