//! A client of Hatchery's API: one connection, one request at a time, every answer checked.

use crate::http::{HttpAnswer, HttpClient};
use anyhow::{Context, Result, bail, ensure};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// The key that measured servers accept.
pub(crate) const KEY: &str = "e2b_0000000000000000000000000000000000000000";
/// How long sandboxes live if nobody ends them, seconds of the measured machine's clock.
const TIME_TO_LIVE: u32 = 80_000;

/// A connection to the server.
#[derive(Debug)]
pub(crate) struct ApiClient {
    http: HttpClient<TcpStream>,
}

/// A sandbox that was made.
#[derive(Clone, Debug)]
pub(crate) struct ClientSandbox {
    /// Its id.
    pub(crate) id: String,
    token: String,
}

/// What the server said of its own steps: their names and nanoseconds.
pub(crate) type ServerSteps = Vec<(String, u64)>;

/// The outcome of a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ExecOutcome {
    /// Its exit status, in the server's words.
    pub(crate) status: String,
    /// What it wrote to standard output.
    pub(crate) stdout: String,
    /// What it wrote to standard error.
    pub(crate) stderr: String,
}

impl ApiClient {
    /// Connects, and makes sure that the server is well and takes the key: a client that has spoken
    /// before, with its memory in place. Waits at most `patience` for bytes.
    pub(crate) fn connect(address: SocketAddr, patience: Duration) -> Result<Self> {
        let stream =
            TcpStream::connect(address).with_context(|| format!("Connecting to {address}"))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(patience))?;
        let mut client = Self {
            http: HttpClient::new(stream, &address.to_string()),
        };
        client.http.ask("GET", "/health", &[], b"")?;
        let templates = client.control("GET", "/templates", &Value::Null)?;
        templates.expect(200, "GET /templates")?.json()?;
        Ok(client)
    }

    fn control(&mut self, method: &str, path: &str, body: &Value) -> Result<HttpAnswer> {
        let fields = [("X-API-KEY", KEY), ("Content-Type", "application/json")];
        let body = match body {
            Value::Null => Vec::new(),
            body => serde_json::to_vec(body)?,
        };
        self.http.ask(method, path, &fields, &body)
    }

    /// Makes a sandbox of a template or snapshot.
    pub(crate) fn create(&mut self, template: &str) -> Result<(ClientSandbox, ServerSteps)> {
        let wanted = json!({ "templateID": template, "timeout": TIME_TO_LIVE, "secure": true });
        let answer = self.control("POST", "/v2/sandboxes", &wanted)?;
        let answer = answer.expect(201, "POST /v2/sandboxes")?;
        Ok((sandbox(&answer.json()?)?, steps(&answer)))
    }

    /// Ends a sandbox.
    pub(crate) fn delete(&mut self, id: &str) -> Result<()> {
        let answer = self.control("DELETE", &format!("/sandboxes/{id}"), &Value::Null)?;
        answer.expect(204, "DELETE /sandboxes").map(drop)
    }

    /// Makes children of a sandbox that all go on where it stands; and how many pages of it were
    /// copied while it was quiesced.
    pub(crate) fn fork(
        &mut self,
        id: &str,
        count: u32,
    ) -> Result<(Vec<ClientSandbox>, ServerSteps, u64)> {
        let wanted = json!({ "count": count, "timeout": TIME_TO_LIVE });
        let answer = self.control("POST", &format!("/sandboxes/{id}/fork"), &wanted)?;
        let answer = answer.expect(201, "POST /sandboxes/…/fork")?;
        let all = answer.json()?;
        let all = all.as_array().context("A fork's answer is not a list")?;
        let child = |child: &Value| match child.get("sandbox") {
            Some(made) => sandbox(made),
            None => bail!("A child was not made: {child}"),
        };
        let children: Vec<_> = all.iter().map(child).collect::<Result<_>>()?;
        ensure!(
            u32::try_from(children.len()) == Ok(count),
            "{} children were made, not {count}",
            children.len()
        );
        let header = answer.field("server-timing").unwrap_or_default();
        let quiesced = header.split_once("quiesced-pages;desc=\"");
        let quiesced = quiesced.and_then(|(_, rest)| rest.split('"').next()?.parse().ok());
        let quiesced = quiesced.context("A fork does not say how many pages it copied")?;
        Ok((children, steps(&answer), quiesced))
    }

    /// Puts a sandbox back to where it began.
    pub(crate) fn reset(&mut self, id: &str) -> Result<ServerSteps> {
        let answer = self.control("POST", &format!("/sandboxes/{id}/reset"), &json!({}))?;
        Ok(steps(&answer.expect(204, "POST /sandboxes/…/reset")?))
    }

    /// Stores a restore point of a sandbox; its name.
    pub(crate) fn snapshot(&mut self, id: &str) -> Result<(String, ServerSteps)> {
        let answer = self.control("POST", &format!("/sandboxes/{id}/snapshots"), &json!({}))?;
        let answer = answer.expect(201, "POST /sandboxes/…/snapshots")?;
        let json = answer.json()?;
        let name = json["snapshotID"].as_str();
        let name = name.with_context(|| format!("A snapshot without a name: {json}"))?;
        Ok((name.into(), steps(&answer)))
    }

    /// Forgets a snapshot.
    pub(crate) fn delete_snapshot(&mut self, name: &str) -> Result<()> {
        let answer = self.control("DELETE", &format!("/templates/{name}"), &Value::Null)?;
        answer.expect(204, "DELETE /templates").map(drop)
    }

    /// Runs a program as the template's user to its end.
    pub(crate) fn exec(&mut self, sandbox: &ClientSandbox, argv: &[&str]) -> Result<ExecOutcome> {
        let [program, args @ ..] = argv else {
            bail!("There is no program to run");
        };
        let wanted = json!({ "process": { "cmd": program, "args": args }, "stdin": false });
        let wanted = serde_json::to_vec(&wanted)?;
        let mut body = vec![0];
        body.extend(u32::try_from(wanted.len())?.to_be_bytes());
        body.extend(wanted);
        let fields = [
            ("Content-Type", "application/connect+json"),
            ("Connect-Protocol-Version", "1"),
            ("E2b-Sandbox-Id", sandbox.id.as_str()),
            ("E2b-Sandbox-Port", "49983"),
            ("X-Access-Token", sandbox.token.as_str()),
        ];
        let answer = self
            .http
            .ask("POST", "/process.Process/Start", &fields, &body)?;
        ran(&answer.expect(200, "Process/Start")?.body)
    }

    /// Runs `/bin/true`, whose exit status is the proof that it ran; returns the words of it.
    pub(crate) fn exec_true(&mut self, sandbox: &ClientSandbox) -> Result<String> {
        let ran = self.exec(sandbox, &["/bin/true"])?;
        ensure!(ran.status == "exit status 0", "/bin/true ended: {ran:?}");
        Ok(ran.status)
    }
}

