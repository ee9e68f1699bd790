//! Which names a VO and a node may have.

/// A name cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Not the name of a VO.
    #[error("{name:?} cannot name a VO: use 1 to 63 of the characters a-z, 0-9 and -")]
    Vo {
        /// What was given, cut to 80 characters.
        name: String,
    },
    /// Not the name of a node.
    #[error(
        "{name:?} cannot name a node: use 1 to 64 bytes without control characters, such as the host's name"
    )]
    Node {
        /// What was given, cut to 80 characters.
        name: String,
    },
}

/// Whether a VO may be called so: 1 to 63 of `[a-z0-9-]`.
///
/// # Errors
/// [`NameError::Vo`] otherwise.
pub fn check_vo_name(name: &str) -> Result<(), NameError> {
    let fits = (1..=63).contains(&name.len());
    if fits && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-') {
        Ok(())
    } else {
        Err(NameError::Vo { name: shown(name) })
    }
}

/// Whether a node may be called so: 1 to 64 bytes, no control characters.
///
/// # Errors
/// [`NameError::Node`] otherwise.
pub fn check_node_name(name: &str) -> Result<(), NameError> {
    if (1..=64).contains(&name.len()) && !name.chars().any(char::is_control) {
        Ok(())
    } else {
        Err(NameError::Node { name: shown(name) })
    }
}

fn shown(name: &str) -> String {
    name.chars().take(80).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_that_are_safe_in_a_uri_and_in_a_subject_pass() {
        for good in ["a", "lab", "lab-2", &"x".repeat(63)] {
            assert_eq!(check_vo_name(good), Ok(()));
        }
        for bad in ["", "Lab", "a/b", "a.b", "ä", "a\n", &"x".repeat(64)] {
            assert!(check_vo_name(bad).is_err(), "{bad:?}");
        }
        assert_eq!(check_node_name("Büro 3"), Ok(()));
        for bad in ["", "a\nb", "a\0", &"x".repeat(65)] {
            assert!(check_node_name(bad).is_err(), "{bad:?}");
        }
    }
}
