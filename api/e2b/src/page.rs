//! Errors of a sandbox's ports for people: a page where a browser has opened one, JSON for all
//! else.

use crate::error::ProxyError;
use crate::{Body, body};
use hyper::header::{ACCEPT, CACHE_CONTROL, CONTENT_TYPE, HeaderMap, HeaderValue, USER_AGENT};
use hyper::{Method, Request, Response};

/// Whether a browser has asked for a page to show. Programs ask for pages, too: they get JSON.
pub(crate) fn is_navigation<B>(request: &Request<B>) -> bool {
    let headers = request.headers();
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let wants_page = text(ACCEPT.as_str()).is_some_and(|accept| accept.contains("text/html"));
    let reads = matches!(*request.method(), Method::GET | Method::HEAD);
    reads && wants_page && (text("sec-fetch-mode") == Some("navigate") || is_old_browser(headers))
}

/// Browsers from before `Sec-Fetch-Mode`.
fn is_old_browser(headers: &HeaderMap) -> bool {
    let agent = headers
        .get(USER_AGENT)
        .and_then(|value| value.to_str().ok());
    !headers.contains_key("sec-fetch-mode") && agent.is_some_and(|a| a.starts_with("Mozilla/"))
}

/// The page, with the status and the words that a program gets.
pub(crate) fn of(error: &ProxyError) -> Response<Body> {
    let mut response = error.response();
    let status = response.status();
    let title = format!(
        "{} {}",
        status.as_u16(),
        status.canonical_reason().unwrap_or_default()
    );
    let text = escape(&error.to_string());
    let page = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>{title}</title>\
         <meta name=\"viewport\" content=\"width=device-width\"></head>\n\
         <body style=\"font: 16px/1.5 system-ui, sans-serif; max-width: 40em; margin: 4em auto; \
         padding: 0 1em\"><h1>{title}</h1><p>{text}</p>\
         <p>If a program is about to listen there, open this page again.</p></body></html>\n"
    );
    *response.body_mut() = body::full(page);
    let html = HeaderValue::from_static("text/html; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, html);
    let never = HeaderValue::from_static("no-store");
    response.headers_mut().insert(CACHE_CONTROL, never);
    response
}

fn escape(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            other => safe.push(other),
        }
    }
    safe
}

#[cfg(test)]
mod test {
    use super::*;
    use http_body_util::BodyExt;

    fn navigates(method: Method, headers: &[(&str, &str)]) -> bool {
        let mut request = Request::builder().method(method);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        is_navigation(&request.body(()).unwrap())
    }

    #[test]
    fn browsers_are_told_from_programs() {
        let page = ("accept", "text/html,application/xhtml+xml,*/*;q=0.8");
        let mode = ("sec-fetch-mode", "navigate");
        let old = ("user-agent", "Mozilla/5.0 (X11)");
        assert!(navigates(Method::GET, &[page, mode]));
        assert!(navigates(Method::GET, &[page, old]));
        assert!(!navigates(Method::POST, &[page, mode]));
        assert!(!navigates(Method::GET, &[("accept", "*/*"), mode]));
        assert!(!navigates(Method::GET, &[page, ("user-agent", "curl/8")]));
        let fetched = ("sec-fetch-mode", "cors");
        assert!(!navigates(Method::GET, &[page, fetched, old]));
    }

    #[tokio::test]
    async fn a_page_says_what_json_says_and_nothing_in_it_is_code() {
        let why = "<script>alert(1)</script>";
        let page = of(&ProxyError::broken("i1", 80, why));
        assert_eq!(page.status().as_u16(), 502);
        let kind = page.headers()[CONTENT_TYPE].to_str().unwrap().to_owned();
        assert!(kind.starts_with("text/html"));
        let bytes = page.into_body().collect().await.unwrap().to_bytes();
        let text = String::from_utf8(bytes.to_vec()).unwrap();
        assert!(text.contains("&lt;script&gt;alert(1)") && !text.contains("<script"));
    }
}
