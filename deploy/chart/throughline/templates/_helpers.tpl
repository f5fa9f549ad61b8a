{{- /* Names, labels, and how settings become environment variables. */ -}}

{{- define "throughline.name" -}}
{{- if contains "throughline" .Release.Name }}{{ .Release.Name | trunc 40 | trimSuffix "-" }}
{{- else }}{{ printf "%s-throughline" (.Release.Name | trunc 28 | trimSuffix "-") }}{{ end }}
{{- end }}

{{- /* (root, part): the labels that select a part's pods. */ -}}
{{- define "throughline.selector" -}}
app.kubernetes.io/name: {{ printf "throughline-%s" (index . 1) }}
app.kubernetes.io/instance: {{ (index . 0).Release.Name }}
{{- end }}

{{- define "throughline.labels" -}}
{{ include "throughline.selector" . }}
app.kubernetes.io/component: {{ index . 1 }}
app.kubernetes.io/part-of: throughline
app.kubernetes.io/version: {{ (index . 0).Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ (index . 0).Release.Service }}
{{- end }}

{{- /* (root, image): with registry and tag, unless it has a tag or digest of its own. */ -}}
{{- define "throughline.image" -}}
{{- $root := index . 0 }}{{ $image := index . 1 }}
{{- $last := last (splitList "/" $image) }}
{{- if or (contains ":" $last) (contains "@" $last) }}{{ $image }}
{{- else }}{{ printf "%s%s:%s" $root.Values.image.registry $image ($root.Values.image.tag | default $root.Chart.AppVersion) }}{{ end }}
{{- end }}

{{- /* (key, value): as the programs read it. YAML makes `true` of `on`, and Helm a float of every number. */ -}}
{{- define "throughline.text" -}}
{{- $key := index . 0 }}{{ $value := index . 1 }}
{{- if kindIs "bool" $value }}
{{- if hasPrefix "otel-" $key }}{{ $value }}{{ else }}{{ ternary "on" "off" $value }}{{ end }}
{{- else if kindIs "float64" $value }}
{{- if eq (floor $value) $value }}{{ int64 $value }}{{ else }}{{ $value }}{{ end }}
{{- else if kindIs "slice" $value }}
{{- $texts := list }}{{ range $value }}{{ $texts = append $texts (include "throughline.text" (list $key .)) }}{{ end }}
{{- join "," $texts }}
{{- else }}{{ $value }}{{ end }}
{{- end }}

{{- /* (prefix, ours, the user's): environment variables; the user's win. */ -}}
{{- define "throughline.env" -}}
{{- $all := index . 1 }}
{{- range $key, $value := index . 2 }}{{ $_ := set $all $key $value }}{{ end }}
{{- $prefix := index . 0 }}
{{- range $key, $value := $all }}
{{- $text := include "throughline.text" (list $key $value) }}
{{- if and (not (kindIs "invalid" $value)) (ne $text "") }}
- name: {{ printf "%s%s" (ternary "" $prefix (hasPrefix "otel-" $key)) (upper $key | replace "-" "_") }}
  value: {{ $text | quote }}
{{- end }}
{{- end }}
{{- end }}

{{- define "throughline.flow.host" -}}
{{ include "throughline.name" . }}-flow.{{ .Release.Namespace }}.svc.cluster.local
{{- end }}
{{- define "throughline.collector.host" -}}
{{ include "throughline.name" . }}-collector.{{ .Release.Namespace }}.svc.cluster.local
{{- end }}

{{- /* (root, port): where spans go. */ -}}
{{- define "throughline.endpoint" -}}
{{- $root := index . 0 }}{{ $port := index . 1 }}
{{- if $root.Values.collector.enabled }}{{ printf "http://%s:%v" (include "throughline.collector.host" $root) $port }}
{{- else if $root.Values.flow.enabled }}{{ printf "http://%s:%v" (include "throughline.flow.host" $root) $port }}
{{- end }}
{{- end }}

{{- define "throughline.pod" -}}
{{- $root := index . 0 }}{{ $values := index . 1 }}
{{- with $root.Values.image.pullSecrets }}
imagePullSecrets:
{{- range . }}
- name: {{ . }}
{{- end }}
{{- end }}
{{- with $values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with $values.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.tolerations }}
tolerations: {{- toYaml . | nindent 0 }}
{{- end }}
# No variables by the names of Services: ours would look like settings.
enableServiceLinks: false
{{- end }}

{{- define "throughline.securityContext" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
seccompProfile:
  type: RuntimeDefault
{{- end }}

{{- define "throughline.containerSecurityContext" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end }}

{{- /* Namespaces whose pods may send spans. */ -}}
{{- define "throughline.senders" -}}
- podSelector: {}
- namespaceSelector:
    matchExpressions:
    - {key: throughline.dev/inject, operator: In, values: [enabled, "true"]}
- namespaceSelector: {}
  podSelector:
    matchExpressions:
    - {key: throughline.dev/inject, operator: In, values: [enabled, "true"]}
{{- range .Values.networkPolicy.sendFrom }}
- namespaceSelector: {{- toYaml . | nindent 4 }}
{{- end }}
{{- end }}

{{- define "throughline.readers" -}}
- podSelector: {}
{{- range .Values.networkPolicy.readFrom }}
- namespaceSelector: {{- toYaml . | nindent 4 }}
{{- end }}
{{- end }}

{{- define "throughline.dns" -}}
- ports:
  - {protocol: UDP, port: 53}
  - {protocol: TCP, port: 53}
{{- end }}

{{- define "throughline.apiServer" -}}
- ports:
{{- range .Values.networkPolicy.apiServerPorts }}
  - {protocol: TCP, port: {{ int64 . }}}
{{- end }}
{{- end }}
