//! `multipart/form-data` as a stream of events (RFC 7578), without I/O. Own code, because a part's
//! file name is a path here and must keep its slashes (api/PROTOCOL.md §7.12).

use bytes::{Buf, Bytes, BytesMut};

/// Longest boundary (RFC 2046).
const MAX_BOUNDARY: usize = 70;
/// Most bytes of one part's headers.
const MAX_HEADERS: usize = 16 * 1024;

/// What happens in the body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum MultipartEvent {
    /// A part begins.
    Part {
        name: String,
        filename: Option<String>,
    },
    /// Bytes of the current part; never empty.
    Data(Bytes),
    /// The current part is complete.
    PartEnd,
    /// The closing boundary; what follows it is ignored.
    End,
}

/// Why a body is not multipart.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum MultipartError {
    #[error("The multipart content type has no boundary of 1 to {MAX_BOUNDARY} characters")]
    Boundary,
    #[error("The multipart body does not begin with its boundary")]
    Start,
    #[error("A multipart part has headers of more than {MAX_HEADERS} bytes")]
    HeadersTooLong,
    #[error("A multipart part has no usable Content-Disposition: form-data header with a name")]
    Disposition,
    #[error("A multipart boundary is followed by something else than a line break")]
    AfterBoundary,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ParserState {
    Start,
    AfterBoundary,
    Headers,
    Data,
    Done,
}

/// What one step of the parser came to.
enum ParserStep {
    Event(MultipartEvent),
    Go(ParserState),
    Wait,
}

/// The parser. Push bytes, then take events until there is none. Holds at most one header block or
/// a boundary's length beyond what was pushed.
#[derive(Debug)]
pub(super) struct MultipartParser {
    buffer: BytesMut,
    /// `\r\n--boundary`.
    delimiter: Vec<u8>,
    state: ParserState,
}

impl MultipartParser {
    /// A parser for this content type.
    ///
    /// # Errors
    /// The type has no usable boundary.
    pub(super) fn new(content_type: &str) -> Result<Self, MultipartError> {
        let parameters = content_type.split_once(';').map_or("", |(_, rest)| rest);
        let boundary = parameter(parameters, "boundary").ok_or(MultipartError::Boundary)?;
        let plain = boundary.bytes().all(|byte| (0x20..0x7f).contains(&byte));
        if boundary.is_empty() || boundary.len() > MAX_BOUNDARY || !plain {
            return Err(MultipartError::Boundary);
        }
        Ok(Self {
            buffer: BytesMut::new(),
            delimiter: format!("\r\n--{boundary}").into_bytes(),
            state: ParserState::Start,
        })
    }

    pub(super) fn push(&mut self, bytes: &[u8]) {
        if self.state != ParserState::Done {
            self.buffer.extend_from_slice(bytes);
        }
    }

    /// Whether the closing boundary has come.
    pub(super) fn is_done(&self) -> bool {
        self.state == ParserState::Done
    }

    /// The next event; `None` when more bytes are needed.
    ///
    /// # Errors
    /// The body is not multipart; the parser is unusable afterwards.
    pub(super) fn next(&mut self) -> Result<Option<MultipartEvent>, MultipartError> {
        loop {
            let step = match self.state {
                ParserState::Start => self.start()?,
                ParserState::AfterBoundary => self.after_boundary()?,
                ParserState::Headers => self.headers()?,
                ParserState::Data => self.data(),
                ParserState::Done => ParserStep::Wait,
            };
            match step {
                ParserStep::Event(event) => return Ok(Some(event)),
                ParserStep::Wait => return Ok(None),
                ParserStep::Go(state) => self.state = state,
            }
        }
    }

    /// Takes the first boundary, which may lack the line break before it.
    fn start(&mut self) -> Result<ParserStep, MultipartError> {
        let bare = !self.buffer.starts_with(b"\r");
        let wanted = &self.delimiter[if bare { 2 } else { 0 }..];
        let have = self.buffer.len().min(wanted.len());
        if self.buffer[..have] != wanted[..have] {
            return Err(MultipartError::Start);
        }
        if have < wanted.len() {
            return Ok(ParserStep::Wait);
        }
        self.buffer.advance(have);
        Ok(ParserStep::Go(ParserState::AfterBoundary))
    }

    /// `--` ends the body, a line break begins a part; blanks before it are padding.
    fn after_boundary(&mut self) -> Result<ParserStep, MultipartError> {
        let blanks = self
            .buffer
            .iter()
            .take_while(|byte| matches!(byte, b' ' | b'\t'))
            .count();
        if blanks > MAX_HEADERS {
            return Err(MultipartError::HeadersTooLong);
        }
        match self.buffer[blanks..] {
            [b'-', b'-', ..] if blanks == 0 => {
                self.buffer.clear();
                self.state = ParserState::Done;
                Ok(ParserStep::Event(MultipartEvent::End))
            }
            [b'\r', b'\n', ..] => {
                // The line break stays: the headers end at a blank line, even when there are none.
                self.buffer.advance(blanks);
                Ok(ParserStep::Go(ParserState::Headers))
            }
            [] | [b'-' | b'\r'] => Ok(ParserStep::Wait),
            _ => Err(MultipartError::AfterBoundary),
        }
    }

