//! The link whose addresses are those of virtual servers, so that the kernel takes packets for them as its own.

use std::collections::BTreeSet;
use std::net::IpAddr;

use futures::TryStreamExt;
use rtnetlink::packet_route::address::AddressAttribute;
use rtnetlink::packet_route::link::{InfoKind, LinkAttribute, LinkInfo};
use rtnetlink::{Handle, LinkDummy};
use tokio::task::JoinHandle;

use super::names::LINK;
use crate::backend::ApplyError;
use crate::net::{IpFamily, host_net};

/// The link, there when this was made.
pub struct Link {
    handle: Handle,
    connection: JoinHandle<()>,
    index: u32,
}

/// Why the link or one of its addresses is not as it should be.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// Another kind of link has its name.
    #[error(
        "link {LINK} is there and is no dummy link, so not one of a proxy: rename it (ip link set {LINK} name ...)"
    )]
    Foreign,
    /// There is none, though it was just made.
    #[error("link {LINK} is not there")]
    Missing,
    /// The kernel refuses something.
    #[error("link {LINK}: {subject}: {detail}")]
    Refused {
        /// What.
        subject: String,
        /// In its words.
        detail: String,
    },
}

impl From<LinkError> for ApplyError {
    fn from(error: LinkError) -> ApplyError {
        ApplyError::Failed { program: "rtnetlink".to_owned(), detail: error.to_string() }
    }
}

fn refused(subject: impl Into<String>) -> impl FnOnce(rtnetlink::Error) -> LinkError {
    |error| LinkError::Refused { subject: subject.into(), detail: error.to_string() }
}

/// Whether the kernel says that what was to be added is there.
fn is_there(error: &rtnetlink::Error) -> bool {
    matches!(error, rtnetlink::Error::NetlinkError(message) if message.raw_code() == -rustix::io::Errno::EXIST.raw_os_error())
}

/// Whether the kernel says that what was to be removed is not there.
fn is_gone(error: &rtnetlink::Error) -> bool {
    matches!(error, rtnetlink::Error::NetlinkError(message) if message.raw_code() == -rustix::io::Errno::ADDRNOTAVAIL.raw_os_error())
}

// === impl Link ===

impl Link {
    /// Finds the link or makes it, down and without an address, as kube-proxy leaves it: the kernel takes packets for its
    /// addresses all the same.
    ///
    /// # Errors
    ///
    /// The kernel has no dummy links; something else has the name.
    pub async fn ensure() -> Result<Link, LinkError> {
        let mut link = Link::nowhere()?;
        if link.look().await?.is_none() {
            match link.handle.link().add(LinkDummy::new(LINK).build()).execute().await {
                Err(error) if !is_there(&error) => {
                    return Err(refused("cannot be made (is module dummy there?)")(error));
                }
                _ => {}
            }
        }
        link.index = link.look().await?.ok_or(LinkError::Missing)?;
        Ok(link)
    }

    /// The link, if it is there.
    ///
    /// # Errors
    ///
    /// Something else has the name.
    pub async fn find() -> Result<Option<Link>, LinkError> {
        let mut link = Link::nowhere()?;
        let Some(index) = link.look().await? else { return Ok(None) };
        link.index = index;
        Ok(Some(link))
    }

    /// Removes it with all addresses.
    ///
    /// # Errors
    ///
    /// The kernel refuses that.
    pub async fn delete(self) -> Result<(), LinkError> {
        self.handle.link().del(self.index).execute().await.map_err(refused("cannot be removed"))
    }

    fn nowhere() -> Result<Link, LinkError> {
        let failed =
            |error: std::io::Error| LinkError::Refused { subject: "netlink".into(), detail: error.to_string() };
        let (connection, handle, _) = rtnetlink::new_connection().map_err(failed)?;
        Ok(Link { handle, connection: tokio::spawn(connection), index: 0 })
    }

    async fn look(&self) -> Result<Option<u32>, LinkError> {
        // An error is that there is none.
        let found = self.handle.link().get().match_name(LINK.to_owned()).execute().try_next().await;
        let Ok(Some(link)) = found else { return Ok(None) };
        let is_dummy = link.attributes.iter().any(|attribute| match attribute {
            LinkAttribute::LinkInfo(infos) => infos.contains(&LinkInfo::Kind(InfoKind::Dummy)),
            _ => false,
        });
        if is_dummy { Ok(Some(link.header.index)) } else { Err(LinkError::Foreign) }
    }

    /// Its addresses of a family; none if it is gone. (IPv6: but for those of the link alone, which are the kernel's.)
    ///
    /// # Errors
    ///
    /// The kernel cannot be asked.
    pub async fn addresses(&self, family: IpFamily) -> Result<BTreeSet<IpAddr>, LinkError> {
        let mut addresses = BTreeSet::new();
        let mut messages = self.handle.address().get().set_link_index_filter(self.index).execute();
        while let Some(message) = messages.try_next().await.map_err(refused("addresses"))? {
            if message.header.index != self.index {
                continue;
            }
            for attribute in &message.attributes {
                let AddressAttribute::Address(ip) = attribute else { continue };
                let of_link = matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local());
                if IpFamily::of(*ip) == family && !of_link {
                    addresses.insert(*ip);
                }
            }
        }
        Ok(addresses)
    }

    /// Adds an address, if it is not there.
    ///
    /// # Errors
    ///
    /// The kernel refuses it.
    pub async fn add(&self, ip: IpAddr) -> Result<(), LinkError> {
        match self.handle.address().add(self.index, ip, host_net(ip).prefix_len()).execute().await {
            Err(error) if !is_there(&error) => Err(refused(format!("address {ip} cannot be added"))(error)),
            _ => Ok(()),
        }
    }

    /// Removes an address, if it is there.
    ///
    /// # Errors
    ///
    /// The kernel refuses it.
    pub async fn remove(&self, ip: IpAddr) -> Result<(), LinkError> {
        // What adding it would say, the other way round.
        let message = self.handle.address().add(self.index, ip, host_net(ip).prefix_len()).message_mut().clone();
        match self.handle.address().del(message).execute().await {
            Err(error) if !is_gone(&error) => Err(refused(format!("address {ip} cannot be removed"))(error)),
            _ => Ok(()),
        }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.connection.abort();
    }
}
