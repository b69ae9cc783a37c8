//! `POST /files`: uploads, streamed with back-pressure, never held (api/PROTOCOL.md §7.12).

use crate::Body;
use crate::budget::BodyRefusal;
use crate::connect::request::RequestBody;
use crate::envd::http::{HttpError, json_response};
use crate::envd::multipart::{MultipartEvent, MultipartParser};
use crate::envd::paths::GuestCaller;
use crate::envd::{fail, filesystem};
use bytes::{Bytes, BytesMut};
use engine::sandbox::Sandbox;
use flate2::write::GzDecoder;
use hyper::{HeaderMap, Response, StatusCode, header};
use link::{FileEntry, FileWriter};
use serde_json::{Value, json};
use std::collections::HashSet;
use std::io::Write;
use std::time::Duration;

/// How long an uploading client may pause.
const PATIENCE: Duration = Duration::from_secs(600);
/// Most files of one request.
const MAX_FILES: usize = 10_000;
/// Most bytes of the paths of one request's files: they are remembered to its end.
const MAX_PATHS: usize = 2 << 20;
/// Compressed bytes that are inflated at once: at most about a thousand times as many come out.
const INFLATE: usize = 256;
/// After a failure, how long and how much of the rest of an upload is read and thrown away.
const DRAIN_TIME: Duration = Duration::from_secs(30);
const DRAIN_BYTES: usize = 1 << 30;

/// Answers an upload.
///
/// # Errors
/// As a response to be.
pub(super) async fn serve(
    sandbox: &Sandbox,
    caller: &mut GuestCaller<'_>,
    path: Option<String>,
    headers: &HeaderMap,
    body: RequestBody,
) -> Result<Response<Body>, HttpError> {
    let mut source = UploadSource::new(headers, body)?;
    if let Some(name) = headers
        .keys()
        .find(|name| name.as_str().starts_with("x-metadata-"))
    {
        return Err(HttpError::new(
            StatusCode::NOT_IMPLEMENTED,
            format!("{name}: this server cannot attach metadata to files; send none"),
        ));
    }
    let files = match kind(headers) {
        "multipart/form-data" => multipart(sandbox, caller, path, headers, &mut source).await,
        "application/octet-stream" => raw(sandbox, caller, path, &mut source).await,
        other => Err(HttpError::bad(format!(
            "Content type {other:?} is neither multipart/form-data nor application/octet-stream"
        ))),
    };
    if files.is_err() {
        // This caller has shown who it is: it gets more patience than a stranger.
        let _ = tokio::time::timeout(DRAIN_TIME, source.drain()).await;
    }
    Ok(json_response(&Value::Array(files?)))
}

fn kind(headers: &HeaderMap) -> &str {
    let value = headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok());
    let essence = value
        .unwrap_or_default()
        .split(';')
        .next()
        .unwrap_or_default()
        .trim();
    for known in ["multipart/form-data", "application/octet-stream"] {
        if essence.eq_ignore_ascii_case(known) {
            return known;
        }
    }
    essence
}

async fn raw(
    sandbox: &Sandbox,
    caller: &mut GuestCaller<'_>,
    path: Option<String>,
    source: &mut UploadSource,
) -> Result<Vec<Value>, HttpError> {
    let path = path.ok_or_else(|| HttpError::bad("The query parameter path is missing"))?;
    let mut target = UploadTarget::open(sandbox, caller, &path).await?;
    while let Some(bytes) = source.next().await? {
        target.write(sandbox, bytes).await?;
    }
    Ok(vec![target.finish(sandbox).await?])
}