    fn headers(&mut self) -> Result<ParserStep, MultipartError> {
        const BLANK_LINE: &[u8] = b"\r\n\r\n";
        let end = find(&self.buffer, BLANK_LINE);
        if end.unwrap_or(self.buffer.len()) > MAX_HEADERS {
            return Err(MultipartError::HeadersTooLong);
        }
        let Some(end) = end else {
            return Ok(ParserStep::Wait);
        };
        let block = self.buffer.split_to(end + BLANK_LINE.len());
        self.state = ParserState::Data;
        disposition(&block)
            .map(ParserStep::Event)
            .ok_or(MultipartError::Disposition)
    }

    /// Bytes up to the next delimiter, or up to where one may begin.
    fn data(&mut self) -> ParserStep {
        let ready = match find(&self.buffer, &self.delimiter) {
            Some(0) => {
                self.buffer.advance(self.delimiter.len());
                self.state = ParserState::AfterBoundary;
                return ParserStep::Event(MultipartEvent::PartEnd);
            }
            Some(at) => at,
            None => self.buffer.len() - possible_start(&self.buffer, &self.delimiter),
        };
        if ready == 0 {
            return ParserStep::Wait;
        }
        ParserStep::Event(MultipartEvent::Data(self.buffer.split_to(ready).freeze()))
    }
}

/// Where `needle` begins in `haystack`.
fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    let (first, rest) = needle.split_first()?;
    let mut from = 0;
    while let Some(at) = haystack[from..].iter().position(|byte| byte == first) {
        let at = from + at;
        if haystack[at + 1..].starts_with(rest) {
            return Some(at);
        }
        from = at + 1;
    }
    None
}

/// How many bytes at the end of `haystack` are a beginning of `needle`.
fn possible_start(haystack: &[u8], needle: &[u8]) -> usize {
    let most = haystack.len().min(needle.len() - 1);
    (1..=most)
        .rev()
        .find(|length| haystack.ends_with(&needle[..*length]))
        .unwrap_or(0)
}

/// The name and file name in a header block.
fn disposition(block: &[u8]) -> Option<MultipartEvent> {
    let text = String::from_utf8_lossy(block);
    let value = text.split("\r\n").find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.trim()
            .eq_ignore_ascii_case("content-disposition")
            .then(|| value.trim())
    })?;
    let (kind, parameters) = value.split_once(';').unwrap_or((value, ""));
    if !kind.trim().eq_ignore_ascii_case("form-data") {
        return None;
    }
    let name = parameter(parameters, "name")?;
    let extended = parameter(parameters, "filename*").and_then(|value| {
        let (_, encoded) = value.split_once("''")?;
        crate::query::percent_decode(encoded, false)
    });
    let filename = extended.or_else(|| parameter(parameters, "filename"));
    Some(MultipartEvent::Part { name, filename })
}

/// The value of one of the `key=value` pairs, quoted or not. In quotes a backslash escapes only
/// what would need it, so that Windows paths survive, as Go's parser does.
fn parameter(text: &str, wanted: &str) -> Option<String> {
    let mut rest = text.trim_start_matches([';', ' ', '\t']);
    while !rest.is_empty() {
        let (key, after) = rest.split_once('=')?;
        let (value, after) = value(after.trim_start())?;
        if key.trim().eq_ignore_ascii_case(wanted) {
            return Some(value);
        }
        rest = after.trim_start_matches([';', ' ', '\t']);
    }
    None
}

fn value(text: &str) -> Option<(String, &str)> {
    let Some(quoted) = text.strip_prefix('"') else {
        let (value, rest) = text.split_once(';').unwrap_or((text, ""));
        return Some((value.trim().to_owned(), rest));
    };
    let mut value = String::new();
    let mut chars = quoted.char_indices().peekable();
    while let Some((at, char)) = chars.next() {
        match char {
            '"' => return Some((value, &quoted[at + 1..])),
            '\\' if chars
                .peek()
                .is_some_and(|(_, next)| matches!(next, '"' | '\\')) =>
            {
                value.extend(chars.next().map(|(_, next)| next));
            }
            other => value.push(other),
        }
    }
    None
}

/// Fuzz entry point: feeds `data` in pieces, the first byte being the size of a piece.
pub fn fuzz_multipart(data: &[u8]) {
    let Some((&step, data)) = data.split_first() else {
        return;
    };
    let _ = MultipartParser::new(&String::from_utf8_lossy(data));
    let Ok(mut parser) = MultipartParser::new("multipart/form-data; boundary=b") else {
        return;
    };
    for piece in data.chunks(usize::from(step).max(1)) {
        parser.push(piece);
        loop {
            match parser.next() {
                Ok(Some(MultipartEvent::Data(bytes))) => assert!(!bytes.is_empty(), "empty data"),
                Ok(Some(_)) => {}
                Ok(None) => break,
                Err(_) => return,
            }
        }
    }
}

