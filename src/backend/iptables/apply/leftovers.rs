//! Removing what belongs to nobody.

use super::super::applied::{Interrupted, is_spared, refused_outside};
use super::super::compile::Shared;
use super::super::diff::{Changes, Lines};
use super::super::restore::Input;
use super::super::round::{Round, Turn};
use super::super::ruleset::Table;
use super::super::tools::RestoreError;
use super::{Iptables, Piece, Progress};
use crate::command::Run;

impl<R: Run> Iptables<R> {
    /// Service ports whose rules must stay although nobody knows them. (Where the previous rules are known,
    /// those are claimed, and the rest may go.)
    fn spared(&self, round: &Round) -> Vec<String> {
        let unknown = self.applied.refused.keys().filter(|name| !self.applied.services.contains_key(name));
        unknown.chain(&round.left_alone).map(ToString::to_string).collect()
    }

    /// Removes rules from shared chains that the snapshot holds and nobody claimed.
    pub(super) async fn remove_left_rules(
        &mut self,
        turn: &mut Turn<'_>,
        piece: Piece,
    ) -> Result<Progress, Interrupted> {
        let spared = self.spared(turn.round);
        let Some(snapshot) = &mut turn.round.snapshot else { return Ok(Progress::Finished) };
        let left = snapshot.left_rules().filter(|(_, rule, _)| !is_spared(rule, &spared));
        let left = left.flat_map(|(shared, rule, count)| std::iter::repeat_n((shared, rule.to_owned()), count));
        let left: Vec<(Shared, String)> = left.take(piece.hooks).collect();
        if left.is_empty() {
            return Ok(Progress::Finished);
        }
        left.iter().for_each(|(shared, rule)| _ = snapshot.tick_off(*shared, rule));
        let there_may_be_more = left.len() == piece.hooks;
        let delete = left.into_iter().map(|(shared, rule)| (shared.table(), shared.chain(), rule)).collect();
        self.remove(turn, Changes { delete, ..Changes::default() }).await?;
        Ok(if there_may_be_more { Progress::Unfinished } else { Progress::Finished })
    }

    /// Removes chains of Service ports that nobody claimed, before those that they refer to.
    pub(super) async fn remove_left_chains(
        &mut self,
        turn: &mut Turn<'_>,
        piece: Piece,
    ) -> Result<Progress, Interrupted> {
        let spared = self.spared(turn.round);
        let Some(snapshot) = &turn.round.snapshot else { return Ok(Progress::Finished) };
        // Which chains the spared rules lead to is not known: then all stay.
        if snapshot.left_rules().any(|(_, rule, _)| is_spared(rule, &spared)) {
            return Ok(Progress::Finished);
        }
        let mut left = match turn.round.left_chains.take() {
            Some(left) => left,
            None => self.applied.left_chains(turn.round),
        };
        let now = left.split_off(left.len().saturating_sub(piece.hooks));
        if !now.is_empty() {
            let remove = now.into_iter().rev().map(|chain| (Table::Nat, chain)).collect();
            self.remove(turn, Changes { remove, ..Changes::default() }).await?;
        }
        let is_last = left.is_empty();
        turn.round.left_chains = Some(left);
        Ok(if is_last { Progress::Finished } else { Progress::Unfinished })
    }

    /// Removes rules, or chains.
    async fn remove(&mut self, turn: &mut Turn<'_>, changes: Changes) -> Result<(), Interrupted> {
        let mut steps = vec![changes];
        while let Some(step) = steps.pop() {
            let Input { text, .. } = Input::render(std::iter::once(&step));
            turn.report.restores += 1;
            turn.report.bytes += text.len();
            let trust = std::mem::take(&mut self.applied.trust);
            match self.tools.restore_text(&text).await {
                Ok(()) => {}
                Err(RestoreError::Other(error)) => return Err(self.applied.lost(error)),
                // Somebody else's rule leads to one of these chains: it stays, empty, and the
                // others go.
                Err(RestoreError::Refused { .. }) if !step.remove.is_empty() => {
                    turn.report.refusals += 1;
                    match step.clone().halved_removal() {
                        Some(halves) => steps.extend(halves.into_iter().rev()),
                        None => steps.push(emptied(step)),
                    }
                }
                Err(RestoreError::Refused { detail, .. }) => {
                    return Err(refused_outside("removal of leftovers", detail));
                }
            }
            self.applied.trust = trust;
        }
        Ok(())
    }
}

/// What is done to chains that cannot be removed.
fn emptied(step: Changes) -> Changes {
    let replace = step.remove.into_iter().map(|(table, chain)| (table, chain, Lines::default())).collect();
    Changes { replace, ..Changes::default() }
}
