//! `GET /files` and the way into `POST /files` (api/PROTOCOL.md §7.11).

use crate::connect::request::RequestBody;
use crate::envd::auth::{self, FileQuery};
use crate::envd::http::HttpError;
use crate::envd::paths::GuestCaller;
use crate::envd::range::{self, RangePart};
use crate::envd::{fail, filesystem, upload};
use crate::{Body, BodyError, body};
use bytes::Bytes;
use engine::sandbox::Sandbox;
use http_body_util::BodyExt;
use hyper::body::Frame;
use hyper::header::{self, HeaderValue};
use hyper::http::request::Parts;
use hyper::{HeaderMap, Method, Response, StatusCode};
use jiff::Timestamp;
use jiff::fmt::rfc2822;
use link::{FileEntry, FileReader, LinkError};
use std::pin::Pin;
use std::task::{Context, Poll};
use wire::FileKind;

/// Answers a request to `/files`.
///
/// # Errors
/// As a response to be.
pub(super) async fn serve(
    sandbox: &Sandbox,
    parts: &Parts,
    body: RequestBody,
) -> Result<Response<Body>, HttpError> {
    let query = FileQuery::parse(parts.uri.query().unwrap_or_default())
        .ok_or_else(|| HttpError::bad("The query string has a broken escape"))?;
    let token = sandbox.access_token.as_deref();
    let now = Timestamp::now().as_second();
    query
        .authorize(token, &parts.headers, &parts.method, now)
        .map_err(|why| HttpError::new(StatusCode::UNAUTHORIZED, why))?;
    crate::slots::accepted_parts(&parts.extensions);
    let name = match &query.username {
        Some(name) => Some(name.clone()),
        None => auth::username(&parts.headers)?,
    };
    let mut caller = GuestCaller::checked(sandbox, name).await?;
    if parts.method == Method::POST {
        return upload::serve(sandbox, &mut caller, query.path, &parts.headers, body).await;
    }
    let path = query
        .path
        .ok_or_else(|| HttpError::bad("The query parameter path is missing"))?;
    let path = caller.resolve(&path).await?;
    download(sandbox, &caller, &path, parts).await
}

/// A file opened for sending, all of it or a part.
struct OpenedFile {
    entry: FileEntry,
    reader: FileReader,
    part: RangePart,
}

async fn open(sandbox: &Sandbox, path: &str, headers: &HeaderMap) -> Result<OpenedFile, LinkError> {
    let link = &sandbox.link;
    let range = headers
        .get(header::RANGE)
        .and_then(|value| value.to_str().ok());
    let Some(range) = range else {
        let (entry, reader) = link.read_file(path.as_bytes(), 0, u64::MAX).await?;
        if entry.kind == FileKind::Symlink {
            // The entry describes the link; the length must be the file's.
            drop(reader);
            let target = entry.symlink_target;
            let (entry, reader) = link.read_file(&target, 0, u64::MAX).await?;
            return Ok(OpenedFile {
                entry,
                reader,
                part: RangePart::Whole,
            });
        }
        return Ok(OpenedFile {
            entry,
            reader,
            part: RangePart::Whole,
        });
    };
    let mut entry = link.stat(path.as_bytes()).await?;
    if entry.kind == FileKind::Symlink {
        entry = link.stat(&entry.symlink_target).await?;
    }
    let stale = headers
        .get(header::IF_RANGE)
        .is_some_and(|wanted| last_modified(&entry).as_ref() != Some(wanted));
    let part = if stale {
        RangePart::Whole
    } else {
        range::part(range, entry.size)
    };
    let (offset, length) = match part {
        RangePart::Whole => (0, u64::MAX),
        RangePart::Some { offset, length } => (offset, length),
        RangePart::Unsatisfiable => (0, 0),
    };
    let target = entry.path.clone();
    let (_, reader) = link.read_file(&target, offset, length).await?;
    Ok(OpenedFile {
        entry,
        reader,
        part,
    })
}

