//! `Range` of a file download: one range of bytes (RFC 9110 §14).

/// What part of a file to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RangePart {
    /// All of it: no range, or one this server need not honour.
    Whole,
    /// So many bytes from an offset; never none.
    Some { offset: u64, length: u64 },
    /// The range lies outside the file.
    Unsatisfiable,
}

/// Reads the header's value for a file of `size` bytes. Several ranges, other units and nonsense
/// are ignored, as the standard allows.
pub(super) fn part(value: &str, size: u64) -> RangePart {
    let Some(spec) = value.strip_prefix("bytes=") else {
        return RangePart::Whole;
    };
    let Some((first, last)) = spec.trim().split_once('-') else {
        return RangePart::Whole;
    };
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if !digits(first) || !digits(last) {
        return RangePart::Whole;
    }
    // Numbers past u64 are past every file.
    let number = |text: &str| text.parse().unwrap_or(u64::MAX);
    match (first, last) {
        ("", "") => RangePart::Whole,
        ("", suffix) => {
            let length = number(suffix).min(size);
            if length == 0 {
                return RangePart::Unsatisfiable;
            }
            RangePart::Some {
                offset: size - length,
                length,
            }
        }
        (first, last) => {
            let offset = number(first);
            let end = if last.is_empty() {
                u64::MAX
            } else {
                number(last)
            };
            if end < offset {
                return RangePart::Whole;
            }
            if offset >= size {
                return RangePart::Unsatisfiable;
            }
            RangePart::Some {
                offset,
                length: end.min(size - 1) - offset + 1,
            }
        }
    }
}

/// Fuzz entry point: eight bytes of size, then the header.
pub fn fuzz_range(data: &[u8]) {
    let Some((size, text)) = data.split_first_chunk::<8>() else {
        return;
    };
    let size = u64::from_le_bytes(*size);
    if let RangePart::Some { offset, length } = part(&String::from_utf8_lossy(text), size) {
        assert!(length > 0 && offset < size && length <= size - offset);
    }
}

#[cfg(test)]
mod test {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn ranges() {
        let some = |offset, length| RangePart::Some { offset, length };
        for (value, wanted) in [
            ("bytes=0-4", some(0, 5)),
            ("bytes=5-", some(5, 5)),
            ("bytes=-3", some(7, 3)),
            ("bytes=-30", some(0, 10)),
            ("bytes=9-99999999999999999999999", some(9, 1)),
            ("bytes=10-", RangePart::Unsatisfiable),
            ("bytes=-0", RangePart::Unsatisfiable),
            ("bytes=4-2", RangePart::Whole),
            ("bytes=0-1,3-4", RangePart::Whole),
            ("bytes=-", RangePart::Whole),
            ("bytes=+1-2", RangePart::Whole),
            ("lines=1-2", RangePart::Whole),
        ] {
            assert_eq!(part(value, 10), wanted, "{value}");
        }
        assert_eq!(part("bytes=0-", 0), RangePart::Unsatisfiable);
    }

    proptest! {
        #[test]
        fn parts_lie_within_the_file(size: u64, text in "bytes=[0-9]{0,21}-[0-9]{0,21}") {
            let mut data = size.to_le_bytes().to_vec();
            data.extend_from_slice(text.as_bytes());
            fuzz_range(&data);
        }
    }
}
