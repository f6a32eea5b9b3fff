//! One copy of what many objects have in common: names of namespaces and ports, hints.

use std::collections::HashSet;
use std::hash::Hash;
use std::sync::Arc;

/// So many values are kept before it is first looked which are still in use.
const FEW: usize = 64;

/// Values of which there is to be one copy each.
#[derive(Debug)]
pub(super) struct Shared<T: ?Sized> {
    known: HashSet<Arc<T>>,
    /// With so many, those that nobody uses any more are dropped.
    enough: usize,
}

// === impl Shared ===

impl<T: ?Sized + Eq + Hash> Shared<T> {
    /// The copy to use in place of `value`.
    pub(super) fn one(&mut self, value: &Arc<T>) -> Arc<T> {
        if let Some(known) = self.known.get(value) {
            return known.clone();
        }
        if self.known.len() >= self.enough {
            self.known.retain(|known| Arc::strong_count(known) > 1);
            self.enough = FEW.max(2 * self.known.len());
        }
        self.known.insert(value.clone());
        value.clone()
    }
}

impl<T: ?Sized> Default for Shared<T> {
    fn default() -> Shared<T> {
        Shared { known: HashSet::new(), enough: FEW }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_values_become_one_and_unused_ones_go() {
        let mut shared = Shared::<str>::default();
        let kept = shared.one(&"kept".into());
        assert!(Arc::ptr_eq(&kept, &shared.one(&"kept".into())));
        for i in 0..10 * FEW {
            shared.one(&i.to_string().into());
        }
        assert!(shared.known.len() <= FEW, "{}", shared.known.len());
        assert!(Arc::ptr_eq(&kept, &shared.one(&"kept".into())));
    }
}