async fn download(
    sandbox: &Sandbox,
    caller: &GuestCaller<'_>,
    path: &str,
    parts: &Parts,
) -> Result<Response<Body>, HttpError> {
    let opened = open(sandbox, path, &parts.headers).await;
    let OpenedFile {
        entry,
        mut reader,
        part,
    } = match opened {
        Ok(opened) => opened,
        Err(error) => return Err(fail::file(sandbox, error, path, &caller.name).await),
    };
    let mut response = Response::new(body::empty());
    if not_modified(&entry, &parts.headers) {
        *response.status_mut() = StatusCode::NOT_MODIFIED;
        headers(response.headers_mut(), path, &entry, b"");
        return Ok(response);
    }
    let (status, length) = match part {
        RangePart::Whole => (StatusCode::OK, entry.size),
        RangePart::Some { length, .. } => (StatusCode::PARTIAL_CONTENT, length),
        RangePart::Unsatisfiable => {
            let mut response =
                HttpError::new(StatusCode::RANGE_NOT_SATISFIABLE, "invalid range").response();
            content_range(response.headers_mut(), &format!("bytes */{}", entry.size));
            return Ok(response);
        }
    };
    // The first piece decides the type, shows errors in time, and tells an empty file from one
    // whose size the guest's kernel does not know (/proc).
    let first = match reader.next().await.transpose() {
        Ok(first) => first.unwrap_or_default(),
        Err(error) => return Err(fail::file(sandbox, error, path, &caller.name).await),
    };
    *response.status_mut() = status;
    headers(response.headers_mut(), path, &entry, &first);
    let known = length > 0 || first.is_empty();
    if known {
        response
            .headers_mut()
            .insert(header::CONTENT_LENGTH, length.into());
    }
    if let RangePart::Some { offset, length } = part {
        let range = format!("bytes {offset}-{}/{}", offset + length - 1, entry.size);
        content_range(response.headers_mut(), &range);
    }
    if parts.method != Method::HEAD && !(known && length == 0) {
        let left = known.then_some(length);
        *response.body_mut() = FileBody {
            first,
            reader,
            left,
        }
        .boxed_unsync();
    }
    Ok(response)
}

fn content_range(headers: &mut HeaderMap, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        headers.insert(header::CONTENT_RANGE, value);
    }
}

fn last_modified(entry: &FileEntry) -> Option<HeaderValue> {
    let time = Timestamp::from_nanosecond(i128::from(entry.modified_ns)).ok()?;
    let text = rfc2822::DateTimePrinter::new()
        .timestamp_to_rfc9110_string(&time)
        .ok()?;
    HeaderValue::from_str(&text).ok()
}

fn not_modified(entry: &FileEntry, headers: &HeaderMap) -> bool {
    let since = || {
        let text = headers.get(header::IF_MODIFIED_SINCE)?.to_str().ok()?;
        rfc2822::DateTimeParser::new().parse_timestamp(text).ok()
    };
    since().is_some_and(|since| entry.modified_ns.div_euclid(1_000_000_000) <= since.as_second())
}

fn headers(headers: &mut HeaderMap, path: &str, entry: &FileEntry, first: &[u8]) {
    let kind = content_type(path, first);
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    headers.insert(header::VARY, HeaderValue::from_static("Accept-Encoding"));
    if let Some(time) = last_modified(entry) {
        headers.insert(header::LAST_MODIFIED, time);
    }
    let name = filesystem::name(path.as_bytes());
    let way = if is_passive(kind) {
        "inline"
    } else {
        "attachment"
    };
    if let Ok(value) = HeaderValue::from_str(&disposition(way, &name)) {
        headers.insert(header::CONTENT_DISPOSITION, value);
    }
    // What a sandbox wrote must not run in the name of this server in a browser.
    headers.insert(
        header::X_CONTENT_TYPE_OPTIONS,
        HeaderValue::from_static("nosniff"),
    );
    headers.insert(
        header::CONTENT_SECURITY_POLICY,
        HeaderValue::from_static("sandbox; default-src 'none'"),
    );
}

/// Whether a browser shows content of this type without running any of it. Whatever else there is
/// is saved, not shown.
fn is_passive(kind: &str) -> bool {
    let image = kind.starts_with("image/") && kind != "image/svg+xml";
    let medium = kind.starts_with("audio/") || kind.starts_with("video/");
    let text = kind.starts_with("text/plain") || kind.starts_with("text/csv");
    image || medium || text || kind == "application/json"
}

