//! Why a pod is left alone. Each reason has a word for metrics and a sentence for people.

/// A reason.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Skip {
    /// Not a pod that is being created.
    NotAPodCreation,
    /// kube-system and its like.
    SystemNamespace,
    /// The injector's own.
    OwnNamespace,
    /// Neither namespace nor pod asks.
    NotLabelled,
    /// The pod says no.
    OptedOut,
    /// Our containers are there.
    Already,
    /// It shares the node's network.
    HostNetwork,
    /// Windows has no such redirect.
    Windows,
    /// The kubelet's copy of a static pod.
    StaticPod,
    /// Istio or Linkerd redirects it.
    OtherMesh,
    /// Mode istio-wasm: Istio's sidecar has the filter.
    LeftToIstio,
    /// A container runs as the sidecar's user.
    UidInUse,
    /// A container has one of our ports.
    PortInUse(u16),
    /// Pod Security would refuse the rules.
    PodSecurity,
    /// A Job that would wait for its sidecar for ever.
    WouldNeverEnd,
}

impl Skip {
    /// The label of the metric.
    pub fn name(self) -> &'static str {
        match self {
            Skip::NotAPodCreation => "not-a-pod-creation",
            Skip::SystemNamespace => "system-namespace",
            Skip::OwnNamespace => "own-namespace",
            Skip::NotLabelled => "not-labelled",
            Skip::OptedOut => "opted-out",
            Skip::Already => "already-injected",
            Skip::HostNetwork => "host-network",
            Skip::Windows => "windows",
            Skip::StaticPod => "static-pod",
            Skip::OtherMesh => "other-mesh",
            Skip::LeftToIstio => "left-to-istio",
            Skip::UidInUse => "uid-in-use",
            Skip::PortInUse(_) => "port-in-use",
            Skip::PodSecurity => "pod-security",
            Skip::WouldNeverEnd => "would-never-end",
        }
    }

    /// What it means, and what to do about it.
    pub fn sentence(self) -> String {
        let text = match self {
            Skip::NotAPodCreation => "only pods that are being created are injected",
            Skip::SystemNamespace => "pods of Kubernetes' own namespaces are left alone",
            Skip::OwnNamespace => "pods of the injector's own namespace are left alone",
            Skip::NotLabelled => "neither the namespace nor the pod says throughline.dev/inject: enabled",
            Skip::OptedOut => "the pod says throughline.dev/inject: disabled",
            Skip::Already => "the pod has our containers",
            Skip::HostNetwork => "the pod shares the node's network, whose traffic is not its own",
            Skip::Windows => "the pod is for Windows nodes, which the sidecar does not run on",
            Skip::StaticPod => "the pod is the copy of a static pod, which nobody can change here",
            Skip::OtherMesh => {
                "another mesh redirects this pod: throughline.dev/mode: reverse goes beside it, and istio-wasm into Istio's sidecar"
            }
            Skip::LeftToIstio => "mode istio-wasm: Istio's sidecar has the filter",
            Skip::UidInUse => {
                "a container runs as user 15100, the sidecar's: its traffic would pass by. Take another runAsUser, or throughline.dev/mode: reverse"
            }
            Skip::PortInUse(port) => {
                return format!(
                    "a container has port {port}, which the sidecar needs: take another one there"
                );
            }
            Skip::PodSecurity => {
                "the namespace's Pod Security forbids the redirect (NET_ADMIN): throughline.dev/mode: reverse needs no privilege"
            }
            Skip::WouldNeverEnd => {
                "the pod ends by itself, and would wait for its sidecar for ever: nodes older than 1.29 have no native sidecars"
            }
        };
        text.to_owned()
    }

    /// What the user is told at once, if it is likely not what they want.
    pub fn warning(self) -> Option<String> {
        let told = match self {
            Skip::OtherMesh
            | Skip::UidInUse
            | Skip::PortInUse(_)
            | Skip::PodSecurity
            | Skip::WouldNeverEnd
            | Skip::HostNetwork => true,
            Skip::NotAPodCreation
            | Skip::SystemNamespace
            | Skip::OwnNamespace
            | Skip::NotLabelled
            | Skip::OptedOut
            | Skip::Already
            | Skip::Windows
            | Skip::StaticPod
            | Skip::LeftToIstio => false,
        };
        told.then(|| format!("throughline: not injected: {}", self.sentence()))
    }
}
