use super::*;
use proptest::prelude::*;

fn where_to(
    method: &str,
    uri: &str,
    headers: &[(&str, &str)],
) -> Result<RequestTarget, ProxyError> {
    let mut map = HeaderMap::new();
    for (name, value) in headers {
        let name = hyper::header::HeaderName::from_bytes(name.as_bytes()).unwrap();
        map.insert(name, value.parse().unwrap());
    }
    let method = Method::from_bytes(method.as_bytes()).unwrap();
    target(&method, &uri.parse().unwrap(), &map)
}

fn data(id: &str, port: u16) -> Result<RequestTarget, ProxyError> {
    Ok(RequestTarget::Data {
        id: id.into(),
        port,
    })
}

const ID: (&str, &str) = ("E2b-Sandbox-Id", "iabc");
const PORT: (&str, &str) = ("E2b-Sandbox-Port", "49983");
const KEY: (&str, &str) = ("X-API-KEY", "e2b_00");

#[test]
fn rule_1_a_key_wins_over_everything() {
    let host = ("Host", "49983-iabc.localhost:3000");
    for uri in [
        "/sandboxes/iabc/connect",
        "/files?signature=v1_x",
        "/health",
    ] {
        assert_eq!(
            where_to("POST", uri, &[KEY, ID, PORT, host]),
            Ok(RequestTarget::Control),
            "{uri}"
        );
    }
    let bearer = ("Authorization", "Bearer x");
    assert_eq!(
        where_to("GET", "/teams", &[bearer, ID, PORT]),
        Ok(RequestTarget::Control)
    );
    assert_eq!(
        where_to("GET", "/health", &[bearer, ID, PORT]),
        data("iabc", 49983)
    );
    let basic = ("Authorization", "Basic cm9vdDo=");
    assert_eq!(
        where_to("GET", "/teams", &[basic, ID, PORT]),
        data("iabc", 49983)
    );
}

#[test]
fn rule_0_a_host_that_names_a_programs_port_is_that_programs() {
    let host = ("Host", "8080-iabc.localhost:3000");
    assert_eq!(where_to("GET", "/", &[KEY, host]), data("iabc", 8080));
    let other = ("E2b-Sandbox-Id", "iother");
    assert_eq!(
        where_to("GET", "/", &[other, PORT, host]),
        data("iabc", 8080)
    );
    let bearer = ("Authorization", "Bearer x");
    let teams = where_to("GET", "/teams", &[bearer, host]);
    assert_eq!(teams, data("iabc", 8080));
}

#[test]
fn rule_2_both_headers_or_neither() {
    assert_eq!(where_to("GET", "/health", &[ID, PORT]), data("iabc", 49983));
    let legacy = ("E2b-Sandbox-Id", "iabc-6532622b");
    assert_eq!(
        where_to("GET", "/health", &[legacy, PORT]),
        data("iabc", 49983)
    );
    let missing = |h: &[(&str, &str)]| where_to("GET", "/health", h).unwrap_err();
    assert_eq!(
        missing(&[ID]),
        ProxyError::MissingHeader("E2b-Sandbox-Port")
    );
    assert_eq!(
        missing(&[PORT]),
        ProxyError::MissingHeader("E2b-Sandbox-Id")
    );
    for bad in ["", "A", "a/b", "a.b", "-x", "é"] {
        assert_eq!(
            missing(&[("E2b-Sandbox-Id", bad), PORT]),
            ProxyError::Id,
            "{bad}"
        );
    }
    for bad in ["", "0", "65536", "-1", "x", " 1"] {
        assert_eq!(
            missing(&[ID, ("E2b-Sandbox-Port", bad)]),
            ProxyError::Port,
            "{bad}"
        );
    }
}

#[test]
fn rule_3_the_host_names_a_sandbox() {
    let host = |host: &str| where_to("GET", "/", &[("Host", host)]);
    assert_eq!(host("8080-iabc.sbx.localhost:3000"), data("iabc", 8080));
    assert_eq!(host("8080-IABC"), data("iabc", 8080));
    assert_eq!(host("8080-iabc-6532622b.e2b.app"), data("iabc", 8080));
    assert_eq!(where_to("GET", "http://80-iabc.x/", &[]), data("iabc", 80));
    for plain in [
        "localhost:3000",
        "127.0.0.1",
        "[::1]:3000",
        "api.x-y.z",
        "my-host",
        "-a.b",
        "",
    ] {
        assert_eq!(host(plain), Ok(RequestTarget::Control), "{plain}");
    }
    assert_eq!(host("0-iabc.x"), Err(ProxyError::Port));
    assert_eq!(host("99999-iabc.x"), Err(ProxyError::Port));
    assert_eq!(host("80-i_c.x"), Err(ProxyError::Host));
}