#[cfg(test)]
mod test {
    use super::*;
    use proptest::prelude::*;

    /// Name, file name and contents of a part.
    type Part = (String, Option<String>, Vec<u8>);

    /// All parts of a body that arrives in pieces of `step` bytes.
    fn parse(body: &[u8], step: usize) -> Result<Vec<Part>, MultipartError> {
        let mut parser = MultipartParser::new("multipart/form-data; boundary=\"b0\"")?;
        let mut parts = Vec::new();
        let mut open = false;
        for piece in body.chunks(step) {
            parser.push(piece);
            while let Some(event) = parser.next()? {
                match event {
                    MultipartEvent::Part { name, filename } => {
                        assert!(!open);
                        open = true;
                        parts.push((name, filename, Vec::new()));
                    }
                    MultipartEvent::Data(bytes) => {
                        parts.last_mut().unwrap().2.extend_from_slice(&bytes);
                    }
                    MultipartEvent::PartEnd => open = false,
                    MultipartEvent::End => assert!(parser.is_done()),
                }
            }
        }
        assert!(parser.is_done() && !open);
        Ok(parts)
    }

    fn body(parts: &[(&str, &str, &[u8])]) -> Vec<u8> {
        let mut body = Vec::new();
        for (name, filename, data) in parts {
            body.extend_from_slice(
                format!(
                    "--b0\r\nContent-Disposition: form-data; name=\"{name}\"; \
                     filename=\"{filename}\"\r\nContent-Type: application/octet-stream\r\n\r\n"
                )
                .as_bytes(),
            );
            body.extend_from_slice(data);
            body.extend_from_slice(b"\r\n");
        }
        body.extend_from_slice(b"--b0--\r\n");
        body
    }

    #[test]
    fn slashes_spaces_and_utf8_in_file_names_are_kept() {
        let name = "/home/user/dir with space/ä ö.txt";
        let bytes = body(&[
            ("file", name, b"x"),
            ("file", "../b", b""),
            ("other", "c", b"\r\n--b"),
        ]);
        for step in [1, 2, 3, 7, 1000] {
            let parts = parse(&bytes, step).unwrap();
            assert_eq!(parts.len(), 3);
            assert_eq!(parts[0], ("file".into(), Some(name.into()), b"x".to_vec()));
            assert_eq!(parts[1], ("file".into(), Some("../b".into()), Vec::new()));
            assert_eq!(parts[2].2, b"\r\n--b");
        }
    }

    #[test]
    fn escapes_are_gos() {
        let of = |text| parameter(text, "filename");
        assert_eq!(
            of(r#" name="x"; filename="a\"b\\c\d%22""#).unwrap(),
            r#"a"b\c\d%22"#
        );
        assert_eq!(of(r" filename=plain.txt; name=x").unwrap(), "plain.txt");
        assert_eq!(of(r#" name="filename=x;""#), None);
        assert_eq!(of(r#" filename="open"#), None);
    }

    #[test]
    fn what_is_not_multipart_is_refused() {
        for bad in [
            "multipart/form-data",
            "multipart/form-data; boundary=",
            "x; boundary=\"\u{e4}\"",
        ] {
            assert_eq!(
                MultipartParser::new(bad).unwrap_err(),
                MultipartError::Boundary
            );
        }
        assert_eq!(parse(b"preamble", 3), Err(MultipartError::Start));
        assert_eq!(parse(b"--b0x", 3), Err(MultipartError::AfterBoundary));
        assert_eq!(
            parse(b"--b0\r\nX: y\r\n\r\n", 3),
            Err(MultipartError::Disposition)
        );
        let long = [b"--b0\r\n".to_vec(), vec![b'x'; MAX_HEADERS + 10]].concat();
        assert_eq!(parse(&long, 1000), Err(MultipartError::HeadersTooLong));
    }

    proptest! {
        #[test]
        fn any_contents_in_any_cutting_come_back(
            contents in prop::collection::vec(
                prop::collection::vec(prop::sample::select(b"\r\n-b0x".to_vec()), 0..60), 0..4),
            step in 1usize..50,
        ) {
            // A body may not contain its own delimiter.
            let whole = |c: &Vec<u8>| find(&[&c[..], b"\r"].concat(), b"\r\n--b0").is_none();
            prop_assume!(contents.iter().all(whole));
            let parts: Vec<(&str, &str, &[u8])> =
                contents.iter().map(|c| ("file", "/a/b", &c[..])).collect();
            let got = parse(&body(&parts), step).unwrap();
            let got: Vec<Vec<u8>> = got.into_iter().map(|part| part.2).collect();
            prop_assert_eq!(got, contents);
        }

        #[test]
        fn arbitrary_bytes_never_panic(
            data in prop::collection::vec(any::<u8>(), 0..300),
            step: u8,
        ) {
            let mut input = vec![step];
            input.extend_from_slice(b"--b\r\n");
            input.extend_from_slice(&data);
            fuzz_multipart(&input);
        }
    }
}