async fn multipart(
    sandbox: &Sandbox,
    caller: &mut GuestCaller<'_>,
    path: Option<String>,
    headers: &HeaderMap,
    source: &mut UploadSource,
) -> Result<Vec<Value>, HttpError> {
    let bad = |why: crate::envd::multipart::MultipartError| HttpError::bad(why.to_string());
    let content_type = headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok());
    let mut parser = MultipartParser::new(content_type.unwrap_or_default()).map_err(bad)?;
    let mut files = Vec::new();
    let mut seen = HashSet::new();
    let mut target: Option<UploadTarget> = None;
    let (hold, mut paths) = (source.body.hold().clone(), 0);
    hold.begin(None, MAX_PATHS);
    while let Some(bytes) = source.next().await? {
        parser.push(&bytes);
        while let Some(event) = parser.next().map_err(bad)? {
            match event {
                MultipartEvent::Part { name, filename } => {
                    if name != "file" {
                        continue;
                    }
                    let Some(path) = path.clone().or(filename) else {
                        return Err(HttpError::bad(
                            "A file part has no filename, the query no path",
                        ));
                    };
                    let opened = UploadTarget::open(sandbox, caller, &path).await?;
                    if !seen.insert(opened.path.clone()) {
                        let path = &opened.path;
                        return Err(HttpError::bad(format!(
                            "you cannot upload multiple files to the same path '{path}' in one request"
                        )));
                    }
                    paths += opened.path.len();
                    if seen.len() > MAX_FILES || paths > MAX_PATHS {
                        return Err(HttpError::bad(format!(
                            "More than {MAX_FILES} files in one request, or more than {MAX_PATHS} \
                             bytes of their paths; send them in several"
                        )));
                    }
                    hold.keep(opened.path.len())
                        .await
                        .map_err(|why| too_many(&why))?;
                    target = Some(opened);
                }
                MultipartEvent::Data(bytes) => {
                    if let Some(target) = &mut target {
                        target.write(sandbox, bytes).await?;
                    }
                }
                MultipartEvent::PartEnd => {
                    if let Some(target) = target.take() {
                        files.push(target.finish(sandbox).await?);
                    }
                }
                MultipartEvent::End => {}
            }
        }
    }
    if !parser.is_done() {
        return Err(HttpError::bad(
            "The multipart body ends before its closing boundary",
        ));
    }
    Ok(files)
}

/// One file being written.
struct UploadTarget {
    path: String,
    user: String,
    writer: FileWriter,
}

impl UploadTarget {
    async fn open(
        sandbox: &Sandbox,
        caller: &mut GuestCaller<'_>,
        path: &str,
    ) -> Result<Self, HttpError> {
        let path = caller.resolve(path).await?;
        let user = caller.name.clone();
        match sandbox.link.write_file(path.as_bytes(), &user).await {
            Ok(writer) => Ok(Self { path, user, writer }),
            Err(error) => Err(fail::file(sandbox, error, &path, &user).await),
        }
    }

    async fn write(&mut self, sandbox: &Sandbox, bytes: Bytes) -> Result<(), HttpError> {
        match self.writer.write(bytes).await {
            Ok(()) => Ok(()),
            Err(error) => Err(fail::file(sandbox, error, &self.path, &self.user).await),
        }
    }

    async fn finish(self, sandbox: &Sandbox) -> Result<Value, HttpError> {
        match self.writer.finish().await {
            Ok(entry) => Ok(written(&entry)),
            Err(error) => Err(fail::file(sandbox, error, &self.path, &self.user).await),
        }
    }
}

fn too_many(why: &BodyRefusal) -> HttpError {
    HttpError::new(StatusCode::TOO_MANY_REQUESTS, why.to_string())
}

fn written(entry: &FileEntry) -> Value {
    json!({
        "path": String::from_utf8_lossy(&entry.path),
        "name": filesystem::name(&entry.path),
        "type": "file",
    })
}

/// The bytes of the request, inflated if need be.
struct UploadSource {
    body: RequestBody,
    gzip: Option<GzipBody>,
}

struct GzipBody {
    decoder: GzDecoder<Vec<u8>>,
    /// Compressed bytes not yet inflated.
    waiting: Bytes,
}

impl UploadSource {
    fn new(headers: &HeaderMap, body: RequestBody) -> Result<Self, HttpError> {
        let encoding = headers
            .get(header::CONTENT_ENCODING)
            .map(|value| value.to_str());
        let gzip = match encoding {
            None => false,
            Some(Ok(name)) if name.eq_ignore_ascii_case("identity") || name.is_empty() => false,
            Some(Ok(name)) if name.eq_ignore_ascii_case("gzip") => true,
            Some(_) => {
                return Err(HttpError::bad(
                    "Unsupported Content-Encoding; send gzip or identity",
                ));
            }
        };
        let gzip = gzip.then(|| GzipBody {
            decoder: GzDecoder::new(Vec::new()),
            waiting: Bytes::new(),
        });
        Ok(Self { body, gzip })
    }

