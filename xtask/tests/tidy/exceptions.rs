//! What does not keep a rule yet, and what will change that. Each is temporary: an entry that no
//! longer applies fails its rule's test, so this file only shrinks.

/// A reason, and the files that it holds for.
pub(crate) type Excused = &'static [(&'static str, &'static [&'static str])];

/// Files in a circle of files.
pub(crate) const CIRCLES: Excused = &[];

/// Files with a test module of another name.
pub(crate) const TEST_MODULES: Excused = &[];

/// Files with imports of another style.
pub(crate) const IMPORTS: Excused = &[];

/// Files with lines that are too long.
pub(crate) const LONG_LINES: Excused = &[];
