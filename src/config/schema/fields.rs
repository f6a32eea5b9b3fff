//! The JSON names of the schema's fields, and Go's names of its structs.

use super::{
    ClientConnection, ClusterCidrs, Conntrack, DetectLocal, IpTables, Ipvs, JsonOptions, KubeProxyConfiguration,
    LogOptions, Logging, NfTables, Routing, TextOptions, VModule, Winkernel,
};
use crate::config::decode::{Decode, Decoder, Fields};
use crate::config::document::Value;

impl Fields for KubeProxyConfiguration {
    const GO_TYPE: &'static str = "v1alpha1.KubeProxyConfiguration";

    fn field(&mut self, name: &str) -> Option<&mut dyn Decode> {
        Some(match name {
            "kind" => &mut self.kind,
            "apiVersion" => &mut self.api_version,
            "featureGates" => &mut self.feature_gates,
            "clientConnection" => &mut self.client_connection,
            "logging" => &mut self.logging,
            "hostnameOverride" => &mut self.hostname_override,
            "bindAddress" => &mut self.bind_address,
            "healthzBindAddress" => &mut self.healthz_bind_address,
            "metricsBindAddress" => &mut self.metrics_bind_address,
            "bindAddressHardFail" => &mut self.bind_address_hard_fail,
            "enableProfiling" => &mut self.enable_profiling,
            "showHiddenMetricsForVersion" => &mut self.show_hidden_metrics_for_version,
            "mode" => &mut self.mode,
            "iptables" => &mut self.iptables,
            "ipvs" => &mut self.ipvs,
            "nftables" => &mut self.nftables,
            "winkernel" => &mut self.winkernel,
            "detectLocalMode" => &mut self.detect_local_mode,
            "detectLocal" => &mut self.detect_local,
            "clusterCIDR" => &mut self.cluster_cidrs,
            "nodePortAddresses" => &mut self.node_port_addresses,
            "oomScoreAdj" => &mut self.oom_score_adj,
            "conntrack" => &mut self.conntrack,
            "configSyncPeriod" => &mut self.config_sync_period,
            "portRange" => &mut self.port_range,
            "windowsRunAsService" => &mut self.windows_run_as_service,
            _ => return None,
        })
    }
}

impl Fields for ClientConnection {
    const GO_TYPE: &'static str = "v1alpha1.ClientConnectionConfiguration";

    fn field(&mut self, name: &str) -> Option<&mut dyn Decode> {
        Some(match name {
            "kubeconfig" => &mut self.kubeconfig,
            "acceptContentTypes" => &mut self.accept_content_types,
            "contentType" => &mut self.content_type,
            "qps" => &mut self.qps,
            "burst" => &mut self.burst,
            _ => return None,
        })
    }
}

impl Fields for Logging {
    const GO_TYPE: &'static str = "v1.LoggingConfiguration";

    fn field(&mut self, name: &str) -> Option<&mut dyn Decode> {
        Some(match name {
            "format" => &mut self.format,
            "flushFrequency" => &mut self.flush_frequency,
            "verbosity" => &mut self.verbosity,
            "vmodule" => &mut self.vmodule,
            "options" => &mut self.options,
            _ => return None,
        })
    }
}

impl Fields for LogOptions {
    const GO_TYPE: &'static str = "v1.FormatOptions";

    fn field(&mut self, name: &str) -> Option<&mut dyn Decode> {
        Some(match name {
            "text" => &mut self.text,
            "json" => &mut self.json,
            _ => return None,
        })
    }
}

impl Fields for VModule {
    const GO_TYPE: &'static str = "v1.VModuleItem";

    fn field(&mut self, name: &str) -> Option<&mut dyn Decode> {
        Some(match name {
            "filePattern" => &mut self.file_pattern,
            "verbosity" => &mut self.verbosity,
            _ => return None,
        })
    }
}

impl Fields for IpTables {
    const GO_TYPE: &'static str = "v1alpha1.KubeProxyIPTablesConfiguration";

