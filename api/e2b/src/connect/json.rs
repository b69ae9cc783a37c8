//! Protobuf's JSON conventions as serde helpers (api/PROTOCOL.md §7.3): bytes in any base64,
//! integers as numbers or strings, `null` for "not set". Enums and field names are the messages'
//! own business; unknown fields are ignored by serde's default.

use base64::Engine;
use base64::alphabet::{STANDARD, URL_SAFE};
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use bytes::Bytes;
use serde::de::{Error, Visitor};
use serde::{Deserialize, Deserializer};
use std::fmt;

const LENIENT: GeneralPurposeConfig = GeneralPurposeConfig::new()
    .with_decode_padding_mode(DecodePaddingMode::Indifferent)
    .with_decode_allow_trailing_bits(true);
const STD: GeneralPurpose = GeneralPurpose::new(&STANDARD, LENIENT);
const URL: GeneralPurpose = GeneralPurpose::new(&URL_SAFE, LENIENT);

/// Decodes standard or URL-safe base64, padded or not.
///
/// # Errors
/// The text is neither.
pub fn decode_base64(text: &str) -> Result<Vec<u8>, base64::DecodeError> {
    if text.bytes().any(|byte| byte == b'-' || byte == b'_') {
        URL.decode(text)
    } else {
        STD.decode(text)
    }
}

/// `deserialize_with` for an optional `bytes` field.
///
/// # Errors
/// Not a string, or not base64.
pub fn optional_bytes<'de, D: Deserializer<'de>>(input: D) -> Result<Option<Bytes>, D::Error> {
    struct Base64;
    impl<'de> Visitor<'de> for Base64 {
        type Value = Option<Bytes>;

        fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
            out.write_str("base64 text")
        }

        fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
            match decode_base64(text) {
                Ok(bytes) => Ok(Some(bytes.into())),
                Err(why) => Err(E::custom(format!("invalid base64: {why}"))),
            }
        }

        fn visit_unit<E: Error>(self) -> Result<Self::Value, E> {
            Ok(None)
        }
    }
    input.deserialize_any(Base64)
}

/// `deserialize_with` for an optional `uint32`: a number, a whole float, or either as a string.
///
/// # Errors
/// Something else, or out of range.
pub fn optional_u32<'de, D: Deserializer<'de>>(input: D) -> Result<Option<u32>, D::Error> {
    struct U32;
    impl<'de> Visitor<'de> for U32 {
        type Value = Option<u32>;

        fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
            out.write_str("an integer from 0 to 4294967295")
        }

        fn visit_u64<E: Error>(self, number: u64) -> Result<Self::Value, E> {
            u32::try_from(number).map(Some).map_err(E::custom)
        }

        fn visit_i64<E: Error>(self, number: i64) -> Result<Self::Value, E> {
            u32::try_from(number).map(Some).map_err(E::custom)
        }

        fn visit_f64<E: Error>(self, number: f64) -> Result<Self::Value, E> {
            // A whole float in range prints as its integer does.
            self.visit_str(&number.to_string())
        }

        fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
            text.parse()
                .map(Some)
                .map_err(|_| E::custom(format!("{text:?} is not a uint32")))
        }

        fn visit_unit<E: Error>(self) -> Result<Self::Value, E> {
            Ok(None)
        }
    }
    input.deserialize_any(U32)
}

/// `deserialize_with` for any field: `null` is the default.
///
/// # Errors
/// The value is not a `T`.
pub fn nullable<'de, D, T>(input: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de> + Default,
{
    Ok(Option::deserialize(input)?.unwrap_or_default())
}

#[cfg(test)]
mod test {
    use super::*;
    use base64::engine::general_purpose;
    use proptest::prelude::*;

    #[derive(Deserialize, Debug, Default, PartialEq)]
    #[serde(default)]
    struct Probe {
        #[serde(deserialize_with = "optional_bytes")]
        bytes: Option<Bytes>,
        #[serde(deserialize_with = "optional_u32")]
        number: Option<u32>,
        #[serde(deserialize_with = "nullable")]
        text: String,
    }

    fn number(json: &str) -> Option<u32> {
        serde_json::from_str::<Probe>(&format!("{{\"number\":{json}}}"))
            .unwrap()
            .number
    }

    #[test]
    fn integers_come_in_several_clothes() {
        assert_eq!(number("42"), Some(42));
        assert_eq!(number("\"42\""), Some(42));
        assert_eq!(number("42.0"), Some(42));
        assert_eq!(number("null"), None);
        for bad in ["-1", "4294967296", "1.5", "\"x\"", "[]", "1e300"] {
            serde_json::from_str::<Probe>(&format!("{{\"number\":{bad}}}")).unwrap_err();
        }
    }

    #[test]
    fn null_means_default_and_unknown_fields_are_ignored() {
        let probe: Probe =
            serde_json::from_str(r#"{"bytes":null,"text":null,"later":{"a":[1]}}"#).unwrap();
        assert_eq!(probe, Probe::default());
    }

    proptest! {
        #[test]
        fn every_base64_dialect_decodes(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            for text in [
                general_purpose::STANDARD.encode(&bytes),
                general_purpose::STANDARD_NO_PAD.encode(&bytes),
                general_purpose::URL_SAFE.encode(&bytes),
                general_purpose::URL_SAFE_NO_PAD.encode(&bytes),
            ] {
                prop_assert_eq!(&decode_base64(&text).unwrap(), &bytes);
                let value = serde_json::json!({"bytes": text});
                let probe: Probe = serde_json::from_value(value).unwrap();
                prop_assert_eq!(probe.bytes.unwrap(), &bytes);
            }
        }
    }
}
