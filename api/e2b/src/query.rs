//! Percent-encoding and query strings, for input that may be anything.

/// Most parameters that one query string may have.
const MAX_PARAMETERS: usize = 256;

/// Undoes percent-encoding; `None` for a broken escape or bytes that are not UTF-8.
/// With `plus`, `+` means a space, as in query strings.
#[must_use]
pub fn percent_decode(text: &str, plus: bool) -> Option<String> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        out.push(match byte {
            b'%' => hex(bytes.next()?)? << 4 | hex(bytes.next()?)?,
            b'+' if plus => b' ',
            other => other,
        });
    }
    String::from_utf8(out).ok()
}

fn hex(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        b'A'..=b'F' => Some(digit - b'A' + 10),
        _ => None,
    }
}

/// Decoded parameters in their order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct QueryString(Vec<(String, String)>);

impl QueryString {
    /// Decodes `a=b&c=d`; a parameter without `=` has an empty value. `None` when an escape is
    /// broken or there are too many parameters.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let mut pairs = Vec::new();
        for pair in text.split('&').filter(|pair| !pair.is_empty()) {
            if pairs.len() == MAX_PARAMETERS {
                return None;
            }
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            pairs.push((percent_decode(key, true)?, percent_decode(value, true)?));
        }
        Some(Self(pairs))
    }

    /// The first value of `key`.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&str> {
        self.0
            .iter()
            .find(|(k, _)| k == key)
            .map(|(_, value)| value.as_str())
    }

    /// All values of `key`.
    pub fn all<'a>(&'a self, key: &'a str) -> impl Iterator<Item = &'a str> {
        self.0
            .iter()
            .filter(move |(k, _)| k == key)
            .map(|(_, value)| value.as_str())
    }

    /// The pairs.
    #[must_use]
    pub fn into_pairs(self) -> Vec<(String, String)> {
        self.0
    }
}

/// Decodes the `metadata` filter, whose keys and values the SDKs encode twice within a parameter
/// that is itself encoded (api/PROTOCOL.md §4.3). `parameter` has been decoded once, as every
/// parameter.
#[must_use]
pub fn metadata_filter(parameter: &str) -> Option<Vec<(String, String)>> {
    let pairs = QueryString::parse(parameter)?.into_pairs();
    let again = |(key, value): (String, String)| {
        // The Go server unescapes once more and refuses what is broken; so do we.
        Some((percent_decode(&key, true)?, percent_decode(&value, true)?))
    };
    pairs.into_iter().map(again).collect()
}

/// Fuzz entry point: no input may panic, and every accepted filter is bounded.
pub fn fuzz_query(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    if let Some(query) = QueryString::parse(text) {
        for value in query.all("metadata") {
            let _ = metadata_filter(value);
        }
    }
    if let Some(pairs) = metadata_filter(text) {
        assert!(
            pairs.len() <= MAX_PARAMETERS,
            "filter of {} pairs",
            pairs.len()
        );
    }
}

#[cfg(test)]
mod test {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_metadata_filter_is_decoded_three_times() {
        // What the published SDKs send for {"u": "x y&z"}.
        let query = QueryString::parse("metadata=u%3Dx%252520y%252526z&limit=1").unwrap();
        let filter = metadata_filter(query.get("metadata").unwrap()).unwrap();
        assert_eq!(filter, [("u".to_owned(), "x y&z".to_owned())]);
    }

    #[test]
    fn broken_escapes_are_refused() {
        for broken in ["%", "%1", "%zz", "%ff", "a=%f"] {
            assert!(QueryString::parse(broken).is_none(), "{broken}");
        }
        assert!(QueryString::parse(&"a&".repeat(MAX_PARAMETERS + 1)).is_none());
        assert_eq!(
            percent_decode("team%2Fsnap%3Adefault", false).unwrap(),
            "team/snap:default"
        );
        assert_eq!(percent_decode("a+b", false).unwrap(), "a+b");
    }

    proptest! {
        #[test]
        fn nothing_panics(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            fuzz_query(&bytes);
        }

        #[test]
        fn escapes_come_back(text in "\\PC{0,40}") {
            let escaped: String = text.bytes().map(|b| format!("%{b:02X}")).collect();
            prop_assert_eq!(percent_decode(&escaped, true), Some(text));
        }
    }
}
