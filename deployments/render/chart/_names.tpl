{{- /* Names and small parts. What these templates make is what `pointsman render --target kuberay` makes; a test compares. */ -}}

{{- define "pointsman.labels" -}}
app.kubernetes.io/name: pointsman
app.kubernetes.io/instance: {{ .Values.config.name | quote }}
{{- end }}

{{- define "pointsman.metadata" -}}
name: {{ .root.Values.config.name }}-{{ .name }}
namespace: {{ .root.Release.Namespace | quote }}
labels:
  {{- include "pointsman.labels" .root | nindent 2 }}
{{- end }}

{{- define "pointsman.modelGroup" -}}
model-{{ regexReplaceAll "[^a-z0-9]+" . "-" | trimAll "-" }}
{{- end }}

{{- define "pointsman.poolsGroup" -}}
pools-{{ regexReplaceAll "[^a-z0-9]+" . "-" | trimAll "-" }}
{{- end }}

{{- define "pointsman.resource" -}}
pointsman_{{ . | replace "-" "_" }}
{{- end }}

{{- /* Seconds that a request may take at most. */ -}}
{{- define "pointsman.longest" -}}
{{- if .Values.config.contracts -}}
{{- $longest := 0.0 -}}
{{- range .Values.config.contracts -}}{{- $longest = maxf $longest .timeout_s -}}{{- end -}}
{{- ceil $longest | int64 -}}
{{- else -}}
{{- int64 .Values.pods.defaultTimeoutSeconds -}}
{{- end -}}
{{- end }}

{{- /* The port in a URL: a list of the URL and what it is by default. */ -}}
{{- define "pointsman.port" -}}
{{- $host := (urlParse (index . 0)).host -}}
{{- regexFind ":[0-9]+$" $host | trimPrefix ":" | default (toString (index . 1)) -}}
{{- end }}

{{- define "pointsman.hasPools" -}}
{{- range .Values.config.models }}{{ if .pools }}yes{{ end }}{{ end -}}
{{- end }}
