//! Changes of virtual servers, carried out one by one. All of this blocks.

use std::collections::BTreeMap;

use super::compare::Found;
use super::diff::ServerChange;
use super::drain::{Draining, Instant, Step, has_connections};
use super::netlink::{Address, Error, Ipvs, RealServer, VirtualServer};
use crate::net::IpFamily;

/// Virtual servers about which something could not be done, each with the first reason.
pub type Failures = BTreeMap<Address, Error>;

/// Real servers that get no new flows, with their virtual ones.
pub type Leaving = Vec<(Address, RealServer)>;

/// Virtual servers of a family with their real ones.
///
/// # Errors
///
/// The kernel cannot be asked.
pub fn read(table: &mut Ipvs, family: IpFamily, found: &mut Found) -> Result<(), Error> {
    for server in table.virtual_servers()? {
        if IpFamily::of(server.address.ip) == family
            && let Some(there) = read_one(table, server)?
        {
            found.servers.insert(server.address, there);
        }
    }
    Ok(())
}

/// A virtual server with its real ones, if it is still there.
pub fn read_one(table: &mut Ipvs, server: VirtualServer) -> Result<Option<(VirtualServer, Vec<RealServer>)>, Error> {
    match table.real_servers(server.address) {
        Ok(reals) => Ok(Some((server, reals.into_iter().map(|(real, _)| real).collect()))),
        Err(Error::Missing(_)) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Adds what comes: after this, new connections may go wherever they shall.
pub fn raise(table: &mut Ipvs, draining: &mut Draining, changes: &[ServerChange]) -> Failures {
    let mut failures = Failures::new();
    for change in changes {
        if let Err(error) = raise_one(table, draining, change) {
            failures.insert(change.address(), error);
        }
    }
    failures
}

fn raise_one(table: &mut Ipvs, draining: &mut Draining, change: &ServerChange) -> Result<(), Error> {
    match change {
        ServerChange::Add(server, reals) => {
            add_virtual(table, *server)?;
            reals.iter().try_for_each(|real| add_real(table, draining, server.address, *real))
        }
        ServerChange::Change { address, set, reals } => {
            if let Some(server) = set {
                match table.set_virtual(*server) {
                    Err(Error::Missing(_)) => add_virtual(table, *server)?,
                    result => result?,
                }
            }
            reals.add.iter().try_for_each(|real| add_real(table, draining, *address, *real))
        }
        ServerChange::Remove(_) => Ok(()),
    }
}

fn add_virtual(table: &mut Ipvs, server: VirtualServer) -> Result<(), Error> {
    match table.add_virtual(server) {
        Err(Error::Exists(_)) => table.set_virtual(server),
        result => result,
    }
}

/// One on its way out gets its weight back, and keeps its connections.
fn add_real(table: &mut Ipvs, draining: &mut Draining, of: Address, real: RealServer) -> Result<(), Error> {
    draining.forget(of, &real);
    match table.add_real(of, real) {
        Err(Error::Exists(_)) => table.set_real(of, real),
        result => result,
    }
}

/// Takes away what goes. Of protocols whose connections are not waited for, real servers only get no new flows: they are
/// left to [`remove`], a moment later.
pub fn lower(table: &mut Ipvs, draining: &mut Draining, changes: &[ServerChange], now: Instant) -> (Failures, Leaving) {
    let (mut failures, mut leaving) = (Failures::new(), Leaving::new());
    for change in changes {
        let result = match change {
            ServerChange::Add(..) => Ok(()),
            ServerChange::Change { address, reals, .. } => retire(table, draining, *address, &reals.remove, now)
                .map(|left| leaving.extend(left.into_iter().map(|real| (*address, real)))),
            ServerChange::Remove(address) => {
                draining.keep(*address, &[]);
                gone(table.delete_virtual(*address))
            }
        };
        if let Err(error) = result {
            failures.insert(change.address(), error);
        }
    }
    (failures, leaving)
}

/// Takes away what gets no new flows any more.
pub fn remove(table: &mut Ipvs, leaving: &Leaving) -> Failures {
    let removed = leaving.iter().map(|(address, real)| (*address, gone(table.delete_real(*address, *real))));
    removed.filter_map(|(address, result)| Some((address, result.err()?))).collect()
}

/// What is not there need not go.
pub fn gone(result: Result<(), Error>) -> Result<(), Error> {
    match result {
        Err(Error::Missing(_)) => Ok(()),
        result => result,
    }
}

/// First no real server gets a new connection any more, then those without connections go: none can come in between.
/// Gives those whose connections are not waited for.
fn retire(
    table: &mut Ipvs,
    draining: &mut Draining,
    of: Address,
    reals: &[RealServer],
    now: Instant,
) -> Result<Vec<RealServer>, Error> {
    for real in reals.iter().filter(|real| !draining.contains(of, real)) {
        gone(table.set_real(of, RealServer { weight: 0, ..*real }))?;
    }
    if reals.is_empty() || !has_connections(of.protocol) {
        return Ok(reals.to_vec());
    }
    let there = match table.real_servers(of) {
        Err(Error::Missing(_)) => Vec::new(),
        there => there?,
    };
    for (real, connections) in there {
        if reals.iter().any(|going| going.at() == real.at())
            && draining.step(of, &real, connections, now) == Step::Remove
        {
            gone(table.delete_real(of, real))?;
        }
    }
    Ok(Vec::new())
}

/// Removes real servers on their way out whose connections have ended.
///
/// # Errors
///
/// The kernel cannot be asked.
pub fn tend(table: &mut Ipvs, draining: &mut Draining, now: Instant) -> Result<(), Error> {
    for of in draining.addresses() {
        let there = match table.real_servers(of) {
            Err(Error::Missing(_)) => Vec::new(),
            there => there?,
        };
        let left: Vec<RealServer> = there.iter().map(|(real, _)| *real).collect();
        draining.keep(of, &left);
        for (real, connections) in there {
            if draining.contains(of, &real) && draining.step(of, &real, connections, now) == Step::Remove {
                gone(table.delete_real(of, real))?;
            }
        }
    }
    Ok(())
}