fn sandbox(made: &Value) -> Result<ClientSandbox> {
    let text = |name: &str| {
        let value = made[name].as_str().map(str::to_owned);
        value.with_context(|| format!("A sandbox without {name}: {made}"))
    };
    Ok(ClientSandbox {
        id: text("sandboxID")?,
        token: text("envdAccessToken")?,
    })
}

/// `Server-Timing: request;dur=0.123, claim;dur=1.5`, without the total; durations are
/// milliseconds.
fn steps(answer: &HttpAnswer) -> ServerSteps {
    let header = answer.field("server-timing").unwrap_or_default();
    let step = |entry: &str| {
        let (name, rest) = entry.trim().split_once(";dur=")?;
        let (whole, part) = rest.split_once('.').unwrap_or((rest, ""));
        let part: String = part.chars().chain("000000".chars()).take(6).collect();
        let ns = whole.parse::<u64>().ok()? * 1_000_000 + part.parse::<u64>().ok()?;
        (name != "total").then(|| (name.to_owned(), ns))
    };
    header.split(',').filter_map(step).collect()
}

/// Reads the messages of a stream, each behind a flag and four bytes of length.
fn ran(mut body: &[u8]) -> Result<ExecOutcome> {
    let (mut stdout, mut stderr, mut status) = (Vec::new(), Vec::new(), None);
    while let [_, a, b, c, d, rest @ ..] = body {
        let length = usize::try_from(u32::from_be_bytes([*a, *b, *c, *d]))?;
        let message = rest.get(..length).context("A message is cut off")?;
        body = &rest[length..];
        let message: Value = serde_json::from_slice(message).context("A message is not JSON")?;
        let event = &message["event"];
        for (name, out) in [("stdout", &mut stdout), ("stderr", &mut stderr)] {
            if let Some(data) = event["data"][name].as_str() {
                out.extend(BASE64_STANDARD.decode(data)?);
            }
        }
        if let Some(end) = event["end"]["status"].as_str() {
            status = Some(end.to_owned());
        }
        if let Some(error) = message.get("error") {
            bail!("The command's stream ended with {error}");
        }
    }
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ok(ExecOutcome {
        status: status.context("The command's stream ended without its status")?,
        stdout: text(&stdout),
        stderr: text(&stderr),
    })
}

#[cfg(test)]
mod test {
    use super::*;

    fn envelope(message: &Value) -> Vec<u8> {
        let message = message.to_string();
        let length = u32::try_from(message.len()).unwrap().to_be_bytes();
        [&[0], &length[..], message.as_bytes()].concat()
    }

    #[test]
    fn a_command_is_over_with_its_end_event() {
        let out = json!({"event": {"data": {"stdout": BASE64_STANDARD.encode("hi\n")}}});
        let end = json!({"event": {"end": {"exited": true, "status": "exit status 3"}}});
        let body = [envelope(&out), envelope(&end), envelope(&json!({}))].concat();
        let told = ran(&body).unwrap();
        assert_eq!((&*told.status, &*told.stdout), ("exit status 3", "hi\n"));
        ran(&envelope(&out)).unwrap_err();
        ran(&body[..body.len() - 1]).unwrap_err();
        let broken = envelope(&json!({"error": {"code": "unavailable"}}));
        let error = ran(&broken).unwrap_err().to_string();
        assert!(error.contains("unavailable"), "{error}");
    }

    #[test]
    fn durations_are_read_to_the_microsecond() {
        let text = "HTTP/1.1 204 X\r\nServer-Timing: request;dur=0.123, claim;dur=12.5, total;dur=13\r\n\r\n";
        let stream = std::io::Cursor::new(Vec::from(text));
        // A cursor is written at its position, so the answer is reset behind the request.
        struct ToldStream(std::io::Cursor<Vec<u8>>);
        impl std::io::Read for ToldStream {
            fn read(&mut self, bytes: &mut [u8]) -> std::io::Result<usize> {
                self.0.read(bytes)
            }
        }
        impl std::io::Write for ToldStream {
            fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
                Ok(bytes.len())
            }
            fn flush(&mut self) -> std::io::Result<()> {
                Ok(())
            }
        }
        let answer = HttpClient::new(ToldStream(stream), "x")
            .ask("POST", "/", &[], b"")
            .unwrap();
        let expected = [("request".into(), 123_000), ("claim".into(), 12_500_000)];
        assert_eq!(steps(&answer), expected);
    }
}
