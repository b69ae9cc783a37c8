//! `hatchery doctor`: asks about this host what the settings make worth asking.

use crate::args::{DoctorArgs, program_dir};
use doctor::host::{HostQuestion, TemplateQuestion, TlsFacts};
use doctor::{host, judge, report};
use e2b::tls::ServingCertificate;
use engine::error::chain;
use engine::image::pager::PagerClient;
use engine::template::Template;
use hatchery::config::{ConfigError, ConfigFile, Overrides, Settings, TlsSettings};
use std::path::Path;
use std::process::ExitCode;

#[expect(clippy::print_stdout, reason = "this is what was asked for")]
pub(crate) fn examine(args: &DoctorArgs) -> anyhow::Result<ExitCode> {
    let dir = program_dir()?;
    let file = args
        .typed
        .config
        .as_deref()
        .map(ConfigFile::read)
        .transpose();
    let (settings, problem) = match file {
        Err(problem) => (fallback(args.typed.overrides(), &dir)?, Some(problem)),
        Ok(file) => match Settings::new(file.unwrap_or_default(), args.typed.overrides(), &dir) {
            Ok(settings) => (settings, None),
            Err(problem) => (fallback(args.typed.overrides(), &dir)?, Some(problem)),
        },
    };
    let findings = judge::judge(&host::look(&question(&settings, problem.as_ref())));
    if args.json {
        println!("{}", report::json(&findings));
    } else {
        print!("{}", report::text(&findings));
    }
    Ok(doctor::exit_code(doctor::verdict(&findings)))
}

/// What is asked of the host; `problem` is what stood in the way of the settings.
fn question(settings: &Settings, problem: Option<&ConfigError>) -> HostQuestion {
    let template = |template: &Template| TemplateQuestion {
        name: template.name.clone(),
        kernel: template.kernel.clone(),
        image: template.image.clone(),
        memory_mb: template.memory_mb,
    };
    let lazy = settings.clones.lazy;
    HostQuestion {
        data_dir: settings.data_dir.clone(),
        config: match problem {
            None | Some(ConfigError::NoKeys) => Ok(()),
            Some(problem) => Err(chain(problem)),
        },
        has_key: !matches!(problem, Some(ConfigError::NoKeys)),
        tls: settings.tls.as_ref().map(tls_facts),
        vmm: settings.vmm.clone(),
        agent: settings.agent.clone(),
        network: settings.network.program.clone(),
        name_servers: engine::network::host_name_servers().map(|servers| servers.len()),
        pager: lazy.then(|| PagerClient::program(&settings.vmm)),
        jail: settings.jail,
        cgroup: settings.resources.cgroup,
        cgroup_parent: settings.resources.cgroup_parent.clone(),
        max_sandboxes: settings.limits.max_sandboxes,
        templates: settings.templates.values().map(template).collect(),
    }
}

/// Settings to look at the host with, when there are none to serve with.
fn fallback(mut over: Overrides, dir: &Path) -> anyhow::Result<Settings> {
    over.api_keys = Some("no-key-is-ever-this".into());
    // With both, or a bad one, there would be none.
    (over.husks, over.pool_size) = (None, None);
    (over.tls_listen, over.tls_certificate, over.tls_key) = (None, None, None);
    Ok(Settings::new(ConfigFile::default(), over, dir)?)
}

/// What TLS would be served with, or why it could not be.
fn tls_facts(tls: &TlsSettings) -> Result<TlsFacts, String> {
    let certificate = ServingCertificate::read(&tls.files).map_err(|error| chain(&error))?;
    Ok(TlsFacts {
        listen: tls.listen,
        names: certificate.names(),
        ends: certificate.ends.map(|ends| ends.to_string()),
        warnings: certificate.warnings(&tls.files, &tls.domain),
    })
}
