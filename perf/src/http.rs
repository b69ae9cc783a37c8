//! The smallest HTTP/1.1 client, over any byte stream: little of what is measured beside it is its
//! own.
//!
//! It speaks with Hatchery over TCP and with other engines over unix sockets. One request at a
//! time, on a connection that is kept.

use anyhow::{Context, Result, bail, ensure};
use std::fmt::Write as _;
use std::io::{Read, Write};

/// Most bytes of an answer's head.
const MAX_HEAD: usize = 64 << 10;
/// Most bytes of an answer's body.
const MAX_BODY: usize = 64 << 20;

/// A connection.
#[derive(Debug)]
pub(crate) struct HttpClient<S> {
    stream: S,
    host: String,
    /// What was read and not used yet.
    ahead: Vec<u8>,
}

/// An answer, whole.
#[derive(Clone, Debug)]
pub(crate) struct HttpAnswer {
    /// The status.
    pub(crate) status: u16,
    /// The head's fields, names in lower case.
    fields: Vec<(String, String)>,
    /// The body.
    pub(crate) body: Vec<u8>,
}

impl HttpAnswer {
    /// The first field of this name, which is in lower case.
    pub(crate) fn field(&self, name: &str) -> Option<&str> {
        let found = self.fields.iter().find(|(field, _)| field == name);
        found.map(|(_, value)| value.as_str())
    }

    /// The answer, if its status is this.
    pub(crate) fn expect(self, status: u16, asked: &str) -> Result<Self> {
        let text = String::from_utf8_lossy(&self.body);
        let text: String = text.chars().take(400).collect();
        ensure!(
            self.status == status,
            "{asked}: {} {text}, not {status}",
            self.status
        );
        Ok(self)
    }

    /// The body as JSON.
    pub(crate) fn json(&self) -> Result<serde_json::Value> {
        serde_json::from_slice(&self.body).context("The answer is not JSON")
    }
}

impl<S: Read + Write> HttpClient<S> {
    /// Speaks on `stream` with the server of this name.
    pub(crate) fn new(stream: S, host: &str) -> Self {
        Self {
            stream,
            host: host.into(),
            ahead: Vec::new(),
        }
    }

    /// Sends a request and reads its answer.
    ///
    /// # Errors
    /// If the connection breaks or what comes is not an answer; not for any status.
    pub(crate) fn ask(
        &mut self,
        method: &str,
        path: &str,
        fields: &[(&str, &str)],
        body: &[u8],
    ) -> Result<HttpAnswer> {
        let mut head = format!("{method} {path} HTTP/1.1\r\nHost: {}\r\n", self.host);
        for (name, value) in fields {
            let _ = write!(head, "{name}: {value}\r\n");
        }
        if !body.is_empty() || method != "GET" {
            let _ = write!(head, "Content-Length: {}\r\n", body.len());
        }
        head.push_str("\r\n");
        let mut request = head.into_bytes();
        request.extend(body);
        let asked = || format!("{method} {path}");
        self.stream.write_all(&request).with_context(asked)?;
        self.answer(method).with_context(asked)
    }

    fn answer(&mut self, method: &str) -> Result<HttpAnswer> {
        loop {
            let (status, fields) = self.head()?;
            if (100..200).contains(&status) {
                continue; // an interim answer
            }
            let mut answer = HttpAnswer {
                status,
                fields,
                body: Vec::new(),
            };
            let nothing = method == "HEAD" || status == 204 || status == 304;
            let chunked = answer.field("transfer-encoding").is_some();
            answer.body = match answer.field("content-length") {
                _ if nothing => Vec::new(),
                _ if chunked => self.chunks()?,
                Some(length) => {
                    let length = length.parse().context("The answer's length")?;
                    self.bytes(length)?
                }
                None => bail!("The answer has no length"),
            };
            return Ok(answer);
        }
    }

    fn head(&mut self) -> Result<(u16, Vec<(String, String)>)> {
        let first = self.line()?;
        let status = first.strip_prefix("HTTP/1.").and_then(|l| l.get(2..5));
        let status = status.and_then(|text| text.parse().ok());
        let status = status.with_context(|| format!("{first:?} is not a status line"))?;
        let mut fields = Vec::new();
        let mut size = first.len();
        loop {
            let line = self.line()?;
            if line.is_empty() {
                return Ok((status, fields));
            }
            size += line.len();
            ensure!(size <= MAX_HEAD, "the head is over {MAX_HEAD} bytes");
            let field = line.split_once(':');
            let (name, value) = field.with_context(|| format!("{line:?} is not a field"))?;
            fields.push((name.to_ascii_lowercase(), value.trim().into()));
        }
    }

