//! Room for many sandboxes, set aside at once before the first of them is made.

use super::bring_up::{Given, Reservation};
use super::{NewSandbox, Registry, no_entropy};
use crate::error::ApiError;
use crate::ids;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::timeout;

/// How long all the slots may take that ended sandboxes are about to give back.
const RESERVE_WAIT: Duration = Duration::from_secs(10);

/// A sandbox's place: its entry in the table and, in a batch, what its machine counts for. Dropped, it is
/// free again.
#[derive(Debug)]
pub struct Place {
    reservation: Reservation,
    given: Option<Given>,
}

impl Place {
    /// A slot for its machine is found when it is made.
    pub(super) const fn new(reservation: Reservation) -> Self {
        Self {
            reservation,
            given: None,
        }
    }

    pub(super) fn open(self) -> (Reservation, Option<Given>) {
        (self.reservation, self.given)
    }
}

impl Registry {
    /// Sets aside room for `count` sandboxes like this one: places under `max_sandboxes`, and for each a
    /// husk or a slot. With `partial` for as many as there is room for, at least one. Whoever creates in
    /// them is not refused for want of room.
    ///
    /// # Errors
    /// [`ApiError::TooManySandboxes`], [`ApiError::NoMemory`], [`ApiError::ShuttingDown`]: nothing is set
    /// aside.
    pub async fn set_aside(
        self: &Arc<Self>,
        like: &NewSandbox,
        count: usize,
        partial: bool,
    ) -> Result<Vec<Place>, ApiError> {
        if *self.closing.borrow() {
            return Err(ApiError::ShuttingDown);
        }
        self.room.check()?;
        let ids = (0..count).map(|_| ids::sandbox_id());
        let ids = ids.collect::<Result<Vec<_>, _>>();
        let ids = ids.map_err(|error| no_entropy(&error))?;
        let reservations = self.reserve_all(ids, partial)?;
        let pool = self.pools.of(&like.template);
        let mut places = Vec::with_capacity(reservations.len());
        let full = || ApiError::TooManySandboxes { max: self.max };
        let fill = async {
            for reservation in reservations {
                let husk = pool.filter(|_| like.start.is_none());
                let given = match husk.and_then(|pool| pool.take()) {
                    Some(husk) => Given::Husk(husk),
                    None => Given::Slot(self.slot().await?),
                };
                places.push(Place {
                    reservation,
                    given: Some(given),
                });
            }
            Ok(())
        };
        let filled = timeout(RESERVE_WAIT, fill)
            .await
            .map_err(|_| full())
            .flatten();
        match filled {
            Err(error) if !partial || places.is_empty() => Err(error),
            _ => Ok(places),
        }
    }
}
