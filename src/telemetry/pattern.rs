//! Patterns of `--vmodule`.

/// Whether a pattern means a source file. As with klog, it is compared with the file's name
/// without extension, or with its whole path (`src/sync/drive`) if there is a slash in it; `*`
/// stands for any text without slashes, `?` for one character.
pub(super) fn matches(pattern: &str, file: &str) -> bool {
    let file = file.strip_suffix(".rs").unwrap_or(file);
    let name = match pattern.contains('/') {
        true => file,
        false => file.rsplit('/').next().unwrap_or(file),
    };
    glob(pattern, name)
}

fn glob(pattern: &str, text: &str) -> bool {
    let Some(first) = pattern.chars().next() else { return text.is_empty() };
    let rest = pattern.get(first.len_utf8()..).unwrap_or_default();
    let next = text.chars().next();
    let after = next.and_then(|c| text.get(c.len_utf8()..));
    match (first, next, after) {
        ('*', None, _) => glob(rest, text),
        ('*', Some(c), Some(after)) => glob(rest, text) || (c != '/' && glob(pattern, after)),
        ('?', Some(c), Some(after)) => c != '/' && glob(rest, after),
        (first, Some(c), Some(after)) => first == c && glob(rest, after),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns() {
        for pattern in ["drive", "dr*", "*", "?rive", "src/sync/drive", "src/*/drive", "*/*/d*"] {
            assert!(matches(pattern, "src/sync/drive.rs"), "{pattern}");
        }
        for pattern in ["", "driv", "drive?", "sync/drive", "src/*", "*/drive", "Drive", "drive.rs"] {
            assert!(!matches(pattern, "src/sync/drive.rs"), "{pattern}");
        }
    }
}
