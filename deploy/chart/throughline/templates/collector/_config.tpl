{{- /* What every collector does. deploy/collector/collector.yaml is the same for those without Helm; a test compares. */ -}}
{{- define "throughline.collector.config" -}}
{{- $masking := .Values.collector.masking }}
extensions:
  health_check:
    endpoint: ${env:POD_IP}:13133

receivers:
  otlp:
    protocols:
      grpc:
        endpoint: ${env:POD_IP}:4317
        max_recv_msg_size_mib: 16
      http:
        endpoint: ${env:POD_IP}:4318

processors:
  # Refuses, and so lets senders wait, before the kernel ends the process.
  memory_limiter:
    check_interval: 1s
    limit_percentage: 75
    spike_limit_percentage: 20
  k8sattributes:
    auth_type: serviceAccount
    passthrough: false
    # What runs on this node is all that sends here.
    filter:
      node_from_env_var: NODE_NAME
    extract:
      metadata: [k8s.namespace.name, k8s.pod.name, k8s.pod.uid, k8s.node.name, k8s.deployment.name, k8s.statefulset.name, k8s.daemonset.name]
      labels:
      - {tag_name: service.version, key: app.kubernetes.io/version, from: pod}
    pod_association:
    - sources: [{from: resource_attribute, name: k8s.pod.uid}]
    - sources: [{from: resource_attribute, name: k8s.pod.ip}]
    - sources: [{from: connection}]
{{- with .Values.environment }}
  resource:
    attributes:
    - {key: deployment.environment.name, value: {{ . | quote }}, action: insert}
{{- end }}
{{- if $masking.enabled }}
  attributes/masking:
    actions:
    {{- range $masking.delete }}
    - {key: {{ . }}, action: delete}
    {{- end }}
  transform/masking:
    error_mode: ignore
    trace_statements:
    - context: span
      statements:
      {{- range $masking.hash }}
      - set(attributes["{{ . }}"], SHA256(String(attributes["{{ . }}"]))) where attributes["{{ . }}"] != nil
      {{- end }}
      {{- if $masking.fields }}
      - replace_all_patterns(attributes, "value", "(?i)\\b({{ join "|" $masking.fields }})(\"?\\s*[=:]\\s*\"?)[^&\\s\",;}]+", "$$1$$2***MASKED***")
      {{- end }}
    {{- if $masking.fields }}
    - context: spanevent
      statements:
      - replace_all_patterns(attributes, "value", "(?i)\\b({{ join "|" $masking.fields }})(\"?\\s*[=:]\\s*\"?)[^&\\s\",;}]+", "$$1$$2***MASKED***")
    {{- end }}
  redaction/masking:
    allow_all_keys: true
    # How many values were masked, as redaction.masked.count; not their names.
    summary: info
    blocked_values: {{- toYaml $masking.values | nindent 4 }}
{{- end }}
  batch:
    timeout: 1s
    send_batch_size: 1024
    send_batch_max_size: 4096

service:
  extensions: [health_check]
  pipelines:
    traces:
      receivers: [otlp]
      processors: [memory_limiter, k8sattributes{{ if .Values.environment }}, resource{{ end }}{{ if $masking.enabled }}, attributes/masking, transform/masking, redaction/masking{{ end }}, batch]
    # Exact counts: the flow server's numbers come from them. They hold no values of requests.
    metrics:
      receivers: [otlp]
      processors: [memory_limiter, k8sattributes{{ if .Values.environment }}, resource{{ end }}, batch]
{{- end }}

{{- /* Who gets it. The collector reads it as a second file, merged into the first. */ -}}
{{- define "throughline.collector.exporters" -}}
exporters:
{{- if .Values.flow.enabled }}
  otlp/flow:
    endpoint: {{ include "throughline.flow.host" . }}:4317
    compression: gzip
    tls: {insecure: true}
    sending_queue: {enabled: true, num_consumers: 4, queue_size: 2000}
    retry_on_failure: {enabled: true, initial_interval: 1s, max_interval: 30s, max_elapsed_time: 300s}
{{- end }}
{{- range .Values.collector.sendTo }}
  otlp/{{ .name }}:
    endpoint: {{ .endpoint }}
    compression: gzip
    tls: {insecure: {{ .insecure | default false }}}
    sending_queue: {enabled: true, num_consumers: 4, queue_size: 2000}
    retry_on_failure: {enabled: true, initial_interval: 1s, max_interval: 30s, max_elapsed_time: 300s}
{{- end }}
service:
  pipelines:
    traces:
      exporters: [{{ if .Values.flow.enabled }}otlp/flow{{ end }}{{ range $i, $to := .Values.collector.sendTo }}{{ if or $i $.Values.flow.enabled }}, {{ end }}otlp/{{ $to.name }}{{ end }}]
    metrics:
      exporters: [{{ if .Values.flow.enabled }}otlp/flow{{ else }}otlp/{{ (first .Values.collector.sendTo).name }}{{ end }}]
{{- end }}
