//! Reading what is there.

use super::super::compare::Found;
use super::super::rules::{Standing, TABLES};
use super::super::servers;
use super::super::sets::{Input, Saved};
use super::VirtualServers;
use crate::backend::{ApplyError, Report};
use crate::command::{Command, Run};
use crate::net::IpFamily;

impl<R: Run + Clone> VirtualServers<R> {
    /// Reads everything of this family, after making the link and the sets if they are not there.
    pub(super) async fn read(&mut self, report: &mut Report) -> Result<Found, ApplyError> {
        let family = self.family;
        // It may have been removed, and another made.
        self.link = None;
        let addresses = self.link().await?.addresses(family).await?;
        let mut saved = saved_sets(&self.run, family).await?;
        if let Some((set, is)) = saved.sets.iter().find_map(|(set, right)| Some((set, right.as_ref().err()?))) {
            let (name, shall) = (set.name(family), set.definition(family));
            let detail = format!(
                "set {name} is there as {is} and must be {shall}: remove what refers to it, then it (ipset destroy {name})"
            );
            return Err(ApplyError::Failed { program: "ipset".to_owned(), detail });
        }
        for strange in std::mem::take(&mut saved.strange) {
            tracing::warn!(%family, line = strange, "a set has an entry that is not understood; it stays");
        }
        let mut input = Input::default();
        input.create(family, |set| !saved.sets.contains_key(&set));
        self.write_sets(input, report).await?;
        self.standing = self.read_rules().await?;
        let found = Found { addresses, entries: saved.entries, ..Found::default() };
        let found = self.with_table(move |table, _| {
            let mut found = found;
            servers::read(table, family, &mut found).map(|()| found)
        });
        Ok(found.await??)
    }

    pub(super) async fn read_rules(&self) -> Result<Standing, ApplyError> {
        let mut standing = Standing::default();
        for table in TABLES {
            self.tools.save(table, &mut |line| standing.line(table, line)).await?;
        }
        Ok(standing)
    }
}

/// The sets of a family with their entries.
pub async fn saved_sets<R: Run>(run: &R, family: IpFamily) -> Result<Saved, ApplyError> {
    let mut saved = Saved::default();
    ask_ipset(run, &["save"], &mut |line| saved.line(family, line)).await?;
    Ok(saved)
}

/// Runs `ipset` to hear what it says.
pub async fn ask_ipset<R: Run>(run: &R, args: &[&str], line: &mut (dyn FnMut(&str) + Send)) -> Result<(), ApplyError> {
    let output = run.run(Command::new("ipset", args), line).await?;
    let failed = || ApplyError::Failed {
        program: format!("ipset {}", args.first().unwrap_or(&"")),
        detail: output.complaint().to_owned(),
    };
    output.success().then_some(()).ok_or_else(failed)
}