    fn chunks(&mut self) -> Result<Vec<u8>> {
        let mut body = Vec::new();
        loop {
            let line = self.line()?;
            let size = line.split(';').next().unwrap_or_default().trim();
            let size = usize::from_str_radix(size, 16);
            let size = size.with_context(|| format!("{line:?} is not a chunk's size"))?;
            if size == 0 {
                while !self.line()?.is_empty() {}
                return Ok(body);
            }
            ensure!(
                body.len() + size.min(MAX_BODY) <= MAX_BODY,
                "the body is over {MAX_BODY} bytes"
            );
            body.extend(self.bytes(size)?);
            let end = self.line()?;
            ensure!(end.is_empty(), "{end:?} stands behind a chunk");
        }
    }

    fn line(&mut self) -> Result<String> {
        let mut seen = 0;
        loop {
            if let Some(end) = self.ahead[seen..].iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.ahead.drain(..=seen + end).collect();
                let text = String::from_utf8(line).context("The head is not text")?;
                return Ok(text.trim_end().into());
            }
            seen = self.ahead.len();
            ensure!(seen <= MAX_HEAD, "a line is over {MAX_HEAD} bytes");
            self.more()?;
        }
    }

    fn bytes(&mut self, length: usize) -> Result<Vec<u8>> {
        ensure!(
            length <= MAX_BODY,
            "{length} bytes are announced, over {MAX_BODY}"
        );
        while self.ahead.len() < length {
            self.more()?;
        }
        Ok(self.ahead.drain(..length).collect())
    }

    fn more(&mut self) -> Result<()> {
        let mut bytes = [0; 16 << 10];
        let got = self.stream.read(&mut bytes).context("Reading an answer")?;
        ensure!(got > 0, "The connection ended before the answer did");
        self.ahead.extend(&bytes[..got]);
        Ok(())
    }
}

#[cfg(test)]
mod test {
    use super::*;
    use std::io::Cursor;

    /// A server that has written its answers before it was asked, and hands them out in small
    /// pieces.
    struct ToldStream(Cursor<Vec<u8>>, Vec<u8>);

    impl Read for ToldStream {
        fn read(&mut self, bytes: &mut [u8]) -> std::io::Result<usize> {
            let piece = bytes.len().min(3);
            self.0.read(&mut bytes[..piece])
        }
    }

    impl Write for ToldStream {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.1.extend(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn told(answers: &str) -> HttpClient<ToldStream> {
        let told = ToldStream(Cursor::new(answers.as_bytes().to_vec()), Vec::new());
        HttpClient::new(told, "here")
    }

    #[test]
    fn answers_follow_each_other_on_one_connection() {
        let mut http = told(
            "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 201 Created\r\nX-A: b\r\nContent-Length: 2\r\n\r\nok\
             HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2;x\r\nde\r\n0\r\n\r\n\
             HTTP/1.1 204 No Content\r\n\r\n",
        );
        let made = http.ask("POST", "/a", &[("K", "v")], b"{}").unwrap();
        assert_eq!((made.status, made.field("x-a")), (201, Some("b")));
        assert_eq!(made.body, b"ok");
        assert_eq!(http.ask("GET", "/b", &[], b"").unwrap().body, b"abcde");
        let gone = http.ask("DELETE", "/c", &[], b"").unwrap();
        assert!(gone.status == 204 && gone.body.is_empty());
        let sent = String::from_utf8(http.stream.1.clone()).unwrap();
        assert!(
            sent.starts_with(
                "POST /a HTTP/1.1\r\nHost: here\r\nK: v\r\nContent-Length: 2\r\n\r\n{}"
            )
        );
        assert!(sent.contains("GET /b HTTP/1.1\r\nHost: here\r\n\r\n"));
    }

    #[test]
    fn what_is_not_an_answer_is_refused() {
        for text in [
            "",
            "SSH-2.0\r\n\r\n",
            "HTTP/1.1 200 OK\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nshort",
            "HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n",
        ] {
            told(text).ask("GET", "/", &[], b"").unwrap_err();
        }
    }

    #[test]
    fn a_status_that_was_not_expected_is_told_with_the_body() {
        let mut http = told("HTTP/1.1 429 Too Many\r\nContent-Length: 4\r\n\r\nfull");
        let answer = http.ask("POST", "/a", &[], b"").unwrap();
        let error = answer.expect(201, "POST /a").unwrap_err().to_string();
        assert_eq!(error, "POST /a: 429 full, not 201");
    }
}