    /// The next bytes; `None` at the end.
    async fn next(&mut self) -> Result<Option<Bytes>, HttpError> {
        loop {
            if let Some(gzip) = &mut self.gzip
                && !gzip.waiting.is_empty()
            {
                let bytes = gzip.inflate()?;
                if !bytes.is_empty() {
                    return Ok(Some(bytes));
                }
                continue;
            }
            match (self.received().await?, &mut self.gzip) {
                (Some(bytes), Some(gzip)) => gzip.waiting = bytes,
                (Some(bytes), None) => return Ok(Some(bytes)),
                (None, None) => return Ok(None),
                (None, Some(_)) => return self.finish(),
            }
        }
    }

    fn finish(&mut self) -> Result<Option<Bytes>, HttpError> {
        let Some(gzip) = self.gzip.take() else {
            return Ok(None);
        };
        let rest = gzip.decoder.finish().map_err(|why| not_gzip(&why))?;
        Ok((!rest.is_empty()).then(|| rest.into()))
    }

    async fn received(&mut self) -> Result<Option<Bytes>, HttpError> {
        loop {
            let frame = tokio::time::timeout(PATIENCE, self.body.frame())
                .await
                .map_err(|_| {
                    let text = format!("The upload paused for more than {} s", PATIENCE.as_secs());
                    HttpError::new(StatusCode::REQUEST_TIMEOUT, text)
                })?;
            match frame {
                None => return Ok(None),
                Some(Err(why)) => {
                    return Err(HttpError::bad(format!("The request body broke off: {why}")));
                }
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) if !data.is_empty() => {
                        self.body.hold().progress(data.len());
                        return Ok(Some(data));
                    }
                    _ => {}
                },
            }
        }
    }
}

impl UploadSource {
    /// Reads on and throws away, so that a client in the middle of a long upload comes to read the
    /// answer. Gives up at a limit: then the connection is cut.
    async fn drain(&mut self) {
        let mut left = DRAIN_BYTES;
        while let Some(Ok(frame)) = self.body.frame().await {
            match left.checked_sub(frame.data_ref().map_or(0, Bytes::len)) {
                Some(rest) => left = rest,
                None => return,
            }
        }
    }
}

impl GzipBody {
    fn inflate(&mut self) -> Result<Bytes, HttpError> {
        let piece = self.waiting.split_to(self.waiting.len().min(INFLATE));
        self.decoder
            .write_all(&piece)
            .map_err(|why| not_gzip(&why))?;
        let out = std::mem::take(self.decoder.get_mut());
        Ok(BytesMut::from(&out[..]).freeze())
    }
}

fn not_gzip(why: &std::io::Error) -> HttpError {
    HttpError::bad(format!(
        "The body is not the gzip data that its Content-Encoding says: {why}"
    ))
}

#[cfg(test)]
mod test {
    use super::*;
    use crate::body;
    use flate2::Compression;
    use flate2::write::GzEncoder;

    fn gzip_headers() -> HeaderMap {
        HeaderMap::from_iter([(header::CONTENT_ENCODING, "gzip".parse().unwrap())])
    }

    #[tokio::test]
    async fn gzip_is_inflated_in_bounded_pieces() {
        // Zeroes: the worst that gzip can do to memory.
        let zeroes = vec![0; 8 << 20];
        let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
        encoder.write_all(&zeroes).unwrap();
        let packed = encoder.finish().unwrap();
        let mut source =
            UploadSource::new(&gzip_headers(), RequestBody::alone(body::full(packed))).unwrap();
        let mut total = 0;
        while let Some(bytes) = source.next().await.unwrap() {
            assert!(bytes.len() <= 1 << 20, "a piece of {} bytes", bytes.len());
            assert!(bytes.iter().all(|byte| *byte == 0));
            total += bytes.len();
        }
        assert_eq!(total, zeroes.len());
    }

    #[tokio::test]
    async fn what_is_not_gzip_or_cut_short_is_the_clients_fault() {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(b"hello, hello, hello").unwrap();
        let mut cut = encoder.finish().unwrap();
        cut.truncate(cut.len() - 6);
        for bytes in [b"plain text, no gzip".to_vec(), cut] {
            let mut source =
                UploadSource::new(&gzip_headers(), RequestBody::alone(body::full(bytes))).unwrap();
            let error = loop {
                match source.next().await {
                    Ok(Some(_)) => {}
                    Ok(None) => panic!("accepted"),
                    Err(error) => break error,
                }
            };
            assert_eq!(error.status, StatusCode::BAD_REQUEST);
        }
    }
}
