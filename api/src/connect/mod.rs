//! The Connect protocol: envelopes, codecs, codes.