    fn field(&mut self, name: &str) -> Option<&mut dyn Decode> {
        Some(match name {
            "masqueradeBit" => &mut self.masquerade_bit,
            "masqueradeAll" => &mut self.masquerade_all,
            "localhostNodePorts" => &mut self.localhost_node_ports,
            "syncPeriod" => &mut self.sync_period,
            "minSyncPeriod" => &mut self.min_sync_period,
            _ => return None,
        })
    }
}

impl Fields for Ipvs {
    const GO_TYPE: &'static str = "v1alpha1.KubeProxyIPVSConfiguration";

    fn field(&mut self, name: &str) -> Option<&mut dyn Decode> {
        Some(match name {
            "syncPeriod" => &mut self.sync_period,
            "minSyncPeriod" => &mut self.min_sync_period,
            "scheduler" => &mut self.scheduler,
            "excludeCIDRs" => &mut self.exclude_cidrs,
            "strictARP" => &mut self.strict_arp,
            "tcpTimeout" => &mut self.tcp_timeout,
            "tcpFinTimeout" => &mut self.tcp_fin_timeout,
            "udpTimeout" => &mut self.udp_timeout,
            _ => return None,
        })
    }
}

impl Fields for NfTables {
    const GO_TYPE: &'static str = "v1alpha1.KubeProxyNFTablesConfiguration";

    fn field(&mut self, name: &str) -> Option<&mut dyn Decode> {
        Some(match name {
            "masqueradeBit" => &mut self.masquerade_bit,
            "masqueradeAll" => &mut self.masquerade_all,
            "syncPeriod" => &mut self.sync_period,
            "minSyncPeriod" => &mut self.min_sync_period,
            _ => return None,
        })
    }
}

impl Fields for Winkernel {
    const GO_TYPE: &'static str = "v1alpha1.KubeProxyWinkernelConfiguration";

    fn field(&mut self, name: &str) -> Option<&mut dyn Decode> {
        Some(match name {
            "networkName" => &mut self.network_name,
            "sourceVip" => &mut self.source_vip,
            "enableDSR" => &mut self.enable_dsr,
            "rootHnsEndpointName" => &mut self.root_hns_endpoint_name,
            "forwardHealthCheckVip" => &mut self.forward_health_check_vip,
            _ => return None,
        })
    }
}

impl Fields for DetectLocal {
    const GO_TYPE: &'static str = "v1alpha1.DetectLocalConfiguration";

    fn field(&mut self, name: &str) -> Option<&mut dyn Decode> {
        Some(match name {
            "bridgeInterface" => &mut self.bridge_interface,
            "interfaceNamePrefix" => &mut self.interface_name_prefix,
            _ => return None,
        })
    }
}

impl Fields for Conntrack {
    const GO_TYPE: &'static str = "v1alpha1.KubeProxyConntrackConfiguration";

    fn field(&mut self, name: &str) -> Option<&mut dyn Decode> {
        Some(match name {
            "maxPerCore" => &mut self.max_per_core,
            "min" => &mut self.min,
            "tcpEstablishedTimeout" => &mut self.tcp_established_timeout,
            "tcpCloseWaitTimeout" => &mut self.tcp_close_wait_timeout,
            "tcpBeLiberal" => &mut self.tcp_be_liberal,
            "udpTimeout" => &mut self.udp_timeout,
            "udpStreamTimeout" => &mut self.udp_stream_timeout,
            _ => return None,
        })
    }
}

impl Fields for TextOptions {
    const GO_TYPE: &'static str = "v1.TextOptions";

    fn field(&mut self, name: &str) -> Option<&mut dyn Decode> {
        self.0.field(name)
    }
}

impl Fields for JsonOptions {
    const GO_TYPE: &'static str = "v1.JSONOptions";

    fn field(&mut self, name: &str) -> Option<&mut dyn Decode> {
        self.0.field(name)
    }
}

impl Routing {
    fn field(&mut self, name: &str) -> Option<&mut dyn Decode> {
        Some(match name {
            "splitStream" => &mut self.split_stream,
            "infoBufferSize" => &mut self.info_buffer_size,
            _ => return None,
        })
    }
}

impl Decode for ClusterCidrs {
    fn decode(&mut self, value: &Value, decoder: &mut Decoder) {
        let mut text = self.0.join(",");
        text.decode(value, decoder);
        *self = ClusterCidrs::split(&text);
    }
}