/// `inline; filename=…` or `attachment; …`, bare, quoted or extended, as the name needs.
fn disposition(way: &str, name: &str) -> String {
    let token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$&+-.^_`|~".contains(&byte);
    if name.bytes().all(token) {
        return format!("{way}; filename={name}");
    }
    if name.bytes().all(|byte| (0x20..0x7f).contains(&byte)) {
        let escaped = name.replace('\\', "\\\\").replace('"', "\\\"");
        return format!("{way}; filename=\"{escaped}\"");
    }
    let encoded: String = name
        .bytes()
        .map(|byte| {
            if token(byte) {
                char::from(byte).to_string()
            } else {
                format!("%{byte:02X}")
            }
        })
        .collect();
    format!("{way}; filename*=utf-8''{encoded}")
}

/// By the name's ending, else by the look of the first bytes.
fn content_type(path: &str, first: &[u8]) -> &'static str {
    let name = path.rsplit('/').next().unwrap_or_default();
    let ending = name
        .rsplit_once('.')
        .map_or("", |(_, ending)| ending)
        .to_ascii_lowercase();
    match ending.as_str() {
        "txt" | "log" | "md" | "py" | "rs" | "sh" | "c" | "h" | "toml" | "yaml" | "yml" => {
            "text/plain; charset=utf-8"
        }
        "html" | "htm" => "text/html; charset=utf-8",
        "css" => "text/css; charset=utf-8",
        "csv" => "text/csv; charset=utf-8",
        "js" | "mjs" => "text/javascript; charset=utf-8",
        "xml" => "text/xml; charset=utf-8",
        "json" => "application/json",
        "pdf" => "application/pdf",
        "wasm" => "application/wasm",
        "zip" => "application/zip",
        "gz" | "tgz" => "application/gzip",
        "png" => "image/png",
        "jpg" | "jpeg" => "image/jpeg",
        "gif" => "image/gif",
        "webp" => "image/webp",
        "svg" => "image/svg+xml",
        "avif" => "image/avif",
        "mp3" => "audio/mpeg",
        "wav" => "audio/wav",
        "mp4" => "video/mp4",
        "webm" => "video/webm",
        _ if looks_like_text(&first[..first.len().min(512)]) => "text/plain; charset=utf-8",
        _ => "application/octet-stream",
    }
}

fn looks_like_text(first: &[u8]) -> bool {
    let binary = |byte: &u8| matches!(byte, 0..=8 | 0x0b | 0x0e..=0x1a | 0x1c..=0x1f);
    let utf8 = match std::str::from_utf8(first) {
        Ok(_) => true,
        // A character cut at the end of the piece is no fault of the file's.
        Err(error) => error.error_len().is_none(),
    };
    utf8 && !first.iter().any(binary)
}

/// A file on its way out. When the guest fails to read on, or the file has shrunk, the connection
/// is dropped: a short body must not look complete.
struct FileBody {
    first: Bytes,
    reader: FileReader,
    /// Bytes that the headers still promise, if they promise any.
    left: Option<u64>,
}

impl FileBody {
    /// Cuts `bytes` to what was promised; a file that grows meanwhile must not overflow.
    fn promised(&mut self, mut bytes: Bytes) -> Bytes {
        if let Some(left) = &mut self.left {
            bytes.truncate(usize::try_from(*left).unwrap_or(usize::MAX));
            *left -= bytes.len() as u64;
        }
        bytes
    }
}

impl hyper::body::Body for FileBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        if this.left == Some(0) {
            return Poll::Ready(None);
        }
        if !this.first.is_empty() {
            let first = std::mem::take(&mut this.first);
            return Poll::Ready(Some(Ok(Frame::data(this.promised(first)))));
        }
        this.reader.poll_next(context).map(|next| match next {
            Some(Ok(bytes)) => Some(Ok(Frame::data(this.promised(bytes)))),
            Some(Err(error)) => Some(Err(error.into())),
            None => match this.left {
                None | Some(0) => None,
                Some(left) => Some(Err(
                    format!("the file is {left} bytes shorter than it was").into()
                )),
            },
        })
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn dispositions() {
        assert_eq!(disposition("inline", "a.txt"), "inline; filename=a.txt");
        assert_eq!(
            disposition("attachment", "a \"b\".txt"),
            "attachment; filename=\"a \\\"b\\\".txt\""
        );
        assert_eq!(
            disposition("inline", "ä\n"),
            "inline; filename*=utf-8''%C3%A4%0A"
        );
    }

    #[test]
    fn what_can_run_in_a_browser_is_saved_and_not_shown() {
        for active in [
            "html", "htm", "svg", "xml", "js", "mjs", "css", "pdf", "wasm", "bin",
        ] {
            let kind = content_type(&format!("/a.{active}"), b"\0");
            assert!(!is_passive(kind), "{active}: {kind}");
        }
        for passive in ["txt", "png", "jpg", "mp4", "wav", "csv", "json"] {
            assert!(
                is_passive(content_type(&format!("/a.{passive}"), b"")),
                "{passive}"
            );
        }
    }

    #[test]
    fn types() {
        assert_eq!(content_type("/a/b.PNG", b"text"), "image/png");
        assert_eq!(
            content_type("/a.d/hosts", "127.0.0.1\tä\n".as_bytes()),
            "text/plain; charset=utf-8"
        );
        assert_eq!(
            content_type("/bin/x", b"\x7fELF\x02\x01\0"),
            "application/octet-stream"
        );
        assert_eq!(
            content_type("/x", &"ä".as_bytes()[..1]),
            "text/plain; charset=utf-8"
        );
    }
}
