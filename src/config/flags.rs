//! The command line: kube-proxy's flags, ferrule's own, and ferrule's subcommands.

mod groups;
mod listing;
mod syntax;
mod values;

use std::fmt;
use std::path::Path;

use clap::error::ContextKind;
use clap::{Args, Command, FromArgMatches};

use super::decode::NanosOrText;
use super::duration::GoDuration;
use super::go::quote_list;
use super::schema::{ClusterCidrs, KubeProxyConfiguration, Logging, VModule};
use super::{KUBERNETES_MINOR, KUBERNETES_VERSION, ProxyMode};
use crate::net::IpFamily;

/// What a command line asks for.
#[derive(Clone, Debug)]
pub enum Invocation {
    /// No subcommand: the proxy, or whatever [`super::Action`] the configuration comes to.
    Proxy(Box<Flags>),
    /// `ferrule render`: print the rules of a first sync.
    Render {
        /// What the proxy would be started with.
        flags: Box<Flags>,
        /// The family to print, both if not given: `--ip-family`.
        ip_family: Option<IpFamily>,
    },
    /// `ferrule demo`: show the proxy at work in a world of its own.
    Demo {
        /// `--proxy-mode`
        mode: ProxyMode,
    },
    /// Help or version: print this to standard output and exit with 0.
    Print(String),
}

/// A command line, and what is to be said about it.
#[derive(Clone, Debug)]
pub struct Parsed {
    /// What it asks for.
    pub invocation: Invocation,
    /// Lines for standard error, before anything else and in no log format: deprecated flags.
    pub deprecations: Vec<String>,
}

/// A command line that cannot be used. Displays what belongs on standard error, without the last
/// line end; the exit code is 1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// As in [`Parsed`].
    pub deprecations: Vec<String>,
    /// The usage text, if the error calls for it.
    pub usage: Option<String>,
    /// The error, without the word `Error`.
    pub error: String,
}

/// Every flag of the proxy as given. Turned into a configuration by [`super::load`].
#[derive(Args, Clone, Debug)]
pub struct Flags {
    #[command(flatten)]
    pub(crate) general: groups::General,
    #[command(flatten)]
    pub(crate) ferrule: groups::Ferrule,
    #[command(flatten)]
    pub(crate) api: groups::ApiServer,
    #[command(flatten)]
    pub(crate) rules: groups::Rules,
    #[command(flatten)]
    pub(crate) ipvs: groups::IpvsMode,
    #[command(flatten)]
    pub(crate) system: groups::System,
    #[command(flatten)]
    pub(crate) servers: groups::HttpServers,
    #[command(flatten)]
    pub(crate) log: groups::Log,
    #[command(flatten)]
    ignored: groups::Ignored,
}

/// `--version`
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Version {
    /// Not given, or `false`.
    Default,
    /// Print the number.
    Print,
    /// Print everything known about the build.
    Raw,
    /// Report this one from now on.
    Override(String),
}

#[derive(Args, Clone, Debug)]
struct RenderFlags {
    /// The family whose rules to print; both if not given
    #[arg(long, value_name = "IPv4|IPv6", value_parser = values::ip_family)]
    ip_family: Option<IpFamily>,
    #[command(flatten)]
    proxy: Flags,
}

#[derive(Args, Clone, Debug)]
struct DemoFlags {
    /// Kernel interface to show: iptables, ipvs or nftables
    #[arg(long, value_name = "MODE", value_parser = values::mode, default_value = "iptables")]
    proxy_mode: ProxyMode,
    /// Print this help and exit
    #[arg(short = 'h', long, value_name = "BOOL", num_args = 0..=1, require_equals = true, value_parser = super::go::parse_bool, default_value = "false", hide_default_value = true)]
    help: bool,
}

const DEPRECATED: [(&str, &str); 2] =
    [("--healthz-port", "--healthz-bind-address"), ("--metrics-port", "--metrics-bind-address")];

/// Groups of flags that mean something to `render`, which starts no server and logs little.
const RENDER_HIDES: [&str; 5] = [
    "API server",
    "Kernel and process",
    "Health, metrics, debugging",
    "Logging (each overrides the configuration file)",
    "Accepted without effect",
];

