//! Netlink attributes as the kernel writes them, taken strictly: what is not well formed, or not
//! expected, is nothing.

use crate::netlink::NESTED;

/// The attributes of a message or of a nested attribute, in order; `None` in place of what is not one,
/// after which nothing more comes.
pub(super) struct Attributes<'a>(&'a [u8]);

/// An attribute.
#[derive(Clone, Copy, Debug)]
pub(super) struct Attribute<'a> {
    /// Its type, without the flag that says it is nested: kernels set it or not.
    pub(super) kind: u16,
    /// What is in it.
    pub(super) value: &'a [u8],
}

/// Length of an attribute's header, and what attributes are aligned to.
const HEADER: usize = 4;

// === impl Attributes ===

impl<'a> Attributes<'a> {
    /// Those in these bytes.
    pub(super) fn of(bytes: &'a [u8]) -> Attributes<'a> {
        Attributes(bytes)
    }

    fn split(&self) -> Option<(Attribute<'a>, &'a [u8])> {
        let &[a, b, c, d] = self.0.first_chunk()?;
        let length = usize::from(u16::from_ne_bytes([a, b]));
        let value = self.0.get(HEADER..length)?;
        let rest = self.0.get(length.next_multiple_of(HEADER)..)?;
        let padding = self.0.get(length..length.next_multiple_of(HEADER))?;
        is_zero(padding).then_some((Attribute { kind: u16::from_ne_bytes([c, d]) & !NESTED, value }, rest))
    }
}

impl<'a> Iterator for Attributes<'a> {
    type Item = Option<Attribute<'a>>;

    fn next(&mut self) -> Option<Option<Attribute<'a>>> {
        if self.0.is_empty() {
            return None;
        }
        let split = self.split();
        self.0 = split.map(|(_, rest)| rest).unwrap_or_default();
        Some(split.map(|(attribute, _)| attribute))
    }
}

/// Attributes by type, each at most once; those of other types than 1 to `N - 1` make it `None`.
pub(super) fn fields<const N: usize>(bytes: &[u8]) -> Option<[Option<&[u8]>; N]> {
    let mut found = [None; N];
    for attribute in Attributes::of(bytes) {
        let Attribute { kind, value } = attribute?;
        let place = found.get_mut(usize::from(kind)).filter(|place| kind > 0 && place.is_none())?;
        *place = Some(value);
    }
    Some(found)
}

/// A 32-bit number in network order, as all numbers of nf_tables are.
pub(super) fn number(value: Option<&[u8]>) -> Option<u32> {
    Some(u32::from_be_bytes(value?.try_into().ok()?))
}

/// A text that ends with its only zero.
pub(super) fn text(value: Option<&[u8]>) -> Option<&[u8]> {
    value?.strip_suffix(&[0]).filter(|text| !text.contains(&0))
}

/// The only attribute in these bytes, if it has this type.
pub(super) fn only(value: Option<&[u8]>, kind: u16) -> Option<&[u8]> {
    let mut attributes = Attributes::of(value?);
    let first = attributes.next()??;
    (first.kind == kind && attributes.next().is_none()).then_some(first.value)
}

/// Whether all bytes are zero.
pub(super) fn is_zero(bytes: &[u8]) -> bool {
    bytes.iter().all(|byte| *byte == 0)
}

/// A name that text can hold without quotes and without being taken for anything else.
pub(super) fn plain(name: &[u8]) -> Option<&str> {
    let good = |b: &u8| b.is_ascii_graphic() && !matches!(b, b'"' | b'\'' | b'\\');
    (!name.is_empty() && name.iter().all(good)).then(|| std::str::from_utf8(name).ok())?
}

/// A name of one of our chains.
pub(super) fn own_chain(name: &[u8]) -> Option<&str> {
    plain(name).filter(|name| name.starts_with("KUBE-"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_well_formed_is_nothing() {
        let good = [5, 0, 1, 0, 7, 0, 0, 0, 4, 0, 2, 0x80];
        assert_eq!(fields::<3>(&good), Some([None, Some([7].as_slice()), Some([].as_slice())]));
        assert_eq!(fields::<2>(&good), None, "a type too many");
        assert_eq!(fields::<3>(&[]), Some([None; 3]));
        assert_eq!(fields::<3>(&good[..11]), None, "cut short");
        assert_eq!(fields::<3>(&good[..5]), None, "no padding");
        assert_eq!(fields::<3>(&[5, 0, 1, 0, 7, 0, 1, 0]), None, "padding that is not zero");
        assert_eq!(fields::<3>(&[3, 0, 1, 0]), None, "shorter than its header");
        assert_eq!(fields::<3>(&[9, 0, 1, 0, 0, 0, 0, 0]), None, "longer than there is");
        assert_eq!(fields::<3>(&[4, 0, 0, 0]), None, "no type");
        assert_eq!(fields::<3>(&[4, 0, 1, 0, 4, 0, 1, 0]), None, "twice");
        assert_eq!(fields::<3>(&[4, 0, 1, 0x40]), None, "a flag");
    }
}