#[test]
fn rules_4_and_5_signed_files_and_the_rest() {
    assert_eq!(
        where_to("GET", "/files?path=a&signature=v1_x", &[]),
        Ok(RequestTarget::Signed)
    );
    assert_eq!(
        where_to("POST", "/files?signature=v1_x", &[]),
        Ok(RequestTarget::Signed)
    );
    assert_eq!(
        where_to("DELETE", "/files?signature=v1_x", &[]),
        Ok(RequestTarget::Control)
    );
    assert_eq!(
        where_to("GET", "/files?path=a", &[]),
        Ok(RequestTarget::Control)
    );
    assert_eq!(where_to("GET", "/health", &[]), Ok(RequestTarget::Control));
}

fn get(method: &str, path: &str) -> Result<Route, u16> {
    route(&Method::from_bytes(method.as_bytes()).unwrap(), path).map_err(|e| e.status().as_u16())
}

#[test]
fn every_endpoint_has_its_place() {
    let id = || "iabc".to_owned();
    let table = [
        ("GET /health", Route::Health),
        ("POST /sandboxes", Route::Create(ApiVersion::V1)),
        ("POST /v2/sandboxes", Route::Create(ApiVersion::V2)),
        ("GET /sandboxes", Route::List(ApiVersion::V1)),
        ("GET /v2/sandboxes", Route::List(ApiVersion::V2)),
        ("GET /sandboxes/metrics", Route::MetricsOfMany),
        ("GET /sandboxes/iabc", Route::Get(id())),
        ("GET /sandboxes/iabc-6532622b", Route::Get(id())),
        ("DELETE /sandboxes/iabc", Route::Kill(id())),
        ("POST /sandboxes/iabc/timeout", Route::Timeout(id())),
        ("POST /sandboxes/iabc/refreshes", Route::Refresh(id())),
        (
            "POST /sandboxes/iabc/connect",
            Route::Connect(id(), ApiVersion::V1),
        ),
        (
            "POST /v2/sandboxes/iabc/connect",
            Route::Connect(id(), ApiVersion::V2),
        ),
        ("GET /sandboxes/iabc/metrics", Route::Metrics(id())),
        (
            "GET /sandboxes/iabc/logs",
            Route::Logs(id(), ApiVersion::V1),
        ),
        (
            "GET /v2/sandboxes/iabc/logs",
            Route::Logs(id(), ApiVersion::V2),
        ),
        ("POST /sandboxes/iabc/pause", Route::Pause(id())),
        ("POST /sandboxes/iabc/resume", Route::Resume(id())),
        ("POST /sandboxes/iabc/fork", Route::Fork(id())),
        ("POST /sandboxes/iabc/reset", Route::Reset(id())),
        ("POST /sandboxes/iabc/snapshots", Route::Snapshot(id())),
        ("GET /snapshots", Route::Snapshots),
        (
            "DELETE /templates/team%2Fsnap%3Adefault",
            Route::DeleteTemplate("team/snap:default".into()),
        ),
        ("PUT /sandboxes/iabc/network", Route::Network("iabc".into())),
        ("GET /templates", Route::Templates),
        ("GET /v2/templates", Route::Templates),
        ("GET /templates/base", Route::Template("base".into())),
        (
            "GET /templates/aliases/team%2Fbase",
            Route::TemplateAlias("team/base".into()),
        ),
    ];
    for (request, wanted) in table {
        let (method, path) = request.split_once(' ').unwrap();
        assert_eq!(get(method, path), Ok(wanted), "{request}");
    }
}

#[test]
fn what_is_not_built_says_so() {
    for request in [
        "POST /v3/templates",
        "GET /templates/t/files/abc",
        "POST /v2/templates/t/builds/b",
        "GET /templates/t/builds/b/status",
        "POST /templates/tags",
        "DELETE /templates/tags",
        "PATCH /v2/templates/t",
        "GET /volumes",
        "PUT /volumecontent/v/file",
        "POST /secrets",
        "GET /teams",
    ] {
        let (method, path) = request.split_once(' ').unwrap();
        assert!(
            matches!(get(method, path), Ok(Route::NotYet(..))),
            "{request}"
        );
    }
}

#[test]
fn wrong_paths_and_methods_are_told_apart() {
    assert_eq!(get("GET", "/"), Err(404));
    assert_eq!(get("GET", "/sandboxes/a/b/c"), Err(404));
    assert_eq!(get("GET", "/sandboxes/a/timeout"), Err(405));
    assert_eq!(get("PATCH", "/sandboxes"), Err(405));
    assert_eq!(get("GET", "/sandboxes/%zz"), Err(400));
}

#[test]
fn control_paths_of_envd_are_reserved() {
    assert_eq!(reserved("/init"), Some("/init"));
    assert_eq!(reserved("/freeze/"), Some("/freeze"));
    assert_eq!(reserved("/files"), None);
}

proptest! {
    #[test]
    fn nothing_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        fuzz_route(&bytes);
    }

    #[test]
    fn near_hosts_do_not_panic(
        host in "[0-9]{0,6}-?[a-z0-9-]{0,70}(\\.[a-z]{0,4})?(:[0-9]{0,5})?",
    ) {
        fuzz_route(host.as_bytes());
    }
}