/// Reads a command line; `args` begins with the program's name. Only the first argument can be a
/// subcommand, so that kube-proxy's command line keeps its meaning.
pub fn parse(args: &[String]) -> Result<Parsed, Refused> {
    let (program, args) = args.split_first().map_or(("ferrule", &[][..]), |(program, args)| (base_name(program), args));
    match args.split_first() {
        Some((first, rest)) if first == "render" => render(rest),
        Some((first, rest)) if first == "demo" => demo(rest),
        _ => proxy(program, args),
    }
}

fn proxy(program: &str, args: &[String]) -> Result<Parsed, Refused> {
    let command = Flags::augment_args(bare(program)).about(
        "Programs Kubernetes Services into this node's kernel, as kube-proxy does and with its flags.\n\n\
         Subcommands, each with a --help of its own:\n  \
         render   print the rules this command line would come to, and touch nothing\n  \
         demo     show the proxy at work between network namespaces it makes and removes",
    );
    // Whatever the binary is called: scripts know this message from kube-proxy.
    let read = read::<Flags>(command, "kube-proxy", args)?;
    Ok(read.finish(|flags, command| match (&flags.general.version, flags.general.help) {
        (_, true) => help(command),
        (Version::Print, _) => Invocation::Print(format!("Kubernetes {KUBERNETES_VERSION}\n")),
        (Version::Raw, _) => Invocation::Print(raw_version()),
        (Version::Default | Version::Override(_), false) => Invocation::Proxy(Box::new(flags)),
    }))
}

fn render(args: &[String]) -> Result<Parsed, Refused> {
    let command = RenderFlags::augment_args(bare("ferrule render"))
        .about("Prints what a first full sync with these flags would give to the kernel. Touches nothing, needs no privilege.")
        .mut_args(|arg| {
            let hidden = arg.get_help_heading().is_some_and(|heading| RENDER_HIDES.contains(&heading));
            if hidden { arg.hide(true) } else { arg }
        });
    let read = read::<RenderFlags>(command, "ferrule render", args)?;
    Ok(read.finish(|flags, command| match flags.proxy.general.help {
        true => help(command),
        false => Invocation::Render { flags: Box::new(flags.proxy), ip_family: flags.ip_family },
    }))
}

fn demo(args: &[String]) -> Result<Parsed, Refused> {
    let command = DemoFlags::augment_args(bare("ferrule demo"))
        .about("Builds a client, a node and pods as network namespaces, runs the real proxy between them, and removes everything again. The host's own rules are not touched. Needs root.");
    let read = read::<DemoFlags>(command, "ferrule demo", args)?;
    Ok(read.finish(|flags, command| match flags.help {
        true => help(command),
        false => Invocation::Demo { mode: flags.proxy_mode },
    }))
}

/// A command without anything clap would add by itself.
fn bare(name: &str) -> Command {
    Command::new("ferrule")
        .no_binary_name(true)
        .disable_help_flag(true)
        .disable_help_subcommand(true)
        .disable_version_flag(true)
        .args_override_self(true)
        .next_line_help(true)
        .override_usage(format!("{name} [flags]"))
}

fn help(command: &mut Command) -> Invocation {
    Invocation::Print(command.render_help().to_string())
}

struct Read<T> {
    flags: T,
    command: Command,
    deprecations: Vec<String>,
}

/// Parses arguments by a command's flags. Errors come in kube-proxy's order: the first wrong flag,
/// then what is no flag (unless help is asked for).
fn read<T: FromArgMatches>(mut command: Command, name: &str, args: &[String]) -> Result<Read<T>, Refused> {
    command.build();
    let tokens = syntax::read(&command, args);
    let deprecations: Vec<String> = tokens.flags.iter().filter_map(|token| deprecation(token)).collect();
    let refuse = |command: &Command, error: String| {
        let usage = command.clone().help_template("{usage-heading} {usage}\n\n{all-args}").render_help().to_string();
        Refused { deprecations: deprecations.clone(), usage: Some(usage), error }
    };

    let matches = command.try_get_matches_from_mut(&tokens.flags);
    let matches = matches.map_err(|error| refuse(&command, describe(&command, &error)))?;
    if let Some(error) = tokens.error {
        return Err(refuse(&command, error));
    }
    let flags = T::from_arg_matches(&matches).map_err(|error| refuse(&command, error.to_string()))?;
    let asks_for_help = matches.get_one::<bool>("help") == Some(&true);
    if !asks_for_help && tokens.positional.iter().any(|arg| !arg.is_empty()) {
        let error = format!("\"{name}\" does not take any arguments, got {}", quote_list(&tokens.positional));
        return Err(Refused { deprecations, usage: None, error });
    }
    Ok(Read { flags, command, deprecations })
}

