//! Removing what belongs to nobody.

use super::super::applied::{Interrupted, is_spared, refused_outside};
use super::super::compile::Shared;
use super::super::diff::{Changes, Lines};
use super::super::names;
use super::super::restore::Input;
use super::super::round::{Round, Turn};
use super::super::ruleset::{Rule, Table};
use super::super::tools::RestoreError;
use super::{Iptables, Piece, Progress};
use crate::command::Run;

impl<R: Run> Iptables<R> {
    /// Removes rules from shared chains that the snapshot holds and nobody claimed.
    pub(super) async fn remove_left_rules(
        &mut self,
        turn: &mut Turn<'_>,
        piece: Piece,
    ) -> Result<Progress, Interrupted> {
        let Round { snapshot, left_alone, .. } = &mut *turn.round;
        let spared = self.applied.spared(left_alone);
        let Some(snapshot) = snapshot else { return Ok(Progress::Finished) };
        let are_spared = snapshot.left_rules().any(|(_, rule, _)| is_spared(rule, &spared));
        let base = self.applied.base.as_ref().filter(|_| !are_spared);
        // Rules that are taken out one by one are looked for one by one: some go with their chains, and a
        // chain of which all rules are fixed is written anew.
        let goes_with_its_chain = |shared: Shared| base.is_some_and(|base| !shared.is_of(base.layout));
        let fixed = base.filter(|base| base.layout.bucketed_services);
        let mut changes = Changes::default();
        if let Some(base) = fixed
            && !snapshot.take_left(Shared::NatServices, |_| true).is_empty()
        {
            let rules: Vec<Rule> = base.head().into_iter().chain(base.tail.iter().cloned()).collect();
            changes.replace.push((Table::Nat, names::SERVICES, Lines::of(&rules)));
        }
        let left = snapshot
            .left_rules()
            .filter(|(shared, rule, _)| !goes_with_its_chain(*shared) && !is_spared(rule, &spared));
        let left = left.flat_map(|(shared, rule, count)| std::iter::repeat_n((shared, rule.to_owned()), count));
        let left: Vec<(Shared, String)> = left.take(piece.hooks).collect();
        left.iter().for_each(|(shared, rule)| _ = snapshot.tick_off(*shared, rule));
        let there_may_be_more = left.len() == piece.hooks;
        changes.delete = left.into_iter().map(|(shared, rule)| (shared.table(), shared.chain(), rule)).collect();
        if !changes.is_empty() {
            self.remove(turn, changes).await?;
        }
        Ok(if there_may_be_more { Progress::Unfinished } else { Progress::Finished })
    }

    /// Removes chains of Service ports that nobody claimed, before those that they refer to.
    pub(super) async fn remove_left_chains(
        &mut self,
        turn: &mut Turn<'_>,
        piece: Piece,
    ) -> Result<Progress, Interrupted> {
        let spared = self.applied.spared(&turn.round.left_alone);
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
            match self.tools.restore_text(text).await {
                Ok(()) => {}
                Err(RestoreError::Other(error)) => return Err(self.applied.lost(error)),
                // Somebody else's rule leads to one of these chains: it stays, empty, and the
                // others go.
                Err(RestoreError::Refused { .. }) if !step.remove.is_empty() => {
                    turn.report.refusals += 1;
                    match step.clone().halved_removal() {
                        Some(halves) => steps.extend(halves.into_iter().rev()),
                        None => {
                            let mut emptied = step;
                            emptied.empty_instead_of_remove();
                            steps.push(emptied);
                        }
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
