//! Rust text in words: literals and comments blanked, the rest as tokens with their lines.

/// A word, a path separator or one sign.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Token<'a> {
    /// What it says.
    pub(crate) word: &'a str,
    /// Where it begins, in bytes.
    pub(crate) at: usize,
    /// Its line, from 1.
    pub(crate) line: usize,
}

impl Token<'_> {
    /// Whether it could be a name.
    pub(crate) fn is_name(&self) -> bool {
        self.word
            .starts_with(|c: char| c.is_alphabetic() || c == '_')
    }
}

/// The tokens of `code`, which [`blanked`] has made.
pub(crate) fn tokens(code: &str) -> Vec<Token<'_>> {
    let part = |c: char| c.is_alphanumeric() || c == '_';
    let (mut found, mut line, mut at) = (Vec::new(), 1, 0);
    while let Some(first) = code[at..].chars().next() {
        let rest = &code[at..];
        let length = if part(first) {
            rest.find(|c| !part(c)).unwrap_or(rest.len())
        } else if rest.starts_with("::") {
            2
        } else {
            first.len_utf8()
        };
        if first == '\n' {
            line += 1;
        } else if !first.is_whitespace() {
            let word = &rest[..length];
            found.push(Token { word, at, line });
        }
        at += length;
    }
    found
}

/// `text` with the same lines, where comments and the insides of literals are spaces.
pub(crate) fn blanked(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = bytes.to_vec();
    let mut at = 0;
    while at < bytes.len() {
        let end = literal_end(bytes, at);
        if end == at {
            at += 1;
            continue;
        }
        for byte in &mut out[at..end] {
            if *byte != b'\n' {
                *byte = b' ';
            }
        }
        at = end;
    }
    String::from_utf8(out).unwrap()
}

/// Where the comment or literal that begins at `at` ends; `at` if none begins there.
fn literal_end(bytes: &[u8], at: usize) -> usize {
    let rest = &bytes[at..];
    let after_name = at > 0 && (bytes[at - 1].is_ascii_alphanumeric() || bytes[at - 1] == b'_');
    let find = |from: usize, what: &[u8]| {
        let hit = bytes[from..]
            .windows(what.len())
            .position(|window| window == what);
        hit.map_or(bytes.len(), |hit| from + hit + what.len())
    };
    match rest {
        [b'/', b'/', ..] => rest
            .iter()
            .position(|&b| b == b'\n')
            .map_or(bytes.len(), |n| at + n),
        [b'/', b'*', ..] => find(at + 2, b"*/"),
        [b'"', ..] => quoted_end(bytes, at, b'"'),
        [b'r', b'"' | b'#', ..] if !after_name || bytes[at - 1] == b'b' => {
            let hashes = rest[1..].iter().take_while(|&&b| b == b'#').count();
            if rest.get(1 + hashes) != Some(&b'"') {
                return at; // a raw identifier
            }
            let close = [&b"\""[..], &vec![b'#'; hashes]].concat();
            find(at + 2 + hashes, &close)
        }
        // A character, not a lifetime: closed after one character or an escape.
        [b'\'', b'\\', ..] => quoted_end(bytes, at, b'\''),
        [b'\'', first, ..] => {
            let width = match first {
                0..0x80 => 1,
                0x80..0xe0 => 2,
                0xe0..0xf0 => 3,
                _ => 4,
            };
            if rest.get(1 + width) == Some(&b'\'') {
                at + width + 2
            } else {
                at
            }
        }
        _ => at,
    }
}

fn quoted_end(bytes: &[u8], at: usize, quote: u8) -> usize {
    let mut end = at + 1;
    while end < bytes.len() && bytes[end] != quote {
        end += if bytes[end] == b'\\' { 2 } else { 1 };
    }
    (end + 1).min(bytes.len())
}

/// Whether `word` stands in `line` by itself.
pub(crate) fn has_word(line: &str, word: &str) -> bool {
    let part = |c: char| c.is_alphanumeric() || c == '_';
    line.match_indices(word).any(|(at, _)| {
        let (before, after) = (&line[..at], &line[at + word.len()..]);
        !before.chars().next_back().is_some_and(part) && !after.chars().next().is_some_and(part)
    })
}

#[test]
fn blanking_keeps_lines_and_code() {
    let text = "let a = \"unsafe \\\" {\"; // unsafe\nlet b = 'x'; let c: &'static str = r#\"un\"safe\"#;\n\
                /* unsafe\n */ let d = b'\\''; let é = '雪'; unsafe { f() }\n";
    let code = blanked(text);
    assert_eq!(code.lines().count(), text.lines().count());
    assert_eq!(code.matches("unsafe").count(), 1);
    assert!(code.contains("&'static str") && code.contains("let é") && code.contains("let d"));
}

#[test]
fn tokens_have_their_lines() {
    let found = tokens("use a::{b,\n c2};\n");
    let words: Vec<_> = found.iter().map(|t| (t.word, t.line)).collect();
    let first = [
        ("use", 1),
        ("a", 1),
        ("::", 1),
        ("{", 1),
        ("b", 1),
        (",", 1),
    ];
    assert_eq!(words[..6], first);
    assert_eq!(words[6..], [("c2", 2), ("}", 2), (";", 2)]);
}
