//! Where in a file something stands. Looked for only when there is something to say about it, in a
//! pass of its own, so that the tree needs no positions.

use serde_saphyr::granit_parser::{Event, Marker, Parser, Span, StrInput};

/// A place in a text; both count from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Place {
    pub(crate) line: usize,
    pub(crate) column: usize,
}

/// The place of a field; of several of that name the last, which is the one that counts. The path
/// holds names, those of lists possibly with an index: `vmodule[1]`. As much of it as exists is
/// followed.
pub(crate) fn field(text: &str, path: &[String]) -> Option<Place> {
    let steps: Vec<Step<'_>> = path.iter().flat_map(|name| steps(name)).collect();
    let mut search = Search { events: Parser::new_from_str(text), found: None };
    loop {
        let (event, span) = search.next()?;
        match event {
            Event::StreamStart | Event::DocumentStart(..) => {}
            event => {
                search.node(event, span, Some(&steps));
                return search.found;
            }
        }
    }
}

/// The place at which the syntax of a text breaks.
pub(crate) fn fault(text: &str) -> Option<Place> {
    if text.trim_start().starts_with('{') {
        let error = serde_json::from_str::<serde::de::IgnoredAny>(text).err()?;
        return Some(Place { line: error.line(), column: error.column().max(1) });
    }
    Parser::new_from_str(text).find_map(|event| event.err().map(|error| place(error.marker())))
}

/// A step from a value into it.
#[derive(Clone, Copy)]
enum Step<'a> {
    Name(&'a str),
    Index(usize),
}

fn steps(name: &str) -> Vec<Step<'_>> {
    let indexed = name.strip_suffix(']').and_then(|name| name.rsplit_once('['));
    match indexed.and_then(|(name, index)| Some((name, index.parse().ok()?))) {
        Some((name, index)) => vec![Step::Name(name), Step::Index(index)],
        None => vec![Step::Name(name)],
    }
}

fn place(marker: &Marker) -> Place {
    Place { line: marker.line().max(1), column: marker.col() + 1 }
}

struct Search<'a> {
    events: Parser<'a, StrInput<'a>>,
    /// The deepest place on the path so far.
    found: Option<Place>,
}

// === impl Search ===

impl<'a> Search<'a> {
    fn next(&mut self) -> Option<(Event<'a>, Span)> {
        self.events.find(|event| !matches!(event, Ok((Event::Comment(..), _)))).and_then(Result::ok)
    }

    /// Passes over a node. `path` is what is left to go from here, if it is on the way. The text has
    /// been read before, so that it is no deeper than a reader allows.
    fn node(&mut self, event: Event<'a>, span: Span, path: Option<&[Step<'_>]>) {
        if path.is_some() {
            self.found.get_or_insert(place(&span.start));
        }
        match event {
            Event::SequenceStart(..) => self.sequence(path),
            Event::MappingStart(..) => self.mapping(path),
            _ => {}
        }
    }

    fn sequence(&mut self, path: Option<&[Step<'_>]>) {
        for index in 0.. {
            match self.next() {
                None | Some((Event::SequenceEnd, _)) => return,
                Some((event, span)) => {
                    let on = match path {
                        Some([Step::Index(wanted), rest @ ..]) if *wanted == index => Some(rest),
                        _ => None,
                    };
                    if on.is_some() {
                        self.found = Some(place(&span.start));
                    }
                    self.node(event, span, on);
                }
            }
        }
    }

    fn mapping(&mut self, path: Option<&[Step<'_>]>) {
        loop {
            let Some((key, key_span)) = self.next() else { return };
            let on = match (&key, path) {
                (Event::MappingEnd, _) => return,
                (Event::Scalar(key, ..), Some([Step::Name(wanted), rest @ ..])) if key == wanted => Some(rest),
                _ => None,
            };
            if on.is_some() {
                self.found = Some(place(&key_span.start));
            }
            let Some((value, span)) = self.next() else { return };
            self.node(value, span, on);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, path: &[&str], expected: (usize, usize)) {
        let path: Vec<String> = path.iter().map(|name| (*name).to_owned()).collect();
        let found = field(text, &path).map(|place| (place.line, place.column));
        assert_eq!(found, Some(expected), "{path:?} in {text}");
    }

    #[test]
    fn fields() {
        let text = "# é\na: 1\nb:\n  c: {d: x,\n    e: [1, {f: 2}]}\na: 2\n---\nz: 1\n";
        check(text, &["a"], (6, 1));
        check(text, &["b", "c", "d"], (4, 7));
        check(text, &["b", "c", "e"], (5, 5));
        check(text, &["b", "c", "e[1]", "f"], (5, 13));
        check(text, &["b", "nope"], (3, 1));
        check("{\"a\": {\"b\": 1},\n \"b\": 2}", &["b"], (2, 2));
        check("{\"a\": {\"b\": 1},\n \"b\": 2}", &["a", "b"], (1, 8));
    }

    #[test]
    fn faults() {
        let at = |text| fault(text).map(|place| (place.line, place.column));
        assert_eq!(at("x: 1\n\na: b: c"), Some((3, 5)));
        assert_eq!(at("{\"a\": }"), Some((1, 7)));
        assert_eq!(at("a: b"), None);
    }
}