/// clap's error about a value in kube-proxy's words.
fn describe(command: &Command, error: &clap::Error) -> String {
    let context = |kind| error.get(kind).map(ToString::to_string).unwrap_or_default();
    // clap shows the flag with its placeholder, as in `--config <FILE>`.
    let shown = context(ContextKind::InvalidArg);
    let long = shown.trim_start_matches('-').split([' ', '=', '[', '<']).next().unwrap_or_default();
    let flag = command.get_arguments().find(|flag| flag.get_long() == Some(long));
    let (Some(flag), Some(reason)) = (flag, std::error::Error::source(error)) else {
        return error.to_string();
    };
    let value = super::go::quote(&context(ContextKind::InvalidValue));
    format!("invalid argument {value} for {} flag: {reason}", super::go::quote(&syntax::display_name(flag)))
}

fn deprecation(token: &str) -> Option<String> {
    let (name, _) = token.split_once('=')?;
    let (_, instead) = DEPRECATED.iter().find(|(deprecated, _)| *deprecated == name)?;
    Some(format!(
        "Flag {name} has been deprecated, This flag is deprecated and will be removed in a future release. \
         Please use {instead} instead."
    ))
}

fn base_name(program: &str) -> &str {
    Path::new(program).file_name().and_then(|name| name.to_str()).unwrap_or("ferrule")
}

/// The fields of kube-proxy's line; what only a Go program has stays empty.
fn raw_version() -> String {
    let (os, arch) = (std::env::consts::OS, std::env::consts::ARCH);
    let arch = match arch {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    format!(
        "version.Info{{Major:\"1\", Minor:\"{KUBERNETES_MINOR}\", EmulationMajor:\"\", EmulationMinor:\"\", \
         MinCompatibilityMajor:\"\", MinCompatibilityMinor:\"\", GitVersion:\"{KUBERNETES_VERSION}\", GitCommit:\"\", \
         GitTreeState:\"\", BuildDate:\"\", GoVersion:\"\", Compiler:\"rustc\", Platform:\"{os}/{arch}\"}}\n"
    )
}

// === impl Read ===

impl<T> Read<T> {
    fn finish(mut self, invocation: impl FnOnce(T, &mut Command) -> Invocation) -> Parsed {
        Parsed { invocation: invocation(self.flags, &mut self.command), deprecations: self.deprecations }
    }
}

// === impl Refused ===

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for line in &self.deprecations {
            writeln!(f, "{line}")?;
        }
        if let Some(usage) = &self.usage {
            writeln!(f, "{}\n", usage.trim_end())?;
        }
        write!(f, "Error: {}", self.error)
    }
}

impl std::error::Error for Refused {}

// === impl Flags ===

impl Flags {
    /// `--config`, if not empty.
    pub(crate) fn config_file(&self) -> Option<&Path> {
        Some(Path::new(&self.general.config)).filter(|path| !path.as_os_str().is_empty())
    }

    /// `--write-config-to`, if not empty.
    pub(crate) fn write_config_to(&self) -> Option<&Path> {
        Some(Path::new(&self.general.write_config_to)).filter(|path| !path.as_os_str().is_empty())
    }

    /// The configuration of a command line without `--config`. Unlike in a file, zero is zero.
    pub(crate) fn configuration(&self) -> KubeProxyConfiguration {
        let mut written = KubeProxyConfiguration::default();
        written.set_defaults();
        // Every value below has its default from the flag.
        let text = |field: &mut String, value: &str| {
            // An empty address changes nothing, as documented for none but true for all of them.
            if !value.is_empty() {
                value.clone_into(field);
            }
        };
        let lists = |lists: &[values::List]| lists.iter().flat_map(|list| list.0.iter().cloned()).collect();

        let gates = self.general.feature_gates.iter().flat_map(|gates| gates.0.iter().cloned());
        written.feature_gates = gates.collect();

        written.client_connection.kubeconfig.clone_from(&self.api.kubeconfig);
        written.client_connection.qps = self.api.kube_api_qps;
        written.client_connection.burst = self.api.kube_api_burst;
        written.client_connection.content_type.clone_from(&self.api.kube_api_content_type);
        written.config_sync_period = self.api.config_sync_period;

        let rules = &self.rules;
        written.mode.clone_from(&rules.proxy_mode);
        written.detect_local_mode.clone_from(&rules.detect_local_mode);
        written.cluster_cidrs = ClusterCidrs::split(&rules.cluster_cidr);
        written.detect_local.bridge_interface.clone_from(&rules.pod_bridge_interface);
        written.detect_local.interface_name_prefix.clone_from(&rules.pod_interface_name_prefix);
        written.node_port_addresses = lists(&rules.nodeport_addresses);
        text(&mut written.bind_address, &rules.bind_address);
        written.iptables.localhost_node_ports = Some(rules.iptables_localhost_nodeports);
        written.iptables.masquerade_bit = Some(rules.iptables_masquerade_bit);
        // One flag for all modes; only the mark bit of nftables has none.
        written.iptables.masquerade_all = rules.masquerade_all;
        written.nftables.masquerade_all = rules.masquerade_all;
        written.iptables.sync_period = rules.iptables_sync_period;
        written.nftables.sync_period = rules.iptables_sync_period;
        written.iptables.min_sync_period = rules.iptables_min_sync_period;
        written.nftables.min_sync_period = rules.iptables_min_sync_period;

        written.ipvs.scheduler.clone_from(&self.ipvs.ipvs_scheduler);
        written.ipvs.exclude_cidrs = lists(&self.ipvs.ipvs_exclude_cidrs);
        written.ipvs.strict_arp = self.ipvs.ipvs_strict_arp;
        written.ipvs.sync_period = self.ipvs.ipvs_sync_period;
        written.ipvs.min_sync_period = self.ipvs.ipvs_min_sync_period;
        written.ipvs.tcp_timeout = self.ipvs.ipvs_tcp_timeout;
        written.ipvs.tcp_fin_timeout = self.ipvs.ipvs_tcpfin_timeout;
        written.ipvs.udp_timeout = self.ipvs.ipvs_udp_timeout;

        let system = &self.system;
        written.conntrack.max_per_core = Some(system.conntrack_max_per_core);
        written.conntrack.min = Some(system.conntrack_min);
        written.conntrack.tcp_established_timeout = Some(system.conntrack_tcp_timeout_established);
        written.conntrack.tcp_close_wait_timeout = Some(system.conntrack_tcp_timeout_close_wait);
        written.conntrack.tcp_be_liberal = system.conntrack_tcp_be_liberal;
        written.conntrack.udp_timeout = system.conntrack_udp_timeout;
        written.conntrack.udp_stream_timeout = system.conntrack_udp_timeout_stream;
        written.oom_score_adj = Some(system.oom_score_adj);

        let servers = &self.servers;
        text(&mut written.healthz_bind_address, &servers.healthz_bind_address);
        text(&mut written.metrics_bind_address, &servers.metrics_bind_address);
        written.bind_address_hard_fail = servers.bind_address_hard_fail;
        written.enable_profiling = servers.profiling;
        written.show_hidden_metrics_for_version.clone_from(&servers.show_hidden_metrics_for_version);
        written
    }

    /// Logging flags that were given override what a file says; `--vmodule` comes before the
    /// file's list.
    pub(crate) fn override_logging(&self, logging: &mut Logging) {
        fn set<T: Clone>(field: &mut T, flag: Option<&T>) {
            if let Some(value) = flag {
                field.clone_from(value);
            }
        }
        let log = &self.log;
        set(&mut logging.verbosity, log.verbosity.as_ref());
        set(&mut logging.format, log.logging_format.as_ref());
        if let Some(duration) = log.log_flush_frequency {
            logging.flush_frequency = NanosOrText { duration, is_number: false };
        }
        set(&mut logging.options.text.0.split_stream, log.log_text_split_stream.as_ref());
        set(&mut logging.options.text.0.info_buffer_size, log.log_text_info_buffer_size.as_ref());
        set(&mut logging.options.json.0.split_stream, log.log_json_split_stream.as_ref());
        set(&mut logging.options.json.0.info_buffer_size, log.log_json_info_buffer_size.as_ref());
        let levels = log.vmodule.iter().flat_map(|levels| levels.0.iter().cloned());
        let items = levels.map(|(file_pattern, verbosity)| VModule { file_pattern, verbosity });
        logging.vmodule.splice(0..0, items);
    }
}
